"""A real dump, cleaned once: every record and every message that was read is kept, or named with what took it."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import curate

pytestmark = pytest.mark.slow

Row = dict[str, Any]
SHOWN = 200  # characters of a text that an edit shows

# Each malformed kind of `injected.json`, and what becomes of its three rows: the edit that mends them, or the rule.
MENDED = {
    "FATAL_null_value": "empty_value",
    "FATAL_number_value": "value_to_text",
    "FATAL_list_value": "parts_joined",
    "FATAL_missing_value": "empty_value",
    "FATAL_missing_from": "role_inferred",
    "FATAL_missing_id": None,  # an id is made: there is nothing to mend
    "FATAL_int_id": "id_to_text",
    "FATAL_list_id": "id_to_text",
    "FATAL_lone_surrogate_answer": "lone_surrogate",
    "FATAL_lone_surrogate_prompt": "lone_surrogate",
    "FATAL_deep_nesting": "html_to_markdown",
    "FATAL_conversations_dict": "turns_from_dict",
}
REFUSED = {
    "FATAL_non_dict_turn": "bad_turn",
    "FATAL_null_turn": "bad_turn",
    "FATAL_missing_conversations": "no_messages",
    "FATAL_null_conversations": "no_messages",
    "FATAL_row_null": "not_a_record",
    "FATAL_row_string": "not_a_record",
}
# One malformed row that was mended and then is the same as a row that was whole.
TWINS = {"Iar5vs0": "vDRBPa3"}
# Clean conversations with two prompts in a row, which are joined.
JOINED = {"BGaeYv9", "PA6vXhr"}


@dataclass(frozen=True)
class Run:
    """The dump as it was before and after; rows of the set by their place in the dump."""

    dump: list[Any]
    injected: dict[str, list[Any]]
    counts: Row
    kept: dict[int, Row]
    rejected: dict[int, Row]
    lost: dict[int, list[Row]]
    originals: dict[int, bytes]

    def clean(self) -> dict[int, Row]:
        """Return the dump's rows that carry no dirt, by place."""
        dirty = {_name(one) for found in self.injected.values() for one in found}
        rows = ((at, row) for at, row in enumerate(self.dump) if isinstance(row, dict))
        return {at: row for at, row in rows if isinstance(row.get("id"), str) and row["id"] not in dirty}

    def malformed(self, kind: str) -> list[int]:
        """Return the places of the rows of one malformed kind."""
        found = self.injected[kind]
        if "no id" not in found:
            return [at for at, row in enumerate(self.dump) if isinstance(row, dict) and row.get("id") in found]
        shapes: dict[str, type] = {"FATAL_row_null": type(None), "FATAL_row_string": str, "FATAL_missing_id": dict}
        rows = [at for at, row in enumerate(self.dump) if isinstance(row, shapes[kind])]
        return [at for at in rows if not isinstance(self.dump[at], dict) or "id" not in self.dump[at]]


def _name(one: object) -> str:
    return str(one["id"] if isinstance(one, dict) else one)


def _read(path: Path) -> Any:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)


@pytest.fixture(scope="module")
def run(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    source, folder = shared / "data" / "sharegpt_dirty.json.gz", tmp_path_factory.mktemp("shared") / "curated"
    result = curate.clean(source, folder, max_tokens=1_000_000, tokenizer=str(shared / "tokenizers" / "llama2"))
    found = curate.open_set(folder)
    gone = found.rejected().collect().to_dicts()
    lost: defaultdict[int, list[Row]] = defaultdict(list)
    for row in gone:
        if row["scope"] == "exchange":
            lost[row["source_index"]].append(row)
    originals = found.originals()
    assert originals is not None
    return Run(
        dump=_read(source),
        injected=json.loads((shared / "data" / "injected.json").read_text("utf-8"))["rows"],
        counts=result.manifest["counts"],
        kept={row["source_index"]: row for row in found.conversations().collect().to_dicts()},
        rejected={row["source_index"]: row for row in gone if row["scope"] == "record"},
        lost=lost,
        originals={row["source_index"]: row["record"] for row in originals.collect().to_dicts()},
    )


@pytest.fixture(scope="module")
def sources(shared: Path) -> dict[str, list[Row]]:
    """The turns of each conversation before it was rendered as HTML and made dirty."""
    return {row["id"]: row["conversations"] for row in _read(shared / "data" / "source_markdown.json.gz")}


def test_what_was_read_is_kept_or_rejected_to_the_record(run: Run) -> None:
    assert run.counts["read"] == len(run.dump) == 7_945
    assert run.counts["kept"] == len(run.kept)
    assert run.counts["rejected"] == len(run.rejected) == sum(rule["first"] for rule in run.counts["rules"].values())
    assert sorted([*run.kept, *run.rejected]) == list(range(len(run.dump)))
    assert set(run.lost) <= set(run.kept) and run.counts["rejected_exchanges"] == sum(map(len, run.lost.values()))


def test_every_rejected_record_and_every_changed_one_is_kept_as_it_came(run: Run) -> None:
    for at, row in run.rejected.items():
        assert json.loads(row["record"]) == run.dump[at]
    for at, raw in run.originals.items():
        assert json.loads(raw) == run.dump[at]
    assert {at for at, row in run.kept.items() if row["edits"] or at in run.lost} <= set(run.originals)


def test_the_tables_of_malformed_kinds_are_whole(run: Run) -> None:
    kinds = [kind for kind in run.injected if kind.startswith("FATAL_")]
    assert sorted(kinds) == sorted([*MENDED, *REFUSED])
    places = [at for kind in kinds for at in run.malformed(kind)]
    assert len(places) == len(set(places)) == 54


@pytest.mark.parametrize("kind", MENDED)
def test_a_malformed_row_that_has_a_meaning_is_mended_and_kept(run: Run, kind: str) -> None:
    places = run.malformed(kind)
    assert len(places) == 3
    for at in places:
        name = run.dump[at].get("id")
        if isinstance(name, str) and name in TWINS:
            assert run.rejected[at]["rule"] == "exact_duplicates"
            assert run.rejected[at]["twin"] == TWINS[name]
        else:
            assert (MENDED[kind] or "html_to_markdown") in {edit["rule"] for edit in run.kept[at]["edits"]}
            assert run.kept[at]["source_id"] == (name if isinstance(name, str) or name is None else _as_text(name))


def _as_text(name: object) -> str:
    return str(name) if isinstance(name, int) else json.dumps(name, separators=(",", ":"))


@pytest.mark.parametrize("kind", REFUSED)
def test_a_malformed_row_without_a_meaning_is_rejected_alone(run: Run, kind: str) -> None:
    places = run.malformed(kind)
    assert len(places) == 3
    assert [run.rejected[at]["rule"] for at in places] == [REFUSED[kind]] * 3
    assert all(run.rejected[at]["reason"] for at in places)


def test_the_rules_for_malformed_rows_take_no_other(run: Run) -> None:
    malformed = {at for kind in REFUSED for at in run.malformed(kind)}
    empty = set(run.injected["empty_conversations"])
    for at, row in run.rejected.items():
        if row["rule"] in set(REFUSED.values()) | {"unreadable", "unknown_format"} and at not in malformed:
            assert run.dump[at]["id"] in empty, row


def test_a_clean_conversation_is_rejected_for_a_reason_that_its_source_shows(
    run: Run, sources: dict[str, list[Row]]
) -> None:
    by_id = {row["id"]: row for row in run.kept.values()}
    for at, row in run.clean().items():
        if at in run.kept:
            continue
        said, rule = _said(sources[row["id"]]), run.rejected[at]["rule"]
        if rule == "exact_duplicates":
            prompts = [text for role, text in said[:-1] if role == "human"]  # one without an answer was cut
            twin = [m["content"] for m in by_id[run.rejected[at]["twin"]]["messages"] if m["role"] == "user"]
            assert twin[: len(prompts)] == prompts
        elif rule == "empty_answer":
            assert any(not text.strip("\u200b \n") for _, text in said), row["id"]  # a zero-width space alone
        else:
            assert rule == "too_few_turns" and ("human", "gpt") not in {
                (one[0], other[0]) for one, other in pairwise(said)
            }


def _said(turns: list[Row]) -> list[tuple[str, str]]:
    return [(turn["from"], turn["value"].replace("\r\n", "\n").replace("\r", "\n")) for turn in turns]


def test_every_prompt_of_a_clean_conversation_is_as_it_was_typed_or_named_with_its_rule(
    run: Run, sources: dict[str, list[Row]]
) -> None:
    prompts, joined = 0, set()
    for at, row in run.clean().items():
        if at not in run.kept:
            continue
        said, kept = _said(sources[row["id"]]), run.kept[at]
        taken = _taken(run, at)
        expected: list[str] = []
        for place, (role, text) in enumerate(said):
            if role != "human" or place in taken:
                continue
            if _edit(kept, "join_turns", place):
                expected[-1] += f"\n\n{text}"
                joined.add(row["id"])
            else:
                expected.append(text)
        typed = [message["content"] for message in kept["messages"] if message["role"] == "user"]
        assert typed == expected, row["id"]
        prompts += len(typed)
        _original_holds(run, at, said, taken)
    assert prompts > 28_000
    assert joined == JOINED


def _edit(kept: Row, rule: str, place: int) -> list[Row]:
    return [edit for edit in kept["edits"] if (edit["rule"], edit["message"]) == (rule, place)]


def _taken(run: Run, at: int) -> dict[int, str]:
    """Return the places of the messages that were cut from a kept record, with the text that their edit shows."""
    cut = ("leading_answer", "trailing_prompt", "empty_turn", "repeated_turn")
    found = {edit["message"]: edit["before"] for edit in run.kept[at]["edits"] if edit["rule"] in cut}
    for row in run.lost.get(at, []):
        assert row["rule"] and row["reason"]
        found |= dict.fromkeys(range(*row["message_range"]), "")
    return found


def _original_holds(run: Run, at: int, said: list[tuple[str, str]], taken: dict[int, str]) -> None:
    """Check that what was cut stands in the original record, and begins as its edit says."""
    if not taken:
        return
    turns = json.loads(run.originals[at])["conversations"]
    for place, shown in taken.items():
        role, text = said[place]
        assert turns[place]["from"] == role
        if role == "human":
            assert _said(turns)[place][1] == text
            assert not shown or text[:SHOWN].startswith(shown[:SHOWN])


def test_no_answer_of_a_clean_conversation_goes_without_a_name(run: Run, sources: dict[str, list[Row]]) -> None:
    for at, row in run.clean().items():
        if at not in run.kept:
            continue
        taken, kept = _taken(run, at), run.kept[at]
        places = [p for p, (role, _) in enumerate(_said(sources[row["id"]])) if role == "gpt" and p not in taken]
        answers = [message for message in kept["messages"] if message["role"] == "assistant"]
        assert len(answers) + sum(len(_edit(kept, "join_turns", place)) for place in places) == len(places), row["id"]
        assert all(message["content"].strip() for message in answers)
