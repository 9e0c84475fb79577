"""`--columns`: keys of any record, and columns of any table, take the place of the formats' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner

import curate
from curate.cli import cli
from curate.errors import InputError, RecipeError, RecordError
from curate.pipeline import recipe as recipes
from curate.schemas import formats
from curate.schemas.reading.columns import parse_columns
from curate.schemas.reading.options import ReadOptions

RECORD = {"q": "Name a lake in Peru.", "a": "Titicaca lies in part there.", "n": 7, "src": "x"}


def parse(record: dict[str, Any], *columns: str) -> Any:
    return formats.parse(record, ReadOptions(columns=parse_columns(columns)))


def contents(conversation: Any) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.messages]


def test_a_record_is_read_by_the_keys_that_are_named_and_keeps_the_others() -> None:
    conversation = parse(RECORD, "prompt=q,answer=a,id=n")
    assert contents(conversation) == [("user", RECORD["q"]), ("assistant", RECORD["a"])]
    assert conversation.source_id == "7" and conversation.metadata == {"src": "x"}


def test_named_keys_win_over_keys_that_a_format_would_read() -> None:
    record = RECORD | {"instruction": "no", "output": "no", "messages": [{"role": "user", "content": "no"}]}
    conversation = parse(record, "prompt=q", "answer=a")
    assert contents(conversation) == [("user", RECORD["q"]), ("assistant", RECORD["a"])]
    assert conversation.metadata["output"] == "no" and "messages" in conversation.metadata


@pytest.mark.parametrize(
    ("record", "columns", "expected"),
    [
        ({"chat": [{"role": "user", "content": "Hi"}]}, "messages=chat", [("user", "Hi")]),
        ({"chat": '[{"from": "human", "value": "Hi"}]'}, "conversations=chat", [("user", "Hi")]),
        ({"a, b": "Hi", "c=d": "Yo"}, "prompt=a, b, answer=c=d", [("user", "Hi"), ("assistant", "Yo")]),
        ({"q": "Hi", "a": "Yo", "s": "Be."}, "prompt=q,answer=a,system=s", [("system", "Be.")]),
        ({"q": "Hi", "a": "Yo", "s": None}, "prompt=q,answer=a,system=s,model=m", [("user", "Hi")]),
        ({"Q": "Hi", "good": "Yo", "bad": "No"}, "prompt=Q,chosen=good,rejected=bad", [("user", "Hi")]),
    ],
)
def test_every_meaning_can_be_named(record: dict[str, Any], columns: str, expected: list[tuple[str, str]]) -> None:
    assert contents(parse(record, columns))[: len(expected)] == expected


def test_keys_in_capitals_are_read_and_named() -> None:
    conversation = formats.parse({"ID": 7, "Question": "Hi", "Answer": "Yo", "Model": "m"})
    assert contents(conversation) == [("user", "Hi"), ("assistant", "Yo")]
    assert conversation.source_id == "7" and conversation.model == "m"
    assert "key_case" in [edit.rule for edit in conversation.edits]
    with pytest.raises(RecordError, match="unknown_format"):
        formats.parse({"Question": "Hi", "question": "Ho", "Answer": "Yo"})


def test_a_bad_label_beside_the_named_keys_is_still_a_flaw() -> None:
    assert [flaw.rule for flaw in parse(RECORD | {"toxic": True}, "prompt=q,answer=a").flaws] == ["bad_label"]


@pytest.mark.parametrize(
    ("record", "what"), [({"q": "Hi"}, "there is no 'a'"), ({"q": "Hi", "a": None}, "'a' is null")]
)
def test_a_record_without_a_named_key_is_rejected_by_name(record: dict[str, Any], what: str) -> None:
    with pytest.raises(RecordError, match=f"{what}, which is to be the answer; the record's keys: 'q'") as caught:
        parse(record, "prompt=q,answer=a")
    assert caught.value.rule == "missing_column"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("prompt", "'prompt' names no column; write it as prompt=question,answer=reply"),
        ("prompt=", "'prompt' names no column"),
        ("promt=q,answer=a", "'promt' cannot be a column's meaning; did you mean 'prompt'"),
        ("prompt=q", "'prompt' is not enough for a chat; name prompt and answer, or messages"),
        ("prompt=q,answer=a,answer=b", "one meaning is given to two columns"),
    ],
)
def test_a_mistake_in_the_columns_is_named(columns: str, message: str) -> None:
    with pytest.raises(RecipeError, match=f"input.columns: {message}"):
        recipes.override(recipes.load("vicuna"), columns=[columns])


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl", "json"])
def test_clean_reads_any_table_by_its_columns(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    frame = pl.DataFrame([{"q": f"Name lake number {n}, please.", "a": f"It is lake {n}, I think."} for n in range(3)])
    match kind:
        case "csv":
            frame.write_csv(path)
        case "parquet":
            frame.write_parquet(path)
        case "jsonl":
            frame.write_ndjson(path)
        case _:
            path.write_text(json.dumps(frame.to_dicts()))
    result = curate.clean(path, tmp_path / "set", columns=["prompt=q,answer=a"])
    assert result.manifest.counts.kept == 3
    if kind in ("csv", "parquet"):
        message = f"input 'a.{kind}' has no column 'b' for answer; its columns: 'q', 'a'"
        with pytest.raises(InputError, match=message):
            curate.clean(path, tmp_path / "other", columns=["prompt=q,answer=b"])


def test_the_command_names_a_mistake_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,reply\nHi,Yo\n")
    arguments = [
        "clean",
        str(tmp_path / "a.csv"),
        "-o",
        str(tmp_path / "set"),
        "--columns",
        "prompt=question,answer=repl",
    ]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "error: input 'a.csv' has no column 'repl' for answer; its columns: 'question', 'reply'; did you mean 'reply'?"
    ]
