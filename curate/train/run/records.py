"""The files of a run: metrics, evaluations and samples as JSON lines, plan and facts as JSON; written and read back.

Lines are appended as the run proceeds. A last line that a kill has cut off is skipped when it is read. If a resumed run
repeats a step, its later line counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from curate.results import files as results
from curate.results.files import Result
from curate.schemas.conversation import Message

Row = dict[str, Any]
Point = tuple[int, float]  # a step and its value
METRICS, EVAL, SAMPLES, MASKED, LEFT_OUT = (
    "metrics.jsonl",
    "eval.jsonl",
    "samples.jsonl",
    "masked.jsonl",
    "left-out.jsonl",
)
CONFIG, PLAN, FACTS, REPORT = "config.toml", "plan.json", "run.json", "report.html"
# Keys of `metrics.jsonl` that a step on pairs has in addition.
PAIR_METRICS = ("accuracy", "margin", "chosen_reward", "rejected_reward", "chosen_loss", "rejected_loss")
LABELS = {  # of keys of `plan.json` and `run.json` that are not what the value is called
    "sources": "conversations",
    "conversations": "pieces",
    "eval_conversations": "held-out pieces",
    "conversations_a_step": "pieces a step",
    "identity": "file on the model's identity",
    "identity_conversations": "conversations on the model's identity",
    "identity_sha256": "SHA-256 of that file",
    "manifest_sha256": "SHA-256 of the set's manifest",
    "generated": "conversations that a model made",
    "tokenizer_hash": "SHA-256 of the vocabulary",
    "loss": "answers trained on",
    "supervised": "tokens trained on",
    "hidden_tools": "rows with tools that the template does not show",
    "model_parameters": "parameters of the model",
    "trained_parameters": "parameters trained",
    "row_tokens": "tokens of a row",
    "utilisation": "share of positions with tokens",
    "padded_utilisation": "the same with one piece a row",
    "tflops": "rate of matrix products, TFLOP/s",
    "tflops_source": "source of the rate",
    "assumed_mfu": "share of the rate that is assumed",
    "micro_batch": "rows at once",
    "grad_accum": "times a step",
    "checkpointed_layers": "layers that are recomputed",
    "optimizer_form": "form of the optimizer",
    "memory_gib": "memory by part, GiB",
    "peak_gib": "tensors at the peak, GiB",
    "needs_gib": "memory needed, GiB",
    "available_gib": "memory free, GiB",
    "flops": "operations",
    "checkpoint_gib": "a checkpoint, GiB",
    "disk_gib": "disk needed, GiB",
    "disk_free_gib": "disk free, GiB",
    "reasons": "because",
    "suggestions": "would fit",
}
BASE, TUNED = "base", "tuned"  # `which` of an evaluation or sample: the model before training, or as trained so far


# ---- evaluations


@dataclass(frozen=True)
class Slice:
    """The loss of one group of examples or answers; for pairs, also how well they are told apart."""

    name: str  # such as a language, or 3-4
    loss: float | None  # per supervised token, or per pair; None where it is not finite
    tokens: int  # supervised
    examples: int  # or pairs
    accuracy: float | None = None  # share of pairs whose chosen answer has the larger reward
    margin: float | None = None  # mean difference of the rewards

    def record(self) -> Row:
        """Return the slice as in `eval.jsonl`, where the key of `examples` is `conversations`."""
        row = {"name": self.name, "loss": self.loss, "tokens": self.tokens, "conversations": self.examples}
        return row if self.accuracy is None else {**row, "accuracy": self.accuracy, "margin": self.margin}


@dataclass(frozen=True)
class EvalLoss:
    """Held-out loss, overall and by group."""

    overall: Slice
    by_exchanges: tuple[Slice, ...] = ()  # examples by their number of exchanges
    by_depth: tuple[Slice, ...] = ()  # answers by their position in the example, from 1
    by_language: tuple[Slice, ...] = ()
    by_length: tuple[Slice, ...] = ()  # examples by their tokens

    def record(self, step: int, which: str) -> Row:
        """Return the line of `eval.jsonl`; `which` is BASE or TUNED."""
        groups = {
            "by_exchanges": self.by_exchanges,
            "by_depth": self.by_depth,
            "by_language": self.by_language,
            "by_length": self.by_length,
        }
        rows = {name: [group.record() for group in slices] for name, slices in groups.items()}
        return {"step": step, "which": which, "overall": self.overall.record(), **rows}


@dataclass(frozen=True)
class Prompt:
    """A prompt to answer."""

    name: str
    messages: tuple[Message, ...]  # to show
    ids: tuple[int, ...]  # end where the answer begins
    reference: str | None = None  # the answer in the data


@dataclass(frozen=True)
class Sample:
    """A model's answer to a prompt."""

    prompt: Prompt
    answer: str
    stopped: bool  # by a stop token, not by the limit
    tokens: int

    def record(self, step: int, which: str) -> Row:
        """Return the line of `samples.jsonl`; `which` is BASE or TUNED."""
        messages = [{"role": message.role, "content": message.content} for message in self.prompt.messages]
        reference = {} if self.prompt.reference is None else {"reference": self.prompt.reference}
        return {
            "step": step,
            "which": which,
            "name": self.prompt.name,
            "messages": messages,
            **reference,
            "answer": self.answer,
            "stopped": self.stopped,
            "tokens": self.tokens,
        }


def label(key: str) -> str:
    """Return a key of `plan.json` or `run.json` in words, to show."""
    return LABELS.get(key, key.replace("_", " "))


# ---- reading


@dataclass(frozen=True)
class Records:
    """The contents of a run's files. Rows are JSON objects, and may lack keys: anyone can edit these files."""

    name: str  # of the run's folder
    metrics: list[Row] = field(default_factory=list)  # one for each step, in order
    evals: list[Row] = field(default_factory=list)  # in order of their steps
    samples: list[Row] = field(default_factory=list)  # as written
    masked: list[Row] = field(default_factory=list)  # examples in spans, with loss or without
    left_out: list[Row] = field(default_factory=list)  # examples and exchanges, with reasons
    plan: Row = field(default_factory=dict)
    facts: Row = field(default_factory=dict)  # run.json
    config: str = ""  # TOML
    results: list[Result] = field(default_factory=list)  # benchmarks, judges, votes
    unread: list[str] = field(default_factory=list)  # names of results that cannot be read

    def generated(self) -> list[Row]:
        """Return how many conversations a model made, by their origin; older runs have only text on it."""
        data = self.facts.get("data")
        rows = data.get("generated") if isinstance(data, dict) else None
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []

    def evaluation(self, which: str) -> Row | None:
        """Return the last evaluation of the base or the tuned model."""
        return next((row for row in reversed(self.evals) if row.get("which") == which), None)

    def answers(self) -> list[tuple[Row | None, Row]]:
        """Return pairs of the base and the tuned model's last answer to each prompt; the base's may be None."""
        last: dict[tuple[str, str], Row] = {}
        for row in self.samples:
            last[str(row.get("which")), _prompt_key(row)] = row
        tuned = [(key, row) for (which, key), row in last.items() if which == TUNED]
        return [(last.get((BASE, key)), row) for key, row in tuned]


def _prompt_key(row: Row) -> str:
    """Identify a prompt; not by its name alone, which all fixed prompts share."""
    return json.dumps([row.get("name"), row.get("messages")], sort_keys=True)


def read(run: Path) -> Records:
    """Read a run's folder; a file that does not exist or cannot be read counts as empty."""
    measured = list(results.read_all(run / results.FOLDER))
    return Records(
        name=run.resolve().name,
        metrics=_by_step(read_lines(run / METRICS), ("step",)),
        evals=_by_step([_sound_slices(row) for row in read_lines(run / EVAL)], ("step", "which")),
        samples=[_sound_sample(row) for row in read_lines(run / SAMPLES)],
        masked=read_lines(run / MASKED),
        left_out=read_lines(run / LEFT_OUT),
        plan=_object(run / PLAN),
        facts=_object(run / FACTS),
        config=_text(run / CONFIG),
        results=[result for _, result in measured if result is not None],
        unread=[path.name for path, result in measured if result is None],
    )


def read_lines(path: Path) -> list[Row]:
    """Return the objects of a file of JSON lines; an empty list if there is no file."""
    rows = []
    for line in _text(path).splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # cut off by a kill, or damaged
        if isinstance(row, dict):
            rows.append(row)
    return rows


def points(rows: Iterable[Row], key: str) -> list[Point]:
    """Return the curve of a value over the steps, without steps at which it is not a finite number."""
    values = [(row["step"], row.get(key)) for row in rows]
    return [(step, float(value)) for step, value in values if isinstance(value, int | float) and math.isfinite(value)]


def held_out_curve(history: Records, which: str) -> list[Point]:
    """Return the held-out loss of the `base` or the `tuned` model over the steps."""
    rows = [row for row in history.evals if row.get("which") == which and isinstance(row.get("overall"), dict)]
    return points([{"step": row["step"], "loss": row["overall"].get("loss")} for row in rows], "loss")


def smooth(curve: Sequence[Point], weight: float = 0.9) -> list[Point]:
    """Return the exponential running mean of a curve; `weight` is that of the past.

    The mean begins at 0, and that bias is corrected as in Adam (arXiv 1412.6980).
    """
    means, mean = [], 0.0
    for count, (step, value) in enumerate(curve, 1):
        mean = weight * mean + (1 - weight) * value
        means.append((step, mean / (1 - weight**count)))
    return means


def downsample(curve: Sequence[Point], max_points: int) -> list[Point]:
    """Return at most `max_points` points of a curve, each the mean of consecutive points, at the last step of them."""
    if len(curve) <= max_points:
        return list(curve)
    cuts = [index * len(curve) // max_points for index in range(max_points + 1)]
    groups = [curve[start:end] for start, end in pairwise(cuts)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append objects as JSON lines; a partial line that a kill has left is ended first."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with path.open("ab+") as file:  # positioned at the end
        if file.tell():
            file.seek(-1, 2)  # read the last byte; in append mode, writes go to the end anyway
            text = text if file.read(1) == b"\n" else "\n" + text
        file.write(text.encode("utf-8", "backslashreplace"))  # lone surrogates


def _by_step(rows: list[Row], keys: tuple[str, ...]) -> list[Row]:
    """Keep the last row for each value of `keys`, in order of the steps."""
    last = {tuple(row.get(key) for key in keys): row for row in rows if isinstance(row.get("step"), int)}
    return sorted(last.values(), key=lambda row: int(row["step"]))


def _sound_sample(row: Row) -> Row:
    """Return a sample whose messages are a list."""
    return row if isinstance(row.get("messages"), list) else {**row, "messages": []}


def _sound_slices(row: Row) -> Row:
    """Return an evaluation without the slices that are damaged."""
    groups = {key: value if isinstance(value, list) else [] for key, value in row.items() if key.startswith("by_")}
    sound = {key: [part for part in value if _is_slice(part)] for key, value in groups.items()}
    others = {key: value for key, value in row.items() if key != "overall" or _is_slice(value)}
    return {**others, **sound}


def _is_slice(value: object) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("name", ""), str):
        return False
    return all(part is None or type(part) in (int, float) for key, part in value.items() if key != "name")


def _object(path: Path) -> Row:
    try:
        value = json.loads(_text(path) or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(path: Path) -> str:
    if not path.is_file():  # opening a pipe would wait for a writer
        return ""
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
