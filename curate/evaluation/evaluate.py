"""`curate.evaluate`: ask a model the tasks one by one; each finished task is on the disk before the next begins."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval import evaluator

from curate._version import __version__
from curate.errors import CurateError, InputError
from curate.evaluation import contamination, language_model, stderr, tasks
from curate.evaluation.contamination import Found
from curate.evaluation.language_model import LanguageModel
from curate.evaluation.scoring import TaskFacts, score_task
from curate.evaluation.tasks import LoadedTasks
from curate.model import artifact as artifacts
from curate.model import sources
from curate.model.artifact import Artifact
from curate.model.files import OnMessage
from curate.model.serving import ADAPTER, MODEL
from curate.results import files as results
from curate.results.files import Contamination, Evaluation, EvaluationSettings, TaskScores
from curate.train.report import html
from curate.train.run import records

SEED = 1234  # lm-eval's own default for drawing examples
BATCH = 8
BOOTSTRAP = 1_000  # resamples, for the standard errors that have no formula
LIBRARIES = ("lm_eval", "transformers", "torch", "datasets")
NAME = 12  # characters of a hash in a file's name


@dataclass(frozen=True)
class EvaluationResult:
    """The file that was written, what it holds, and which tasks were finished by an earlier run."""

    path: Path
    evaluation: Evaluation
    kept: tuple[str, ...]
    seconds: float


def evaluate(
    model: str,
    names: Sequence[str],
    output: str | Path | None = None,
    *,
    include: Sequence[str] = (),
    shots: int | None = None,
    limit: int | None = None,
    chat_template: bool | None = None,
    multiturn: bool = True,
    template: str | None = None,
    batch: int = BATCH,
    seed: int = SEED,
    base: str | None = None,
    other_base: bool = False,
    quantise: bool | None = None,
    dtype: str = "auto",
    device: str = "auto",
    fresh: bool = False,
    say: OnMessage = sources.ignore_message,
) -> EvaluationResult:
    """Evaluate a model on tasks of lm-eval, and write the scores into the folder `results` of its run, or `output`.

    `names` are tasks, groups (`openllm`, `leaderboard`) or YAML files, `include` folders with further tasks. Prompts
    are chats in the model's own template, or plain text if it has none; `chat_template` decides otherwise. Examples
    become turns of the chat with `multiturn`. Tasks that a file of the same model and settings has are not asked again,
    unless `fresh` is set. Raises CurateError with what to type.
    """
    start = time.perf_counter()
    if not names:
        raise InputError("no task is named; give some: --tasks openllm")
    found = artifacts.find_artifact(model, base=base)
    folder = _folder(found, output)
    with stderr.reported_warnings(say), stderr.without_dataset_bars():
        loaded = tasks.load(names, include, shots=shots, seed=seed, say=say)
    serving, tokenizer = language_model.prompt_format(found, template, chat_template, say)
    settings = EvaluationSettings(
        lm_eval=importlib.metadata.version("lm_eval"),
        chat_template=serving is not None,
        template_sha256=hashlib.sha256(serving.chat_template.encode()).hexdigest() if serving else "",
        fewshot_as_multiturn=serving is not None and multiturn,
        shots=shots,
        limit=limit,
        seed=seed,
        batch=str(batch),
        dtype=_dtype(found, dtype, device),
        device=artifacts.choose_device(device).type,
        quantised=found.quantised if quantise is None else quantise,
    )

    def open_model() -> LanguageModel:
        opened = language_model.load_model(found, say, device, dtype=dtype, quantise=quantise, other_base=other_base)
        return LanguageModel(opened, tokenizer, is_chat=settings.chat_template, batch=batch)

    blank = Evaluation(
        found.name, language_model.weights_sha256(found), settings, Contamination(), versions=_versions()
    )
    evaluation, path, kept = _ask_all(_Job(found, loaded, blank, folder, fresh, say), open_model)
    if folder.name == results.FOLDER and (folder.parent / records.REPORT).is_file():
        html.write(folder.parent)
    return EvaluationResult(path, evaluation, kept, time.perf_counter() - start)


@dataclass(frozen=True)
class _Job:
    """What to ask of which model, and where to write."""

    found: Artifact
    loaded: LoadedTasks
    blank: Evaluation  # without tasks
    folder: Path
    fresh: bool
    say: OnMessage


def _ask_all(job: _Job, open_model: Callable[[], LanguageModel]) -> tuple[Evaluation, Path, tuple[str, ...]]:
    """Ask the tasks that are not finished, and write each; return the result, its file, and what was finished."""
    facts = {name: tasks.facts_of(name, task, job.blank.settings.limit) for name, task in job.loaded.tasks.items()}
    file = _name(job.blank)
    before = {} if job.fresh else _finished(job.folder / f"evaluation-{file}.json", job.blank)
    kept = {name: before[name] for name in facts if name in before and _is_of(before[name], facts[name])}
    others = [scores for name, scores in before.items() if name not in facts]  # of other --tasks, with these settings
    items, compared = _contamination(job.found, job.loaded, job.say)
    done = {**kept}
    evaluation = replace(job.blank, contamination=compared, groups=job.loaded.groups)
    waiting = [name for name in job.loaded.tasks if name not in kept]
    model = open_model() if waiting else None
    for number, name in enumerate(waiting, 1):
        assert model is not None
        model.name = f"task {number} of {len(waiting)}: {name}"
        job.say(model.name)
        task = job.loaded.tasks[name]
        done[name] = _ask(model, task, facts[name], job.blank.settings, items.get(name), job.say)
        results.write(job.folder, file, replace(evaluation, tasks=(*done.values(), *others)))
    ordered = tuple(done[name] for name in facts)
    path = results.write(job.folder, file, replace(evaluation, tasks=(*ordered, *others)))
    return replace(evaluation, tasks=ordered), path, tuple(kept)


def _dtype(found: Artifact, dtype: str, device: str) -> str:
    config = sources.find_model(found.base or str(found.folder)).config
    return str(artifacts.compute_dtype(dtype, config, artifacts.choose_device(device))).removeprefix("torch.")


def _versions() -> dict[str, str]:
    return {"curate": __version__, **{name: importlib.metadata.version(name) for name in LIBRARIES}}


def _folder(found: Artifact, output: str | Path | None) -> Path:
    """Return the folder to write to: that of the run, unless one is named; raises InputError without either."""
    if output is not None:
        path = Path(output)
        if path.exists() and not path.is_dir():
            raise InputError(f"--output {str(path)!r} is a file; give a folder")
        return path
    run = found.folder.parent
    if found.folder.name in (MODEL, ADAPTER) and (run / records.FACTS).is_file():
        return run / results.FOLDER
    raise InputError(f"{found.name!r} is not a run, so the results have no place; give a folder: --output FOLDER")


def _name(evaluation: Evaluation) -> str:
    """Return the name of the file: one for each model and way of asking."""
    values = [evaluation.model_sha256, asdict(evaluation.settings)]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:NAME]


def _finished(path: Path, blank: Evaluation) -> dict[str, TaskScores]:
    """Return the tasks of an earlier run of the same model and settings."""
    try:
        before = results.read(path)
    except InputError:  # there is none, or it is damaged: it is made again
        return {}
    if not isinstance(before, Evaluation):
        return {}
    same = all(getattr(before, name) == getattr(blank, name) for name in ("settings", "versions", "model_sha256"))
    return {scores.task: scores for scores in before.tasks} if same else {}


def _is_of(scores: TaskScores, facts: TaskFacts) -> bool:
    names = ("version", "config_sha256", "items_sha256", "shots")
    return all(getattr(scores, name) == getattr(facts, name) for name in names)


def _contamination(found: Artifact, loaded: LoadedTasks, say: OnMessage) -> tuple[Mapping[str, Found], Contamination]:
    """Return what of each task the model's training set holds; where that is unknown, say why."""
    curated, compared = contamination.training_set(found.folder)
    if curated is None:
        say(f"scores on items that were not trained on are left out: {compared.problem}")
        return {}, compared
    try:
        documents = {name: tasks.documents(task) for name, task in loaded.tasks.items()}
        items, rows = contamination.find(documents, curated)
    except CurateError as error:
        return {}, replace(compared, problem=str(error))
    return items, replace(compared, rows=rows)


def _ask(
    model: LanguageModel,
    task: Any,
    facts: TaskFacts,
    settings: EvaluationSettings,
    found: Found | None,
    say: OnMessage,
) -> TaskScores:
    """Ask the model one task; raises InputError for a task whose own code fails."""
    name = facts.task
    random.seed(settings.seed)
    np.random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    try:
        with stderr.reported_warnings(say), stderr.without_bars():
            got = evaluator.evaluate(
                lm=model,
                task_dict={"tasks": {name: task}, "groups": {}, "group_map": {}},
                limit=settings.limit,
                bootstrap_iters=BOOTSTRAP,
                log_samples=True,
                apply_chat_template=settings.chat_template,
                fewshot_as_multiturn=settings.fewshot_as_multiturn,
            )
    except (torch.OutOfMemoryError, MemoryError):
        raise InputError(f"the task {name!r} does not fit the memory; give a smaller --batch") from None
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, AssertionError) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(f"the task {name!r} failed: {why}; is its configuration right?") from error
    return score_task(facts, got["samples"][name], got["results"][name], task.aggregation(), found)
