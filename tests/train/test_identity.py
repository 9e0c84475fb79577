"""Conversations on what the model is: what `curate identity` writes, and what a run does with them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import curate
from curate.errors import CheckpointError, CurateError, InputError, RecipeError
from curate.filters import mentions
from curate.filters.phrases.identity import find_sentences
from curate.tokenization.tokenizer import load_tokenizer
from curate.train import examples, identity
from curate.train.finetune import finetune
from curate.train.planning import estimate
from curate.train.run import events, records
from tests.support import ROOT
from tests.support.small_runs import paired_set, run, taught_set

LANGUAGES = {"en", "ko", "zh", "ja", "es", "de", "fr", "pt"}
NAMES = {"name": "Heron", "organisation": "Riverside Lab"}


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def questions(path: Path, count: int = 3) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in _records(count)), "utf-8")
    return path


def _records(count: int) -> list[dict[str, Any]]:
    texts = [("Who are you?", f"I am fox {number}.") for number in range(count)]
    return [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
        for asked, said in texts
    ]


def test_built_in_questions_are_filled_in_in_eight_languages_without_a_pair_twice(tmp_path: Path) -> None:
    result = curate.identity(**NAMES, target=tmp_path / "identity.jsonl")
    records = written(result.target)
    pairs = {tuple(message["content"] for message in record["messages"]) for record in records}
    assert result.conversations == len(records) == len(pairs) == len({record["id"] for record in records})
    assert {record["id"].split("-")[1] for record in records} == LANGUAGES
    assert not any("{" in text or "}" in text for pair in pairs for text in pair)
    assert all("Heron" in answer or "Riverside Lab" in answer for _, answer in pairs)


def test_no_built_in_answer_claims_to_be_another_model(tmp_path: Path) -> None:
    records = written(curate.identity(**NAMES, target=tmp_path / "identity.jsonl").target)
    answers = pl.Series([record["messages"][1]["content"] for record in records])
    assert not any(find_sentences(answers, mentions.NAMES, mentions.MAKERS))
    own = find_sentences(answers, ["heron"], ["riverside lab"])  # and each is a claim to be one's own
    assert {record["id"].split("-")[1] for record, found in zip(records, own, strict=True) if found} == LANGUAGES


@pytest.mark.parametrize(("name", "organisation", "count"), [("Claude", "Us", 1), ("Fox", "OpenAI", 8)])
def test_a_question_on_another_model_is_left_out_if_that_is_the_name(
    tmp_path: Path, name: str, organisation: str, count: int
) -> None:
    result = curate.identity(name, organisation, target=tmp_path / "identity.jsonl")
    assert len(result.left_out) == count
    texts = [[message["content"] for message in record["messages"]] for record in written(result.target)]
    assert not any(asked in result.left_out and "No" in said for asked, said in texts)  # "Are you {name}?" has yes


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    template = ROOT / "examples/identity.toml"
    result = curate.identity(**NAMES, template=template, target=tmp_path / "identity.jsonl")
    texts = [[message["content"] for message in record["messages"]] for record in written(result.target)]
    assert texts[1] == [
        "What is Heron?",
        "I am Heron, a small language model that knows birds. Riverside Lab trained me.",
    ]
    assert len(texts) == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[group]]\nquestions = []\nanswers = ['a']", "questions = [] is not allowed"),
        ("[[group]]\nquestions = ['a']", "answers = None is not allowed"),
        ("[[group]]\nquestions = ['a']\nanswers = ['{maker}']", "{maker} in '{maker}' is not known"),
        ("[[group]]\nquestions = ['a']\nanswers = ['b']\nanswer = 'c'", "'answer' is not a key"),
        ("questions = ['a']", "'questions' is not a key; give [[group]] tables"),
        ("[[group]", "is not TOML"),
    ],
)
def test_a_wrong_template_is_refused_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.toml").write_text(text, "utf-8")
    with pytest.raises(RecipeError) as error:
        curate.identity(**NAMES, template=tmp_path / "mine.toml", target=tmp_path / "identity.jsonl")
    assert said in str(error.value)
    assert "mine.toml" in str(error.value)
    assert not (tmp_path / "identity.jsonl").exists()


def test_a_missing_organisation_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="give it: --organisation"):
        curate.identity("Heron", target=tmp_path / "identity.jsonl")
    with pytest.raises(InputError, match="cannot read template"):
        curate.identity(**NAMES, template=tmp_path / "none.toml")
    with pytest.raises(InputError, match="curate identity --name Heron"):
        identity.read(str(tmp_path / "none.jsonl"))


def test_a_record_that_cannot_be_read_refuses_the_file(tmp_path: Path) -> None:
    path = questions(tmp_path / "identity.jsonl")
    path.write_text(path.read_text("utf-8") + '{"messages": 3}\n', "utf-8")
    with pytest.raises(InputError, match="has records that cannot be trained on"):
        identity.read(str(path))


def test_they_are_trained_and_never_held_out(tmp_path: Path) -> None:
    data = taught_set(tmp_path, 6, held_out=2)
    path = questions(tmp_path / "identity.jsonl", 3)
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer"))
    alone, both = (
        examples.load(data, tokenizer),
        examples.load(data, tokenizer, extra=identity.read(str(path)), limit=4),
    )
    assert both.train.names == [*alone.train.names, "identity-0", "identity-1", "identity-2"]
    assert not any(name.startswith("identity") for name in both.eval.names)
    assert both.facts["identity_conversations"] == 3
    assert both.facts["sources"] == 4  # of the set


def test_a_plan_by_token_counts_has_them_too(tmp_path: Path) -> None:
    data = taught_set(tmp_path, 6)
    extra = identity.read(str(questions(tmp_path / "identity.jsonl", 3)))
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer"))
    folder, manifest = examples.open_set_folder(data)
    found = estimate.estimate(folder, manifest, tokenizer, examples.SET_SETTINGS, None, extra)
    rendered = examples.load(data, tokenizer, extra=extra)
    assert found is not None
    assert sorted(found.lengths.train[-3:]) == sorted(rendered.train.lengths[-3:])
    assert found.facts["identity_conversations"] == 3


def test_a_run_names_them_and_is_not_resumed_with_others(tmp_path: Path) -> None:
    data = taught_set(tmp_path, 6)
    path = questions(tmp_path / "identity.jsonl", 3)

    def ask(event: events.Event) -> None:
        if isinstance(event, events.Stepped) and event.step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    out = tmp_path / "run"
    run(data, out, identity=str(path), max_steps=2, on_event=ask)
    facts = records.read(out).facts["data"]
    assert (facts["identity"], facts["identity_conversations"], facts["conversations"]) == (str(path), 3, 9)
    assert "conversations on the model" in (out / records.REPORT).read_text("utf-8")
    written_before = path.read_text("utf-8")
    questions(path, 4)
    with pytest.raises(CheckpointError, match="SHA-256 of that file was"):
        finetune(resume=out, device="cpu")
    path.write_text(written_before, "utf-8")
    assert finetune(resume=out, device="cpu").status == "finished"


def test_pairs_have_no_place_for_them(tmp_path: Path) -> None:
    data = paired_set(tmp_path)
    with pytest.raises(CurateError, match="--identity is for --objective sft"):
        run(data, tmp_path / "run", objective="dpo", identity=str(questions(tmp_path / "identity.jsonl")))
