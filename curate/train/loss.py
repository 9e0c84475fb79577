"""Cross-entropy of the supervised tokens, head and softmax taken a few rows at a time.

A causal model's own forward makes logits of every position: 4 GiB for 8,192 tokens of LLaMA-3's vocabulary, thrice
over with softmax and gradient, most of it at positions nobody trains on. Here the body's hidden states are gathered
where a target is, and head, softmax and both gradients are taken chunk by chunk in the forward pass, so that no more
than one chunk of logits ever exists. The head's gradient is summed in fp32 over the chunks (as in Liger-Kernel's
fused linear cross-entropy, and its issue 512). A head that is frozen, as with adapters, costs no gradient at all.

What comes back is the sum of the token losses. A step's loss is that sum over all its micro-batches and ranks, divided
once by the supervised tokens of them all (`share`): a mean of means weighs tokens by the company they keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from curate.errors import RecipeError
from curate.model.attention import choose as attention_module
from curate.model.attention.choose import ChosenKernel

_LOGITS_FROZEN = 1 << 25  # of one chunk, where the head is frozen: 128 MiB of fp32
_LOGITS_TRAINED = 1 << 28  # 1 GiB; adding to the head's fp32 gradient costs its whole size for each chunk
_HALF_SCALE = 1024.0  # fp16 loses what is below 6e-8, and a softmax over 128k tokens is full of that


class PackedBatch(Protocol):
    """What the loss reads of a micro-batch, [rows, tokens] each; a target below 0 carries no loss."""

    @property
    def input_ids(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor: ...
    @property
    def position_ids(self) -> Tensor: ...
    @property
    def documents(self) -> Tensor: ...
    @property
    def supervised(self) -> int: ...


def chunk_rows(vocabulary: int, trained: bool) -> int:
    """Return how many tokens' logits are taken at once: at least 64, so that the matrices stay worth multiplying."""
    return max(64, (_LOGITS_TRAINED if trained else _LOGITS_FROZEN) // vocabulary)


def workspace_bytes(tokens: int, vocabulary: int, hidden: int, *, trained: bool, item: int, chunk: int = 0) -> int:
    """Return what the loss holds at its peak for `tokens` supervised tokens, `item` bytes a weight; for the plan.

    Logits in fp32 and their gradient in the weights' type; the gathered hidden states and their gradient; and, where
    the head is trained, its gradient in fp32, and once the logits are gone in the weights' type too.
    """
    rows = min(tokens, chunk or chunk_rows(vocabulary, trained))
    logits = rows * vocabulary * (8 + (item if item < 4 else 0))  # a slope that is fp32 anyway is not copied
    head = vocabulary * hidden if trained else 0
    return max(logits + 4 * head, (4 + item) * head) + 2 * tokens * hidden * item


# ---- one chunk


Slopes = tuple[Tensor, Tensor]  # the summed loss, and its gradient by the logits


def _slopes(logits: Tensor, targets: Tensor, dtype: torch.dtype, scale: float, cap: float | None) -> Slopes:
    """Return the summed loss of fp32 logits [tokens, vocabulary] and its gradient before `scale` and `cap`, in `dtype`.

    Written without a change in place, for the compiler, which makes two passes over the logits of it.
    """
    shaped = _shaped(logits, scale, cap)
    total = shaped.logsumexp(dim=-1, keepdim=True)
    places = torch.arange(shaped.shape[1], device=shaped.device)
    slope = (shaped - total).exp() - (places == targets[:, None]).to(shaped.dtype)
    loss = (total - shaped.gather(1, targets[:, None])).sum()
    return loss, _unshaped(slope, shaped, dtype, scale, cap)


def _slopes_in_place(logits: Tensor, targets: Tensor, dtype: torch.dtype, scale: float, cap: float | None) -> Slopes:
    """Do the same as `_slopes` in two of torch's own kernels, which is quickest on a CPU."""
    shaped = _shaped(logits, scale, cap)
    slope = shaped.log_softmax(dim=-1)
    loss = -slope.gather(1, targets[:, None]).sum()
    slope.exp_().scatter_add_(1, targets[:, None], -torch.ones_like(slope[:, :1]))
    return loss, _unshaped(slope, shaped, dtype, scale, cap)


def _shaped(logits: Tensor, scale: float, cap: float | None) -> Tensor:
    logits = logits if scale == 1.0 else logits * scale
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _unshaped(slope: Tensor, shaped: Tensor, dtype: torch.dtype, scale: float, cap: float | None) -> Tensor:
    slope = slope if cap is None else slope * (1 - (shaped / cap) ** 2)
    slope = slope if scale == 1.0 else slope * scale
    return (slope * _HALF_SCALE if dtype == torch.float16 else slope).to(dtype)


@cache
def _slopes_for(kind: str) -> Callable[..., Slopes]:
    """Return the kernel for a kind of device: compiled on CUDA, unless it does not compile."""
    if kind != "cuda":
        return _slopes_in_place
    compiled = torch.compile(_slopes, dynamic=True)
    try:
        targets = torch.zeros(3, dtype=torch.int64, device=kind)
        compiled(torch.zeros(3, 8, device=kind), targets, torch.float32, 1.0, None)
    except Exception:  # no compiler, or no Triton: the plain kernels do the same, a little slower
        return _slopes_in_place
    return compiled


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply into fp32, without rounding to bf16 in between where the device can."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left, right).float()


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a matrix product to an fp32 total [left's rows, right's columns], in place."""
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
    """Try whether CUDA adds a 16-bit product to an fp32 total in one go, which some versions of torch refuse."""
    part, total = torch.ones(8, 8, dtype=dtype, device="cuda"), torch.ones(8, 8, device="cuda")
    try:
        torch.addmm(total, part, part, out_dtype=torch.float32, out=total)
    except (RuntimeError, TypeError):
        return False
    return bool((total == 9).all())


# ---- the loss


class _SummedLoss(torch.autograd.Function):
    """The summed loss of hidden states [tokens, hidden] under a head, with its gradients made on the way forward."""

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
    ) -> Tensor:
        wants_hidden, wants_weight, wants_bias = (training and wanted for wanted in ctx.needs_input_grad[:3])
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        d_bias = torch.zeros_like(weight[:, 0], dtype=torch.float32) if wants_bias else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        slopes = _slopes_for(hidden.device.type)
        for start in range(0, len(targets), chunk):
            rows = slice(start, start + chunk)
            logits = _product(hidden[rows], weight.t())
            if bias is not None:
                logits += bias
            if not training:
                shaped = _shaped(logits, scale, cap)
                total += nn.functional.cross_entropy(shaped, targets[rows], reduction="sum")
                continue
            loss, slope = slopes(logits, targets[rows], weight.dtype, scale, cap)
            del logits
            total += loss
            if d_hidden is not None:
                torch.mm(slope, weight, out=d_hidden[rows])
            if d_weight is not None:
                _add_product(d_weight, slope.t(), hidden[rows])
            if d_bias is not None:
                d_bias += slope.sum(dim=0, dtype=torch.float32)
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtype = weight.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        factor = outer / _HALF_SCALE if ctx.dtype == torch.float16 else outer
        scaled = [_times(slope, factor, ctx.dtype) for slope in ctx.saved_tensors]
        return (*scaled, None, None, None, None, None)


def _times(slope: Tensor | None, factor: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Multiply by fp32 `factor` and round once, without an fp32 copy in between."""
    if slope is None:
        return None
    return torch.mul(slope, factor, out=torch.empty_like(slope, dtype=dtype))


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
) -> Tensor:
    """Return the sum of the token losses, fp32, over positions whose target is not negative.

    hidden [rows, tokens, size], head_weight [vocabulary, size], targets [rows, tokens]. Logits are multiplied by
    `scale`, then pressed into ±softcap. `count` is how many targets there are, if the caller knows: it saves the
    device a wait. `chunk` is the tokens taken at once, by default as many as `chunk_rows` says.
    """
    places = _places(targets.flatten(), count)
    picked = hidden.flatten(0, 1).index_select(0, places).to(head_weight.dtype)
    chunk = chunk or chunk_rows(len(head_weight), head_weight.requires_grad)
    wanted = targets.flatten().index_select(0, places)
    function: Any = _SummedLoss  # torch gives `apply` no type
    loss: Tensor = function.apply(picked, head_weight, bias, wanted, chunk, scale, softcap, torch.is_grad_enabled())
    return loss


def _places(targets: Tensor, count: int | None) -> Tensor:
    """Return where targets are; a stable sort finds them on a device without waiting for it to say how many."""
    if count is None or targets.device.type == "cpu":
        return (targets >= 0).nonzero().flatten()
    return (targets < 0).to(torch.int8).argsort(stable=True)[:count]


def _by_module(hidden: Tensor, head: nn.Module, targets: Tensor, chunk: int, scale: float, cap: float | None) -> Tensor:
    """Return the summed loss under a head that is more than one matrix (an adapter on it), each chunk recomputed."""
    from torch.utils.checkpoint import checkpoint

    def one(rows: Tensor, wanted: Tensor) -> Tensor:
        shaped = _shaped(head(rows).float(), scale, cap)
        return nn.functional.cross_entropy(shaped, wanted, reduction="sum")

    places = _places(targets.flatten(), None)
    picked, wanted = hidden.flatten(0, 1).index_select(0, places), targets.flatten().index_select(0, places)
    total = picked.sum(dtype=torch.float32) * 0.0  # hangs on the graph even where nothing is supervised
    for rows, ids in zip(picked.split(chunk), wanted.split(chunk), strict=True):
        total = total + checkpoint(one, rows, ids, use_reentrant=False) if len(ids) else total
    return total


@torch.no_grad()
def token_losses(
    hidden: Tensor, head: nn.Module, targets: Tensor, chunk: int, scale: float = 1.0, cap: float | None = None
) -> Tensor:
    """Return each supervised token's loss, fp32, in the order of rows and positions; for evaluation."""
    places = _places(targets.flatten(), None)
    picked, wanted = hidden.flatten(0, 1).index_select(0, places), targets.flatten().index_select(0, places)
    found = [hidden.new_zeros(0, dtype=torch.float32)]
    for rows, ids in zip(picked.split(chunk), wanted.split(chunk), strict=True):
        shaped = _shaped(_logits(head, rows), scale, cap)
        found.append(nn.functional.cross_entropy(shaped, ids, reduction="none"))
    return torch.cat(found)


def _logits(head: nn.Module, rows: Tensor) -> Tensor:
    """Return fp32 logits [rows, vocabulary], rounded nowhere in between if the head is one matrix."""
    if not isinstance(head, nn.Linear) or hasattr(head, "base_layer"):
        return head(rows).float()  # type: ignore[no-any-return]
    logits = _product(rows.to(head.weight.dtype), head.weight.t())
    return logits if head.bias is None else logits + head.bias


class CausalLoss(nn.Module):
    """A causal model and its loss as one module, so that what hooks a forward (DDP, FSDP2) sees one.

    `model` is transformers' model for causal language modelling, or peft's around it.
    """

    def __init__(self, model: nn.Module, *, chunk: int = 0) -> None:
        super().__init__()
        self.model = model
        self.chunk = chunk
        self.scale, self.softcap = head_shape(attention_module.base_model(model).config.get_text_config())

    def forward(self, batch: PackedBatch, attention: ChosenKernel, *, each: bool = False) -> Tensor:
        """Return the sum of the batch's token losses, fp32; with `each`, every one of them, without gradients."""
        hidden = self.body(batch, attention)
        base = attention_module.base_model(self.model)
        head = base.get_output_embeddings()
        if each:
            chunk = self.chunk or chunk_rows(base.config.get_text_config().vocab_size, False)
            return token_losses(hidden, head, batch.targets, chunk, self.scale, self.softcap)
        if not isinstance(head, nn.Linear) or hasattr(head, "base_layer"):  # an adapter on it is no plain matrix
            chunk = self.chunk or chunk_rows(base.config.get_text_config().vocab_size, False)
            return _by_module(hidden, head, batch.targets, chunk, self.scale, self.softcap)
        return supervised_loss(
            hidden,
            head.weight,
            batch.targets,
            bias=head.bias,
            chunk=self.chunk,
            softcap=self.softcap,
            scale=self.scale,
            count=batch.supervised,
        )

    def body(self, batch: PackedBatch, attention: ChosenKernel) -> Tensor:
        """Return the hidden states that the head reads, [rows, tokens, size]."""
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


def head_shape(config: Any) -> tuple[float, float | None]:
    """Return what a model multiplies its logits by, and what it caps them at, by its configuration's names for them."""
    scale = 1.0
    if getattr(config, "logit_scale", None) is not None:  # Cohere
        scale = float(config.logit_scale)
    if getattr(config, "logits_scaling", None):  # Granite divides
        scale /= float(config.logits_scaling)
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
    return scale, None if cap is None else float(cap)


def check_packed_logits(module: CausalLoss, attention: ChosenKernel) -> None:
    """Hold the logits of two short documents in one row against the model's own forward on each alone.

    Raises RecipeError where the two differ: some models do more to their logits than their configuration says in words
    we know, and some carry a state from one document into the next. Neither must be found out by training.
    """
    base = attention_module.base_model(module.model)
    size, device = base.config.get_text_config().vocab_size, next(module.parameters()).device
    ids = torch.arange(24, device=device) * 7919 % size
    before = module.training
    module.eval()
    with torch.no_grad():
        hidden = module.body(_Probe(ids), attention)[0]
        ours = _shaped(base.get_output_embeddings()(hidden).float(), module.scale, module.softcap)
        with attention_module.plain_attention(module.model):
            parts = [base(input_ids=part[None], use_cache=False).logits[0] for part in ids.split(12)]
    module.train(before)
    theirs = torch.cat(parts).float()
    error = ((ours - theirs).norm() / theirs.norm()).item()
    if not error < (0.001 if base.dtype == torch.float32 else 0.05):
        raise RecipeError(
            f"{type(base).__name__} is not head and softmax over a body that keeps documents apart (its logits are off "
            f"by {error:.1%} in a packed row); use a model of LLaMA's kind"
        )


class _Probe:
    """One row of two documents of 12 tokens."""

    def __init__(self, ids: Tensor) -> None:
        self.input_ids = ids[None]
        self.targets = ids.roll(-1)[None].clone()
        self.targets[:, 11::12] = -100
        self.position_ids = (torch.arange(24, device=ids.device) % 12)[None]
        self.documents = (torch.arange(24, device=ids.device) // 12).to(torch.int32)[None]
        self.supervised = 22


# ---- the whole step


def share(
    batches: Iterable[PackedBatch], *, device: torch.device | str = "cpu", group: Any = None
) -> tuple[float, int]:
    """Return what to multiply each micro-batch's summed loss by, and the supervised tokens of the global step.

    `batches` are this rank's micro-batches of the step; the other ranks' are added by one all-reduce. DDP and FSDP2
    average gradients over ranks, where a sum is wanted: the factor is ranks ÷ tokens. It is 0 for a step without any
    supervised token, which then changes nothing.
    """
    from torch import distributed

    tokens = sum(batch.supervised for batch in batches)
    ranks = 1
    if distributed.is_available() and distributed.is_initialized():
        ranks = distributed.get_world_size(group)
        total = torch.tensor(tokens, dtype=torch.int64, device=device)
        distributed.all_reduce(total, group=group)
        tokens = int(total.item())
    return (ranks / tokens if tokens else 0.0), tokens
