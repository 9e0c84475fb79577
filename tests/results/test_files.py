"""Results are read back as they were written, and damaged ones are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from curate.errors import InputError
from curate.results import files
from curate.results.files import Arena, Estimate, Judge, Result
from tests.support.evaluations import evaluation, task

RESULTS: dict[str, Result] = {
    "evaluation": evaluation([task("foxes", 0.5), task("owls", 0.25)], groups={"birds": {"owls": ["owls"]}}),
    "judge": Judge("run", "gpt", "0" * 64, "single", estimates=(Estimate("all", 7.5, 7.1, 7.9, 80),)),
    "arena": Arena("run", 120, True, (Estimate("run", 1020.0, 990.0, 1050.0, 60),)),
}


@pytest.mark.parametrize("kind", RESULTS)
def test_a_result_is_read_as_it_was_written(kind: str, tmp_path: Path) -> None:
    path = files.write(tmp_path / "results", "a", RESULTS[kind])
    assert path.name == f"{kind}-a.json"
    assert files.read(path) == RESULTS[kind]
    assert list(files.read_all(path.parent)) == [(path, RESULTS[kind])]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"curate_result": 2, "kind": "arena"}', '{"curate_result": 1, "kind": "arena", "votes": NaN}'],
)
def test_a_damaged_result_is_named_and_the_others_are_read(text: str, tmp_path: Path) -> None:
    good = files.write(tmp_path, "b", RESULTS["arena"])
    bad = tmp_path / "arena-a.json"
    bad.write_text(text)
    with pytest.raises(InputError, match="is damaged"):
        files.read(bad)
    assert list(files.read_all(tmp_path)) == [(bad, None), (good, RESULTS["arena"])]


def test_a_value_of_another_type_is_damage(tmp_path: Path) -> None:
    path = files.write(tmp_path, "a", RESULTS["evaluation"])
    values = json.loads(path.read_text())
    values["tasks"][0]["raw"] = "much"
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"tasks\[0\].raw"):
        files.read(path)
