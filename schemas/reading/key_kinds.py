"""What keys beside the turns, or beside a turn's role and text, say about them, whatever the format.

A key of a known kind is looked up in one table, so that other keys cost one lookup each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import Literal

from curate.schemas.conversation import Conversation

Kind = Literal["media", "bad_if_true", "bad_if_false", "chosen", "rejected", "completion", "turns"]

CHOSEN_KEYS = ("chosen", "chosen_messages", "chosen_response", "preferred_output")
REJECTED_KEYS = ("rejected", "rejected_messages", "rejected_response", "non_preferred_output")
ANSWER_KEYS = ("completion", "response", "answer", "output", "target")
COMPLETION_KEYS = ("completion", "response")  # an answer beside turns; `answer` there may be a test's solution
TURN_KEYS = ("conversations", "items", "messages", "instruction")
BAD_IF_FALSE = (
    *("label", "kto_tag", "desirable", "is_desirable", "accepted", "is_accepted", "approved", "is_approved"),
    *("is_safe",),
)
BAD_IF_TRUE = (
    *("toxic", "is_toxic", "redacted", "is_redacted", "flagged", "is_flagged", "harmful", "is_harmful", "is_unsafe"),
)
FALSE_WORDS = frozenset({"false", "f", "no", "n", "off", "bad", "undesirable", "rejected"})
TRUE_WORDS = frozenset({"true", "t", "yes", "y", "on"})
EMPTY_WORDS = frozenset({"", "null", "none", "nan", "[]", "{}"})  # also as CSV and tables write them
TRUE_SHARE = 0.5  # a score of at least this much, such as `toxic: 0.9`, means true

_MEDIA = ("image", "img", "picture", "photo", "video", "audio", "speech")
_SUFFIXES = ("url", "path", "file", "filename", "file_name", "name", "id", "data", "bytes", "base64", "b64", "list")


def _media_keys() -> list[str]:
    singular = [*_MEDIA, *(f"{name}_{suffix}" for name, suffix in product(_MEDIA, _SUFFIXES))]
    mixed = [f"{name}s_{suffix}" for name, suffix in product(_MEDIA, _SUFFIXES)]
    google = [
        f"{place}{name}" for place in ("drive", "inline") for name in ("Image", "Video", "Audio", "File", "Document")
    ]
    others = ["pixel_values", "input_image", "input_audio", "inlineData", "youtubeVideo"]
    return [*singular, *(f"{name}s" for name in singular), *mixed, *google, *others]


def _spellings(key: str) -> set[str]:
    """Return a key in its spellings: image_url, Image_url, IMAGE_URL, imageUrl."""
    first, *others = key.split("_")
    return {key, key.capitalize(), key.upper(), first + "".join(word.capitalize() for word in others)}


_TABLE: dict[Kind, tuple[str, ...]] = {
    "media": tuple(_media_keys()),
    "bad_if_true": BAD_IF_TRUE,
    "bad_if_false": BAD_IF_FALSE,
}
KINDS: dict[str, Kind] = {
    **{spelling: kind for kind, names in _TABLE.items() for name in names for spelling in _spellings(name)},
    **dict.fromkeys(CHOSEN_KEYS, "chosen"),
    **dict.fromkeys(REJECTED_KEYS, "rejected"),
    **dict.fromkeys(COMPLETION_KEYS, "completion"),
    **dict.fromkeys(TURN_KEYS, "turns"),
}
SPECIAL_KEYS = frozenset(KINDS)
# Marks of a turn that a record has too: it is not trained on, as if it had a bad label.
_RECORD_MARKS: dict[Kind, tuple[str, ...]] = {
    "bad_if_false": (
        "weight",
        "loss_weight",
        "train",
        "trainable",
        "is_train",
        "is_trainable",
        "train_on",
        "learn",
        "compute_loss",
    ),
    "bad_if_true": ("no_train", "deleted", "is_deleted"),
}
RECORD_MARKS: dict[str, Kind] = {
    spelling: kind for kind, names in _RECORD_MARKS.items() for name in names for spelling in _spellings(name)
}

TurnKind = Literal[
    "reasoning",
    "train",
    "masked",
    "train_parts",
    "train_reasoning",
    "end",
    "cut_if_true",
    "cut_if_false",
    "hidden_if_true",
    "hidden_if_false",
    "channel",
    "recipient",
    "call_id",
    "context",
    "files",
    "alternative",
]
_TURN_TABLE: dict[TurnKind, tuple[str, ...]] = {
    "reasoning": (
        *("reasoning_content", "reasoning", "thinking", "thought", "thoughts", "reasoning_details", "reasoning_text"),
        *("thinking_content", "think", "cot", "chain_of_thought", "Complex_CoT", "CoT", "complex_cot"),
    ),
    "train": (
        *("weight", "loss_weight", "loss", "loss_mask", "train", "trainable", "training", "train_on", "learn"),
        *("is_train", "is_trainable", "supervised", "include_in_loss", "compute_loss", "loss_scale", "train_on_turn"),
    ),
    "masked": ("mask", "masked", "is_masked", "no_loss", "no_train", "ignore", "ignore_loss", "exclude_from_loss"),
    "train_parts": ("train_detail", "train_details", "training_detail"),
    "train_reasoning": ("train_reasoning",),  # curate's own
    "end": ("finish_reason", "stop_reason", "done_reason", "finish_details", "incomplete_details", "status"),
    "cut_if_true": (
        "unfinished",
        "truncated",
        "is_truncated",
        "incomplete",
        "is_incomplete",
        "interrupted",
        "cut_off",
        "partial",
    ),
    "cut_if_false": ("stop", "end_turn", "complete", "is_complete", "completed", "finished", "is_finished", "done"),
    "hidden_if_true": (
        *("hidden", "is_hidden", "deleted", "is_deleted", "removed", "is_visually_hidden_from_conversation"),
    ),
    "hidden_if_false": ("visible", "is_visible"),
    "channel": ("channel",),
    "recipient": ("recipient",),
    "call_id": ("tool_call_id", "tool_use_id", "call_id"),
    "context": ("context", "contexts", "documents", "document", "passages", "passage", "input"),
    "alternative": ("rank", "label", "kto_tag", "candidate", "alternative", "choice"),
    "files": ("files", "file", "attachments", "attachment", "attached_files", "experimental_attachments"),
}
TURN_KINDS: dict[str, TurnKind] = {
    spelling: kind for kind, names in _TURN_TABLE.items() for name in names for spelling in _spellings(name)
}
METADATA_KEYS = ("metadata", "meta", "extra", "info", "additional_kwargs", "response_metadata")  # objects beside a text
CLASS_LABELS = ("label", "kto_tag")  # within metadata, a label may be the number of a class


def has_content(value: object) -> bool:
    """Return whether a value holds anything: not null, blank, false, 0, or a list or an object of such values."""
    if isinstance(value, str):
        return value.strip().casefold() not in EMPTY_WORDS
    if isinstance(value, list):
        return any(map(has_content, value))
    if isinstance(value, dict):
        return any(map(has_content, value.values()))
    return bool(value) and value == value  # NaN is not equal to itself


def is_true(value: object) -> bool:
    """Return whether a value means true, in any spelling; a list, if any of its values does."""
    if isinstance(value, list):
        return any(map(is_true, value))
    number = to_number(value)
    if number is not None:
        return number >= TRUE_SHARE
    return isinstance(value, str) and value.strip().casefold() in TRUE_WORDS


def is_false(value: object) -> bool:
    """Return whether a value means false, in any spelling; a list, if any of its values does."""
    if isinstance(value, list):
        return any(map(is_false, value))
    number = to_number(value)
    if number is not None:
        return number <= 0
    return isinstance(value, str) and value.strip().casefold() in FALSE_WORDS


def to_number(value: object) -> float | None:
    """Return a number, also as text; true is 1, false 0. None for what is no number."""
    if not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number


def flag_label(conversation: Conversation, key: str, kind: Kind, value: object, message: int | None) -> None:
    """Flag a message, or the record (None), whose label says that it must not be trained on."""
    if is_true(value) if kind == "bad_if_true" else is_false(value):
        where = "the record" if message is None else f"turn {message}"
        shown = str(value)[:40]
        conversation.flaw("bad_label", message, f"{where} has {key!r}: {shown}", f"{key}: {shown}")


def metadata_objects(keys: Mapping[str, object]) -> list[dict[str, object]]:
    """Return the objects of metadata among the keys of a turn or a record."""
    return [value for key in METADATA_KEYS if isinstance(value := keys.get(key), dict)]


def flag_nested_labels(conversation: Conversation, metadata: Mapping[str, object], message: int | None) -> None:
    """Flag a message, or the record (None), whose metadata has a bad label, or for a record a mark for training."""
    for key, value in metadata.items():
        kind = KINDS.get(key) or (RECORD_MARKS.get(key) if message is None else None)
        if (kind == "bad_if_true" or kind == "bad_if_false") and key.casefold() not in CLASS_LABELS:
            flag_label(conversation, key, kind, value, message)
