"""What ranks know of each other, how rows are shared out, and modules spread: each function by itself.

Whole runs on two ranks stand in `test_run_ranks.py`, sharded optimizer states in `test_optimizers.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from curate.errors import CurateError
from curate.train import distributed
from curate.train.distributed import World
from tests.support import ranks

ALONE = World(0, 1, 0, torch.device("cpu"))


def net() -> Any:
    """Two layers in a list, as models have them, and a head of an odd number of rows."""
    torch.manual_seed(0)
    made = torch.nn.Module()
    made.layers = torch.nn.ModuleList([torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)])
    made.head = torch.nn.Linear(3, 5)
    made.forward = lambda rows: made.head(made.layers[1](made.layers[0](rows).tanh())).square().sum()
    return made


def gradients(module: Any, parts: list[Any]) -> dict[str, Any]:
    """The gradients of some micro-batches, whole."""
    for number, rows in enumerate(parts, 1):
        with distributed.accumulating(module, number == len(parts)):
            module(rows).backward()
    named = distributed.inner(module).named_parameters()
    return {name: _whole(one.grad).clone() for name, one in named}


def _whole(tensor: Any) -> Any:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def rows(count: int) -> Any:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(count))


def _on_two(rank: int, folder: Path) -> None:
    """Leave what this rank was told, and the gradients of modules that were spread."""
    world = World(rank, 2, rank, torch.device("cpu"))
    found: dict[str, Any] = {
        "broadcast": distributed.broadcast({"of": rank}, world),
        "gather": distributed.gather(rank, world),
        "total": distributed.total([1.0, rank + 0.5], world),
        "any_rank": [distributed.any_rank(flag, world) for flag in (rank == 1, False)],
    }
    parts = [rows(4)[rank::2], rows(6)[rank::2]]
    for shard in (False, True):
        module = distributed.wrap_model(net(), world, shard=shard)
        made = gradients(module, parts)
        found[f"sharded {shard}"] = distributed.is_sharded(module)
        saved = {name: 0.0 + one.detach() for name, one in net().named_parameters()}
        ours = dict(distributed.inner(module).named_parameters())
        distributed.load_weights(ours, {name: 2 * one for name, one in saved.items()})
        doubled = {name: _whole(one.detach()) for name, one in ours.items()}
        if world.main:
            torch.save({"gradients": made, "doubled": doubled}, folder / f"{shard}.pt")
    (folder / f"{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    ranks.spawn(_on_two, 2, folder)
    return folder


@pytest.mark.slow
def test_ranks_know_of_each_other(two: Path) -> None:
    for rank in (json.loads((two / f"{rank}.json").read_text()) for rank in range(2)):
        assert rank["broadcast"] == {"of": 0}
        assert rank["gather"] == [0, 1]
        assert rank["total"] == [2.0, 2.0]
        assert rank["any_rank"] == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True], ids=["copies", "shards"])
def test_gradients_are_the_mean_over_ranks_of_sums_over_micro_batches(shard: bool, two: Path) -> None:
    found = torch.load(two / f"{shard}.pt")
    wanted = gradients(net(), [rows(4), rows(6)])
    for name, one in wanted.items():
        torch.testing.assert_close(found["gradients"][name], one / 2, msg=name)
    told = json.loads((two / "0.json").read_text())
    assert told[f"sharded {shard}"] == shard


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True], ids=["copies", "shards"])
def test_whole_weights_are_loaded_however_the_module_is_spread(shard: bool, two: Path) -> None:
    found = torch.load(two / f"{shard}.pt")["doubled"]
    for name, one in net().named_parameters():
        torch.testing.assert_close(found[name], 2 * one.detach(), msg=name)


def test_one_rank_needs_none_of_it() -> None:
    module = torch.nn.Linear(2, 2)
    assert distributed.wrap_model(module, ALONE, shard=True) is module
    assert distributed.inner(module) is module
    assert distributed.broadcast(3, ALONE) == 3
    assert distributed.gather(3, ALONE) == [3]
    assert distributed.total([3.0], ALONE) == [3.0]
    assert distributed.any_rank(True, ALONE)


@given(st.lists(st.integers(), unique=True), st.integers(1, 5), st.integers(1, 5))
def test_each_row_is_taken_once_and_every_rank_takes_as_many_micro_batches(
    taken: list[int], micro_batch: int, size: int
) -> None:
    parts = [
        distributed.shares(taken, micro_batch, World(rank, size, rank, torch.device("cpu"))) for rank in range(size)
    ]
    assert sorted(row for mine in parts for part in mine for row in part) == sorted(taken)
    assert len({len(mine) for mine in parts}) == 1
    assert all(len(part) <= micro_batch for mine in parts for part in mine)


def test_start_reads_torchruns_environment_and_refuses_a_broken_one() -> None:
    assert distributed.start("cpu", {}) == ALONE
    with pytest.raises(CurateError, match="RANK = 'first' is not a number; start several processes with torchrun"):
        distributed.start("cpu", {"RANK": "first"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_start_refuses_cuda_without_a_gpu() -> None:
    with pytest.raises(CurateError, match="no CUDA GPU; curate doctor shows why"):
        distributed.start("cuda", {})


@pytest.mark.gpu
def test_start_refuses_a_rank_without_a_gpu_of_its_own() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(
        CurateError, match=f"but this machine has {count}; start torchrun with --nproc-per-node {count}"
    ):
        distributed.start("cuda", {"LOCAL_RANK": str(count), "RANK": str(count), "WORLD_SIZE": str(count + 1)})


def test_weights_of_other_names_or_shapes_are_refused() -> None:
    mine = {"a": torch.zeros(2, 3)}
    with pytest.raises(CurateError, match="has other parameters than this run trains, such as 'b'"):
        distributed.load_weights(mine, {"a": torch.zeros(2, 3), "b": torch.zeros(1)})
    with pytest.raises(CurateError, match=r"checkpoint's a has shape \(3, 2\), this run's has \(2, 3\)"):
        distributed.load_weights(mine, {"a": torch.zeros(3, 2)})
