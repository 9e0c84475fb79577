"""Read vocabulary files of three formats, recognised by content, and build the tokenizer.json for them.

The formats are SentencePiece models (LLaMA-1 and 2, Code Llama, Mistral), tiktoken ranks (LLaMA-3) and Hugging Face's
tokenizer.json. For the first two, the reference is the library that the model was made with, and tokenizer.json is
built here from scores or ranks.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from curate.errors import TokenizerError
from curate.tokenization.token_bytes import byte_characters

Kind = Literal["sentencepiece", "tiktoken", "json"]
Encode = Callable[[str], list[int]]

# LLaMA-3's split pattern and its control tokens, in order of id above the ranks, from Meta's llama-models.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
LLAMA3_CONTROLS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
    *(f"<|reserved_special_token_{n}|>" for n in range(2, 246)),  # 256 in all
)
LLAMA4_RANKS = 200_000  # LLaMA-4's file has the same format, but another split pattern

# Types of SentencePiece pieces (sentencepiece_model.proto).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_BPE = 2  # TrainerSpec.ModelType
# tiktoken's regex engine runs out of stack on long white space: at 1,000,000 characters, but not at 100,000.
_LONG_WHITESPACE = re.compile(r"\s{100001}")
# Added tokens that are control tokens even if they are not flagged as special.
_CONTROL_NAME = re.compile(r"<\|[^|\s]+\|>|</?s>|<(?:unk|pad|bos|eos)>")


@dataclass(frozen=True)
class Vocabulary:
    """One vocabulary file. `symbols` are texts that become one token before any merge."""

    kind: Kind
    size: int  # one more than the largest id
    controls: dict[str, int]  # ids of control tokens by name
    bos: str | None
    eos: str | None
    build: Callable[[], str] = field(repr=False)  # returns tokenizer.json
    open_reference: Callable[[], Encode] = field(repr=False)
    symbols: tuple[str, ...] = ()

    @cached_property
    def reference(self) -> Encode:
        """The encoder that all others are compared with."""
        return self.open_reference()


def read(data: bytes, name: str) -> Vocabulary:
    """Read a vocabulary file; raises TokenizerError, with its `name`, if the format is unknown."""
    if data.startswith(b"version https://git-lfs"):
        raise TokenizerError(f"{name!r} is a Git LFS pointer, not the file itself; type: git lfs pull")
    if data.lstrip()[:1] == b"{":
        return _json(data, name)
    if re.match(rb"[A-Za-z0-9+/=]+ \d+\r?\n", data):
        return _tiktoken(data, name)
    model = _proto(data)
    if model is None:
        raise TokenizerError(
            f"{name!r} is not a vocabulary: neither a SentencePiece model, nor tiktoken ranks, nor a tokenizer.json"
        )
    return _sentencepiece(model, data, name)


def added_token(token: int, content: str, *, special: bool = True) -> dict[str, object]:
    """Return an entry of `added_tokens`; `special` is true for a control token."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token, "content": content, **flags, "special": special}


def post_processor(bos: str | None, token: int | None) -> dict[str, object] | None:
    """Return the step that puts BOS first if a server asks for special tokens; None without BOS."""
    if bos is None or token is None:
        return None
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    single, second = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [first, single],
        "pair": [first, single, {"SpecialToken": {"id": bos, "type_id": 1}}, second],
        "special_tokens": {bos: {"id": bos, "ids": [token], "tokens": [bos]}},
    }


def bpe_model(
    vocab: Mapping[str, int],
    merges: Sequence[object],
    *,
    unk_token: str | None = None,
    fuse_unk: bool = False,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> dict[str, object]:
    """Return the `model` of a tokenizer.json by byte-pair merging."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk_token,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": fuse_unk,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": vocab,
        "merges": merges,
    }


def split(pattern: str) -> dict[str, object]:
    """Return the pre-tokenizer that makes each match of a pattern a word."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def byte_level(*, use_regex: bool) -> dict[str, object]:
    """Return the step that writes bytes as characters; `use_regex` splits into words as GPT-2 does."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _dump(bos: tuple[str | None, int | None], **parts: object) -> str:
    """Return tokenizer.json as text, given BOS (name and id) and the parts that differ."""
    document = {"version": "1.0", "truncation": None, "padding": None, "post_processor": post_processor(*bos), **parts}
    return json.dumps(document, ensure_ascii=False)


# ---- SentencePiece


def _proto(data: bytes) -> Any | None:
    """Return a SentencePiece model as its protocol buffer; None if the bytes are something else."""
    proto: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    problem: type[Exception] = importlib.import_module("google.protobuf.message").DecodeError
    try:
        model = proto.ModelProto.FromString(data)
    except problem:
        return None
    return model if len(model.pieces) else None


def _sentencepiece(model: Any, data: bytes, name: str) -> Vocabulary:
    if model.trainer_spec.model_type != _BPE:
        raise TokenizerError(f"{name!r} is a SentencePiece model, but not of type BPE, as LLaMA's are")
    pieces = [(piece.piece, piece.score, piece.type) for piece in model.pieces]
    controls = {text: token for token, (text, _, kind) in enumerate(pieces) if kind in (UNKNOWN, CONTROL)}

    def reference() -> Encode:
        from sentencepiece import SentencePieceProcessor

        processor: Any = SentencePieceProcessor(model_proto=data)
        return lambda text: list(processor.encode(text))

    spec = model.trainer_spec
    bos, eos = (text if text in controls else None for text in (spec.bos_piece, spec.eos_piece))
    return Vocabulary(
        kind="sentencepiece",
        size=len(pieces),
        controls=controls,
        bos=bos,
        eos=eos,
        build=lambda: _sentencepiece_json(pieces, controls, bos, spec, model.normalizer_spec),
        open_reference=reference,
        symbols=tuple(text for text, _, kind in pieces if kind in (USER_DEFINED, UNUSED)),
    )


def _score_merges(pieces: list[tuple[str, float, int]]) -> list[str]:
    """Return every pair of tokens that joins to a token, best score first (61,249 pairs for LLaMA-2)."""
    tokens = {text for text, _, kind in pieces if kind == NORMAL}
    merges = [
        (-score, f"{text[:cut]} {text[cut:]}")
        for text, score, kind in pieces
        if kind == NORMAL
        for cut in range(1, len(text))
        if text[:cut] in tokens and text[cut:] in tokens
    ]
    merges.sort(key=lambda merge: merge[0])
    return [pair for _, pair in merges]


def _sentencepiece_json(
    pieces: list[tuple[str, float, int]], controls: dict[str, int], bos: str | None, trainer: Any, normalizer: Any
) -> str:
    """Write a SentencePiece BPE model as tokenizer.json: spaces become `▁`, and no text is split beforehand."""
    steps: list[dict[str, object]] = []
    if normalizer.precompiled_charsmap:
        charsmap = base64.b64encode(normalizer.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if normalizer.remove_extra_whitespaces:
        for pattern, content in ((r"\A +| +\z", ""), (" {2,}", " ")):
            steps.append({"type": "Replace", "pattern": {"Regex": pattern}, "content": content})
    decoders: list[dict[str, object]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if normalizer.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": "▁"})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
    added = [added_token(token, text) for text, token in controls.items()]
    added += [added_token(i, text, special=False) for i, (text, _, kind) in enumerate(pieces) if kind == USER_DEFINED]
    bpe = bpe_model(
        {text: token for token, (text, _, _) in enumerate(pieces)},
        _score_merges(pieces),
        unk_token=next((text for text, _, kind in pieces if kind == UNKNOWN), None),
        fuse_unk=True,
        byte_fallback=bool(trainer.byte_fallback),
    )
    return _dump(
        (bos, controls.get(bos or "")),
        added_tokens=sorted(added, key=lambda entry: str(entry["id"]).zfill(9)),
        normalizer={"type": "Sequence", "normalizers": steps},
        pre_tokenizer=None,
        decoder={"type": "Sequence", "decoders": decoders},
        model=bpe,
    )


# ---- tiktoken


def _tiktoken(data: bytes, name: str) -> Vocabulary:
    try:
        lines = (line.split() for line in data.splitlines() if line)
        ranks = {binascii.a2b_base64(token): int(rank) for token, rank in lines}
    except (ValueError, binascii.Error):
        raise TokenizerError(f"{name!r} begins like a tiktoken file, but not every line is `token rank`") from None
    if len(ranks) == LLAMA4_RANKS:
        raise TokenizerError(f"{name!r} has {LLAMA4_RANKS:,} ranks, as LLaMA-4's has; give its tokenizer.json instead")
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise TokenizerError(
            f"{name!r} has {len(ranks):,} tokens but ranks up to {max(ranks.values()):,}: it is damaged"
        )
    if missing := [byte for byte in range(256) if bytes((byte,)) not in ranks]:
        raise TokenizerError(f"{name!r} has no token for the byte {missing[0]:#04x}: it is damaged")
    controls = {token: len(ranks) + i for i, token in enumerate(LLAMA3_CONTROLS)}

    def build() -> str:
        return _tiktoken_json(ranks, controls)

    def reference() -> Encode:
        import tiktoken

        encoding = tiktoken.Encoding(name, pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens=controls)

        def encode(text: str) -> list[int]:
            return (
                hugging_face_encoder(build())(text) if _LONG_WHITESPACE.search(text) else encoding.encode_ordinary(text)
            )

        return encode

    return Vocabulary(
        kind="tiktoken",
        size=len(ranks) + len(controls),
        controls=controls,
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        build=build,
        open_reference=reference,
    )


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """Return the two halves that byte-pair merging by rank joins last to form a token; None if it cannot form it.

    One pair for each token is enough: the merges inside a token happen in the same order in any text, as none of them
    crosses its ends. Tokens that no merges form (844 of LLaMA-3's) are looked up as they are (`ignore_merges`).
    """
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        candidates = [(ranks.get(parts[i] + parts[i + 1], -1), i) for i in range(len(parts) - 1)]
        best = min((candidate for candidate in candidates if candidate[0] >= 0), default=None)
        if best is None:
            return None
        i = best[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None


def _tiktoken_json(ranks: dict[bytes, int], controls: dict[str, int]) -> str:
    """Write tiktoken's ranks as tokenizer.json: LLaMA-3's split pattern, then byte-level BPE."""
    table = str.maketrans({chr(byte): character for byte, character in enumerate(byte_characters())})
    names = {token: token.decode("latin-1").translate(table) for token in ranks}
    pairs = (_last_merge(token, ranks) for token in sorted(ranks, key=ranks.__getitem__))
    # As text rather than pairs, which fastokens loads in two thirds of the time.
    merges = [f"{names[pair[0]]} {names[pair[1]]}" for pair in pairs if pair]
    steps = [split(LLAMA3_PATTERN), byte_level(use_regex=False)]
    return _dump(
        ("<|begin_of_text|>", controls["<|begin_of_text|>"]),
        added_tokens=[added_token(token, text) for text, token in controls.items()],
        normalizer=None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": steps},
        decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        model=bpe_model({names[token]: rank for token, rank in ranks.items()}, merges, ignore_merges=True),
    )


# ---- tokenizer.json


def hugging_face_encoder(document: str) -> Encode:
    """Return an encoder of the `tokenizers` library that treats control strings in a text as text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(document)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def _not_a_vocabulary(name: str, reason: str) -> TokenizerError:
    return TokenizerError(f"{name!r} is JSON, but not a tokenizer.json with a vocabulary: {reason}")


def _json(data: bytes, name: str) -> Vocabulary:
    from curate.tokenization.json_document import count_entries  # late: training needs no msgspec

    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise _not_a_vocabulary(name, "it cannot be parsed") from None
    try:
        largest = count_entries(document) - 1
    except (ValueError, RecursionError) as error:
        raise _not_a_vocabulary(name, str(error)) from None
    added = document.get("added_tokens") or []
    for entry in added:
        entry["special"] = bool(entry.get("special")) or bool(_CONTROL_NAME.fullmatch(entry["content"]))
    controls = {entry["content"]: entry["id"] for entry in added if entry["special"]}
    size = 1 + max([largest, *(entry["id"] for entry in added)])
    text = json.dumps(document, ensure_ascii=False)

    def reference() -> Encode:
        try:
            return hugging_face_encoder(text)
        except Exception as error:  # the library raises plain Exception for what it cannot read
            raise TokenizerError(f"{name!r} cannot be read by the tokenizers library: {error}") from None

    bos = next((token for token in ("<s>", "<|begin_of_text|>", "<bos>") if token in controls), None)
    ends = ("</s>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>", "<|endoftext|>", "<eos>")
    eos = next((token for token in ends if token in controls), None)
    return Vocabulary("json", size, controls, bos, eos, lambda: text, reference)


def match_any(texts: Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern that matches any of these texts, or None if there are none."""
    longest_first = sorted({text for text in texts if text}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
