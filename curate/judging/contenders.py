"""The files of answers that are judged, the pairs that are compared, and what each request asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from curate.arena.prompts import Chat, Prompt, read_answers
from curate.client.exchange import CHAT, Request
from curate.errors import InputError
from curate.judging import wording

Mode = Literal["single", "pair"]
Order = Literal["AB", "BA"]
ORDERS: tuple[Order, Order] = ("AB", "BA")


@dataclass(frozen=True)
class Contender:
    """A model's answers, by their prompts."""

    name: str
    path: Path
    chats: Mapping[Prompt, Chat]


@dataclass(frozen=True)
class Task:
    """One thing to judge, and the request that asks for it; turns count from 1."""

    request: Request
    name: str
    prompt: Prompt
    turn: int
    repeat: int
    order: Order | None = None  # which of both is shown as A: AB for the model, BA for the baseline


@dataclass(frozen=True)
class JudgeSettings:
    """Who judges, and how."""

    model: str
    repeats: int = 1
    temperature: float = 0.0
    reply_tokens: int = 1024

    def body(self, messages: list[dict[str, str]], repeat: int) -> dict[str, Any]:
        """Return the body of a request; each repeat has a seed of its own."""
        return {
            "model": self.model,
            "messages": messages,
            "temperature": self.temperature,
            "max_tokens": self.reply_tokens,
            "seed": repeat,
        }


def read_contenders(arguments: Sequence[str]) -> tuple[list[Contender], list[str]]:
    """Return the contenders from arguments `NAME=FILE` or `FILE`, and notes on what their files lack.

    Raises InputError for a file without answers, or a name twice.
    """
    contenders: dict[str, Contender] = {}
    notes = []
    for argument in arguments:
        name, equals, source = argument.partition("=")
        if not equals or Path(argument).exists():
            name, source = Path(argument).stem, argument
        if not name or not source:
            raise InputError(f"{argument!r} is neither FILE nor NAME=FILE")
        if name in contenders:
            raise InputError(f"two files would be named {name!r}; name one of them: OTHER={source}")
        chats, counts = read_answers(Path(source))
        if left := counts.describe():
            notes.append(f"{name}: left out of {source}: {left}")
        contenders[name] = Contender(name, Path(source), {chat.prompt: chat for chat in chats})
    return list(contenders.values()), notes


def shared_prompts(model: Contender, baseline: Contender) -> list[Prompt]:
    """Return the prompts that both answer, in the baseline's order; raises InputError if there are none."""
    shared = [prompt for prompt in baseline.chats if prompt in model.chats]
    if not shared:
        raise InputError(
            f"{model.name} and {baseline.name} answer no prompt in common; compare answers to the same ones"
        )
    return shared


def single_tasks(contender: Contender, references: Mapping[Prompt, Chat], settings: JudgeSettings) -> Iterator[Task]:
    """Yield what is asked to rate each answer of a model."""
    for prompt, chat in contender.chats.items():
        for turn in range(1, len(prompt.turns) + 1):
            messages = wording.single_messages(chat, turn, _reference(references, prompt, turn))
            for repeat in range(settings.repeats):
                key = f"single/{contender.name}/{prompt.id}/{turn}/{repeat}"
                request = Request(key, CHAT, settings.body(messages, repeat))
                yield Task(request, contender.name, prompt, turn, repeat)


def pair_tasks(
    model: Contender, baseline: Contender, references: Mapping[Prompt, Chat], settings: JudgeSettings
) -> Iterator[Task]:
    """Yield what is asked to compare each answer of a model with the baseline's, in both orders."""
    for prompt in shared_prompts(model, baseline):
        both = (model.chats[prompt], baseline.chats[prompt])
        for turn in range(1, len(prompt.turns) + 1):
            for order, chats in zip(ORDERS, (both, both[::-1]), strict=True):
                messages = wording.pair_messages(*chats, turn, _reference(references, prompt, turn))
                for repeat in range(settings.repeats):
                    key = f"pair/{model.name}/{baseline.name}/{prompt.id}/{turn}/{order}/{repeat}"
                    request = Request(key, CHAT, settings.body(messages, repeat))
                    yield Task(request, model.name, prompt, turn, repeat, order)


def _reference(references: Mapping[Prompt, Chat], prompt: Prompt, turn: int) -> str | None:
    return references[prompt].answers[turn - 1] if prompt in references else None
