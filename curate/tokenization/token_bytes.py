"""What a tokenizer.json tells of its pieces: the text that each id stands for, and what is put before a text."""

from __future__ import annotations

import json
import re
from typing import Any

BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")  # a byte that no other piece of a SentencePiece model covers


def byte_characters() -> list[str]:
    """Return the character by which byte-level BPE writes each byte: itself if printable, else one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def byte_lengths(document: str) -> tuple[list[int], int] | None:
    """Return how many bytes of normalised text each id stands for, and how many are put before the text.

    Null where a tokenizer.json is not of LLaMA's two shapes, so that offsets cannot be told from ids.
    """
    parsed = json.loads(document)
    vocab: dict[str, int] = parsed["model"]["vocab"]
    if not isinstance(vocab, dict):
        return None
    lengths = [0] * (1 + max([*vocab.values(), *(entry["id"] for entry in parsed["added_tokens"] or [])], default=0))
    normalizer, pre = parsed.get("normalizer"), parsed.get("pre_tokenizer")
    if normalizer is None and _types(pre, "pretokenizers") == ["Split", "ByteLevel"]:
        for piece, token in vocab.items():
            lengths[token] = len(piece)  # one character a byte
        for token, text in _symbols(parsed):
            lengths[token] = len(text)
        return lengths, 0
    if pre is None and _types(normalizer, "normalizers") == ["Prepend", "Replace"]:
        for piece, token in vocab.items():
            lengths[token] = 1 if BYTE_PIECE.fullmatch(piece) else len(piece.replace("▁", " ").encode())
        for token, text in _symbols(parsed):
            lengths[token] = len(text)
        return lengths, 1
    return None


def piece_bytes(document: str) -> list[bytes] | None:
    """Return the bytes of text that each id stands for; null where `byte_lengths` is null."""
    if byte_lengths(document) is None:
        return None
    parsed = json.loads(document)
    vocab: dict[str, int] = parsed["model"]["vocab"]
    pieces = [b""] * (1 + max([*vocab.values(), *(entry["id"] for entry in parsed["added_tokens"] or [])], default=0))
    bytes_of = {character: byte for byte, character in enumerate(byte_characters())}
    for piece, token in vocab.items():
        if parsed.get("pre_tokenizer"):
            pieces[token] = bytes(bytes_of[character] for character in piece if character in bytes_of)
        else:
            byte = BYTE_PIECE.fullmatch(piece)
            pieces[token] = bytes([int(piece[3:5], 16)]) if byte else piece.replace("▁", " ").encode()
    for token, text in _symbols(parsed):
        pieces[token] = text
    return pieces


def without_prefix(document: str) -> str | None:
    """Return a tokenizer.json that puts no space before a text; null where this one does not either."""
    parsed = json.loads(document)
    changed = False
    for key, inner in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        step = parsed.get(key)
        steps = step[inner] if step and inner in step else [step] if step else []
        for one in steps:
            if one["type"] == "Metaspace" and one.get("prepend_scheme") != "never":
                one.update(prepend_scheme="never", add_prefix_space=False)
            elif one["type"] == "ByteLevel" and one.get("add_prefix_space"):
                one["add_prefix_space"] = False
            elif one["type"] != "Prepend":
                continue
            changed = True
        kept = [one for one in steps if one["type"] != "Prepend"]
        parsed[key] = {"type": "Sequence", inner: kept} if kept and kept != [step] else kept[0] if kept else None
    return json.dumps(parsed, ensure_ascii=False) if changed else None


def _symbols(parsed: dict[str, Any]) -> list[tuple[int, bytes]]:
    """Return the added tokens that are text (`<tool_call>`), and their bytes."""
    return [(entry["id"], entry["content"].encode()) for entry in parsed["added_tokens"] or [] if not entry["special"]]


def _types(step: dict[str, Any] | None, key: str) -> list[str]:
    return [str(inner["type"]) for inner in step[key]] if step and key in step else []
