"""Every branch of a chat becomes a conversation: in one split, with its own id, and never joined with another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import curate
from curate.analysis import conversations, explanation
from curate.analysis.selection import show
from curate.dataset import arrow
from curate.dataset.curated_set import CuratedSet, open_set

WORDS = "rye rises in the cold for twelve to eighteen hours, then it is baked until the crust is dark and hard. "


def node(key: str, parent: str, role: str, text: str) -> dict[str, Any]:
    content = {"content_type": "text", "parts": [text]}
    message = {"author": {"role": role}, "content": content, "end_turn": True, "create_time": 1.0}
    return {"id": key, "parent": parent, "message": message}


def chat(number: int) -> dict[str, Any]:
    """Return a chat of two exchanges with another first answer, another last one, and another first prompt."""
    end = f" Chat {number}."
    nodes = [
        node("u", "root", "user", "How long does it rise?" + end),
        node("a", "u", "assistant", WORDS * 4 + "First." + end),
        node("u2", "a", "user", "And baked?" + end),
        node("b", "u2", "assistant", WORDS * 4 + "Shown." + end),
        node("b2", "u2", "assistant", WORDS * 4 + "Other." + end),
        node("a2", "u", "assistant", "Again." + end),
        node("v", "root", "user", "Edited: how long?" + end),
        node("c", "v", "assistant", "Edited." + end),
        node("w", "root", "user", "Unanswered?" + end),
    ]
    mapping = {"root": {"id": "root", "parent": None}, **{item["id"]: item for item in nodes}}
    return {"title": "t", "conversation_id": f"chat{number}", "mapping": mapping, "current_node": "b"}


@pytest.fixture(scope="module")
def branched(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: str) -> CuratedSet:
    """A set of 60 chats with four branches each, of which the longest are split into pieces."""
    folder = tmp_path_factory.mktemp("branches")
    dump = folder / "conversations.json"
    records: list[object] = [chat(number) for number in range(60)]
    dump.write_text(json.dumps([*records, {"title": "empty", "mapping": {}, "current_node": None}]))
    target = folder / "set"
    curate.clean(dump, target, branches=True, tokenizer=tiny_tokenizer, max_tokens=700, eval_fraction=0.2)
    return open_set(target)


def table(curated: CuratedSet) -> pl.DataFrame:
    return curated.conversations().collect()


def test_each_branch_is_counted_and_the_balance_holds(branched: CuratedSet) -> None:
    counts = branched.manifest.counts
    assert counts.branches == 180 and counts.read == 241
    assert counts.kept == 240 and counts.rejected == 1 and counts.read == counts.kept + counts.rejected
    assert table(branched).select("source_index", "branch").unique().height == 240


def test_ids_are_unique_and_all_branches_of_a_chat_are_in_one_cluster(branched: CuratedSet) -> None:
    rows = table(branched)
    assert rows["id"].is_unique().all()
    assert rows.group_by("source_index").agg(pl.col("cluster", "split").n_unique()).select(
        (pl.col("cluster") == 1).all(), (pl.col("split") == 1).all()
    ).row(0) == (True, True)
    assert rows["split"].n_unique() == 2


def test_no_answer_is_trained_twice(branched: CuratedSet) -> None:
    messages = table(branched).explode("messages")["messages"].struct.unnest()
    trained = messages.filter((pl.col("role") == "assistant") & pl.col("train"))["content"]
    assert trained.is_unique().all() and trained.len() == 60 * 5


def test_originals_have_each_record_once(branched: CuratedSet) -> None:
    originals = branched.originals()
    assert originals is not None
    assert originals.select("source_index").collect()["source_index"].is_unique().all()


def test_pieces_of_two_branches_are_never_joined(branched: CuratedSet) -> None:
    sources = [source for batch in arrow.read_batches(branched.path) for source in arrow.decode_batch(batch)]
    assert len(sources) == 240
    assert all([row.piece for row in source] == list(range(len(source))) for source in sources)
    assert any(len(source) > 1 for source in sources)


def test_a_branch_is_shown_and_explained_by_itself(branched: CuratedSet) -> None:
    histories = explanation.explain("chat7", branched.path).records
    assert [history.branch for history in histories] == [0, 1, 2, 3]
    assert [len(history.pieces) for history in histories] == [2, 2, 1, 1]
    row = table(branched).filter(source_id="chat7", branch=3).row(0, named=True)
    view = show(row["id"], branched.path)[0]
    assert [message.content for message in view.messages] == ["Edited: how long? Chat 7.", "Edited. Chat 7."]
    changes = conversations.diff_record(branched, view)
    assert [change.changed for change in changes] == [False, False]


def test_an_exchange_that_one_branch_loses_does_not_touch_the_others(tmp_path: Path, tiny_tokenizer: str) -> None:
    record = chat(1)
    record["mapping"]["c"]["message"]["content"]["parts"] = [WORDS * 40]
    dump = tmp_path / "conversations.json"
    dump.write_text(json.dumps([record, chat(2)]))
    curate.clean(dump, tmp_path / "set", branches=True, tokenizer=tiny_tokenizer, max_tokens=700)
    curated = open_set(tmp_path / "set")
    assert curated.rejected().select("source_index", "branch", "rule").collect().rows() == [(0, 3, "too_long")]
    assert table(curated).filter(source_index=0)["branch"].unique().to_list() == [0, 1, 2]


def test_a_set_of_an_earlier_version_has_no_branches(branched: CuratedSet, tmp_path: Path) -> None:
    for name in ("conversations.parquet", "rejected.parquet"):
        pl.read_parquet(branched.path / name).drop("branch").write_parquet(tmp_path / name)
    (tmp_path / "manifest.json").write_bytes((branched.path / "manifest.json").read_bytes())
    assert table(open_set(tmp_path))["branch"].unique().to_list() == [0]
    assert list(arrow.read_batches(tmp_path))
