"""A prompt and its answer under two keys: prompt and completion, question and answer, query and response, …"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from curate.errors import RecordError
from curate.schemas.conversation import Conversation, Message, Role
from curate.schemas.formats.datasets import marked_text
from curate.schemas.formats.format import Format
from curate.schemas.prompts import INPUT_MARK
from curate.schemas.reading import turn_columns, turns
from curate.schemas.reading.key_kinds import ANSWER_KEYS, flag_label, has_content

NAME, STEPWISE = "pairs", "stepwise"
SUMMARY = "A prompt and its answer: {prompt, completion}, {question, answer}, {query, response}; Dolly, Firefly."
STEPWISE_SUMMARY = (
    "TRL's stepwise supervision: {prompt, completions: [step, …], labels: [true, …]}; read if all steps are right."
)

PROMPT_KEYS = ("prompt", "query", "question", "instruction", "input")
INPUT_KEYS = ("input", "context")  # what the prompt is about, appended to it
CHOICE_KEYS = ("choices", "options", "endings")  # of a multiple-choice question, which the prompt lacks
_LETTERS = (("A", "B"), ("a", "b"))  # each a key of a choice
_HISTORY_PROMPTS = ("user", "human", *PROMPT_KEYS)
_HISTORY_ANSWERS = ("assistant", "gpt", "bot", *ANSWER_KEYS)


def recognises(record: Mapping[str, object]) -> bool:
    """Return whether a record has a prompt and a key for its answer, and is no multiple-choice question."""
    return (
        prompt_key(record) is not None
        and answer_key(record) is not None
        and not any(has_content(record.get(key)) for key in CHOICE_KEYS)
        and not any(first in record and second in record for first, second in _LETTERS)
    )


def prompt_key(record: Mapping[str, object]) -> str | None:
    """Return the key of a record's prompt."""
    return next((key for key in PROMPT_KEYS if isinstance(record.get(key), str | list)), None)


def answer_key(record: Mapping[str, object]) -> str | None:
    """Return the key of a record's answer, rather one that holds something."""
    keys = [key for key in ANSWER_KEYS if key in record]
    return next((key for key in keys if has_content(record[key])), keys[0] if keys else None)


def parse(record: Mapping[str, object]) -> Conversation:
    """Read one record; raises RecordError if its meaning is not clear."""
    conversation = Conversation(None, [])
    conversation.source_id = turns.read_source_id(conversation, record.get("id"))
    used = read_prompt(conversation, record)
    key = answer_key(record)
    assert key is not None
    add_messages(conversation, "assistant", record[key])
    turns.read_other_keys(conversation, record, used | {"id", key})
    return conversation


def recognises_steps(record: Mapping[str, object]) -> bool:
    """Return whether a record has a prompt and the steps of its answer, each with a label."""
    return "prompt" in record and isinstance(record.get("completions"), list) and isinstance(record.get("labels"), list)


def parse_steps(record: Mapping[str, object]) -> Conversation:
    """Read one record, a step a line; an answer with a wrong step is flagged as badly labelled."""
    steps, labels = record["completions"], record["labels"]
    assert isinstance(steps, list) and isinstance(labels, list)
    if not steps or len(steps) != len(labels) or not all(isinstance(step, str) for step in steps):
        reason = f"'completions' is {turns.describe_type(steps)} for {len(labels)} 'labels', not a text for each"
        raise RecordError("bad_turn", reason, turns.preview(steps))
    others = {key: value for key, value in record.items() if key != "completions"}
    conversation = parse({**others, "completion": "\n".join(steps)})
    if "completion" in record:
        conversation.metadata["completion"] = turns.to_plain_json(record["completion"])
    flag_label(conversation, "labels", "bad_if_false", labels, None)
    return conversation


def read_prompt(conversation: Conversation, record: Mapping[str, object]) -> frozenset[str]:
    """Append the history and the prompt with its input, and return their keys."""
    key = prompt_key(record)
    if key is None:
        return frozenset()
    read_history(conversation, record.get("history"))
    add_messages(conversation, "user", record[key])
    used = {key, "history"}
    for name in INPUT_KEYS:
        if name not in used and has_content(record.get(name)):
            append_input(conversation, record[name])
            used.add(name)
    return frozenset(used)


def add_messages(conversation: Conversation, role: Role, value: object) -> None:
    """Append a prompt or an answer: a text, or one message or several."""
    messages = turn_columns.decode_messages(value, role) or []
    if messages and (role == "user" or not any(isinstance(item, dict) and turns.is_prompt(item) for item in messages)):
        conversation.edit("turns_from_text", None, turns.preview(value), "")
        value = messages
    items: Sequence[object] = marked_text.split_chat(value) or (value if isinstance(value, list) else [value])
    if items and all(isinstance(item, dict) and turns.has_role(item) for item in items):
        turns.read_messages(conversation, items, "role", "content")
        return
    index = len(conversation.messages)
    if role == "assistant":
        turns.refuse_alternatives(value, index)
    conversation.messages.append(Message(role, turns.read_text(conversation, value, index)))
    turns.read_marks(conversation, index)


def append_input(conversation: Conversation, value: object) -> None:
    """Append the input of an instruction to it, after the heading of Alpaca's prompt."""
    prompt = conversation.messages[-1]
    text = turns.read_text(conversation, value, len(conversation.messages) - 1)
    prompt.content = f"{prompt.content}{INPUT_MARK}{text}" if prompt.content else text


def read_history(conversation: Conversation, value: object) -> None:
    """Append the earlier exchanges: pairs of prompt and answer, as lists or objects, or messages with roles."""
    if not value:
        return
    if not isinstance(value, list):
        raise _bad_history(value)
    if all(isinstance(item, dict) and turns.has_role(item) for item in value):
        turns.read_messages(conversation, value, "role", "content")
        return
    for item in value:
        prompt, answer = _history_pair(item)
        add_messages(conversation, "user", prompt)
        add_messages(conversation, "assistant", answer)


def _history_pair(item: object) -> tuple[object, object]:
    if isinstance(item, list) and len(item) == 2:
        return item[0], item[1]
    if isinstance(item, dict) and len(item) == 2:
        prompts = [key for key in _HISTORY_PROMPTS if key in item]
        answers = [key for key in _HISTORY_ANSWERS if key in item]
        if len(prompts) == len(answers) == 1:
            return item[prompts[0]], item[answers[0]]
    raise _bad_history(item)


def _bad_history(value: object) -> RecordError:
    return RecordError("bad_turn", "'history' is not a list of pairs of prompt and answer", turns.preview(value))


FORMAT = Format(NAME, SUMMARY, recognises, parse, writes=False, requires=("prompt", "completion"))
STEPWISE_FORMAT = Format(
    STEPWISE,
    STEPWISE_SUMMARY,
    recognises_steps,
    parse_steps,
    writes=False,
    requires=("prompt", "completions", "labels"),
)
