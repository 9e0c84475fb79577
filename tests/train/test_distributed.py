"""Communication between ranks, sharing of rows, and wrapping of modules, one function at a time.

`test_run_ranks.py` tests whole runs on two ranks, `test_optimizers.py` sharded optimizer states.
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
    """Return a module with two layers in a list, as models have them, and a head with an odd number of rows."""
    torch.manual_seed(0)
    module = torch.nn.Module()
    module.layers = torch.nn.ModuleList([torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)])
    module.head = torch.nn.Linear(3, 5)
    module.forward = lambda rows: module.head(module.layers[1](module.layers[0](rows).tanh())).square().sum()
    return module


def gradients(module: Any, parts: list[Any]) -> dict[str, Any]:
    """Return the full gradients of these micro-batches."""
    for number, rows in enumerate(parts, 1):
        with distributed.accumulate(module, number == len(parts)):
            module(rows).backward()
    named = distributed.inner(module).named_parameters()
    return {name: _full_tensor(parameter.grad).clone() for name, parameter in named}


def _full_tensor(tensor: Any) -> Any:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def rows(count: int) -> Any:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(count))


def _on_two(rank: int, folder: Path) -> None:
    """Write what this rank received, and the gradients of wrapped modules."""
    world = World(rank, 2, rank, torch.device("cpu"))
    results: dict[str, Any] = {
        "broadcast": distributed.broadcast({"of": rank}, world),
        "gather": distributed.gather(rank, world),
        "total": distributed.total([1.0, rank + 0.5], world),
        "any_rank": [distributed.any_rank(flag, world) for flag in (rank == 1, False)],
    }
    parts = [rows(4)[rank::2], rows(6)[rank::2]]
    for shard in (False, True):
        module = distributed.wrap_model(net(), world, shard=shard)
        wrapped_gradients = gradients(module, parts)
        results[f"sharded {shard}"] = distributed.is_sharded(module)
        saved = {name: 0.0 + parameter.detach() for name, parameter in net().named_parameters()}
        ours = dict(distributed.inner(module).named_parameters())
        distributed.load_weights(ours, {name: 2 * parameter for name, parameter in saved.items()})
        doubled = {name: _full_tensor(parameter.detach()) for name, parameter in ours.items()}
        if world.main:
            torch.save({"gradients": wrapped_gradients, "doubled": doubled}, folder / f"{shard}.pt")
    (folder / f"{rank}.json").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    ranks.spawn(_on_two, 2, folder)
    return folder


@pytest.mark.slow
def test_ranks_exchange_values(two: Path) -> None:
    for rank in (json.loads((two / f"{rank}.json").read_text()) for rank in range(2)):
        assert rank["broadcast"] == {"of": 0}
        assert rank["gather"] == [0, 1]
        assert rank["total"] == [2.0, 2.0]
        assert rank["any_rank"] == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True], ids=["copies", "shards"])
def test_gradients_are_the_mean_over_ranks_of_sums_over_micro_batches(shard: bool, two: Path) -> None:
    saved = torch.load(two / f"{shard}.pt")
    wanted = gradients(net(), [rows(4), rows(6)])
    for name, gradient in wanted.items():
        torch.testing.assert_close(saved["gradients"][name], gradient / 2, msg=name)
    results = json.loads((two / "0.json").read_text())
    assert results[f"sharded {shard}"] == shard


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True], ids=["copies", "shards"])
def test_full_weights_load_into_ddp_and_fsdp2_modules(shard: bool, two: Path) -> None:
    doubled = torch.load(two / f"{shard}.pt")["doubled"]
    for name, parameter in net().named_parameters():
        torch.testing.assert_close(doubled[name], 2 * parameter.detach(), msg=name)


def test_a_single_rank_needs_no_process_group() -> None:
    module = torch.nn.Linear(2, 2)
    assert distributed.wrap_model(module, ALONE, shard=True) is module
    assert distributed.inner(module) is module
    assert distributed.broadcast(3, ALONE) == 3
    assert distributed.gather(3, ALONE) == [3]
    assert distributed.total([3.0], ALONE) == [3.0]
    assert distributed.any_rank(True, ALONE)


@given(st.lists(st.integers(), unique=True), st.integers(1, 5), st.integers(1, 5))
def test_each_row_is_used_once_and_all_ranks_have_equally_many_micro_batches(
    row_indices: list[int], micro_batch: int, size: int
) -> None:
    parts = [
        distributed.shares(row_indices, micro_batch, World(rank, size, rank, torch.device("cpu")))
        for rank in range(size)
    ]
    assert sorted(row for mine in parts for part in mine for row in part) == sorted(row_indices)
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
    with pytest.raises(CurateError, match="has different parameters from this run, such as 'b'"):
        distributed.load_weights(mine, {"a": torch.zeros(2, 3), "b": torch.zeros(1)})
    with pytest.raises(CurateError, match=r"checkpoint's a has shape \(3, 2\), this run's has \(2, 3\)"):
        distributed.load_weights(mine, {"a": torch.zeros(3, 2)})
