"""Blind battles: which two models answer which prompt, on which side, and what is known before the vote."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from curate.arena.contestants import AnswerFailed, AskSettings, Contestant
from curate.arena.prompts import Prompt
from curate.arena.votes import VOTES

Side = Literal["left", "right"]
SIDES: tuple[Side, Side] = ("left", "right")
LETTERS: dict[Side, str] = {"left": "a", "right": "b"}
MAX_OPEN = 1_000  # battles without a vote that are remembered
Pairing = tuple[frozenset[str], str]  # the names, and the prompt's id, empty for a typed one


class NotNow(Exception):
    """What a page asks for is not possible in the battle's state."""


@dataclass(frozen=True)
class AnswerPart:
    """A part of one side's answer. In its last part, `end` is set, or `failed`, with the reason for the terminal."""

    side: Side
    text: str = ""
    end: bool = False
    cut: bool = False
    failed: str | None = None


@dataclass
class Battle:
    """One chat with two models; both see the same prompts, and each its own answers."""

    id: str
    players: Mapping[Side, Contestant]
    prompt: Prompt | None
    chats: dict[Side, list[dict[str, str]]]
    turns: int = 0  # answered by both
    answering: bool = False
    vote: str | None = None  # once it is in the file
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def next_prompt(self) -> str | None:
        """The next turn of a prompt from a file."""
        return self.prompt.turns[self.turns] if self.prompt and self.turns < len(self.prompt.turns) else None

    @property
    def names(self) -> dict[Side, str]:
        """Which model is on which side: for after the vote only."""
        return {side: player.name for side, player in self.players.items()}

    async def ask(self, text: str, settings: AskSettings) -> AsyncIterator[AnswerPart]:
        """Yield both answers to a prompt as they are generated; the turn counts once both have ended.

        A file's answer is there at once, and would tell which side it is: beside a model that is asked now, both are
        yielded once both have ended. Raises NotNow while others are generated, and after the vote.
        """
        if self.answering or self.vote:
            raise NotNow("the answers are not finished" if self.answering else "this battle is over")
        self.answering = True
        parts: asyncio.Queue[AnswerPart] = asyncio.Queue()
        answers: dict[Side, str] = dict.fromkeys(SIDES, "")
        tasks = [asyncio.create_task(self._answer(side, text, settings, parts)) for side in SIDES]
        failed, waiting = False, len(SIDES)
        held: list[AnswerPart] = []
        together = len({player.sampled for player in self.players.values()}) > 1
        try:
            while waiting:
                part = await parts.get()
                answers[part.side] += part.text
                failed |= part.failed is not None
                waiting -= part.end
                if part.end and waiting == 0 and not failed:
                    self._keep(text, answers)
                held.append(part)
                if waiting and together:
                    continue
                for each in held:
                    yield each
                held.clear()
        finally:
            self.answering = False
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, side: Side, text: str, settings: AskSettings, parts: asyncio.Queue[AnswerPart]) -> None:
        messages = [*self.chats[side], {"role": "user", "content": text}]
        cut, failed, length = False, None, 0
        try:
            async with aclosing(self.players[side].stream(messages, settings)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    cut |= piece.cut
                    length += len(piece.text.strip())
                    parts.put_nowait(AnswerPart(side, piece.text))
            failed = None if length else "the answer is empty"
        except AnswerFailed as error:
            failed = str(error)
        except Exception as error:
            failed = f"{type(error).__name__}: {error}"
        parts.put_nowait(AnswerPart(side, end=True, cut=cut, failed=failed))

    def _keep(self, text: str, answers: Mapping[Side, str]) -> None:
        for side in SIDES:
            self.chats[side] += [
                {"role": "user", "content": text},
                {"role": "assistant", "content": answers[side]},
            ]
        self.turns += 1

    def record(self, vote: str, settings: AskSettings) -> dict[str, Any]:
        """Return the line of the file of votes; raises NotNow before both have answered."""
        if self.answering or (not self.turns and vote != "skip"):
            raise NotNow("the answers are not finished" if self.answering else "there are no answers to judge")
        sides: dict[str, Any] = {}
        sampling = {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
        for side, letter in LETTERS.items():
            sides |= {f"model_{letter}": self.players[side].name, f"conversation_{letter}": self.chats[side]}
        return {
            "id": self.id,
            **sides,
            "winner": VOTES[vote],
            "turn": self.turns,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            **({"prompt_id": self.prompt.id} if self.prompt else {}),
            "origins": {letter: dict(self.players[side].origin) for side, letter in LETTERS.items()},
            **({"settings": sampling} if any(player.sampled for player in self.players.values()) else {}),
        }


class Arena:
    """The contestants, the prompts, and the battles that are open."""

    def __init__(
        self,
        contestants: Sequence[Contestant],
        prompts: Sequence[Prompt] | None,
        settings: AskSettings,
        *,
        typed: bool,
        past: Mapping[Pairing, int] | None = None,
        chance: random.Random | None = None,
    ) -> None:
        self.contestants = contestants
        self.prompts = prompts
        self.settings = settings
        self.typed = typed  # whether voters may type prompts
        self._shown = Counter(past or {})  # battles of each pairing, those of earlier runs too
        self._chance = chance or random.SystemRandom()
        self._open: OrderedDict[str, Battle] = OrderedDict()

    def start(self) -> Battle | None:
        """Return a new battle of a pair that has met least, on its next prompt; None if none is left.

        Prompts of a file are shown once to each pair; then prompts are typed, if they may be. Sides are random.
        """
        prompt, pair = self._choose()
        if prompt is None and not self.typed:
            return None
        self._shown[_pairing(pair, prompt)] += 1
        left, right = self._chance.sample(pair, 2)
        opening = [{"role": "system", "content": self.settings.system}] if self.settings.system else []
        battle = Battle(
            secrets.token_urlsafe(16), {"left": left, "right": right}, prompt, {side: list(opening) for side in SIDES}
        )
        self._open[battle.id] = battle
        while len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)
        return battle

    def _choose(self) -> tuple[Prompt | None, tuple[Contestant, Contestant]]:
        pairs = [(a, b) for i, a in enumerate(self.contestants) for b in self.contestants[:i]]
        self._chance.shuffle(pairs)
        met = {id(pair): sum(self._shown[_pairing(pair, prompt)] for prompt in self._slots()) for pair in pairs}
        pairs.sort(key=lambda pair: met[id(pair)])
        for pair in pairs:
            for prompt in self.prompts or ():
                if not self._shown[_pairing(pair, prompt)]:
                    return prompt, pair
        return None, pairs[0]

    def _slots(self) -> list[Prompt | None]:
        return [None, *(self.prompts or ())]

    @property
    def unvoted(self) -> int:
        """How many prompts of the file were shown in this run and have no vote, such as on a page that was closed."""
        return sum(battle.prompt is not None and battle.vote is None for battle in self._open.values())

    def find(self, battle_id: str) -> Battle | None:
        """Return an open battle."""
        return self._open.get(battle_id)


def _pairing(pair: Sequence[Contestant], prompt: Prompt | None) -> Pairing:
    return frozenset(player.name for player in pair), prompt.id if prompt else ""
