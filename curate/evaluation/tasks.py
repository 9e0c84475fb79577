"""Load lm-eval's tasks and groups, and tasks of a user's folder; say which data are missing, and what is code."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curate.errors import InputError, did_you_mean, error_message
from curate.evaluation.contamination import Document, document
from curate.evaluation.scoring import TaskFacts
from curate.model.files import OnMessage
from curate.results.files import GroupScores

YAML = ("*.yaml", "*.yml")
# The first version of the Open LLM Leaderboard: its tasks and their shots. lm-eval has a group of this name, but gives
# the name of a group or tag to each of its tasks where a group sets shots for it, so that of MMLU's 57 one is left.
OPENLLM = {"arc_challenge": 25, "hellaswag": 10, "truthfulqa_mc2": 0, "mmlu": 5, "winogrande": 5, "gsm8k": 5}
BOARDS: Mapping[str, Mapping[str, int]] = {"openllm": OPENLLM}
# Settings that do not change what is asked, or are compared by themselves.
WHERE = ("dataset_path", "dataset_name", "dataset_kwargs", "metadata", "task_alias", "num_fewshot")


@dataclass(frozen=True)
class LoadedTasks:
    """Tasks of lm-eval by name, and the groups that they were named by."""

    tasks: Mapping[str, Any]
    groups: tuple[GroupScores, ...]


def load(names: Sequence[str], include: Sequence[str], *, shots: int | None, seed: int, say: OnMessage) -> LoadedTasks:
    """Load tasks by name, group, tag or YAML file; raises InputError with what to type.

    `shots` replaces the number of examples of all tasks but those that allow none; `seed` draws the examples.
    """
    folders = [_folder(each, say) for each in include]
    manager = _manager_of(names, folders)
    for name in names:
        if name not in manager.all_tasks and not Path(name).is_file():
            raise InputError(f"lm-eval has no task {name!r}{_near(name, manager)}; your own: --include FOLDER")
    found: dict[str, Any] = {}
    groups = []
    for name in names:
        members = dict.fromkeys([name]) if name not in BOARDS else BOARDS[name]
        by_member = {}
        for member, own_shots in members.items():
            loaded = _load_one(manager, member)
            for task_name, task in loaded["tasks"].items():
                _prepare(task_name, task, own_shots if shots is None else shots, seed)
            found.update(loaded["tasks"])
            groups_of = {**loaded["group_map"], **({} if name not in BOARDS else {name: [member]})}
            by_member.update(_members(name, groups_of))
        if by_member:
            groups.append(GroupScores(name, by_member))
    return LoadedTasks(found, tuple(groups))


def _manager_of(names: Sequence[str], folders: Sequence[Path]) -> Any:
    """Return the index of the user's tasks alone where that is enough: lm-eval's takes seconds."""
    if folders:
        own = _manager(folders, defaults=False)
        if set(names) <= set(own.all_subtasks):
            return own
    return _manager(folders)


def _near(name: str, manager: Any) -> str:
    hint = did_you_mean(name, manager.all_tasks)
    return hint if hint.startswith("; did") else ""


def _folder(name: str, say: OnMessage) -> Path:
    """Return a folder of tasks; `say` is called with the files that run code."""
    folder = Path(name)
    if not folder.is_dir():
        raise InputError(f"--include {name!r} is not a folder; give the one with the YAML files of your tasks")
    files = [path for pattern in YAML for path in sorted(folder.rglob(pattern))]
    if not files:
        raise InputError(f"--include {name!r} has no YAML file; give the folder with those of your tasks")
    code = [path.name for path in files if "!function" in path.read_text("utf-8", "replace")]
    if code:
        more = f" and {len(code) - 1} more" if len(code) > 1 else ""
        say(f"the tasks in {name} are code: {code[0]}{more} names Python functions (!function), which are run")
    return folder


def _manager(folders: Sequence[Path], *, defaults: bool = True) -> Any:
    from lm_eval.tasks import TaskManager

    try:
        return TaskManager(include_path=[str(folder) for folder in folders], include_defaults=defaults)
    except Exception as error:  # whatever YAML raises for a user's file
        raise InputError(
            f"the tasks in {', '.join(map(str, folders))} cannot be read: {error_message(error)}"
        ) from None


def _load_one(manager: Any, name: str) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = manager.load([name])
    except Exception as error:  # the Hub's, the disk's, YAML's and those of a task's own code
        raise InputError(f"the task {name!r} cannot be loaded: {_why(error)}") from error
    for task in loaded["tasks"]:
        if task in manager.all_groups or task in manager.all_tags:  # see OPENLLM
            raise InputError(f"the group {name!r} sets options for {task!r}, which is no task; name its tasks instead")
    return loaded


def _why(error: BaseException) -> str:
    """Say why a task cannot be loaded, and what to do."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    kinds = {kind.__name__ for each in chain for kind in type(each).__mro__}
    message = error_message(error)[:300]
    if kinds & {"OfflineModeIsEnabled", "ConnectionError", "ConnectError", "LocalEntryNotFoundError"}:
        return f"its data are on the Hub, which is out of reach ({message}); give a task with local data, or go online"
    if kinds & {"GatedRepoError"}:
        return f"its data are gated ({message}); accept their terms on the Hub and log in: hf auth login"
    if kinds & {"ModuleNotFoundError", "ImportError"}:
        return f"it needs another package ({message}); install that"
    return message


def _prepare(name: str, task: Any, shots: int | None, seed: int) -> None:
    """Set the number of examples and the seed, as lm-eval's own command does; raises InputError."""
    if getattr(task, "UNSAFE_CODE", False):
        raise InputError(
            f"the task {name!r} runs code that the model writes, which curate evaluate does not; leave it out"
        )
    if getattr(task, "MULTIMODAL", False):
        raise InputError(f"the task {name!r} has images; leave it out")
    own = task.get_config("num_fewshot")
    if own is None or (shots is not None and own != 0):
        task.set_config(key="num_fewshot", value=shots or 0)
    task.set_fewshot_seed(seed=seed)


def _members(name: str, children: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Return the members of a group with the tasks of each; none for a name that is no group."""

    def leaves(name: str) -> list[str]:
        return [leaf for child in children[name] for leaf in leaves(child)] if name in children else [name]

    return {child: tuple(leaves(child)) for child in children.get(name, ())}


# ---- what a task asks


def facts_of(name: str, task: Any, limit: int | None) -> TaskFacts:
    """Return how a task is asked, with hashes of its settings and of its documents."""
    settings = {key: value for key, value in task.dump_config().items() if key not in WHERE}
    rising = {metric: bool(value) for metric, value in task.higher_is_better().items() if value is not None}
    return TaskFacts(
        name,
        str(task.VERSION),
        _sha256(settings),
        _sha256([doc for _, doc in _docs(task, limit)]),
        int(task.get_config("num_fewshot") or 0),
        task.OUTPUT_TYPE == "multiple_choice",
        rising,
    )


def documents(task: Any) -> list[Document]:
    """Return all documents of a task, whatever the limit: what is rare among them does not depend on it."""
    return [document(str(id), doc, _prompt(task, doc)) for id, doc in _docs(task, None)]


def _docs(task: Any, limit: int | None) -> Iterator[tuple[int, Any]]:
    found: Iterator[tuple[int, Any]] = task.doc_iterator(rank=0, limit=limit, world_size=1)
    return found


def _prompt(task: Any, doc: Any) -> object:
    state = random.getstate()  # tasks may draw
    try:
        return task.doc_to_text(doc)
    except Exception:  # a task's own code; then only its columns are compared
        return None
    finally:
        random.setstate(state)


def _sha256(values: object) -> str:
    text = json.dumps(values, sort_keys=True, default=_name)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def _name(value: object) -> str:
    """Return a value that is not JSON as text that is the same in each process, without addresses."""
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__name__)}"
