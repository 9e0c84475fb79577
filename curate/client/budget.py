"""A budget of calls and tokens, which is never exceeded."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from curate.errors import CurateError


class BudgetSpent(CurateError):
    """The next call would exceed the budget."""


@dataclass
class Budget:
    """Calls and tokens that may be used, by this run and those that it continues; None is no limit.

    Tokens are reserved before a call, by an estimate that is rather too high, and counted by the server's own figures
    after it. Calls take their turn in the order in which they were asked for, so that which ones are refused does not
    depend on how fast others end.
    """

    max_calls: int | None = None
    max_tokens: int | None = None
    calls: int = 0
    tokens: int = 0

    def __post_init__(self) -> None:
        self._reserved = 0
        self._spent: BudgetSpent | None = None
        self._turn = asyncio.Lock()
        self._settled = asyncio.Event()

    async def reserve(self, tokens: int) -> None:
        """Reserve tokens, waiting for calls under way where they decide; raises BudgetSpent."""
        async with self._turn:
            while self.max_tokens is not None and self.tokens + self._reserved + tokens > self.max_tokens:
                if not self._reserved:
                    self._refuse(f"the next call may take {tokens:,} tokens, and {self.tokens:,} of", "tokens")
                self._settled.clear()
                await self._settled.wait()
            if self._spent:
                raise self._spent
            self._reserved += tokens

    def count_call(self) -> None:
        """Count a call that is about to be made, also one that is repeated; raises BudgetSpent."""
        if self._spent:
            raise self._spent
        if self.max_calls is not None and self.calls >= self.max_calls:
            self._refuse(f"{self.calls:,} of", "calls")
        self.calls += 1

    def settle(self, reserved: int, used: int) -> None:
        """Count the tokens that a call has used, in place of those reserved for it."""
        self._reserved -= reserved
        self.tokens += used
        self._settled.set()

    def _refuse(self, what: str, unit: str) -> None:
        limit = self.max_calls if unit == "calls" else self.max_tokens
        self._spent = BudgetSpent(
            f"the budget is used up: {what} {limit:,} {unit} are used; raise --max-{unit} and type the same command"
        )
        raise self._spent
