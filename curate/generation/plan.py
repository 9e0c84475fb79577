"""The settings of a run, and what it will use: told before anything is asked."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

from curate.display.figures import number, plural
from curate.errors import RecipeError, did_you_mean
from curate.generation.steps import Sampling


@dataclass(frozen=True)
class MethodFacts:
    """What a method needs and yields."""

    needs_prompts: bool
    count: int | None  # conversations by default; None: one for each prompt
    yields: float  # prompts that one request for prompts yields, as a plan assumes; 0 where none is asked for
    reply_tokens: int  # by default
    temperature: float


METHODS = {
    "self-instruct": MethodFacts(False, 100, 12.0, 3072, 1.0),
    "evol": MethodFacts(True, None, 0.8, 1024, 1.0),
    "magpie": MethodFacts(False, 100, 0.8, 1024, 1.0),
    "answers": MethodFacts(True, None, 0.0, 1024, 1.0),
}
OWN_KEYS = {"messages", "prompt", "stop", "stream", "n", "model"}
PROMPT_TOKENS = 500  # of a request, as a plan assumes


@dataclass(frozen=True)
class Settings:
    """The settings of a generation, without the prompts or seeds."""

    method: str
    model: str
    languages: tuple[str, ...] = ()
    count: int | None = None
    turns: int = 1
    rounds: int = 1
    system: str = ""
    template: str = ""
    temperature: float | None = None
    answer_temperature: float = 0.7
    top_p: float = 1.0
    reply_tokens: int | None = None
    similarity: float = 0.7
    seed: int = 0
    body: str = ""  # JSON: more keys of requests

    def complete(self) -> Settings:
        """Return the settings with the method's defaults; raises RecipeError for one that is not allowed."""
        if self.method not in METHODS:
            raise RecipeError(f"no method {self.method!r}{did_you_mean(self.method, METHODS)}")
        facts = METHODS[self.method]
        own = {
            "turns": (self.turns, 1, ("evol", "magpie", "answers")),
            "rounds": (self.rounds, 1, ("evol",)),
            "languages": (self.languages, (), ("self-instruct",)),
            "system": (self.system, "", ("magpie", "answers")),
            "template": (self.template, "", ("magpie",)),
        }
        for name, (value, default, methods) in own.items():
            if value != default and self.method not in methods:
                raise RecipeError(f"{name} has no effect on {self.method}; it is for {', '.join(methods)}")
        limits = {
            "count": self.count is None or self.count > 0,
            "turns": self.turns > 0,
            "rounds": self.rounds > 0,
            "temperature": self.temperature is None or 0 <= self.temperature <= 5,
            "answer_temperature": 0 <= self.answer_temperature <= 5,
            "top_p": 0 < self.top_p <= 1,
            "reply_tokens": self.reply_tokens is None or self.reply_tokens > 0,
            "similarity": 0 < self.similarity <= 1,
            "seed": 0 <= self.seed < 2**31,
        }
        for name, allowed in limits.items():
            if not allowed:
                raise RecipeError(f"{name} = {getattr(self, name)!r} is not allowed")
        _ = self.more
        temperature = facts.temperature if self.temperature is None else self.temperature
        return replace(self, temperature=temperature, reply_tokens=self.reply_tokens or facts.reply_tokens)

    @property
    def more(self) -> dict[str, Any]:
        """More keys of requests; raises RecipeError for what is no JSON object, or for keys that a run decides."""
        try:
            more = json.loads(self.body or "{}")
        except (ValueError, RecursionError):
            more = None
        if not isinstance(more, dict):
            raise RecipeError(f"body = {self.body!r} is not a JSON object, such as '{{\"top_k\": 40}}'")
        if wrong := sorted(more.keys() & OWN_KEYS):
            raise RecipeError(f"body sets {', '.join(wrong)}, which the run decides")
        return more

    @property
    def sampling(self) -> Sampling:
        """How prompts are sampled."""
        assert self.temperature is not None and self.reply_tokens is not None  # complete
        return Sampling(self.temperature, self.top_p, self.reply_tokens)


@dataclass(frozen=True)
class Plan:
    """About what a run will use, with the tokens as if each reply were as long as it may be.

    `replaces` says whether the run asks again in place of what it drops.
    """

    method: str
    model: str
    conversations: int
    calls: int
    tokens: int
    max_calls: int | None
    max_tokens: int | None
    replaces: bool

    def describe(self) -> str:
        """Return the plan on one line."""
        limits = {"calls": self.max_calls, "tokens": self.max_tokens}
        given = [f"{number(limit)} {unit}" for unit, limit in limits.items() if limit is not None]
        more = ", more if replies are dropped" if self.replaces else ""
        return (
            f"{self.method}: {number(self.conversations)} {plural(self.conversations, 'conversation')} "
            f"by {self.model}: about {number(self.calls)} {plural(self.calls, 'call')} and up to "
            f"{number(self.tokens)} tokens{more}; the budget is {' and '.join(given) or 'not limited'}"
        )


def make_plan(settings: Settings, prompts: int, max_calls: int | None, max_tokens: int | None) -> Plan:
    """Return the plan of a run for so many given prompts."""
    facts = METHODS[settings.method]
    possible = prompts * settings.rounds if facts.needs_prompts else None
    wanted = settings.count or facts.count or possible or 0
    conversations = wanted if possible is None else min(wanted, possible)
    asked = math.ceil(conversations / facts.yields) if facts.yields else 0
    if possible is not None:
        asked = min(asked, possible)
    turns = 0 if settings.method == "self-instruct" else 2 * settings.turns - 1
    calls = asked + conversations * turns
    reply = settings.sampling.max_tokens
    talk = sum(PROMPT_TOKENS + (read + 1) * reply for read in range(turns))  # each reads the replies before it
    tokens = asked * (PROMPT_TOKENS + reply) + conversations * talk
    return Plan(settings.method, settings.model, conversations, calls, tokens, max_calls, max_tokens, possible is None)
