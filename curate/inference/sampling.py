"""Generate answers token by token, with temperature, top-k and top-p, until a stop token.

transformers' `generate` is not used. So a caller gets each token at once and can stop, a seed gives the same answer
whatever else draws random numbers, and a model's `generation_config.json` cannot change the settings.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curate.errors import RecipeError
from curate.model.attention import selection
from curate.tokenization.tokenizer import Tokenizer

UNFINISHED = "\ufffd"  # a decoder writes it for the first bytes of a character that the next token may complete


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, greedily by default."""

    temperature: float = 0.0  # 0 takes the most likely token
    top_p: float = 1.0  # choose among the most likely tokens whose probabilities sum to this; 1 is all
    top_k: int = 0  # choose among this many of the most likely tokens; 0 is all
    repetition: float = 1.0  # above 1, tokens that occurred before are less likely (CTRL, arXiv 1909.05858)
    frequency: float = 0.0  # taken from a token's logit for each time that the answer has it
    presence: float = 0.0  # taken from the logit of each token that the answer has
    bias: tuple[tuple[int, float], ...] = ()  # different ids, and what is added to the logit of each
    seed: int | None = None  # None draws from torch's own random state
    max_new_tokens: int = 256  # of an answer

    @property
    def reads_previous(self) -> bool:
        """Whether the earlier tokens change the choice of the next."""
        return self.repetition != 1.0 or bool(self.frequency or self.presence)

    def __post_init__(self) -> None:
        wrong = {
            "temperature": self.temperature < 0,
            "top_p": not 0 < self.top_p <= 1,
            "top_k": self.top_k < 0,
            "repetition": self.repetition <= 0,
            "frequency": not math.isfinite(self.frequency),
            "presence": not math.isfinite(self.presence),
            "bias": not _is_bias(self.bias),
            "max_new_tokens": self.max_new_tokens < 1,
        }
        for name, is_wrong in wrong.items():
            if is_wrong:
                raise RecipeError(f"{name} = {getattr(self, name)!r} is not allowed; {ALLOWED[name]}")


def _is_bias(bias: tuple[tuple[int, float], ...]) -> bool:
    """Return whether ids occur once and the values are finite."""
    return len(dict(bias)) == len(bias) and all(token >= 0 and math.isfinite(value) for token, value in bias)


ALLOWED = {
    "temperature": "give 0 (the most likely token) or more",
    "top_p": "give a number above 0, and 1 (all tokens) at most",
    "top_k": "give 0 (all tokens) or more",
    "repetition": "give a number above 0; 1 changes nothing",
    "frequency": "give a finite number; 0 changes nothing",
    "presence": "give a finite number; 0 changes nothing",
    "bias": "give different ids of tokens, each with a finite number",
    "max_new_tokens": "give 1 or more",
}
GREEDY = Sampling()
COLDEST = 1e-5  # below this temperature, fp32 cannot hold the quotients, and nothing is sampled


@dataclass(frozen=True)
class Answer:
    """A generated answer."""

    ids: tuple[int, ...]  # without the stop token
    text: str
    stopped: bool  # by a stop token, not by a limit


def next_token(
    logits: Tensor, previous: Tensor, sampling: Sampling, generator: torch.Generator | None, *, prompt: int = 0
) -> int:
    """Return the next token's id, chosen by `logits` [vocabulary].

    `previous` [tokens] are the ids so far; the first `prompt` of them are not the answer's.
    """
    logits = logits.float()
    if sampling.repetition != 1.0:
        # Dividing a positive logit and multiplying a negative one both lower it.
        repeated = logits[previous]  # [tokens]
        logits = logits.clone()
        logits[previous] = torch.where(repeated > 0, repeated / sampling.repetition, repeated * sampling.repetition)
    logits = _add_penalties(logits, previous[prompt:], sampling)
    if sampling.temperature < COLDEST:
        return int(logits.argmax())
    logits = logits / sampling.temperature
    if sampling.top_k:
        least = logits.topk(min(sampling.top_k, len(logits))).values[-1]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, tokens = logits.sort(descending=True)
        probabilities = ordered.softmax(dim=-1)
        # Drop a token if more likely ones already sum up to top_p; the most likely one always stays.
        drop = probabilities.cumsum(dim=-1) - probabilities >= sampling.top_p
        drop[0] = False  # a top_p that is 0 in fp32 would drop it
        logits = logits.index_fill(0, tokens[drop], -torch.inf)
    return int(torch.multinomial(logits.softmax(dim=-1), 1, generator=generator))


def _add_penalties(logits: Tensor, answer: Tensor, sampling: Sampling) -> Tensor:
    """Return the logits [vocabulary] with the penalties for the tokens of `answer` [tokens], and with the bias.

    The formula is that of OpenAI's reference: logit - count * frequency - (count > 0) * presence.
    """
    if (sampling.frequency or sampling.presence) and len(answer):
        tokens, counts = answer.unique(return_counts=True)
        logits = logits.index_add(0, tokens, -(counts * sampling.frequency + sampling.presence).to(logits.dtype))
    if sampling.bias:
        ids, values = zip(*sampling.bias, strict=True)
        logits = logits.index_add(0, torch.tensor(ids, device=logits.device), logits.new_tensor(values))
    return logits


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Use a model in training for inference: no dropout, no gradients, and no compiled layers, which fix shapes."""
    before = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.train(before)


def stream_tokens(
    model: nn.Module, prompt: Sequence[int], stop_ids: Sequence[int], sampling: Sampling = GREEDY, *, limit: int = 0
) -> Iterator[int]:
    """Yield the ids of an answer one by one, including the stop token that ends it.

    `model` is a causal model of transformers or peft whose attention supports a cache: for a model in training, use
    `plain_attention`. `limit` is the most tokens of prompt and answer together, 0 for no limit.
    """
    device = next(model.parameters()).device
    generator = token_generator(sampling, device)
    ids = torch.tensor([list(prompt)], dtype=torch.int64, device=device)
    room = sampling.max_new_tokens if not limit else min(sampling.max_new_tokens, limit - len(prompt))
    cache, previous = {cache_argument(model): new_cache(model)}, ids  # [1, tokens]
    for _ in range(room):
        with torch.no_grad():  # not around `yield`: it would last in the caller
            out = model(input_ids=ids, use_cache=True, logits_to_keep=1, **cache)
        token = next_token(out.logits[0, -1], previous[0], sampling, generator, prompt=len(prompt))
        yield token
        if token in stop_ids:
            return
        ids = torch.tensor([[token]], device=device)  # the cache has the earlier ones
        previous = torch.cat([previous, ids], dim=1)


def token_generator(sampling: Sampling, device: torch.device) -> torch.Generator | None:
    """Return the random numbers of one answer; None for torch's own, or where none are drawn."""
    if not sampling.temperature or sampling.seed is None:
        return None
    return torch.Generator(device=device).manual_seed(sampling.seed)


def cache_argument(model: nn.Module) -> str:
    """Return the name of the cache among the arguments of the model's forward, which transformers 5.24 renamed."""
    parameters = inspect.signature(selection.base_model(model).forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"


def new_cache(model: nn.Module) -> Any:
    """Return an empty cache for one row."""
    from transformers import DynamicCache

    return DynamicCache(config=selection.base_model(model).config)


class TextDecoder:
    """Decodes ids to text one by one; text is returned once no later id can change it.

    `lead` is removed from the start of the text. `context` are ids that the text continues: its first space stays.
    """

    def __init__(self, tokenizer: Tokenizer, lead: str = "", context: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.lead = lead
        self.ids: list[int] = list(context)
        self.returned = len(self.text) if context else 0  # characters returned so far, or of the context

    def add(self, token: int) -> str:
        """Return the text that this token completes, which may be empty."""
        self.ids.append(token)
        text = self.text
        if text.endswith(UNFINISHED):
            return ""
        return self._new_text(text)

    def finish(self) -> str:
        """Return the rest of the text, even if its last character is incomplete."""
        return self._new_text(self.text)

    @property
    def text(self) -> str:
        """All text so far, even if its last character is incomplete."""
        text = self.tokenizer.decode(self.ids)
        if UNFINISHED in text:
            text = self._replace_bytes(text)
        return text.removeprefix(self.lead) if self.lead else text

    def _replace_bytes(self, text: str) -> str:
        """Return the decoded `text` with one sign for each wrong or incomplete character.

        The decoder of SentencePiece's models takes all byte tokens in a row for wrong if one of them is.
        """
        table = self.tokenizer.token_bytes
        if table is None:
            return text
        data = (self._bytes(token, table) for token in self.ids)
        exact = b"".join(data).decode("utf-8", "replace")
        removed = _blanks(exact) - _blanks(text)  # the decoder may remove the first blank
        return exact[max(0, removed) :]

    def _bytes(self, token: int, table: Sequence[bytes]) -> bytes:
        return (table[token] if token < len(table) else b"") or self.tokenizer.decode([token]).encode()

    def _new_text(self, text: str) -> str:
        """Return what follows the text that was returned already."""
        new, self.returned = text[self.returned :], len(text)
        return new


def _blanks(text: str) -> int:
    return len(text) - len(text.lstrip(" "))


def generate_answer(
    model: nn.Module,
    prompt: Sequence[int],
    stop_ids: Sequence[int],
    tokenizer: Tokenizer,
    sampling: Sampling = GREEDY,
    *,
    lead: str = "",
    limit: int = 0,
) -> Answer:
    """Return the answer to a prompt, given as ids; `lead` is removed from the start of its text.

    `limit` is the most tokens of prompt and answer together, 0 for no limit.
    """
    ids = list(stream_tokens(model, prompt, stop_ids, sampling, limit=limit))
    stopped = bool(ids) and ids[-1] in stop_ids
    text = TextDecoder(tokenizer, lead)
    text.ids = ids[:-1] if stopped else ids
    return Answer(tuple(text.ids), text.text, stopped)
