"""A converted file is pushed to the Hub: private, with a card that carries the manifest, one split after the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from curate.conversion.convert import convert
from curate.errors import CurateError, InputError
from tests.support import hubs
from tests.support.small_set import MANIFEST, write_set

WITH_EVAL = {**MANIFEST, "counts": {**MANIFEST["counts"], "eval": 1}, "run": {**MANIFEST["run"], "host": "my-machine"}}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder of a local Hub's data sets."""
    folder = tmp_path / "hub"
    folder.mkdir()
    with hubs.receiving(folder) as endpoint:
        hubs.point(monkeypatch, endpoint)
        monkeypatch.setattr("huggingface_hub.hf_api.HfApi.endpoint", endpoint, raising=False)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield folder


def files(repository: Path) -> list[str]:
    return sorted(str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file())


def test_both_splits_are_pushed_beside_each_other_with_a_card(hub: Path, tmp_path: Path) -> None:
    source = write_set(tmp_path / "curated", facts=WITH_EVAL)
    result = convert(source, tmp_path / "a.parquet", to="parquet", split="train", push_to_hub="me/chats")
    assert result.pushed_to is not None and result.pushed_to.endswith("datasets/me/chats")
    created = json.loads((hub / "chats.created.json").read_text())
    assert created.get("visibility", created.get("private")) in ("private", True)
    assert files(hub / "me/chats") == ["README.md", "data/train.parquet"]
    convert(source, tmp_path / "b.parquet", to="parquet", split="eval", push_to_hub="me/chats")
    assert files(hub / "me/chats") == ["README.md", "data/eval.parquet", "data/train.parquet"]
    assert pl.read_parquet(hub / "me/chats/data/train.parquet")["id"].to_list() == ["abc_0", "deadbeef", "twice"]
    card = (hub / "me/chats/README.md").read_text("utf-8")
    assert "  - split: train\n    path: data/train[.-]*\n  - split: eval\n    path: data/eval[.-]*\n" in card
    assert '"sha256": "0000' in card and "| `exact_duplicates` | 1 |" in card
    assert "my-machine" not in card and str(tmp_path) not in card


def test_shards_of_an_earlier_push_are_replaced(hub: Path, tmp_path: Path) -> None:
    source = write_set(tmp_path / "curated")
    for shards in (3, 2):
        folder = tmp_path / str(shards)
        folder.mkdir()
        convert(source, folder / "x.jsonl.gz", to="openai", shards=shards, push_to_hub="me/chats")
    names = [f"data/train-0000{i}-of-00002.jsonl.gz" for i in range(2)]
    assert files(hub / "me/chats") == ["README.md", *names]


def test_a_dump_is_pushed_as_what_it_is(hub: Path, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    (tmp_path / "dump.json").write_text(json.dumps([{"id": "a", "conversations": turns}]))
    convert(tmp_path / "dump.json", tmp_path / "x.jsonl", to="trl", push_to_hub="me/raw")
    assert "without cleaning" in (hub / "me/raw/README.md").read_text("utf-8")


def test_a_refused_push_keeps_the_file_and_is_one_line(hub: Path, tmp_path: Path) -> None:
    source = write_set(tmp_path / "curated")
    with pytest.raises(CurateError, match="is written, but not pushed to 'closed/chats'") as error:
        convert(source, tmp_path / "x.jsonl", to="jsonl", push_to_hub="closed/chats")
    assert "\n" not in str(error.value)
    assert (tmp_path / "x.jsonl").exists()


@pytest.mark.parametrize(
    ("to", "name", "message"),
    [
        ("parquet", "chats", "give OWNER/NAME"),
        ("parquet", "a/b/c", "give OWNER/NAME"),
        ("text", "me/chats", "'text' is not pushed"),
        ("parquet", "me/chats", "push each by itself: --split train"),
    ],
    ids=["no owner", "too long", "text", "both splits at once"],
)
def test_what_should_not_be_pushed_is_refused_before_anything_is_written(
    tmp_path: Path, to: str, name: str, message: str
) -> None:
    source = write_set(tmp_path / "curated", facts=WITH_EVAL)
    with pytest.raises(InputError, match=message):
        convert(source, tmp_path / "out.parquet", to=to, push_to_hub=name)
    assert [path.name for path in tmp_path.iterdir()] == ["curated"]
