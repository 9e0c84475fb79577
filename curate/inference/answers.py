"""Read an answer token by token: its text up to a stop string, why it ended, and its calls of tools."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from curate.inference.batch import ScoredToken
from curate.inference.sampling import TextDecoder
from curate.inference.stops import StopCutter
from curate.schemas.conversation import Message
from curate.schemas.reading.tool_calls import find_calls

Ending = Literal["stop", "length"]  # a stop token or string; the limit of tokens


@dataclass(frozen=True)
class Placed:
    """A token, and where its text starts in the answer, in characters."""

    token: ScoredToken
    start: int


@dataclass(frozen=True)
class Part:
    """The next part of an answer, and the tokens whose text starts in it; `ending` is set in the last part."""

    text: str
    tokens: tuple[Placed, ...] = ()
    ending: Ending | None = None


class AnswerReader:
    """Turns the tokens of one answer into parts of its text, at most `room` of them."""

    def __init__(
        self, decoder: TextDecoder, stop_ids: Collection[int], stops: Sequence[str] = (), *, room: int
    ) -> None:
        self.room = room
        self.count = 0  # tokens so far, without the stop token
        self._decoder = decoder
        self._before = decoder.returned  # characters of what the text continues
        self._stop_ids = frozenset(stop_ids)
        self._cutter = StopCutter(stops)
        self._length = 0  # characters returned
        self._waiting: list[Placed] = []  # tokens whose text was not returned yet

    def add(self, token: ScoredToken) -> Part:
        """Take the next token; return the text that is certain now."""
        if token.id in self._stop_ids:
            return self._finish("stop")
        self.count += 1
        self._waiting.append(Placed(token, self._decoder.returned - self._before))
        text = self._cutter.add(self._decoder.add(token.id))
        if self._cutter.found:
            return self._part(text, "stop")
        return self._part(text, None) if self.count < self.room else self._finish("length", text)

    def _finish(self, ending: Ending, text: str = "") -> Part:
        """Return the last part, with what was held back."""
        text += self._cutter.add(self._decoder.finish())
        if self._cutter.found:
            return self._part(text, "stop")
        return self._part(text + self._cutter.finish(), ending)

    def _part(self, text: str, ending: Ending | None) -> Part:
        self._length += len(text)
        # The last token of an answer may have no text of its own; one of a stop string starts after the end.
        shown = [each for each in self._waiting if each.start < self._length or (ending and not self._cutter.found)]
        self._waiting = self._waiting[len(shown) :]
        return Part(text, tuple(shown), ending)


def read_answer(answer: str, earlier: Sequence[Message]) -> Message:
    """Return an answer to `earlier` as a message, with its calls of tools apart from its text, each with an id."""
    content, calls = find_calls(answer)
    if calls is None:
        return Message("assistant", answer)
    values = json.loads(calls)
    for number, value in enumerate(values):
        value.setdefault("id", call_id(earlier, number))
    return Message("assistant", content, tool_calls=json.dumps(values, ensure_ascii=False))


def call_id(earlier: Sequence[Message], number: int) -> str:
    """Return the id of a call in an answer to `earlier`: nine characters, as Mistral's templates want."""
    before = sum(bool(message.tool_calls) for message in earlier)
    return f"call{before:03d}{number:02d}"
