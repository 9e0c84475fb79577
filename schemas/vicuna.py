"""What FastChat's trainer loads: strictly alternating human and gpt, and nothing else.

Its trainer knows no system role, no tools and no turns left out of the loss. A system message is put
before the first prompt, after which a blank line stands; what else cannot be said is refused.
"""

from __future__ import annotations

from curate.errors import RecordError
from curate.schemas.conversation import Conversation, Message

NAME = "vicuna"
SUMMARY = (
    "One JSON array for FastChat's trainer: {id, conversations: [{from: human|gpt, value}]}, strictly alternating."
)


def dump(conversation: Conversation) -> dict[str, object]:
    """Write a conversation; raises RecordError for what FastChat's trainer would misread."""
    messages = conversation.messages
    system = messages[0].content if messages and messages[0].role == "system" else None
    turns = messages[system is not None :]
    for index, message in enumerate(turns):
        if reason := _unfit(message, index):
            at = index + (system is not None)
            raise RecordError("not_representable", f"message {at} {reason}", message.content)
    if len(turns) < 2 or len(turns) % 2:
        raise RecordError("not_representable", f"{len(turns)} turns; the form holds prompts each with an answer")
    values = [message.content for message in turns]
    if system:
        values[0] = f"{system}\n\n{values[0]}"
    sides = ("human", "gpt")
    written = [{"from": sides[index % 2], "value": value} for index, value in enumerate(values)]
    return {"id": conversation.source_id, "conversations": written}


def _unfit(message: Message, index: int) -> str | None:
    """Say why the message at this place cannot stand in the form; null if it can."""
    wanted = "assistant" if index % 2 else "user"
    if message.role != wanted:
        return f"is of role {message.role}, where {wanted} must stand"
    if message.tool_calls is not None:
        return "calls a tool, which the form cannot say"
    if wanted == "assistant" and not (message.train and message.stop):
        return "was cut or is not to be trained on, which the form cannot say"
    return None
