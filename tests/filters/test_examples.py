"""Each rule's own examples: it drops one, and keeps the other."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

import curate
from curate.errors import RecipeError
from curate.filters import registry, verdicts
from curate.pipeline import recipe

SCORES = {
    name: kind for rule in registry.rules("signal").values() if rule.measured_by for name, kind in rule.columns.items()
}
RULES = {name: rule for name, rule in registry.rules("filter", "corpus", "repair").items() if not rule.is_users}
MEASURED = {  # by a model, on a set: the examples have the values
    name: rule
    for name, rule in RULES.items()
    if rule.examples and SCORES.keys() & {*verdicts.columns_read(rule, {**rule.settings, **rule.examples.settings})}
}


@pytest.mark.parametrize("name", sorted(RULES.keys() - MEASURED.keys()))
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


@pytest.mark.parametrize("name", MEASURED)
def test_a_rule_drops_one_of_two_measured_examples(name: str) -> None:
    examples = MEASURED[name].examples
    assert examples is not None
    records = [{**dict.fromkeys(SCORES), **record} for record in (examples.dropped, examples.kept)]
    frame = pl.DataFrame([{name: record[name] for name in SCORES} for record in records], schema=SCORES)
    verdict = verdicts.apply(frame, {name: registry.check(name, examples.settings)})
    assert verdict["rule"].to_list() == [name, None]


def test_a_filter_that_names_nothing_is_refused() -> None:
    for name in ("languages", "cap"):
        settings = dict.fromkeys(registry.get("cap").settings, 0) if name == "cap" else {}
        with pytest.raises(RecipeError, match=rf"filter '{name}' (?:names no language|has no limit)"):
            registry.check(name, settings)
