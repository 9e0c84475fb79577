"""The tokenizer in a GGUF file, as files that tokenizers are read from.

`llama` vocabularies become the SentencePiece model that they were, so that sentencepiece is the reference as for every
other; `gpt2` vocabularies a tokenizer.json. How these split a text before merging is only named in the file
(`tokenizer.ggml.pre`), so that a name which is not listed here is refused instead of guessed.
"""

from __future__ import annotations

import importlib
import json
from typing import Any

from curate.errors import TokenizerError
from curate.model.gguf.header import Header
from curate.tokenization.vocabulary import (
    BYTE,
    CONTROL,
    LLAMA3_PATTERN,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    added_token,
    bpe_model,
    byte_level,
    post_processor,
    split,
)

# Qwen2's tokenizer.json.
_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}  # …_token_id
_STOPS = ("eos", "eot", "eom")  # …_token_id
TYPES = frozenset(range(1, 7))  # of tokens: normal, unknown, control, user-defined, unused, byte


def tokenizer_files(header: Header) -> dict[str, bytes]:
    """Return the vocabulary file and its contents, by name; raises TokenizerError for a kind that is not known."""
    vocabulary = _Vocabulary(header)
    match vocabulary.setting("model", ""):
        case "llama":
            return {"tokenizer.model": vocabulary.sentencepiece()}
        case "gpt2":
            return {"tokenizer.json": vocabulary.byte_level()}
        case kind:
            raise _unknown(header, f"the vocabulary kind {str(kind)[:40]!r}")


def tokenizer_config(header: Header, window: int) -> dict[str, Any]:
    """Return tokenizer_config.json: the special tokens, the chat template; `window` is the model's, in tokens."""
    tokens, template = header.metadata.get("tokenizer.ggml.tokens"), header.metadata.get("tokenizer.chat_template")
    names = {
        key: _token(tokens, header.metadata.get(f"tokenizer.ggml.{key_id}_token_id"))
        for key, key_id in _SPECIAL.items()
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": window,
        **{key: name for key, name in names.items() if name is not None},
        **({"chat_template": template} if isinstance(template, str) else {}),
    }


def generation_config(header: Header) -> dict[str, Any]:
    """Return generation_config.json: the tokens that end an answer."""
    ids = [header.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in _STOPS]
    stops = list(dict.fromkeys(token for token in ids if isinstance(token, int)))
    return {"eos_token_id": stops} if stops else {}


def _token(tokens: object, number: object) -> str | None:
    if isinstance(tokens, list) and isinstance(number, int) and 0 <= number < len(tokens):
        return str(tokens[number])
    return None


def _unknown(header: Header, what: str) -> TokenizerError:
    return TokenizerError(
        f"{str(header.path)!r} has {what}, which curate does not read from GGUF; give the tokenizer of the model that "
        "it was converted from: --tokenizer FOLDER"
    )


class _Vocabulary:
    """The settings of a tokenizer, checked for their types."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.tokens = self.items("tokens", str)
        self.types = self.items("token_type", int) or [NORMAL] * len(self.tokens)
        if not self.tokens or len(self.types) != len(self.tokens):
            raise _unknown(header, f"{len(self.tokens):,} tokens with {len(self.types):,} types")
        if not set(self.types) <= TYPES:
            raise _unknown(header, f"tokens of type {min(set(self.types) - TYPES)}")

    def setting(self, name: str, default: Any) -> Any:
        return self.header.metadata.get(f"tokenizer.ggml.{name}", default)

    def items(self, name: str, kind: type) -> list[Any]:
        values = self.setting(name, [])
        if not isinstance(values, list) or (values and not isinstance(values[0], kind)):
            raise _unknown(self.header, f"a tokenizer.ggml.{name} of another type")
        return values

    def named(self, name: str) -> str | None:
        return _token(self.tokens, self.setting(f"{name}_token_id", None))

    def sentencepiece(self) -> bytes:
        """Return the SentencePiece model (sentencepiece_model.proto); llama.cpp keeps its pieces, types and flags."""
        scores = self.items("scores", float)
        if len(scores) != len(self.tokens):
            raise _unknown(self.header, f"{len(self.tokens):,} tokens with {len(scores):,} scores")
        model = importlib.import_module("sentencepiece.sentencepiece_model_pb2").ModelProto()
        for token, score, kind in zip(self.tokens, scores, self.types, strict=True):
            model.pieces.add(piece=token, score=score, type=kind)
        trainer, normalizer = model.trainer_spec, model.normalizer_spec
        trainer.model_type = trainer.BPE
        trainer.vocab_size = len(self.tokens)
        trainer.byte_fallback = BYTE in self.types
        for field in ("unk", "bos", "eos"):
            token = self.named("unknown" if field == "unk" else field)
            setattr(trainer, f"{field}_piece", token or f"<no {field}>")
        if UNKNOWN not in self.types:
            raise _unknown(self.header, "no unknown token")
        normalizer.name = "identity"
        normalizer.add_dummy_prefix = bool(self.setting("add_space_prefix", True))
        normalizer.remove_extra_whitespaces = bool(self.setting("remove_extra_whitespaces", False))
        data: bytes = model.SerializeToString()
        return data

    def byte_level(self) -> bytes:
        """Return the tokenizer.json of a byte-level BPE vocabulary."""
        normalizer, steps, ignore_merges = self._splitting()
        bos = self.named("bos") if self.setting("add_bos_token", False) else None
        vocab = {token: number for number, token in enumerate(self.tokens)}
        document = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": self._added(),
            "normalizer": normalizer,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
            "post_processor": post_processor(bos, self.setting("bos_token_id", None)),
            "decoder": byte_level(use_regex=True),
            "model": bpe_model(vocab, self.items("merges", str), ignore_merges=ignore_merges),
        }
        return json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")

    def _splitting(self) -> tuple[object, list[dict[str, object]], bool]:
        """Return the normalizer, the pre-tokenizers, and whether whole words are looked up before merging."""
        match self.setting("pre", "no name"):
            case "llama3" | "llama-v3" | "llama-bpe":
                return None, [split(LLAMA3_PATTERN), byte_level(use_regex=False)], True
            case "qwen2":
                return {"type": "NFC"}, [split(_QWEN2_PATTERN), byte_level(use_regex=False)], False
            case "smollm":  # the SmolLM models: each digit alone
                return None, [{"type": "Digits", "individual_digits": True}, byte_level(use_regex=True)], False
            case "gpt-2":
                return None, [byte_level(use_regex=True)], False
            case name:
                raise _unknown(self.header, f"{str(name)[:40]!r} for splitting texts into words")

    def _added(self) -> list[dict[str, object]]:
        return [
            added_token(number, token, special=kind != USER_DEFINED)
            for number, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ]
