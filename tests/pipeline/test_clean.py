"""`clean` from end to end: what happens to every record, and what is on disk after any failure."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import curate
from curate import files
from curate.dataset import curated_set, manifest, transaction
from curate.errors import CurateError, InputError, SetError, UnsafePathError
from tests.support import ROOT
from tests.support.small_set import write_manifest

EXAMPLE = ROOT / "examples" / "sharegpt_dump.json"
TABLES = (curated_set.CONVERSATIONS, curated_set.REJECTED, curated_set.ORIGINALS)

Record = dict[str, Any]


def record(name: str | None, *texts: str, **keys: object) -> Record:
    """Return a ShareGPT record whose turns alternate, beginning with the prompt."""
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    return {**({"id": name} if name else {}), "conversations": turns, **keys}


def chat(n: int, exchanges: int = 1) -> Record:
    pairs = [
        text for i in range(exchanges) for text in (f"Question {n}.{i}?", f"The answer to {n}.{i} is {n * i + 7}.")
    ]
    return record(f"chat{n}", *pairs)


@pytest.fixture
def dump(tmp_path: Path) -> Callable[..., Path]:
    def write(*records: object, name: str = "dump.json") -> Path:
        file = tmp_path / name
        file.write_text(json.dumps(records), "utf-8")
        return file

    return write


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> curate.CuratedSet:
    """The example dump, cleaned by the default recipe in one process."""
    folder = tmp_path_factory.mktemp("example") / "curated"
    curate.clean(EXAMPLE, folder, workers=1)
    return curate.open_set(folder)


def digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in TABLES}


def rows(folder: Path, table: str = curated_set.CONVERSATIONS) -> list[dict[str, Any]]:
    return pl.read_parquet(folder / table).to_dicts()


def without_run(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / curated_set.MANIFEST).read_text())
    return {key: value for key, value in manifest.items() if key != "run"}


def test_every_record_of_the_example_is_kept_or_rejected(example: curate.CuratedSet) -> None:
    counts = example.manifest["counts"]
    kept = example.conversations().select(pl.struct("source_file", "source_index").n_unique()).collect().item()
    rejected = example.rejected().filter(pl.col("scope") == "record").collect()
    assert counts["read"] == len(json.loads(EXAMPLE.read_text("utf-8"))) == counts["kept"] + counts["rejected"]
    assert counts["kept"] == kept
    assert counts["rejected"] == rejected.height == sum(rule["first"] for rule in counts["rules"].values())
    assert all(rule["alone"] >= rule["first"] for rule in counts["rules"].values())
    assert rejected["record"].null_count() == rejected["rule"].null_count() == rejected["reason"].null_count() == 0


def test_ids_are_unique_and_pieces_are_numbered_from_zero(example: curate.CuratedSet) -> None:
    table = example.conversations().collect()
    assert table["id"].n_unique() == table.height
    pieces = table.group_by("source_index", maintain_order=True).agg("piece")["piece"].to_list()
    assert all(numbers == list(range(len(numbers))) for numbers in pieces)
    assert any(len(numbers) > 1 for numbers in pieces)


def test_the_originals_hold_the_bytes_of_every_changed_record(example: curate.CuratedSet) -> None:
    changed = example.conversations().filter(pl.col("edit_names").list.len() > 0).select("source_index").unique()
    originals = example.originals()
    assert originals is not None
    rows_ = originals.collect()
    assert set(changed.collect()["source_index"]) <= set(rows_["source_index"])
    text = EXAMPLE.read_bytes()
    assert all(raw in text for raw in rows_["record"])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_do_not_change_a_byte(example: curate.CuratedSet, tmp_path: Path, workers: int) -> None:
    big = tmp_path / "many" / EXAMPLE.name  # several chunks, so that several workers have work
    big.parent.mkdir()
    records = json.loads(EXAMPLE.read_text("utf-8"))
    copies = [
        dict(r, id=f"{r['id']}-{n}") if isinstance(r, dict) and "id" in r else r for n in range(30) for r in records
    ]
    big.write_text(json.dumps(copies), "utf-8")
    single, several = tmp_path / "one" / "set", tmp_path / "more" / "set"  # the same name, which its page shows
    curate.clean(big, single, workers=1)
    curate.clean(big, several, workers=workers)
    assert digests(single) == digests(several)
    assert (single / curated_set.REPORT).read_bytes() == (several / curated_set.REPORT).read_bytes()
    assert without_run(single) == without_run(several)


def test_small_members_give_the_same_set_whether_they_share_a_batch_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dump = tmp_path / "many.zip"
    with zipfile.ZipFile(dump, "w") as archive:
        for n in range(12):
            members = [chat(n % 10, 2), record(None, "Why?", ""), 7, record(f"cut{n}", "So?", "Like this.", "And?", "")]
            archive.writestr(f"{n}/chats.json", json.dumps(members[: 1 + n % 4]))
    one, each = tmp_path / "one" / "set", tmp_path / "each" / "set"  # the same name, which its page shows
    curate.clean(dump, one, workers=1)
    with monkeypatch.context() as patch:
        patch.setattr("curate.ingest.decode.BATCH_BYTES", 0)
        curate.clean(dump, each, workers=1)
    assert digests(one) == digests(each)
    assert without_run(one) == without_run(each)
    rejected = pl.read_parquet(one / curated_set.REJECTED)
    places = rejected.filter(scope="record").select("source_file", "source_index").rows()
    assert len(places) == len(set(places)) > 12
    numbers = [int(file.split("/")[1]) for file, _ in places]
    assert numbers == sorted(numbers)


@pytest.mark.slow
def test_the_shell_and_python_give_the_same_set(example: curate.CuratedSet, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "curate", "clean", str(EXAMPLE), "-o", str(tmp_path / "shell")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "shell") == digests(example.path)
    assert without_run(tmp_path / "shell") == without_run(example.path)


def test_a_copy_is_rejected_once_with_its_twin(dump: Callable[..., Path], tmp_path: Path) -> None:
    first, copy = (
        record("a", "What is a fjord?", "A drowned valley."),
        record("b", "What is a fjord?", "A drowned valley."),
    )
    curate.clean(dump(first, copy), tmp_path / "set")
    (kept,), (rejected,) = rows(tmp_path / "set"), rows(tmp_path / "set", curated_set.REJECTED)
    assert (kept["id"], rejected["source_id"], rejected["rule"], rejected["twin"]) == (
        "a",
        "b",
        "exact_duplicates",
        "a",
    )
    assert json.loads(rejected["record"]) == copy


def test_of_two_conversations_with_the_same_beginning_the_longer_is_kept(
    dump: Callable[..., Path], tmp_path: Path
) -> None:
    short = record("short", "Name a prime.", "Two is one of them.")
    longer = record("long", "Name a prime.", "Two is one of them.", "Another?", "Three.")
    curate.clean(dump(short, longer), tmp_path / "set")
    assert [row["id"] for row in rows(tmp_path / "set")] == ["long"]
    assert rows(tmp_path / "set", curated_set.REJECTED)[0]["twin"] == "long"


def test_a_conversation_is_kept_when_its_longer_twin_is_rejected(dump: Callable[..., Path], tmp_path: Path) -> None:
    short = record("short", "Name a prime.", "Two is one of them.")
    longer = record("long", "Name a prime.", "Two is one of them.", "Another?", "Three.", plugins=["x"])
    curate.clean(dump(short, longer), tmp_path / "set")
    assert [row["id"] for row in rows(tmp_path / "set")] == ["short"]


def test_two_contents_with_one_id_are_two_conversations(dump: Callable[..., Path], tmp_path: Path) -> None:
    first, second = (
        record("same", "What is a tarn?", "A mountain lake."),
        record("same", "What is a firth?", "An estuary."),
    )
    curate.clean(dump(first, second), tmp_path / "set")
    ids = [row["id"] for row in rows(tmp_path / "set")]
    assert ids[0] == "same"
    assert ids[1].startswith("same~") and len(ids[1]) == len("same~") + 8


def test_a_piece_never_takes_the_id_of_another_conversation(dump: Callable[..., Path], tmp_path: Path) -> None:
    long = record("x", *[f"{side} {i} " + "word " * 40 for i in range(20) for side in ("Ask", "EventHandler")])
    result = curate.clean(
        dump(long, record("x_1", "What is a mere?", "A broad, shallow lake.")), tmp_path / "set", max_tokens=300
    )
    ids = [row["id"] for row in rows(tmp_path / "set")]
    assert len(set(ids)) == len(ids) == result.manifest["counts"]["pieces"]


def test_missing_ids_are_created(dump: Callable[..., Path], tmp_path: Path) -> None:
    curate.clean(dump(record(None, "What is a col?", "A pass between peaks.")), tmp_path / "set")
    (row,) = rows(tmp_path / "set")
    assert row["source_id"] is None
    assert row["id"].startswith("c-") and len(row["id"]) == 14


def test_a_rejected_exchange_has_its_own_row(dump: Callable[..., Path], tmp_path: Path) -> None:
    source = record("a", "First question?", "A first answer.", "Second?", "", "Third question?", "A third answer.")
    result = curate.clean(dump(source), tmp_path / "set")
    (kept,), (lost,) = rows(tmp_path / "set"), rows(tmp_path / "set", curated_set.REJECTED)
    assert [m["content"] for m in kept["messages"]] == [
        "First question?",
        "A first answer.",
        "Third question?",
        "A third answer.",
    ]
    assert (lost["scope"], lost["rule"], lost["message_range"]) == ("exchange", "empty_answer", [2, 4])
    assert json.loads(lost["record"]) == source
    assert result.manifest["counts"]["rejected_exchanges"] == 1
    assert result.manifest["counts"]["rejected"] == 0


def test_a_prompt_is_unwrapped_from_its_bubble_but_typed_html_is_kept(
    dump: Callable[..., Path], tmp_path: Path
) -> None:
    bubble = '<div data-message-author-role="user"><div class="whitespace-pre-wrap">a &lt; b?\n</div></div>'
    typed = '<div class="whitespace-pre-wrap">{text}</div>\n\nWhy does it not wrap? &amp; <b>'
    curate.clean(dump(record("a", bubble, "An answer to it.", typed, "Another answer.")), tmp_path / "set")
    (kept,) = rows(tmp_path / "set")
    assert [m["content"] for m in kept["messages"] if m["role"] == "user"] == ["a < b?\n", typed]
    assert [(edit["rule"], edit["message"], edit["before"]) for edit in kept["edits"]] == [("prompt_markup", 0, bubble)]


HTML_ITEM = "<ol><li>{}</li></ol><pre><code>x\n</code></pre>"
RESTARTED = f'<div class="markdown prose">{HTML_ITEM.format("Install it:")}{HTML_ITEM.format("Run it:")}</div>'
RESTARTED_TEXT = "1. Install it:\n\n```\nx\n```\n\n1. Run it:\n\n```\nx\n```"
JOINED = {
    "html, then text": (RESTARTED, "And that is all."),
    "text, then html": ("Let me see.", RESTARTED),
    "html twice": (RESTARTED, f"{RESTARTED[:-6]}<p>Again.</p></div>"),
}


@pytest.mark.parametrize("answers", JOINED.values(), ids=JOINED)
def test_an_answer_that_was_html_is_still_marked_after_a_join(
    answers: tuple[str, str], dump: Callable[..., Path], tmp_path: Path
) -> None:
    joined = record("joined", "How do I start?", answers[0])
    joined["conversations"].append({"from": "gpt", "value": answers[1]})
    curate.clean(dump(joined, record("text", "How do I start?", RESTARTED_TEXT)), tmp_path / "set")
    assert [row["id"] for row in rows(tmp_path / "set")] == ["joined"]
    assert [(row["source_id"], row["rule"]) for row in rows(tmp_path / "set", curated_set.REJECTED)] == [
        ("text", "list_indices")
    ]


@pytest.mark.parametrize("name", ["set", "set.jsonl", "set.parquet"])
def test_lists_in_a_curated_set_are_not_treated_as_damaged(
    name: str, dump: Callable[..., Path], tmp_path: Path
) -> None:
    curate.clean(dump(record("html", "How do I start?", RESTARTED)), tmp_path / name)
    for before, after in ((name, "again"), ("again", "once-more")):
        source = tmp_path / before
        curate.clean(source / curated_set.CONVERSATIONS if source.is_dir() else source, tmp_path / after)
        assert [row["messages"][1]["content"] for row in rows(tmp_path / after)] == [RESTARTED_TEXT]


def test_a_dump_in_our_own_lines_is_searched_for_damaged_lists(dump: Callable[..., Path], tmp_path: Path) -> None:
    curate.convert(dump(record("text", "How do I start?", RESTARTED_TEXT)), tmp_path / "dump.jsonl", to="jsonl")
    with pytest.raises(InputError, match=r"list_indices 1 \("):
        curate.clean(tmp_path / "dump.jsonl", tmp_path / "set")


# Text that cleaners damage if they treat every text as HTML, or as ASCII.
EASILY_DAMAGED = {
    "a header": "#include <stdio.h>\n#include <map>",
    "comparisons": "a<b && c>d || e<=f",
    "a template": "std::vector<int> v; Map<String, List<T>> m;",
    "emphasis that is none": "my_snake_case * 2 ** __init__ _x_",
    "indentation": "def f(x):\n    if x:\n\t\treturn  x\n",
    "a fraction": "1 / 2 of the class",
    "entities": "&lt;b&gt; &amp;amp; &nbsp;",
    "markup": "<div class='a'><span>text</span></div><script>x</script>",
    "letters past ASCII": "naïve café, 你好，世界。 안녕 🙂 и так далее",
    "control strings": "</s> <s> <|eot_id|> [INST]",
    "odd white space": "a\u00a0b\u3000c\u200bd\u2028e  ",
}


@pytest.mark.parametrize("recipe", ["vicuna", "fastchat"])
def test_fragile_text_is_unchanged_in_prompts_and_plain_answers(
    recipe: str, dump: Callable[..., Path], tmp_path: Path
) -> None:
    chats = {name: (text, text, text, f"Said: {text}") for name, text in EASILY_DAMAGED.items()}
    source = dump(*(record(name, *texts) for name, texts in chats.items()))
    curate.clean(source, tmp_path / "set", recipe=recipe, workers=1)
    kept = {row["id"]: row for row in rows(tmp_path / "set")}
    assert {name: tuple(m["content"] for m in row["messages"]) for name, row in kept.items()} == chats
    assert [row["edits"] for row in kept.values()] == [[]] * len(chats)


def test_a_copy_with_an_answer_before_its_first_prompt_is_a_copy(dump: Callable[..., Path], tmp_path: Path) -> None:
    shifted = chat(1)
    shifted["conversations"].insert(0, {"from": "gpt", "value": "…continued from an earlier conversation."})
    curate.clean(dump(chat(1), {**shifted, "id": "other"}), tmp_path / "set")
    assert [row["id"] for row in rows(tmp_path / "set")] == ["chat1"]
    assert [row["twin"] for row in rows(tmp_path / "set", curated_set.REJECTED)] == ["chat1"]


def test_train_and_eval_do_not_depend_on_the_order_of_the_input(dump: Callable[..., Path], tmp_path: Path) -> None:
    chats = [chat(n, 1 + n % 3) for n in range(400)]
    curate.clean(dump(*chats), tmp_path / "one", eval_fraction=0.2)
    random.Random(3).shuffle(chats)
    curate.clean(dump(*chats), tmp_path / "two", eval_fraction=0.2)
    splits, reversed_splits = ({row["id"]: row["split"] for row in rows(tmp_path / name)} for name in ("one", "two"))
    assert splits == reversed_splits
    assert 40 < sum(split == "eval" for split in splits.values()) < 120


def test_pieces_of_a_conversation_are_in_one_split(dump: Callable[..., Path], tmp_path: Path) -> None:
    curate.clean(dump(*(chat(n, 12) for n in range(220))), tmp_path / "set", max_tokens=150, eval_fraction=0.3)
    sides = (
        pl.read_parquet(tmp_path / "set" / curated_set.CONVERSATIONS)
        .group_by("source_index")
        .agg(pl.col("split").n_unique())
    )
    assert sides["split"].unique().to_list() == [1]


def test_a_small_set_holds_out_nothing(dump: Callable[..., Path], tmp_path: Path) -> None:
    curate.clean(dump(*(chat(n) for n in range(199))), tmp_path / "set", eval_fraction=0.5)
    assert {row["split"] for row in rows(tmp_path / "set")} == {"train"}


def test_each_malformed_kind_loses_at_most_one_record(shared: Path, tmp_path: Path, tiny_tokenizer: str) -> None:
    for file in sorted((shared / "data" / "malformed").glob("*.json")):
        result = curate.clean(file, tmp_path / file.stem, max_tokens=1_000_000, workers=1, tokenizer=tiny_tokenizer)
        counts = result.manifest["counts"]
        assert counts["read"] == 13, file.stem
        assert counts["kept"] >= 12, (file.stem, counts["rules"])
        assert counts["kept"] + counts["rejected"] == 13, file.stem


def test_a_users_own_filter_works_and_is_named(dump: Callable[..., Path], tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "import polars as pl\nfrom curate.filters import rule\n\n\n@rule\ndef no_lakes() -> pl.Expr:\n"
        '    """Drop conversations about lakes."""\n'
        '    return pl.col("answers").list.join(" ").str.contains("lake")\n'
    )
    source = dump(
        record("a", "What is a tarn?", "A mountain lake."),
        record("b", "What is a firth?", "An estuary, as in Scotland."),
    )
    curate.clean(source, tmp_path / "set", filters=[own])
    assert [row["id"] for row in rows(tmp_path / "set")] == ["b"]
    assert rows(tmp_path / "set", curated_set.REJECTED)[0]["rule"] == "no_lakes"


def test_a_folder_that_is_not_a_set_is_refused(dump: Callable[..., Path], tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(SetError, match="not a curated set"):
        curate.clean(dump(chat(1)), mine)
    assert [file.name for file in mine.iterdir()] == ["thesis.txt"]


def test_a_users_files_in_a_set_survive_the_next_run(dump: Callable[..., Path], tmp_path: Path) -> None:
    curate.clean(dump(chat(1)), tmp_path / "set")
    (tmp_path / "set" / "notes.md").write_text("mine")
    curate.clean(dump(chat(2)), tmp_path / "set")
    assert (tmp_path / "set" / "notes.md").read_text() == "mine"
    assert [row["id"] for row in rows(tmp_path / "set")] == ["chat2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dump.json", "set"]


def test_nothing_is_written_when_no_record_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "page.json").write_text("<html>not a dump</html>")
    with pytest.raises(InputError):
        curate.clean(tmp_path / "page.json", tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["page.json"]


def test_a_second_run_on_one_target_is_refused(dump: Callable[..., Path], tmp_path: Path) -> None:
    source = dump(chat(1))
    with transaction.writing(tmp_path / "set") as partial:
        with pytest.raises(SetError, match="another run"):
            curate.clean(source, tmp_path / "set")
        write_manifest(partial, {})
    assert manifest.is_set(tmp_path / "set")


def test_an_interrupted_swap_is_completed(dump: Callable[..., Path], tmp_path: Path) -> None:
    curate.clean(dump(chat(1)), tmp_path / "set")
    (tmp_path / "set" / files.SET_ASIDE).touch()
    (tmp_path / "set").rename(tmp_path / "set.previous")  # as a kill between the two renames leaves it
    with pytest.raises(InputError):
        curate.clean(tmp_path / "absent.json", tmp_path / "set")
    curate.clean(dump(chat(2)), tmp_path / "set")
    assert [row["id"] for row in rows(tmp_path / "set")] == ["chat2"]
    assert not (tmp_path / "set.previous").exists()
    assert sorted(file.name for file in (tmp_path / "set").iterdir()) == sorted(curated_set.FILES)


def test_without_an_atomic_exchange_two_renames_swap_and_keep_a_users_files(
    dump: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction, "_exchange", lambda first, second: False)  # as on network file systems
    curate.clean(dump(chat(1)), tmp_path / "set")
    (tmp_path / "set" / "notes.md").write_text("mine")
    curate.clean(dump(chat(2)), tmp_path / "set")
    assert [row["id"] for row in rows(tmp_path / "set")] == ["chat2"]
    assert sorted(file.name for file in (tmp_path / "set").iterdir()) == sorted([*curated_set.FILES, "notes.md"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dump.json", "set"]


@pytest.mark.parametrize("beside", [True, False])
def test_a_users_copy_of_a_set_is_never_used_as_the_previous_set(
    dump: Callable[..., Path], tmp_path: Path, beside: bool
) -> None:
    curate.clean(dump(chat(1)), tmp_path / "set.previous")
    if beside:
        curate.clean(dump(chat(2)), tmp_path / "set")
    curate.clean(dump(chat(3)), tmp_path / "set")
    assert [row["id"] for row in rows(tmp_path / "set.previous")] == ["chat1"]


@pytest.mark.parametrize("name", ["dump.json", "notes.jsonl", "link.json"])
def test_a_file_that_curate_did_not_write_is_never_overwritten(
    dump: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    source = dump(chat(1))
    (tmp_path / "notes.jsonl").write_text("mine")
    (tmp_path / "link.json").symlink_to("notes.jsonl")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises((SetError, UnsafePathError), match=r"nothing was written|is a link"):
        curate.clean(source, tmp_path / name)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_set_is_not_cleaned_onto_itself(dump: Callable[..., Path], tmp_path: Path) -> None:
    curate.clean(dump(chat(1)), tmp_path / "set")
    before = digests(tmp_path / "set")
    with pytest.raises(SetError, match="is an input and would be overwritten"):
        curate.clean(tmp_path / "set" / curated_set.CONVERSATIONS, tmp_path / "set")
    assert digests(tmp_path / "set") == before


def test_a_file_name_that_is_not_utf_8_is_read_and_listed_in_the_manifest(tmp_path: Path) -> None:
    source = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.json"))
    source.write_text(json.dumps([chat(1)]))
    result = curate.clean(source, tmp_path / "set")
    assert [row["source_file"] for row in rows(tmp_path / "set")] == ["caf\ufffd.json"]
    assert curate.open_set(tmp_path / "set").manifest.run == result.manifest.run


def start(
    source: Path, target: Path, *options: str, first: str = "", within: Sequence[str] = (), **keys: Any
) -> subprocess.Popen[str]:
    """Start `curate clean` with two workers; `within` is a command that runs it, such as `nsenter`."""
    program = f"{first}\nfrom curate.cli import main\nmain()"
    command = [*within, sys.executable, "-c", program, "clean", str(source), "-o", str(target), "--workers", "2"]
    return subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, **keys
    )


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_the_earlier_set_or_the_new_one(tmp_path: Path, tiny_tokenizer: str) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps([chat(n) for n in range(5)]))
    new.write_text(json.dumps([chat(n, 4) for n in range(6000)]))
    curate.clean(old, tmp_path / "set", tokenizer=tiny_tokenizer)
    before = digests(tmp_path / "set")
    began = time.monotonic()
    curate.clean(new, tmp_path / "whole", workers=2, tokenizer=tiny_tokenizer)
    lasts, after = time.monotonic() - began + 0.5, digests(tmp_path / "whole")
    moments = random.Random(11)
    for _ in range(6):
        process = start(new, tmp_path / "set", "--tokenizer", tiny_tokenizer)
        time.sleep(moments.uniform(0.2, 1.0) * lasts)
        process.kill()
        process.communicate()
        assert digests(tmp_path / "set") in (before, after)
        curate.open_set(tmp_path / "set")
    curate.clean(old, tmp_path / "set", tokenizer=tiny_tokenizer)
    assert digests(tmp_path / "set") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.json", "old.json", "set", "whole"]


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dump that takes seconds to clean."""
    source = tmp_path_factory.mktemp("big") / "big.json"
    source.write_text(json.dumps([chat(n, 30) for n in range(6000)]))
    return source


def wait_for_workers(process: subprocess.Popen[str], target: Path) -> None:
    """Wait until the run has begun to write; its workers start after that."""
    while not (target.parent / f".{target.name}.partial").exists() and process.poll() is None:
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "wait"),
    [(signal.SIGINT, 0), (signal.SIGINT, 0.1), (signal.SIGINT, 1.0), (signal.SIGTERM, 0.5), (signal.SIGHUP, 0.2)],
)
def test_signals_leave_the_earlier_set_unchanged_and_print_a_message(
    big: Path, tmp_path: Path, tiny_tokenizer: str, number: int, wait: float
) -> None:
    at_a_terminal = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)"  # also where nohup runs the tests
    process = start(big, tmp_path / "set", "--tokenizer", tiny_tokenizer, first=at_a_terminal, start_new_session=True)
    wait_for_workers(process, tmp_path / "set")
    time.sleep(wait)
    os.killpg(process.pid, number)  # to all of its group, as a terminal does
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    assert "nothing was changed" in errors
    assert list(tmp_path.iterdir()) == []


def test_a_hangup_under_nohup_is_ignored(dump: Callable[..., Path], tmp_path: Path, tiny_tokenizer: str) -> None:
    source = dump(*[chat(n) for n in range(500)])
    under_nohup = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    process = start(source, tmp_path / "set", "--tokenizer", tiny_tokenizer, first=under_nohup, start_new_session=True)
    wait_for_workers(process, tmp_path / "set")
    os.killpg(process.pid, signal.SIGHUP)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert len(rows(tmp_path / "set")) == 500


def test_a_full_disk_gives_one_clear_line(tmp_path: Path, tiny_tokenizer: str) -> None:
    source = tmp_path / "dump.json"
    source.write_text(json.dumps([chat(n, 8) for n in range(3000)]))
    # A file-size limit makes a write fail as a full disk does.
    small_files = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"
    process = start(source, tmp_path / "set", "--tokenizer", tiny_tokenizer, first=small_files)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert errors.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["dump.json"]


class Disk:
    """A file system that only a shell and its children see: it disappears with the tests even if they are killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shell = subprocess.Popen(
            ["unshare", "--mount", "sh"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def mount(self, options: str) -> str:
        """Mount or remount with these options; return the error, or an empty text."""
        assert self.shell.stdin and self.shell.stdout
        with contextlib.suppress(BrokenPipeError):
            self.shell.stdin.write(f"mount -t tmpfs -o {options} none '{self.folder}'; echo done $?\n")
            self.shell.stdin.flush()
        answer = ""
        while (line := self.shell.stdout.readline()) and not line.startswith("done "):
            answer += line
        return "" if line == "done 0\n" else answer.strip() or "no answer"

    @property
    def within(self) -> list[str]:
        """The command that runs another command inside the file system."""
        return ["nsenter", f"--mount=/proc/{self.shell.pid}/ns/mnt"]

    @property
    def outside(self) -> Path:
        """The path of the folder from outside."""
        return Path(f"/proc/{self.shell.pid}/root{self.folder}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        pytest.skip("no file system can be mounted here: util-linux is not installed")
    (tmp_path / "disk").mkdir()
    disk = Disk(tmp_path / "disk")
    try:
        if problem := disk.mount("size=1200k"):
            pytest.skip(f"no file system can be mounted here: {problem}")
        yield disk
    finally:
        disk.shell.communicate()


@pytest.mark.slow
def test_a_file_system_that_is_full_or_read_only_gives_one_clear_line(
    dump: Callable[..., Path], tmp_path: Path, disk: Disk, tiny_tokenizer: str
) -> None:
    target = disk.folder / "set"

    def run(source: Path) -> tuple[int, str]:
        process = start(source, target, "--tokenizer", tiny_tokenizer, "--force", within=disk.within)
        _, errors = process.communicate(timeout=120)
        return process.returncode, errors

    code, errors = run(dump(chat(1)))
    assert code == 0, errors
    before = digests(disk.outside / "set")
    noise = random.Random(5)
    small = dump(
        *[record(f"r{n}", "Some digits?", noise.randbytes(25_000).hex()) for n in range(60)], chat(2), name="small.json"
    )
    large = dump(*[chat(n, 16) for n in range(8000)], name="large.json")  # two chunks, one for each worker
    for source, options, problem in [
        (large, "size=1200k", "No space left"),  # for the first part
        (large, "size=6700k", "No space left"),  # for a later part
        (small, "size=4700k", "No space left"),  # for the set's tables
        (small, "ro", "Read-only file system"),
    ]:
        assert disk.mount(f"remount,{options}") == ""
        code, errors = run(source)
        last = [line for line in errors.splitlines() if not line.startswith("cleaning")]
        assert (code, len(last)) == (1, 1), errors
        assert last[0].startswith(f"error: cannot write the set '{target}': {problem}"), errors
        assert digests(disk.outside / "set") == before
        assert [path.name for path in disk.outside.iterdir()] == ["set"]
    assert list(disk.folder.iterdir()) == [], "no file of these runs is outside that file system"


def test_a_target_that_cannot_be_created_gives_one_clear_line(dump: Callable[..., Path]) -> None:
    with pytest.raises(CurateError, match="cannot write"):
        curate.clean(dump(chat(1)), "/proc/curate-cannot-write-here/set")


def test_a_batch_without_conversations_is_rejected_record_by_record(dump: Callable[..., Path], tmp_path: Path) -> None:
    result = curate.clean([dump({"a": 1}, None), dump(chat(1), name="good.json")], tmp_path / "set")
    assert (result.manifest["counts"]["read"], result.manifest["counts"]["kept"]) == (3, 1)
    assert [row["rule"] for row in rows(tmp_path / "set", curated_set.REJECTED)] == ["unknown_format", "not_a_record"]


def test_the_table_of_a_set_is_read_as_input_but_a_set_is_skipped_in_a_folder_of_dumps(
    dump: Callable[..., Path], tmp_path: Path
) -> None:
    dump(chat(1), chat(2))
    curate.clean(tmp_path, tmp_path / "set")
    again = curate.clean(tmp_path, tmp_path / "set")
    assert again.manifest["counts"]["read"] == 2
    copied = curate.clean(tmp_path / "set" / curated_set.CONVERSATIONS, tmp_path / "other")
    assert copied.manifest["counts"]["kept"] == 2
    assert [row["id"] for row in rows(tmp_path / "other")] == ["chat1", "chat2"]
