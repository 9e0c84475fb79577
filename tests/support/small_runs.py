"""Training runs that take seconds: a small set with its own tokenizer, and settings that learn it by heart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from curate.schemas.conversation import Message
from curate.tokenization.tokenizer import load_tokenizer
from curate.train.finetune import finetune
from curate.train.run import records
from curate.train.run.events import Event
from curate.train.run.log import RunResult
from tests.support.small_set import MANIFEST, kept, write_set
from tests.support.tiny_tokenizers import folder, sentencepiece_model

COLOURS = ("red", "green", "blue", "white", "black", "brown", "grey", "pink", "gold", "teal")
QUESTION, ANSWER = "What colour is fox {}?", "Fox {} is {}, and it sleeps on."


def taught_set(
    root: Path, count: int = 12, *, held_out: int = 0, template: str = "plain", window: int = 96, **columns: list[Any]
) -> Path:
    """Write a set of short conversations and its tokenizer; the last `held_out` conversations are held out.

    `columns` have a value for each conversation.
    """
    tokenizer = folder(root / "tokenizer", tokenizer_model=sentencepiece_model())
    info = load_tokenizer(str(tokenizer)).info
    manifest = {**MANIFEST, "tokenizer": info.to_dict(), "template": template, "window": window}
    manifest["recipe"] = {"name": "vicuna", "tokens": {"tokenizer": str(tokenizer)}}
    rows = [
        kept(
            index,
            f"fox{index}",
            messages=[dataclasses.asdict(message) for message in talk(index)],
            split="eval" if index >= count - held_out else "train",
            language="en" if index % 2 else "ko",
            **{name: values[index] for name, values in columns.items()},
        )
        for index in range(count)
    ]
    return write_set(root / "set", rows, [], manifest)


def talk(index: int) -> list[Message]:
    """Return a conversation of one or two exchanges."""
    colour = COLOURS[index % len(COLOURS)]
    first = [Message("user", QUESTION.format(index)), Message("assistant", ANSWER.format(index, colour))]
    second = [Message("user", "And the dog?"), Message("assistant", f"The dog {index} is not {colour}.")]
    return first + second if index % 3 == 0 else first


def paired_set(root: Path, count: int = 8, *, held_out: int = 0, window: int = 96, **changes: Any) -> Path:
    """Write such a set with a rejected answer beside each last one; `changes` are columns too."""
    rejected = [[Message("assistant", f"Fox {index} is an owl.")] for index in range(count)]
    pairs = [[dataclasses.asdict(message) for message in answer] for answer in rejected]
    return taught_set(root, count, held_out=held_out, window=window, rejected_answer=pairs, **changes)


QUICK = {"model": "tiny", "device": "cpu", "global_batch": 4, "max_steps": 6, "seed": 1}
SHORT = ("eval.max_new_tokens=3", "eval.samples=1", "data.row_tokens=192", "optimizer.warmup=0.0")


def run(data: Path, out: Path, *, settings: tuple[str, ...] = (), **flags: Any) -> RunResult:
    """Train `tiny` for a few steps."""
    torch.set_num_threads(1)
    return finetune(data, out=out, settings=(*SHORT, *settings), **{**QUICK, **flags})


def losses(folder: Path) -> list[float]:
    """Return the losses of a run's steps, as logged."""
    return [row["loss"] for row in records.read(folder).metrics]


class EventLog(list[Event]):
    """Keeps the events of a run."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self if isinstance(event, kind)]


EventHandler = Callable[[Event], None]
