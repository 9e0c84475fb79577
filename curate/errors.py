"""The errors a caller of curate can meet.

    CurateError            anything a user can mend; the command line prints it in one line and exits 1
    ├── InputError         an input that is missing, unreadable, empty or not in a known format
    ├── RecipeError        a recipe, setting or flag that is not allowed
    ├── TokenizerError     a tokenizer that cannot be found, read or trusted
    ├── ModelError         a model that cannot be found, read or trained
    ├── SetError           a curated set that is absent, damaged, locked, or a target that must not be overwritten
    ├── CheckpointError    a training run's checkpoint that cannot be written or read
    ├── RunError           a training run whose folder is taken or absent, or that cannot go on
    ├── PlanError          a training run that does not fit the device or the disk
    ├── BalanceError       a run whose records read are not the records kept plus those rejected
    └── MissingExtra       a feature whose optional packages are not installed

`RecordError` is not among them: it says why one record cannot become a conversation, and is
written beside that record instead of ending the run.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

DISTRIBUTION = "curate-chat"


class CurateError(Exception):
    """Base of all errors that a user can mend; its text is one line that says what to do."""


class InputError(CurateError):
    """An input is missing, unreadable, empty or not in a known format."""


class RecipeError(CurateError):
    """A recipe, a setting or a flag holds something that is not allowed."""


class TokenizerError(CurateError):
    """A tokenizer cannot be found, read or trusted."""


class ModelError(CurateError):
    """A model cannot be found, read or trained."""


class SetError(CurateError):
    """A curated set is absent, damaged or locked, or a target must not be overwritten."""


class CheckpointError(CurateError):
    """A checkpoint cannot be written, is damaged, or belongs to another run."""


class RunError(CurateError):
    """A training run's folder is taken, absent or in use, or the run cannot go on."""


class PlanError(CurateError):
    """A training run does not fit the device or the disk; the text says what would."""


class BalanceError(CurateError):
    """Records read are not the records kept plus the records rejected: a defect of curate, never of the data."""


class MissingExtra(CurateError):
    """A feature needs optional packages; the text holds the line to type."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the extra [{extra}]: pip install '{DISTRIBUTION}[{extra}]'")
        self.feature = feature
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str]]:  # crosses from a worker to its parent
        return type(self), (self.feature, self.extra)


class RecordError(Exception):
    """Why one record cannot become a conversation: `rule` names it, `reason` says it, `evidence` shows it."""

    def __init__(self, rule: str, reason: str, evidence: str = "") -> None:
        super().__init__(f"{rule}: {reason}")
        self.rule = rule
        self.reason = reason
        self.evidence = evidence[:200]

    def __reduce__(self) -> tuple[type[RecordError], tuple[str, str, str]]:
        return type(self), (self.rule, self.reason, self.evidence)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known word, or the list of all where none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""
