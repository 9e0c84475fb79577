"""A real dump: every record and message that was read is kept, or rejected or cut by a named rule."""

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

# For each malformed kind of `injected.json`, the edit that repairs its three rows, or the rule that rejects them.
REPAIRED = {
    "FATAL_null_value": "empty_value",
    "FATAL_number_value": "value_to_text",
    "FATAL_list_value": "parts_joined",
    "FATAL_missing_value": "empty_value",
    "FATAL_missing_from": "role_inferred",
    "FATAL_missing_id": None,  # an id is created, which is not an edit
    "FATAL_int_id": "id_to_text",
    "FATAL_list_id": "id_to_text",
    "FATAL_lone_surrogate_answer": "lone_surrogate",
    "FATAL_lone_surrogate_prompt": "lone_surrogate",
    "FATAL_deep_nesting": "html_to_markdown",
    "FATAL_conversations_dict": "turns_from_dict",
}
REJECTED = {
    "FATAL_non_dict_turn": "bad_turn",
    "FATAL_null_turn": "bad_turn",
    "FATAL_missing_conversations": "no_messages",
    "FATAL_null_conversations": "no_messages",
    "FATAL_row_null": "not_a_record",
    "FATAL_row_string": "not_a_record",
}
# A malformed row that is a duplicate of an intact row once it is repaired.
TWINS = {"Iar5vs0": "vDRBPa3"}
# Clean conversations with two prompts in a row, which are joined.
JOINED = {"BGaeYv9", "PA6vXhr"}


@dataclass(frozen=True)
class Run:
    """The dump before and after cleaning; rows of the set by their index in the dump."""

    dump: list[Any]
    injected: dict[str, list[Any]]
    counts: Row
    kept: dict[int, Row]
    rejected: dict[int, Row]
    lost: dict[int, list[Row]]
    originals: dict[int, bytes]

    def clean(self) -> dict[int, Row]:
        """Return the dump's rows without dirt, by index."""
        dirty = {_name(entry) for entries in self.injected.values() for entry in entries}
        rows = ((at, row) for at, row in enumerate(self.dump) if isinstance(row, dict))
        return {at: row for at, row in rows if isinstance(row.get("id"), str) and row["id"] not in dirty}

    def malformed(self, kind: str) -> list[int]:
        """Return the indices of the rows of one malformed kind."""
        names = self.injected[kind]
        if "no id" not in names:
            return [at for at, row in enumerate(self.dump) if isinstance(row, dict) and row.get("id") in names]
        shapes: dict[str, type] = {"FATAL_row_null": type(None), "FATAL_row_string": str, "FATAL_missing_id": dict}
        rows = [at for at, row in enumerate(self.dump) if isinstance(row, shapes[kind])]
        return [at for at in rows if not isinstance(self.dump[at], dict) or "id" not in self.dump[at]]


def _name(entry: object) -> str:
    return str(entry["id"] if isinstance(entry, dict) else entry)


def _read(path: Path) -> Any:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)


@pytest.fixture(scope="module")
def run(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    source, folder = shared / "data" / "sharegpt_dirty.json.gz", tmp_path_factory.mktemp("shared") / "curated"
    result = curate.clean(source, folder, max_tokens=1_000_000, tokenizer=str(shared / "tokenizers" / "llama2"))
    curated = curate.open_set(folder)
    rejected = curated.rejected().collect().to_dicts()
    lost: defaultdict[int, list[Row]] = defaultdict(list)
    for row in rejected:
        if row["scope"] == "exchange":
            lost[row["source_index"]].append(row)
    originals = curated.originals()
    assert originals is not None
    return Run(
        dump=_read(source),
        injected=json.loads((shared / "data" / "injected.json").read_text("utf-8"))["rows"],
        counts=result.manifest["counts"],
        kept={row["source_index"]: row for row in curated.conversations().collect().to_dicts()},
        rejected={row["source_index"]: row for row in rejected if row["scope"] == "record"},
        lost=lost,
        originals={row["source_index"]: row["record"] for row in originals.collect().to_dicts()},
    )


@pytest.fixture(scope="module")
def sources(shared: Path) -> dict[str, list[Row]]:
    """Return the turns of each conversation before it was rendered as HTML and made dirty."""
    return {row["id"]: row["conversations"] for row in _read(shared / "data" / "source_markdown.json.gz")}


def test_every_record_read_is_kept_or_rejected(run: Run) -> None:
    assert run.counts["read"] == len(run.dump) == 7_945
    assert run.counts["kept"] == len(run.kept)
    assert run.counts["rejected"] == len(run.rejected) == sum(rule["first"] for rule in run.counts["rules"].values())
    assert sorted([*run.kept, *run.rejected]) == list(range(len(run.dump)))
    assert set(run.lost) <= set(run.kept) and run.counts["rejected_exchanges"] == sum(map(len, run.lost.values()))


def test_the_original_of_every_rejected_or_changed_record_is_kept(run: Run) -> None:
    for at, row in run.rejected.items():
        assert json.loads(row["record"]) == run.dump[at]
    for at, raw in run.originals.items():
        assert json.loads(raw) == run.dump[at]
    assert {at for at, row in run.kept.items() if row["edits"] or at in run.lost} <= set(run.originals)


def test_the_tables_of_malformed_kinds_are_complete(run: Run) -> None:
    kinds = [kind for kind in run.injected if kind.startswith("FATAL_")]
    assert sorted(kinds) == sorted([*REPAIRED, *REJECTED])
    indices = [at for kind in kinds for at in run.malformed(kind)]
    assert len(indices) == len(set(indices)) == 54


@pytest.mark.parametrize("kind", REPAIRED)
def test_a_malformed_row_with_a_clear_meaning_is_repaired_and_kept(run: Run, kind: str) -> None:
    indices = run.malformed(kind)
    assert len(indices) == 3
    for at in indices:
        name = run.dump[at].get("id")
        if isinstance(name, str) and name in TWINS:
            assert run.rejected[at]["rule"] == "exact_duplicates"
            assert run.rejected[at]["twin"] == TWINS[name]
        else:
            assert (REPAIRED[kind] or "html_to_markdown") in {edit["rule"] for edit in run.kept[at]["edits"]}
            assert run.kept[at]["source_id"] == (name if isinstance(name, str) or name is None else _as_text(name))


def _as_text(name: object) -> str:
    return str(name) if isinstance(name, int) else json.dumps(name, separators=(",", ":"))


@pytest.mark.parametrize("kind", REJECTED)
def test_a_malformed_row_without_a_clear_meaning_is_rejected(run: Run, kind: str) -> None:
    indices = run.malformed(kind)
    assert len(indices) == 3
    assert [run.rejected[at]["rule"] for at in indices] == [REJECTED[kind]] * 3
    assert all(run.rejected[at]["reason"] for at in indices)


def test_rules_for_malformed_rows_reject_no_other_row(run: Run) -> None:
    malformed = {at for kind in REJECTED for at in run.malformed(kind)}
    empty = set(run.injected["empty_conversations"])
    for at, row in run.rejected.items():
        if row["rule"] in set(REJECTED.values()) | {"unreadable", "unknown_format"} and at not in malformed:
            assert run.dump[at]["id"] in empty, row


def test_a_clean_conversation_is_rejected_only_for_a_defect_in_its_source(
    run: Run, sources: dict[str, list[Row]]
) -> None:
    by_id = {row["id"]: row for row in run.kept.values()}
    for at, row in run.clean().items():
        if at in run.kept:
            continue
        turns, rule = _role_texts(sources[row["id"]]), run.rejected[at]["rule"]
        if rule == "exact_duplicates":
            prompts = [text for role, text in turns[:-1] if role == "human"]  # a prompt without an answer was cut
            twin = [m["content"] for m in by_id[run.rejected[at]["twin"]]["messages"] if m["role"] == "user"]
            assert twin[: len(prompts)] == prompts
        elif rule == "empty_answer":
            assert any(not text.strip("\u200b \n") for _, text in turns), row["id"]  # a zero-width space alone
        else:
            assert rule == "too_few_turns" and ("human", "gpt") not in {
                (turn[0], next_turn[0]) for turn, next_turn in pairwise(turns)
            }


def _role_texts(turns: list[Row]) -> list[tuple[str, str]]:
    return [(turn["from"], turn["value"].replace("\r\n", "\n").replace("\r", "\n")) for turn in turns]


def test_every_prompt_of_a_clean_conversation_is_unchanged_or_has_an_edit(
    run: Run, sources: dict[str, list[Row]]
) -> None:
    prompts, joined = 0, set()
    for at, row in run.clean().items():
        if at not in run.kept:
            continue
        turns, kept = _role_texts(sources[row["id"]]), run.kept[at]
        cut = _cut_messages(run, at)
        expected: list[str] = []
        for index, (role, text) in enumerate(turns):
            if role != "human" or index in cut:
                continue
            if _edit(kept, "join_turns", index):
                expected[-1] += f"\n\n{text}"
                joined.add(row["id"])
            else:
                expected.append(text)
        typed = [message["content"] for message in kept["messages"] if message["role"] == "user"]
        assert typed == expected, row["id"]
        prompts += len(typed)
        _original_holds(run, at, turns, cut)
    assert prompts > 28_000
    assert joined == JOINED


def _edit(kept: Row, rule: str, index: int) -> list[Row]:
    return [edit for edit in kept["edits"] if (edit["rule"], edit["message"]) == (rule, index)]


def _cut_messages(run: Run, at: int) -> dict[int, str]:
    """Return the indices of the messages cut from a kept record, with the text that their edit shows."""
    rules = ("leading_answer", "trailing_prompt", "empty_turn", "repeated_turn")
    texts = {edit["message"]: edit["before"] for edit in run.kept[at]["edits"] if edit["rule"] in rules}
    for row in run.lost.get(at, []):
        assert row["rule"] and row["reason"]
        texts |= dict.fromkeys(range(*row["message_range"]), "")
    return texts


def _original_holds(run: Run, at: int, expected: list[tuple[str, str]], cut: dict[int, str]) -> None:
    """Check that the cut text is in the original record, and begins as its edit says."""
    if not cut:
        return
    turns = json.loads(run.originals[at])["conversations"]
    for index, shown in cut.items():
        role, text = expected[index]
        assert turns[index]["from"] == role
        if role == "human":
            assert _role_texts(turns)[index][1] == text
            assert not shown or text[:SHOWN].startswith(shown[:SHOWN])


def test_every_answer_of_a_clean_conversation_is_kept_or_has_an_edit(run: Run, sources: dict[str, list[Row]]) -> None:
    for at, row in run.clean().items():
        if at not in run.kept:
            continue
        cut, kept = _cut_messages(run, at), run.kept[at]
        indices = [p for p, (role, _) in enumerate(_role_texts(sources[row["id"]])) if role == "gpt" and p not in cut]
        answers = [message for message in kept["messages"] if message["role"] == "assistant"]
        assert len(answers) + sum(len(_edit(kept, "join_turns", index)) for index in indices) == len(indices), row["id"]
        assert all(message["content"].strip() for message in answers)
