"""Tokenizers: exact ids and counts of many texts at once, checked against the reference library when loaded."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curate.errors import CurateError, TokenizerError, error_message
from curate.files import read_whole
from curate.tokenization import trial, vocabulary
from curate.tokenization.cache import load_or_build
from curate.tokenization.checks import DIFFICULT_TEXTS, first_difference
from curate.tokenization.files import DEFAULT_TOKENIZER, TokenizerFiles, configured_token, find_tokenizer_files
from curate.tokenization.token_bytes import byte_lengths, bytes_by_id, remove_space_prefix, tokens_by_id
from curate.tokenization.vocabulary import Encode, Vocabulary
from curate.tokenization.word_counts import WordCounter, has_additive_words

if TYPE_CHECKING:
    import polars as pl

FAST_LIBRARY = "fastokens"
# Hugging Face's tokenizers is not a fallback: it encodes 1.8 to 2.3 MB/s, the references 3.5 and 7.7 MB/s.
REFERENCE_LIBRARIES = {"sentencepiece": "sentencepiece", "tiktoken": "tiktoken", "json": "tokenizers"}
CONTROL_FLAGS = ("lstrip", "rstrip", "single_word")  # of entries of `added_tokens` in tokenizer.json
_NORMALIZED = re.compile(r'"normalized"\s*:\s*true')

Ids = NDArray[np.uint32]
Offsets = NDArray[np.int64]
FlatIds = tuple[Ids, Offsets]  # ids of all texts one after another; text i has ids[offsets[i]:offsets[i + 1]]
BulkEncode = Callable[[Sequence[str]], FlatIds]


@dataclass(frozen=True)
class TokenizerInfo:
    """The description of a tokenizer."""

    name: str  # llama3, a Hub name, or a folder's or file's name
    kind: str  # of the vocabulary file: sentencepiece, tiktoken or json
    hash: str  # SHA-256 of the vocabulary file
    vocab_size: int  # one more than the largest id
    bos_id: int | None  # None for a tokenizer without a begin token
    eos_id: int
    bos_token: str | None
    eos_token: str
    source: str  # path of the vocabulary file
    library: str  # the one that encodes
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return what identifies the tokenizer, independent of where its files are."""
        return {key: value for key, value in asdict(self).items() if key not in ("source", "warnings")}


class Tokenizer:
    """Encodes texts in bulk, exactly as the reference library does; control strings in a text stay text.

    Neither BOS nor EOS is added. A pickled tokenizer (about 5 MB for LLaMA-3) is complete and already checked, so a
    worker process only has to load it.
    """

    def __init__(
        self,
        info: TokenizerInfo,
        document: str,
        control_ids: dict[str, int],
        symbols: tuple[str, ...] = (),
        bulk_encode: BulkEncode | None = None,
    ) -> None:
        self.info = info
        self.control_ids = control_ids  # by name, with `bos` (if there is one) and `eos`
        self._document = document  # tokenizer.json
        self._symbols = symbols
        self._symbol_pattern = vocabulary.match_any(symbols)
        self._bulk_encode = bulk_encode or self._load_encoder()

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[object, ...]]:
        return Tokenizer, (self.info, self._document, self.control_ids, self._symbols)

    def _load_encoder(self) -> BulkEncode:
        return fastokens_encoder(self._document) if self.info.library == FAST_LIBRARY else encode_each(self._reference)

    def _reference(self, text: str) -> list[int]:
        return self._vocabulary.reference(text)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return _read_vocabulary(Path(self.info.source), self.info.name)[0]

    def encode(self, texts: Sequence[str] | pl.Series) -> FlatIds:
        """Return the ids of all texts in one array, [tokens], and the offsets that separate them, [texts + 1]."""
        items, flat = _encode_valid(self._bulk_encode, _to_list(texts))
        if self._symbol_pattern is None:
            return flat
        with_symbols = [i for i, text in enumerate(items) if self._symbol_pattern.search(text)]
        return _replace_rows(flat, {i: self._reference(items[i]) for i in with_symbols}) if with_symbols else flat

    def encode_continuation(self, texts: Sequence[str]) -> FlatIds:
        """Return the ids of texts that continue another text: no space is put before them, as `encode` may do."""
        encode = self._continuation_encode
        return _encode_valid(encode, list(texts))[1] if encode else self.encode(texts)

    def encode_blocks(self, texts: Sequence[str]) -> FlatIds:
        """Return the ids of texts that each follow a control token, as a server tokenizes them within a whole prompt.

        A tokenizer may put a space before each of them, or only before a text at the start of the prompt.
        """
        return self.encode_continuation(texts) if self.prefixes_start_only else self.encode(texts)

    @cached_property
    def prefixes_start_only(self) -> bool:
        """Whether a space is put before a text at the start of a prompt only; no rendering with BOS starts with one."""
        return self.info.bos_id is not None and '"prepend_scheme": "first"' in self._document

    @cached_property
    def _continuation_encode(self) -> BulkEncode | None:
        """The encoder without a space prefix; None if the usual one has none either."""
        document = remove_space_prefix(self._document)
        if document is None:
            return None
        if self.info.library == FAST_LIBRARY:
            return fastokens_encoder(document)
        return encode_each(vocabulary.hugging_face_encoder(document))

    def counts(self, texts: Sequence[str] | pl.Series) -> NDArray[np.int32]:
        """Return the number of tokens of each text: [texts]."""
        return np.diff(self.encode(texts)[1]).astype(np.int32)

    def ids(self, texts: Sequence[str] | pl.Series) -> list[list[int]]:
        """Return each text's ids."""
        flat, offsets = self.encode(texts)
        return _split_rows(flat, offsets)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, with control tokens by name."""
        return str(self._decoder.decode(list(ids), skip_special_tokens=False))

    @cached_property
    def _decoder(self) -> Any:
        from tokenizers import Tokenizer as HuggingFaceTokenizer

        return HuggingFaceTokenizer.from_str(self._document)

    @cached_property
    def control_flags(self) -> dict[str, frozenset[str]]:
        """How a server reads control strings in a text, by name, where that is not simply as the token.

        `lstrip` and `rstrip`: white space before or after the string is lost. `single_word`: it is text next to a
        letter or digit.
        """
        if not any(f'"{flag}": true' in self._document for flag in CONTROL_FLAGS):  # quick: most have none
            return {}
        tokens = json.loads(self._document).get("added_tokens") or []
        flags = {token["content"]: frozenset(flag for flag in CONTROL_FLAGS if token.get(flag)) for token in tokens}
        return {name: flags[name] for name in self.control_ids if flags.get(name)}

    def tokenizer_json(self) -> str:
        """Return the tokenizer.json to train and serve with: the folder's own, or the one built here.

        A control token that the folder's own looks for in the normalized text (`normalized`) is looked for before that.
        Raises TokenizerError if Hugging Face's library gives other ids with the built one than the reference.
        """
        if self.info.kind == "json":
            return _read_controls_as_tokens(Path(self.info.source).read_text(encoding="utf-8"), self.control_ids)
        texts, expected = _reference_ids(self._vocabulary)
        encode = vocabulary.hugging_face_encoder(self._document)
        difference = first_difference(texts, [encode(text) for text in texts], expected)
        if difference is not None:
            text, ours, theirs = difference
            raise TokenizerError(
                f"no exact tokenizer.json can be built for {self.info.name!r}: {text!r} is {ours} there, "
                f"{theirs} in {self.info.kind}"
            )
        return self._document

    @cached_property
    def vocabulary_hash(self) -> str:
        """The SHA-256 of the tokens by id, added ones included: the same for every form of one vocabulary."""
        return hashlib.sha256(repr(tokens_by_id(self._document)).encode("utf-8", "backslashreplace")).hexdigest()

    @property
    def word_counter(self) -> WordCounter | None:
        """Counts tokens word by word; None if the counts of words do not add up to those of texts."""
        return self.checked_word_counter[0]

    @cached_property
    def checked_word_counter(self) -> tuple[WordCounter | None, str]:
        """The word counter, or None and, if its check failed, a warning."""
        if not has_additive_words(self._document):
            return None, ""
        counter = WordCounter(self.encode)
        counts, _ = counter.count(DIFFICULT_TEXTS, [0] * len(DIFFICULT_TEXTS))
        wrong = np.flatnonzero((counts >= 0) & (counts != self.counts(DIFFICULT_TEXTS)))
        if not len(wrong):
            return counter, ""
        return None, f"tokens are not counted word by word: the count is wrong for {DIFFICULT_TEXTS[wrong[0]]!r}"

    @cached_property
    def byte_lengths(self) -> tuple[NDArray[np.int64], int] | None:
        """How many bytes of text each id stands for, [vocabulary], and how many are put before a text.

        None if the ids of a text do not determine where its tokens start.
        """
        result = byte_lengths(self._document)
        return (np.array(result[0], dtype=np.int64), result[1]) if result else None

    @cached_property
    def token_bytes(self) -> list[bytes] | None:
        """The bytes of text that each id stands for, `▁` as a space; None where `byte_lengths` is None."""
        return bytes_by_id(self._document)


def _read_controls_as_tokens(document: str, control_ids: Mapping[str, int]) -> str:
    """Return a tokenizer.json without `normalized` on control tokens; the same text if none has it.

    Older conversions of LLaMA-2 and Vicuna have it on `</s>`. Where the normalizer puts `▁` before a text, `</s>` is
    then a token only after a space, and not at the end of an answer.
    """
    if not _NORMALIZED.search(document):
        return document
    parsed = json.loads(document)
    for token in parsed.get("added_tokens") or []:
        if token["content"] in control_ids:
            token["normalized"] = False
    return json.dumps(parsed, ensure_ascii=False)


def load_tokenizer(name: str | None = None, *, bulk: bool = True) -> Tokenizer:
    """Load a tokenizer: `llama3` (the default), a folder, a file, or a Hub name `org/name`.

    With `bulk=False` the reference library encodes: faster to load, slower for many texts. Raises TokenizerError with
    what to type.
    """
    load = _load_once if name in (None, DEFAULT_TOKENIZER) else _load
    files = find_tokenizer_files(name)
    try:
        return load(files, bulk)
    except (CurateError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a library's panic is no Exception
        raise TokenizerError(f"{files.name!r} cannot be used as a tokenizer: {error_message(error)}") from error


def _load(files: TokenizerFiles, bulk: bool) -> Tokenizer:
    vocab, digest = _read_vocabulary(files.vocabulary, files.name)
    document = load_or_build(vocab, digest)
    if vocab.kind == "json" or '"Precompiled"' in document:
        trial.check(document, digest, files.name)
    mismatch = _file_mismatch(files, vocab)
    if bulk:
        library, bulk_encode, library_warnings = _choose_library(vocab, document)
    else:
        library, bulk_encode, library_warnings = REFERENCE_LIBRARIES[vocab.kind], encode_each(vocab.reference), []
    bos, eos, config_warnings = _bos_and_eos(files, vocab)
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
        warnings=(*library_warnings, *mismatch, *config_warnings),
    )
    aliases = {"eos": info.eos_id} if info.bos_id is None else {"bos": info.bos_id, "eos": info.eos_id}
    tokenizer = Tokenizer(info, document, {**vocab.controls, **aliases}, vocab.symbols, bulk_encode)
    if bulk and (warning := tokenizer.checked_word_counter[1]):
        tokenizer.info = replace(info, warnings=(*info.warnings, warning))
    return tokenizer


_load_once = cache(_load)  # loading LLaMA-3's takes about a second, and its installed file does not change


def _read_vocabulary(path: Path, name: str) -> tuple[Vocabulary, str]:
    """Return a vocabulary, and the SHA-256 of its file."""
    try:
        data = read_whole(path)
    except OSError as error:
        raise TokenizerError(f"cannot read {str(path)!r}: {error.strerror}") from None
    return vocabulary.read(data, name), hashlib.sha256(data).hexdigest()


def _bos_and_eos(files: TokenizerFiles, vocab: Vocabulary) -> tuple[str | None, str, list[str]]:
    """Return the BOS and EOS tokens, preferably from the folder's configuration, and warnings about it."""
    tokens: dict[str, str | None] = {"bos_token": vocab.bos, "eos_token": vocab.eos}
    warnings = []
    for key in tokens:
        configured = configured_token(files.folder, key)
        if configured is not None and configured in vocab.controls:
            tokens[key] = configured
        elif configured is not None:
            token = tokens[key]
            warnings.append(f"{key} {configured!r} of tokenizer_config.json is not a control token; using {token!r}")
    eos = tokens["eos_token"]
    if eos is None:
        raise TokenizerError(f"{files.name!r} has no end token; name it as eos_token in tokenizer_config.json")
    return tokens["bos_token"], eos, warnings


def _file_mismatch(files: TokenizerFiles, vocab: Vocabulary) -> list[str]:
    """Return a warning if a folder's two vocabulary files give different ids; its tokenizer.json is used."""
    if files.second_vocabulary is None:
        return []
    try:
        second = _read_vocabulary(files.second_vocabulary, files.name)[0].reference
    except TokenizerError as error:
        return [f"{files.second_vocabulary.name} cannot be compared with {files.vocabulary.name}: {error}"]
    texts = [text for text in DIFFICULT_TEXTS if text]
    difference = first_difference(texts, [vocab.reference(text) for text in texts], [second(text) for text in texts])
    if difference is None:
        return []
    text, ours, theirs = difference
    return [
        f"{files.vocabulary.name} and {files.second_vocabulary.name} differ: {text!r} is {ours} in the first and "
        f"{theirs} in the second; using the first, as serving engines do"
    ]


# ---- encoders of many texts


def _split_rows(flat: Ids, offsets: Offsets) -> list[list[int]]:
    """Return each text's ids."""
    ids, bounds = flat.tolist(), offsets.tolist()
    return [ids[start:stop] for start, stop in pairwise(bounds)]


def _flatten(rows: Sequence[Sequence[int]]) -> FlatIds:
    """Return the ids of many texts in one array, and their offsets."""
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return np.fromiter((token for row in rows for token in row), dtype=np.uint32, count=int(offsets[-1])), offsets


def _replace_rows(flat: FlatIds, rows: dict[int, list[int]]) -> FlatIds:
    """Return the ids with those of the texts in `rows`, by index, replaced."""
    return _flatten([rows.get(i, row) for i, row in enumerate(_split_rows(*flat))])


def _encode_valid(encode: BulkEncode, texts: list[str]) -> tuple[list[str], FlatIds]:
    """Return the texts, with lone surrogates replaced because no library accepts them, and their ids."""
    try:
        return texts, encode(texts)
    except (UnicodeEncodeError, TypeError, RuntimeError):  # the libraries' errors for a lone surrogate
        valid = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
        if valid == texts:
            raise
        return valid, encode(valid)


def _to_list(texts: Sequence[str] | pl.Series) -> list[str]:
    """Return texts as a list; a missing one in a column is empty."""
    to_list = getattr(texts, "to_list", None)
    return [text or "" for text in (to_list() if to_list else texts)]


def encode_each(encode: Encode) -> BulkEncode:
    """Return a bulk encoder that encodes one text at a time."""
    return lambda texts: _flatten([encode(text) for text in texts])


def fastokens_encoder(document: str) -> BulkEncode:
    """Return a bulk encoder of the fastokens library, which caches texts, so that repeated ones are cheap."""
    library: Any = importlib.import_module("fastokens")  # has no type hints
    tokenizer = library.Tokenizer.from_json_str(document)

    def encode(texts: Sequence[str]) -> FlatIds:
        ids, offsets = tokenizer.encode_batch_flat(list(texts), split_special_tokens=True)
        return np.frombuffer(ids, np.uint32), np.frombuffer(offsets, np.uint64).astype(np.int64)

    return encode


def _reference_ids(vocab: Vocabulary) -> tuple[list[str], list[list[int]]]:
    """Return texts to check an encoder with, and the reference's ids for them."""
    symbols = vocabulary.match_any(vocab.symbols)
    texts = [text for text in (*DIFFICULT_TEXTS, *vocab.controls) if not (symbols and symbols.search(text))]
    return texts, [vocab.reference(text) for text in texts]


def _choose_library(vocab: Vocabulary, document: str) -> tuple[str, BulkEncode, list[str]]:
    """Return the library to encode with, its bulk encoder, and a warning if it is not the fast one."""
    texts, expected = _reference_ids(vocab)
    try:
        encode = fastokens_encoder(document)
        difference = first_difference(texts, _split_rows(*encode(texts)), expected)
    except Exception as error:  # fastokens raises plain Exception for what it cannot read
        reason = f"{FAST_LIBRARY} cannot be used: {error}"
    else:
        if difference is None:
            return FAST_LIBRARY, encode, []
        text, ours, theirs = difference
        reason = f"{FAST_LIBRARY} is not used: for {text!r} it gives {ours}, the reference {theirs}"
    library = REFERENCE_LIBRARIES[vocab.kind]
    return library, encode_each(vocab.reference), [f"{reason}; using {library}, which is slower"]
