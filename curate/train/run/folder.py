"""The folder of a run: one run per folder, locked while it runs, with the configuration to resume from."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from curate import files
from curate.display.figures import MIB, size
from curate.errors import RecipeError, RunError, UnsafePathError
from curate.model.serving import ADAPTER, MODEL
from curate.train import config
from curate.train.config import TrainConfig
from curate.train.objectives import reference
from curate.train.run import records

RUNS = Path("runs")  # relative to the working directory
LOCK = ".lock"
CHECKPOINTS = "checkpoints"
LEAST_DISK = MIB  # bytes for the records of a run; the plan knows what checkpoints need
# Files of a run that ended before its first checkpoint; its folder may be used for a new run if no step was recorded.
FILES_BEFORE_FIRST_STEP = {
    LOCK,
    records.CONFIG,
    records.PLAN,
    records.FACTS,
    records.LEFT_OUT,
    records.MASKED,
    records.METRICS,
    records.EVAL,
    records.SAMPLES,
    reference.FILE,
}
OWN_FILES = FILES_BEFORE_FIRST_STEP | {records.REPORT}
OWN_FOLDERS = {CHECKPOINTS, MODEL, ADAPTER, "tensorboard"}
APPENDED = {records.METRICS, records.EVAL, records.SAMPLES, records.MASKED}


def choose_new(out: str | Path | None, settings: TrainConfig) -> Path:
    """Return the folder of a new run, without creating it: `out`, or a new one under runs/.

    Raises RunError if `out` has a run or other files.
    """
    if out is not None:
        folder = Path(out)
        if folder.exists() and not (folder.is_dir() and _is_free(folder)):
            raise RunError(_occupied_message(folder))
        return folder
    name = config.run_name(settings)
    number = 1
    while (RUNS / name).exists():
        number += 1
        name = f"{config.run_name(settings)}-{number}"
    return RUNS / name


def require_room(folder: Path) -> None:
    """Raise RunError if a run cannot be written to a folder, which need not exist: no right to write, or a full disk.

    Creates nothing.
    """
    parent = _existing(folder)
    if not parent.is_dir():
        raise RunError(f"{str(folder)!r} cannot be created: {str(parent)!r} is not a folder; give another --out")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise RunError(f"{str(folder)!r} cannot be written: {str(parent)!r} is read-only to you; give another --out")
    if not shutil.disk_usage(parent).total:  # /proc and the like
        raise RunError(f"{str(folder)!r} cannot be written: {str(parent)!r} is on no disk; give another --out")
    if (free := free_disk(folder)) < LEAST_DISK:
        raise RunError(
            f"the disk of {str(folder)!r} is full: {size(free)} are free, and a run needs at least {size(LEAST_DISK)}; "
            "free some, or give another --out"
        )


def free_disk(folder: Path) -> int:
    """Return the free bytes of the disk that a folder is or will be on."""
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that exists; raises RunError for a name that no file can have."""
    path = folder.resolve()
    try:
        while not path.exists():
            path = path.parent
    except OSError as error:  # a name that is too long
        raise RunError(f"{str(folder)!r} cannot be created: {error.strerror}; give another --out") from None
    return path


def _is_free(folder: Path) -> bool:
    """Return whether a folder is empty, or has only the files of a run that ended before its first step."""
    names = {path.name for path in folder.iterdir()}
    # The list of failures alone is left by a run that failed the proof. The lock shows that the files are a run's.
    no_checkpoint = names == {records.LEFT_OUT} or (LOCK in names and names <= FILES_BEFORE_FIRST_STEP)
    return not names or (no_checkpoint and not records.read_lines(folder / records.METRICS))


def _occupied_message(folder: Path) -> str:
    if (folder / records.CONFIG).is_file():
        return f"{str(folder)!r} has a run already; continue it: --resume {folder}, or give another --out"
    return f"{str(folder)!r} exists and is not a run; nothing was written; give another --out"


def find_resumable(run: str | Path | None) -> Path:
    """Return the folder of the run to resume: `run`, or the one under runs/ that was written to last.

    Raises RunError if there is none.
    """
    if run is not None:
        folder = Path(run)
        if not (folder / records.CONFIG).is_file():
            raise RunError(
                f"{str(folder)!r} is not a run: it has no {records.CONFIG}; give the folder that finetune wrote"
            )
        return folder
    runs = [file.parent for file in RUNS.glob(f"*/{records.CONFIG}")]
    if not runs:
        raise RunError(f"there is no run to resume under {str(RUNS)!r}; give one: --resume RUN")
    # By files, not by the folder's own time: appending to a file does not change that.
    return max(runs, key=lambda folder: max(file.stat().st_mtime for file in folder.iterdir()))


def load_config(folder: Path, changes: Mapping[str, Mapping[str, object]]) -> TrainConfig:
    """Return a run's configuration with changes; raises RecipeError for a change that would alter a loss."""
    before = config.load(str(folder / records.CONFIG))
    after = config.override(before, changes)
    if different := config.differences(before, after):
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        raise RecipeError(
            f"the run {str(folder)!r} cannot continue with other settings: {different[0]}{more}; leave them unchanged, "
            f"or start a new run from it: --init {folder}"
        )
    return after


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Create a run's folder and lock it for this process.

    Raises RunError while another process has it locked, UnsafePathError if a file or folder of the run is a link or
    something else: what the run writes there would end up elsewhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_names(folder)
    # `keep`: the lock file stays, and identifies the folder as a run's (`_is_free`).
    error = RunError(f"another process is working on the run {str(folder)!r}; wait for it, or give another --out")
    with files.lock(folder / LOCK, error, keep=True):
        yield


def _check_names(folder: Path) -> None:
    for name in sorted(OWN_FILES):
        files.check_replaceable(folder / name)
    for name in sorted(OWN_FOLDERS):
        files.check_replaceable(folder / name, folder=True)
    files.refuse_links(*(folder / CHECKPOINTS).glob("*"))
    for path in (folder / name for name in sorted(APPENDED)):
        if path.exists() and path.stat().st_nlink > 1:
            raise UnsafePathError(
                f"{str(path)!r} has another name elsewhere (a hard link), which would change too; replace it by a copy"
            )


def write_config(folder: Path, settings: TrainConfig) -> None:
    """Write the configuration that `load_config` reads."""
    files.write_text(folder / records.CONFIG, settings.to_toml())


def write_json(folder: Path, name: str, values: Mapping[str, Any]) -> None:
    """Write a JSON file of the run, whole or not at all."""
    files.write_text(folder / name, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def trim(folder: Path, step: int, *, evaluates_again: bool = False) -> None:
    """Remove the records of steps after `step`, which a run continues from: it will repeat them.

    `evaluates_again` also removes the evaluation and samples of that step.
    """
    for name in (records.METRICS, records.EVAL, records.SAMPLES):
        rows = records.read_lines(folder / name)
        last = step - 1 if evaluates_again and name != records.METRICS else step
        kept = [row for row in rows if not isinstance(row.get("step"), int) or row["step"] <= last]
        if len(kept) < len(rows):
            files.write_text(folder / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


def refuse_finished(folder: Path) -> None:
    """Raise RunError if a run is finished: there is nothing to resume."""
    if records.read(folder).facts.get("status") == "finished":
        raise RunError(
            f"the run {str(folder)!r} is finished; chat with its result (curate chat {folder}), or start a new run "
            f"from it: --init {folder}"
        )
