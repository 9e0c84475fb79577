"""The folder of the cache follows the XDG specification."""

from __future__ import annotations

from pathlib import Path

import pytest

from curate.files import cache_folder
from curate.filters.language_id import profiles
from curate.tokenization import cache


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("value", [None, "", "relative", "./relative", "~/cache"])
def test_the_cache_is_at_home_unless_the_variable_is_an_absolute_path(
    value: str | None, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache_folder() == home / ".cache" / "curate"


def test_an_absolute_path_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "curate"


@pytest.mark.parametrize("value", ["relative", "/absolute"])
def test_tokenizers_and_profiles_are_cached_in_one_folder(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache.tokenizers_folder().parent == profiles.profiles_folder().parent == cache_folder()
