"""Mojibake, hidden characters and marks of templates: found, mended outside code, and never elsewhere."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import curate
from curate.filters import encoding
from curate.pipeline import recipe

NAMES = ("mojibake", "hidden_characters", "template_leftovers")
LONG = 60_000  # characters: minutes, if a rule were quadratic


def clean(folder: Path, answer: str, filters: dict[str, object]) -> pl.DataFrame:
    """Clean one chat with this answer, and return its row."""
    turns = [{"role": "user", "content": "Please write this down for me."}, {"role": "assistant", "content": answer}]
    (folder / "dump.jsonl").write_text(json.dumps({"messages": turns}), "utf-8")
    curate.clean(folder / "dump.jsonl", folder / "set", recipe=recipe.from_dict({"filters": filters}), force=True)
    return pl.read_parquet(folder / "set" / "conversations.parquet")


@pytest.mark.parametrize(
    ("damaged", "whole"),
    [
        ("It isnâ€™t cleverâ€”no.", "It isn’t clever—no."),
        ("naÃ¯ve façade", "naïve façade"),
        ("ðŸ˜€ smile", "😀 smile"),
        ("РџСЂРёРІРµС‚ РјРёСЂ", "Привет мир"),
        ("Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "привет"),
        ("`Ã©` is Ã©", "`Ã©` is é"),
        ("Ã©\n```\nx = 'Ã©'\n```\nÃ©", "é\n```\nx = 'Ã©'\n```\né"),
    ],
)
def test_mojibake_is_mended_outside_code(damaged: str, whole: str) -> None:
    pytest.importorskip("ftfy")
    assert encoding.mend([damaged]) == [whole]


@pytest.mark.parametrize(
    "text",
    [
        "CAFÉ “PÃO” l’été…",
        "“NÃO”, disse ela: «São Paulo é ótimo».",
        "„Übergröße“ und GRÜẞE – 10 µm ± 5 °C × 2",
        "Привет, мир! Россия: «Сегодня»",
        "你好，世界",
        "ÆØÅ, Đorđe, Żółć, İstanbul",
        "∂Ω, √2, ½ ÷ ¼",
    ],
)
def test_text_that_is_whole_is_no_mojibake(text: str) -> None:
    assert encoding.mend([text]) == [None]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("zero\u200bwidth, bell\x07, \ufeffmark", "zerowidth, bell, mark"),
        ("\u202aleft\u202c and \u2067right\u2069", None),
        ("\u202aopen", "open"),
        ("closed\u202c", "closed"),
        ("a\u2067b\u2069c\u2069", "a\u2067b\u2069c"),
        ("\u2067a\nb\u2069", "a\nb"),
        ("e\u0301te\u0301", "été"),
        ("`a\u200bb` a\u200bb", "`a\u200bb` ab"),
        ("می\u200cخواهم 👩\u200d🔬 ❤\ufe0f\ttab", None),
    ],
)
def test_hidden_characters_go_and_pairs_of_direction_marks_stay(before: str, after: str | None) -> None:
    assert encoding.reveal([before]) == [after]


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("ab \n`é\u0301\u200b\u202a\u202c\u2067\u2069"), max_size=40))
def test_nothing_that_can_be_seen_changes(text: str) -> None:
    after = encoding.reveal([text])[0]
    assert after is None or visible(after) == visible(text)


def visible(text: str) -> str:
    return unicodedata.normalize("NFC", re.sub(f"[{encoding.HIDDEN}{encoding.BIDI}]", "", text))


def test_strict_repairs_what_vicuna_flags(tmp_path: Path) -> None:
    pytest.importorskip("ftfy")
    damaged = "It isnâ€™t zero\u200bwidth, my friend, and it never was."
    flagged = clean(tmp_path, damaged, {name: dict(recipe.load("vicuna").filters[name]) for name in NAMES})
    assert flagged.select(NAMES).row(0) == (1, 1, 0)
    assert flagged["messages"][0][1]["content"] == damaged
    repaired = clean(tmp_path, damaged, {name: dict(recipe.load("strict").filters[name]) for name in NAMES})
    assert repaired["messages"][0][1]["content"] == "It isn’t zerowidth, my friend, and it never was."
    assert repaired["edit_names"][0].to_list() == ["hidden_characters", "mojibake"]
    assert repaired.select("mojibake", "hidden_characters").row(0) == (0, 0)


@pytest.mark.parametrize(
    ("answer", "count"),
    [
        ("The Nile.<|im_end|>", 1),
        ("The Nile.<|eot_id|><|start_header_id|>user<|end_header_id|>", 1),
        ("[INST] Name a river. [/INST] The Nile.", 1),
        ("The Nile.\n### Assistant: The Rhine.", 1),
        ("The Nile.\nAssistant: The Rhine.", 1),
        ("It ends with `<|im_end|>`.", 0),
        ("```\n<|im_start|>user\n```", 0),
        ("The assistant: a person who helps. ### A heading", 0),
        ("Use <|> in F#, and a <b|c>.", 0),
    ],
)
def test_marks_of_templates_are_counted_outside_code(answer: str, count: int) -> None:
    frame = pl.DataFrame({"answers": [[answer]]})
    assert encoding.template_texts(frame).item() == count


@pytest.mark.parametrize(
    "unit",
    [
        *("â€™", "donâ€™t\n", "ÃƒÂ¢Ã¢â€šÂ¬", "```\nÃ©\n```\n", "`a", "`Ã©`", "\u202a", "\u202a\u202c", "\u2069\u202a"),
        *("e\u0301\u0323", "\u200b", "Р°", "é”", "<|im_end", "[INST", "### "),
    ],
)
def test_long_hostile_texts_take_linear_time(unit: str) -> None:
    pytest.importorskip("ftfy")
    text = unit * (LONG // len(unit)) + "Ã©\u200b"
    assert len(encoding.mend([text])) == len(encoding.reveal([text])) == 1
    frame = pl.DataFrame({"prompts": [[text]], "answers": [[text]]})
    assert encoding.template_texts(frame).height == encoding.garbled_texts(frame).height == 1


def test_only_texts_with_unpaired_direction_marks_count_as_hidden() -> None:
    answers = ["\u202apaired\u202c", "\u202aopen", "zero\u200bwidth", "plain", "\u2067two\nlines\u2069"]
    frame = pl.DataFrame({"prompts": [["ask"]] * 5 + [[]], "answers": [[answer] for answer in answers] + [[]]})
    assert encoding.hidden_texts(frame)["hidden_characters"].to_list() == [0, 1, 1, 0, 1, 0]
