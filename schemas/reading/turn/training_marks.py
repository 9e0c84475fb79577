"""What the keys of a turn say about its use: not trained on, cut off, or not part of the visible chat."""

from __future__ import annotations

from collections.abc import Mapping

from curate.schemas.conversation import Conversation, Message
from curate.schemas.reading.key_kinds import TURN_KINDS, TurnKind, has_content, is_false, is_true, metadata_objects
from curate.schemas.reading.values import preview

HIDDEN = "hidden_turn"  # a flaw
PARTLY, UNCLEAR = "partly_trained", "unclear_train_mark"  # repairs

# How a provider says that an answer was cut off: OpenAI, Anthropic, Google, vLLM, Ollama, ChatGPT's export.
_CUT = frozenset(
    {"length", "max_tokens", "max_length", "max_output_tokens", "model_length", "model_context_window_exceeded"}
    | {"token_limit", "content_filter", "safety", "recitation", "prohibited_content", "blocklist", "spii", "error"}
    | {"interrupted", "incomplete", "in_progress", "streaming", "partial", "failed", "cancelled", "canceled"}
    | {"abort", "aborted", "timeout", "pause_turn", "client_disconnect"}
)
_SIDE_CHANNELS = frozenset({"analysis", "commentary"})  # OpenAI's harmony format: not shown to the user
_TRAIN = ("train", "masked", "train_reasoning")
_EVERYONE = frozenset({"", "all", "user", "assistant"})


def read_marks(conversation: Conversation, message: Message, turn: dict[str, object], index: int) -> None:
    """Set `train` and `stop` by the keys of a turn, and flag a hidden one.

    A key that a flag of the message holds in full is removed from the turn; all others stay.
    """
    for key in [key for key in turn if key in TURN_KINDS]:
        if _read_mark(conversation, message, key, turn[key], index):
            del turn[key]
    for key, value in _metadata(turn):
        if key in TURN_KINDS and (TURN_KINDS[key] not in _TRAIN or _is_clear(value)):
            _read_mark(conversation, message, key, value, index)
    if reason := _hidden(message, turn):
        conversation.flaw(HIDDEN, index, f"turn {index} {reason}", message.content)


def _read_mark(conversation: Conversation, message: Message, key: str, value: object, index: int) -> bool:
    """Read one mark, and return whether a flag of the message holds it in full."""
    kind = TURN_KINDS[key]
    if kind in _TRAIN:
        return _read_train(conversation, message, kind, value, index)
    if kind == "train_parts":
        _read_parts(conversation, message, value, index)
    elif message.role == "assistant" and _is_cut(message, key, kind, value):
        message.stop = False
        return key == "stop" and value is False
    return False


def _read_train(conversation: Conversation, message: Message, kind: TurnKind, value: object, index: int) -> bool:
    """Read whether a message may be trained on, and return whether that is all that the value says."""
    if not _is_clear(value):
        message.train = False
        conversation.edit(UNCLEAR, index, preview(value), "")
        return False
    off = is_true(value) if kind == "masked" else is_false(value)
    if off and kind == "train_reasoning":
        message.train_reasoning = False
    elif off:
        message.train = False
    if isinstance(value, str) and _is_number(value):
        return float(value) in (0, 1)
    return value in (0, 1) or (isinstance(value, str) and has_content(value))


def _is_clear(value: object) -> bool:
    """Return whether a value is a number, a word for true or false, or nothing."""
    if not has_content(value) or isinstance(value, int | float):
        return True
    return isinstance(value, str) and (is_true(value) or is_false(value) or _is_number(value))


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _read_parts(conversation: Conversation, message: Message, value: object, index: int) -> None:
    """Leave a message out of the loss if only parts of it may be trained on (axolotl's `train_detail`)."""
    spans = value if isinstance(value, list) else [value]
    if not has_content(value) or all(isinstance(span, dict) and is_true(span.get("train")) for span in spans):
        return
    if message.train:
        message.train = False
        conversation.edit(PARTLY, index, preview(value), "")


def _is_cut(message: Message, key: str, kind: TurnKind, value: object) -> bool:
    """Return whether a key says that an answer was cut off; one that calls a tool ends with the call."""
    if kind == "end":
        return any(word.strip().casefold() in _CUT for word in _words(value))
    if kind == "cut_if_true":
        return is_true(value)
    return kind == "cut_if_false" and is_false(value) and (message.tool_calls is None or key == "stop")


def _words(value: object) -> list[str]:
    if isinstance(value, dict):
        return [word for item in value.values() for word in _words(item)]
    return [value] if isinstance(value, str) else []


def _hidden(message: Message, turn: Mapping[str, object]) -> str | None:
    """Return how a turn says that the user does not see it; None if it does not."""
    for key, value in (*turn.items(), *_metadata(turn)):
        kind = TURN_KINDS.get(key)
        if (kind == "hidden_if_true" and is_true(value)) or (kind == "hidden_if_false" and is_false(value)):
            return f"has {key!r}: {preview(value)[:40]}"
        if message.role != "assistant" or message.tool_calls or not isinstance(value, str):
            continue
        word = value.strip().casefold()
        if kind == "channel" and word in _SIDE_CHANNELS:
            return f"is of the channel {preview(value)[:40]!r}, which the user does not see"
        if kind == "recipient" and word not in _EVERYONE:
            return f"is addressed to {preview(value)[:40]!r}, not to the user"
    return None


def _metadata(turn: Mapping[str, object]) -> list[tuple[str, object]]:
    return [item for metadata in metadata_objects(turn) for item in metadata.items()]
