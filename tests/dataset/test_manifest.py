"""The manifest: the same bytes after a round trip, and one clear error for a damaged one."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import curate
from curate.dataset import manifest
from curate.errors import SetError
from tests.support import ROOT
from tests.support.small_set import MANIFEST, write_manifest, write_set

Steps = tuple[str | int, ...]
DELETE = object()
VALUES: tuple[object, ...] = (
    None,
    True,
    -1,
    2.5,
    1 << 70,
    float("nan"),
    "text",
    "\udcff",
    [],
    [None],
    {},
    {"a": None},
    DELETE,
)


def places(value: object, steps: Steps = ()) -> Iterator[Steps]:
    """Yield the path to every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*steps, key)
        yield from places(inner, (*steps, key))


def changed(facts: dict[str, Any], steps: Steps, value: object) -> dict[str, Any]:
    """Return a copy with one value replaced or deleted."""
    result: Any = copy.deepcopy(facts)
    parent = result
    for step in steps[:-1]:
        parent = parent[step]
    if value is DELETE:
        del parent[steps[-1]]
    else:
        parent[steps[-1]] = value
    return dict(result)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("manifest") / "set")


@settings(deadline=None, max_examples=60)
@example(steps=("inputs",), value="\udcff")
@given(steps=st.sampled_from(list(places(MANIFEST))), value=st.sampled_from(VALUES))
def test_a_damaged_manifest_is_one_clear_error(small: Path, steps: Steps, value: object) -> None:
    write_manifest(small, changed(MANIFEST, steps, value))
    try:
        curated = curate.open_set(small)
        curate.stats(small)
        curate.compare(small, small)
        curated._repr_html_()
    except SetError as error:
        assert "the manifest of" in str(error)
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("steps", "value", "detail"),
    [
        (("counts",), DELETE, "`counts` is missing"),
        (("counts", "kept"), "3", "`counts.kept` must be a whole number, 0 or more"),
        (("counts", "rules", "unreadable"), None, "`counts.rules.unreadable` must be a table"),
        (("window",), -1, "`window` must be a whole number, 0 or more"),
        (("inputs", 0, "name"), 1, "`inputs[0].name` must be text"),
        (("inputs", 0, "sha256"), DELETE, "`inputs[0].sha256` is missing"),
        (("recipe", "name"), None, "`recipe.name` must be text"),
        (("recipe",), {"name": "a", "tokens": 1}, "`recipe.tokens` must be a table"),
    ],
)
def test_the_error_names_the_damaged_value(small: Path, steps: Steps, value: object, detail: str) -> None:
    write_manifest(small, changed(MANIFEST, steps, value))
    with pytest.raises(SetError, match=re.escape(detail)):
        curate.open_set(small)


@pytest.mark.parametrize("text", ["", "[]", "null", '{"curate_set": null}', "{", "[" * 200_000, '{"version": "0.1.0"}'])
def test_a_foreign_manifest_is_not_a_set(small: Path, text: str) -> None:
    (small / manifest.MANIFEST).write_text(text)
    assert not manifest.is_set(small)
    with pytest.raises(SetError, match="is not a curated set"):
        curate.open_set(small)


def test_keys_of_a_newer_version_are_ignored(small: Path) -> None:
    newer = {**MANIFEST, "mood": "good", "counts": {**MANIFEST["counts"], "emojis": 3}}
    write_manifest(small, newer)
    assert curate.open_set(small).manifest.counts.kept == 3


def test_a_manifest_round_trips_to_the_same_bytes(tmp_path: Path) -> None:
    result = curate.clean(ROOT / "examples/sharegpt_dump.json", tmp_path / "set", limit=20, workers=1)
    written = (tmp_path / "set" / manifest.MANIFEST).read_bytes()
    manifest.write(tmp_path, curate.open_set(tmp_path / "set").manifest)
    assert (tmp_path / manifest.MANIFEST).read_bytes() == written
    assert {"curate_set": manifest.FORMAT, **result.manifest.to_dict()} == json.loads(written)


def test_a_manifest_can_be_indexed_like_its_json(small: Path) -> None:
    write_manifest(small, MANIFEST)
    manifest = curate.open_set(small).manifest
    assert manifest["counts"]["kept"] == manifest.counts.kept == 3
    assert manifest["recipe"] == {"name": "vicuna"}
    with pytest.raises(KeyError):
        manifest["nothing"]
