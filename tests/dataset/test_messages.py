"""Messages of a set that another program changed are refused, and never rendered."""

from __future__ import annotations

from pathlib import Path

import pytest

import curate
from curate.dataset import arrow
from curate.errors import SetError
from tests.support.small_set import kept, write_set

USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    "message", [{"role": None, "content": "x"}, {"role": "bot", "content": "x"}, {"role": "assistant", "content": None}]
)
def test_a_message_without_a_known_role_or_a_text_is_refused(tmp_path: Path, message: dict[str, str | None]) -> None:
    folder = write_set(tmp_path / "set", [kept(0, "a", messages=[USER, message])], [])
    with pytest.raises(SetError, match="the set is damaged: a message"):
        [arrow.decode_batch(batch) for batch in arrow.read_batches(folder)]
    with pytest.raises(SetError, match="the set is damaged: a message"):
        curate.convert(folder, tmp_path / "out.jsonl", to="openai")
