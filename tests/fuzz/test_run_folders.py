"""Change the records of a run: its page and its card are made of what is left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from curate.train.report import card, html
from curate.train.run import records
from tests.fuzz.effort import SEED, rounds
from tests.support.hostile_run import write_run
from tests.support.mutations import mutations


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "eval.jsonl", "samples.jsonl", "masked.jsonl", "run.json", "plan.json"]
)
def test_a_page_and_a_card_are_made_of_changed_records(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run")
    file = run / name
    lines = file.read_text().splitlines() if name.endswith("l") else [file.read_text()]
    for values in mutations(json.loads(lines[-1]), rounds(25), SEED):
        file.write_text("\n".join([*lines[:-1], json.dumps(values), "[" * 100_000]))
        history = records.read(run)
        assert html.render(history)
        for part in (card._losses, card._training_loss, card._answer):
            assert isinstance(part(history), str)
