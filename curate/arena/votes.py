"""Votes on two answers: a file to which lines are only added, in the form of Chatbot Arena's data, and their battles.

A line is `{id, model_a, model_b, winner, conversation_a, conversation_b, …}`; `a` was on the left. `clean` reads it as
a preference pair. Every line is on the disk before its vote is confirmed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from curate import files
from curate.arena import ratings, style
from curate.arena.ratings import Battles
from curate.errors import InputError

SCORES = {  # winner to the score of `a`
    "model_a": 1.0,
    "model_b": 0.0,
    "tie": 0.5,
    "tie (bothbad)": 0.5,
    "both_bad": 0.5,
}
SKIPPED = "skipped"  # shown, and not judged
VOTES = {"left": "model_a", "right": "model_b", "tie": "tie", "both_bad": "tie (bothbad)", "skip": SKIPPED}


class VoteFile:
    """The open file of votes of one page; no other page may write to it at the same time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.repaired = 0  # bytes of a line that a killed run has left unfinished
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Open it; raises InputError if another process has it open, UnsafePathError for a link."""
        busy = InputError(f"another page writes votes to {str(self.path)!r}; give another file: --votes FILE")
        lock = self.path.with_name(f".{self.path.name}.lock")
        try:
            self._stack.enter_context(files.lock(lock, busy))
            files.refuse_links(self.path)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            self._file = self._stack.enter_context(os.fdopen(descriptor, "r+b"))
            self._repair()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _repair(self) -> None:
        """Cut a last line that is not whole, and end one that lacks only its line break."""
        content = self._file.read()
        start = content.rfind(b"\n") + 1
        if last := content[start:]:
            if _decode(last) is None:
                self.repaired = len(last)
                self._file.truncate(start)
            else:
                self._file.write(b"\n")
        self._file.seek(0, os.SEEK_END)

    def append(self, vote: Mapping[str, Any]) -> None:
        """Add a vote; it is on the disk when this returns, or not in the file if an error is raised."""
        start = self._file.tell()
        try:
            self._file.write(json.dumps(vote, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError:
            os.ftruncate(self._file.fileno(), start)  # a full disk may have taken a part of it
            self._file.seek(start)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def _decode(line: bytes) -> dict[str, Any] | None:
    try:
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


# ---- read


@dataclass
class VoteCounts:
    """What the lines of the files of votes are."""

    rated: int = 0
    ties: int = 0  # of those that are rated
    skipped: int = 0
    unusable: list[str] = field(default_factory=list)  # `file:line: why`


@dataclass(frozen=True)
class Vote:
    """One judged battle."""

    model_a: str
    model_b: str
    score: float  # of `a`
    answers_a: tuple[str, ...]
    answers_b: tuple[str, ...]


def read_battles(paths: Sequence[Path], *, style_control: bool = False) -> tuple[Battles, VoteCounts]:
    """Return the battles in files of votes, and what was left out.

    Raises InputError for a file that cannot be read, or if there is nothing to rate.
    """
    counts = VoteCounts()
    votes = [vote for path in paths for vote in read_votes(path, counts)]
    if not votes:
        names = ", ".join(repr(str(path)) for path in paths)
        why = f": {counts.unusable[0]}" if counts.unusable else f" ({counts.skipped} skipped)" * bool(counts.skipped)
        raise InputError(f"no votes in {names}{why}; collect some: curate arena MODEL MODEL")
    pairs = [(vote.model_a, vote.model_b) for vote in votes]
    battles = ratings.scored(pairs, [vote.score for vote in votes])
    if style_control:
        measured = [(style.measure(vote.answers_a), style.measure(vote.answers_b)) for vote in votes]
        battles = ratings.with_style(battles, [style.contrast(a, b) for a, b in measured])
    return battles, counts


def read_votes(path: Path, counts: VoteCounts) -> Iterator[Vote]:
    """Yield the judged votes of a file; the other lines are counted. Raises InputError if it cannot be read."""
    for number, line in lines(path):
        if line is None:
            counts.unusable.append(f"{path.name}:{number}: not a JSON object")
        elif line.get("winner") == SKIPPED:
            counts.skipped += 1
        elif why := _fault(line):
            counts.unusable.append(f"{path.name}:{number}: {why}")
        else:
            score = SCORES[str(line["winner"]).strip().casefold()]
            counts.rated += 1
            counts.ties += score == 0.5
            yield Vote(line["model_a"], line["model_b"], score, _answers(line, "a"), _answers(line, "b"))


def lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield the lines that are not blank, with their numbers; None for one that is no object. Raises InputError."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _decode(line)
    except OSError as error:
        raise InputError(f"cannot read the votes {str(path)!r}: {error.strerror}; give their file: --votes") from None


def _fault(line: Mapping[str, Any]) -> str:
    """Return why a line cannot be rated, nothing if it can."""
    for key in ("model_a", "model_b"):
        if not isinstance(line.get(key), str) or not line[key]:
            return f"{key} is not a name"
    if line["model_a"] == line["model_b"]:
        return f"{line['model_a'][:100]!r} against itself"
    winner = line.get("winner")
    if not isinstance(winner, str) or winner.strip().casefold() not in SCORES:
        return f"the winner is {str(winner)[:100]!r}; known: {', '.join(SCORES)}"
    return ""


def _answers(line: Mapping[str, Any], side: str) -> tuple[str, ...]:
    """Return the texts of one model's answers."""
    turns = line.get(f"conversation_{side}")
    if isinstance(turns, list):
        found = [turn.get("content") for turn in turns if isinstance(turn, dict) and turn.get("role") == "assistant"]
    else:
        answer = line.get(f"response_{side}")
        found = answer if isinstance(answer, list) else [answer]
    return tuple(text for text in found if isinstance(text, str))
