"""The four attention kernels over packed rows, behind the signature that transformers' `AttentionInterface` calls.

query is [rows, heads, tokens, size]; key and value may have fewer heads (grouped queries). The output is
[rows, tokens, heads, size], without attention weights. `packed` holds the masks from `mask_kwargs`, by sliding window
(0: none); without it a kernel raises, because a packed row must never be read as one document.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from curate.errors import RecipeError
from curate.model.attention import masks
from curate.model.choices import AttentionName


@cache
def flash_function() -> tuple[int, Callable[..., Any]] | None:
    """Return the newest FlashAttention that can be imported: its version and variable-length function."""
    for version, module in ((4, "flash_attn.cute"), (3, "flash_attn_interface"), (2, "flash_attn")):
        try:
            return version, import_module(module).flash_attn_varlen_func
        # Version 2 ships an empty `cute` (AttributeError); a build for another torch raises OSError.
        except (ImportError, OSError, AttributeError):
            continue
    return None


def flash_version() -> int | None:
    """Return the version of FlashAttention that is installed, None if none is."""
    installed = flash_function()
    return installed[0] if installed else None


def _chosen_mask(packed: dict[int, Any] | None, window: int | None, options: dict[str, Any]) -> Any:
    """Return the mask for a layer with this sliding window, in tokens.

    Raises RecipeError if there is no mask, or for an option of the layer that no kernel supports.
    """
    if packed is None:
        raise RecipeError(
            "attention over packed rows was called without a mask: the layers of this model do not pass it on, so it "
            "cannot be trained on packed rows; use a model of LLaMA's kind (to generate, use plain_attention)"
        )
    # `s_aux`: the attention sinks of gpt-oss
    if options.get("s_aux") is not None or options.get("position_bias") is not None:
        raise RecipeError(
            "this model's attention has sinks or a position bias, which no kernel supports; use another model"
        )
    return packed[window or 0]  # built once for each micro-batch by `mask_kwargs`


def _sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    packed: dict[int, Tensor] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend by torch's SDPA with a boolean mask; with a softcap, which SDPA lacks, by explicit scores."""
    visible = _chosen_mask(packed, sliding_window, options)  # [rows, 1, queries, keys], for all heads
    key, value = _repeat_heads(key, query), _repeat_heads(value, query)
    if softcap is None:
        attend = nn.functional.scaled_dot_product_attention
        out = attend(query, key, value, attn_mask=visible, dropout_p=dropout, scale=scaling)
    else:
        # [rows, heads, queries, keys]; cap_score in fp32, because tanh in bf16 loses small differences of scores
        scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        scores = (softcap * torch.tanh(scores.float() / softcap)).masked_fill(~visible, -torch.inf)
        weights = nn.functional.dropout(scores.softmax(dim=-1).to(value.dtype), dropout)
        out = weights @ value
    return out.transpose(1, 2).contiguous(), None


def _repeat_heads(states: Tensor, query: Tensor) -> Tensor:
    """Repeat keys or values for each query head: with a mask, SDPA on CUDA groups queries only in its slow path."""
    times = query.shape[1] // states.shape[1]  # query heads for each head of keys or values
    return states if times == 1 else states.repeat_interleave(times, dim=1)


@cache
def _compiled_flex() -> Callable[..., Any]:
    """Return FlexAttention compiled: without that, it computes the full matrix of scores."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _flex(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    packed: dict[int, Any] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend by FlexAttention; in a compiled layer it is compiled as part of the layer."""
    from torch.nn.attention.flex_attention import flex_attention

    if dropout:
        raise RecipeError("FlexAttention does not support this model's attention_dropout; use attention = 'sdpa'")

    attend: Any = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
    out = attend(
        query,
        key,
        value,
        score_mod=None if softcap is None else _cap_scores(softcap),
        block_mask=_chosen_mask(packed, sliding_window, options),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],  # fewer heads of keys than of queries
    )
    return out.transpose(1, 2).contiguous(), None


def _cap_scores(cap: float) -> Callable[..., Tensor]:
    """Return a score_mod that keeps scores between -cap and cap, as Gemma 2 does (arXiv 2408.00118)."""

    def cap_score(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return cap_score


def _lay_end_to_end(states: Tensor) -> Tensor:
    """Lay rows end to end: [rows, heads, tokens, size] → [rows * tokens, heads, size]."""
    return states.transpose(1, 2).flatten(0, 1)


@cache
def _varlen_function() -> tuple[Callable[..., Any], bool]:
    """Return torch's variable-length attention, and whether it takes grouped queries (since torch 2.12)."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn, "enable_gqa" in inspect.signature(varlen_attn).parameters


def _varlen(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    packed: dict[int, masks.Lengths] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend by torch's own FlashAttention over documents laid end to end; causal is window (-1, 0) there."""
    documents: masks.Lengths = _chosen_mask(packed, sliding_window, options)
    _refuse("torch's variable-length attention", dropout, softcap)
    attend, grouped = _varlen_function()
    if not grouped:
        key, value = _repeat_heads(key, query), _repeat_heads(value, query)
    grouping = {"enable_gqa": query.shape[1] != key.shape[1]} if grouped else {}
    # (left, right) keys besides the query itself, -1 for no limit; right 0 is causal
    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    # of queries and of keys, which are the same: cu_seqlens [documents + 1], max_seqlen in tokens
    ends = (documents.cu_seqlens, documents.cu_seqlens, documents.max_seqlen, documents.max_seqlen)
    out = attend(
        _lay_end_to_end(query),
        _lay_end_to_end(key),
        _lay_end_to_end(value),
        *ends,
        scale=scaling,
        window_size=window,
        **grouping,
    )
    return out.view(query.shape[0], query.shape[2], query.shape[1], -1), None


def _flash_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    packed: dict[int, masks.Lengths] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend by the installed version of flash-attn."""
    documents: masks.Lengths = _chosen_mask(packed, sliding_window, options)
    _refuse("flash-attn", dropout, softcap)
    installed = flash_function()
    if installed is None:
        raise RecipeError("flash-attn is not installed; use attention = 'auto'")
    # Keys to the left and right of the query, besides its own; with `causal`, none to the right.
    window = {} if sliding_window is None else {"window_size": (sliding_window - 1, 0)}
    out = installed[1](
        _lay_end_to_end(query),
        _lay_end_to_end(key),
        _lay_end_to_end(value),
        cu_seqlens_q=documents.cu_seqlens,
        cu_seqlens_k=documents.cu_seqlens,
        max_seqlen_q=documents.max_seqlen,
        max_seqlen_k=documents.max_seqlen,
        softmax_scale=scaling,
        causal=True,
        **window,
    )
    out = out[0] if isinstance(out, tuple) else out  # version 4 adds the log-sum-exp
    return out.view(query.shape[0], query.shape[2], query.shape[1], -1), None


def _refuse(kernel: str, dropout: float, softcap: float | None) -> None:
    """Raise RecipeError for settings of a model that a kernel does not support."""
    if dropout or softcap is not None:
        setting = "attention_dropout" if dropout else "attn_logit_softcapping"
        raise RecipeError(f"{kernel} does not support this model's {setting}; use attention = 'sdpa'")


@dataclass(frozen=True)
class Kernel:
    """An attention function, the mask it takes, and its name in transformers' `AttentionInterface`.

    `mask(documents, window)` takes documents [rows, tokens] and a sliding window in tokens, None without one.
    """

    attend: Callable[..., tuple[Tensor, None]]
    mask: Callable[[Tensor, int | None], Any]
    # Must not contain the name of one of transformers' own kernels: it would then ask whether the model supports that.
    registered: str


KERNELS: dict[AttentionName, Kernel] = {
    "flex": Kernel(_flex, masks.blocks, "curate_blocks"),
    "sdpa": Kernel(_sdpa, masks.dense, "curate_matrix"),
    "flash": Kernel(_flash_attention, masks.lengths, "curate_cuts"),
    "varlen": Kernel(_varlen, masks.lengths, "curate_torch_cuts"),
}
