"""Each rule's own examples: it drops one, and keeps the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import curate
from curate.filters import registry, verdicts
from curate.pipeline import recipe

SCORES = {column for rule in registry.rules("signal").values() if rule.measured_by for column in rule.columns}
RULES = {  # but for those that need a model: see tests/scoring
    name: rule
    for name, rule in registry.rules("filter", "corpus", "repair").items()
    if not rule.is_users and not SCORES & {*verdicts.columns_read(rule, rule.settings)}
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_drops_one_example_and_keeps_the_other(name: str, tmp_path: Path) -> None:
    rule = RULES[name]
    examples = rule.examples
    assert examples is not None, f"{name} has no examples"
    records = [*examples.before, examples.dropped, examples.kept]
    (tmp_path / "dump.jsonl").write_text("\n".join(map(json.dumps, records)), "utf-8")
    only = recipe.from_dict({"filters": {name: dict(examples.settings) or True}})
    result = curate.clean(tmp_path / "dump.jsonl", tmp_path / "set", recipe=only)
    counts = result.manifest.counts
    if rule.kind == "repair":  # it changes one, and leaves the other
        assert (counts.edits, counts.kept) == ({name: 1}, len(records))
        return
    assert counts.rules[name].first == 1
    assert counts.kept == len(records) - 1
