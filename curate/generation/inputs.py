"""Read the prompts and seed tasks that a user gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curate.errors import InputError, RecordError
from curate.generation.steps import Drop, Prompt
from curate.schemas import formats

ENDINGS = (".jsonl", ".json", ".ndjson")
INPUT = "\n\n"  # between an instruction and its input, in a prompt


@dataclass(frozen=True)
class Task:
    """A task of self-instruct's form, with its first instance."""

    name: str
    instruction: str
    input: str
    output: str
    language: str = ""

    @property
    def prompt(self) -> str:
        """The instruction with its input."""
        return f"{self.instruction}{INPUT}{self.input}" if self.input else self.instruction


def read_tasks(text: str, where: str, language: str = "") -> list[Task]:
    """Read seed tasks in self-instruct's form, {instruction, instances: [{input, output}]}, or Alpaca's.

    Raises InputError for a line that is neither.
    """
    tasks = []
    for number, value in _values(text, where, ""):
        record = value if isinstance(value, dict) else {}
        instances = record.get("instances", [record])
        first = instances[0] if isinstance(instances, list) and instances else None
        texts = (
            [record.get("instruction"), *(first.get(key) for key in ("input", "output"))]
            if isinstance(first, dict)
            else []
        )
        if not texts or not isinstance(texts[0], str) or not texts[0].strip() or not isinstance(texts[2], str):
            raise InputError(
                f"{where}, task {number}: no instruction with an output; give "
                '{"instruction": …, "instances": [{"input": …, "output": …}]}'
            )
        name = record.get("id")
        entered = texts[1].strip() if isinstance(texts[1], str) else ""
        tasks.append(Task(str(name or f"{where}:{number}"), texts[0].strip(), entered, texts[2].strip(), language))
    if not tasks:
        raise InputError(f"{where} holds no tasks")
    return tasks


def read_file(path: Path) -> str:
    """Return the text of a file; raises InputError where it cannot be read."""
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{str(path)!r} is not UTF-8 text") from None
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror or error}") from None


def read_prompts(text: str, where: str) -> list[Prompt | Drop]:
    """Read prompts: lines of text, or JSON (lines or a list) of texts, {prompt}, {instruction, input} or conversations.

    Of a conversation, its system message and first prompt are taken. What has no prompt is a drop.
    Raises InputError for a file without any.
    """
    found = [_read_prompt(value, f"{where}:{number}") for number, value in _values(text, where, where)]
    if not any(isinstance(each, Prompt) for each in found):
        raise InputError(f"{where} holds no prompts; give one on each line, or records with a prompt")
    return found


def _values(text: str, where: str, name: str) -> Iterator[tuple[int, Any]]:
    """Yield the values of a file by their numbers, from 1: of JSON lines or a list, or the lines of plain text."""
    start = text.lstrip()[:1]
    if name and not name.endswith(ENDINGS):
        yield from ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip())
        return
    try:
        if start == "[":
            yield from enumerate(json.loads(text), 1)
            return
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield number, json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from None


def _read_prompt(value: Any, source: str) -> Prompt | Drop:
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, str):
        return _prompt(value, value, source) or Drop("no_prompt", "it is empty", shown, source)
    if not isinstance(value, dict):
        return Drop("no_prompt", "it is neither a text nor an object", shown, source)
    name = value.get("id")
    parent = str(name) if isinstance(name, str | int) else source
    instruction, entered = value.get("instruction"), value.get("input")
    if isinstance(value.get("prompt"), str):
        found = _prompt(value["prompt"], value["prompt"], source, parent)
    elif isinstance(instruction, str) and "instances" not in value:
        rest = f"{INPUT}{entered.strip()}" if isinstance(entered, str) and entered.strip() else ""
        found = _prompt(instruction.strip() + rest, instruction, source, parent)
    else:
        return _read_conversation(value, source, parent, shown)
    return found or Drop("no_prompt", "it is empty", shown, source)


def _read_conversation(value: dict[str, Any], source: str, parent: str, shown: str) -> Prompt | Drop:
    try:
        conversation = formats.parse(value)
    except RecordError as error:
        return Drop("no_prompt", error.reason, shown, source)
    users = [message.content for message in conversation.messages if message.role == "user"]
    system = "\n\n".join(message.content for message in conversation.messages[:1] if message.role == "system")
    found = _prompt(users[0], users[0], source, parent, system) if users else None
    return found or Drop("no_prompt", "the conversation has no prompt", shown, source)


def _prompt(text: str, instruction: str, source: str, parent: str = "", system: str = "") -> Prompt | None:
    if not text.strip():
        return None
    return Prompt(text.strip(), instruction.strip(), source, (parent or source,), system)
