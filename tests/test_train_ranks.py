"""Two ranks take the steps of one: rows shared out, adapters copied, weights sharded, checkpoints at any number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import ranks  # noqa: E402
import tiny_models  # noqa: E402

from benchmarks import training  # noqa: E402
from curate.errors import CurateError  # noqa: E402
from curate.train import checkpoint, config, distributed, packing, setup  # noqa: E402
from curate.train.attention import Attention  # noqa: E402
from curate.train.checkpoint import whole  # noqa: E402
from curate.train.distributed import World  # noqa: E402
from curate.train.setup import Fed, How  # noqa: E402
from curate.train.step import Trainer  # noqa: E402

ALONE = World(0, 1, 0, torch.device("cpu"))
METHODS = ("full", "lora")
SIZES = [20, 31, 14, 40, 7, 22, 35, 18, 29, 11, 38, 16]
STEPS = ([0, 1, 2], [3, 4], [2, 0, 3], [1])  # rows that two ranks cannot always share evenly
UNEVEN: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 49}  # nor these weights
RATE = 1e-2


def trainer(method: Any, world: World) -> Trainer:
    """A model that is the same on every rank, its rows and its optimizer."""
    torch.manual_seed(0)
    examples = training.examples(SIZES, tiny_models.VOCABULARY, 0.6)
    rows = packing.pack(examples.lengths, 64).rows
    settled = config.override(config.TrainConfig(), {"method": {"kind": method, "rank": 4}})
    how = How(settled, "fp32", "master", 1, False, False)
    chosen = Attention("sdpa", "for a test")
    fed = Fed(examples, rows, 64)
    return setup.equip(tiny_models.model(**UNEVEN), how, chosen, fed, world, warn=print).trainer


def train(made: Trainer, begin: int, end: int) -> list[float]:
    return [made.take(number + 1, STEPS[number], RATE).loss for number in range(begin, end)]


def save(made: Trainer, step: int, folder: Path) -> None:
    checkpoint.save(folder, setup.state(made, step, {}), writes=made.world.main)


def restored(method: Any, world: World, folder: Path) -> Trainer:
    made = trainer(method, world)
    loaded = checkpoint.load_latest(folder)
    assert loaded is not None
    assert setup.restore(made, loaded) == 2
    return made


def weights(made: Trainer) -> dict[str, Any]:
    return {name: whole(one.detach()).clone() for name, one in made.parameters.items()}


def _on_two(rank: int, folder: Path) -> None:
    """Train on two ranks from the start, and from a checkpoint of one; leave losses, weights and a checkpoint."""
    world = World(rank, 2, rank, torch.device("cpu"))
    found: dict[str, Any] = {}
    for method in METHODS:
        made = trainer(method, world)
        straight = train(made, 0, 2)
        save(made, 2, folder / f"{method}-of-two")
        straight += train(made, 2, 4)
        after = weights(made)
        if world.main:
            torch.save(after, folder / f"{method}.pt")
        found[method] = {
            "straight": straight,
            "sharded": distributed.is_sharded(made.module),
            "from one": train(restored(method, world, folder / f"{method}-of-one"), 2, 4),
        }
    found["broadcast"] = distributed.broadcast({"of": rank}, world)
    found["gather"] = distributed.gather(rank, world)
    found["total"] = distributed.total([1.0, rank + 0.5], world)
    found["anywhere"] = [distributed.anywhere(flag, world) for flag in (rank == 1, False)]
    (folder / f"{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks left, given the checkpoints of one."""
    folder = tmp_path_factory.mktemp("ranks")
    for method in METHODS:
        made = trainer(method, ALONE)
        train(made, 0, 2)
        save(made, 2, folder / f"{method}-of-one")
    ranks.spawn(_on_two, 2, folder)
    return folder


def told(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_have_the_losses_and_weights_of_one(method: str, two: Path) -> None:
    alone = trainer(method, ALONE)
    wanted = train(alone, 0, 4)
    for rank in told(two):
        assert rank[method]["straight"] == pytest.approx(wanted, rel=1e-5)
        assert rank[method]["sharded"] == (method == "full")
    found = torch.load(two / f"{method}.pt")
    for name, one in weights(alone).items():
        torch.testing.assert_close(found[name], one, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_goes_on_at_another_number_of_ranks(method: str, two: Path) -> None:
    wanted = train(trainer(method, ALONE), 0, 4)[2:]
    assert train(restored(method, ALONE, two / f"{method}-of-two"), 2, 4) == pytest.approx(wanted, rel=1e-5)
    for rank in told(two):
        assert rank[method]["from one"] == pytest.approx(wanted, rel=1e-5)


def test_ranks_know_of_each_other(two: Path) -> None:
    for rank in told(two):
        assert rank["broadcast"] == {"of": 0}
        assert rank["gather"] == [0, 1]
        assert rank["total"] == [2.0, 2.0]
        assert rank["anywhere"] == [True, False]


def test_one_rank_needs_none_of_it() -> None:
    module = torch.nn.Linear(2, 2)
    assert distributed.spread(module, ALONE, shard=True) is module
    assert distributed.inner(module) is module
    assert distributed.broadcast(3, ALONE) == 3
    assert distributed.gather(3, ALONE) == [3]
    assert distributed.total([3.0], ALONE) == [3.0]
    assert distributed.anywhere(True, ALONE)


@given(st.lists(st.integers(), unique=True), st.integers(1, 5), st.integers(1, 5))
def test_each_row_is_taken_once_and_every_rank_takes_as_many_micro_batches(
    rows: list[int], micro_batch: int, size: int
) -> None:
    parts = [
        distributed.shares(rows, micro_batch, World(rank, size, rank, torch.device("cpu"))) for rank in range(size)
    ]
    assert sorted(row for mine in parts for part in mine for row in part) == sorted(rows)
    assert len({len(mine) for mine in parts}) == 1
    assert all(len(part) <= micro_batch for mine in parts for part in mine)


def test_torchruns_environment_is_read_and_a_broken_one_is_told() -> None:
    assert distributed.start("cpu", {}) == ALONE
    with pytest.raises(CurateError, match="RANK = 'first' is no number; start several processes with torchrun"):
        distributed.start("cpu", {"RANK": "first"})


@pytest.mark.gpu
def test_a_rank_without_a_gpu_of_its_own_is_told() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(CurateError, match=f"of which there are {count}; start torchrun with --nproc-per-node {count}"):
        distributed.start("cuda", {"LOCAL_RANK": str(count), "RANK": str(count), "WORLD_SIZE": str(count + 1)})


def test_weights_of_other_names_or_shapes_are_refused() -> None:
    mine = {"a": torch.zeros(2, 3)}
    with pytest.raises(CurateError, match="holds other parameters than this run trains, 'b' for one"):
        distributed.load_weights(mine, {"a": torch.zeros(2, 3), "b": torch.zeros(1)})
    with pytest.raises(CurateError, match=r"checkpoint's a has shape \(3, 2\), this run's \(2, 3\)"):
        distributed.load_weights(mine, {"a": torch.zeros(3, 2)})
