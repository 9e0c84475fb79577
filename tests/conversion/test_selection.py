"""`curate convert` selects conversations: the same ones from a set, from its lines and from its Parquet file."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.conversion.convert import convert
from curate.dataset import columns
from curate.dataset.query import ROW, Query
from curate.errors import CurateError, InputError
from tests.support.small_set import KEPT, kept, write_set

CALL = json.dumps([{"id": "1", "type": "function", "function": {"name": "Sum", "arguments": "{}"}}])
CHAT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]


def dump_of(folder: Path, rows: list[Any]) -> Path:
    file = folder / "dump.json"
    file.write_text(json.dumps(rows), "utf-8")
    return file


def names(file: Path) -> list[str]:
    return [json.loads(line)["id"] for line in file.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return one set in three forms."""
    folder = tmp_path_factory.mktemp("forms")
    rows = [*KEPT, kept(3, "tool", messages=[{**KEPT[0]["messages"][0], "role": "assistant", "tool_calls": CALL}])]
    forms = {"set": write_set(folder / "set", rows), "lines": folder / "x.jsonl", "parquet": folder / "x.parquet"}
    convert(forms["set"], forms["lines"], to="jsonl")
    convert(forms["set"], forms["parquet"], to="parquet")
    return forms


QUERIES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "where": ({"where": "piece > 0 or model = 'gpt-4'"}, ["abc_1", "deadbeef"]),
    "where a text": ({"where": "id like 'abc%'"}, ["abc_0", "abc_1"]),
    "where null": ({"where": "model is null and split = 'train'"}, ["abc_0", "twice", "tool"]),
    "search": ({"search": "HELLO"}, ["abc_0", "abc_1", "deadbeef", "twice"]),
    "search in a tool call": ({"search": "sum"}, ["tool"]),
    "ids": ({"ids": ["twice", "abc_1"]}, ["abc_1", "twice"]),
    "a source id": ({"ids": ["abc"]}, ["abc_0", "abc_1"]),
    "split": ({"split": "eval"}, ["abc_1"]),
    "all": ({"where": "true"}, ["abc_0", "abc_1", "deadbeef", "twice", "tool"]),
    "several": ({"where": "piece = 0", "search": "hello", "split": "train"}, ["abc_0", "deadbeef", "twice"]),
    "sample of more": ({"sample": 9, "where": "piece = 0"}, ["abc_0", "deadbeef", "twice", "tool"]),
}


@pytest.mark.parametrize("form", ["set", "lines", "parquet"])
@pytest.mark.parametrize("case", QUERIES)
def test_a_query_selects_the_same_from_each_form(
    sources: dict[str, Path], tmp_path: Path, form: str, case: str
) -> None:
    query, expected = QUERIES[case]
    result = convert(sources[form], tmp_path / "out.jsonl", to="jsonl", **query)
    assert names(tmp_path / "out.jsonl") == expected
    assert (result.read, result.written, result.not_selected) == (5, len(expected), 5 - len(expected))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_sample_is_the_same_from_each_form_and_depends_on_its_seed(
    sources: dict[str, Path], tmp_path: Path, count: int
) -> None:
    drawn = {}
    for form, source in sources.items():
        convert(source, tmp_path / "out.jsonl", to="jsonl", sample=count, seed=3)
        drawn[form] = names(tmp_path / "out.jsonl")
    assert drawn["set"] == drawn["lines"] == drawn["parquet"]
    assert len(drawn["set"]) == count
    others = set()
    for seed in range(8):
        convert(sources["set"], tmp_path / "out.jsonl", to="jsonl", sample=count, seed=seed)
        others.add(tuple(names(tmp_path / "out.jsonl")))
    assert len(others) > 1


GROUPS = st.lists(st.sampled_from(["en", "ko", "zh", None]), max_size=40)


@given(groups=GROUPS, count=st.integers(1, 50), seed=st.integers(0, 5), random=st.randoms(use_true_random=False))
def test_a_sample_has_each_groups_share_whatever_the_order_of_rows(
    groups: list[str | None], count: int, seed: int, random: Any
) -> None:
    chats = [{"language": group, "messages": [{"role": "user", "content": f"{n}"}]} for n, group in enumerate(groups)]
    types: columns.Types = {
        "language": pl.String,
        "messages": pl.List(pl.Struct({"role": pl.String, "content": pl.String})),
    }

    def rows(chosen: list[dict[str, Any]], size: int, column: str | None) -> list[dict[str, Any]]:
        frame = pl.DataFrame(chosen, schema=types).with_row_index(ROW).lazy()
        return [chosen[row] for row in Query(sample=size, seed=seed, stratify=column).rows(frame)]

    for column in (None, "language"):
        drawn = rows(chats, count, column)
        assert len(drawn) == min(count, len(chats))
        assert all(chat in rows(chats, count + 1, column) for chat in drawn)
        moved = rows(random.sample(chats, len(chats)), count, column)
        assert sorted(map(str, moved)) == sorted(map(str, drawn))
    sizes, shares = Counter(groups), Counter(chat["language"] for chat in drawn)
    for group, size in sizes.items():
        assert abs(shares[group] - len(drawn) * size / len(groups)) <= (len(sizes) + 1) / 2


def test_a_sample_by_language_is_written_and_a_sample_only(tmp_path: Path) -> None:
    texts = [kept(n, f"c{n}", language="ko" if n % 4 == 0 else "en") for n in range(16)]
    convert(write_set(tmp_path / "set", texts), tmp_path / "out.jsonl", to="jsonl", sample=8, stratify="language")
    drawn = [int(name[1:]) for name in names(tmp_path / "out.jsonl")]
    assert (len(drawn), sum(n % 4 == 0 for n in drawn)) == (8, 2)


def test_a_set_of_an_earlier_version_is_searched_and_written(tmp_path: Path) -> None:
    rows = [{name: value for name, value in KEPT[2].items() if name not in ("tools", "rejected_answer")}]
    rows[0]["messages"] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    types = {name: kind for name, kind in columns.CONVERSATION.items() if name in rows[0] and name != "messages"}
    frame = pl.DataFrame(rows, schema_overrides=types)
    frame.write_parquet(write_set(tmp_path / "set") / "conversations.parquet")
    convert(tmp_path / "set", tmp_path / "out.jsonl", to="openai", search="hello")
    assert names(tmp_path / "out.jsonl") == ["deadbeef"]


# ---- dumps


def test_a_dump_is_selected_by_what_is_known_without_cleaning(tmp_path: Path) -> None:
    rows = [
        {"id": 7, "conversations": CHAT, "model": "gpt-4", "lang": "ko"},
        {"id": "b", "conversations": CHAT * 2},
        {"conversations": CHAT},
        {"id": "d", "conversations": [*CHAT, {"from": "human", "value": "more"}]},
    ]
    source, out = dump_of(tmp_path, rows), tmp_path / "out.jsonl"
    selected = {}
    for where in (
        "turns > 2",
        "characters = 7",
        "model = 'gpt-4'",
        "id is null",
        "source_index between 1 and 2",
        "source_file = 'dump.json' and id = 'd'",
        "array_contains(edit_names, 'id_to_text')",
        "metadata like '%\"ko\"%'",
    ):
        convert(source, out, to="jsonl", where=where)
        selected[where] = names(out)
    assert list(selected.values()) == [["b", "d"], ["7", None], ["7"], [None], ["b", None], ["d"], ["7"], ["7"]]


def test_conditions_do_not_depend_on_how_records_are_read(tmp_path: Path) -> None:
    source = dump_of(tmp_path, [{"id": f"c{i}", "conversations": CHAT} for i in range(2500)])
    result = convert(source, tmp_path / "out.jsonl", to="jsonl", where="source_index % 3 = 1")
    assert names(tmp_path / "out.jsonl") == [f"c{i}" for i in range(1, 2500, 3)]
    assert (result.read, result.not_selected) == (2500, 1667)


def test_records_that_cannot_be_read_are_left_out_whatever_the_query(tmp_path: Path) -> None:
    source = dump_of(tmp_path, [None, {"id": "a", "conversations": CHAT}, {"id": "b", "conversations": CHAT}, {"x": 1}])
    result = convert(source, tmp_path / "out.jsonl", to="alpaca", ids=["b", "gone"])
    assert (result.read, result.written, result.not_selected) == (4, 1, 1)
    assert result.left_out == {"not_a_record": 1, "unknown_format": 1}
    assert result.warnings == ("1 id of 2 not found: 'gone'",)


def test_ids_are_read_from_a_file_with_one_on_each_line(tmp_path: Path, sources: dict[str, Path]) -> None:
    (tmp_path / "ids.txt").write_bytes("\ufefftwice\r\n\r\n  dump.json:1 \nghost".encode())
    result = convert(sources["set"], tmp_path / "out.jsonl", to="jsonl", ids=tmp_path / "ids.txt")
    assert names(tmp_path / "out.jsonl") == ["deadbeef", "twice"]
    assert result.warnings == ("1 id of 3 not found: 'ghost'",)


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "a column of a set": ("dump", {"where": "tokens > 3"}, "'tokens' is known after cleaning"),
    "a misspelt column": ("dump", {"where": "turn > 3"}, "did you mean 'turns'"),
    "the largest of a dump": ("dump", {"where": "turns = max(turns)"}, "compares conversations with each other"),
    "no SQL": ("set", {"where": "tokens >"}, "unable to parse"),
    "an unknown column": ("set", {"where": "tokn > 3"}, "no column 'tokn'"),
    "no match": ("set", {"where": "tokens > 9999"}, "no conversation of"),
    "no match in a dump": ("dump", {"search": "nowhere"}, "no conversation of"),
    "ids that are not there": ("set", {"ids": ["x"]}, "no conversation of"),
    "no file of ids": ("set", {"ids": "none.txt"}, "cannot read the ids in 'none.txt'"),
    "nothing to draw": ("set", {"sample": 0}, "sample is 0"),
    "no sample to stratify": ("set", {"stratify": "model"}, "no effect without a sample"),
    "no column to stratify by": ("set", {"sample": 1, "stratify": "modle"}, "did you mean 'model'"),
    "stratify by a list": ("set", {"sample": 1, "stratify": "messages"}, "no such column of single values"),
    "stratify a dump": ("dump", {"sample": 1, "stratify": "model"}, "works on a curated set"),
    "a split of a dump": ("dump", {"split": "train"}, "only a curated set"),
    "an unknown rule": ("dump", {"keep": ["multimodel"]}, "did you mean 'multimodal'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_query_without_an_answer_gets_one_clear_line(sources: dict[str, Path], tmp_path: Path, case: str) -> None:
    form, query, message = WRONG[case]
    source = sources["set"] if form == "set" else dump_of(tmp_path, [{"id": "a", "conversations": CHAT}])
    (tmp_path / "out.jsonl").write_text("mine", "utf-8")
    with pytest.raises(CurateError) as error:
        convert(source, tmp_path / "out.jsonl", to="jsonl", **query)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert (tmp_path / "out.jsonl").read_text("utf-8") == "mine"


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\x00"])
def test_a_file_without_ids_is_refused(sources: dict[str, Path], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ids.txt").write_bytes(content)
    with pytest.raises(InputError, match="one id on each line"):
        convert(sources["set"], tmp_path / "out.jsonl", to="jsonl", ids=tmp_path / "ids.txt")


# ---- flaws, and training data


def test_records_with_a_flaw_are_written_if_their_rule_is_kept(tmp_path: Path) -> None:
    picture = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
    rows = [
        {"id": "bad", "conversations": CHAT, "label": False},
        {"id": "picture", "conversations": picture, "image": "cat.png"},
        {"id": "good", "conversations": CHAT},
    ]

    def written(*keep: str) -> dict[str, int]:
        source = dump_of(tmp_path, rows)
        return dict(convert(source, tmp_path / "out.jsonl", to="sharegpt", keep=keep).left_out)

    assert written() == {"bad_label": 1, "multimodal": 1}
    assert written("bad_label") == {"multimodal": 1}
    assert names(tmp_path / "out.jsonl") == ["bad", "good"]
    assert written("multimodal", "bad_label") == {}
    turns = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert turns[1]["conversations"][0]["value"] == "What is it?"


def test_selected_pieces_are_rendered_each_by_itself(tmp_path: Path) -> None:
    if importlib.util.find_spec("llama_models") is None:  # not imported, as other tests check
        pytest.skip("llama-models, which ships LLaMA-3's tokenizer, is not installed")
    source = write_set(tmp_path / "set")
    out = tmp_path / "out.jsonl"
    settings: dict[str, Any] = {"tokenizer": "llama3", "max_tokens": 512}
    assert convert(source, out, to="rendered", **settings).written == 3  # the two pieces of `abc` are joined
    result = convert(source, out, to="rendered", where="source_id = 'abc'", **settings)
    assert (result.read, result.written, result.not_selected) == (4, 2, 2)
