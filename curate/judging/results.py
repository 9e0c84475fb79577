"""What judgements come to: figures for each model, and counts of what gave none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from curate.arena.prompts import Prompt
from curate.client.exchange import Reply
from curate.judging import figures, wording
from curate.judging.contenders import Contender, Mode, Task
from curate.judging.figures import Figure

Problem = Literal["malformed", "failed"]
Pair = tuple[Prompt, int, int]  # prompt, turn, repeat


@dataclass(frozen=True)
class Judgement:
    """A reply of the judge: the rating, or the score of the model against the baseline; None with a `problem`."""

    task: Task
    reply: Reply
    value: float | None
    problem: Problem | None = None

    def record(self) -> dict[str, Any]:
        """Return it as a line of the file of judgements."""
        task = self.task
        order = {"order": task.order} if task.order else {}
        where = {"model": task.name, "prompt_id": task.prompt.id, "turn": task.turn, "repeat": task.repeat, **order}
        problem = {"problem": self.problem} if self.problem else {}
        return {**where, "value": self.value, **problem, "reply": self.reply.text, "error": self.reply.error}


@dataclass(frozen=True)
class Counts:
    """What became of the requests."""

    judgements: int
    malformed: int  # replies without one clear verdict
    failed: int  # requests without a reply


@dataclass(frozen=True)
class SingleResult:
    """One model's ratings; a figure that has no interval is None."""

    model: str
    rating: Figure | None
    by_turn: tuple[Figure | None, ...]
    counts: Counts


@dataclass(frozen=True)
class PairResult:
    """One model against the baseline. A pair of orders is a win or a loss only if both say so."""

    model: str
    baseline: str
    win_rate: Figure | None
    length_controlled: Figure | None
    by_turn: tuple[Figure | None, ...]
    wins: int
    losses: int
    ties: int  # with those of flips
    flips: int  # each order prefers another answer, or only one of them a tie
    undecided: int  # an order has no verdict
    first_seat: int  # verdicts for the answer that was shown as A, of `verdicts` for A or B
    verdicts: int
    characters: tuple[float, float]  # mean of the model's answers and of the baseline's
    counts: Counts


@dataclass(frozen=True)
class JudgeReport:
    """All figures of a run, and what they depend on."""

    mode: Mode
    judge: str  # the model that was asked for
    answered_as: tuple[str, ...]  # the names that replies gave
    server: str
    prompts_hash: str  # of the judge's prompts
    repeats: int
    temperature: float
    prompts: int
    references: int
    calls: int
    tokens: int
    single: tuple[SingleResult, ...] = ()
    pairs: tuple[PairResult, ...] = ()
    notes: tuple[str, ...] = field(default=())


def read_judgement(task: Task, reply: Reply) -> Judgement:
    """Return what a reply says."""
    if reply.error is not None:
        return Judgement(task, reply, None, "failed")
    if task.order is None:
        value = wording.read_rating(reply.text)
    else:
        verdict = wording.read_verdict(reply.text)
        own = "A" if task.order == "AB" else "B"
        value = None if verdict is None else 0.5 if verdict == "C" else float(verdict == own)
    return Judgement(task, reply, value, "malformed" if value is None else None)


def _count(judgements: Sequence[Judgement]) -> Counts:
    problems = [each.problem for each in judgements]
    return Counts(len(judgements), problems.count("malformed"), problems.count("failed"))


# ---- single answers


def single_result(name: str, judgements: Sequence[Judgement]) -> SingleResult:
    """Return a model's ratings: the mean over prompts of the mean over turns and repeats."""
    values = [(each.task.prompt, each.task.turn, each.value) for each in judgements if each.value is not None]
    overall, turns = _figures(values, wording.LOWEST, wording.HIGHEST)
    return SingleResult(name, overall, turns, _count(judgements))


def _figures(
    values: Sequence[tuple[Prompt, int, float]], lowest: float, highest: float
) -> tuple[Figure | None, tuple[Figure | None, ...]]:
    """Return the figure over all turns, and that of each turn where there are several."""
    last = max((turn for _, turn, _ in values), default=1)
    by_turn = tuple(
        figures.mean_figure(
            list(_by_prompt((prompt, value) for prompt, at, value in values if at == turn).values()), lowest, highest
        )
        for turn in range(1, last + 1)
    )
    overall = list(_by_prompt((prompt, value) for prompt, _, value in values).values())
    return figures.mean_figure(overall, lowest, highest), by_turn if last > 1 else ()


def _by_prompt(values: Iterable[tuple[Prompt, float]]) -> dict[Prompt, float]:
    found: dict[Prompt, list[float]] = defaultdict(list)
    for prompt, value in values:
        found[prompt].append(value)
    return {prompt: fmean(each) for prompt, each in found.items()}


# ---- pairs


def decide(judgements: Sequence[Judgement]) -> tuple[dict[Pair, float], int, int]:
    """Return the score of each pair of orders, how many flipped, and how many are undecided.

    A win or a loss needs both orders; anything else that both have a verdict on is a tie.
    """
    orders: dict[Pair, list[float | None]] = defaultdict(list)
    for each in judgements:
        orders[each.task.prompt, each.task.turn, each.task.repeat].append(each.value)
    whole = {
        pair: [value for value in values if value is not None]
        for pair, values in orders.items()
        if len(values) == 2 and None not in values
    }
    scores = {pair: first if first == second else 0.5 for pair, (first, second) in whole.items()}
    flips = sum(first != second for first, second in whole.values())
    return scores, flips, len(orders) - len(whole)


def prompt_scores(judgements: Sequence[Judgement]) -> dict[Prompt, float]:
    """Return the mean score of each prompt."""
    return _by_prompt((prompt, score) for (prompt, *_), score in decide(judgements)[0].items())


def pair_result(
    model: Contender, baseline: Contender, judgements: Sequence[Judgement], others: Sequence[Mapping[Prompt, float]]
) -> PairResult:
    """Return a model's win rate; `others` are the prompts' scores of other models against the same baseline."""
    scores, flips, undecided = decide(judgements)
    by_prompt = prompt_scores(judgements)
    lengths = [(_length(model, prompt), _length(baseline, prompt)) for prompt in by_prompt]
    known = (
        [fmean(each[prompt] for each in others if prompt in each) for prompt in by_prompt]
        if _all(by_prompt, others)
        else None
    )
    overall, turns = _figures([(prompt, turn, score) for (prompt, turn, _), score in scores.items()], 0.0, 1.0)
    outcomes = list(scores.values())
    seats = [each for each in judgements if each.value in (0.0, 1.0)]
    return PairResult(
        model.name,
        baseline.name,
        overall,
        figures.length_controlled(list(by_prompt.values()), lengths, known),
        turns,
        wins=outcomes.count(1.0),
        losses=outcomes.count(0.0),
        ties=outcomes.count(0.5),
        flips=flips,
        undecided=undecided,
        first_seat=sum((each.value == 1.0) == (each.task.order == "AB") for each in seats),
        verdicts=len(seats),
        characters=(fmean(own for own, _ in lengths), fmean(other for _, other in lengths)) if lengths else (0.0, 0.0),
        counts=_count(judgements),
    )


def _all(prompts: Mapping[Prompt, float], others: Sequence[Mapping[Prompt, float]]) -> bool:
    """Return whether another model has a score for every prompt."""
    return bool(others) and all(any(prompt in each for each in others) for prompt in prompts)


def _length(contender: Contender, prompt: Prompt) -> int:
    return sum(map(len, contender.chats[prompt].answers))


def votes(
    model: Contender, baseline: Contender, judgements: Sequence[Judgement], judge: str
) -> Iterable[dict[str, Any]]:
    """Yield one vote for each prompt and turn, in the form of `curate arena`'s: the mean of the repeats decides."""
    found: dict[tuple[Prompt, int], list[float]] = defaultdict(list)
    for (prompt, turn, _), score in decide(judgements)[0].items():
        found[prompt, turn].append(score)
    for (prompt, turn), scores in found.items():
        mean = fmean(scores)
        yield {
            "id": f"{model.name}-{baseline.name}-{prompt.id}-{turn}",
            "model_a": model.name,
            "model_b": baseline.name,
            "winner": "model_a" if mean > 0.5 else "model_b" if mean < 0.5 else "tie",
            "conversation_a": _messages(model, prompt, turn),
            "conversation_b": _messages(baseline, prompt, turn),
            "turn": turn,
            "judge": judge,
            "prompt_id": prompt.id,
        }


def _messages(contender: Contender, prompt: Prompt, turns: int) -> list[dict[str, str]]:
    pairs = zip(prompt.turns[:turns], contender.chats[prompt].answers[:turns], strict=True)
    return [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
