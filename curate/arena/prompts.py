"""Prompts and answers in files: prompts to vote on, and the answers of a model to them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from curate.conversion.collection import Conversations
from curate.dataset.query import Query
from curate.errors import InputError, error_message
from curate.schemas.conversation import Message

Turns = tuple[str, ...]  # the user's messages of a chat, in order
TEXT_KEYS = ("prompt", "instruction", "question", "text")  # of a record that is a prompt alone


@dataclass(frozen=True)
class Prompt:
    """What the user says in a chat."""

    turns: Turns

    @property
    def id(self) -> str:
        """The name under which votes and judgements say which prompt they are on."""
        return hashlib.sha256(json.dumps(self.turns).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Chat:
    """A prompt with a model's answer to each of its turns."""

    prompt: Prompt
    answers: Turns


@dataclass
class ReadCounts:
    """What was read of a file, and what was left out."""

    read: int = 0
    repeated: int = 0  # prompts that were there before
    left_out: Counter[str] = field(default_factory=Counter)  # by rule or reason

    def describe(self) -> str:
        """Return what was left out in words, empty if nothing was."""
        parts = [f"{count:,} {reason}" for reason, count in sorted(self.left_out.items())]
        if self.repeated:
            parts.append(f"{self.repeated:,} repeated")
        return ", ".join(parts)


def read_prompts(path: Path) -> tuple[list[Prompt], ReadCounts]:
    """Return the different prompts of a file: lines of text, prompts as JSON lines, or any chats that curate reads.

    Of a chat, the user's messages are taken. Raises InputError if there are none.
    """
    counts = ReadCounts()
    plain = _read_plain(path)
    found = plain if plain is not None else (_user_turns(messages) for messages in _read_messages(path, counts))
    prompts: dict[Prompt, None] = {}
    for turns in found:
        counts.read += 1
        if not turns or not all(turn.strip() for turn in turns):
            counts.left_out["without a prompt"] += 1
        elif Prompt(turns) in prompts:
            counts.repeated += 1
        else:
            prompts[Prompt(turns)] = None
    if not prompts:
        why = counts.describe() or "it is empty"
        raise InputError(f"no prompts in {str(path)!r} ({why}); give lines of text (.txt), JSON lines or chats")
    return list(prompts), counts


def read_answers(path: Path) -> tuple[list[Chat], ReadCounts]:
    """Return the chats of a file in which an answer follows each of the user's messages, the first to each prompt.

    Raises InputError if there are none.
    """
    counts = ReadCounts()
    chats: dict[Prompt, Chat] = {}
    for messages in _read_messages(path, counts):
        counts.read += 1
        chat = _chat(messages)
        if chat is None:
            counts.left_out["not a chat of prompts and answers in turn"] += 1
        elif chat.prompt in chats:
            counts.repeated += 1
        else:
            chats[chat.prompt] = chat
    if not chats:
        why = counts.describe() or "it is empty"
        raise InputError(f"no answers in {str(path)!r} ({why}); give chats, or {{instruction, output}} for each")
    return list(chats.values()), counts


def _chat(messages: Sequence[Message]) -> Chat | None:
    """Return prompts and answers in turn, None for a chat that has anything else; a system message is passed over."""
    spoken = [message for message in messages if message.role != "system"]
    roles = [message.role for message in spoken]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        return None
    texts = [message.content for message in spoken]
    return Chat(Prompt(tuple(texts[::2])), tuple(texts[1::2]))


def _user_turns(messages: Sequence[Message]) -> Turns:
    return tuple(message.content for message in messages if message.role == "user")


def _read_messages(path: Path, counts: ReadCounts) -> Iterator[list[Message]]:
    """Yield the messages of each chat that can be read; the others are counted. Raises InputError."""
    if not path.exists():
        raise InputError(f"there is no file {str(path)!r}")
    chats = Conversations(str(path), Query())
    try:
        for conversation in chats:
            yield conversation.messages
    finally:
        counts.left_out.update(chats.left_out)
        counts.read += chats.left_out.total()


def _read_plain(path: Path) -> list[Turns] | None:
    """Return the prompts of a file that holds nothing else: lines of text, or a JSON line for each; None for another.

    MT-Bench's questions are such lines: `{question_id, category, turns: […]}`.
    """
    if path.suffix not in (".txt", ".jsonl"):
        return None
    try:
        lines = [line for line in path.read_bytes().splitlines() if line.strip()]
        if path.suffix == ".txt":
            return [(line.decode("utf-8").strip(),) for line in lines]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the prompts {str(path)!r}: {error_message(error)}") from None
    found = [_plain_turns(line) for line in lines]
    return None if None in found else [turns for turns in found if turns is not None]


def _plain_turns(line: bytes) -> Turns | None:
    """Return the prompt that a JSON line is, None for anything else."""
    try:
        record: Any = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(record, str):
        return (record,)
    if not isinstance(record, dict):
        return None
    turns = record.get("turns")
    if isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns):
        return tuple(turns)
    texts = [record[key] for key in TEXT_KEYS if isinstance(record.get(key), str)]
    others = {
        key for key, value in record.items() if isinstance(value, str) and key not in (*TEXT_KEYS, "id", "category")
    }
    lists = any(isinstance(value, list) for value in record.values())
    return (texts[0],) if len(texts) == 1 and not others and not lists else None
