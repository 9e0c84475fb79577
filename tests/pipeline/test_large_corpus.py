"""Conversations that share nothing with another are decided apart from the others, with the same result."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curate.dataset import columns
from curate.filters import duplicates
from curate.ingest.damaged_records import DamagedRecords
from curate.pipeline import corpus, recipe
from curate.pipeline.frames import part_file
from curate.pipeline.recipe import Recipe
from curate.pipeline.sets import earlier
from curate.pipeline.steps import Part
from curate.pipeline.tables import assemble

Chat = dict[str, Any]
TEXTS = st.one_of(st.sampled_from("abc"), st.integers(0, 400).map(str))
IDS = st.one_of(
    st.none(),
    st.sampled_from(("a", "a_0", "a_1", "a_1_0", "b_0", "b_1", "b_2", "7", "7_0", "a~0123abcd", "c_0", "c_00")),
    st.integers(0, 400).map("id{}".format),
    st.integers(0, 60).map("chat_{}".format),
    st.integers(0, 60).map("{}_0".format),
)
MARK = st.fixed_dictionaries({name: st.booleans() for name in ("train", "stop", "train_reasoning")})
CHATS: st.SearchStrategy[Chat] = st.fixed_dictionaries(
    {
        "source_id": IDS,
        "texts": st.lists(TEXTS, min_size=1, max_size=5),
        "begins_with": st.sampled_from(("user", "user", "user", "system", "assistant")),
        "marks": st.one_of(st.none(), st.none(), st.lists(MARK, min_size=5, max_size=5)),
        "pieces": st.sampled_from((0, 1, 1, 1, 2, 3)),
        "alone": st.sampled_from((True, True, False)),
        "source_file": st.sampled_from(("f", "g")),
        "step": st.sampled_from((1, 1, 1, 1, 0)),  # from the index of the record before
    }
)


@dataclass(frozen=True)
class Corpus:
    """Summaries of parts, and what decides on them."""

    parts: Sequence[pl.DataFrame]
    known: pl.DataFrame | None
    damaged: Sequence[DamagedRecords]
    recipe: Recipe


def summary(chats: Sequence[Chat]) -> pl.DataFrame:
    """Return the summary that a worker writes of these chats."""
    roles = {
        "user": ("user", "assistant"),
        "system": ("system", "user", "assistant"),
        "assistant": ("assistant", "user"),
    }
    messages = [
        [
            (roles[chat["begins_with"]][place % len(roles[chat["begins_with"]])], text, None, None, None)
            for place, text in enumerate(chat["texts"])
        ]
        for chat in chats
    ]
    hashes = duplicates.chain_hashes(messages, [chat["pieces"] > 0 for chat in chats])
    index = branch = 0
    rows = []
    for row, chat in enumerate(chats):
        index += chat["step"]
        branch = 0 if chat["step"] else branch + 1
        marks = chat["marks"] and chat["marks"][: len(chat["texts"])]
        names = ("source_id", "pieces", "alone", "source_file")
        rows.append(
            {"row": row, "source_index": index, "branch": branch, "marks": marks, **{n: chat[n] for n in names}}
        )
    types: columns.Types = {name: dtype for name, dtype in columns.PART_SUMMARY.items() if name not in hashes.columns}
    return pl.DataFrame(rows, schema=types).hstack(hashes).select(*columns.PART_SUMMARY)


def known_summary(chats: Sequence[Chat]) -> pl.DataFrame:
    """Return the summary of an earlier set's conversations."""
    rows = summary([{**chat, "pieces": 1} for chat in chats]).with_columns(
        source_file=pl.lit("old/f"),
        set=pl.lit(0, pl.UInt32),
        earlier_split=pl.when(pl.col("row") % 2 == 0).then(pl.lit("eval")).otherwise(pl.lit("train")),
        earlier_id=pl.format("old-{}", "row"),
        protected=pl.lit(True),
    )
    return pl.concat([earlier.no_known(), rows], how="diagonal")


@st.composite
def corpora(draw: st.DrawFn) -> Corpus:
    parts = [
        summary(chats) for chats in draw(st.lists(st.lists(CHATS, min_size=1, max_size=12), min_size=1, max_size=3))
    ]
    known = draw(st.one_of(st.none(), st.none(), st.lists(CHATS, min_size=1, max_size=5).map(known_summary)))
    damaged = draw(st.sampled_from([(), (), [DamagedRecords("f", 2, 4, "doubtful")]]))
    kind = draw(st.sampled_from(("vicuna", "fastchat")))
    chosen = recipe.load(kind)
    rule = draw(st.sampled_from(({}, {"prefixes": False}, {"first_exchange": True, "ids": True})))
    filters = {**chosen.filters, corpus.DUPLICATES: {"prefixes": True, "first_exchange": False, "ids": False, **rule}}
    if draw(st.booleans()):
        filters["cap"] = {"cluster": draw(st.integers(1, 3)), "source_file": 0, "model": 0, "language": 0}
    if draw(st.integers(0, 5)) == 0:
        del filters[corpus.DUPLICATES]
    share = replace(
        chosen.eval, fraction=draw(st.sampled_from((0.0, 0.02, 0.3, 1.0))), minimum=draw(st.sampled_from((0, 9)))
    )
    treatments: tuple[Literal["reject", "keep"], ...] = ("reject", "keep")
    treatment = draw(st.sampled_from(treatments))
    return Corpus(
        parts,
        known,
        damaged,
        replace(chosen, filters=filters, eval=share, input=replace(chosen.input, damaged_streams=treatment)),
    )


def decide(given_corpus: Corpus, folder: Path, large: int, group: int = 10**9) -> tuple[corpus.Decisions, pl.DataFrame]:
    """Return the decisions, and all rows of these as the tables are written by them."""
    parts = []
    groups = pl.DataFrame(schema=columns.GROUP_SUMMARY)
    for number, rows in enumerate(given_corpus.parts):
        path = part_file(folder, number, "summary")
        measures = [
            pl.lit(5).cast(dtype).alias(name) if name == "characters" else pl.lit("x").alias(name)
            for name, dtype in groups.schema.items()
        ]
        rows.with_columns(measures).write_ipc(path)
        parts.append(Part(number, rows.height, Counter(), Counter(), pl.scan_ipc(path), {}, first=100 * number))
    made = corpus.decide(parts, given_corpus.recipe, given_corpus.damaged, (), given_corpus.known, large, group, folder)
    target = assemble.SetTables(folder, folder, {part.number: part.first for part in parts}, {}, originals=False)
    read = assemble.decisions_reader(assemble.write_decisions(target, made))
    read_rows = [read(part.number).with_columns(part=pl.lit(part.number, pl.UInt32)) for part in parts]
    return made, pl.concat(read_rows).sort("part", "row")


def check(given_corpus: Corpus) -> pl.DataFrame:
    """Check that the decisions are the same either way, and return them."""
    with tempfile.TemporaryDirectory() as folder:
        whole, rows = decide(given_corpus, Path(folder), 10**9)
    assert whole.rest is None
    for group in (10**9, 2):
        with tempfile.TemporaryDirectory() as folder:
            apart, same = decide(given_corpus, Path(folder), 0, group)
        assert apart.rest is not None
        assert same.to_dicts() == rows.to_dicts()
        assert apart.gains.to_dicts() == whole.gains.to_dicts()
        assert (apart.alone, apart.warnings) == (whole.alone, whole.warnings)
    return rows


@given(corpora())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_decisions_are_the_same_whether_conversations_that_share_nothing_are_held_or_not(given_corpus: Corpus) -> None:
    check(given_corpus)


def chat(*texts: str, source_id: str | None = None, **fields: Any) -> Chat:
    """Return a kept chat that begins with a prompt."""
    defaults = {"begins_with": "user", "marks": None, "pieces": 1, "alone": True, "source_file": "f", "step": 1}
    return {"source_id": source_id, "texts": list(texts), **defaults, **fields}


def of_chats(*chats: Chat) -> Corpus:
    chosen = recipe.load("vicuna")
    chosen = replace(chosen, eval=replace(chosen.eval, fraction=0.5, minimum=0))
    return Corpus([summary(chats)], None, (), chosen)


def test_a_made_id_that_another_record_has_is_not_given_twice() -> None:
    alone = chat("1", "2")
    last = summary([alone])["chain"].list.last()[0]
    rows = check(of_chats(alone, chat("3", "4", source_id=f"c-{last:016x}"[:14])))
    assert rows["id"].n_unique() == 2


def test_an_id_that_looks_like_a_changed_one_is_not_given_twice() -> None:
    second = chat("3", "4", source_id="a")
    changed = f"a~{summary([second])['chain'].list.last()[0]:016x}"[:10]
    rows = check(of_chats(chat("1", "2", source_id="a"), second, chat("5", "6", source_id=changed)))
    assert rows["id"].n_unique() == 3


def test_an_answer_is_not_gained_that_a_conversation_trains_which_shares_nothing_else() -> None:
    first, second = ([{"train": n == at, "stop": True, "train_reasoning": True} for n in range(2)] for at in (1, 0))
    chats = [chat("1", "2", begins_with="assistant", marks=marks) for marks in (first, second)]
    other = chat("1", "3", begins_with="assistant")
    alone, together = of_chats(*chats), of_chats(*chats, other)
    check(alone)
    check(together)
    with tempfile.TemporaryDirectory() as folder:
        assert decide(alone, Path(folder), 0)[0].gains.height == 1
    with tempfile.TemporaryDirectory() as folder:
        assert decide(together, Path(folder), 0)[0].gains.height == 0


def test_chats_of_one_piece_count_where_ids_are_told_from_numbers() -> None:
    pieces = [chat(f"p{n}", "x", source_id=f"a_{n}") for n in range(20)]
    single = [chat(f"q{n}", "x", source_id=f"b{n}_0") for n in range(5)]
    assert check(of_chats(*pieces, *single))["cluster"].n_unique() == 6
    assert check(of_chats(*pieces))["cluster"].n_unique() == 20


def test_branches_of_a_record_are_in_one_cluster_whatever_group_they_would_be_in() -> None:
    branches = [chat("1", "2"), chat("3", "4", step=0), chat("5", "6", step=0)]
    assert check(of_chats(*branches))["cluster"].n_unique() == 1
