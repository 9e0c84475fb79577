"""A good set is not lost to a wrong input: nothing kept, other inputs, another recipe, a set in place of a dump."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import curate
from curate.cli import cli
from curate.dataset import curated_set
from curate.errors import CurateError, NothingKept, SetError
from curate.ingest.sources import open_inputs
from curate.pipeline import recipe as recipes
from curate.pipeline.recipe import RECIPES
from curate.pipeline.replacement import check_replacement

Write = Callable[..., Path]


def chats(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Return short ShareGPT records with different texts."""
    return [
        {
            "id": f"chat{n}",
            "conversations": [
                {"from": "human", "value": f"What is the square of {n}?"},
                {"from": "gpt", "value": f"The square of {n} is {n * n}, since {n} times {n} makes {n * n}."},
            ],
        }
        for n in range(start, start + count)
    ]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return a function that writes records to a file in the current folder."""
    monkeypatch.chdir(tmp_path)

    def write_file(name: str, records: object) -> Path:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(json.dumps(records), "utf-8")
        return Path(name)

    return write_file


@pytest.fixture
def good(write: Write, tiny_tokenizer: str) -> Path:
    """A set of three conversations from `a.json`, in `curated`."""
    clean(write("a.json", chats(3)), tokenizer=tiny_tokenizer)
    return Path("curated")


def clean(*inputs: Path | str, **settings: Any) -> curate.CleanResult:
    return curate.clean(inputs, workers=1, **settings)


def ids(folder: Path) -> list[str]:
    return sorted(curate.open_set(folder).conversations().collect()["id"])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- nothing kept


UNKNOWN = {"uuid": "u1", "name": "A talk", "chat_log": [{"content": "Hi", "role": "user"}]}


def test_a_run_that_keeps_nothing_ends_with_the_reasons_and_replaces_nothing(
    good: Path, write: Write, tiny_tokenizer: str
) -> None:
    before = contents(good)
    records = [UNKNOWN] * 4 + [None] * 3 + [{"conversations": []}] * 2 + [{"conversations": [None]}]
    with pytest.raises(NothingKept) as caught:
        clean(write("a.json", records), tokenizer=tiny_tokenizer)
    assert contents(good) == before
    assert [path.name for path in Path().iterdir() if path.name.startswith(".")] == []
    message = str(caught.value)
    assert message.startswith(
        "none of 10 records was kept; nothing was written or replaced: unknown_format 4 (a.json:0: "
    )
    assert "'uuid', 'name', 'chat_log'" in message
    assert "A talk" in message, "the evidence is quoted"
    assert "not_a_record 3 (a.json:4: " in message
    assert "no_messages 2 (a.json:7: " in message
    assert message.endswith("and 1 more") and "bad_turn" not in message
    assert "the nearest format is openai: 'messages' is missing (the record has 'chat_log': rename it" in message


def test_a_run_that_keeps_nothing_writes_no_set_and_no_file(write: Write, tiny_tokenizer: str) -> None:
    write("a.json", [None])
    result = CliRunner().invoke(cli, ["clean", "a.json", "-o", "new.jsonl", "--force", "--tokenizer", tiny_tokenizer])
    assert result.exit_code == 1
    assert "error: none of 1 record was kept" in result.output and "nearest" not in result.output
    assert [path.name for path in Path().iterdir()] == ["a.json"]


def test_records_that_filters_and_the_splitter_reject_are_explained(write: Write, tiny_tokenizer: str) -> None:
    dump = write("a.json", chats(3))
    with pytest.raises(NothingKept, match=r"none of 3 records was kept.*: too_long 3 \(a.json:0: "):
        clean(dump, tokenizer=tiny_tokenizer, max_tokens=4)
    with pytest.raises(NothingKept, match=r"languages 3 \(a.json:0: "):
        clean(dump, tokenizer=tiny_tokenizer, language=["ko"])


def test_files_that_were_not_read_are_named_if_nothing_is_kept(write: Write, tiny_tokenizer: str) -> None:
    write("dumps/a.json", [{"NaN": float("nan")}])
    Path("dumps/chats.csv").write_text("prompt,answer\n")
    with pytest.raises(NothingKept, match=r"unknown_format 1 .*chats\.csv"):
        clean("dumps", tokenizer=tiny_tokenizer)


# ---- other inputs, another recipe


def test_other_inputs_do_not_replace_a_set_unless_forced(good: Path, write: Write, tiny_tokenizer: str) -> None:
    (good / "notes.txt").write_text("mine")
    before = contents(good)
    other = write("b.json", chats(2, start=10))
    with pytest.raises(SetError) as caught:
        clean(other, tokenizer=tiny_tokenizer)
    assert contents(good) == before
    for part in (
        "'curated', 3 conversations from a.json with the recipe vicuna, made on 20",
        "this run reads b.json, not a.json",
        "--force",
        "your own files in it stay: notes.txt",
    ):
        assert part in str(caught.value)
    clean(other, tokenizer=tiny_tokenizer, force=True)
    assert ids(good) == ["chat10", "chat11"]
    assert (good / "notes.txt").read_text() == "mine"


def grown(write: Write) -> list[str]:
    write("a.json", chats(4))
    return ["a.json"]


def renamed(write: Write) -> list[str]:
    Path("a.json").rename("b.json")
    return ["b.json"]


def moved(write: Write) -> list[str]:
    Path("x").mkdir()
    Path("a.json").rename("x/a.json")
    return ["x"]


def more_files(write: Write) -> list[str]:
    write("b.json", chats(2, start=10))
    return ["b.json", "a.json"]


def absolute(write: Write) -> list[str]:
    return [str(Path("a.json").absolute())]


@pytest.mark.parametrize("change", [grown, renamed, moved, more_files, absolute])
def test_the_same_inputs_replace_a_set(
    change: Callable[[Write], list[str]], good: Path, write: Write, tiny_tokenizer: str
) -> None:
    clean(*change(write), tokenizer=tiny_tokenizer)
    assert set(ids(good)) >= {"chat0", "chat1", "chat2"}


def test_a_file_of_the_same_name_in_another_folder_is_another_input(
    good: Path, write: Write, tiny_tokenizer: str
) -> None:
    with pytest.raises(SetError, match=r"this run reads a\.json, not a\.json"):
        clean(write("x/a.json", chats(3, start=10)), tokenizer=tiny_tokenizer)


def test_a_set_of_two_files_is_not_replaced_by_one_of_them(write: Write, tiny_tokenizer: str) -> None:
    write("dumps/a.json", chats(2))
    write("dumps/b.json", chats(2, start=10))
    clean("dumps", tokenizer=tiny_tokenizer)
    with pytest.raises(SetError, match=r"reads a\.json, not b\.json"):
        clean("dumps/a.json", tokenizer=tiny_tokenizer)


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({"recipe": "strict"}, "recipe strict"),
        ({"language": ["en"]}, r'filters\.languages\.keep \["en"\] instead of none'),
        ({"max_tokens": 1024}, "tokens.max_tokens 1024 instead of 2048"),
        ({"limit": 2}, "input.limit 2 instead of 0"),
    ],
)
def test_another_recipe_does_not_replace_a_set_unless_forced(
    settings: dict[str, Any], change: str, good: Path, tiny_tokenizer: str
) -> None:
    before = contents(good)
    with pytest.raises(SetError, match=f"3 conversations from a.json .*would be lost: this run has .*{change}"):
        clean("a.json", tokenizer=tiny_tokenizer, **settings)
    assert contents(good) == before
    assert clean("a.json", tokenizer=tiny_tokenizer, force=True, **settings).manifest.counts.kept > 0


def test_a_run_without_a_limit_replaces_one_with_a_limit(write: Write, tiny_tokenizer: str) -> None:
    write("a.json", chats(3))
    for limit, kept in ((1, 1), (2, 2), (None, 3)):
        assert clean("a.json", tokenizer=tiny_tokenizer, limit=limit).manifest.counts.kept == kept
    with pytest.raises(SetError, match=r"input\.limit 2 instead of 0"):
        clean("a.json", tokenizer=tiny_tokenizer, limit=2)


def edit_manifest(folder: Path, **values: object) -> None:
    file = folder / curated_set.MANIFEST
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **values}), "utf-8")


@pytest.mark.parametrize("name", RECIPES.names())
def test_every_recipe_equals_itself_in_a_manifest(name: str, good: Path) -> None:
    edit_manifest(good, recipe=recipes.load(name).to_dict())
    check_replacement(good, recipes.load(name), open_inputs(["a.json"]))


def test_a_set_of_an_earlier_version_with_other_defaults_is_replaced(good: Path, tiny_tokenizer: str) -> None:
    edit_manifest(good, version="0.0.1", recipe={"name": "vicuna", "tokens": {"max_tokens": 512}})
    clean("a.json", tokenizer=tiny_tokenizer)
    edit_manifest(good, version="0.0.1")
    with pytest.raises(SetError, match="this run has recipe strict"):
        clean("a.json", tokenizer=tiny_tokenizer, recipe="strict")


def test_an_empty_set_of_an_earlier_version_is_replaced(good: Path, write: Write, tiny_tokenizer: str) -> None:
    counts = json.loads((good / curated_set.MANIFEST).read_text("utf-8"))["counts"]
    edit_manifest(good, counts={**counts, "kept": 0})
    clean(write("b.json", chats(2)), tokenizer=tiny_tokenizer)
    assert ids(good) == ["chat0", "chat1"]


def test_a_set_whose_manifest_cannot_be_read_is_replaced_only_if_forced(good: Path, tiny_tokenizer: str) -> None:
    edit_manifest(good, counts=None)
    with pytest.raises(SetError, match=r"damaged or of another version.*would be lost.*--force"):
        clean("a.json", tokenizer=tiny_tokenizer)
    clean("a.json", tokenizer=tiny_tokenizer, force=True)
    assert len(ids(good)) == 3


# ---- a set in place of a dump


def suggestions(error: CurateError) -> list[str]:
    """Return the command lines in a message."""
    return [part[part.index("curate ") :] for part in str(error).split("; ") if ": curate " in part]


@pytest.mark.parametrize("output", ["curated", "english"])
def test_a_set_in_place_of_a_dump_is_refused_with_lines_that_work(output: str, good: Path, tiny_tokenizer: str) -> None:
    before = contents(good)
    with pytest.raises(SetError, match="'curated' is a curated set, not a dump") as caught:
        clean(
            good, output=output, tokenizer=tiny_tokenizer, language=["en"], originals=False, recipe="strict", force=True
        )
    assert contents(good) == before
    again, convert = suggestions(caught.value)
    target = "curated-again" if output == "curated" else output
    assert again == (
        f"curate clean a.json -o {target} --recipe strict --language en --tokenizer {tiny_tokenizer} --no-originals"
    )
    for line in (again, convert):
        result = CliRunner().invoke(cli, shlex.split(line)[1:])
        assert result.exit_code == 0, result.output
    assert ids(Path(target)) == ids(good)
    assert Path("curated.jsonl").exists()


def test_a_set_whose_dump_is_gone_is_read_through_its_table(good: Path, tiny_tokenizer: str) -> None:
    Path("a.json").unlink()
    with pytest.raises(SetError) as caught:
        clean(good, output="copy", tokenizer=tiny_tokenizer)
    again, _ = suggestions(caught.value)
    assert again.startswith("curate clean curated/conversations.parquet -o copy --tokenizer ")
    assert CliRunner().invoke(cli, shlex.split(again)[1:]).exit_code == 0
    assert ids(Path("copy")) == ids(good)


def test_the_summary_ends_with_the_page_and_the_next_step(write: Write, tiny_tokenizer: str) -> None:
    write("a.json", chats(3))
    result = CliRunner().invoke(cli, ["clean", "a.json", "-o", "my set", "--tokenizer", tiny_tokenizer])
    *_, page, stats, finetune = result.stdout.splitlines()
    assert page.split(maxsplit=1) == ["page", "my set/report.html"] and Path("my set/report.html").exists()
    assert stats.split(maxsplit=1) == ["next", "curate stats 'my set'"]
    assert finetune.strip() == "curate finetune 'my set' --model NAME"
