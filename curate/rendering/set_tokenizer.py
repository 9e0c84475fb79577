"""Load the tokenizer that a curated set was cleaned with."""

from __future__ import annotations

from curate.dataset.manifest import Manifest
from curate.errors import TokenizerError
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer


def load_set_tokenizer(manifest: Manifest, *, bulk: bool = True) -> Tokenizer:
    """Load a set's tokenizer by name (`bulk` as in `load_tokenizer`).

    Raises TokenizerError if it is not found, or has another vocabulary.
    """
    name = manifest.own_tokenizer()
    tokenizer = load_tokenizer(name, bulk=bulk)
    if tokenizer.info.hash != manifest.tokenizer.hash:
        raise TokenizerError(f"the tokenizer {name!r} is not the one that the set was cleaned with")
    return tokenizer
