"""LLaMA tokenizers: exact ids and counts of many texts at once, held against the reference library at load."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curate.errors import TokenizerError
from curate.tokenization import files as tokenizer_files
from curate.tokenization import token_bytes, vocabulary
from curate.tokenization.checks import TRICKY, first_difference
from curate.tokenization.vocabulary import Encode, Vocabulary
from curate.tokenization.word_counts import Words, fits

if TYPE_CHECKING:
    import polars as pl

from curate.tokenization.cache import built_document

Ids = NDArray[np.uint32]
Offsets = NDArray[np.int64]
Flat = tuple[Ids, Offsets]  # ids of all texts one after another; text i has ids[offsets[i]:offsets[i + 1]]
Bulk = Callable[[Sequence[str]], Flat]


@dataclass(frozen=True)
class TokenizerInfo:
    """What a tokenizer is: `hash` is the SHA-256 of its vocabulary file, `library` the one that counts."""

    name: str
    kind: str
    hash: str
    vocab_size: int
    bos_id: int | None
    eos_id: int
    bos_token: str | None
    eos_token: str
    source: str
    library: str
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return what tells one tokenizer from another, wherever its files lie."""
        return {key: value for key, value in asdict(self).items() if key not in ("source", "warnings")}


class Tokenizer:
    """Encodes texts in bulk, exactly as the reference library does; control strings in a text stay text.

    Neither BOS nor EOS is added. A tokenizer pickles whole (about 5 MB for LLaMA-3), already checked,
    so that a worker process only has to open it.
    """

    def __init__(
        self,
        info: TokenizerInfo,
        document: str,
        control_ids: dict[str, int],
        symbols: tuple[str, ...] = (),
        bulk: Bulk | None = None,
    ) -> None:
        self.info = info
        self.control_ids = control_ids  # by name, with `bos` (if there is one) and `eos`
        self._document = document
        self._symbols = symbols
        self._slow = vocabulary.escaped(symbols)
        self._bulk = bulk or self._open()

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[object, ...]]:
        return Tokenizer, (self.info, self._document, self.control_ids, self._symbols)

    def _open(self) -> Bulk:
        return fastokens(self._document) if self.info.library == FAST else one_by_one(self._reference)

    def _reference(self, text: str) -> list[int]:
        return self._vocabulary.reference(text)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return _read(Path(self.info.source), self.info.name)[0]

    def encode(self, texts: Sequence[str] | pl.Series) -> Flat:
        """Return the ids of all texts in one array, and the offsets between which each text's ids lie."""
        items = _plain(texts)
        items, flat = _mended(self._bulk, items)
        slow = [i for i, text in enumerate(items) if self._slow.search(text)] if self._slow else []
        return _patched(flat, {i: self._reference(items[i]) for i in slow}) if slow else flat

    def encode_onward(self, texts: Sequence[str]) -> Flat:
        """Return the ids of texts that go on after other text: no space is put before them, as `encode` may do."""
        return _mended(self._onward, list(texts))[1] if self._onward else self.encode(texts)

    @cached_property
    def _onward(self) -> Bulk | None:
        """The encoder of texts that go on, null where it is no other than that of texts that begin."""
        document = token_bytes.without_prefix(self._document)
        if document is None:
            return None
        return fastokens(document) if self.info.library == FAST else one_by_one(vocabulary.hugging_face(document))

    def counts(self, texts: Sequence[str] | pl.Series) -> NDArray[np.int32]:
        """Return how many tokens each text has."""
        return np.diff(self.encode(texts)[1]).astype(np.int32)

    def ids(self, texts: Sequence[str] | pl.Series) -> list[list[int]]:
        """Return each text's ids."""
        flat, offsets = self.encode(texts)
        return _rows(flat, offsets)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, control tokens by name."""
        return str(self._decoder.decode(list(ids), skip_special_tokens=False))

    @cached_property
    def _decoder(self) -> Any:
        from tokenizers import Tokenizer as HuggingFace

        return HuggingFace.from_str(self._document)

    def tokenizer_json(self) -> str:
        """Return the tokenizer.json to count, train and serve with: the folder's own, or the one built here.

        Raises TokenizerError where Hugging Face's library reads the one built here differently from the reference.
        """
        if self.info.kind == "json":
            return Path(self.info.source).read_text(encoding="utf-8")
        texts, expected = _checks(self._vocabulary)
        encode = vocabulary.hugging_face(self._document)
        difference = first_difference(texts, [encode(text) for text in texts], expected)
        if difference is not None:
            text, ours, theirs = difference
            raise TokenizerError(
                f"no exact tokenizer.json can be built for {self.info.name!r}: {text!r} is {ours} there, "
                f"{theirs} in {self.info.kind}"
            )
        return self._document

    @property
    def words(self) -> Words | None:
        """Counts by words, where they add up to those of the texts; null where they do not."""
        return self.by_words[0]

    @cached_property
    def by_words(self) -> tuple[Words | None, str]:
        """Return what counts by words, or null and why it is not used though the vocabulary looks fit for it."""
        if not fits(self._document):
            return None, ""
        words = Words(self.encode)
        told, _ = words.totals(TRICKY, [0] * len(TRICKY))
        wrong = np.flatnonzero((told >= 0) & (told != self.counts(TRICKY)))
        if not len(wrong):
            return words, ""
        return None, f"counts by words are not used: they differ for {TRICKY[wrong[0]]!r}"

    @cached_property
    def byte_lengths(self) -> tuple[NDArray[np.int64], int] | None:
        """Bytes of text that each id stands for, and bytes put before a text; null where ids do not tell."""
        found = token_bytes.byte_lengths(self._document)
        return (np.array(found[0], dtype=np.int64), found[1]) if found else None

    @cached_property
    def piece_bytes(self) -> list[bytes] | None:
        """The bytes of text that each id stands for, a `▁` being a space; null where ids do not tell."""
        return token_bytes.piece_bytes(self._document)


def load_tokenizer(name: str | None = None, *, few: bool = False) -> Tokenizer:
    """Load a tokenizer: `llama3` (the default), a folder, a file, or a Hub name `org/name`.

    For a `few` texts the reference itself encodes, and the library for many, which takes longest to load, is not.
    Raises TokenizerError with one line that says what is wrong and what to type.
    """
    load = _load_once if name in (None, tokenizer_files.DEFAULT) else _load
    return load(tokenizer_files.find(name), few)


def _load(files: tokenizer_files.TokenizerFiles, few: bool) -> Tokenizer:
    vocab, digest = _read(files.vocabulary, files.name)
    document = built_document(vocab, digest)
    warnings = [*_disagreement(files, vocab)]
    slow = REFERENCE_LIBRARIES[vocab.kind], one_by_one(vocab.reference), list[str]()
    library, bulk, reasons = slow if few else _choose(vocab, document)
    bos, eos, unnamed = _ends(files, vocab)
    info = TokenizerInfo(
        name=files.name,
        kind=vocab.kind,
        hash=digest,
        vocab_size=vocab.size,
        bos_id=vocab.controls[bos] if bos else None,
        eos_id=vocab.controls[eos],
        bos_token=bos,
        eos_token=eos,
        source=str(files.vocabulary),
        library=library,
        warnings=(*reasons, *warnings, *unnamed),
    )
    ends = {"eos": info.eos_id} if info.bos_id is None else {"bos": info.bos_id, "eos": info.eos_id}
    tokenizer = Tokenizer(info, document, {**vocab.controls, **ends}, vocab.symbols, bulk)
    if not few and (why := tokenizer.by_words[1]):
        tokenizer.info = replace(info, warnings=(*info.warnings, why))
    return tokenizer


_load_once = cache(_load)  # the default takes about a second, and its file, part of an installed package, never changes


def _read(path: Path, name: str) -> tuple[Vocabulary, str]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"cannot read {str(path)!r}: {error.strerror}") from None
    return vocabulary.read(data, name), hashlib.sha256(data).hexdigest()


def _ends(files: tokenizer_files.TokenizerFiles, vocab: Vocabulary) -> tuple[str | None, str, list[str]]:
    """Return the BOS and EOS tokens, the folder's configuration first, and what is wrong with it."""
    found: dict[str, str | None] = {"bos_token": vocab.bos, "eos_token": vocab.eos}
    warnings = []
    for key in found:
        named = tokenizer_files.named_token(files.folder, key)
        if named is not None and named in vocab.controls:
            found[key] = named
        elif named is not None:
            warnings.append(f"{key} {named!r} of tokenizer_config.json is no control token; using {found[key]!r}")
    eos = found["eos_token"]
    if eos is None:
        raise TokenizerError(f"{files.name!r} has no end token; name it as eos_token in tokenizer_config.json")
    return found["bos_token"], eos, warnings


def _disagreement(files: tokenizer_files.TokenizerFiles, vocab: Vocabulary) -> list[str]:
    """Return a warning where a folder's two files give different ids; its tokenizer.json is followed."""
    if files.other is None:
        return []
    try:
        other = _read(files.other, files.name)[0].reference
    except TokenizerError as error:
        return [f"{files.other.name} cannot be held against {files.vocabulary.name}: {error}"]
    texts = [text for text in TRICKY if text]
    difference = first_difference(texts, [vocab.reference(text) for text in texts], [other(text) for text in texts])
    if difference is None:
        return []
    text, ours, theirs = difference
    return [
        f"{files.vocabulary.name} and {files.other.name} differ: {text!r} is {ours} in the first and {theirs} in the "
        "second; following the first, as serving will"
    ]


# ---- the libraries that count


def _rows(flat: Ids, offsets: Offsets) -> list[list[int]]:
    ids, cuts = flat.tolist(), offsets.tolist()
    return [ids[start:stop] for start, stop in pairwise(cuts)]


def _flatten(rows: Sequence[Sequence[int]]) -> Flat:
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return np.fromiter((token for row in rows for token in row), dtype=np.uint32, count=int(offsets[-1])), offsets


def _patched(flat: Flat, rows: dict[int, list[int]]) -> Flat:
    found = _rows(*flat)
    return _flatten([rows.get(i, row) for i, row in enumerate(found)])


def _mended(bulk: Bulk, texts: list[str]) -> tuple[list[str], Flat]:
    """Return texts without lone surrogates, which no library takes, and their ids."""
    try:
        return texts, bulk(texts)
    except (UnicodeEncodeError, TypeError, RuntimeError):  # what each library says to one
        mended = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
        if mended == texts:
            raise
        return mended, bulk(mended)


def _plain(texts: Sequence[str] | pl.Series) -> list[str]:
    to_list = getattr(texts, "to_list", None)
    return [text or "" for text in (to_list() if to_list else texts)]


def one_by_one(encode: Encode) -> Bulk:
    """Return a bulk encoder that takes one text at a time."""
    return lambda texts: _flatten([encode(text) for text in texts])


def fastokens(document: str) -> Bulk:
    """Return a bulk encoder by fastokens; what it keeps of texts it has seen makes repeats cheaper."""
    library: Any = importlib.import_module("fastokens")  # ships no types
    tokenizer = library.Tokenizer.from_json_str(document)

    def bulk(texts: Sequence[str]) -> Flat:
        ids, offsets = tokenizer.encode_batch_flat(list(texts), split_special_tokens=True)
        return np.frombuffer(ids, np.uint32), np.frombuffer(offsets, np.uint64).astype(np.int64)

    return bulk


FAST = "fastokens"
# Hugging Face's tokenizers is no second choice: 1.8 to 2.3 MB/s here, where the references do 3.5 and 7.7.
REFERENCE_LIBRARIES = {"sentencepiece": "sentencepiece", "tiktoken": "tiktoken", "json": "tokenizers"}


def _checks(vocab: Vocabulary) -> tuple[list[str], list[list[int]]]:
    """Return the texts to hold an encoder against the reference on, and the reference's ids."""
    slow = vocabulary.escaped(vocab.symbols)
    texts = [text for text in (*TRICKY, *vocab.controls) if not (slow and slow.search(text))]
    return texts, [vocab.reference(text) for text in texts]


def _choose(vocab: Vocabulary, document: str) -> tuple[str, Bulk, list[str]]:
    """Return the library to count with, its bulk encoder, and why it is not fastokens if it is not."""
    texts, expected = _checks(vocab)
    try:
        bulk = fastokens(document)
        difference = first_difference(texts, _rows(*bulk(texts)), expected)
    except Exception as error:  # fastokens raises plain Exception for what it cannot read
        reason = f"{FAST} cannot be used: {error}"
    else:
        if difference is None:
            return FAST, bulk, []
        text, ours, theirs = difference
        reason = f"{FAST} is not used: for {text!r} it gives {ours}, the reference {theirs}"
    library = REFERENCE_LIBRARIES[vocab.kind]
    return library, one_by_one(vocab.reference), [f"{reason}; counting with {library}, which is slower"]
