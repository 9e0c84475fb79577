"""Small tokenizers in three formats, trained on demand, so that tests need no released one."""

from __future__ import annotations

import base64
import io
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import sentencepiece

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "def main():\n    for i in range(10):\n        print(i, i * i)",
    "USER: what is the time? ASSISTANT: It is half past nine.",
    "She said: the answer is forty-two; then they went home. Nothing more was said.",
    "안녕하세요 세계, 오늘은 날씨가 좋습니다.",
    "你好，世界！今天天气很好。我们去公园吧。",
    "Привет, мир! Как дела сегодня?",
    "a  b   c    d        e",
]
MARKUP = "x < y > z / | _ <div>"  # characters of control strings, which LLaMA-2's model has too


@cache
def sentencepiece_model(
    pieces: int = 420,
    *,
    symbols: str = "",
    byte_fallback: bool = True,
    markup: bool = True,
    normalization: str = "identity",
    folds: bool = False,
    lines: bool = True,
) -> bytes:
    """Return a SentencePiece BPE model with LLaMA-2's settings; with `lines`, pieces may hold line breaks."""
    sentences = SENTENCES if lines else [text.replace("\n", " ") for text in SENTENCES]
    out = io.BytesIO()
    trainer: Any = sentencepiece.SentencePieceTrainer
    trainer.train(
        sentence_iterator=iter([*sentences, MARKUP if markup else "x"] * 5),
        model_writer=out,
        model_type="bpe",
        vocab_size=pieces if byte_fallback else pieces - 256,
        byte_fallback=byte_fallback,
        normalization_rule_name=normalization,
        remove_extra_whitespaces=folds,
        allow_whitespace_only_pieces=not folds,
        split_digits=True,
        character_coverage=1.0,
        user_defined_symbols=symbols,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return out.getvalue()


@cache
def tiktoken_file(merges: int = 200) -> bytes:
    """Return a tiktoken file: the 256 bytes, then pairs merged by how often they occur."""
    frequencies = Counter(
        tuple(bytes([byte]) for byte in word.encode()) for text in SENTENCES for word in text.split(" ")
    )
    ranks = [bytes([byte]) for byte in range(256)]
    for _ in range(merges):
        pairs = Counter[tuple[bytes, bytes]]()
        for word, count in frequencies.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        first, second = max(pairs, key=lambda pair: (pairs[pair], pair))
        ranks.append(first + second)
        frequencies = Counter({_merged(word, first, second): count for word, count in frequencies.items()})
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(dict.fromkeys(ranks)))
    return "".join(lines).encode()


def double_newline_tiktoken() -> bytes:
    """Return a tiktoken file in which two line breaks are one token, as in LLaMA-3's."""
    plain = tiktoken_file()
    return plain + b"%s %d\n" % (base64.b64encode(b"\n\n"), len(plain.splitlines()))


def _merged(word: tuple[bytes, ...], first: bytes, second: bytes) -> tuple[bytes, ...]:
    out: list[bytes] = []
    for symbol in word:
        if out and out[-1] == first and symbol == second:
            out[-1] = first + second
        else:
            out.append(symbol)
    return tuple(out)


def folder(root: Path, **files: bytes | str) -> Path:
    """Write files into a new folder, `tokenizer_model=…` as `tokenizer.model` and so on."""
    root.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        at, _, suffix = name.rpartition("_")
        (root / f"{at}.{suffix}").write_bytes(data if isinstance(data, bytes) else data.encode())
    return root
