"""Read from a tokenizer.json which bytes of text each id stands for, and how many are put before a text."""

from __future__ import annotations

import json
import re
from typing import Any

BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")  # a byte that no other token of a SentencePiece model covers


def byte_characters() -> list[str]:
    """Return the character that byte-level BPE uses for each byte: itself if printable, else one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def byte_lengths(document: str) -> tuple[list[int], int] | None:
    """Return how many bytes of normalized text each id stands for, and how many bytes are put before a text.

    None for a tokenizer.json with neither the structure of LLaMA-3's (byte-level BPE) nor that of LLaMA-1's and 2's
    (SentencePiece): ids then do not determine offsets.
    """
    parsed = json.loads(document)
    vocab: dict[str, int] = parsed["model"]["vocab"]
    if not isinstance(vocab, dict):
        return None
    lengths = [0] * _size(parsed)
    normalizer, pre_tokenizer = parsed.get("normalizer"), parsed.get("pre_tokenizer")
    if normalizer is None and _types(pre_tokenizer, "pretokenizers") == ["Split", "ByteLevel"]:
        for token, token_id in vocab.items():
            lengths[token_id] = len(token)  # one character for each byte
        prefix = 0  # bytes
    elif pre_tokenizer is None and _types(normalizer, "normalizers") == ["Prepend", "Replace"]:
        for token, token_id in vocab.items():
            # `▁` is three bytes, but stands for one: a space.
            lengths[token_id] = 1 if BYTE_TOKEN.fullmatch(token) else len(token.replace("▁", " ").encode())
        prefix = 1
    else:
        return None
    for token_id, text in _symbols(parsed):
        lengths[token_id] = len(text)
    return lengths, prefix


def bytes_by_id(document: str) -> list[bytes] | None:
    """Return the bytes of text that each id stands for: [vocabulary]; None where `byte_lengths` returns None."""
    if byte_lengths(document) is None:
        return None
    parsed = json.loads(document)
    vocab: dict[str, int] = parsed["model"]["vocab"]
    texts = [b""] * _size(parsed)
    byte_by_character = {character: byte for byte, character in enumerate(byte_characters())}
    for token, token_id in vocab.items():
        if parsed.get("pre_tokenizer"):
            texts[token_id] = bytes(
                byte_by_character[character] for character in token if character in byte_by_character
            )
        elif BYTE_TOKEN.fullmatch(token):
            texts[token_id] = bytes([int(token[3:5], 16)])
        else:
            texts[token_id] = token.replace("▁", " ").encode()
    for token_id, text in _symbols(parsed):
        texts[token_id] = text
    return texts


def tokens_by_id(document: str) -> list[tuple[int, str]]:
    """Return the tokens of a tokenizer.json, as they are written there, sorted by id."""
    parsed = json.loads(document)
    vocab = parsed["model"]["vocab"]
    pieces = vocab.items() if isinstance(vocab, dict) else ((entry[0], i) for i, entry in enumerate(vocab))
    added = ((entry["content"], entry["id"]) for entry in parsed.get("added_tokens") or [])
    return sorted({(token_id, token) for token, token_id in (*pieces, *added)})


def remove_space_prefix(document: str) -> str | None:
    """Return a tokenizer.json that puts no space before a text; None if the given one puts none either."""
    parsed = json.loads(document)
    changed = False
    for key, inner in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        outer = parsed.get(key)
        steps = outer[inner] if outer and inner in outer else [outer] if outer else []
        with_prefix = [_drop_prefix(step) for step in steps]
        if not any(with_prefix):
            continue
        changed = True
        kept = [step for step in steps if step["type"] != "Prepend"]
        parsed[key] = {"type": "Sequence", inner: kept} if kept and kept != [outer] else kept[0] if kept else None
    return json.dumps(parsed, ensure_ascii=False) if changed else None


def _drop_prefix(step: dict[str, Any]) -> bool:
    """Turn off the prefix of one step in place; return whether it has one. A `Prepend` step is to be removed."""
    if step["type"] == "Metaspace" and step.get("prepend_scheme") != "never":
        step.update(prepend_scheme="never", add_prefix_space=False)
        return True
    if step["type"] == "ByteLevel" and step.get("add_prefix_space"):
        step["add_prefix_space"] = False
        return True
    return bool(step["type"] == "Prepend")


def _size(parsed: dict[str, Any]) -> int:
    """Return one more than the largest id."""
    added = (entry["id"] for entry in parsed["added_tokens"] or [])
    return 1 + max([*parsed["model"]["vocab"].values(), *added], default=0)


def _symbols(parsed: dict[str, Any]) -> list[tuple[int, bytes]]:
    """Return the ids of the added tokens that are text, such as `<tool_call>`, with their bytes."""
    return [(entry["id"], entry["content"].encode()) for entry in parsed["added_tokens"] or [] if not entry["special"]]


def _types(step: dict[str, Any] | None, key: str) -> list[str]:
    """Return the types of the steps in a sequence; empty for a step that is not a sequence."""
    return [str(inner["type"]) for inner in step[key]] if step and key in step else []
