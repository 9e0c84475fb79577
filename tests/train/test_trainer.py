"""A step does not depend on its micro-batches, is repeated when memory runs out, and stops at non-finite numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from curate.errors import RunError
from curate.model import loader, sources
from curate.model.attention import selection
from curate.model.sizes import work
from curate.train import checkpoint, config, packing
from curate.train import examples as train_examples
from curate.train.distributed import World
from curate.train.finetune import finetune
from curate.train.objectives.loss import CausalLoss
from curate.train.optim import adamw
from curate.train.packing import PackedData
from curate.train.planning.inputs import Hardware, Load
from curate.train.planning.plan import Planner
from curate.train.run import events, records
from curate.train.trainer import LossScale, Trainer, TrainerInputs
from tests.support.small_runs import EventLog, losses, run, taught_set

ALL: dict[str, Any] = {"global_batch": 12, "max_steps": 4, "lr": 5e-3}  # each step takes every example
DRAWN = ("method.dropout=0.3", "optimizer.neftune=5.0")


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught_set(tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="module")
def reference(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    folder = tmp_path_factory.mktemp("reference") / "run"
    run(taught, folder, **ALL)
    return losses(folder)


# ---- the same step


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_a_step_is_the_same_in_one_two_or_four_micro_batches(
    taught: Path, tmp_path: Path, reference: list[float], micro_batch: int
) -> None:
    result = run(taught, tmp_path / "run", micro_batch=micro_batch, **ALL)
    assert result.plan.steps.rows == 4
    assert result.plan.grad_accum == 4 // micro_batch
    assert losses(tmp_path / "run") == pytest.approx(reference, rel=2e-5)


def test_packed_and_unpacked_runs_are_equal(taught: Path, tmp_path: Path, reference: list[float]) -> None:
    """The losses after an update are equal only if the gradients were."""
    result = run(taught, tmp_path / "run", settings=("data.packing=false", "data.row_tokens=0"), **ALL)
    assert result.plan.steps.rows == 12
    assert losses(tmp_path / "run") == pytest.approx(reference, rel=2e-5)


def test_checkpointed_activations_change_nothing(taught: Path, tmp_path: Path, reference: list[float]) -> None:
    run(taught, tmp_path / "run", settings=("train.checkpointing=full",), **ALL)
    assert losses(tmp_path / "run") == pytest.approx(reference, rel=2e-5)


# ---- memory


@contextmanager
def memory_for(rows: int, *, after: int = 0) -> Iterator[list[int]]:
    """Raise torch's out-of-memory error in any forward pass over more rows; count these passes."""
    passed: list[int] = []
    refused: list[int] = []

    def full(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if isinstance(module, CausalLoss) and module.training:
            passed.append(1)
            if len(passed) > after and arguments[0].input_ids.shape[0] > rows:
                refused.append(arguments[0].input_ids.shape[0])
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    handle = register_module_forward_pre_hook(full)
    try:
        yield refused
    finally:
        handle.remove()


@pytest.mark.slow
def test_when_memory_runs_out_the_step_is_repeated_with_half_the_rows_at_once(taught: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {**ALL, "method": "lora", "rank": 4, "settings": DRAWN}
    run(taught, tmp_path / "two", micro_batch=2, **asked)
    event_log = EventLog()
    with memory_for(2) as refused:
        run(taught, tmp_path / "four", micro_batch=4, on_event=event_log, **asked)
    assert refused == [4]
    [warned] = event_log.of(events.Warned)
    assert "memory ran out in step 1: now 2 rows at once" in warned.text
    assert losses(tmp_path / "four") == losses(tmp_path / "two")
    used = [(row["tokens"], row["supervised"]) for row in records.read(tmp_path / "four").metrics]
    assert used == [(row["tokens"], row["supervised"]) for row in records.read(tmp_path / "two").metrics]


def test_at_one_row_activations_are_checkpointed_and_then_the_run_ends(taught: Path, tmp_path: Path) -> None:
    event_log = EventLog()
    with pytest.raises(RunError, match=r"step 1: memory ran out at one row.*--max-tokens"), memory_for(0):
        run(taught, tmp_path / "run", micro_batch=1, on_event=event_log, **ALL)
    assert "activations are recomputed" in event_log.of(events.Warned)[0].text
    assert "memory ran out" in records.read(tmp_path / "run").facts["status"]


@pytest.mark.slow
def test_running_out_of_memory_in_the_update_returns_to_the_last_checkpoint(
    taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {**ALL, "settings": ("checkpoint.steps=2",)}
    run(taught, tmp_path / "two", micro_batch=2, **asked)
    change = adamw.AdamW.step
    calls: list[int] = []

    def fail_once(optimizer: adamw.AdamW) -> None:
        calls.append(1)
        change(optimizer)
        if len(calls) == 4:  # in the middle of the fourth update
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(adamw.AdamW, "step", fail_once)
    event_log = EventLog()
    run(taught, tmp_path / "four", micro_batch=4, on_event=event_log, **asked)
    assert "memory ran out in step 4: back to step 2, now 2 rows at once" in event_log.of(events.Warned)[0].text
    assert losses(tmp_path / "four") == pytest.approx(losses(tmp_path / "two"), rel=2e-5)
    assert [row["step"] for row in records.read_lines(tmp_path / "four" / records.METRICS)] == [1, 2, 3, 4]


# ---- numbers


@contextmanager
def loss_becomes(value: float, call: int) -> Iterator[None]:
    """Replace the loss of one forward pass in training by this number."""
    calls: list[int] = []

    def change(module: nn.Module, arguments: Any, output: Any) -> Any:
        if isinstance(module, CausalLoss) and module.training:
            calls.append(1)
            return output * value if len(calls) == call else None
        return None

    handle = register_module_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()


def test_a_non_finite_loss_stops_the_run_before_the_update(
    taught: Path, tmp_path: Path, reference: list[float]
) -> None:
    asked: dict[str, Any] = {**ALL, "settings": ("checkpoint.steps=1",), "micro_batch": 4}
    with pytest.raises(RunError, match=r"^step 3: the loss is nan; .*--lr"), loss_becomes(float("nan"), 3):
        run(taught, tmp_path / "run", **asked)
    assert losses(tmp_path / "run") == pytest.approx(reference[:2], rel=2e-5)
    assert "the loss is nan" in records.read(tmp_path / "run").facts["status"]
    assert checkpoint.checkpoints(tmp_path / "run")[0].name == "step-000002"
    finetune(resume=tmp_path / "run", device="cpu")  # without the bad gradient the run continues
    assert losses(tmp_path / "run") == pytest.approx(reference, rel=2e-5)


def test_non_finite_gradients_stop_the_run(taught: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^step 1: the norm of the gradients is (nan|inf)"):
        run(taught, tmp_path / "run", settings=("optimizer.clip=0.0",), **{**ALL, "on_event": _spoil})


def _spoil(event: Any) -> None:
    """Make the first gradient infinite, as after an overflow."""
    if isinstance(event, events.Started):
        handle: list[Any] = []

        def change(module: nn.Module, arguments: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.requires_grad and module.training:
                output.register_hook(lambda gradient: gradient * float("inf"))
                handle.pop().remove()

        handle.append(register_module_forward_hook(change))


# ---- loss scaling for fp16


def trainer(taught: Path, scale: LossScale) -> Trainer:
    """Return a trainer of every weight on one rank, with two packed rows at once."""
    from curate.rendering.factory import load_set_tokenizer

    folder, manifest = train_examples.open_set_folder(taught)
    tokenizer = load_set_tokenizer(manifest)
    examples = train_examples.load(folder, tokenizer).train
    source = sources.find_model("tiny", tokenizer=tokenizer)
    model = loader.load_model(source, dtype=torch.float32, device="cpu")
    packed = PackedData(examples, packing.pack(examples.lengths, 192).rows, 192)
    settings = config.override(config.load("tiny"), {"method": {"kind": "full"}, "train": {"micro_batch": 2}})
    kernel = selection.choose_kernel("cpu", torch.float32)
    data_load = Load(len(examples), len(packed.rows), 192, work([], 0), work([], 0))
    hardware = Hardware("cpu", "a CPU", 1 << 40, "fp32", 1e9, 1, 1 << 40)
    plan = Planner(settings, loader.shape_from_config(source.config), data_load, hardware, kernel.name).plan()
    built = Trainer(model, TrainerInputs(settings, plan, kernel, packed, World(0, 1, 0, torch.device("cpu"))))
    built.loss_scale = scale
    return built


def weights(source: Trainer) -> Tensor:
    flat: Tensor = torch.cat([parameter.detach().flatten() for parameter in source.parameters.values()])
    return flat


def test_a_scaled_loss_gives_the_same_step(taught: Path) -> None:
    plain, scaled = trainer(taught, LossScale(False)), trainer(taught, LossScale(True, 65536.0))
    for step in range(1, 4):
        plain_step, scaled_step = plain.step(step, range(4), 1e-3), scaled.step(step, range(4), 1e-3)
        assert scaled_step.loss == pytest.approx(plain_step.loss, rel=1e-6)
        assert scaled_step.norm == pytest.approx(plain_step.norm, rel=1e-5)
    assert torch.allclose(weights(plain), weights(scaled), atol=1e-5)


def test_an_overflow_changes_no_weight_and_halves_the_scale(taught: Path) -> None:
    fp16_trainer = trainer(taught, LossScale(True, 2.0**136))  # past fp32's 2**128 for any gradient element above 2**-8
    before = weights(fp16_trainer)
    outcome = fp16_trainer.step(1, range(4), 1e-3)
    assert outcome.skipped
    assert torch.equal(weights(fp16_trainer), before)
    assert fp16_trainer.loss_scale.value == 2.0**135
    number = 1
    while outcome.skipped:
        number += 1
        outcome = fp16_trainer.step(number, range(4), 1e-3)
    assert not torch.equal(weights(fp16_trainer), before)
    assert outcome.loss == outcome.loss


def test_the_scale_grows_after_many_good_steps() -> None:
    scale = LossScale(True, 4.0)
    for _ in range(2000):
        scale.update(True)
    assert scale.value == 8.0
    still = LossScale(False)
    still.update(False)
    assert still.value == 1.0


@pytest.mark.gpu
def test_fp16_trains_on_a_gpu_without_bf16(taught: Path, tmp_path: Path) -> None:
    run(taught, tmp_path / "run", device="cuda", dtype="fp16", lr=3e-3, global_batch=12, max_steps=30)
    step_losses = losses(tmp_path / "run")
    assert step_losses[-1] < step_losses[0] - 1
