"""`curate fingerprint`: from a user's file of questions to a filter that finds them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

import curate
from curate.cli import cli
from curate.errors import CurateError
from curate.filters.fingerprints.fingerprint import read
from tests.support import ROOT

ROWS: list[dict[str, object]] = [
    {"id": "a", "question": "How many of the twelve apples are left after seven are eaten?", "choices": ["5", "7"]},
    {"id": "b", "question": "Which gas do plants take in?", "choices": ["carbon dioxide", "helium"]},
]
WRITERS: dict[str, Callable[[Path], object]] = {
    "json": lambda path: path.write_text(json.dumps(ROWS)),
    "jsonl": lambda path: path.write_text("\n".join(map(json.dumps, ROWS))),
    "parquet": lambda path: pl.DataFrame(ROWS).write_parquet(path),
    "csv": lambda path: pl.DataFrame([{**row, "choices": json.dumps(row["choices"])} for row in ROWS]).write_csv(path),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_of_any_kind_gives_the_same_fingerprint(tmp_path: Path, kind: str) -> None:
    WRITERS[kind](tmp_path / f"gas-test.{kind}")
    result = curate.fingerprint(tmp_path / f"gas-test.{kind}", tmp_path / "x.fingerprint")
    assert (result.benchmark, result.items, result.texts) == ("gas-test", 2, 3)
    assert result.columns == {"text": ["question"], "choices": ["choices"], "id": ["id"]}
    found = read(tmp_path / "x.fingerprint")
    assert (found.ids, found.words.tolist()) == (["a", "b", "b"], [12, 6, 11])


@pytest.mark.parametrize(
    ("row", "settings", "words"),
    [
        ({"turns": ["Name a river of Europe.", "And the longest one?"]}, {}, [5, 4]),
        ({"q": "Is it so?", "a": "It is so."}, {"text": ["q", "a"]}, [3, 3]),
        ({"q": "What is it?", "A": "a cat", "B": "no"}, {"text": "q", "choices": ["A", "B"]}, [3, 8]),
        ({"question": "What is it?", "choices": {"text": ["a cat"], "label": ["A"]}}, {}, [3, 6]),
        ({"question": "What is it?", "options": {"A": "a cat", "B": "no"}}, {}, [3, 8]),
        ({"question": "What is it?", "options": '["a cat"]'}, {}, [3, 6]),
        ({"prompt": [{"role": "user", "content": "What is it?"}]}, {}, [3]),
        ({"question": "What is the whole of it then?", "choices": ["a", "b"]}, {}, [7, 11]),
        ({"question": "What is the whole of it then, friend?", "choices": ["a", "b"]}, {}, [8]),
    ],
    ids=["turns", "two columns", "columns of choices", "labels", "letters", "JSON", "messages", "short", "long"],
)
def test_texts_and_choices_are_unpacked(
    tmp_path: Path, row: Mapping[str, object], settings: dict[str, list[str]], words: list[int]
) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    curate.fingerprint(tmp_path / "x.jsonl", tmp_path / "x.fingerprint", **settings)  # type: ignore[arg-type]
    assert read(tmp_path / "x.fingerprint").words.tolist() == words


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    rows = [*ROWS, {"id": "c", "question": "which GAS, do plants take in"}, {"question": " "}, {"question": "Why?"}, 7]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    result = curate.fingerprint(tmp_path / "x.json", tmp_path / "x.fingerprint")
    assert list(result.left_out.values()) == [1, 1, 1, 1]
    assert "texts of one or two words" in result.left_out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rows.json", "--text", "queston"], "row 0 has no column 'queston' for --text; did you mean 'question'?"),
        (["rows.json", "--id", "number"], "row 0 has no column 'number' for --id"),
        (["rows.json", "-o", "rows.json"], "-o 'rows.json' must end in .fingerprint, such as 'rows.fingerprint'"),
        (["rows.json", "-o", "no/x.fingerprint"], "there is no folder 'no'; make it first"),
        (["rows.json", "--name", "../x"], "--name '../x' is not allowed"),
        (["other.json"], "none of the columns has a usual name of a question; name it with --text: 'a', 'b'"),
        (["other.json", "--text", "a"], "has no text of at least 3 words; is it the right column?"),
        (["absent.json"], "'absent.json' does not exist"),
        (["hf:a/b/c/d"], "is no data set; write it as hf:owner/name"),
    ],
)
def test_a_mistake_is_one_clear_line_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    WRITERS["json"](tmp_path / "rows.json")
    (tmp_path / "other.json").write_text('[{"a": "x", "b": 1}]')
    done = CliRunner().invoke(cli, ["fingerprint", *arguments])
    assert done.exit_code == 1 and message in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.glob("*.fingerprint")) == []


def test_the_command_says_what_it_wrote_and_how_to_use_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    WRITERS["jsonl"](tmp_path / "gas.jsonl")
    done = CliRunner().invoke(cli, ["fingerprint", "gas.jsonl", "--json", "--with-texts"])
    assert json.loads(done.stdout)["texts"] == 3
    assert done.stderr.startswith("gas.fingerprint: 2 items, 3 texts, ")
    assert 'in a recipe: contamination = { benchmarks = ["gas.fingerprint"] }' in done.stderr
    assert len(read(tmp_path / "gas.fingerprint").texts) == 3


def test_the_example_is_made_of_its_questions(tmp_path: Path) -> None:
    curate.fingerprint(ROOT / "examples/benchmark.jsonl", tmp_path / "x.fingerprint", name="example", with_texts=True)
    built_in = ROOT / "filters/fingerprints/benchmarks/example.fingerprint"
    assert (tmp_path / "x.fingerprint").read_bytes() == built_in.read_bytes()


def test_a_damaged_input_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1" + bytes(50))
    with pytest.raises(CurateError) as error:
        curate.fingerprint(tmp_path / "x.parquet", tmp_path / "x.fingerprint")
    assert "\n" not in str(error.value)
