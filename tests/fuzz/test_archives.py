"""Damage gzip, zstd and zip files at random places."""

from __future__ import annotations

from pathlib import Path

import pytest

from curate.errors import CurateError
from tests.fuzz.effort import rounds, seeds
from tests.support.damaged_dumps import ALL, CONTAINERS, damage, damage_places, trusted

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("places", [1, 3])
@pytest.mark.parametrize("name", CONTAINERS)
def test_nothing_altered_is_trusted_and_nothing_crashes(tmp_path: Path, name: str, places: int) -> None:
    altered = []
    for seed in seeds(200):
        path = damage(name, seed, tmp_path) if places == 1 else damage_places(name, seed, tmp_path, places)
        try:
            kept = trusted(path)
        except CurateError:
            continue
        altered += [seed] * any(ALL.get(each["id"]) != each for each in kept)
    # Damage to a text and, elsewhere, to the end of its stream looks like a file that is cut off, which alters nothing.
    assert len(altered) <= rounds(200) // 100 * (places > 1), altered
