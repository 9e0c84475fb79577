"""The errors that curate raises.

    CurateError            anything a user can fix; the command line prints it in one line and exits 1
    ├── InputError         an input that is missing, unreadable, empty or not in a known format
    │   └── NothingKept    a run of clean in which every record was rejected
    ├── RecipeError        a recipe, setting or flag that is not allowed
    ├── TokenizerError     a tokenizer that cannot be found, read or trusted
    ├── ModelError         a model that cannot be found, read or trained
    ├── SetError           a curated set that is missing, damaged or locked, or a target that must not be overwritten
    ├── CheckpointError    a training run's checkpoint that cannot be written or read
    ├── RunError           a training run whose folder is missing or in use, or that cannot continue
    ├── PlanError          a training run that does not fit the device or the disk
    ├── ServerError          a server that cannot be reached, or that refuses whatever is asked
    ├── UnsafePathError    a link or a name that leads out of the folder that curate may write to
    ├── WorkerError        a worker process that died, most often for lack of memory
    ├── BalanceError       a run in which records were lost: those read are not those kept plus those rejected
    └── MissingExtra       a feature whose optional packages are not installed

`RecordError` is separate: it says why one record cannot become a conversation. It is stored with the rejected
record and does not end the run.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable
from pathlib import Path

DISTRIBUTION = "curate-chat"


class CurateError(Exception):
    """Base of all errors that a user can fix; the message is one line that says what to do."""


class InputError(CurateError):
    """An input is missing, unreadable, empty or not in a known format."""


class NothingKept(InputError):
    """Every record of a run was rejected; the message has the reasons."""


class RecipeError(CurateError):
    """A recipe, setting or flag has a value that is not allowed."""


class TokenizerError(CurateError):
    """A tokenizer cannot be found, read or trusted."""


class ModelError(CurateError):
    """A model cannot be found, read or trained."""


class SetError(CurateError):
    """A curated set is missing, damaged or locked, or a target must not be overwritten."""


class CheckpointError(CurateError):
    """A checkpoint cannot be written, is damaged, or belongs to another run."""


class RunError(CurateError):
    """A training run's folder is missing or in use, or the run cannot continue."""


class PlanError(CurateError):
    """A training run does not fit the device or the disk; the message says what would."""


class ServerError(CurateError):
    """A server cannot be reached, or refuses whatever is asked."""


class UnsafePathError(CurateError):
    """A link or a name leads out of the folder that curate may read, write or remove files in."""


class WorkerError(CurateError):
    """A worker process died, most often for lack of memory."""


class BalanceError(CurateError):
    """Records read are not records kept plus records rejected: a bug in curate, never a fault of the data."""


class MissingExtra(CurateError):
    """A feature needs optional packages; the message has the command that installs them."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the extra [{extra}]: {install_command(extra)}")
        self.feature = feature
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str]]:  # crosses from a worker to its parent
        return type(self), (self.feature, self.extra)


class RecordError(Exception):
    """Why one record cannot become a conversation: the `rule`, the `reason`, and an excerpt as `evidence`."""

    def __init__(self, rule: str, reason: str, evidence: str = "") -> None:
        super().__init__(f"{rule}: {reason}")
        self.rule = rule
        self.reason = reason
        self.evidence = evidence[:200]

    def __reduce__(self) -> tuple[type[RecordError], tuple[str, str, str]]:
        return type(self), (self.rule, self.reason, self.evidence)


def install_command(extra: str | None = None) -> str:
    """Return the `pip install` line that adds an extra to this curate, which is a clone or an installed package."""
    named = f"[{extra}]" if extra else ""
    folder = Path(__file__).resolve().parents[1]
    if not _is_clone(folder):
        return f"pip install {shlex.quote(DISTRIBUTION + named)}"
    return f"pip install -e {shlex.quote(('.' if folder == Path.cwd() else str(folder)) + named)}"


def _is_clone(folder: Path) -> bool:
    """Tell whether the code runs from its repository, installed with `pip install -e` or not at all."""
    try:
        return f'name = "{DISTRIBUTION}"' in (folder / "pyproject.toml").read_text("utf-8")
    except OSError:
        return False


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known word, or a list of all words if none is near."""
    names = sorted(known)
    near = [name for name in names if name.casefold() == word.casefold()]
    near += difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""


def error_message(error: BaseException) -> str:
    """Return the message of an error, on one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())
