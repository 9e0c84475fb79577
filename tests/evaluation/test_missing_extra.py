"""Without lm-eval, the command says what to install."""

from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner

from curate.cli import cli


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("evaluate", "language_model"):
        monkeypatch.delitem(sys.modules, f"curate.evaluation.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    result = CliRunner().invoke(cli, ["evaluate", "run", "--tasks", "openllm"])
    assert result.exit_code == 1
    assert "curate evaluate needs the extra [eval]: pip install" in result.output
