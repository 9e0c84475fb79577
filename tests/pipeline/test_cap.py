"""Limits on how many conversations of a group a set has: which are kept, and what is said about the others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import curate
from curate.errors import RecipeError
from curate.filters import caps, registry
from curate.ingest import decode
from curate.pipeline import recipe
from curate.pipeline.run import CleanResult
from tests.support.clean_results import kept, rejected

KEYS = st.integers(0, 3)


def chat(name: str | None, prompt: str, answer: str, **keys: object) -> dict[str, object]:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {"id": name, "messages": turns, **keys}


class Clean(Protocol):
    def __call__(self, records: Sequence[object], workers: int = 1, **limits: object) -> CleanResult: ...


@pytest.fixture
def clean(tmp_path: Path, tiny_tokenizer: str) -> Clean:
    """Return a function that cleans records with `cap`, exact duplicates, and no other filter."""

    def run(records: Sequence[object], workers: int = 1, **limits: object) -> CleanResult:
        size = -(-len(records) // workers)
        files = [tmp_path / f"dump{number or ''}.jsonl" for number in range(workers)]
        for number, file in enumerate(files):
            file.write_text("\n".join(map(json.dumps, records[number * size :][:size])), "utf-8")
        tokens = {"tokenizer": tiny_tokenizer, "max_tokens": 10_000}
        filters = {"exact_duplicates": True, "cap": limits}
        used = recipe.from_dict({"filters": filters, "tokens": tokens})
        return curate.clean(files, tmp_path / "set", recipe=used, force=True, workers=workers)

    return run


def test_the_best_of_a_cluster_are_kept_and_the_others_say_why(clean: Clean) -> None:
    records = [
        chat("short", "Why?", "So."),
        chat("longest", "Why?", "Because of the rain."),
        chat("long", "Why?", "For its own sake."),
        chat("other", "How?", "So."),
    ]
    result = clean(records, cluster=2)
    assert kept(result) == {"longest", "long", "other"}
    row = rejected(result)["short"]
    assert (row["rule"], row["twin"]) == ("cap", None)
    assert row["reason"].endswith(": number 3 of 3 from the best, at most 2 are kept")
    assert row["evidence"] == "7 characters, 2 messages, 0 not trained"
    counts = result.manifest.counts
    assert (counts.read, counts.kept, counts.rules["cap"].first, counts.rules["cap"].alone) == (4, 3, 1, 1)


def test_each_kind_of_group_has_its_own_limit(clean: Clean) -> None:
    korean = "서울은 한국의 수도이며 아주 큰 도시입니다. 많은 사람들이 삽니다"
    english = "The capital of France is Paris, which is a large and lively city on the Seine"
    records = [
        chat("a", "one", f"{english} one.", model="gpt-4"),
        chat("b", "two", f"{english}, two.", model="gpt-4"),
        chat("c", "three", f"{english}, or three."),
        chat("d", "four", f"{korean} 하나."),
        chat("e", "five", f"{korean}."),
    ]
    assert kept(clean(records, cluster=0, model=1)) == {"b", "c", "d", "e"}  # no model is no group
    assert kept(clean(records, cluster=0, language=2)) == {"b", "c", "d", "e"}
    assert kept(clean(records, cluster=0, language=1, model=1)) == {"c", "d"}
    result = clean(records, source_file=2)
    assert kept(result) == {"b", "c"}
    assert rejected(result)["d"]["reason"].startswith("source file dump.jsonl: number ")


def test_a_copy_of_a_capped_conversation_says_so_and_names_no_twin(clean: Clean) -> None:
    records = [chat("best", "Why?", "Because of it."), chat("a", "Why?", "So."), chat("b", "Why?", "So.")]
    result = clean(records, cluster=1)
    rows = rejected(result)
    assert rows["a"]["rule"] == "cap"
    assert (rows["b"]["rule"], rows["b"]["twin"]) == ("exact_duplicates", None)
    assert rows["b"]["reason"] == "the same as a (dump.jsonl:1), which cap drops"


def test_a_capped_conversation_leaves_its_id_to_a_kept_one(clean: Clean) -> None:
    records = [chat("x", "Why?", "So."), chat("x", "Why?", "Because of it.")]
    rows = pl.read_parquet(clean(records, cluster=1).output / "conversations.parquet")
    assert rows["id"].to_list() == ["x"]


@pytest.mark.parametrize(
    ("limits", "message"),
    [({"cluster": -1}, "cluster = -1 is not allowed"), ({"cluster": 0}, "has no limit; give one of cluster,")],
)
def test_a_limit_that_means_nothing_is_an_error(limits: dict[str, int], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        registry.check("cap", limits)


ROWS: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    untrained=KEYS,
    characters=KEYS,
    messages=KEYS,
    last=st.integers(0, 20),
    source_id=st.sampled_from([None, "a", "b"]),
    protected=st.booleans(),
    source_file=st.sampled_from(["f", "g"]),
    model=st.sampled_from([None, "m", "n"]),
    cluster=st.sampled_from(["1", "2"]),
    language=st.sampled_from(["en", "ko"]),
)
LIMITS = st.fixed_dictionaries(dict.fromkeys(["cluster", "source_file", "model", "language"], KEYS))


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(ROWS, min_size=1, max_size=20), limits=LIMITS, random=st.randoms(use_true_random=False))
def test_no_group_exceeds_its_limit_and_order_decides_nothing(
    rows: list[dict[str, Any]], limits: dict[str, int], random: Any
) -> None:
    def drop(chats: list[dict[str, Any]]) -> list[dict[str, Any]]:
        frame = pl.DataFrame(chats, schema_overrides={"model": pl.String, "source_id": pl.String}).with_row_index("row")
        dropped = set(caps.cap(frame, **limits)["row"])
        return [chat for place, chat in enumerate(chats) if place not in dropped]

    stay = drop(rows)
    again = drop(random.sample(rows, len(rows)))
    assert sorted(map(repr, stay)) == sorted(map(repr, again))
    assert [row for row in stay if row["protected"]] == [row for row in rows if row["protected"]]
    for group, limit in limits.items():
        named = [row for row in stay if row[group] is not None]
        own = Counter(row[group] for row in named if row["protected"])
        assert not limit or all(size <= max(limit, own[key]) for key, size in Counter(r[group] for r in named).items())


@pytest.mark.slow
@settings(
    max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate]
)
@given(
    chats=st.lists(st.tuples(st.integers(0, 5), KEYS), min_size=4, max_size=30),
    random=st.randoms(use_true_random=False),
)
def test_a_set_has_the_same_conversations_for_any_order_and_number_of_workers(
    clean: Clean, chats: list[tuple[int, int]], random: Any
) -> None:
    # copies have the same model: of those, the first in the dump is kept
    records = [chat(None, f"What is {p}?", "It is. " * (a + 1), model=str((p + a) % 2)) for p, a in chats]

    def contents(result: CleanResult) -> list[str]:
        return sorted(map(repr, pl.read_parquet(result.output / "conversations.parquet")["messages"].to_list()))

    first = contents(clean(records, cluster=2, model=3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "BATCH_BYTES", 1)  # each file is a part
        second = clean(random.sample(records, len(records)), workers=2, cluster=2, model=3)
    assert second.manifest.run is not None and second.manifest.run.workers == 2
    assert contents(second) == first
