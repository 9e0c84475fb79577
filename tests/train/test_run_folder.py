"""The folder of a run: nothing outside it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from curate.errors import UnsafePathError
from curate.train.run import folder


@pytest.mark.parametrize("name", sorted(folder.OWN_NAMES))
def test_a_link_at_a_name_of_the_run_is_refused(name: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(outside / "new" if "." in name else outside)
    with pytest.raises(UnsafePathError, match=f"{name}' is a link"), folder.lock(tmp_path / "run"):
        pass
    assert list(outside.iterdir()) == []
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]
