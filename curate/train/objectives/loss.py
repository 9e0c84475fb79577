"""Cross-entropy of the supervised tokens, with head and softmax computed for one chunk of tokens at a time.

All objectives use it: supervised fine-tuning sums the tokens' losses, DPO weighs them by pair.

A causal model's own forward computes logits at every position: 4 GiB in fp32 for 8,192 tokens of LLaMA-3's vocabulary,
three times that with softmax and gradient, most of it at positions that are not trained on. Here only the hidden states
of supervised positions are gathered. Head, softmax and both gradients are computed chunk by chunk in the forward pass,
so that only one chunk of logits exists at a time. The head's gradient is summed in fp32 over the chunks (compare
Liger-Kernel's fused linear cross-entropy, and its issue 512). A frozen head, as with adapters, needs no gradient.

The result is the sum of the token losses. A step's loss is that sum over all micro-batches and ranks, divided once by
their supervised tokens or their pairs (`step_factor`). A mean of the micro-batches' means would weigh tokens of short
ones more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from curate.display.figures import percent
from curate.errors import RecipeError
from curate.model.attention import selection as attention_module
from curate.model.attention.selection import ChosenKernel

_LOGITS_FROZEN = 1 << 25  # logits of a chunk with a frozen head: 128 MiB in fp32
_LOGITS_TRAINED = 1 << 28  # with a trained one: 1 GiB, because each chunk reads and writes the head's fp32 gradient
_HALF_SCALE = 1024.0  # on fp16 gradients: below 6e-8 fp16 is 0, and most softmax values over 128k tokens are smaller


class PackedBatch(Protocol):
    """The part of a micro-batch that the loss reads; tensors are [rows, tokens]."""

    @property
    def input_ids(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor: ...  # the id at the next position; negative where it carries no loss
    @property
    def position_ids(self) -> Tensor: ...
    @property
    def documents(self) -> Tensor: ...  # number of the document at each position
    @property
    def supervised(self) -> int: ...  # targets that carry loss


def chunk_tokens(vocabulary: int, trained: bool) -> int:
    """Return the number of tokens in a chunk: at least 64, because smaller matrix products are slow."""
    return max(64, (_LOGITS_TRAINED if trained else _LOGITS_FROZEN) // vocabulary)


def workspace_bytes(tokens: int, vocabulary: int, hidden: int, *, trained: bool, itemsize: int, chunk: int = 0) -> int:
    """Return the bytes that the loss of `tokens` supervised tokens allocates at its peak, for the plan.

    These are a chunk of fp32 logits with their gradient, in the weights' dtype too; the gathered hidden states with
    their gradient; and the fp32 gradient of a trained head, of which the backward pass makes one in the weights' dtype.
    """
    rows = min(tokens, chunk or chunk_tokens(vocabulary, trained))
    logits = rows * vocabulary * (8 + (itemsize if itemsize < 4 else 0))  # an fp32 gradient needs no cast
    head = vocabulary * hidden if trained else 0
    return max(logits + 4 * head, (4 + itemsize) * head) + 2 * tokens * hidden * itemsize


# ---- one chunk: logits [tokens, vocabulary] in fp32, targets [tokens]


LossAndGradient = tuple[Tensor, Tensor]  # the summed loss [], and its gradient by the logits [tokens, vocabulary]


def loss_and_gradient(
    logits: Tensor,
    targets: Tensor,
    dtype: torch.dtype,
    scale: float,
    cap: float | None,
    weights: Tensor | None = None,
) -> LossAndGradient:
    """Return the summed loss and its gradient, in `dtype`, by the logits before scale and cap.

    `weights` [tokens] are factors on the token losses. Without in-place operations, so that the compiler fuses it into
    two passes over the logits.
    """
    transformed = _transform(logits, scale, cap)
    normaliser = transformed.logsumexp(dim=-1, keepdim=True)  # [tokens, 1]
    ids = torch.arange(transformed.shape[1], device=transformed.device)
    gradient = (transformed - normaliser).exp() - (ids == targets[:, None]).to(transformed.dtype)
    losses = normaliser - transformed.gather(1, targets[:, None])
    if weights is not None:
        losses, gradient = losses * weights[:, None], gradient * weights[:, None]
    return losses.sum(), _gradient_before_transform(gradient, transformed, dtype, scale, cap)


def loss_and_gradient_in_place(
    logits: Tensor,
    targets: Tensor,
    dtype: torch.dtype,
    scale: float,
    cap: float | None,
    weights: Tensor | None = None,
) -> LossAndGradient:
    """Compute the same as `loss_and_gradient` with torch's own kernels, which are fastest on a CPU."""
    transformed = _transform(logits, scale, cap)
    gradient = transformed.log_softmax(dim=-1)
    losses = -gradient.gather(1, targets[:, None])
    gradient.exp_().scatter_add_(1, targets[:, None], -torch.ones_like(gradient[:, :1]))  # softmax - one-hot
    if weights is not None:
        losses *= weights[:, None]
        gradient *= weights[:, None]
    return losses.sum(), _gradient_before_transform(gradient, transformed, dtype, scale, cap)


def _transform(logits: Tensor, scale: float, cap: float | None) -> Tensor:
    """Scale logits and softly cap them within ±cap, as the model itself does."""
    logits = logits if scale == 1.0 else logits * scale
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _gradient_before_transform(
    gradient: Tensor, transformed: Tensor, dtype: torch.dtype, scale: float, cap: float | None
) -> Tensor:
    """Apply the chain rule for `_transform`, and cast."""
    gradient = gradient if cap is None else gradient * (1 - (transformed / cap) ** 2)  # tanh' = 1 - tanh²
    gradient = gradient if scale == 1.0 else gradient * scale
    return (gradient * _HALF_SCALE if dtype == torch.float16 else gradient).to(dtype)


@cache
def _kernel(kind: str) -> Callable[..., LossAndGradient]:
    """Return the fastest function for a kind of device: on CUDA the compiled one, if it compiles."""
    if kind != "cuda":
        return loss_and_gradient_in_place
    compiled = torch.compile(loss_and_gradient, dynamic=True)
    try:
        targets = torch.zeros(3, dtype=torch.int64, device=kind)
        compiled(torch.zeros(3, 8, device=kind), targets, torch.float32, 1.0, None)
    except Exception:  # no C compiler or no Triton: torch's own kernels are only a little slower
        return loss_and_gradient_in_place
    return compiled


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return an fp32 matrix product; on CUDA it is not rounded to 16 bits in between."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left, right).float()


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a matrix product to an fp32 total [rows of left, columns of right], in place."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    elif not left.is_cuda:
        total.addmm_(left.float(), right.float())
    elif _adds_into_fp32(left.dtype):
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total += _product(left, right)


@cache
def _adds_into_fp32(dtype: torch.dtype) -> bool:
    """Return whether CUDA can add a 16-bit product to an fp32 total in one kernel; some versions of torch refuse."""
    part, total = torch.ones(8, 8, dtype=dtype, device="cuda"), torch.ones(8, 8, device="cuda")
    try:
        torch.addmm(total, part, part, out_dtype=torch.float32, out=total)
    except (RuntimeError, TypeError):
        return False
    return bool((total == 9).all())


# ---- the loss


class _SummedLoss(torch.autograd.Function):
    """The summed loss of hidden states [tokens, hidden] under a head [vocabulary, hidden].

    The forward pass computes the gradients as well, while it has the logits; the backward pass only scales them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        chunk: int,
        scale: float,
        cap: float | None,
        training: bool,
        weights: Tensor | None,
    ) -> Tensor:
        needs_hidden, needs_weight, needs_bias = (training and needed for needed in ctx.needs_input_grad[:3])
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None  # summed over chunks
        d_bias = torch.zeros_like(weight[:, 0], dtype=torch.float32) if needs_bias else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        kernel = _kernel(hidden.device.type)
        for start in range(0, len(targets), chunk):
            rows = slice(start, start + chunk)
            factors = None if weights is None else weights[rows]
            logits = _product(hidden[rows], weight.t())
            if bias is not None:
                logits += bias
            if not training:
                transformed = _transform(logits, scale, cap)
                total += _weigh(nn.functional.cross_entropy(transformed, targets[rows], reduction="none"), factors)
                continue
            loss, gradient = kernel(logits, targets[rows], weight.dtype, scale, cap, factors)
            del logits  # freed before the products below allocate
            total += loss
            if d_hidden is not None:
                torch.mm(gradient, weight, out=d_hidden[rows])
            if d_weight is not None:
                _add_product(d_weight, gradient.t(), hidden[rows])
            if d_bias is not None:
                d_bias += gradient.sum(dim=0, dtype=torch.float32)
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtype = weight.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        factor = d_loss / _HALF_SCALE if ctx.dtype == torch.float16 else d_loss
        scaled = [_scale(gradient, factor, ctx.dtype) for gradient in ctx.saved_tensors]
        return (*scaled, *[None] * 6)  # none for targets, chunk, scale, cap, training and weights


def _weigh(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Return the sum of token losses [tokens], each times its weight."""
    return losses.sum() if weights is None else (losses * weights).sum()


def _scale(gradient: Tensor | None, factor: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Multiply a gradient by an fp32 factor and round once, without an fp32 copy in between."""
    if gradient is None:
        return None
    return torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=dtype))


def supervised_loss(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    chunk: int = 0,
    softcap: float | None = None,
    scale: float = 1.0,
    count: int | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the sum of the token losses, fp32, over the positions with a target of 0 or more.

    hidden [rows, tokens, size], head_weight [vocabulary, size], bias [vocabulary], targets [rows, tokens]. Logits are
    multiplied by `scale`, then softly capped within ±softcap. `count` is the number of targets, if it is known: without
    it, the CPU waits for the device. `chunk` is the number of tokens in a chunk, by default `chunk_tokens`. `weights`
    [supervised] are factors on the token losses, in order of rows and positions.
    """
    positions = _positions(targets.flatten(), count)
    states = hidden.flatten(0, 1).index_select(0, positions).to(head_weight.dtype)  # [supervised, size]
    ids = targets.flatten().index_select(0, positions)  # [supervised]
    chunk = chunk or chunk_tokens(len(head_weight), head_weight.requires_grad)
    function: Any = _SummedLoss  # torch has no type for `apply`
    training = torch.is_grad_enabled()
    loss: Tensor = function.apply(states, head_weight, bias, ids, chunk, scale, softcap, training, weights)
    return loss


def _positions(targets: Tensor, count: int | None) -> Tensor:
    """Return the positions [supervised] with a target.

    On a device `nonzero` waits for the number of results; with a known count, a stable sort does not.
    """
    if count is None or targets.device.type == "cpu":
        return (targets >= 0).nonzero().flatten()
    return (targets < 0).to(torch.int8).argsort(stable=True)[:count]


def _loss_through_module(
    hidden: Tensor,
    head: nn.Module,
    targets: Tensor,
    chunk: int,
    scale: float,
    cap: float | None,
    weights: Tensor | None,
) -> Tensor:
    """Return the summed loss under a head that is not a single matrix, such as one with an adapter.

    Autograd computes the gradients; each chunk is checkpointed, so its logits are recomputed in the backward pass.
    """
    from torch.utils.checkpoint import checkpoint

    def chunk_loss(states: Tensor, ids: Tensor, factors: Tensor | None) -> Tensor:
        transformed = _transform(head(states).float(), scale, cap)
        return _weigh(nn.functional.cross_entropy(transformed, ids, reduction="none"), factors)

    positions = _positions(targets.flatten(), None)
    states, ids = hidden.flatten(0, 1).index_select(0, positions), targets.flatten().index_select(0, positions)
    total = states.sum(dtype=torch.float32) * 0.0  # part of the graph even without supervised tokens
    for start in range(0, len(ids), chunk):
        rows = slice(start, start + chunk)
        factors = None if weights is None else weights[rows]
        total = total + checkpoint(chunk_loss, states[rows], ids[rows], factors, use_reentrant=False)
    return total


@torch.no_grad()
def token_losses(
    hidden: Tensor, head: nn.Module, targets: Tensor, chunk: int, scale: float = 1.0, cap: float | None = None
) -> Tensor:
    """Return the loss of each supervised token [supervised], fp32, in order of rows and positions; for evaluation."""
    positions = _positions(targets.flatten(), None)
    states, ids = hidden.flatten(0, 1).index_select(0, positions), targets.flatten().index_select(0, positions)
    losses = [hidden.new_zeros(0, dtype=torch.float32)]
    for part, part_ids in zip(states.split(chunk), ids.split(chunk), strict=True):
        transformed = _transform(_logits(head, part), scale, cap)
        losses.append(nn.functional.cross_entropy(transformed, part_ids, reduction="none"))
    return torch.cat(losses)


@torch.no_grad()
def log_probabilities(
    hidden: Tensor, head: nn.Module, targets: Tensor, ids: Tensor, chunk: int, scale: float, cap: float | None
) -> Tensor:
    """Return the log-probability of each of `ids` at each supervised position [supervised, ids], fp32."""
    states = hidden.flatten(0, 1).index_select(0, _positions(targets.flatten(), None))
    parts = [hidden.new_zeros((0, len(ids)), dtype=torch.float32)]
    for part in states.split(chunk):
        transformed = _transform(_logits(head, part), scale, cap)
        parts.append(transformed.index_select(1, ids) - transformed.logsumexp(1, keepdim=True))
    return torch.cat(parts)


def _logits(head: nn.Module, states: Tensor) -> Tensor:
    """Return fp32 logits [tokens, vocabulary]; those of a single matrix are not rounded to 16 bits in between."""
    if not _is_matrix(head):
        return head(states).float()  # type: ignore[no-any-return]
    logits = _product(states.to(head.weight.dtype), head.weight.t())
    return logits if head.bias is None else logits + head.bias


def _is_matrix(head: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether a head is a plain matrix: peft's layers, which may be Linear too, have a `base_layer`."""
    return isinstance(head, nn.Linear) and not hasattr(head, "base_layer")


class CausalLoss(nn.Module):
    """A causal model and its loss as one module: DDP and FSDP2 hook the forward of the outermost module.

    `model` is a causal model of transformers, or a peft model around one.
    """

    def __init__(self, model: nn.Module, *, chunk: int = 0) -> None:
        super().__init__()
        self.model = model
        self.chunk = chunk
        self.scale, self.softcap = logit_transform(attention_module.base_model(model).config.get_text_config())

    def forward(self, batch: PackedBatch, attention: ChosenKernel, *, per_token: bool = False) -> Tensor:
        """Return the sum of the batch's token losses, fp32; with `per_token`, each of them, without gradients."""
        hidden = self.body(batch, attention)
        return self.token_losses(hidden, batch) if per_token else self.summed_loss(hidden, batch)

    def token_losses(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Return the loss of each supervised token [supervised], fp32, without gradients."""
        return token_losses(hidden, self._head, batch.targets, self._module_chunk, self.scale, self.softcap)

    def log_probabilities(self, hidden: Tensor, batch: PackedBatch, ids: Tensor) -> Tensor:
        """Return the log-probability of each of `ids` at each supervised position [supervised, ids], fp32."""
        chunk, transform = self._module_chunk, (self.scale, self.softcap)
        return log_probabilities(hidden, self._head, batch.targets, ids, chunk, *transform)

    def summed_loss(self, hidden: Tensor, batch: PackedBatch, weights: Tensor | None = None) -> Tensor:
        """Return the sum of the token losses, fp32, each times its weight if there are `weights` [supervised]."""
        head = self._head
        if not _is_matrix(head):
            chunk = self._module_chunk
            return _loss_through_module(hidden, head, batch.targets, chunk, self.scale, self.softcap, weights)
        return supervised_loss(
            hidden,
            head.weight,
            batch.targets,
            bias=head.bias,
            chunk=self.chunk,
            softcap=self.softcap,
            scale=self.scale,
            count=batch.supervised,
            weights=weights,
        )

    @property
    def _head(self) -> Any:
        return attention_module.base_model(self.model).get_output_embeddings()

    @property
    def _module_chunk(self) -> int:
        """Tokens in a chunk where the head's gradient is not summed over the chunks."""
        config = attention_module.base_model(self.model).config.get_text_config()
        return self.chunk or chunk_tokens(config.vocab_size, False)

    def body(self, batch: PackedBatch, attention: ChosenKernel) -> Tensor:
        """Return the hidden states [rows, tokens, size] that the head takes."""
        states: Tensor = (
            attention_module.base_model(self.model)
            .base_model(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                use_cache=False,
                **attention_module.mask_kwargs(attention, batch),
            )
            .last_hidden_state
        )
        return states


def logit_transform(config: Any) -> tuple[float, float | None]:
    """Return the scale and the soft cap that a model applies to its logits, from its configuration."""
    scale = 1.0
    if getattr(config, "logit_scale", None) is not None:  # Cohere
        scale = float(config.logit_scale)
    if getattr(config, "logits_scaling", None):  # Granite divides
        scale /= float(config.logits_scaling)
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
    return scale, None if cap is None else float(cap)


def check_packed_logits(module: CausalLoss, attention: ChosenKernel) -> None:
    """Compare the logits of two short documents in one row with the model's own forward pass on each alone.

    Raises RecipeError if they differ. Some models transform their logits in ways that their configuration does not
    name, and some carry a state from one document into the next: training would optimise another function.
    """
    base = attention_module.base_model(module.model)
    size, device = base.config.get_text_config().vocab_size, next(module.parameters()).device
    ids = torch.arange(24, device=device) * 7919 % size  # 7919 is prime, so that the ids differ
    was_training = module.training
    module.eval()
    with torch.no_grad():
        hidden = module.body(_Probe(ids), attention)[0]
        ours = _transform(base.get_output_embeddings()(hidden).float(), module.scale, module.softcap)
        with attention_module.plain_attention(module.model):
            parts = [base(input_ids=part[None], use_cache=False).logits[0] for part in ids.split(12)]
    module.train(was_training)
    theirs = torch.cat(parts).float()
    error = ((ours - theirs).norm() / theirs.norm()).item()
    if not error < (0.001 if base.dtype == torch.float32 else 0.05):  # relative to the norm; NaN fails too
        raise RecipeError(
            f"{type(base).__name__} cannot read packed rows: its logits differ by {percent(error)} from those "
            "of each piece alone; use a model with the architecture of LLaMA"
        )


class _Probe:
    """One row of two documents of 12 tokens."""

    def __init__(self, ids: Tensor) -> None:
        self.input_ids = ids[None]
        self.targets = ids.roll(-1)[None].clone()
        self.targets[:, 11::12] = -100  # no target at the end of a document
        self.position_ids = (torch.arange(24, device=ids.device) % 12)[None]
        self.documents = (torch.arange(24, device=ids.device) // 12).to(torch.int32)[None]
        self.supervised = 22


# ---- a step of several micro-batches and ranks


def step_factor(counts: Iterable[int], *, device: torch.device | str = "cpu", group: Any = None) -> tuple[float, int]:
    """Return the factor on the summed loss of each micro-batch of a step, and the step's whole count.

    `counts` are of this rank's micro-batches: supervised tokens, or pairs. An all-reduce adds those of the other ranks,
    so every rank must call this. The factor is ranks ÷ count, because DDP and FSDP2 average gradients over the ranks
    and a sum is needed. It is 0 for a step without supervised tokens, which then changes nothing.
    """
    from torch import distributed

    count = sum(counts)
    ranks = 1
    if distributed.is_available() and distributed.is_initialized():
        ranks = distributed.get_world_size(group)
        total = torch.tensor(count, dtype=torch.int64, device=device)
        distributed.all_reduce(total, group=group)
        count = int(total.item())
    return (ranks / count if count else 0.0), count
