"""`curate.generate`: make conversations with a model, within a budget, and write them as a dump that `clean` reads."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from curate import files
from curate._version import __version__
from curate.client import client as clients
from curate.client.budget import Budget, BudgetSpent
from curate.client.client import Client, ask_in_order
from curate.client.endpoint import Endpoint, make_endpoint
from curate.client.journal import Journal
from curate.display.figures import plural
from curate.errors import InputError
from curate.generation import inputs, local, wording
from curate.generation.evolution import Evolution
from curate.generation.methods import GivenPrompts, Magpie
from curate.generation.output import Paths, Writer, writing
from curate.generation.plan import METHODS, Plan, Settings, make_plan
from curate.generation.raw_prompt import RawPrompt, find_raw_prompt, raw_prompt_of
from curate.generation.run import PATIENCE, Generation, State
from curate.generation.self_instruct import SelfInstruct
from curate.generation.similarity import SimilarTexts
from curate.generation.steps import Asker, Drop, Method, Prompt
from curate.generation.talks import Talks
from curate.model.files import OnMessage
from curate.model.sources import ignore_message

TERMS = "The terms of the model that wrote these texts hold for them; check that they allow training on them."


@dataclass(frozen=True)
class GenerateResult:
    """The result: the files, the plan, why it ended (`complete`, `budget`, `fruitless`, `planned`), and the counts."""

    output: Path
    dropped_file: Path
    plan: Plan
    ended: str
    accepted: int
    dropped: Mapping[str, int]
    calls: int
    tokens: int
    message: str = ""  # on the budget


@dataclass(frozen=True)
class Limits:
    """What a run may use, with those that it continues, and how it asks."""

    max_calls: int | None = None
    max_tokens: int | None = None
    concurrency: int = 8
    attempts: int = 6
    timeout: float = 600.0


def generate(
    method: str,
    model: str,
    output: str | Path = "generated.jsonl",
    *,
    server: str | None = None,
    key: str | None = None,
    prompts: str | Path | None = None,
    seeds: str | Path | None = None,
    languages: tuple[str, ...] = (),
    count: int | None = None,
    turns: int = 1,
    rounds: int = 1,
    system: str = "",
    template: str | None = None,
    temperature: float | None = None,
    answer_temperature: float = 0.7,
    top_p: float = 1.0,
    reply_tokens: int | None = None,
    similarity: float = 0.7,
    seed: int = 0,
    body: str = "",
    max_calls: int | None = None,
    max_tokens: int | None = None,
    concurrency: int = 8,
    attempts: int = 6,
    timeout: float = 600.0,
    dtype: str = "auto",
    device: str = "auto",
    fresh: bool = False,
    dry_run: bool = False,
    say: OnMessage = ignore_message,
    watch: Callable[[State], None] = lambda state: None,
) -> GenerateResult:
    """Generate conversations with a model, and write them to `output`, with what was dropped and a journal beside it.

    `method` is `self-instruct`, `evol`, `magpie` or `answers`. Without a `server`, `model` is a local model. `key` is
    sent to the server and written nowhere. A run that was stopped or killed goes on where it was, and asks nothing
    twice; `fresh` begins again. `max_calls` and `max_tokens` are never exceeded; another machine's server is not
    asked without one of them. `dry_run` only makes the plan. Raises CurateError with what to type.
    """
    settings = Settings(
        method, model, languages, count, turns, rounds, system, template or "", temperature, answer_temperature, top_p,
        reply_tokens, similarity, seed, body,
    ).complete()  # fmt: skip
    limits = Limits(max_calls, max_tokens, concurrency, attempts, timeout)
    found = _read_inputs(settings, prompts, seeds)
    plan = make_plan(settings, len(found.prompts), max_calls, max_tokens)
    say(plan.describe())
    paths = Paths(Path(output))
    endpoint = None if server is None else make_endpoint(server, key)
    raw = find_raw_prompt(settings.template, system) if method == "magpie" and settings.template else None
    if method == "magpie" and raw is None and endpoint is not None:
        raise InputError(
            "magpie needs the model's prompt template: --template NAME, a Jinja file, or the model's folder"
        )
    if dry_run:
        return GenerateResult(paths.dump, paths.dropped, plan, "planned", 0, {}, 0, 0)
    if endpoint is not None:
        _check_endpoint(endpoint, plan, limits, say)
    paths.check(fresh=fresh)
    with ExitStack() as stack:
        name = model
        if endpoint is None:
            served = stack.enter_context(
                local.serving(
                    model,
                    rows=concurrency,
                    new_tokens=settings.sampling.max_tokens,
                    dtype=dtype,
                    device=device,
                    say=say,
                )
            )
            endpoint, name = make_endpoint(served.url), served.name
            raw = raw or (raw_prompt_of(served.serving.chat_template, system) if method == "magpie" else None)
        header = {"settings": asdict(replace(settings, count=None)), "inputs": found.hash}
        journal = stack.enter_context(Journal(paths.journal, header))
        for note in journal.notes:
            say(note)
        return _Job(settings, limits, found, plan, paths, endpoint, name, raw).run(journal, say, watch)


def _check_endpoint(endpoint: Endpoint, plan: Plan, limits: Limits, say: OnMessage) -> None:
    """Ask for a budget where calls may cost, and warn of a key that others can read; raises InputError."""
    if limits.max_calls is None and limits.max_tokens is None and not endpoint.is_local:
        raise InputError(
            f"{endpoint.url} may charge for calls; allow about what is planned: --max-calls {plan.calls} or "
            f"--max-tokens {plan.tokens}"
        )
    if endpoint.sends_key_in_clear:
        say(f"warning: the key is sent to {endpoint.url} without encryption; use https")


# ---- what the user gives


@dataclass(frozen=True)
class _Inputs:
    """Given prompts, given things that are none, and seed tasks by language; and the hash of all."""

    prompts: tuple[Prompt, ...]
    drops: tuple[Drop, ...]
    seeds: Mapping[str, tuple[inputs.Task, ...]]
    hash: str


def _read_inputs(settings: Settings, prompts: str | Path | None, seeds: str | Path | None) -> _Inputs:
    """Read the prompts or seeds that a method needs; raises InputError for one that is missing or has no use."""
    wanted = METHODS[settings.method]
    if wanted.needs_prompts != (prompts is not None):
        what = "needs prompts: --prompts FILE" if wanted.needs_prompts else "makes its own prompts; leave --prompts out"
        raise InputError(f"{settings.method} {what}")
    if seeds is not None and settings.method != "self-instruct":
        raise InputError(f"{settings.method} uses no seeds; leave --seeds out")
    texts: list[str] = []
    read: list[Prompt | Drop] = []
    tasks: dict[str, tuple[inputs.Task, ...]] = {}
    if prompts is not None:
        texts.append(inputs.read_file(Path(prompts)))
        read = inputs.read_prompts(texts[-1], Path(prompts).name)
    elif seeds is not None:
        texts.append(inputs.read_file(Path(seeds)))
        if len(settings.languages) > 1:
            raise InputError("a file of seeds is in one language; give --language once, or leave it out")
        language = wording.check_languages(settings.languages)[0] if settings.languages else ""
        tasks[language] = tuple(inputs.read_tasks(texts[-1], Path(seeds).name, language))
    elif settings.method == "self-instruct":
        for language in wording.check_languages(settings.languages):
            texts.append(wording.seeds_text(language))
            tasks[language] = tuple(inputs.read_tasks(texts[-1], f"seeds/{language}.jsonl", language))
    return _Inputs(
        tuple(each for each in read if isinstance(each, Prompt)),
        tuple(each for each in read if isinstance(each, Drop)),
        tasks,
        hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16],
    )


# ---- the run


@dataclass(frozen=True)
class _Job:
    """One run against one server."""

    settings: Settings
    limits: Limits
    inputs: _Inputs
    plan: Plan
    paths: Paths
    endpoint: Endpoint
    name: str  # of the model, at the server
    raw: RawPrompt | None

    def run(self, journal: Journal, say: OnMessage, watch: Callable[[State], None]) -> GenerateResult:
        """Ask, and write the files; a budget that is used up ends it with what is complete."""
        if journal.replies:
            replies = plural(journal.replies, "reply", "replies")
            say(f"goes on with {journal.replies:,} {replies} of {self.paths.journal.name}")
        limits = self.limits
        budget = Budget(limits.max_calls, limits.max_tokens, journal.calls, journal.tokens)
        message = ""
        try:
            with writing(self.paths) as writer:
                generation = self._make_generation(writer, budget, watch)
                try:
                    asyncio.run(self._ask(generation, journal, budget, say))
                except BudgetSpent as spent:
                    message = str(spent)
                generation.close()
        except KeyboardInterrupt as stop:
            stop.args = ("what was generated is in the journal; type the same command to continue",)
            raise
        ended = "budget" if message else "fruitless" if generation.gave_up else "complete"
        result = self._result(generation.state, budget, ended, message)
        self._write_about(result, generation.state)
        return result

    def _make_generation(self, writer: Writer, budget: Budget, watch: Callable[[State], None]) -> Generation:
        settings = self.settings

        def count(state: State) -> None:
            state.calls, state.tokens = budget.calls, budget.tokens
            watch(state)

        facts = {
            "method": settings.method,
            "model": settings.model,
            "curate": __version__,
            "prompts": wording.prompts_hash(),
            "inputs": self.inputs.hash,
            "seed": settings.seed,
        }
        asker = Asker(self.name, settings.seed, settings.more)
        answers = replace(settings.sampling, temperature=settings.answer_temperature)
        turns = 1 if settings.method == "self-instruct" else settings.turns
        talks = Talks(asker, answers, settings.sampling, turns, refuse_sorry=settings.method == "evol")
        similar = self._make_similar()
        wanted = settings.count if settings.count is not None else METHODS[settings.method].count
        if settings.method == "answers":
            wanted = min(wanted or len(self.inputs.prompts), len(self.inputs.prompts))
        generation = Generation(
            self._make_method(asker), talks, similar, writer, wanted=wanted, facts=facts, watch=count
        )
        for drop in self.inputs.drops:
            generation.drop(drop)
        return generation

    def _make_method(self, asker: Asker) -> Method:
        settings, given = self.settings, self.inputs.prompts
        if settings.method == "self-instruct":
            return SelfInstruct(asker, self.inputs.seeds, settings.sampling)
        if settings.method == "evol":
            return Evolution(asker, given, settings.sampling, settings.rounds)
        if settings.method == "magpie":
            assert self.raw is not None
            return Magpie(asker, self.raw, settings.sampling, settings.system)
        return GivenPrompts([replace(each, system=settings.system or each.system) for each in given])

    def _make_similar(self) -> SimilarTexts | None:
        """Return the texts that no prompt may be too similar to; given prompts are answered as they are."""
        if self.settings.method == "answers":
            return None
        similar = SimilarTexts(self.settings.similarity)
        for tasks in self.inputs.seeds.values():
            for task in tasks:
                similar.add(task.name, task.instruction)
        for prompt in self.inputs.prompts:
            similar.add(prompt.parents[0], prompt.instruction)
        return similar

    async def _ask(self, generation: Generation, journal: Journal, budget: Budget, say: OnMessage) -> None:
        window = generation.method.window
        asking = clients.Settings(min(self.limits.concurrency, window), self.limits.attempts, self.limits.timeout)
        async with Client(self.endpoint, journal, budget, asking, tell=say) as client:
            async for request, reply in ask_in_order(client, generation.next_request, window):
                generation.take(request, reply)

    def _result(self, state: State, budget: Budget, ended: str, message: str) -> GenerateResult:
        dropped = dict(sorted(state.dropped.items()))
        return GenerateResult(
            self.paths.dump, self.paths.dropped, self.plan, ended, state.accepted, dropped, budget.calls, budget.tokens,
            message or (f"nothing of {PATIENCE} replies in a row was accepted" if ended == "fruitless" else ""),
        )  # fmt: skip

    def _write_about(self, result: GenerateResult, state: State) -> None:
        about = {
            "curate": __version__,
            "settings": asdict(self.settings),
            "server": self.endpoint.url,
            "models": dict(sorted(state.models.items())),
            "prompts": wording.prompts_hash(),
            "inputs": self.inputs.hash,
            "ended": result.ended,
            "accepted": result.accepted,
            "dropped": result.dropped,
            "calls": result.calls,
            "tokens": result.tokens,
            "terms": TERMS,
        }
        files.write_text(self.paths.about, json.dumps(about, indent=1, ensure_ascii=False) + "\n")
