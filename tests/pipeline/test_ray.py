"""The engine ray: the same set, also when a worker or a node is killed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from curate.api.clean import clean
from curate.pipeline.parts import record as records
from tests.pipeline.test_clean import chat, digests, without_run

ray = pytest.importorskip("ray", reason="needs the extra [ray]")
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a text that is cut, and one that is not."""
    folder = tmp_path_factory.mktemp("ray") / "dumps"
    folder.mkdir()
    (folder / "large.json").write_text(json.dumps([chat(n, 40) for n in range(5000)]))
    (folder / "small.json").write_text(json.dumps([chat(n, 3) for n in range(4000, 6000)]))
    return folder


@pytest.fixture(scope="module")
def whole(dump: Path, tiny_tokenizer: str) -> Path:
    clean(dump, dump.parent / "whole", tokenizer=tiny_tokenizer, workers=2)
    return dump.parent / "whole"


def kill_when(parts: Path, count: int, kill: Callable[[], None]) -> threading.Thread:
    """Start a thread that calls `kill` when this many parts are there."""

    def watch() -> None:
        while not parts.exists() or len(list(parts.glob("[0-9]*.json"))) < count:
            time.sleep(0.02)
        kill()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def local_ray() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def kill_a_worker() -> None:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "cmdline").read_bytes()
            if name.startswith(b"ray::_run") and int((process / "status").read_text().split("PPid:")[1].split()[0]) > 1:
                os.kill(int(process.name), signal.SIGKILL)
                return
        except OSError:
            continue
    raise AssertionError("no worker is at work")


def test_a_killed_worker_loses_nothing(
    dump: Path, whole: Path, tmp_path: Path, tiny_tokenizer: str, local_ray: None
) -> None:
    killer = kill_when(records.folder_of(tmp_path / "set"), 1, kill_a_worker)
    clean(dump, tmp_path / "set", tokenizer=tiny_tokenizer, engine="ray")
    killer.join(timeout=1)
    assert not killer.is_alive()
    assert digests(tmp_path / "set") == digests(whole)
    assert without_run(tmp_path / "set") == without_run(whole)


def test_a_killed_node_loses_nothing(dump: Path, whole: Path, tmp_path: Path, tiny_tokenizer: str) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        cluster.wait_for_nodes()
        kill = lambda: cluster.remove_node(node, allow_graceful=False)  # noqa: E731
        killer = kill_when(records.folder_of(tmp_path / "set"), 1, kill)
        clean(dump, tmp_path / "set", tokenizer=tiny_tokenizer, engine="ray")
        killer.join(timeout=20)
        assert not killer.is_alive()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert digests(tmp_path / "set") == digests(whole)
