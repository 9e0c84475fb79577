"""Constrain an answer to a grammar: before each token, those that the grammar rules out get no probability.

llguidance, the optional package that does it, computes the allowed tokens from a grammar and the bytes of each token;
so any tokenizer works that can be written as a tokenizer.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curate.errors import CurateError, MissingExtra
from curate.tokenization.tokenizer import Tokenizer

BLANKS = r"[ \n]{0,64}"  # between the parts of JSON: unbounded, a small model may write nothing else
MAX_OBJECTS, MAX_LENGTH = 3_000, 2**18  # braces and characters of schemas: compiled in a second; 20,000 take eleven
_ERROR = "failed to compile JSON schema: "
Piece = str | int | Mapping[str, Any]  # a text, the id of a control token, or a JSON schema for a value


class GrammarError(CurateError):
    """A schema cannot be followed, or is too complex."""


class Constraint:
    """One answer's place in a grammar."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def mask(self, logits: Tensor) -> Tensor:
        """Return logits [vocabulary] in which tokens that may not come next are -inf; raises GrammarError."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        allowed = np.zeros(len(logits), dtype=np.bool_)
        known = np.unpackbits(bits, bitorder="little")[: len(logits)]  # padded to whole words
        allowed[: len(known)] = known
        return logits.masked_fill(~torch.from_numpy(allowed).to(logits.device), -torch.inf)

    def take(self, token: int) -> None:
        """Go on to the next token; raises GrammarError."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(_why(self._matcher.get_error()))


class Grammar:
    """What answers may be; several can begin in it at once."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def start(self) -> Constraint:
        """Return the place before the first token."""
        return Constraint(self._matcher.deep_copy())


class GrammarCompiler:
    """Makes grammars for one tokenizer; raises MissingExtra without llguidance. Takes up to a second."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Sequence[int], vocabulary: int) -> None:
        try:
            import llguidance
        except ImportError:
            raise MissingExtra("a grammar for answers", "structured") from None
        self._matcher = llguidance.LLMatcher
        size = max(vocabulary, tokenizer.info.vocab_size)
        stops = [token for token in stop_ids if 0 <= token < size]
        plain = llguidance.LLTokenizer(tokenizer.tokenizer_json(), n_vocab=size, eos_token=stops)
        wrapped = llguidance.TokenizerWrapper(_Vocabulary(tokenizer, plain, size))
        self._tokenizer = llguidance.LLTokenizer(wrapped, n_vocab=size, eos_token=stops)

    def compile(self, choices: Sequence[Sequence[Piece]]) -> Grammar:
        """Return the grammar of answers that are one of `choices`; raises GrammarError."""
        text = _write(choices)
        if text.count("{") > MAX_OBJECTS or len(text) > MAX_LENGTH:
            raise GrammarError(f"at most {MAX_OBJECTS:,} objects and {MAX_LENGTH:,} characters of schemas")
        matcher = self._matcher(self._tokenizer, text, log_level=0)
        if matcher.is_error():
            raise GrammarError(_why(matcher.get_error()))
        return Grammar(matcher)

    def pieces(self, ids: Sequence[int]) -> list[str | int]:
        """Return ids as texts and control tokens; raises GrammarError for half a character."""
        out: list[str | int] = []
        text: list[int] = []
        for token in [*ids, -1]:
            if token >= 0 and not self._tokenizer.is_special_token(token):
                text.append(token)
                continue
            out += [self._decode(text)] * bool(text)
            out += [token] * (token >= 0)
            text = []
        return out

    def _decode(self, ids: list[int]) -> str:
        try:
            return str(self._tokenizer.decode_bytes(ids), "utf-8")
        except UnicodeDecodeError:
            raise GrammarError("the template cuts a character") from None


class _Vocabulary:
    """The tokens as llguidance wants them. Control strings in a text are text here, as in training's prompts."""

    def __init__(self, tokenizer: Tokenizer, plain: Any, size: int) -> None:
        self._encode = tokenizer.encode_continuation
        self.bos_token_id, self.eos_token_id = tokenizer.info.bos_id, tokenizer.info.eos_id
        self.tokens = [bytes(plain.decode_bytes([token])) for token in range(size)]
        self.special_token_ids = [  # with the ids that the vocabulary lacks, which have a name in place of a text
            token
            for token, text in enumerate(self.tokens)
            if plain.is_special_token(token) or text == b"<[%d]>" % token
        ]

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise TypeError  # llguidance tries bytes first
        ids: list[int] = self._encode([text])[0].tolist()
        return ids


def _write(choices: Sequence[Sequence[Piece]]) -> str:
    """Return a grammar in llguidance's form of Lark."""
    rules = [f"start: {' | '.join(f'c{index}' for index in range(len(choices)))}"]
    for index, pieces in enumerate(choices):
        rules.append(f"c{index}: {' '.join(_term(piece, f'v{index}x{at}') for at, piece in enumerate(pieces))}")
        rules += [f"v{index}x{at}: {_schema(piece)}" for at, piece in enumerate(pieces) if isinstance(piece, Mapping)]
    return "\n".join(rules) + "\n"


def _term(piece: Piece, name: str) -> str:
    if isinstance(piece, int):
        return f"<[{piece}]>"
    return json.dumps(piece, ensure_ascii=False) if isinstance(piece, str) else name


def _schema(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": {"whitespace_pattern": BLANKS}})


def _why(error: str) -> str:
    """Return what is wrong, without the grammar that llguidance quotes."""
    text = error.partition(_ERROR)[2] or error
    return text.partition("\n")[0][:300]
