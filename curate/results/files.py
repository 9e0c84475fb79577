"""The results of a model, one JSON file each: RUN/results/KIND-NAME.json, written whole and read with types checked.

Each file has the version of this format and its kind beside the fields of one of the three classes here:

    evaluation   scores on benchmarks (`curate evaluate`)
    judge        a judge's ratings or win rates, by turn
    arena        ratings of several models from votes, this one among them
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from curate import files
from curate.errors import InputError
from curate.settings import decode_json

FOLDER = "results"
KEY, FORMAT = "curate_result", 1
MAX_BYTES = 1 << 28  # of a file


# ---- evaluation


@dataclass(frozen=True)
class Score:
    """One metric of a task: of all its items, and of those that the training set does not hold."""

    metric: str
    filter: str  # how answers were read, such as strict-match; `none` for most
    value: float | None
    stderr: float | None = None
    clean: float | None = None


@dataclass(frozen=True)
class TaskScores:
    """A task: how it was asked, its metrics, and the score that stands for it."""

    task: str
    version: str  # as the task says, such as 1.0
    config_sha256: str  # of the task's settings, except where its data are
    items_sha256: str  # of the documents
    shots: int
    items: int
    metrics: tuple[Score, ...]
    main: tuple[str, ...]  # the metrics whose mean is the score, as METRIC,FILTER
    raw: float | None
    stderr: float | None
    random: float  # what guessing gets
    normalised: float | None  # (raw - random) / (1 - random), at least 0
    clean_raw: float | None  # of the items that are neither flagged nor unmatched
    clean_normalised: float | None
    clean_items: int
    flagged: tuple[str, ...] = ()  # ids of items that the training set holds
    unmatched: int = 0  # items that could not be looked for
    item_ids: tuple[str, ...] = ()
    item_scores: tuple[float, ...] = ()  # of each item, in the order of `item_ids`


@dataclass(frozen=True)
class GroupScores:
    """Tasks that count as one, such as a leaderboard: means over its members, each of which is a mean of its tasks."""

    group: str
    members: dict[str, tuple[str, ...]]  # name of the member to its tasks


@dataclass(frozen=True)
class EvaluationSettings:
    """How models were asked; scores are comparable where all of this is equal."""

    lm_eval: str  # version
    chat_template: bool  # whether prompts are chats
    template_sha256: str  # of the chat template; empty without
    fewshot_as_multiturn: bool
    shots: int | None  # for all tasks; None: those of each task
    limit: int | None  # items of each task, the first ones
    seed: int
    batch: str
    dtype: str
    device: str  # its type
    quantised: bool


@dataclass(frozen=True)
class Contamination:
    """What the items were looked for in: the set that the model was trained on, or why there was nothing to look in."""

    set: str = ""
    manifest_sha256: str = ""
    rows: int = 0
    coverage: float = 0.0  # items of which more is covered are flagged
    problem: str = ""


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on tasks, with the same settings."""

    model: str
    model_sha256: str  # of its weights
    settings: EvaluationSettings
    contamination: Contamination
    tasks: tuple[TaskScores, ...] = ()
    groups: tuple[GroupScores, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)  # of the libraries


# ---- judge and arena


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, from `count` observations; a bound is None where the data give none."""

    name: str
    value: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class Judge:
    """A judge's ratings (1 to 10) or win rates (0 to 1), by turn; the first is of all."""

    model: str
    judge: str
    prompt_sha256: str
    mode: str  # single or pair
    opponent: str = ""  # in pairs
    repeats: int = 1
    estimates: tuple[Estimate, ...] = ()
    failed: int = 0  # judgements that could not be read


@dataclass(frozen=True)
class Arena:
    """Ratings of models from votes, best first."""

    model: str  # which of them is this run's
    votes: int
    style_control: bool
    estimates: tuple[Estimate, ...] = ()


Result = Evaluation | Judge | Arena
KINDS: dict[str, type[Result]] = {
    "evaluation": Evaluation,
    "judge": Judge,
    "arena": Arena,
}


# ---- files


def file_name(result: Judge | Arena) -> str:
    """Return the name of a file for a result: a new one of the same judge or kind of votes replaces it."""
    if isinstance(result, Arena):
        return "style" if result.style_control else "votes"
    values = [result.judge, result.mode, result.opponent, result.prompt_sha256, result.repeats]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]


def write(folder: Path, name: str, result: Result) -> Path:
    """Write a result as KIND-NAME.json into a folder, which is created; return its path."""
    kind = next(kind for kind, type_ in KINDS.items() if type(result) is type_)
    path = folder / f"{kind}-{name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({KEY: FORMAT, "kind": kind, **asdict(result)}, ensure_ascii=False, allow_nan=False, indent=1)
    files.write_text(path, text + "\n")
    return path


def read(path: Path) -> Result:
    """Read a result; raises InputError for a file that is none, is damaged or cannot be read."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError("it is too large")
        values = json.loads(files.read_whole(path), parse_constant=_refuse)
        if not isinstance(values, dict) or values.get(KEY) != FORMAT or values.get("kind") not in KINDS:
            raise ValueError("it is no result that this version of curate reads")
        return decode_json(KINDS[values["kind"]], values)
    except OSError as error:
        raise InputError(f"the result {str(path)!r} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"the result {str(path)!r} is damaged: {error}; make it again") from None


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a number")


def paths(folder: Path) -> list[Path]:
    """Return the files in a folder of results, by kind and name; an empty list if there is no such folder."""
    found = folder.glob("*.json") if folder.is_dir() else ()
    return sorted(path for path in found if path.name.partition("-")[0] in KINDS and path.is_file())


def read_all(folder: Path) -> Iterator[tuple[Path, Result | None]]:
    """Yield the files of a folder with their results; None for one that cannot be read."""
    for path in paths(folder):
        try:
            yield path, read(path)
        except InputError:
            yield path, None


def mean(values: list[float | None]) -> float | None:
    """Return the mean; None if there is no value, or one is missing."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None
