"""Answers, one token at a time: the next token by temperature, top-k and top-p, until a stop token.

A loop of our own over the model's cache rather than transformers' `generate`: a caller sees each token as it
comes and can stop, a seed gives the same answer whatever else used the random state, and a folder's own
`generation_config.json` cannot change what was asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curate.errors import RecipeError
from curate.model.attention import choose
from curate.tokenization.tokenizer import Tokenizer

UNFINISHED = "\ufffd"  # what a decoder writes for bytes that the next token may complete


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 takes the likeliest; `top_k` 0 and `top_p` 1 leave all in.

    `repetition` above 1 makes tokens that were there already less likely (CTRL, arXiv 1909.05858).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition: float = 1.0
    seed: int | None = None
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        wrong = {
            "temperature": self.temperature < 0,
            "top_p": not 0 < self.top_p <= 1,
            "top_k": self.top_k < 0,
            "repetition": self.repetition <= 0,
            "max_new_tokens": self.max_new_tokens < 1,
        }
        for name, is_wrong in wrong.items():
            if is_wrong:
                raise RecipeError(f"{name} = {getattr(self, name)!r} is not allowed; {ALLOWED[name]}")


ALLOWED = {
    "temperature": "it is 0 (the likeliest token) or more",
    "top_p": "it is above 0, and 1 at most",
    "top_k": "it is 0 (all tokens) or more",
    "repetition": "it is above 0; 1 changes nothing",
    "max_new_tokens": "it is 1 or more",
}
GREEDY = Sampling()


@dataclass(frozen=True)
class Answer:
    """What a model said: its ids without the stop token, as text, and whether it stopped by itself."""

    ids: tuple[int, ...]
    text: str
    stopped: bool


def next_token(logits: Tensor, seen: Tensor, sampling: Sampling, generator: torch.Generator | None) -> int:
    """Choose a token by fp32 logits [vocabulary]; `seen` are the ids so far."""
    logits = logits.float()
    if sampling.repetition != 1.0:
        picked = logits[seen]
        logits = logits.clone()
        logits[seen] = torch.where(picked > 0, picked / sampling.repetition, picked * sampling.repetition)
    if sampling.temperature == 0:
        return int(logits.argmax())
    logits = logits / sampling.temperature
    if sampling.top_k:
        least = logits.topk(min(sampling.top_k, len(logits))).values[-1]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, places = logits.sort(descending=True)
        shares = ordered.softmax(dim=-1)
        # A token goes where those before it already hold top_p; the likeliest has none before it and stays.
        drop = shares.cumsum(dim=-1) - shares >= sampling.top_p
        logits = logits.index_fill(0, places[drop], -torch.inf)
    return int(torch.multinomial(logits.softmax(dim=-1), 1, generator=generator))


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Put a model out of training for a while: no dropout, no gradients, none of its compiled layers' fixed shapes."""
    before = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.train(before)


def stream(
    model: nn.Module, prompt: Sequence[int], stop_ids: Sequence[int], sampling: Sampling = GREEDY, *, limit: int = 0
) -> Iterator[int]:
    """Yield the answer's ids as they are chosen, the stop token last, if it comes.

    model: transformers' or peft's causal model, with an attention that keeps a cache (`attention.plain`).
    `limit` is the most tokens that prompt and answer may have together, 0 for no limit.
    """
    device = next(model.parameters()).device
    generator = None
    if sampling.temperature and sampling.seed is not None:
        generator = torch.Generator(device=device).manual_seed(sampling.seed)
    ids = torch.tensor([list(prompt)], dtype=torch.int64, device=device)
    room = sampling.max_new_tokens if not limit else min(sampling.max_new_tokens, limit - len(prompt))
    cache, seen = _cache(model), ids
    for _ in range(room):
        with torch.no_grad():  # within the loop: a caller between two tokens is not ours to hold
            out = model(input_ids=ids, use_cache=True, logits_to_keep=1, **cache)
        token = next_token(out.logits[0, -1], seen[0], sampling, generator)
        yield token
        if token in stop_ids:
            return
        ids = torch.tensor([[token]], device=device)
        seen = torch.cat([seen, ids], dim=1)


def _cache(model: nn.Module) -> dict[str, Any]:
    """Return an empty cache under the name that the model's forward takes it by: transformers 5.24 renamed it."""
    from transformers import DynamicCache

    whole = choose.base(model)
    named = inspect.signature(whole.forward).parameters
    return {"cache" if "cache" in named else "past_key_values": DynamicCache(config=whole.config)}


class Text:
    """Turns ids into text as they come: what cannot change any more is given out, `lead` at its start is not."""

    def __init__(self, tokenizer: Tokenizer, lead: str = "") -> None:
        self.tokenizer = tokenizer
        self.lead = lead
        self.ids: list[int] = []
        self.given = 0

    def add(self, token: int) -> str:
        """Return the text that this token completes, perhaps none."""
        self.ids.append(token)
        text = self.text
        if text.endswith(UNFINISHED):
            return ""
        return self._rest(text)

    def finish(self) -> str:
        """Return what is left, whether or not its last character is whole."""
        return self._rest(self.text)

    @property
    def text(self) -> str:
        """All of the text so far."""
        return self.tokenizer.decode(self.ids).removeprefix(self.lead) if self.lead else self.tokenizer.decode(self.ids)

    def _rest(self, text: str) -> str:
        new, self.given = text[self.given :], len(text)
        return new


def answer(
    model: nn.Module,
    prompt: Sequence[int],
    stop_ids: Sequence[int],
    tokenizer: Tokenizer,
    sampling: Sampling = GREEDY,
    *,
    lead: str = "",
    limit: int = 0,
) -> Answer:
    """Return the whole answer to a prompt."""
    ids = list(stream(model, prompt, stop_ids, sampling, limit=limit))
    stopped = bool(ids) and ids[-1] in stop_ids
    said = ids[:-1] if stopped else ids
    text = Text(tokenizer, lead)
    text.ids = said
    return Answer(tuple(said), text.text, stopped)
