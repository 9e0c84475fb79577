"""Conversations that share nothing with another are decided apart from the others, with the same result."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from curate.dataset import columns
from curate.engine.pool import open_pool
from curate.filters import duplicates, registry
from curate.filters.registry import Settings
from curate.ingest.damaged_records import DamagedRecords
from curate.pipeline import corpus, recipe
from curate.pipeline.frames import part_file
from curate.pipeline.near import parts as near_parts
from curate.pipeline.near.caps import PromptCap
from curate.pipeline.near.decision import NearDuplicates
from curate.pipeline.recipe import Recipe
from curate.pipeline.run import FINDERS
from curate.pipeline.sets import earlier
from curate.pipeline.steps import Part
from curate.pipeline.tables import assemble
from curate.pipeline.whole import decided, limits, ranking, spill

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
        "protected": st.sampled_from((None, None, None, True)),
        "earlier_split": st.sampled_from((None, "train", "eval")),
    }
)

LIMITED = ("source_file", "model", "language")
MEASURES = {
    "characters": (pl.col("chain").list.first() % 5).cast(pl.Int64),
    "model": pl.when(pl.col("chain").list.last() % 3 > 0).then(pl.format("m{}", pl.col("chain").list.last() % 2)),
    "language": pl.format("l{}", pl.col("prompt") % 2),
}


@dataclass(frozen=True)
class Corpus:
    """Summaries of parts, and what decides on them."""

    parts: Sequence[Sequence[Chat]]
    known: pl.DataFrame | None
    damaged: Sequence[DamagedRecords]
    recipe: Recipe
    finders: Mapping[str, Settings] = field(default_factory=dict)
    of_sets: bool = False  # parts are made of sets


def words(text: str) -> str:
    """Return a longer text, of which several differ in their last word only."""
    kind = text if len(text) > 3 else sum(map(ord, text)) % 3
    return " ".join(f"{kind}-{place}" for place in range(24)) + f" {text}"


def write_compared(folder: Path, number: int, chats: Sequence[Chat]) -> None:
    """Write what rules on texts compare, as a worker does, and the table that evidence is read from."""
    rows = range(len(chats))
    texts = pl.DataFrame(
        {
            "row": rows,
            "text": [" ".join(map(words, chat["texts"])) for chat in chats],
            "language": ["en"] * len(chats),
            "prompt_text": [chat["texts"][0] for chat in chats],
        },
        schema_overrides={"row": pl.UInt32},
    )
    near_parts.write_texts(folder, number, texts, len(chats))
    messages = [[{"role": "user", "content": words(text)} for text in chat["texts"]] for chat in chats]
    schema: columns.Types = {"row": pl.UInt32, "messages": columns.CONVERSATION["messages"]}
    pl.DataFrame({"row": rows, "messages": messages}, schema=schema).write_ipc(part_file(folder, number, "kept"))


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


def of_set(rows: pl.DataFrame, chats: Sequence[Chat], number: int) -> pl.DataFrame:
    """Add the columns of a part that is made of a set's rows; not all parts have that of what the user keeps."""
    splits = pl.Series([chat["earlier_split"] for chat in chats], dtype=pl.String)
    rows = rows.with_columns(earlier_split=splits, earlier_id="source_id", set=pl.lit(number, pl.UInt32))
    protected = pl.Series([chat["protected"] for chat in chats], dtype=pl.Boolean)
    return rows if number == 1 else rows.with_columns(protected=protected)


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
    parts = draw(st.lists(st.lists(CHATS, min_size=1, max_size=12), min_size=1, max_size=3))
    of_sets = draw(st.sampled_from((False, False, True)))
    known = draw(st.one_of(st.none(), st.none(), st.lists(CHATS, min_size=1, max_size=5).map(known_summary)))
    damaged = draw(st.sampled_from([(), (), [DamagedRecords("f", 2, 4, "doubtful")]]))
    kind = draw(st.sampled_from(("vicuna", "fastchat")))
    chosen = recipe.load(kind)
    rule = draw(st.sampled_from(({}, {"prefixes": False}, {"first_exchange": True, "ids": True})))
    filters = {**chosen.filters, corpus.DUPLICATES: {"prefixes": True, "first_exchange": False, "ids": False, **rule}}
    if draw(st.booleans()):
        limit = st.sampled_from((0, 0, 0, 2, 5))
        filters["cap"] = {"cluster": draw(st.integers(0, 3)), **{name: draw(limit) for name in LIMITED}}
    if draw(st.integers(0, 5)) == 0:
        del filters[corpus.DUPLICATES]
    share = replace(
        chosen.eval, fraction=draw(st.sampled_from((0.0, 0.02, 0.3, 1.0))), minimum=draw(st.sampled_from((0, 9)))
    )
    treatments: tuple[Literal["reject", "keep"], ...] = ("reject", "keep")
    treatment = draw(st.sampled_from(treatments))
    if of_sets:
        known = None
    finders: dict[str, dict[str, Any]] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                NearDuplicates.name: st.fixed_dictionaries(
                    {
                        "action": st.sampled_from(("drop", "drop", "flag")),
                        "threshold": st.sampled_from((0.5, 0.8)),
                        "common": st.sampled_from((0.0, 0.02)),
                        "of": st.just("conversations"),
                    }
                ),
                PromptCap.name: st.fixed_dictionaries({"most": st.integers(1, 2)}),
            },
        )
    )
    return Corpus(
        parts,
        known,
        damaged,
        replace(chosen, filters=filters, eval=share, input=replace(chosen.input, damaged_streams=treatment)),
        {name: {**registry.check(name), **values} for name, values in finders.items()},
        of_sets,
    )


def decide(given_corpus: Corpus, folder: Path, large: int, group: int = 10**9) -> tuple[corpus.Decisions, pl.DataFrame]:
    """Return the decisions, and all rows of these as the tables are written by them."""
    parts = []
    for number, chats in enumerate(given_corpus.parts):
        path = part_file(folder, number, "summary")
        rows = of_set(summary(chats), chats, number) if given_corpus.of_sets else summary(chats)
        write_compared(folder, number, chats)
        rows.with_columns(**MEASURES).write_ipc(path)
        parts.append(Part(number, rows.height, Counter(), Counter(), pl.scan_ipc(path), {}, first=100 * number))
    with open_pool(lambda: str, 1) as pool:
        finders = [
            finder(pool, folder, given_corpus.finders[finder.name])
            for finder in FINDERS
            if finder.name in given_corpus.finders
        ]
        known = None if given_corpus.known is None else halves(given_corpus.known)
        made = corpus.decide(parts, given_corpus.recipe, given_corpus.damaged, finders, known, large, group, folder)
    target = assemble.SetTables(folder, folder, {part.number: part.first for part in parts}, {}, originals=False)
    read = assemble.decisions_reader(assemble.write_decisions(target, made))
    read_rows = [read(part.number).with_columns(part=pl.lit(part.number, pl.UInt32)) for part in parts]
    return made, pl.concat(read_rows).sort("part", "row")


def halves(rows: pl.DataFrame) -> list[pl.LazyFrame]:
    """Return rows in two frames."""
    return [rows.head(rows.height // 2).lazy(), rows.slice(rows.height // 2).lazy()]


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
@settings(max_examples=12, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # shrinking takes minutes
def test_decisions_are_the_same_whether_conversations_that_share_nothing_are_held_or_not(given_corpus: Corpus) -> None:
    check(given_corpus)


def chat(*texts: str, source_id: str | None = None, **fields: Any) -> Chat:
    """Return a kept chat that begins with a prompt."""
    defaults = {
        "begins_with": "user",
        "marks": None,
        "pieces": 1,
        "alone": True,
        "source_file": "f",
        "step": 1,
        "protected": None,
        "earlier_split": None,
    }
    return {"source_id": source_id, "texts": list(texts), **defaults, **fields}


def of_chats(*chats: Chat) -> Corpus:
    chosen = recipe.load("vicuna")
    chosen = replace(chosen, eval=replace(chosen.eval, fraction=0.5, minimum=0))
    return Corpus([chats], None, (), chosen)


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


def random_corpus(seed: int) -> Corpus:
    """Return three parts of 60 chats, of which many share something, with all rules on texts."""
    rng = random.Random(seed)
    ids = [None, "a", "a_0", "a_1", "7", *(f"id{n}" for n in range(60)), *(f"c{n}_0" for n in range(20))]
    parts = [
        [
            chat(
                *(str(rng.randrange(rng.choice((3, 400, 100_000)))) for _ in range(rng.randint(1, 4))),
                source_id=rng.choice(ids),
                pieces=rng.choice((0, 1, 1, 2)),
                alone=rng.random() < 0.8,
                step=rng.choice((1, 1, 1, 0)),
                protected=rng.choice((None, None, None, True)),
                earlier_split=rng.choice((None, "train", "eval")),
            )
            for _ in range(60)
        ]
        for _ in range(3)
    ]
    chosen = recipe.load("vicuna")
    most = {"cluster": rng.choice((0, 4)), **{name: rng.choice((0, 0, 20, 50)) for name in LIMITED}}
    chosen = replace(
        chosen,
        eval=replace(chosen.eval, fraction=rng.choice((0.02, 0.4)), minimum=0),
        filters={**chosen.filters, **({"cap": most} if any(most.values()) else {})},
    )
    near = {
        "action": rng.choice(("drop", "drop", "flag")),
        "threshold": rng.choice((0.5, 0.8)),
        "common": rng.choice((0.0, 0.3)),
    }
    rules: dict[str, dict[str, Any]] = {NearDuplicates.name: near, PromptCap.name: {"most": 2}}
    finders = {name: {**registry.check(name), **values} for name, values in rules.items()}
    return Corpus(parts, None, (), chosen, finders, of_sets=seed % 2 == 1)


@pytest.mark.parametrize("seed", [4, 9])
def test_rules_on_texts_and_groups_decide_the_same_in_groups(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {ranking: ("RANGE", "SAMPLED"), limits: ("BLOCK",), decided: ("BLOCK",), spill: ("PENDING", "PARTITION")}
    for module, names in sizes.items():  # so that there are several files of each kind
        for name in names:
            monkeypatch.setattr(module, name, 20 if name != "SAMPLED" else 2)
    given_corpus = random_corpus(seed)
    rules = check(given_corpus)["rule"].value_counts().rows_by_key("rule", unique=True)
    assert {corpus.DUPLICATES, PromptCap.name, NearDuplicates.name} <= rules.keys()
    assert bool(rules.get("cap")) == ("cap" in given_corpus.recipe.filters)
