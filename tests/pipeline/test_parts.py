"""Parts: the same set from byte ranges, from a run that was killed, and from shares of a plan."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from curate.api import plans
from curate.api.clean import Page
from curate.api.clean import clean as clean_dump
from curate.cli import cli
from curate.errors import InputError, UnsafePathError
from curate.ingest.decode import Chunk, decode_records
from curate.ingest.ranges.text_range import TextRange, cut, read_head, read_range
from curate.ingest.reader import Reader
from curate.ingest.sources import open_inputs
from curate.pipeline import recipe as recipes
from curate.pipeline import run
from curate.pipeline.parts import record as records
from curate.pipeline.parts.execution import Execution
from curate.settings import merge
from tests.pipeline.test_clean import chat, digests, record, without_run
from tests.support import ROOT

RANGE = 3000  # bytes
TRICKY = 'He wrote: {"id": "x", "conversations": [1]}, {"id": "y"}\n{"id": "z"}\n]\n[{"id"'


def chats(count: int = 60) -> list[dict[str, Any]]:
    """Return records of which some look like others inside, one is longer than a range, and some are copies."""
    made = [chat(n % 50, 1 + n % 3) for n in range(count)]
    made[20] = record("tricky", TRICKY, TRICKY * 3)
    made[40] = record("long", "Tell me more.", "More and more. " * 600)
    return made


ARRAY = json.dumps(chats())
DUMPS = {
    "array": ARRAY,
    "indented": json.dumps(chats(), indent=1),
    "lines": "\n".join(map(json.dumps, chats())),
    "wrapped": json.dumps({"version": 3, "data": chats()}),
    "damaged": ARRAY.replace('"from": "gpt"', '"from: "gpt"', 40).replace('{"id": "chat7"', '{"id": chat7"'),
    "two arrays": f"{ARRAY}\n{json.dumps(chats(45))}",
    "cut off": ARRAY.replace('}, {"id": "chat33"', '}, // the rest\n{"id": "chat33"')[:-700],
}


@pytest.mark.parametrize("name", ["array", "indented", "lines", "wrapped"])
@pytest.mark.parametrize("range_bytes", [500, 1777, RANGE])
def test_ranges_have_the_records_of_the_text_and_meet(name: str, range_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / "dump.json"
    path.write_text(DUMPS[name])
    size, at = path.stat().st_size, None
    found: list[bytes] = []
    assert read_head(path, size, 1 << 20) is not None
    for start, stop in cut(size, range_bytes):
        texts, bounds = read_range(TextRange(path, "dump.json", start, stop), size, 1 << 20)
        assert bounds.begin in (at, None) or at is None
        at = bounds.end or at
        found += [each.raw for text in texts for each in decode_records(Chunk.of_text("dump.json", 0, text))]
    assert at == size
    assert found == [each.raw for chunk in Reader(open_inputs([path])) for each in decode_records(chunk)]


@pytest.fixture(scope="module")
def tiny_recipe(tiny_tokenizer: str) -> recipes.Recipe:
    return recipes.override(recipes.load("vicuna"), tokenizer=tiny_tokenizer)


def clean(dump: Path, folder: Path, recipe: recipes.Recipe, range_bytes: int, notes: list[str] | None = None) -> None:
    note = (notes if notes is not None else []).append
    execution = Execution(workers=1, range_bytes=range_bytes, note=note)
    run.clean([dump], folder, recipe, page=Page(), execution=execution)


@pytest.mark.parametrize("name", ["lines", "damaged", "two arrays", "cut off"])
def test_ranges_give_the_set_of_the_whole_text(name: str, tmp_path: Path, tiny_recipe: recipes.Recipe) -> None:
    dump = tmp_path / "dump.json"
    dump.write_text(DUMPS[name])
    clean(dump, tmp_path / "ranges", tiny_recipe, RANGE)
    clean(dump, tmp_path / "whole", tiny_recipe, 1 << 20)
    assert digests(tmp_path / "ranges") == digests(tmp_path / "whole")
    assert without_run(tmp_path / "ranges") == without_run(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dump.json", "ranges", "whole"]


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    path = tmp_path / "dump.json"
    path.write_text(ARRAY)
    return path


@pytest.fixture
def killed(dump: Path, tmp_path: Path, tiny_recipe: recipes.Recipe) -> Path:
    """Return the folder of a set whose run was killed when half of its parts were made."""
    plan = plans.write_plan([dump], tmp_path / "set", tmp_path / "plan.json", recipe=tiny_recipe, range_bytes=RANGE)
    assert len(plan.units) > 8
    plans.clean_share(tmp_path / "plan.json", 1, 2, workers=1)
    return tmp_path / "set"


def parts_of(folder: Path) -> list[Path]:
    return sorted(records.folder_of(folder).glob("[0-9]*.json"))


def test_a_killed_run_goes_on(killed: Path, dump: Path, tmp_path: Path, tiny_recipe: recipes.Recipe) -> None:
    made = parts_of(killed)
    notes: list[str] = []
    torn, altered, gone = made[0], made[1], made[2]
    torn.write_bytes(torn.read_bytes()[:-9])
    with altered.with_suffix(".kept.arrow").open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"x")
    gone.with_suffix(".summary.arrow").unlink()
    clean(dump, killed, tiny_recipe, RANGE, notes)
    [note] = notes
    assert note.startswith(f"{len(made) - 3} of ")
    clean(dump, tmp_path / "whole", tiny_recipe, 1 << 20)
    assert digests(killed) == digests(tmp_path / "whole")
    assert not records.folder_of(killed).exists()


def test_another_input_or_filter_makes_parts_again_and_another_split_does_not(
    killed: Path, dump: Path, tiny_recipe: recipes.Recipe
) -> None:
    plan = killed.parent / "plan.json"

    def count_reused(**changes: Any) -> int:
        plans.write_plan([dump], killed, plan, recipe=tiny_recipe, range_bytes=RANGE, **changes)
        return plans.clean_share(plan, 1, 2, workers=1).reused

    half = len(parts_of(killed))
    assert count_reused(eval_fraction=0.5) == half
    assert count_reused(max_tokens=100) == 0
    assert count_reused(max_tokens=100) == half
    dump.write_text(ARRAY.replace("answer to 1.0", "answer to 1,0", 1))
    assert half - 2 <= count_reused(max_tokens=100) < half


CORPUS_RULES: dict[str, dict[str, Any]] = {
    "exact_duplicates": {"prefixes": False},
    "near_duplicates": {"threshold": 0.6, "of": "conversations"},
    "cap": {"cluster": 2},
}


def test_another_rule_over_the_whole_corpus_keeps_parts_and_gives_the_set_of_a_fresh_run(
    killed: Path, dump: Path, tmp_path: Path, tiny_recipe: recipes.Recipe
) -> None:
    plan = tmp_path / "plan.json"

    def plan_with(**rules: Any) -> recipes.Recipe:
        recipe = recipes.from_dict(merge(tiny_recipe.to_dict(), {"filters": rules}), where="test")
        plans.write_plan([dump], killed, plan, recipe=recipe, range_bytes=RANGE)
        return recipe

    plan_with(near_duplicates={"threshold": 0.9}, cap={"cluster": 5})
    plans.clean_share(plan, 1, 1, workers=1)
    for rules in ({"exact_duplicates": False}, CORPUS_RULES):
        recipe = plan_with(**{"near_duplicates": {"threshold": 0.9}, "cap": {"cluster": 5}, **rules})
        assert plans.clean_share(plan, 1, 1, workers=1).reused == len(parts_of(killed))
    plans.gather(plan, workers=1)
    clean(dump, tmp_path / "fresh", recipe, 1 << 20)
    assert digests(killed) == digests(tmp_path / "fresh")
    assert without_run(killed) == without_run(tmp_path / "fresh")


def test_a_plan_is_cleaned_in_shares_and_gathered(
    killed: Path, dump: Path, tmp_path: Path, tiny_recipe: recipes.Recipe
) -> None:
    plan = str(tmp_path / "plan.json")
    gathered = CliRunner().invoke(cli, ["clean", "--plan", plan, "--gather"])
    assert gathered.exit_code == 1
    assert gathered.stderr.splitlines()[-1].endswith(f"make them: curate clean --plan {plan} --part 2/2")
    assert "stays in" not in gathered.stderr
    share = CliRunner().invoke(cli, ["clean", "--plan", plan, "--part", "2/2", "--workers", "1"])
    assert share.exit_code == 0, share.output
    parts_of(killed)[3].with_suffix(".kept.arrow").write_bytes(b"")
    with pytest.raises(InputError, match=r"^1 of .* units has parts .*--part \d/2$"):
        plans.gather(plan, workers=1)
    assert plans.clean_share(plan, 1, 1, workers=1).reused == len(parts_of(killed)) - 1
    plans.gather(plan, workers=1)
    clean(dump, tmp_path / "whole", tiny_recipe, 1 << 20)
    assert digests(killed) == digests(tmp_path / "whole")
    assert without_run(killed) == without_run(tmp_path / "whole")


GATHER, PLAN = "--gather", ["--plan", "p"]
WRONG = [["--part", "1/2"], ["dump.json", *PLAN, GATHER], PLAN, [*PLAN, "--part", "x"], []]


@pytest.mark.parametrize("arguments", WRONG)
def test_flags_of_a_plan_that_do_not_go_together_are_refused(arguments: list[str]) -> None:
    assert CliRunner().invoke(cli, ["clean", *arguments]).exit_code == 2


def test_a_plan_of_other_inputs_is_refused(killed: Path, dump: Path) -> None:
    plan = killed.parent / "plan.json"
    dump.write_text(ARRAY + "\n")
    with pytest.raises(InputError, match=r"have changed since the plan was made \(dump\.json\)"):
        plans.clean_share(plan, 1, 2)
    with pytest.raises(InputError, match=r"no plan at .*; make one: curate clean DUMP"):
        plans.gather(killed.parent / "none.json")
    dump.write_text(ARRAY)
    with pytest.raises(InputError, match="no part 3 of 2"):
        plans.clean_share(plan, 3, 2)


def test_another_folder_is_not_used_for_parts(dump: Path, tmp_path: Path, tiny_recipe: recipes.Recipe) -> None:
    own = tmp_path / ".set.parts"
    own.mkdir()
    (own / "mine.txt").write_text("mine")
    with pytest.raises(UnsafePathError, match="is not curate's"):
        clean(dump, tmp_path / "set", tiny_recipe, RANGE)
    assert (own / "mine.txt").read_text() == "mine"


@pytest.mark.slow
def test_runs_killed_at_any_moment_go_on_to_the_same_set(tmp_path: Path, tiny_tokenizer: str) -> None:
    dump, options = tmp_path / "dump.jsonl", ["--tokenizer", tiny_tokenizer, "--workers", "2", "-q"]
    with dump.open("w") as file:
        file.writelines(json.dumps(chat(n, 40)) + "\n" for n in range(6000))
    began = time.monotonic()
    clean_dump(dump, tmp_path / "whole", tokenizer=tiny_tokenizer, workers=2)
    lasts, moments = time.monotonic() - began, random.Random(13)
    for _ in range(3):
        command = [sys.executable, "-m", "curate", "clean", str(dump), "-o", str(tmp_path / "set"), *options]
        process = subprocess.Popen(command, cwd=ROOT)
        time.sleep(moments.uniform(0.5, 1.0) * lasts)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    clean_dump(dump, tmp_path / "set", tokenizer=tiny_tokenizer, workers=2)
    assert digests(tmp_path / "set") == digests(tmp_path / "whole")
