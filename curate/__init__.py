"""Turn raw chat dumps into training sets that can be trusted.

    import curate
    result = curate.clean("dump.json", "curated")

Each command of the shell is a function here, of the same name and with the same settings. They are
loaded when first used, so that `import curate` costs nothing.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING

from curate.errors import MissingExtra

if TYPE_CHECKING:
    from curate.clean import CleanResult, Progress, clean
    from curate.compare import Comparison, compare
    from curate.convert import convert
    from curate.curated import CuratedSet, open_set
    from curate.doctor import doctor
    from curate.explain import explain
    from curate.show import Selection, show
    from curate.stats import stats
    from curate.train.chat import chat
    from curate.train.journal import RunResult
    from curate.train.merge import merge
    from curate.train.run import finetune

__version__ = "0.1.0"

_HOMES = {
    "chat": "train.chat",
    "clean": "clean",
    "CleanResult": "clean",
    "Progress": "clean",
    "compare": "compare",
    "Comparison": "compare",
    "convert": "convert",
    "CuratedSet": "curated",
    "open_set": "curated",
    "doctor": "doctor",
    "explain": "explain",
    "finetune": "train.run",
    "RunResult": "train.journal",
    "merge": "train.merge",
    "show": "show",
    "Selection": "show",
    "stats": "stats",
}

__all__ = [
    "CleanResult",
    "Comparison",
    "CuratedSet",
    "Progress",
    "RunResult",
    "Selection",
    "chat",
    "clean",
    "compare",
    "convert",
    "doctor",
    "explain",
    "finetune",
    "merge",
    "open_set",
    "show",
    "stats",
]


class _Package(types.ModuleType):
    """This package: `curate.clean` is the function, though a submodule bears the same name."""

    def __getattr__(self, name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'curate' has no attribute {name!r}")
        try:
            module = importlib.import_module(f"curate.{_HOMES[name]}")
        except ModuleNotFoundError as error:
            if _HOMES[name].startswith("train.") and not (error.name or "").startswith("curate"):
                raise MissingExtra(f"curate {name}", "train") from error
            raise
        value: object = getattr(module, name)
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
