"""Conversations convert between formats and round-trip; those that a format cannot hold are listed."""

from __future__ import annotations

import gzip
import json
import os
import resource
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.conversion.convert import convert
from curate.conversion.output import ConvertResult
from curate.dataset import columns as dataset_columns
from curate.errors import CurateError, InputError, RecipeError
from curate.schemas import Message, formats
from tests.support.small_set import MANIFEST, kept, write_set

GOOD: list[dict[str, Any]] = [
    {"id": "a", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}], "title": "T"},
    {
        "id": "b",
        "model": "gpt-4",
        "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
    },
    {"instruction": "Sum.", "input": "1 2", "output": "3"},
]
LONG = {"id": "d", "conversations": GOOD[0]["conversations"] * 2}
SYSTEM = {"id": "s", "conversations": [{"from": "system", "value": "Be kind."}, *GOOD[0]["conversations"]]}


def dump_of(folder: Path, rows: list[Any], name: str = "dump.json") -> Path:
    file = folder / name
    file.write_text(json.dumps(rows), "utf-8")
    return file


def lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def balanced(result: ConvertResult) -> bool:
    return result.read == result.written + sum(result.left_out.values()) + result.not_selected


def test_a_mixed_file_becomes_the_array_that_fastchat_loads(tmp_path: Path) -> None:
    result = convert(dump_of(tmp_path, [*GOOD, LONG, SYSTEM]), tmp_path / "out.json", to="vicuna")
    rows = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert (result.read, result.written, dict(result.left_out), result.left_out_file) == (5, 5, {}, None)
    assert [row["id"] for row in rows[:2]] == ["a", "b"]
    assert rows[2]["id"].startswith("c-")
    assert rows[4]["conversations"][0]["value"] == "Be kind.\n\nhi"
    for row in rows:
        assert set(row) == {"id", "conversations"}
        sides = [turn["from"] for turn in row["conversations"]]
        assert sides == ["human", "gpt"] * (len(sides) // 2)


def test_conversations_that_a_format_cannot_hold_are_listed_with_a_reason(tmp_path: Path) -> None:
    result = convert(dump_of(tmp_path, [*GOOD, LONG, None, {"q": 1}]), tmp_path / "out.jsonl", to="alpaca")
    assert (result.read, result.written) == (6, 3)
    assert result.left_out == {"not_representable": 1, "not_a_record": 1, "unknown_format": 1}
    assert lines(tmp_path / "out.jsonl")[2] == {"instruction": "Sum.", "input": "1 2", "output": "3"}
    beside = lines(tmp_path / "out.jsonl.left-out.jsonl")
    assert result.left_out_file == tmp_path / "out.jsonl.left-out.jsonl"
    assert [(row["source_index"], row["rule"]) for row in beside] == [
        (3, "not_representable"), (4, "not_a_record"), (5, "unknown_format"),
    ]  # fmt: skip
    assert [message["content"] for message in beside[0]["record"]["messages"]] == ["hi", "hello"] * 2
    assert beside[2]["record"] == '{"q": 1}'


def test_left_out_conversations_can_be_converted_to_another_format(tmp_path: Path) -> None:
    convert(dump_of(tmp_path, [LONG]), tmp_path / "out.json", to="alpaca")
    rows = [row["record"] for row in lines(tmp_path / "out.json.left-out.jsonl")]
    convert(dump_of(tmp_path, rows, "again.json"), tmp_path / "again.jsonl", to="sharegpt")
    assert lines(tmp_path / "again.jsonl") == [LONG]


def test_a_run_that_leaves_nothing_out_removes_the_earlier_list(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    convert(dump_of(tmp_path, [LONG, GOOD[0]]), target, to="alpaca")
    convert(dump_of(tmp_path, [GOOD[0]]), target, to="alpaca")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dump.json", "out.json"]


@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("sharegpt", "out.json"),
        ("sharegpt", "out.jsonl"),
        ("openai", "out.jsonl"),
        ("openai", "out.json"),
        ("jsonl", "out.jsonl"),
        ("parquet", "out.parquet"),
        ("sharegpt", "out.json.gz"),
        ("jsonl", "out.jsonl.zst"),
    ],
)
def test_formats_round_trip(tmp_path: Path, to: str, name: str) -> None:
    source = dump_of(tmp_path, [*GOOD, LONG, SYSTEM])
    convert(source, tmp_path / "first.jsonl", to="sharegpt")
    assert convert(source, tmp_path / name, to=to).written == 5
    assert convert(tmp_path / name, tmp_path / "back.jsonl", to="sharegpt").written == 5
    assert lines(tmp_path / "back.jsonl") == lines(tmp_path / "first.jsonl")


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    source = dump_of(tmp_path, [*GOOD, LONG])
    for to, name in (("jsonl", "x.jsonl.gz"), ("parquet", "x.parquet")):
        convert(source, tmp_path / name, to=to)
        first = (tmp_path / name).read_bytes()
        convert(source, tmp_path / name, to=to)
        assert (tmp_path / name).read_bytes() == first


@pytest.mark.parametrize(("name", "unpack"), [("x.jsonl.gz", gzip.decompress), ("x.jsonl.zst", None)])
def test_compressed_targets_hold_the_same_lines(tmp_path: Path, name: str, unpack: Any) -> None:
    source = dump_of(tmp_path, GOOD)
    convert(source, tmp_path / name, to="openai")
    convert(source, tmp_path / "plain.jsonl", to="openai")
    packed = (tmp_path / name).read_bytes()
    data = unpack(packed) if unpack else zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    assert data == (tmp_path / "plain.jsonl").read_bytes()


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAMES = st.none() | TEXT.filter(bool)
MESSAGES = st.lists(
    st.builds(Message, st.sampled_from(["system", "user", "tool"]), TEXT, NAMES)
    | st.builds(Message, st.just("assistant"), TEXT, NAMES, st.sampled_from([None, "[]", '[{"id": 1}]'])),
    min_size=1,
    max_size=4,
)
FLAGGED = st.lists(st.builds(Message, st.just("assistant"), TEXT, train=st.booleans(), stop=st.booleans()), max_size=2)
SETS = st.lists(st.tuples(MESSAGES, FLAGGED, st.dictionaries(TEXT, TEXT | st.integers(-5, 5), max_size=2)), max_size=4)


def row_of(index: int, messages: list[Message], metadata: dict[str, object]) -> dict[str, Any]:
    plain = [{name: getattr(message, name) for name in dataset_columns.MESSAGE.to_schema()} for message in messages]
    text = json.dumps(metadata) if metadata else None
    return kept(index, f"c_{index}", source_id="c", piece=index, messages=plain, metadata=text, model="m")


@settings(max_examples=25, deadline=None)
@given(SETS.filter(bool))
def test_a_set_round_trips_through_native_lines_and_parquet(rows: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kept_rows = [row_of(index, [*first, *second], metadata) for index, (first, second, metadata) in enumerate(rows)]
        write_set(folder / "set", kept=kept_rows, lost=[])
        convert(folder / "set", folder / "one.parquet", to="parquet")
        convert(folder / "one.parquet", folder / "two.jsonl", to="jsonl")
        convert(folder / "two.jsonl", folder / "three.parquet", to="parquet")
        direct, through_lines = (pl.read_parquet(folder / file) for file in ("one.parquet", "three.parquet"))
        assert direct.equals(through_lines)
        columns = ["id", "source_id", "piece", "messages", "model", "split"]
        assert (
            through_lines.select(columns).rows()
            == pl.DataFrame(kept_rows, schema=dataset_columns.conversations_schema({})).select(columns).rows()
        )
        assert [json.loads(text or "{}") for text in through_lines["metadata"]] == [metadata for _, _, metadata in rows]


def test_a_set_is_read_in_its_order_piece_by_piece(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "curated")
    result = convert(folder, tmp_path / "out.json", to="vicuna")
    rows = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert [row["id"] for row in rows] == ["abc_0", "abc_1", "deadbeef", "twice"]
    assert balanced(result)


def test_one_split_of_a_set_can_be_converted(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "curated")
    result = convert(folder, tmp_path / "out.jsonl", to="jsonl", split="eval")
    rows = lines(tmp_path / "out.jsonl")
    assert [(row["id"], row["source_id"], row["piece"], row["split"]) for row in rows] == [("abc_1", "abc", 1, "eval")]
    assert (result.read, result.written, result.not_selected) == (4, 1, 3)
    again = convert(tmp_path / "out.jsonl", tmp_path / "again.jsonl", to="openai", split="eval")
    assert again.written == 1


def test_a_split_of_an_input_without_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only a curated set"):
        convert(dump_of(tmp_path, GOOD), tmp_path / "out.json", to="vicuna", split="train")
    assert [path.name for path in tmp_path.iterdir()] == ["dump.json"]


def test_text_shows_each_conversation_as_its_prompt(tmp_path: Path) -> None:
    convert(dump_of(tmp_path, GOOD[:1]), tmp_path / "out.txt", to="text")
    assert (tmp_path / "out.txt").read_text("utf-8") == (
        "===== a =====\n<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions. USER: hi ASSISTANT: hello</s>\n\n"
    )
    convert(dump_of(tmp_path, GOOD[:1]), tmp_path / "out.txt", to="text", template="chatml")
    assert "<|im_start|>user\nhi<|im_end|>" in (tmp_path / "out.txt").read_text("utf-8")


def test_text_of_a_set_uses_its_template(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "curated", facts={**MANIFEST, "template": "chatml"})
    convert(folder, tmp_path / "out.txt", to="text")
    assert "<|im_start|>assistant\nhello" in (tmp_path / "out.txt").read_text("utf-8")


def test_repairs_while_reading_are_counted(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "conversations": [{"from": "human", "value": ["a", "b \udc80\r\n"]}, {"from": "gpt", "value": "hey"}]}
    ]
    result = convert(dump_of(tmp_path, rows), tmp_path / "out.jsonl", to="sharegpt")
    assert result.edits == {"id_to_text": 1, "lone_surrogate": 1, "parts_joined": 1}
    assert [turn["value"] for turn in lines(tmp_path / "out.jsonl")[0]["conversations"]] == ["a\nb \ufffd\r\n", "hey"]


def test_a_truncated_file_gives_its_complete_records_with_a_warning(tmp_path: Path) -> None:
    source = dump_of(tmp_path, [*GOOD, LONG])
    source.write_bytes(source.read_bytes()[:-40])
    result = convert(source, tmp_path / "out.jsonl", to="openai")
    assert result.written == 3
    assert result.warnings and "dump.json" in result.warnings[0]
    assert result.left_out == {"unreadable": 1}


def test_integers_over_64_bits_do_not_end_the_run(tmp_path: Path) -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}, "n": 2**80}]
    turn = {"role": "assistant", "content": "", "tool_calls": calls}
    rows = [{"messages": [{"role": "user", "content": "hi"}, turn], "x": 2**80}]
    convert(dump_of(tmp_path, rows), tmp_path / "out.jsonl", to="openai")
    assert lines(tmp_path / "out.jsonl")[0]["messages"][1]["tool_calls"][0]["n"] == str(2**80)


@pytest.mark.parametrize(
    ("to", "target", "message"),
    [
        pytest.param("vicuna", ".", "is a folder", id="folder"),
        pytest.param("vicuna", "dump.json", "would overwrite the source", id="source"),
        pytest.param("vicuna", "no/out.json", "no folder", id="no-folder"),
        pytest.param("parquet", "out.parquet.gz", "a target that ends in .parquet", id="compressed-parquet"),
        pytest.param("vicunna", "out.json", "did you mean 'vicuna'", id="unknown-format"),
    ],
)
def test_an_invalid_target_is_refused_in_one_line(tmp_path: Path, to: str, target: str, message: str) -> None:
    source = dump_of(tmp_path, GOOD)
    before = source.read_bytes()
    with pytest.raises(CurateError, match=message) as caught:
        convert(source, tmp_path / target, to=to)
    assert "\n" not in str(caught.value)
    assert source.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["dump.json"]


def test_the_input_is_never_overwritten(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "curated")
    for target in (folder / "conversations.parquet", folder / "new.parquet"):
        with pytest.raises(CurateError, match=r"would overwrite the source|part of a curated set"):
            convert(folder, target, to="parquet")
    source = dump_of(tmp_path, GOOD)
    with pytest.raises(CurateError, match="part of a curated set"):
        convert(source, folder / "conversations.parquet", to="parquet")
    left_out = dump_of(tmp_path, GOOD, "x.json.left-out.jsonl")
    with pytest.raises(CurateError, match="would overwrite the source"):
        convert(left_out, tmp_path / "x.json", to="vicuna")
    (tmp_path / "link.json").symlink_to(source)
    with pytest.raises(CurateError, match="would overwrite the source"):
        convert(source, tmp_path / "link.json", to="vicuna")


def test_a_target_that_is_a_link_is_kept_and_its_target_written(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    for name, before in (("old.jsonl", "old"), ("new.jsonl", None)):
        real, link = tmp_path / "disk" / name, tmp_path / name
        if before:
            real.write_text(before)
        link.symlink_to(real)
        convert(dump_of(tmp_path, GOOD[:1]), link, to="openai")
        assert link.is_symlink() and json.loads(real.read_text("utf-8"))["messages"]
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["new.jsonl", "old.jsonl"]


@pytest.mark.parametrize("to", sorted(formats.FORMATS))
def test_a_failure_leaves_the_target_unchanged(tmp_path: Path, to: str) -> None:
    target = tmp_path / "out.parquet"
    target.write_text("mine", "utf-8")
    source = tmp_path / "broken.json"
    source.write_bytes(b"%PDF-1.4 not JSON")
    with pytest.raises(CurateError):
        convert(source, target, to=to)
    assert target.read_text("utf-8") == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.json", "out.parquet"]


@pytest.mark.parametrize("content", [b"", b"PAR1 but not", b"\x00" * 100])
def test_a_broken_parquet_file_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "x.parquet"
    source.write_bytes(content)
    with pytest.raises(InputError) as caught:
        convert(source, tmp_path / "out.jsonl", to="openai")
    assert "\n" not in str(caught.value)


def test_a_foreign_parquet_file_is_read_by_its_columns(tmp_path: Path) -> None:
    turns = [[{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]] * 3
    pl.DataFrame({"id": [1, 2, 3], "conversations": turns}).write_parquet(tmp_path / "x.parquet")
    result = convert(tmp_path / "x.parquet", tmp_path / "out.jsonl", to="openai")
    assert (result.written, result.edits) == (3, {"id_to_text": 3})


def test_a_template_is_only_for_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="they are for 'text'"):
        convert(dump_of(tmp_path, GOOD), tmp_path / "out.json", to="vicuna", template="chatml")
    with pytest.raises(RecipeError, match="did you mean 'chatml'"):
        convert(dump_of(tmp_path, GOOD), tmp_path / "out.txt", to="text", template="chatnl")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser writes anywhere")
def test_an_unwritable_folder_gets_one_clear_line(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(CurateError, match="cannot write"):
        convert(dump_of(tmp_path, GOOD), folder / "out.json", to="vicuna")


@pytest.mark.parametrize(("to", "name"), [("jsonl", "out.jsonl"), ("parquet", "out.parquet"), ("text", "out.txt.gz")])
def test_a_full_disk_gets_one_clear_line(tmp_path: Path, to: str, name: str) -> None:
    source = dump_of(tmp_path, [{"id": "a", "messages": [{"role": "user", "content": os.urandom(9999).hex()}]}])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(CurateError, match="cannot write") as caught:
            convert(source, tmp_path / name, to=to)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["dump.json"]


@pytest.mark.slow
def test_the_whole_shared_dump_converts(shared: Path, tmp_path: Path) -> None:
    result = convert(shared / "data" / "sharegpt_dirty.json.gz", tmp_path / "out.parquet", to="parquet")
    assert (result.read, balanced(result)) == (7945, True)
    assert result.left_out == {"no_messages": 21, "bad_turn": 6, "not_a_record": 6}
    back = convert(tmp_path / "out.parquet", tmp_path / "out.jsonl", to="openai")
    assert back.written == result.written == pl.scan_parquet(tmp_path / "out.parquet").select(pl.len()).collect().item()
