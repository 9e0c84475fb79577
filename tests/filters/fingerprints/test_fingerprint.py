"""Files of fingerprints: written, read, and refused in one line where they are damaged or hostile."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import InputError
from curate.filters.fingerprints import header
from curate.filters.fingerprints.building import Item, build
from curate.filters.fingerprints.fingerprint import Fingerprint, read, write

QUESTION = "How many of the twelve apples are left after the seventh guest has eaten?"


def fingerprint(*, with_texts: bool = False) -> Fingerprint:
    items = [Item("a/1", [QUESTION]), Item("ß", ["Which gas do plants take in?"], ["oxygen", "argon"])]
    return build("apples", items, with_texts=with_texts).fingerprint


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(fingerprint(), tmp_path / "apples.fingerprint")
    return tmp_path / "apples.fingerprint"


@pytest.mark.parametrize("with_texts", [False, True])
def test_a_fingerprint_is_read_as_it_was_written(tmp_path: Path, with_texts: bool) -> None:
    before = fingerprint(with_texts=with_texts)
    write(before, tmp_path / "x")
    after = read(tmp_path / "x")
    assert (after.benchmark, list(after.ids), list(after.texts)) == (before.benchmark, before.ids, list(before.texts))
    assert np.array_equal(after.words, before.words) and np.array_equal(after.hashes, before.hashes)
    assert (b"apples are left" in (tmp_path / "x").read_bytes()) is with_texts
    assert after.items == 2 and len(after.ids) == 3  # a question that is too short is there with its choices too


def with_header(path: Path, **changes: object) -> bytes:
    line, _, body = path.read_bytes().partition(b"\n")
    return json.dumps({**json.loads(line), **changes}).encode() + b"\n" + body


def longer(path: Path, more: bytes) -> bytes:
    """Return a file that somebody who knows the format made longer: its digest is right."""
    body = path.read_bytes().partition(b"\n")[2] + more
    return with_header(path, sha256=hashlib.sha256(body).hexdigest()).partition(b"\n")[0] + b"\n" + body


HOSTILE: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "empty": (lambda _: b"", "is not a fingerprint"),
    "another file": (lambda _: b"PK\3\4" * 100, "is not a fingerprint"),
    "another JSON": (lambda _: b'{"question": 1}\n', "is not a fingerprint"),
    "deep": (lambda _: b'{"curate_fingerprint": ' + b"[" * 4000 + b"\n", "is not a fingerprint"),
    "cut": (lambda path: path.read_bytes()[:-7], "its digest is not that of its content"),
    "longer": (lambda path: path.read_bytes() + b"x", "its digest is not that of its content"),
    "version": (lambda path: with_header(path, curate_fingerprint=2), "is of another version of curate"),
    "name": (lambda path: with_header(path, benchmark="\x1b[31m"), "does not say what it holds"),
    "huge": (lambda path: with_header(path, hashes=1 << 62), "does not say what it holds"),
    "negative": (lambda path: with_header(path, texts=-1), "does not say what it holds"),
    "a fraction": (lambda path: with_header(path, texts=3.0), "does not say what it holds"),
    "true": (lambda path: with_header(path, texts=True), "does not say what it holds"),
    "no digest": (lambda path: with_header(path, sha256=None), "does not say what it holds"),
    "unknown key": (lambda path: with_header(path, more=1), "does not say what it holds"),
    "more texts": (lambda path: with_header(path, texts=1 << 20), "fewer than the"),
    "more hashes": (lambda path: with_header(path, hashes=1 << 29), "fewer than the"),
    "no texts": (lambda path: with_header(path, texts=0, hashes=0, id_bytes=0), "its ids cannot be read"),
    "ids": (lambda path: with_header(path, id_bytes=5), "its ids cannot be read"),
    "fewer hashes": (lambda path: with_header(path, hashes=5), "do not agree"),
    "texts": (lambda path: longer(path, b'["a"]'), "its texts cannot be read"),
    "deep texts": (lambda path: longer(path, b"[" * 100_000), "its texts cannot be read"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_or_hostile_file_gives_one_clear_line(path: Path, name: str) -> None:
    change, message = HOSTILE[name]
    path.write_bytes(change(path))
    with pytest.raises(InputError) as error:
        read(path)
    assert message in str(error.value) and "apples.fingerprint" in str(error.value)
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value)


def test_what_is_no_regular_file_or_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, message in (("absent", "does not exist"), (".", "is not a regular file"), ("a\0b", "does not exist")):
        with pytest.raises(InputError, match=message):
            read(tmp_path / name)
    write(fingerprint(), tmp_path / "x")
    monkeypatch.setattr(header, "MAX_BYTES", 100)
    with pytest.raises(InputError, match="over the limit of 100"):
        read(tmp_path / "x")


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10_000), byte=st.binary(min_size=1, max_size=3))
def test_any_change_of_bytes_is_refused_or_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x"
    write(fingerprint(), path)
    data = path.read_bytes()
    place %= len(data)
    path.write_bytes(data[:place] + byte + data[place + len(byte) :])
    try:
        after = read(path)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert np.array_equal(after.hashes, fingerprint().hashes)


def test_building_counts_what_is_left_out() -> None:
    built = build("b", [Item("1", [QUESTION]), Item("2", [QUESTION.upper()]), Item("3", ["Why not", "你" * 200_000])])
    assert (built.repeated, built.too_short, built.cut) == (1, 1, 1)
    with pytest.raises(InputError, match="no text of at least 3 words; is it the right column"):
        build("b", [Item("1", ["Yes."])])
