"""`hf:owner/name` streams a data set of the Hub; whatever prevents it is one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from curate.errors import InputError
from curate.ingest.sources import open_inputs
from tests.support import data_hubs
from tests.support.raw_dumps import row

pytest.importorskip("datasets")

ROWS = [row(number) for number in range(7)]
SETTINGS = """---
configs:
- config_name: chats
  data_files:
  - {split: train, path: chats/train.parquet}
  - {split: test, path: chats/test.parquet}
- config_name: other
  data_files: other.parquet
---
"""


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a data set with two configurations, one with a default configuration, an empty one and a gated one."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "set" / "chats").mkdir(parents=True)
    pl.DataFrame(ROWS[:4]).write_parquet(folder / "set" / "chats" / "train.parquet")
    pl.DataFrame(ROWS[4:6]).write_parquet(folder / "set" / "chats" / "test.parquet")
    pl.DataFrame({"instruction": ["Name a bay."], "split": ["mine"]}).write_parquet(folder / "set" / "other.parquet")
    (folder / "set" / "README.md").write_text(SETTINGS)
    (folder / "plain").mkdir()
    pl.DataFrame(ROWS).write_parquet(folder / "plain" / "train-00000-of-00001.parquet")
    (folder / "empty").mkdir()
    (folder / "empty" / "README.md").write_text("# Nothing\n")
    sets = {f"org/{name}": folder / name for name in ("set", "plain", "empty")}
    with data_hubs.serving({**sets, "org/gated": None}) as url:
        yield url


SCRIPT = """
import json, sys
from curate.errors import CurateError
from curate.ingest.decode import decode_records
from curate.ingest.reader import Reader
from curate.ingest.sources import open_inputs
for name in sys.argv[1:]:
    try:
        reader = Reader(open_inputs([name]))
        records = [(r.index, r.value["id"] if "id" in r.value else None, r.value.get("split"))
                   for chunk in reader for r in decode_records(chunk)]
        print(json.dumps(records))
    except CurateError as error:
        print(json.dumps(str(error)))
"""


def read(tmp_path: Path, endpoint: str, *names: str, **environment: str) -> list[Any]:
    """Return the place, id and split of each record of each data set, or the error."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", SCRIPT, *names]
    environment = {**os.environ, **settings, **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_a_data_set_is_read_whole_or_by_configuration_and_split(tmp_path: Path, endpoint: str) -> None:
    train = [[number, f"r{number}", "train"] for number in range(4)]
    test = [[number, f"r{number}", "test"] for number in range(4, 6)]
    plain, chats, both, one, other, wrong, empty = read(
        tmp_path,
        endpoint,
        "hf:org/plain",
        "hf:org/set:chats",
        "hf:org/set:chats:test",
        "hf:org/plain:train",
        "hf:org/set:other",
        "hf:org/set:chats:nope",
        "hf:org/empty",
    )
    assert plain == one == [[number, f"r{number}", "train"] for number in range(7)]
    assert chats == train + test
    assert both == [[0, "r4", "test"], [1, "r5", "test"]]
    assert other == [[0, None, "mine"]]
    assert wrong.startswith("input 'hf:org/set:chats:nope' cannot be read: Bad split: nope. Available splits:")
    assert empty.startswith("input 'hf:org/empty' cannot be read: ") and "\n" not in empty


@pytest.mark.slow
def test_a_data_set_that_cannot_be_read_is_one_line(tmp_path: Path, endpoint: str) -> None:
    absent, gated = read(tmp_path, endpoint, "hf:org/absent", "hf:org/gated")
    assert absent.startswith(f"input 'hf:org/absent' does not exist: no data set at {endpoint}/datasets/org/absent")
    assert gated.endswith(f"ask for access at {endpoint}/datasets/org/gated, then log in with: hf auth login")
    (offline,) = read(tmp_path, endpoint, "hf:org/set", HF_HUB_OFFLINE="1")
    assert offline == "input 'hf:org/set' cannot be read: HF_HUB_OFFLINE is set; unset it, or give files"
    (away,) = read(tmp_path, "http://127.0.0.1:1", "hf:org/set")
    assert away.startswith("input 'hf:org/set' cannot be read: the Hub cannot be reached (")


@pytest.mark.slow
def test_clean_and_stats_stream_a_data_set(tmp_path: Path, endpoint: str) -> None:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")}
    clean = ["clean", "hf:org/plain", "-o", "set", "--json"]
    for command in (["stats", "hf:org/plain"], ["convert", "hf:org/plain", "a.jsonl", "--to", "openai"], clean, clean):
        line = [sys.executable, "-m", "curate", *command]
        done = subprocess.run(line, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 7
    manifest = json.loads(done.stdout)
    assert manifest["counts"]["read"] == 7
    assert [file["name"] for file in manifest["inputs"]] == ["hf:org/plain"]


@pytest.mark.parametrize("name", ["hf:", "hf:a/b/c", "hf:a/b:c:d:e", "hf:a/b::", "hf:a b", "hf:a/b:"])
def test_a_name_of_another_form_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="is no data set; write it as hf:owner/name"):
        open_inputs([name])


def test_data_sets_keep_their_names_beside_files_and_standard_input(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    names = ["hf:org/a", "hf:org/b:train", "-", str(tmp_path / "a.json"), "hf:org/a"]
    assert [source.name for source in open_inputs(names)] == ["hf:org/a", "hf:org/b:train", "stdin", "a.json"]


def test_a_folder_whose_name_begins_like_a_data_set_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hf:org").mkdir()
    Path("hf:org/a.json").write_text(json.dumps(ROWS))
    assert [source.name for source in open_inputs(["hf:org"])] == ["a.json"]
