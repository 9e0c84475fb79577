"""Damage gzip, zstd and zip files at random places.

CURATE_FUZZ=5000 pytest tests/fuzz/test_archives.py    # rounds for each container; 200 by default
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from curate.errors import CurateError
from tests.support.damaged_dumps import ALL, CONTAINERS, corrupt, damage, trusted

ROUNDS = int(os.environ.get("CURATE_FUZZ", "200"))

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("places", [1, 3])
@pytest.mark.parametrize("name", CONTAINERS)
def test_nothing_altered_is_trusted_and_nothing_crashes(tmp_path: Path, name: str, places: int) -> None:
    for seed in range(ROUNDS):
        path = damage(name, seed, tmp_path)
        for place in range(1, places):
            path.write_bytes(corrupt(path.read_bytes() or b"\0", seed * 1_000 + place))
        try:
            kept = trusted(path)
        except CurateError:
            continue
        assert all(ALL.get(each["id"]) == each for each in kept), f"seed {seed}"
