"""Items of evaluated tasks are found in the set that a run was trained on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from curate.dataset.curated_set import MANIFEST, open_set
from curate.evaluation import contamination
from curate.evaluation.contamination import Document, Found, document
from tests.support.small_set import kept, write_set

TAUGHT = "A gardener plants nine rows of seven tulips and gives away ten of them; how many tulips are left?"
HELD_OUT = "A sailor buys twelve ropes of eleven metres each and cuts three of them in half; how many has he?"
SHORT = "What colour is fox 3?"


def message(role: str, content: str) -> dict[str, object]:
    return {"role": role, "content": content, "train": True, "stop": True}


def write(root: Path) -> Path:
    """Write a set: one question and its answer trained on, one held out."""
    questions = [(TAUGHT, "train"), (SHORT, "train"), (HELD_OUT, "eval")]
    rows = [
        kept(number, f"c{number}", split=split, messages=[message("user", question), message("assistant", "Yes.")])
        for number, (question, split) in enumerate(questions)
    ]
    return write_set(root / "set", rows, [])


def test_items_in_the_training_part_are_flagged_and_those_without_words_are_unmatched(tmp_path: Path) -> None:
    documents = [
        Document("0", (f"{TAUGHT.upper()}",)),
        Document("1", (HELD_OUT,)),
        Document("2", (SHORT,)),
        Document("3", ("Which one?",)),
        Document("4", ()),
        Document("5", (f"  {TAUGHT}",)),
        Document("6", ("Some other question, long enough to be told from any that stands in the set of this test.",)),
    ]
    found, rows = contamination.find({"a": documents, "b:c": documents[1:3]}, open_set(write(tmp_path)))
    assert rows == 2
    assert found["a"] == Found(frozenset({"0", "2", "5"}), frozenset({"3", "4"}))
    assert found["b:c"] == Found(frozenset({"2"}), frozenset())


def test_a_task_without_texts_is_unmatched(tmp_path: Path) -> None:
    found, _ = contamination.find({"a": [Document("0", ())]}, open_set(write(tmp_path)))
    assert found == {"a": Found(frozenset(), frozenset({"0"}))}


@pytest.mark.parametrize(
    ("columns", "texts"),
    [
        ({"Question": TAUGHT, "id": 4}, (TAUGHT,)),
        ({"question": "Which is red?", "choices": ["a", "b"]}, ("Which is red?", "Which is red?\nA. a\nB. b")),
        ({"question": "Which?", "choices": {"text": ["a"], "label": ["A"]}}, ("Which?", "Which?\nA. a")),
        ({"question": "Who did it?", "narrative": TAUGHT}, (TAUGHT,)),
        ({"question": ["not", "text"]}, ("the prompt",)),
        ({}, ("the prompt",)),
    ],
)
def test_the_question_is_found_in_the_columns_of_a_document(columns: dict[str, object], texts: tuple[str, ...]) -> None:
    assert document("0", columns, "the prompt").texts == texts


def test_the_set_of_a_run_is_the_one_that_it_was_trained_on(tmp_path: Path) -> None:
    folder, model = write(tmp_path), tmp_path / "run/model"
    model.mkdir(parents=True)
    manifest = (folder / MANIFEST).read_bytes()
    facts = {"data": {"set": str(folder), "manifest_sha256": hashlib.sha256(manifest).hexdigest()}}
    assert "not in the folder of a run" in contamination.training_set(model)[1].problem
    (model.parent / "run.json").write_text(json.dumps(facts))
    curated, where = contamination.training_set(model)
    assert curated is not None
    assert (where.set, where.problem) == (str(folder), "")
    (folder / MANIFEST).write_bytes(manifest + b"\n")
    assert "no longer the one" in contamination.training_set(model)[1].problem
    (model.parent / "run.json").write_text(json.dumps({"data": {"set": str(tmp_path / "gone")}}))
    assert "cannot be read" in contamination.training_set(model)[1].problem
