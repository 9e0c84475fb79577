"""`curate judge`: ask a model for ratings or preferences, and report them with intervals."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curate import files
from curate.arena.prompts import Chat, Prompt, read_answers
from curate.client.budget import Budget
from curate.client.client import Client, Settings, ask_in_order
from curate.client.endpoint import Endpoint, make_endpoint
from curate.client.exchange import Reply, Request
from curate.client.journal import Journal
from curate.display.text import to_json
from curate.errors import InputError
from curate.judging import results, wording
from curate.judging.contenders import (
    Contender,
    JudgeSettings,
    Mode,
    Task,
    pair_tasks,
    read_contenders,
    shared_prompts,
    single_tasks,
)
from curate.judging.results import Judgement, JudgeReport, PairResult, SingleResult

JOURNAL, JUDGEMENTS, VOTES, RESULTS = "journal.jsonl", "judgements.jsonl", "votes.jsonl", "results.json"
WINDOW = 4  # requests that are prepared, for each that is under way
Say = Callable[[str], None]


@dataclass(frozen=True)
class _Work:
    """Everything to be judged."""

    mode: Mode
    contenders: Sequence[Contender]
    references: Mapping[Prompt, Chat]
    tasks: Sequence[Task]


def judge(
    answers: str | Path | Sequence[str | Path],
    out: str | Path = "judged",
    *,
    server: str,
    model: str,
    key: str | None = None,
    single: bool = False,
    references: str | Path | None = None,
    repeats: int = 1,
    temperature: float | None = None,
    reply_tokens: int = 1024,
    max_calls: int | None = None,
    max_tokens: int | None = None,
    concurrency: int = 8,
    attempts: int = 6,
    timeout: float = 600.0,
    fresh: bool = False,
    dry_run: bool = False,
    say: Say = lambda text: None,
) -> JudgeReport | None:
    """Judge files of answers; write judgements, votes and results to the folder `out`. None for a dry run.

    `answers` are files or `NAME=FILE`: one is rated, and of several the first is the baseline of the others. `key` is
    sent to the server and written nowhere. A run that was stopped goes on from its journal, and asks nothing twice.
    `max_calls` and `max_tokens` are never exceeded; another machine's server is not asked without one of them. Raises
    CurateError with what to type.
    """
    chosen = (0.7 if repeats > 1 else 0.0) if temperature is None else temperature
    settings = JudgeSettings(model, repeats, chosen, reply_tokens)
    named = [str(each) for each in ([answers] if isinstance(answers, str | Path) else answers)]
    endpoint, out = make_endpoint(server, key), Path(out)
    work, notes = _prepare(named, single, None if references is None else Path(references), settings)
    for note in notes:
        say(note)
    requests = [task.request for task in work.tasks]
    tokens = sum(request.most_tokens for request in requests)
    say(f"{len(requests):,} judgements, at most about {tokens:,} tokens")
    if dry_run:
        return None
    if max_calls is None and max_tokens is None and not endpoint.is_local:
        raise InputError(
            f"{endpoint.url} may charge for calls; allow about what is planned: --max-calls {len(requests)} or "
            f"--max-tokens {tokens}"
        )
    if endpoint.sends_key_in_clear:
        say(f"warning: the key is sent to {endpoint.url} without encryption; use https")
    out.mkdir(parents=True, exist_ok=True)
    journal_path = out / JOURNAL
    if fresh:
        files.remove(journal_path, out)
    with Journal(journal_path, _header(endpoint, settings)) as journal:
        for note in journal.notes:
            say(note)
        budget = Budget(max_calls, max_tokens, journal.calls, journal.tokens)
        asking = Client(endpoint, journal, budget, Settings(concurrency, attempts, timeout), tell=say)
        try:
            replies = asyncio.run(_ask(requests, asking, say))
        except KeyboardInterrupt as stop:
            stop.args = ("the replies so far are kept; type the same command to continue",)
            raise
        judgements = [results.read_judgement(task, reply) for task, reply in zip(work.tasks, replies, strict=True)]
        report = _report(work, judgements, endpoint, settings, budget, notes)
        _write(out, work, judgements, report)
    return report


def _prepare(
    answers: Sequence[str], single: bool, references: Path | None, settings: JudgeSettings
) -> tuple[_Work, list[str]]:
    """Read all files, and return the work with notes on what is left out; raises InputError."""
    contenders, notes = read_contenders(answers)
    known: dict[Prompt, Chat] = {}
    if references is not None:
        known = {chat.prompt: chat for chat in read_answers(references)[0]}
        prompts = {prompt for each in contenders for prompt in each.chats}
        if not prompts & known.keys():
            raise InputError(f"{str(references)!r} answers none of the prompts; give references to the same prompts")
    mode: Mode = "single" if single or len(contenders) == 1 else "pair"
    if mode == "single":
        tasks = [task for each in contenders for task in single_tasks(each, known, settings)]
        return _Work(mode, contenders, known, tasks), notes
    first, *models = contenders
    for model in models:
        shared = len(shared_prompts(model, first))
        if left := len(model.chats) + len(first.chats) - 2 * shared:
            notes.append(f"{model.name} and {first.name} share {shared:,} prompts; {left:,} of one file are left out")
    tasks = [task for model in models for task in pair_tasks(model, first, known, settings)]
    return _Work(mode, contenders, known, tasks), notes


def _header(endpoint: Endpoint, settings: JudgeSettings) -> dict[str, Any]:
    """Return what must not change while a journal is used; repeats and files may be added."""
    return {
        "command": "judge",
        "server": endpoint.url,
        "model": settings.model,
        "prompts": wording.prompts_hash(),
        "temperature": settings.temperature,
        "reply_tokens": settings.reply_tokens,
    }


async def _ask(requests: Sequence[Request], asking: Client, say: Say) -> list[Reply]:
    """Return the replies to all requests, in their order; raises ServerError or BudgetSpent."""
    waiting = iter(requests)
    replies: list[Reply] = []
    step = max(1, len(requests) // 20)
    async with asking as client:
        window = WINDOW * client.settings.concurrency
        async for _, reply in ask_in_order(client, lambda _: next(waiting, None), window):
            replies.append(reply)
            if len(replies) % step == 0:
                say(f"{len(replies):,} of {len(requests):,} judged")
    return replies


def _report(
    work: _Work,
    judgements: Sequence[Judgement],
    endpoint: Endpoint,
    settings: JudgeSettings,
    budget: Budget,
    notes: Sequence[str],
) -> JudgeReport:
    by_name: dict[str, list[Judgement]] = defaultdict(list)
    for each in judgements:
        by_name[each.task.name].append(each)
    asked = {each.task.prompt for each in judgements}
    single: tuple[SingleResult, ...] = ()
    pairs: tuple[PairResult, ...] = ()
    if work.mode == "single":
        single = tuple(results.single_result(each.name, by_name[each.name]) for each in work.contenders)
    else:
        scores = {name: results.prompt_scores(found) for name, found in by_name.items()}
        first, *models = work.contenders
        pairs = tuple(
            results.pair_result(
                model, first, by_name[model.name], [each for name, each in scores.items() if name != model.name]
            )
            for model in models
        )
    return JudgeReport(
        work.mode,
        settings.model,
        tuple(sorted({each.reply.model for each in judgements if each.reply.model})),
        endpoint.url,
        wording.prompts_hash(),
        settings.repeats,
        settings.temperature,
        len(asked),
        len(asked & work.references.keys()),
        budget.calls,
        budget.tokens,
        single,
        pairs,
        tuple(notes),
    )


def _write(out: Path, work: _Work, judgements: Sequence[Judgement], report: JudgeReport) -> None:
    _write_lines(out / JUDGEMENTS, (each.record() for each in judgements))
    if work.mode == "pair":
        first, *models = work.contenders
        found = (
            vote
            for model in models
            for vote in results.votes(
                model, first, [each for each in judgements if each.task.name == model.name], report.judge
            )
        )
        _write_lines(out / VOTES, found)
    files.write_text(out / RESULTS, to_json(report) + "\n")


def _write_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    files.write_text(path, "".join(f"{json.dumps(value, ensure_ascii=False)}\n" for value in values))
