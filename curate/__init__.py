"""Turn chat dumps into training sets, and fine-tune LLaMA models on them.

    import curate
    result = curate.clean("dump.json", "curated")

Each command of the shell is also a function, with the same name and settings. The functions are loaded when first
used, so that `import curate` is fast (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from curate._version import __version__ as __version__
from curate.errors import MissingExtra

if TYPE_CHECKING:
    from curate.analysis.comparison import Comparison
    from curate.analysis.doctor import doctor
    from curate.analysis.explanation import explain
    from curate.analysis.selection import Selection, show
    from curate.api.clean import clean
    from curate.api.compare import compare
    from curate.api.fingerprint import fingerprint
    from curate.api.identity import identity
    from curate.api.read import read
    from curate.api.refilter import combine, refilter
    from curate.api.stats import stats
    from curate.conversion.collection import Conversations
    from curate.conversion.convert import convert
    from curate.dataset.curated_set import CuratedSet, open_set
    from curate.evaluation.evaluate import evaluate
    from curate.generation.generate import generate
    from curate.inference.chat import chat
    from curate.judging.judge import judge
    from curate.pipeline.run import CleanResult, Progress
    from curate.scoring.score import score
    from curate.train.finetune import finetune
    from curate.train.results.merge import merge
    from curate.train.run.log import RunResult

_MODULES = {  # name to the module that defines it
    "clean": "curate.api.clean",
    "CleanResult": "curate.pipeline.run",
    "Progress": "curate.pipeline.run",
    "stats": "curate.api.stats",
    "read": "curate.api.read",
    "refilter": "curate.api.refilter",
    "combine": "curate.api.refilter",
    "Conversations": "curate.conversion.collection",
    "compare": "curate.api.compare",
    "Comparison": "curate.analysis.comparison",
    "show": "curate.analysis.selection",
    "Selection": "curate.analysis.selection",
    "explain": "curate.analysis.explanation",
    "convert": "curate.conversion.convert",
    "open_set": "curate.dataset.curated_set",
    "CuratedSet": "curate.dataset.curated_set",
    "doctor": "curate.analysis.doctor",
    "fingerprint": "curate.api.fingerprint",
    "identity": "curate.api.identity",
    "generate": "curate.generation.generate",
    "judge": "curate.judging.judge",
    "finetune": "curate.train.finetune",
    "RunResult": "curate.train.run.log",
    "chat": "curate.inference.chat",
    "merge": "curate.train.results.merge",
    "score": "curate.scoring.score",
    "evaluate": "curate.evaluation.evaluate",
}
_EXTRAS = {
    **dict.fromkeys(("finetune", "RunResult", "chat", "merge", "score"), "train"),
    **{"generate": "generate", "judge": "generate", "evaluate": "eval"},
}

__all__ = [
    "CleanResult",
    "Comparison",
    "Conversations",
    "CuratedSet",
    "Progress",
    "RunResult",
    "Selection",
    "chat",
    "clean",
    "combine",
    "compare",
    "convert",
    "doctor",
    "evaluate",
    "explain",
    "finetune",
    "fingerprint",
    "generate",
    "identity",
    "judge",
    "merge",
    "open_set",
    "read",
    "refilter",
    "score",
    "show",
    "stats",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'curate' has no attribute {name!r}")
    try:
        module = importlib.import_module(_MODULES[name])
    except ModuleNotFoundError as error:
        if name in _EXTRAS and not (error.name or "").startswith("curate"):
            raise MissingExtra(f"curate {name}", _EXTRAS[name]) from error
        raise
    value: object = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
