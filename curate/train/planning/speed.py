"""The time of a run, from the operations that it takes and the rate of the hardware."""

from __future__ import annotations

from dataclasses import dataclass

from curate.model.sizes import Shape, flops
from curate.train.planning import memory
from curate.train.planning.inputs import Hardware, Load, Steps
from curate.train.planning.memory import Setup

# Share of the matrix rate that training is assumed to reach, by device and whether every weight is trained. On CUDA:
# published for an 8B model on one Hopper GPU, counted as here, 51 % for a full fine-tune and 40.6 to 42.8 % for LoRA;
# 46.4 % for 7B on eight of them (llm-foundry). On a CPU: measured with `tiny`. No GPU has been measured here.
EFFICIENCY = {("cuda", True): 0.50, ("cuda", False): 0.42, ("cpu", True): 0.30, ("cpu", False): 0.30}
LINK_SHARE = 0.7  # of a link's rate that an exchange among the ranks reaches; an assumption
FP32 = 4  # bytes; gradients are summed over the ranks in fp32


@dataclass(frozen=True)
class Time:
    """The operations of training, strictly counted, and the estimated seconds; None where no rate is known."""

    flops: float
    seconds: float | None


def efficiency(kind: str, *, full: bool) -> float:
    """Return the assumed share of the matrix rate (MFU) of a kind of device."""
    return EFFICIENCY.get((kind, full), 0.3)  # as on a CPU


def estimate_time(
    shape: Shape,
    load: Load,
    steps: Steps,
    setup: Setup,
    hardware: Hardware,
    trained: int,
    grad_accum: int,
    *,
    sides: int,
) -> Time:
    """Return the time of a run with this setup; `trained` is in parameters, `grad_accum` in micro-batches of a step.

    With 2 `sides`, a run begins with one forward pass over all pairs, for the reference of DPO.
    """
    full = setup.full
    epochs = steps.total_rows / load.rows
    training = flops(shape, load.work, full=full, adapters=0 if full else trained) * epochs
    if hardware.rate is None:
        return Time(training, None)
    forward = flops(shape, load.work, full=True) / 3 * epochs  # a third of forward and backward
    recomputation = forward * setup.checkpointed / shape.layers
    evaluations = max(1.0, epochs) + 1  # the base model, then each epoch
    evaluation = evaluations * flops(shape, load.held_out, full=True) / 3
    if sides > 1:
        evaluation += sum(flops(shape, part, full=True) for part in (load.work, load.held_out)) / 3
    rate = hardware.rate * hardware.ranks * efficiency(hardware.kind, full=full)
    exchange = steps.count * _exchange_seconds(shape, setup, hardware, trained, grad_accum)
    update = steps.count * _update_seconds(setup, hardware, trained)
    # FSDP2 and DDP exchange while they compute, so the slower of the two determines the time.
    return Time(training, max((training + recomputation) / rate, exchange) + update + evaluation / rate)


def _exchange_seconds(shape: Shape, setup: Setup, hardware: Hardware, trained: int, grad_accum: int) -> float:
    """Return the seconds in which a rank sends what it must in one step; 0 where no link is known."""
    if hardware.card is None or setup.ranks == 1:
        return 0.0
    return exchanged_bytes(shape, setup, trained, grad_accum) / (hardware.card.link * 1e9 * LINK_SHARE)


def exchanged_bytes(shape: Shape, setup: Setup, trained: int, grad_accum: int) -> float:
    """Return the bytes that one rank sends in a step, around a ring of all ranks.

    FSDP2 gathers the weights forward and backward and reduces fp32 gradients in each micro-batch; DDP reduces the
    adapter's gradients once a step, which is sending them twice.
    """
    share = (setup.ranks - 1) / setup.ranks
    if setup.full:
        return share * shape.parameters * (2 * setup.itemsize + FP32) * grad_accum
    return share * 2 * trained * setup.itemsize


def _update_seconds(setup: Setup, hardware: Hardware, trained: int) -> float:
    """Return the seconds in which the optimizer reads and writes weights, gradients and states of one rank once."""
    if hardware.card is None:
        return 0.0
    own = trained / setup.ranks if setup.full else trained
    per_parameter = 2 * setup.itemsize + memory.state_bytes(setup.form, setup.itemsize)
    return 2 * own * per_parameter / (hardware.card.bandwidth * 1e9)
