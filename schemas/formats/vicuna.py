"""The format of FastChat's trainer: strictly alternating turns of human and gpt.

The trainer knows no system role, no tools, and no turns without loss. A system message is put before the first prompt,
followed by a blank line; a conversation with anything else is refused.
"""

from __future__ import annotations

from curate.errors import RecordError
from curate.schemas.conversation import Conversation, Message
from curate.schemas.formats import sharegpt
from curate.schemas.formats.format import Format
from curate.schemas.prompts import fold_reasoning

NAME = "vicuna"
SUMMARY = (
    "One JSON array for FastChat's trainer: {id, conversations: [{from: human|gpt, value}]}, strictly alternating."
)
LACKS = ("name", "tool_call_id", "extra", "tools", "rejected_answer", "model", "metadata")


def dump(conversation: Conversation) -> dict[str, object]:
    """Write a conversation; raises RecordError for one that FastChat's trainer would misread."""
    messages = list(map(fold_reasoning, conversation.messages))
    system = messages[0].content if messages and messages[0].role == "system" else None
    turns = messages[system is not None :]
    for index, message in enumerate(turns):
        if problem := _problem(message, index):
            number = index + (system is not None)
            raise RecordError("not_representable", f"message {number} {problem}", message.content)
    if len(turns) < 2 or len(turns) % 2:
        raise RecordError("not_representable", f"{len(turns)} turns; the format has prompts, each with an answer")
    values = [message.content for message in turns]
    if system:
        values[0] = f"{system}\n\n{values[0]}"
    sides = ("human", "gpt")
    written = [{"from": sides[index % 2], "value": value} for index, value in enumerate(values)]
    return {"id": conversation.source_id, "conversations": written}


def _problem(message: Message, index: int) -> str | None:
    """Return why the format cannot express the message at this index; None if it can."""
    expected = "assistant" if index % 2 else "user"
    if message.role != expected:
        return f"has role {message.role}, where {expected} is expected"
    if message.tool_calls is not None:
        return "calls a tool, which the format cannot express"
    if expected == "assistant" and not (message.train and message.stop):
        return "was cut off or is not to be trained on, which the format cannot express"
    return None


FORMAT = Format(
    NAME,
    SUMMARY,
    sharegpt.recognises,
    sharegpt.parse,
    dump,
    array=True,
    lacks=LACKS,
)
