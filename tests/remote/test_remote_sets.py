"""Sets in object storage: uploaded whole, never mistaken for whole before that, and read from a verified copy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner

import curate
from curate.api import plans
from curate.cli import cli
from curate.dataset.manifest import FILES, MANIFEST
from curate.errors import CurateError, SetError
from curate.ingest.remote.store import open_store
from curate.pipeline.run import CleanResult
from curate.remote import uploads
from curate.remote.listing import CHECKSUMS
from curate.remote.sets import fetch_set, find_set
from curate.train.examples import open_set_folder
from tests.pipeline.test_clean import chat, digests, without_run
from tests.support.object_store import Bucket, object_store

pytest.importorskip("obstore", reason="needs the extra [remote]")

SECRET = "hidden-key"
URL, KEY = "s3://bucket/sets/one", "/bucket/sets/one"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Bucket]:
    """Return object storage that the environment names, in an empty folder with a dump."""
    with object_store() as served:
        for name, value in {
            "ENDPOINT_URL": served.endpoint,
            "ACCESS_KEY_ID": "me",
            "SECRET_ACCESS_KEY": SECRET,
        }.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        open_store.cache_clear()  # it has the endpoint of an earlier test
        monkeypatch.chdir(tmp_path)
        Path("dump.json").write_text(json.dumps([chat(number, 2) for number in range(6)] + [{"id": "none"}]))
        yield served


@pytest.fixture
def local(bucket: Bucket, tiny_tokenizer: str) -> Path:
    """Return the set of the dump, cleaned into a folder."""
    clean(tiny_tokenizer, "local")
    return Path("local")


def clean(tokenizer: str, output: str = URL, **settings: Any) -> CleanResult:
    return curate.clean("dump.json", output, tokenizer=tokenizer, workers=1, **settings)


def put(bucket: Bucket, folder: Path) -> None:
    """Copy a set by other means."""
    bucket.objects |= {f"{KEY}/{path.name}": path.read_bytes() for path in folder.iterdir()}


def names(bucket: Bucket) -> set[str]:
    return {name.removeprefix(f"{KEY}/") for name in bucket.objects}


def test_a_set_is_uploaded_whole_and_read_by_every_command(bucket: Bucket, local: Path, tiny_tokenizer: str) -> None:
    result = clean(tiny_tokenizer)
    assert result.address == URL
    assert names(bucket) == {*FILES, CHECKSUMS}
    assert bucket.done[-2:] == [f"PUT {KEY}/{CHECKSUMS}", f"PUT {KEY}/{MANIFEST}"]
    assert {path.name for path in Path().iterdir()} == {"dump.json", "local", "cache"}
    copy = Path(fetch_set(f"{URL}/"))
    assert digests(copy) == digests(local)
    assert without_run(copy) == without_run(local)
    assert len(list(curate.read(URL))) == len(list(curate.read(local))) == 6
    assert curate.stats(URL).header.kept == 6
    assert len(curate.show(set_path=URL)) == 6
    assert open_set_folder(URL)[0] == copy
    clean(tiny_tokenizer)  # the same again
    assert all(SECRET.encode() not in data for data in bucket.objects.values())


def test_a_copy_is_taken_again_until_the_set_changes(bucket: Bucket, local: Path) -> None:
    put(bucket, local)  # without checksums
    copy = Path(fetch_set(URL))
    assert digests(copy) == digests(local)
    bucket.read.clear()
    assert find_set(URL) == copy
    assert bucket.read == [f"{KEY}/{MANIFEST}"]
    del bucket.objects[f"{KEY}/originals.parquet"]
    bucket.tags[f"{KEY}/conversations.parquet"] = "second"
    assert Path(fetch_set(URL), "originals.parquet").exists() is False
    assert f"{KEY}/conversations.parquet" in bucket.read
    del bucket.objects[f"{KEY}/rejected.parquet"]
    with pytest.raises(SetError, match=r"is not whole: rejected\.parquet is missing"):
        fetch_set(URL)


def test_an_upload_that_ends_early_is_no_set_and_goes_on(bucket: Bucket, local: Path, tiny_tokenizer: str) -> None:
    bucket.puts_left = 2
    with pytest.raises(SetError, match=r"is complete in .*, but is not uploaded: access is denied") as error:
        clean(tiny_tokenizer)
    assert SECRET not in str(error.value) and "\n" not in str(error.value)
    assert MANIFEST not in names(bucket)
    with pytest.raises(SetError, match="no curated set at 's3://bucket/sets/one'"):
        fetch_set(URL)
    bucket.puts_left, sent = None, list(bucket.done)
    notes: list[str] = []
    clean(tiny_tokenizer, note=notes.append)
    assert notes[0].startswith("the set of an earlier run in ")
    assert len(bucket.done) == len({*bucket.done}) == len(sent) + 4  # nothing was sent twice
    assert digests(Path(fetch_set(URL))) == digests(local)


def test_another_dump_is_cleaned_after_an_upload_that_ended_early(bucket: Bucket, tiny_tokenizer: str) -> None:
    bucket.puts_left = 0
    with pytest.raises(SetError, match="is not uploaded"):
        clean(tiny_tokenizer)
    bucket.puts_left = None
    Path("dump.json").write_text(json.dumps([chat(1, 2)]))
    assert clean(tiny_tokenizer).manifest.counts.read == 1


def test_what_is_there_is_replaced_as_a_local_set_is(bucket: Bucket, tiny_tokenizer: str) -> None:
    clean(tiny_tokenizer)
    bucket.objects[f"{KEY}/notes.txt"] = b"mine"
    with pytest.raises(SetError, match=r"would be lost: this run has tokens\.max_tokens 300 instead of 2048"):
        clean(tiny_tokenizer, max_tokens=300)
    clean(tiny_tokenizer, max_tokens=300, force=True)
    clean(tiny_tokenizer, max_tokens=300, originals=False, force=True)
    assert names(bucket) == {*FILES, CHECKSUMS, "notes.txt"} - {"originals.parquet"}
    with pytest.raises(SetError, match="contains files and is not a curated set"):
        clean(tiny_tokenizer, "s3://bucket/sets")
    with pytest.raises(SetError, match="there is a set at"):
        curate.refilter(URL, URL, where="turns > 1")


@pytest.mark.parametrize("name", ["conversations.parquet", MANIFEST])
def test_what_is_not_as_it_was_uploaded_is_refused(bucket: Bucket, tiny_tokenizer: str, name: str) -> None:
    clean(tiny_tokenizer)
    bucket.objects[f"{KEY}/{name}"] = bucket.objects[f"{KEY}/{name}"].replace(b"0", b"1", 1)
    with pytest.raises(SetError, match=r"is not what was uploaded|is not whole"):
        fetch_set(URL)


def test_sets_are_made_from_sets_elsewhere(bucket: Bucket, local: Path, tiny_tokenizer: str) -> None:
    put(bucket, local)
    curate.refilter(URL, "s3://bucket/sets/two", where="source_id != 'chat1'")
    assert curate.stats("s3://bucket/sets/two").header.kept == 5
    [known, _] = curate.clean(
        "dump.json", "new", tokenizer=tiny_tokenizer, against="s3://bucket/sets/two"
    ).manifest.sets
    assert known.kept == 5


@pytest.mark.parametrize("opaque", [False, True])
def test_large_files_are_sent_in_parts_and_verified(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opaque: bool
) -> None:
    monkeypatch.setattr(uploads, "PART_BYTES", uploads.BLOCK)
    bucket.opaque = opaque
    paths = [tmp_path / "a.bin", tmp_path / "empty.bin"]
    paths[0].write_bytes(bytes(range(256)) * 10_000)
    paths[1].write_bytes(b"")
    uploads.upload_files(paths, "s3://bucket/files")
    assert bucket.objects["/bucket/files/a.bin"] == paths[0].read_bytes()
    assert len(bucket.parts) == 3
    assert bool(bucket.read) is opaque  # read back where the ETag says nothing
    bucket.alters = True
    paths[0].write_bytes(b"other bytes")
    with pytest.raises(OSError, match="is not there as it was sent"):
        uploads.upload_files(paths[:1], "s3://bucket/files")


def test_a_conversion_is_uploaded(bucket: Bucket, local: Path) -> None:
    command = ["convert", str(local), "s3://bucket/out/train.parquet", "--to", "parquet"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines() == ["train.parquet: 6 of 6 pieces", "uploaded to s3://bucket/out"]
    Path("back.parquet").write_bytes(bucket.objects["/bucket/out/train.parquet"])
    assert pl.read_parquet("back.parquet").height == 6
    with pytest.raises(CurateError, match="give a local target"):
        curate.convert(local, "s3://bucket/folder", to="hf")


REFUSED = {
    "https://example.org/set": "cannot write 'https://example.org/set': outputs are folders on this machine",
    "hf://datasets/me/mine/set": "outputs are folders on this machine",
    "s3://bucket": "give the name of a folder in the bucket",
    "s3://bucket/set?sig=hidden-key": "with a query or a password",
    "s3://bucket/set.jsonl": "a set elsewhere is a folder",
}


@pytest.mark.parametrize("url", REFUSED)
def test_addresses_where_nothing_can_be_written_are_refused_before_work_begins(bucket: Bucket, url: str) -> None:
    with pytest.raises(CurateError, match=REFUSED[url]) as error:
        curate.clean("dump.json", url)
    assert SECRET not in str(error.value)
    with pytest.raises(CurateError, match="cannot plan"):
        plans.write_plan(["dump.json"], url, "plan.json")
    assert not bucket.done
