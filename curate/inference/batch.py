"""Generate several answers at once: a request joins a running batch, and leaves it when it ends.

A prompt is computed by itself, exactly as `sampling.stream_tokens` does; then each step computes the next token of
every row. Rows of different lengths have padding on the left, which the attention mask hides. With one row there is no
padding and no mask, so the result is that of `stream_tokens`, bit for bit. With several, sums are rounded in another
order: logits differ in the last bits, and a greedy answer only where two tokens are as likely to within rounding.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curate.inference.grammar import Grammar, GrammarError
from curate.inference.sampling import Sampling, cache_argument, new_cache, next_token, token_generator
from curate.model.attention import selection

_LEAST = -9999.0  # a log-probability that JSON can hold, for a token that the model rules out


@dataclass(frozen=True)
class ScoredToken:
    """A generated token, with its log-probability (natural) and the most likely tokens with theirs, where asked for."""

    id: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Generation:
    """What to generate: the ids of a prompt, how tokens are chosen, and how many likely tokens are scored."""

    prompt: tuple[int, ...]
    sampling: Sampling
    top_logprobs: int | None = None  # None scores nothing
    grammar: Grammar | None = None  # what the answer may be


class Row:
    """An answer that is being generated; compared by identity."""

    def __init__(self, generation: Generation, device: torch.device) -> None:
        self.generation = generation
        self.length = len(generation.prompt)  # tokens in the cache
        self.last = 0  # the newest token, which is not in the cache yet
        self._generator = token_generator(generation.sampling, device)
        self._previous = torch.tensor(generation.prompt, dtype=torch.int64, device=device)  # [tokens]
        self._constraint = generation.grammar.start() if generation.grammar else None

    def choose(self, logits: Tensor) -> ScoredToken:
        """Choose the next token by its logits [vocabulary]; raises GrammarError."""
        sampling, count = self.generation.sampling, self.generation.top_logprobs
        allowed = self._constraint.mask(logits) if self._constraint else logits
        self.last = next_token(allowed, self._previous, sampling, self._generator, prompt=len(self.generation.prompt))
        if self._constraint:
            self._constraint.take(self.last)
        if sampling.reads_previous:  # nothing else reads the earlier tokens
            self._previous = torch.cat([self._previous, self._previous.new_tensor([self.last])])
        return ScoredToken(self.last) if count is None else _score(logits, self.last, count)


def _chosen(row: Row, logits: Tensor) -> ScoredToken | GrammarError:
    try:
        return row.choose(logits)
    except GrammarError as error:
        return error


def _score(logits: Tensor, token: int, count: int) -> ScoredToken:
    """Return a token with its log-probability by the model itself, before temperature and other settings."""
    scores = logits.float().log_softmax(dim=-1).clamp(min=_LEAST)  # [vocabulary]
    values, tokens = scores.topk(min(count, len(scores)))
    return ScoredToken(token, float(scores[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))


class Batch:
    """Answers of one model that are generated together; not safe for several threads."""

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self.device = next(model.parameters()).device
        self.shares = can_batch(model)  # whether it may have several rows
        self.rows: list[Row] = []  # in the order of the cache
        self._argument = cache_argument(model)
        self._cache: Any = None  # of transformers, with keys and values [rows, heads, tokens, size] for each layer
        self._joining: list[tuple[Row, Any]] = []  # with their own caches
        self._leaving: set[Row] = set()

    @property
    def is_empty(self) -> bool:
        """Whether no answer is being generated."""
        return not self._joining and not set(self.rows) - self._leaving

    def join(self, generation: Generation) -> tuple[Row, ScoredToken]:
        """Compute a prompt, and return the new row and its first token."""
        row = Row(generation, self.device)
        cache = _empty_cache() if self.shares else new_cache(self.model)
        ids = torch.tensor([generation.prompt], dtype=torch.int64, device=self.device)
        logits = self._forward(cache, input_ids=ids)
        token = row.choose(logits[0])
        self._joining.append((row, cache))  # not before: a row that fails has no place
        return row, token

    def leave(self, row: Row) -> None:
        """Take a row out."""
        before = len(self._joining)
        self._joining = [joining for joining in self._joining if joining[0] is not row]
        if len(self._joining) == before:
            self._leaving.add(row)

    def step(self) -> list[tuple[Row, ScoredToken | GrammarError]]:
        """Return one more token for each row, or why its grammar has none; the other rows are unaffected."""
        self._rearrange()
        if not self.rows:
            return []
        ids = torch.tensor([[row.last] for row in self.rows], dtype=torch.int64, device=self.device)
        logits = self._forward(self._cache, input_ids=ids, **self._padding())  # [rows, vocabulary]
        for row in self.rows:
            row.length += 1
        return [(row, _chosen(row, scores)) for row, scores in zip(self.rows, logits, strict=True)]

    def clear(self) -> None:
        """Take all rows out, after an error in a step."""
        self.rows, self._cache, self._joining, self._leaving = [], None, [], set()

    def _forward(self, cache: Any, **inputs: Tensor) -> Tensor:
        """Return the logits of the last position, [rows, vocabulary]."""
        with torch.no_grad():
            out = self.model(**inputs, use_cache=True, logits_to_keep=1, **{self._argument: cache})
        logits: Tensor = out.logits[:, -1]
        return logits

    def _padding(self) -> dict[str, Tensor]:
        """Return mask and positions of the next token of each row; nothing where no row has padding."""
        lengths = torch.tensor([row.length for row in self.rows], device=self.device)  # [rows]
        longest = max(row.length for row in self.rows)
        if all(row.length == longest for row in self.rows):
            return {}
        columns = torch.arange(longest + 1, device=self.device)  # with the new token
        mask = (columns >= (longest - lengths)[:, None]).long()  # [rows, tokens]
        return {"attention_mask": mask, "position_ids": lengths[:, None]}

    def _rearrange(self) -> None:
        """Take the rows that left out of the cache, and put those that joined into it."""
        if not self._joining and not self._leaving:
            return
        keep = [index for index, row in enumerate(self.rows) if row not in self._leaving]
        rows = [self.rows[index] for index in keep]
        caches = [self._cache] if rows else []
        if rows and len(keep) < len(self.rows):
            _select(self._cache, keep, max(row.length for row in rows))
        for row, cache in self._joining:
            rows.append(row)
            caches.append(cache)
        self.rows, self._joining, self._leaving = rows, [], set()
        self._cache = _merge(caches) if caches else None


def can_batch(model: nn.Module) -> bool:
    """Return whether the cache of a model is keys and values alone, which rows of any lengths can share."""
    from transformers import DynamicCache

    config = selection.base_model(model).config
    kinds = {type(layer).__name__ for layer in DynamicCache(config=config).layers}
    text = config.get_text_config()
    chunked = "chunked_attention" in (getattr(text, "layer_types", None) or ())
    shared = getattr(text, "num_kv_shared_layers", 0)  # layers without keys of their own
    return kinds <= {"DynamicLayer", "DynamicSlidingWindowLayer"} and not chunked and not shared


def _empty_cache() -> Any:
    """Return a cache that keeps all positions, also of layers with a sliding window: their mask hides earlier ones."""
    from transformers import DynamicCache

    return DynamicCache()


def _select(cache: Any, rows: Sequence[int], tokens: int) -> None:
    """Keep only some rows of a cache, and the last positions of them."""
    for layer in cache.layers:
        kept = torch.tensor(rows, device=layer.keys.device)
        layer.keys = layer.keys[kept, :, -tokens:]
        layer.values = layer.values[kept, :, -tokens:]


def _merge(caches: Collection[Any]) -> Any:
    """Return one cache with the rows of several, which are padded on the left to one length."""
    if len(caches) == 1:
        return next(iter(caches))
    longest = max(cache.get_seq_length() for cache in caches)
    merged = _empty_cache()
    for index, layers in enumerate(zip(*(cache.layers for cache in caches), strict=True)):
        keys = torch.cat([_pad(layer.keys, longest) for layer in layers])
        merged.update(keys, torch.cat([_pad(layer.values, longest) for layer in layers]), index)
    return merged


def _pad(states: Tensor, tokens: int) -> Tensor:
    """Pad keys or values [rows, heads, tokens, size] on the left with zeros."""
    return nn.functional.pad(states, (0, 0, tokens - states.shape[2], 0))
