"""Inputs on web servers and in object storage: read by ranges, with the bytes of a local run, without secrets."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from pathlib import Path
from random import Random

import polars as pl
import pytest

import curate
from curate.api import plans
from curate.errors import InputError
from curate.ingest.remote import address
from curate.ingest.remote.remote_file import MIN_FETCH, find
from curate.ingest.sources import open_inputs
from curate.pipeline.parts.plan import make_plan
from curate.pipeline.recipe import Recipe
from tests.support.file_server import serving

pytest.importorskip("obstore", reason="needs the extra [remote]")

WORDS = ["river", "stone", "lamp", "letter", "garden", "winter", "copper", "meadow", "answer", "question"]


def records(count: int) -> list[dict[str, object]]:
    chance = Random(count)
    texts = [" ".join(chance.choices(WORDS, k=30)) for _ in range(2 * count)]
    turns = [{"from": "human", "value": texts[2 * i]} for i in range(count)]
    answers = [{"from": "gpt", "value": texts[2 * i + 1]} for i in range(count)]
    return [{"id": f"r{i}", "conversations": list(pair)} for i, pair in enumerate(zip(turns, answers, strict=True))]


def as_lines(count: int) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records(count))


def as_zip(count: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("chats/one.jsonl", as_lines(count))
    return file.getvalue()


def as_parquet(count: int) -> bytes:
    file = io.BytesIO()
    pl.DataFrame(records(count)).write_parquet(file)
    return file.getvalue()


DUMPS = {
    "dump.json": json.dumps(records(40)).encode(),
    "dump.jsonl.gz": gzip.compress(as_lines(40)),
    "dump.zip": as_zip(40),
    "dump.parquet": as_parquet(40),
}


def tables(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


@pytest.mark.parametrize("name", DUMPS)
def test_a_remote_file_gives_the_bytes_of_the_local_one(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(DUMPS[name])
    local = curate.clean(tmp_path / name, tmp_path / "local", workers=1)
    with serving({f"/data/{name}": DUMPS[name]}) as served:
        remote = curate.clean(f"{served.endpoint}/data/{name}", tmp_path / "remote", workers=1)
    assert tables(tmp_path / "remote") == tables(tmp_path / "local")
    assert remote.manifest.inputs == local.manifest.inputs
    assert remote.manifest.run is not None
    assert remote.manifest.run.paths == [f"{served.endpoint}/data/{name}"]


def test_ranges_of_a_remote_text_are_read_apart(tmp_path: Path) -> None:
    data = as_lines(200)
    (tmp_path / "dump.jsonl").write_bytes(data)
    with serving({"/dump.jsonl": data}) as served:
        for name, dump in (("local", tmp_path / "dump.jsonl"), ("remote", f"{served.endpoint}/dump.jsonl")):
            plan = plans.write_plan([dump], tmp_path / name, tmp_path / f"{name}.json", range_bytes=len(data) // 8)
            plans.clean_share(tmp_path / f"{name}.json", 1, 1, workers=1)
            plans.gather(tmp_path / f"{name}.json", workers=1)
    assert len(plan.units) > 4
    assert plan.inputs == (f"{served.endpoint}/dump.jsonl",)
    assert tables(tmp_path / "remote") == tables(tmp_path / "local")


def test_a_file_is_read_at_any_place(tmp_path: Path) -> None:
    data = Random(0).randbytes(3 * MIN_FETCH + 17)
    with serving({"/a": data}, breaks=1, fails=1) as served:
        file, head = find(f"{served.endpoint}/a")
        assert file is not None
        assert data.startswith(head)
        with file.open() as stream:
            assert stream.read() == data
            for place in (5, 2 * MIN_FETCH - 3, len(data) - 2, len(data), len(data) + 9):
                assert stream.seek(place) == place
                assert stream.read(9) == data[place : place + 9]
            assert stream.seek(0, 2) == len(data)
    asked = [range for _, range in served.asked]
    assert None not in asked


def test_a_server_without_ranges_is_read_once(tmp_path: Path) -> None:
    with serving({"/dump.jsonl": as_lines(5)}, ranges=False, breaks=1) as served:
        [source] = open_inputs([f"{served.endpoint}/dump.jsonl"])
    assert (source.bytes, source.name) == (len(as_lines(5)), "dump.jsonl")
    assert source.local is not None
    assert source.local.read_bytes() == as_lines(5)


def test_a_file_that_changes_while_it_is_read_ends_the_run(tmp_path: Path) -> None:
    with (
        serving({"/dump.jsonl": as_lines(30)}, changes_after=1) as served,
        pytest.raises(InputError, match="has changed while it was read"),
    ):
        curate.clean(f"{served.endpoint}/dump.jsonl", tmp_path / "set", workers=1)
    assert not (tmp_path / "set").exists()


def test_object_storage_takes_its_settings_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving({"/bucket/chats/dump.jsonl": as_lines(5)}) as served:
        monkeypatch.setenv("AWS_ENDPOINT_URL", served.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-key")
        [source] = open_inputs(["s3://bucket/chats/dump.jsonl"])
    assert (source.name, source.place) == ("dump.jsonl", "s3://bucket/chats/dump.jsonl")
    assert "hidden" not in repr(source)


def test_a_file_of_the_hub_is_read_with_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/datasets/owner/name/resolve/main/data/dump.jsonl"
    with serving({path: as_lines(5)}, secret="hf_hidden") as served:
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            f"{served.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        )
        monkeypatch.setenv("HF_TOKEN", "hf_hidden")
        [source] = open_inputs(["hf://datasets/owner/name/data/dump.jsonl"])
    assert source.place == "hf://datasets/owner/name/data/dump.jsonl"
    assert source.bytes == len(as_lines(5))


def test_a_signed_address_is_used_and_never_shown(tmp_path: Path) -> None:
    with serving({"/dump.jsonl": as_lines(20)}, secret="sig=s3cr3t") as served:
        url = f"{served.endpoint}/dump.jsonl?sig=s3cr3t"
        result = curate.clean(url, tmp_path / "set", workers=1)
        with pytest.raises(InputError, match="may be secret"):
            make_plan([url], tmp_path / "set", Recipe())
        with pytest.raises(InputError, match="access is denied") as denied:
            open_inputs([f"{served.endpoint}/dump.jsonl?sig=wrong"])
    assert "wrong" not in str(denied.value)
    assert "s3cr3t" not in json.dumps(result.manifest.to_dict())
    assert all(b"s3cr3t" not in path.read_bytes() for path in (tmp_path / "set").iterdir())


PROBLEMS = {
    "absent": ("/absent.jsonl", "there is no such file"),
    "a folder": ("/data/", "is no file; give the address of each file"),
    "empty": ("/empty.jsonl", "is empty"),
    "a PDF": ("/a.pdf", "is a PDF"),
}


@pytest.mark.parametrize(("path", "problem"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_what_cannot_be_read_is_said_in_one_line(path: str, problem: str) -> None:
    with (
        serving({"/empty.jsonl": b"", "/a.pdf": b"%PDF-1.7\n" + b"x" * 5000}) as served,
        pytest.raises(InputError, match=problem) as error,
    ):
        open_inputs([f"{served.endpoint}{path}"])
    assert "\n" not in str(error.value)


def test_addresses_with_passwords_are_refused() -> None:
    with pytest.raises(InputError, match="credentials are read from the environment") as error:
        open_inputs(["https://me:hidden@localhost/dump.jsonl"])
    assert "hidden" not in str(error.value)
    with pytest.raises(InputError, match="no file of the Hub"):
        open_inputs(["hf://owner"])


def test_a_server_that_fails_is_asked_again_and_at_last_named() -> None:
    with serving({"/a.jsonl": as_lines(3)}, breaks=100) as served, pytest.raises(InputError, match="cannot be read"):
        open_inputs([f"{served.endpoint}/a.jsonl"])


def test_other_commands_read_remote_files(tmp_path: Path) -> None:
    with serving({"/dump.jsonl": as_lines(9)}) as served:
        url = f"{served.endpoint}/dump.jsonl"
        result = curate.convert(url, tmp_path / "out.jsonl", to="openai")
        measured = curate.stats(url, workers=1)
    assert (result.written, measured.header.read) == (9, 9)


@pytest.mark.parametrize(
    ("url", "name", "folder"),
    [
        ("https://example.org/a/b%20c.json?x=/y", "b c.json", "/example.org/a"),
        ("s3://bucket/key.jsonl", "key.jsonl", "/bucket"),
        ("hf://datasets/owner/name@v1/data/x.json", "x.json", "/datasets/owner/name@v1/data"),
    ],
)
def test_names_come_from_addresses(url: str, name: str, folder: str) -> None:
    assert address.is_remote(url)
    assert address.name_of(url) == name
