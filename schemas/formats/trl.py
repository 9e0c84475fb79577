"""The records of TRL's trainers: chats, prompts with a completion, and preference pairs, in their conversational form.

They are only written: OpenAI's, the pairs' and the preference module read them. TRL loads files with `datasets`, which
needs the same type for a key in every record, so the model and the metadata are not written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from curate.errors import RecordError
from curate.schemas import writing
from curate.schemas.conversation import Conversation, Message
from curate.schemas.formats.format import Format
from curate.schemas.reading.tool_calls import call_ids
from curate.schemas.writing import RULE, WriteOptions

NAME = "trl"
SUMMARY = "TRL's conversational records: {messages}, {prompt, completion} or {prompt, chosen, rejected}; see --shape."

MESSAGES, COMPLETION, PREFERENCE = SHAPES = ("messages", "prompt-completion", "preference")
LACKS = ("extra", "rejected_answer", "model", "metadata")
Record = dict[str, object]


def choose_shape(conversation: Conversation) -> str:
    """Return the shape for a file that begins with this conversation."""
    return PREFERENCE if conversation.rejected_answer else MESSAGES


def dump_all(conversation: Conversation, options: WriteOptions) -> list[Record]:
    """Write a conversation as records of one shape.

    `prompt-completion` has a record for each answer that is trained on, numbered by `answer`, with all that comes
    before as the prompt. Raises RecordError for what the shape cannot express.
    """
    shape = options.shape or choose_shape(conversation)
    if shape == COMPLETION:
        return _completions(conversation)
    return [_preference(conversation) if shape == PREFERENCE else _chat(conversation)]


def _chat(conversation: Conversation) -> Record:
    writing.refuse(conversation, tools=False, reasoning=False)
    return {**_common(conversation), "messages": _messages(conversation.messages)}


def _completions(conversation: Conversation) -> list[Record]:
    messages = conversation.messages
    trained = [i for i, message in enumerate(messages) if message.role == "assistant" and message.train]
    if not trained:
        raise RecordError(RULE, "no answer is to be trained on")
    records = []
    for number, index in enumerate(trained):
        _check_completion(messages, index)
        prompt, completion = _messages(messages[:index]), _messages(messages[index : index + 1])
        records.append({**_common(conversation), "answer": number, "prompt": prompt, "completion": completion})
    return records


def _check_completion(messages: Sequence[Message], index: int) -> None:
    if not messages[index].stop:
        raise RecordError(RULE, f"message {index} was cut off, which the format cannot express")
    if index == 0:
        raise RecordError(RULE, "message 0 is an answer without a prompt", messages[0].content)


def _preference(conversation: Conversation) -> Record:
    *prompt, chosen = conversation.messages or [Message("user", "")]
    if not conversation.rejected_answer:
        raise RecordError(RULE, "there is no rejected answer")
    if chosen.role != "assistant" or not prompt:
        raise RecordError(RULE, "there is no prompt with an answer at the end")
    if not (chosen.train and chosen.stop):
        raise RecordError(RULE, "the chosen answer was cut off or is not to be trained on", chosen.content)
    sides = {"chosen": _messages([chosen]), "rejected": _messages(conversation.rejected_answer)}
    return {**_common(conversation), "prompt": _messages(prompt), **sides}


def _common(conversation: Conversation) -> Record:
    record: Record = {"id": conversation.source_id}
    if conversation.tools is not None:
        record["tools"] = conversation.tools  # as text: the parameters of tools have different types
    return record


def _messages(messages: Sequence[Message]) -> list[Record]:
    ids = call_ids(messages)
    return [_message(message, call_id) for message, call_id in zip(messages, ids, strict=True)]


def _message(message: Message, call_id: str) -> Record:
    record: Record = {"role": message.role, "content": message.content}
    if message.name is not None:
        record["name"] = message.name
    if message.tool_calls is not None:
        record["tool_calls"] = json.loads(message.tool_calls)
    if message.reasoning is not None:
        record["reasoning_content"] = message.reasoning
    if message.tool_call_id or call_id:
        record["tool_call_id"] = message.tool_call_id or call_id
    return record


FORMAT = Format(NAME, SUMMARY, dump_all=dump_all, lacks=LACKS)
