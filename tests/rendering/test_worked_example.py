"""The worked example at the top of `curate.rendering` is correct."""

from __future__ import annotations

import doctest
import importlib.util
import pkgutil
import re

import pytest

import curate.rendering


def test_the_worked_example_prints_what_it_shows() -> None:
    if importlib.util.find_spec("llama_models") is None:
        pytest.skip("llama-models, which ships LLaMA-3's tokenizer, is not installed")
    result = doctest.testmod(curate.rendering)
    assert result.failed == 0
    assert result.attempted > 10


def test_the_worked_example_names_every_module() -> None:
    names = {module.name for module in pkgutil.iter_modules(curate.rendering.__path__)}
    text = curate.rendering.__doc__ or ""
    assert names - set(re.findall(r"\w+", text)) == set()
