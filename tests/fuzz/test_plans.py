"""Change plans, parts, recipes, fingerprints and journals: each gives one line, or is passed over as damaged."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate.api import plans
from curate.client.exchange import CHAT, Request
from curate.client.journal import Journal
from curate.errors import CurateError
from curate.filters.fingerprints import fingerprint
from curate.pipeline import recipe as recipes
from curate.pipeline.frames import part_file
from curate.pipeline.parts import plan as plan_files
from curate.pipeline.parts import record as records
from curate.pipeline.parts import sharing, streams
from curate.scoring import journal as scores
from tests.fuzz.effort import SEED, rounds
from tests.pipeline.test_clean import chat
from tests.support.mutations import mutations

DEEP = b'{"recipe":' + b'{"a":' * 100_000


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: str) -> Path:
    """Return a plan of two texts that are cut and one that is not, whose only share is made."""
    folder = tmp_path_factory.mktemp("plans")
    for name, count in (("a.json", 40), ("b.json", 45), ("c.json", 1)):
        (folder / name).write_text(json.dumps([chat(n) for n in range(count)]))
    recipe = recipes.override(recipes.load("vicuna"), tokenizer=tiny_tokenizer)
    inputs = [folder / name for name in ("a.json", "b.json", "c.json")]
    made = plans.write_plan(inputs, folder / "set", folder / "plan", recipe=recipe, range_bytes=800)
    assert len({unit.sources for unit in made.units if unit.stop is not None}) == 2
    plans.clean_share(folder / "plan", 1, 1, workers=1)
    return folder / "plan"


def one_line(action: Callable[[], object]) -> str | None:
    """Return the message of an action that fails, which must be one line."""
    try:
        action()
    except CurateError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


def names(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


CHANGES: list[tuple[str, Callable[[list[Any]], object]]] = [
    ("unknown source", lambda units: units[0].update(sources=[7])),
    ("no source", lambda units: units[-1].update(sources=[])),
    ("negative source", lambda units: units[0].update(sources=[-1])),
    ("negative start", lambda units: units[0].update(start=-5)),
    ("beyond the file", lambda units: units[-2].update(stop=10**12)),
    ("backwards", lambda units: units[1].update(stop=1)),
    ("twice", lambda units: units.insert(1, units[0])),
    ("left out", lambda units: units.pop(1)),
    ("source left out", lambda units: units.pop()),
    ("other order", lambda units: units.reverse()),
    ("not cut to its end", lambda units: units.pop(-2)),
    ("none", lambda units: units.clear()),
]


@pytest.mark.parametrize(("name", "change"), CHANGES, ids=[name for name, _ in CHANGES])
def test_units_that_do_not_read_all_once_are_refused(
    plan: Path, tmp_path: Path, name: str, change: Callable[[list[Any]], object]
) -> None:
    values = json.loads(plan.read_bytes())
    change(values["units"])
    (tmp_path / "plan").write_text(json.dumps(values))
    for action in (lambda: plans.clean_share(tmp_path / "plan", 1, 1), lambda: plans.gather(tmp_path / "plan")):
        assert "exactly once" in (one_line(action) or ""), name


@pytest.mark.parametrize("path", ["", "set", "../set", "/", "/a\0b", "/" + "x" * 5000, "https://host/set"])
def test_a_plan_of_odd_paths_is_refused(plan: Path, tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    values = {**json.loads(plan.read_bytes()), "output": path}
    (tmp_path / "plan").write_text(json.dumps(values))
    assert "is damaged" in (one_line(lambda: plans.gather(tmp_path / "plan")) or "")
    assert names(tmp_path) == [str(tmp_path / "here"), str(tmp_path / "plan")]


@pytest.mark.parametrize("data", [b"", b"\xff", b'{"inputs": ["\xff"]}', DEEP, b"[]", b"null", b'"' + b"9" * 5000])
def test_what_is_no_plan_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "plan").write_bytes(data)
    assert "is not a plan of curate" in (one_line(lambda: plan_files.read_plan(tmp_path / "plan")) or "")


def test_changed_plans_give_one_line_and_change_no_file(plan: Path, tmp_path: Path) -> None:
    before = names(plan.parent)
    for values in mutations(json.loads(plan.read_bytes()), rounds(150), SEED):
        (tmp_path / "plan").write_text(json.dumps(values))

        def use() -> None:
            read = plan_files.read_plan(tmp_path / "plan")
            plan_files.open_sources(read)
            recipes.from_dict(read.recipe, "the plan's recipe")

        one_line(use)
    assert names(plan.parent) == before


def test_a_plan_that_cuts_what_is_no_text_is_refused(plan: Path, tmp_path: Path) -> None:
    values = json.loads(plan.read_bytes())
    (tmp_path / "a.zip").write_bytes(b"PK\x05\x06" + bytes(2000))
    values |= {"inputs": [str(tmp_path / "a.zip")], "units": [{"sources": [0], "start": 0, "stop": 2004}]}
    values["sources"] = [{"name": "a.zip", "bytes": 2004}]
    (tmp_path / "plan").write_text(json.dumps(values))
    assert one_line(lambda: plans.gather(tmp_path / "plan"))


# ---- parts


def test_a_changed_record_of_a_part_is_no_record(plan: Path) -> None:
    folder = records.folder_of(plan.parent / "set")
    path = min(folder.glob("[0-9]*.json"))
    number, whole = int(path.stem), path.read_bytes()
    good = records.read_record(folder, number)
    assert good is not None
    assert records.are_whole(folder, good)
    values = json.loads(whole.partition(b"\n")[0])
    outside = {**values["files"], "../../a": values["files"]["summary"]}
    changes: list[dict[str, Any]] = [{"number": 5}, {"number": -1}, {"files": {}}, {"files": outside}]
    try:
        for data in (b"", whole[:-1], whole.replace(b'"read":', b'"reed":'), b"\xff" + whole, DEEP):
            path.write_bytes(data)
            assert records.read_record(folder, number) is None
        for change in changes:  # with a checksum that is right
            records.write_sealed(path, {**values, **change})
            assert records.read_record(folder, number) is None
        for changed in mutations(values, rounds(100), SEED):
            try:
                records.write_sealed(path, changed)
            except (UnicodeEncodeError, OverflowError, RecursionError):  # no JSON
                continue
            found = records.read_record(folder, number)
            assert found is None or isinstance(records.are_whole(folder, found), bool)
        path.unlink()
        path.symlink_to(plan)
        assert records.read_record(folder, number) is None
    finally:
        path.unlink()
        path.write_bytes(whole)


def test_links_and_pipes_in_place_of_a_part_are_not_opened(plan: Path, tmp_path: Path) -> None:
    folder = records.folder_of(plan.parent / "set")
    number = int(min(folder.glob("[0-9]*.json")).stem)
    record = records.read_record(folder, number)
    assert record is not None
    own = part_file(folder, number, records.SUMMARY)
    own.rename(tmp_path / "elsewhere")
    try:
        places: list[Callable[[], object]] = [
            lambda: own.symlink_to(tmp_path / "elsewhere"),
            lambda: os.mkfifo(own),
            own.mkdir,
        ]
        for place in places:
            place()
            assert not records.are_whole(folder, record)
            own.rmdir() if own.is_dir() else own.unlink()
    finally:
        (tmp_path / "elsewhere").rename(own)


def test_odd_facts_of_a_stream_are_none(plan: Path) -> None:
    folder = records.folder_of(plan.parent / "set")
    [path] = folder.glob("stream-*.json")
    unit, whole = int(path.stem.partition("-")[2]), path.read_bytes()
    facts = streams.read_facts(folder, unit)
    assert facts is not None
    try:
        for data in (b"", whole.replace(b'"parts":1', b'"parts":0'), DEEP):
            path.write_bytes(data)
            assert streams.read_facts(folder, unit) is None
        for parts in (-1, 10**15):
            records.write_sealed(path, streams.StreamFacts(parts, facts.facts))
            assert streams.read_facts(folder, unit) is None
    finally:
        path.write_bytes(whole)


def test_parts_of_a_stream_are_of_the_plan_s_recipe(plan: Path, tmp_path: Path, tiny_tokenizer: str) -> None:
    recipe = recipes.override(recipes.load("vicuna"), tokenizer=tiny_tokenizer)
    arguments = [plan.parent / "c.json"], tmp_path / "set", tmp_path / "plan"
    plans.write_plan(*arguments, recipe=recipe)
    plans.clean_share(tmp_path / "plan", 1, 1, workers=1)
    plans.write_plan(*arguments, recipe=recipe, max_tokens=100)
    assert "--part 1/1" in (one_line(lambda: plans.gather(tmp_path / "plan", workers=1)) or "")
    plans.write_plan(*arguments, recipe=recipe)
    plans.gather(tmp_path / "plan", workers=1)


@pytest.mark.parametrize("shares", ["0", "-3", "x", "\x00", "9" * 9000, ""])
def test_an_odd_number_of_shares_is_no_fault(plan: Path, shares: str) -> None:
    path = records.folder_of(plan.parent / "set") / sharing.SHARES
    path.write_text(shares)
    read = plan_files.read_plan(plan)
    message = one_line(lambda: sharing.name_missing(read, plan, plan.parent / "set", [0, 1]))
    assert "--part 1/" in (message or "")


# ---- recipes, fingerprints, journals


TOML = [
    "x = " + "9" * 5000,
    "[tokens]\nmax_tokens = " + "9" * 400,
    "[eval]\nfraction = " + "9" * 400,
    "[eval]\nfraction = nan",
    "tokens" + ".a" * 3000 + " = 1",
    "filters.x" + ".a" * 3000 + " = 1",
    "x = " + "[" * 3000,
    'base = "a\\u0000b.toml"',
    f'base = "{"x" * 5000}"',
    f'base = "{"x" * 5000}.toml"',
    'filters.files = ["a\\u0000.py"]',
    f'filters.files = ["{"x" * 5000}.py"]',
    "filters.files = [1]",
    "filters = 3",
    "signals = 2020-01-01",
    "[filters]\nrepetition = { ratio = nan }",
    '[filters]\ncontamination = { benchmarks = ["/\\u0000.fingerprint"] }',
    f'[filters]\ncontamination = {{ benchmarks = ["/{"x" * 5000}.fingerprint"] }}',
    '[filters]\ncontamination = { benchmarks = ["/"] }',
]


@pytest.mark.parametrize("text", TOML, ids=range(len(TOML)))
def test_an_odd_recipe_gives_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    assert one_line(lambda: recipes.load(tmp_path / "recipe.toml"))


def test_recipes_of_odd_types_give_one_line() -> None:
    values = json.loads(json.dumps(recipes.load("strict").to_dict()))
    for changed in mutations(values, rounds(60), SEED):
        one_line(lambda changed=changed: recipes.from_dict(copy.deepcopy(changed)))  # type: ignore[misc]


def test_changed_fingerprints_give_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.fingerprint"
    made = fingerprint.Fingerprint("x", ["1", "2"], np.array([9, 3]), np.array([1, 2, 3], np.uint64), ["a", "b"])
    fingerprint.write(made, path)
    header, _, body = path.read_bytes().partition(b"\n")
    for changed in mutations(json.loads(header), rounds(100), SEED):
        path.write_bytes(json.dumps(changed).encode() + b"\n" + body)
        one_line(lambda: fingerprint.read(path))
    for data in (b"", header, header + b"\n" + body[:-1], b"\xff" + header, DEEP):
        path.write_bytes(data)
        assert one_line(lambda: fingerprint.read(path))


def test_damaged_lines_of_journals_are_passed_over(tmp_path: Path) -> None:
    request = Request("1", CHAT, {"messages": []})
    path = tmp_path / "journal"
    with Journal(path, {"model": "x"}) as journal:
        journal.add_reply(request, {"choices": [{"message": {"content": "yes"}}]}, 3)
    first, line = path.read_text().splitlines()
    for changed in mutations(json.loads(line), rounds(100), SEED):
        path.write_text(f"{first}\n{json.dumps(changed)}\n{'[' * 100_000}\n")
        with Journal(path, {"model": "x"}) as journal:
            assert journal.notes
            journal.find(request)
    for text in ('{"k', "[" * 100_000, "[]", "9" * 5000, '{"key": "a", "results": 3}', '{"results": []}'):
        kept = f"{hashlib.sha256(text.encode()).hexdigest()[:16]} {text}\n".encode()
        assert scores._read(kept) is None
