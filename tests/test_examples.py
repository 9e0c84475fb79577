"""The example dump is the output of its script, has every kind of dirt, and cleans as documented."""

from __future__ import annotations

import functools
import json
import re
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import curate
from curate.filters import registry

EXAMPLES = Path(__file__).parents[1] / "examples"
DUMP = EXAMPLES / "sharegpt_dump.json"
KINDS: dict[str, list[int]] = json.loads((EXAMPLES / "dump_kinds.json").read_text())

# Kinds of dirt whose rows are rejected. Of duplicates one copy is kept, at any index.
REJECTED = {
    "no_turns",
    "null_turn",
    "plugins",
    "prefix_of_another",
    "row_list",
    "row_null",
    "row_number",
    "row_string",
    "single_turn",
    "text_turn",
    "missing_conversations",
    "null_conversations",
    "too_short",
}
TWINS = {"duplicate_new_id", "duplicate_row"}


@pytest.fixture(scope="module")
def maker() -> dict[str, Any]:
    """The names defined by the script that makes the dump."""
    return runpy.run_path(str(EXAMPLES / "make_dump.py"))


@functools.cache
def table(folder: Path, name: str) -> pl.DataFrame:
    return pl.read_parquet(folder / f"{name}.parquet")


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("example") / "curated"
    curate.clean(DUMP, folder, workers=1)
    return folder


def test_the_script_reproduces_the_dump_exactly(maker: dict[str, Any]) -> None:
    dump, kinds = maker["build"]()
    assert dump.encode() == DUMP.read_bytes()
    assert kinds.encode() == (EXAMPLES / "dump_kinds.json").read_bytes()


def test_the_dump_has_about_200_rows_each_of_one_kind() -> None:
    rows = json.loads(DUMP.read_bytes())
    assert 190 <= len(rows) <= 220
    assert sorted(index for rows_of_kind in KINDS.values() for index in rows_of_kind) == list(range(len(rows)))
    assert DUMP.stat().st_size < 600_000


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param("bg-black mb-4 rounded-md", id="2023 early"),
        pytest.param("bg-black rounded-md mb-4", id="2023"),
        pytest.param("gizmo:ml-0", id="2023 late"),
        pytest.param("bg-gray-950", id="2024"),
        pytest.param("whitespace-pre! language-", id="2025"),
        pytest.param("overflow-visible! px-0!", id="2025 late"),
        pytest.param("code-block-viewer", id="2026"),
        pytest.param("application/x-tex", id="maths"),
        pytest.param("data-math-source", id="maths of 2026"),
        pytest.param("<table>", id="table"),
        pytest.param('type=\\"checkbox\\"', id="task list"),
        pytest.param("webpage-citation-pill", id="citation"),
        pytest.param("<blockquote>", id="quote"),
        pytest.param('<ol start=\\"3\\">', id="numbered from 3"),
        pytest.param("\\ud83d", id="half a surrogate pair"),
        pytest.param("NaN", id="not a number"),
        pytest.param("\\u001b[31m", id="escape code"),
        pytest.param("#include <stdio.h>", id="markup in a prompt"),
    ],
)
def test_the_dump_holds(trace: str) -> None:
    assert trace in DUMP.read_text(encoding="utf-8")


def test_every_record_is_kept_or_rejected(cleaned: Path) -> None:
    counts = json.loads((cleaned / "manifest.json").read_text())["counts"]
    assert counts["read"] == sum(map(len, KINDS.values()))
    assert counts["read"] == counts["kept"] + counts["rejected"]
    kept = table(cleaned, "conversations")["source_index"].n_unique()
    rejected = table(cleaned, "rejected").filter(pl.col("scope") == "record")["source_index"].n_unique()
    assert (kept, rejected) == (counts["kept"], counts["rejected"])


@pytest.mark.parametrize("kind", sorted(set(KINDS) - TWINS))
def test_a_row_is_kept_or_rejected_according_to_its_kind(kind: str, cleaned: Path) -> None:
    kept = set(table(cleaned, "conversations")["source_index"])
    twins = set(table(cleaned, "rejected").filter(pl.col("twin").is_not_null())["source_index"])
    rows = set(KINDS[kind])
    if kind in REJECTED:
        assert not rows & kept
    else:
        assert rows <= kept | twins


def test_of_each_pair_of_duplicates_one_is_kept_as_the_twin(cleaned: Path) -> None:
    rejected = table(cleaned, "rejected").filter(pl.col("twin").is_not_null())
    copies = sum(len(KINDS[kind]) for kind in (*TWINS, "prefix_of_another"))
    assert rejected.height == copies
    kept = set(table(cleaned, "conversations")["id"].str.replace(r"_\d+$", ""))
    assert set(rejected["twin"].str.replace(r"_\d+$", "")) <= kept


def test_the_very_long_chat_is_split_with_no_exchange_lost(cleaned: Path) -> None:
    (index,) = KINDS["very_long"]
    pieces = table(cleaned, "conversations").filter(pl.col("source_index") == index).sort("piece")
    assert pieces.height >= 2
    assert max(pieces["tokens"].to_list()) <= 2048
    prompts = [m["content"] for messages in pieces["messages"] for m in messages if m["role"] == "user"]
    assert prompts == [turn["value"] for turn in _row(index)["conversations"] if turn["from"] == "human"]


def _row(index: int) -> Any:
    return json.loads(DUMP.read_bytes())[index]


def test_five_languages_are_recognised(cleaned: Path) -> None:
    counts = Counter(table(cleaned, "conversations")["language"].to_list())
    assert min(counts[language] for language in ("en", "de", "es", "ja", "ko")) >= 15


def test_clean_conversations_equal_their_source(cleaned: Path, maker: dict[str, Any]) -> None:
    written = {maker["share_id"](chat.name): chat for chat in maker["chats"]()}
    rows = json.loads(DUMP.read_bytes())
    got = table(cleaned, "conversations").filter(pl.col("piece") == 0)
    by_index = dict(zip(got["source_index"], got["messages"], strict=True))
    compared = 0
    for index in KINDS["clean"]:
        chat = written[rows[index]["id"]]
        if index not in by_index or any(role == "html" for role, _ in chat.turns):
            continue
        texts = [message["content"] for message in by_index[index]]
        assert texts[::2] == [text for _, text in chat.turns[::2]], chat.name
        assert [_plain(text) for text in texts[1::2]] == [_plain(text) for _, text in chat.turns[1::2]], chat.name
        compared += 1
    assert compared > 90


def _plain(markdown: str) -> str:
    """Normalise equivalent markdown: line breaks, table rules, blank lines in lists."""
    text = re.sub(r"(?: {2}|\\)\n", "\n", markdown)
    text = re.sub(r"(?m)^\|[ :|-]+\|$", lambda rule: re.sub(r"-+", "---", rule[0].replace(" ", "")), text)
    return re.sub(r"\n{2,}", "\n", text).strip()


def test_the_users_own_filters_work(tmp_path: Path) -> None:
    names = registry.load(EXAMPLES / "my_filters.py")
    assert set(names) == {"shouting", "one_word_answers"}
    loud = [
        {"from": "human", "value": "WHY IS THE SEA SO SALTY, TELL ME!"},
        {"from": "gpt", "value": "Rivers bring salt."},
    ]
    calm = [{"from": "human", "value": "Why is the sky blue at noon?"}, {"from": "gpt", "value": "Scattering, mostly."}]
    short = [{"from": "human", "value": "Is the Earth round or flat?"}, {"from": "gpt", "value": "Round."}]
    source = tmp_path / "dump.json"
    source.write_text(json.dumps([{"id": str(i), "conversations": c} for i, c in enumerate((loud, calm, short))]))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'name = "mine"\n[filters]\nfiles = [{json.dumps(str(EXAMPLES / "my_filters.py"))}]\nshouting = true\n'
        "one_word_answers = true\n"
    )
    curate.clean(source, tmp_path / "curated", recipe=recipe, workers=1)
    rejected = table(tmp_path / "curated", "rejected").sort("source_index")
    assert list(zip(rejected["source_id"], rejected["rule"], strict=True)) == [
        ("0", "shouting"),
        ("2", "one_word_answers"),
    ]


def test_the_identity_rows_are_kept_as_a_second_input(tmp_path: Path) -> None:
    result = curate.clean([EXAMPLES / "identity.json"], tmp_path / "curated", workers=1)
    assert result.manifest["counts"]["kept"] == len(json.loads((EXAMPLES / "identity.json").read_text()))
