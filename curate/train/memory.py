"""What a training step holds in the device's memory, part by part, reckoned from the model's shape alone.

The figures follow what autograd keeps of transformers' LLaMA layers, operation by operation; tests hold them against
the bytes that are really alive in a step. A layer that is compiled keeps less: its norms, rotations and products are
made again in the backward pass rather than kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from curate.model.methods import MethodSettings
from curate.model.sizes import Linear, Shape

Form = Literal["master", "8bit", "stochastic"]
FORMS: tuple[Form, ...] = ("master", "8bit", "stochastic")  # from the most exact to the smallest
CONTEXT = {"cuda": 600 << 20, "cpu": 700 << 20}  # torch, its kernels and Python, before any tensor
FRAGMENTED = 0.05  # of the tensors: what an allocator holds beyond them
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a weight in 4 bits, its block's 8-bit scale, and those blocks' own scales
DTYPE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True)
class Setup:
    """How a step is to be computed: `micro_batch` rows of `row_tokens`, `supervised` tokens among them at most.

    `accumulates`: whether gradients of several micro-batches are summed, and so live beside the activations.
    """

    method: MethodSettings
    dtype: str
    form: Form
    checkpointed: int  # layers, the first ones, that keep their inputs alone
    compiled: bool
    attention: str
    micro_batch: int
    row_tokens: int
    supervised: int
    accumulates: bool
    ranks: int = 1

    @property
    def full(self) -> bool:
        """Whether every weight is trained."""
        return self.method.kind == "full"

    @property
    def item(self) -> int:
        """Bytes of a weight as it is computed with."""
        return DTYPE_BYTES[self.dtype]

    @property
    def tokens(self) -> int:
        """Positions of a micro-batch."""
        return self.micro_batch * self.row_tokens


def targets(method: MethodSettings, shape: Shape) -> tuple[Linear, ...]:
    """Return the layers' matrices that get an adapter."""
    if method.kind == "full":
        return ()
    if method.kind == "ia3" and method.targets == ("all-linear",):  # the paper's: keys, values, and the MLP's inside
        return tuple(linear for linear in shape.linears if linear.name in ("k_proj", "v_proj", "down_proj"))
    if "all-linear" in method.targets:
        return shape.linears
    return tuple(linear for linear in shape.linears if linear.name in method.targets)


def trainable(method: MethodSettings, shape: Shape) -> int:
    """Return how many parameters are trained; for a method of peft's that is not known here, as many as LoRA has."""
    if method.kind == "full":
        return shape.parameters
    chosen = targets(method, shape)
    if method.kind == "ia3":
        sides = ((linear.inputs if linear.name == "down_proj" else linear.outputs, linear.count) for linear in chosen)
        return sum(size * count for size, count in sides)
    rank = method.rank
    low = sum((linear.inputs + linear.outputs) * rank * linear.count for linear in chosen)
    return low + (sum(linear.outputs * linear.count for linear in chosen) if method.kind == "dora" else 0)


def state_bytes(form: Form, item: int) -> float:
    """Return the optimizer's bytes for one trained parameter: two moments, and the fp32 copy of a 16-bit weight."""
    copy = 4 if item == 2 and form != "stochastic" else 0
    return {"master": 8.0, "8bit": 2.0 + 8 / 256, "stochastic": 4.0 if item == 2 else 8.0}[form] + copy


def parts(setup: Setup, shape: Shape, trained: int | None = None) -> dict[str, int]:
    """Return the bytes that one rank holds at the step's peak, by part; a part of no bytes is left out."""
    trained = trainable(setup.method, shape) if trained is None else trained
    shards = setup.ranks if setup.full else 1  # every weight: FSDP2 shards; adapters: each rank has the whole
    weights, adapters = _weights(setup, shape, trained)
    found = {
        "weights": weights / shards,
        "adapters": adapters,
        "gathered layers": _gathered(setup, shape),
        "optimizer states": trained * state_bytes(setup.form, setup.item) / shards,
        "attention masks": _masks(setup),
        **max(_moments(setup, shape, trained * setup.item / shards), key=lambda moment: sum(moment.values())),
    }
    return {name: int(size) for name, size in found.items() if size}


def _moments(setup: Setup, shape: Shape, gradients: float) -> list[dict[str, float]]:
    """Return what lives in the moments that may be the highest: at the loss, and in the backward pass of a layer.

    Where one micro-batch is all of a step, gradients come as activations go; else those of the earlier ones are there.
    Layers that are checkpointed have their turn when those that are not have given back what they kept.
    """
    kept, inputs = _activations(setup, shape), _inputs(setup, shape)

    def backward(activations: float, *, again: bool) -> dict[str, float]:
        left = activations if setup.accumulates else max(0.0, activations - gradients)
        layer = _layer(setup, shape, again=again)
        return {"gradients": gradients, "activations": left, "backward of a layer": layer}

    before = gradients if setup.accumulates else 0.0
    found = [{"gradients": before, "activations": kept, "loss": _loss(setup, shape)}]
    found += [backward(kept, again=False)] if setup.checkpointed < shape.layers else []
    found += [backward(inputs, again=True)] if setup.checkpointed else []
    return found


def _weights(setup: Setup, shape: Shape, trained: int) -> tuple[float, float]:
    """Return the bytes of the base model and of what is added to it."""
    if setup.full:
        return shape.parameters * setup.item, 0.0
    quantised = shape.matrices if setup.method.kind == "qlora" else 0
    return quantised * NF4_BYTES + (shape.parameters - quantised) * setup.item, trained * setup.item


def _gathered(setup: Setup, shape: Shape) -> float:
    """Return what FSDP2 has put together at once: two layers, and embedding and head."""
    if not setup.full or setup.ranks == 1:
        return 0.0
    layer = shape.matrices / shape.layers
    return (2 * layer + shape.embeddings + shape.head) * setup.item * 2


# ---- activations, in bytes for one token


def _activations(setup: Setup, shape: Shape) -> float:
    """Return what forward keeps for backward: all that layers keep, or the inputs alone of those checkpointed."""
    kept = setup.tokens * layer_bytes(setup, shape) + _layer_mask(setup)
    return (shape.layers - setup.checkpointed) * kept + _inputs(setup, shape)


def _inputs(setup: Setup, shape: Shape) -> float:
    """Return what is there while a checkpointed layer is made again: inputs, and what the last norm keeps."""
    each = setup.checkpointed * shape.hidden * setup.item + _norm_bytes(setup, shape)
    return setup.tokens * each


def layer_bytes(setup: Setup, shape: Shape) -> float:
    """Return what one layer keeps of one token."""
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    item, inner = setup.item, shape.intermediate
    seen = queries + 2 * (queries if setup.attention == "sdpa" else keys)  # SDPA with a mask wants keys repeated
    attention = (seen + queries) * item + 4 * shape.heads  # and fp32 sums of each head
    if setup.compiled:
        mlp, norms = 2 * inner * item, 2.0 * shape.hidden * item
    else:
        mlp = (4 if _keeps_input(setup, shape, "down_proj") else 3) * inner * item
        norms = 2 * _norm_bytes(setup, shape)
    return attention + mlp + norms + _adapter_bytes(setup, shape)


def _norm_bytes(setup: Setup, shape: Shape) -> float:
    """Return what an RMSNorm keeps: its input in fp32, the normed one before and after the weight."""
    before = setup.item if setup.full else 0
    after = setup.item if _keeps_input(setup, shape, "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj") else 0
    return shape.hidden * (4 + before + after)


def _adapter_bytes(setup: Setup, shape: Shape) -> float:
    """Return what a layer's adapters keep beside the base's activations."""
    if setup.full:
        return 0.0
    method, chosen = setup.method, targets(setup.method, shape)
    kept = 0.0  # of a token
    for linear in chosen:
        each = linear.count / shape.layers
        if method.kind == "ia3":
            kept += each * setup.item * (linear.inputs if linear.name == "down_proj" else linear.outputs)
            continue
        kept += each * setup.item * method.rank
        kept += each * (setup.item + 1) * linear.inputs if method.dropout else 0
        kept += each * setup.item * 2 * linear.outputs if method.kind == "dora" else 0
    return kept


def _keeps_input(setup: Setup, shape: Shape, *names: str) -> bool:
    """Return whether the input of any of these matrices is kept: where it, or an adapter's matrix beside it, learns."""
    if setup.full or setup.method.kind == "ia3":
        return setup.full
    return any(linear.name in names for linear in targets(setup.method, shape))


def _layer_mask(setup: Setup) -> float:
    """Return what SDPA keeps of the mask in each layer: it makes numbers of the booleans."""
    return setup.micro_batch * setup.row_tokens**2 * setup.item if setup.attention == "sdpa" else 0.0


def _masks(setup: Setup) -> float:
    return float(setup.micro_batch * setup.row_tokens**2) if setup.attention == "sdpa" else 0.0


# ---- what lives for a moment


def _layer(setup: Setup, shape: Shape, *, again: bool) -> float:
    """Return what the backward pass of one layer makes: the gradients in its MLP, and what was not kept of it."""
    gradients = setup.tokens * setup.item * (2 * shape.intermediate + shape.hidden)
    made = setup.tokens * layer_bytes(setup, shape) + _layer_mask(setup) if again else 0.0
    whole = max((linear.inputs * linear.outputs for linear in shape.linears), default=0)  # a matrix out of 4 bits
    return gradients + made + (whole * setup.item if setup.method.kind == "qlora" else 0)


def _loss(setup: Setup, shape: Shape) -> float:
    from curate.train.loss import workspace_bytes

    return workspace_bytes(setup.supervised, shape.vocabulary, shape.hidden, trained=setup.full, item=setup.item)
