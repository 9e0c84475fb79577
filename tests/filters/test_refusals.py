"""Answers that decline are found by how they do so, in eight languages, and flagged, masked, removed or dropped."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import polars as pl
import pytest

import curate
from curate.errors import RecipeError
from curate.filters import chat, check, measure, phrases
from curate.filters.refusals import classify
from curate.pipeline import recipe
from curate.pipeline.run import CleanResult
from tests.filters.refusal_texts import ABOUT, DECLINING, expansions

REFUSAL = "I'm sorry, but I can't assist with that request."
BROWSING = "I'm sorry, but I cannot browse the internet."


def kind(text: str) -> str | None:
    (declining,) = classify(pl.Series([text]))
    return declining.kind if declining else None


@pytest.mark.parametrize("language", phrases.LANGUAGES)
def test_each_text_of_each_phrase_is_matched_by_the_phrase_itself_and_found(language: str) -> None:
    known = [phrase for phrase in phrases.read("refusals") if phrase.language == language]
    texts: list[str] = []
    for phrase in known:
        pattern, stems = re.compile(phrase.pattern), phrase.stems
        for text in expansions(phrase):
            normal = phrases.normalize(text, language in phrases.UNSPACED)
            assert pattern.search(normal), (phrase.text, text)
            assert any(stem in normal for stem in stems), (phrase.text, text)
            texts.append(text)
    for shown in (texts, [text.upper().replace("'", "’").replace(" ", "  ", 1) for text in texts]):
        assert [text for text, each in zip(shown, classify(pl.Series(shown)), strict=True) if each is None] == []


def test_no_list_of_phrases_repeats_a_text_or_goes_unused() -> None:
    for language in phrases.LANGUAGES:
        known = [phrase for phrase in phrases.read("refusals") if phrase.language == language]
        used = {name for phrase in known for name in re.findall(r"\{(\w+)\}", phrase.text)}
        for name, texts in known[0].lists.items():
            assert len(set(texts)) == len(texts), (language, name)
        assert known[0].lists.keys() - used == set(), language


def test_answers_about_refusals_models_racism_and_crime_are_not_hits() -> None:
    assert len(ABOUT) >= 60
    assert [text for text, each in zip(ABOUT, classify(pl.Series(ABOUT)), strict=True) if each] == []


def test_answers_that_decline_are_of_their_class_in_each_language() -> None:
    found = classify(pl.Series([text for _, text in DECLINING]))
    kinds = [(each.kind if each else None, text) for each, (_, text) in zip(found, DECLINING, strict=True)]
    assert kinds == list(DECLINING)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("Here it is. " * 20 + REFUSAL, "partial"),
        ("Here it is. " * 20 + REFUSAL + " Here it is." * 30, None),
        ("Here it is. " * 20 + "If it is closed, I can't help you with that.", None),
        (f'She said: "{REFUSAL}"', None),
        (f"Bot: {REFUSAL}", None),
        (f"> {REFUSAL}", None),
        (f"```\n{REFUSAL}\n```", None),
        (REFUSAL + " However, you could ask a lawyer.", "refusal"),
        (REFUSAL + " It would be wrong." * 40, "partial"),
        (REFUSAL + "\n\n1. Ask a lawyer.\n2. Ask a friend.", "partial"),
        (f"\n\n  {REFUSAL}", "refusal"),
        ("I'm sorry for your loss.", None),
        ("Sorry, that was wrong: the answer is 4.", None),
        ("I can't help but admire the design.", None),
        ("I cannot\u00a0assist with that.", "refusal"),
        ("I'm unable to physically visit you.", "capability"),
    ],
)
def test_only_an_answers_own_opening_and_last_sentence_count(text: str, expected: str | None) -> None:
    assert kind(text) == expected


def test_the_signal_has_an_entry_for_each_answer_and_counts_by_class() -> None:
    frame = pl.DataFrame({"answers": [[REFUSAL, "Yes.", BROWSING, REFUSAL], [], ["Yes."]]})
    first, second, third = measure(frame, {"declining_answers": {}}).drop("answers").iter_rows(named=True)
    assert first["declines"] == ["refusal", None, "capability", "refusal"]
    assert first["declining_sentences"] == [REFUSAL, None, BROWSING, REFUSAL]
    assert (first["refusals"], first["capability_limits"], first["refusal_share"]) == (2, 1, 0.5)
    assert (second["declines"], second["refusal_share"], third["declines"]) == ([], 0, [None])


def clean(tmp_path: Path, settings: Mapping[str, object] | bool, *answers: str) -> CleanResult:
    turns = [message for answer in answers for message in (("user", "Do as I say"), ("assistant", answer))]
    record = {"messages": [{"role": role, "content": text} for role, text in turns]}
    other = chat("A second conversation", "It is always kept.")
    (tmp_path / "dump.jsonl").write_text(f"{json.dumps(record)}\n{json.dumps(other)}\n", "utf-8")
    chosen = recipe.from_dict({"filters": {"refusals": settings}})
    return curate.clean(tmp_path / "dump.jsonl", tmp_path / "set", recipe=chosen, force=True)


def rows(result: CleanResult, name: str = "conversations") -> list[dict[str, object]]:
    return pl.read_parquet(result.output / f"{name}.parquet").to_dicts()


def test_by_default_the_exchange_of_a_refusal_is_removed_with_its_own_reject(tmp_path: Path) -> None:
    result = clean(tmp_path, True, "Yes, at once.", REFUSAL, BROWSING)
    (kept, _), (lost,) = rows(result), rows(result, "rejected")
    assert [message["content"] for message in kept["messages"]][1::2] == ["Yes, at once.", BROWSING]  # type: ignore[attr-defined]
    assert (lost["rule"], lost["scope"], lost["message_range"]) == ("refusals", "exchange", [2, 4])
    assert (lost["reason"], lost["evidence"]) == ("the answer is a refusal", REFUSAL)


def test_a_masked_answer_stays_and_is_not_trained_on(tmp_path: Path) -> None:
    row, _ = rows(clean(tmp_path, {"action": "mask", "classes": ["refusal", "capability"]}, "Yes.", REFUSAL, BROWSING))
    assert [message["train"] for message in row["messages"]] == [True, True, True, False, True, False]  # type: ignore[attr-defined]
    assert row["edit_names"] == ["refusals"]
    assert row["declines"] == [None, "refusal", "capability"]


@pytest.mark.parametrize(("share", "kept"), [(0.3, 0), (0.4, 1)])
def test_a_conversation_is_dropped_by_the_share_of_its_answers(tmp_path: Path, share: float, kept: int) -> None:
    result = clean(tmp_path, {"action": "drop", "share": share}, "Yes.", REFUSAL, "Yes, at once.")
    assert result.manifest.counts.kept == 1 + kept
    if not kept:
        (row,) = rows(result, "rejected")
        assert (row["reason"], row["evidence"]) == ("1 of 3 answers decline: refusal", REFUSAL)


@pytest.mark.parametrize(("action", "share", "left"), [("exchange", 0.3, 2), ("mask", 0.4, 3)])
def test_the_share_decides_for_exchanges_and_masks_too(tmp_path: Path, action: str, share: float, left: int) -> None:
    row, _ = rows(clean(tmp_path, {"action": action, "share": share}, "Yes.", REFUSAL, "Yes, at once."))
    assert len(row["messages"]) == 2 * left  # type: ignore[arg-type]
    assert all(message["train"] for message in row["messages"])  # type: ignore[attr-defined]


def test_flag_only_measures(tmp_path: Path) -> None:
    row, _ = rows(clean(tmp_path, {"action": "flag"}, REFUSAL))
    assert (row["refusals"], row["refusal_share"], row["edit_names"]) == (1, 1, [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"action": "dorp"}, "action = 'dorp'; did you mean 'drop'?"),
        ({"classes": []}, "classes must name at least one of refusal, capability, clarification, partial"),
        ({"classes": ["refusals"]}, "unknown class 'refusals' in classes; did you mean 'refusal'?"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        check("refusals", settings)
    assert message in str(error.value)


SIZE = 1 << 20  # bytes; minutes if time grew with the square
UNITS = (
    *(
        "I ",
        "I can't ",
        "I'm sorry, but I ",
        "sorry ",
        "as an ai ",
        "I cannot help ",
        "Could you ",
        "I can't\n",
        "'",
        "’",
    ),
    *(
        ". ",
        "\n",
        "- ",
        "1. ",
        "|",
        "| a ",
        "`",
        "```\n",
        '"',
        ">",
        "   ",
        "a",
        "抱歉，",
        "我无法",
        "申し訳ありません",
        "수 없습니다 ",
    ),
    *("no puedo ", "je ne peux pas ", "ich kann nicht ", "não posso ", "\U0001f600", "\0", REFUSAL + " "),
)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["", REFUSAL + " "], ids=["alone", "after a refusal"])
def test_hostile_answers_of_a_megabyte_take_no_longer_than_their_size(start: str) -> None:
    texts = [start + unit * (SIZE // len(unit.encode())) for unit in UNITS]
    assert len(classify(pl.Series(texts))) == len(texts) >= 30
