"""Kinds of dirt added to existing conversations: which conversations get each kind, and how it changes the row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from layouts import LAYOUTS

Row = dict[str, Any]
ROOT = f'<div class="{LAYOUTS["v3"].root}">'
EMPTY = ROOT + "</div>"
RATE_LIMIT = ROOT + "<p>{}Too many requests in 1 hour. Try again later.</p></div>"


def digest(name: str) -> int:
    """Return a stable number for a name, used for ids and the order of rows."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def leading_answer(row: Row) -> None:
    text = ROOT + "<p>…continued from an earlier conversation.</p></div>"
    row["conversations"].insert(0, {"from": "gpt", "value": text})


def trailing_prompt(row: Row) -> None:
    row["conversations"].append({"from": "human", "value": "continue"})


def two_prompts(row: Row) -> None:
    row["conversations"].insert(0, {"from": "human", "value": "Hello, one question."})


def two_answers(row: Row) -> None:
    row["conversations"].append(
        {"from": "gpt", "value": ROOT + "<p>Is there anything else you would like to know?</p></div>"}
    )


def empty_answer(row: Row) -> None:
    row["conversations"][1]["value"] = EMPTY


def blank_answer(row: Row) -> None:
    row["conversations"][3]["value"] = ROOT + "<p>\u200b</p></div>"


def no_text_answer(row: Row) -> None:
    row["conversations"][3]["value"] = ""


def rate_limit(row: Row) -> None:
    row["conversations"][3]["value"] = RATE_LIMIT.format("!" if digest(row["id"]) % 2 else "")


def plugins(row: Row) -> None:
    row["plugins"] = [{"id": "plugin-0f3a", "name": "Trip Planner"}]


def extra_keys(row: Row) -> None:
    row.update(title="New chat", model="text-davinci-002-render-sha", created=1681231231)
    row["url"] = f"https://www.example.org/c/{row['id']}"
    for turn in row["conversations"]:
        turn.update(markdown=None, text=None)


def regenerate_noise(row: Row) -> None:
    row["conversations"][1]["value"] = "<div>2 / 3</div>" + row["conversations"][1]["value"]


def counter_noise(row: Row) -> None:
    counter = '<div class="text-xs flex items-center"><span class="flex-grow flex-shrink-0">1 / 2</span></div>'
    row["conversations"][1]["value"] = counter + row["conversations"][1]["value"]


def copy_chars_noise(row: Row) -> None:
    row["conversations"][1]["value"] += "<div>Copy12 chars / 34 words</div>"


def role_names(human: str, gpt: str) -> Callable[[Row], None]:
    def rename(row: Row) -> None:
        for turn in row["conversations"]:
            turn["from"] = human if turn["from"] == "human" else gpt

    return rename


def system_message(row: Row) -> None:
    row["conversations"].insert(0, {"from": "system", "value": "Answer briefly, and say so when you do not know."})


def items_key(row: Row) -> None:
    row["items"] = row.pop("conversations")


def invisible_character(row: Row) -> None:
    row["conversations"][0]["value"] = "\u200b" + row["conversations"][0]["value"]


def windows_line_ends(row: Row) -> None:
    row["conversations"][0]["value"] += "\r\n\r\nPlease be brief.\r\n"


IN_PLACE: dict[str, tuple[tuple[str, ...], Callable[[Row], None]]] = {
    "leading_answer": (("weekday-0-de", "units-1", "ja-keigo"), leading_answer),
    "trailing_prompt": (("units-2", "country-1-ko", "country-2-es", "sourdough", "ko-kimchi"), trailing_prompt),
    "two_prompts": (("train-0-en", "regex-date"), two_prompts),
    "two_answers": (("train-1-en", "poem"), two_answers),
    "empty_answer": (("country-3-en", "elements-3"), empty_answer),
    "blank_answer": (("elements-5",), blank_answer),
    "no_text_answer": (("country-4-de",), no_text_answer),
    "rate_limit": (("elements-6", "units-3", "country-5-en"), rate_limit),
    "plugins": (("weekday-2-en", "train-3-es"), plugins),
    "extra_keys": (("csv-median", "git-undo", "country-0-ja", "de-fahrrad", "elements-7"), extra_keys),
    "regenerate_noise": (("elements-1", "units-4", "es-ahorro"), regenerate_noise),
    "counter_noise": (("code-rust", "weekday-1-en"), counter_noise),
    "copy_chars_noise": (("elements-2", "interview"), copy_chars_noise),
    "role_bing": (("train-2-en",), role_names("human", "bing")),
    "role_bard": (("train-2-ja",), role_names("human", "bard")),
    "role_chatgpt": (("links", "train-3-ko"), role_names("user", "chatgpt")),
    "role_assistant": (("packing", "es-porque"), role_names("user", "assistant")),
    "role_model": (("de-energie",), role_names("user", "model")),
    "system_message": (("sql-top", "country-0-de"), system_message),
    "items_key": (("rust-borrow", "ja-haiku"), items_key),
    "invisible_character": (("discount-0-ko", "train-0-es", "photosynthesis"), invisible_character),
    "windows_line_ends": (("c-strings",), windows_line_ends),
}
