"""Attention over packed rows: four kernels behind one signature, and the choice among them.

Each kernel is registered in transformers' `AttentionInterface` under a name of its own. transformers (5.17 to 5.24)
builds no mask for a name that it does not know, and passes extra keyword arguments of the model body to every layer's
attention: `mask_kwargs` builds the mask once for each micro-batch, and all layers share it. A kernel raises without a
mask, because a packed row must never be read as one document.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from curate.errors import RecipeError, did_you_mean
from curate.model.attention import masks
from curate.model.attention.kernels import KERNELS, flash_version
from curate.model.choices import ATTENTION, AttentionName

ARGUMENT = "packed"  # the keyword argument that passes masks through the model


class Documents(Protocol):
    """What attention reads of a batch: `documents` [rows, tokens] int32, padding -1."""

    @property
    def documents(self) -> Tensor: ...


@dataclass(frozen=True)
class ChosenKernel:
    """A chosen kernel."""

    name: AttentionName
    reason: str  # why it was chosen
    windows: tuple[int, ...] = ()  # sliding windows of the model's layers, in tokens


# ---- the choice


@dataclass(frozen=True)
class Heads:
    """The attention heads of a model, LLaMA-3-8B's by default: some kernels fail only at some sizes."""

    queries: int = 32  # heads
    keys: int = 8  # heads, also of values
    size: int = 128  # of a head


def choose_kernel(
    device: torch.device | str, dtype: torch.dtype, wanted: str = "auto", *, heads: Heads | None = None
) -> ChosenKernel:
    """Choose the kernel for a device; every kernel except SDPA must first pass a forward and backward on it.

    Raises RecipeError for an unknown name, or a kernel that cannot run here.
    """
    device = torch.device(device)
    if wanted != "auto" and wanted not in ATTENTION:
        raise RecipeError(f"attention {wanted!r} is unknown{did_you_mean(wanted, ('auto', *ATTENTION))}")
    if wanted == "sdpa":
        return ChosenKernel("sdpa", "as asked")
    if device.type != "cuda":
        return _without_cuda(device, wanted)
    if wanted != "auto":
        name = next(name for name in ATTENTION if name == wanted)
        failure = try_kernel(name, device, dtype, heads or Heads())
        if failure is not None:
            raise RecipeError(f"attention {wanted!r} cannot run here ({failure}); use attention = 'auto'")
        return ChosenKernel(name, "as asked")
    return _best(device, dtype, heads or Heads())


def _without_cuda(device: torch.device, wanted: str) -> ChosenKernel:
    if wanted != "auto":
        raise RecipeError(f"attention {wanted!r} needs a CUDA device, and this is {device.type}; use 'auto' or 'sdpa'")
    return ChosenKernel("sdpa", f"on {device.type}, where FlexAttention has no backward")


def _best(device: torch.device, dtype: torch.dtype, heads: Heads) -> ChosenKernel:
    """Return the fastest kernel that runs, with the reason why others were passed over."""
    capability = torch.cuda.get_device_capability(device)
    passed: list[str] = []
    for name, why in ranked_kernels(capability, flash_version(), dtype):
        failure = try_kernel(name, device, dtype, heads)
        if failure is None:
            return ChosenKernel(name, "; ".join([why, *passed]))
        passed.append(f"{name} failed: {failure}")
    return ChosenKernel("sdpa", "; ".join([*passed, "SDPA with a mask runs anywhere"]))


def ranked_kernels(
    capability: tuple[int, int], flash: int | None, dtype: torch.dtype
) -> list[tuple[AttentionName, str]]:
    """Return the kernels worth trying on a CUDA device, fastest first, each with its reason.

    On Hopper, FlexAttention is faster than FlashAttention 2 (at LLaMA-3-8B's shape on an H100: forward 0.72 ms against
    0.77, backward 1.56 against 1.96) and slower than 3 and 4, which are written for Hopper.
    """
    if capability < (8, 0):
        return []
    hopper = capability >= (9, 0)
    order: list[tuple[AttentionName, str]] = [("flex", "FlexAttention, the fastest of torch's own")]
    half = dtype in (torch.float16, torch.bfloat16)
    if half and flash is not None and (flash >= 3 or not hopper) and (flash == 2 or hopper):
        order.insert(0, ("flash", f"FlashAttention {flash} is installed and fastest on this device"))
    if half:
        order.append(("varlen", "torch's variable-length FlashAttention"))
    return order


def try_kernel(name: AttentionName, device: torch.device, dtype: torch.dtype, heads: Heads) -> str | None:
    """Run a kernel forward and backward on a short packed row; return what went wrong in one line, or None."""
    documents = torch.arange(2, dtype=torch.int32, device=device).repeat_interleave(masks.BLOCK)[None]
    query, key, value = (
        torch.randn(1, count, documents.shape[1], heads.size, device=device, dtype=dtype, requires_grad=True)
        for count in (heads.queries, heads.keys, heads.keys)
    )
    kernel = KERNELS[name]
    packed = {0: kernel.mask(documents, None)}
    try:
        out, _ = kernel.attend(nn.Module(), query, key, value, None, scaling=heads.size**-0.5, packed=packed)
        out.sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except Exception as error:  # a compiler, a driver or a kernel may raise anything; the next kernel is tried
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
    return None


# ---- use in a model


def install_kernel(model: nn.Module, attention: ChosenKernel) -> ChosenKernel:
    """Make a model's layers call this kernel; return the attention with the model's sliding windows.

    Raises RecipeError for a model whose attention cannot be replaced.
    """
    from transformers import AttentionInterface

    inner = base_model(model)
    kernel = KERNELS[attention.name]
    AttentionInterface.register(kernel.registered, kernel.attend)
    if inner._can_set_attn_implementation():
        inner.set_attn_implementation(kernel.registered)
    if inner.config._attn_implementation != kernel.registered:
        raise RecipeError(
            f"the attention of {type(inner).__name__} cannot be replaced, which packed rows need; "
            "use a model of LLaMA's kind"
        )
    config = inner.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    return replace(attention, windows=(int(window),) if window else ())


def base_model(model: nn.Module) -> Any:
    """Return the model of transformers, without peft's wrapper if it has one."""
    get: Any = getattr(model, "get_base_model", None)
    return model if get is None else get()


@contextmanager
def plain_attention(model: nn.Module) -> Iterator[None]:
    """Use transformers' own attention within the block: to generate, and for rows that are not packed."""
    inner = base_model(model)
    before = inner.config._attn_implementation
    try:
        inner.set_attn_implementation("sdpa")
    except ValueError:  # models with softcaps or sinks refuse SDPA, which supports neither
        inner.set_attn_implementation("eager")
    try:
        yield
    finally:
        inner.set_attn_implementation(before)


def mask_kwargs(attention: ChosenKernel, batch: Documents) -> dict[str, Any]:
    """Return the masks of a micro-batch as a keyword argument of the model body's forward, by sliding window."""
    length = batch.documents.shape[1]
    mask = KERNELS[attention.name].mask
    packed = {0: mask(batch.documents, None)}
    for window in attention.windows:  # a window as long as the row changes nothing
        packed[window] = mask(batch.documents, window) if window < length else packed[0]
    return {ARGUMENT: packed}
