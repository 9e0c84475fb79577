"""The device memory of one training step, part by part, estimated from the model's shape alone.

The estimate counts what autograd keeps of transformers' LLaMA layers, operation by operation; tests compare it with the
bytes that are allocated in real steps. A compiled layer keeps less: norms, rotary embeddings and products are
recomputed in the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from curate.model.choices import ALL_LINEAR, MethodSettings, OptimizerForm
from curate.model.device import DTYPES
from curate.model.sizes import Linear, Shape
from curate.train.objectives.loss import workspace_bytes

CONTEXT = {"cuda": 600 << 20, "cpu": 700 << 20}  # bytes of torch, its kernels and Python, before any tensor
FRAGMENTATION = 0.05  # share of the tensors' bytes that an allocator reserves in addition
# 4 bits, plus the 8-bit scale of each block of 64 weights, plus an fp32 scale for each 256 of those scales
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
_IA3_LAYERS = ("k_proj", "v_proj", "down_proj")  # the paper's choice (arXiv 2205.05638): keys, values, inside the MLP


@dataclass(frozen=True)
class Setup:
    """The choices that determine the memory of a step."""

    method: MethodSettings
    dtype: str  # bf16, fp16 or fp32
    form: OptimizerForm
    checkpointed: int  # layers, counted from the first, that keep only their inputs for the backward pass
    compiled: bool
    attention: str
    micro_batch: int  # packed rows in one forward pass on one device
    row_tokens: int  # tokens of a packed row
    supervised: int  # supervised tokens of a micro-batch, at most
    accumulates: bool  # gradients of several micro-batches are summed, so they are in memory with the activations
    ranks: int = 1

    @property
    def full(self) -> bool:
        """Whether every weight is trained."""
        return self.method.full

    @property
    def itemsize(self) -> int:
        """Bytes of one weight or activation."""
        return DTYPES[self.dtype].itemsize

    @property
    def tokens(self) -> int:
        """Positions of a micro-batch, padding included."""
        return self.micro_batch * self.row_tokens


# ---- what is trained


def target_linears(method: MethodSettings, shape: Shape) -> tuple[Linear, ...]:
    """Return the matrices that get an adapter; none if every weight is trained."""
    if method.full:
        return ()
    if method.kind == "ia3" and method.targets == (ALL_LINEAR,):
        return tuple(linear for linear in shape.linears if linear.name in _IA3_LAYERS)
    if ALL_LINEAR in method.targets:
        return shape.linears
    return tuple(linear for linear in shape.linears if linear.name in method.targets)


def trained_parameters(method: MethodSettings, shape: Shape) -> int:
    """Return the number of trained parameters; any other method of peft counts as LoRA."""
    if method.full:
        return shape.parameters
    linears = target_linears(method, shape)
    if method.kind == "ia3":  # one vector for each matrix: over the inputs in the MLP, over the outputs elsewhere
        return sum(_ia3_width(linear) * linear.count for linear in linears)
    low_rank = sum((linear.inputs + linear.outputs) * method.rank * linear.count for linear in linears)
    magnitudes = sum(linear.outputs * linear.count for linear in linears) if method.kind == "dora" else 0
    return low_rank + magnitudes


def _ia3_width(linear: Linear) -> int:
    return linear.inputs if linear.name == "down_proj" else linear.outputs


def state_bytes(form: OptimizerForm, itemsize: int) -> float:
    """Return the optimizer's bytes for one trained parameter: two moments, and the fp32 copy of a 16-bit weight."""
    moments = {
        "master": 8.0,  # fp32
        "8bit": 2.0 + 8 / 256,  # a byte each, and an fp32 scale each for every 256
        "stochastic": 4.0 if itemsize == 2 else 8.0,  # in the dtype of the weights
    }
    master_copy = 4 if itemsize == 2 and form != "stochastic" else 0
    return moments[form] + master_copy


# ---- the peak


def parts(setup: Setup, shape: Shape, trained: int | None = None) -> dict[str, int]:
    """Return the bytes that one rank allocates at the step's peak, by part, without empty parts.

    `trained` is the number of trained parameters, estimated if None.
    """
    trained = trained_parameters(setup.method, shape) if trained is None else trained
    shards = setup.ranks if setup.full else 1  # FSDP2 shards full fine-tuning; DDP keeps whole adapters on each rank
    weights, adapters = _weights(setup, shape, trained)
    candidates = _peaks(setup, shape, trained * setup.itemsize / shards)
    sizes = {
        "weights": weights / shards,
        "adapters": adapters,
        "gathered layers": _count_gathered(setup, shape),
        "optimizer states": trained * state_bytes(setup.form, setup.itemsize) / shards,
        "attention masks": _masks(setup),
        **max(candidates, key=lambda peak: sum(peak.values())),
    }
    return {name: int(size) for name, size in sizes.items() if size}


def _peaks(setup: Setup, shape: Shape, gradients: float) -> list[dict[str, float]]:
    """Return the bytes at each moment that may be the peak: at the loss, and in the backward pass of a layer.

    Without gradient accumulation, gradients are allocated as activations are freed; with it, those of earlier
    micro-batches exist from the start. The first layers are checkpointed, so the backward pass reaches them after the
    others have freed their activations.
    """
    kept, inputs = _activations(setup, shape), _inputs(setup, shape)

    def backward(activations: float, *, recomputed: bool) -> dict[str, float]:
        remaining = activations if setup.accumulates else max(0.0, activations - gradients)
        layer = _layer_backward(setup, shape, recomputed=recomputed)
        return {"gradients": gradients, "activations": remaining, "backward of a layer": layer}

    before = gradients if setup.accumulates else 0.0
    loss = workspace_bytes(
        setup.supervised, shape.vocabulary, shape.hidden, trained=setup.full, itemsize=setup.itemsize
    )
    peaks = [{"gradients": before, "activations": kept, "loss": float(loss)}]
    peaks += [backward(kept, recomputed=False)] if setup.checkpointed < shape.layers else []
    peaks += [backward(inputs, recomputed=True)] if setup.checkpointed else []
    return peaks


def _weights(setup: Setup, shape: Shape, trained: int) -> tuple[float, float]:
    """Return the bytes of the base model and of its adapters."""
    if setup.full:
        return shape.parameters * setup.itemsize, 0.0
    quantised = shape.matrices if setup.method.quantised else 0
    return quantised * NF4_BYTES + (shape.parameters - quantised) * setup.itemsize, trained * setup.itemsize


def _count_gathered(setup: Setup, shape: Shape) -> float:
    """Return the bytes that FSDP2 has gathered at once: two layers (one is prefetched), embeddings and head."""
    if not setup.full or setup.ranks == 1:
        return 0.0
    layer = shape.matrices / shape.layers
    return (2 * layer + shape.embeddings + shape.head) * setup.itemsize * 2


# ---- activations: bytes of a micro-batch, or of one token where a function says so


def _activations(setup: Setup, shape: Shape) -> float:
    """Return what the forward pass keeps: all activations of a layer, or only the inputs of a checkpointed one."""
    layer = setup.tokens * layer_bytes(setup, shape) + _layer_mask(setup)
    return (shape.layers - setup.checkpointed) * layer + _inputs(setup, shape)


def _inputs(setup: Setup, shape: Shape) -> float:
    """Return the inputs of checkpointed layers, and what the last norm keeps."""
    per_token = setup.checkpointed * shape.hidden * setup.itemsize + _norm_bytes(setup, shape)
    return setup.tokens * per_token


def layer_bytes(setup: Setup, shape: Shape) -> float:
    """Return what one layer keeps of one token."""
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    itemsize, inner = setup.itemsize, shape.intermediate
    key_width = queries if setup.attention == "sdpa" else keys  # SDPA with a mask needs keys and values repeated
    query_key_value = queries + 2 * key_width
    attention = (query_key_value + queries) * itemsize + 4 * shape.heads  # with the output, and fp32 sums of each head
    if setup.compiled:
        mlp, norms = 2 * inner * itemsize, 2.0 * shape.hidden * itemsize
    else:
        mlp = (4 if _keeps_input(setup, shape, "down_proj") else 3) * inner * itemsize
        norms = 2 * _norm_bytes(setup, shape)
    return attention + mlp + norms + _adapter_bytes(setup, shape)


def _norm_bytes(setup: Setup, shape: Shape) -> float:
    """Return what an RMSNorm keeps of one token: its input in fp32, the normed one before and after the weight."""
    before = setup.itemsize if setup.full else 0
    after = setup.itemsize if _keeps_input(setup, shape, "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj") else 0
    return shape.hidden * (4 + before + after)


def _adapter_bytes(setup: Setup, shape: Shape) -> float:
    """Return what a layer's adapters keep of one token, in addition to the base model's activations."""
    if setup.full:
        return 0.0
    method, itemsize = setup.method, setup.itemsize
    total = 0.0
    for linear in target_linears(method, shape):
        per_layer = linear.count / shape.layers
        if method.kind == "ia3":
            total += per_layer * itemsize * _ia3_width(linear)
            continue
        total += per_layer * itemsize * method.rank
        total += per_layer * (itemsize + 1) * linear.inputs if method.dropout else 0  # the input, and a mask of bytes
        total += per_layer * itemsize * 2 * linear.outputs if method.kind == "dora" else 0
    return total


def _keeps_input(setup: Setup, shape: Shape, *names: str) -> bool:
    """Return whether autograd keeps the input of any of these matrices, as it does where they or a LoRA are trained."""
    if setup.full or setup.method.kind == "ia3":
        return setup.full
    return any(linear.name in names for linear in target_linears(setup.method, shape))


def _layer_mask(setup: Setup) -> float:
    """Return what SDPA keeps of the mask in each layer: it converts the booleans to the activations' type."""
    return setup.micro_batch * setup.row_tokens**2 * setup.itemsize if setup.attention == "sdpa" else 0.0


def _masks(setup: Setup) -> float:
    """Return the mask that all layers share: [micro_batch, row_tokens, row_tokens] booleans for SDPA."""
    return float(setup.micro_batch * setup.row_tokens**2) if setup.attention == "sdpa" else 0.0


def _layer_backward(setup: Setup, shape: Shape, *, recomputed: bool) -> float:
    """Return what the backward pass of one layer allocates: gradients in its MLP, and activations if recomputed."""
    gradients = setup.tokens * setup.itemsize * (2 * shape.intermediate + shape.hidden)
    activations = setup.tokens * layer_bytes(setup, shape) + _layer_mask(setup) if recomputed else 0.0
    largest = max((linear.inputs * linear.outputs for linear in shape.linears), default=0)
    dequantised = largest * setup.itemsize if setup.method.quantised else 0  # one matrix at a time
    return gradients + activations + dequantised
