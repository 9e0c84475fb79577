"""Conversations on what the model is, which a run trains on beside its set: never held out, never a duplicate."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from curate.dataset.arrow import Row
from curate.errors import InputError
from curate.schemas.conversation import Conversation, with_tools


@dataclass(frozen=True)
class Identity:
    """The file of `--identity`, with its conversations as rows of the split train."""

    path: str
    sha256: str
    rows: tuple[Row, ...]


def read(path: str) -> Identity | None:
    """Read a file in any format that `clean` reads; None for an empty path.

    The file is the user's own, so it must be whole: raises InputError if a record cannot be read, or there is none.
    """
    if not path:
        return None
    file = Path(path)
    if not file.is_file():
        raise InputError(f"there is no file {path!r}; write one: curate identity --name Heron -o {path}")
    from curate.conversion.collection import Conversations  # late, with Polars: a benchmark trains without it
    from curate.dataset.query import Query

    conversations = Conversations(path, Query())
    rows = tuple(_row(conversation, path, index) for index, conversation in enumerate(conversations))
    if conversations.left_out:
        counts = ", ".join(f"{rule} {count:,}" for rule, count in conversations.left_out.items())
        raise InputError(f"{path!r} has records that cannot be trained on ({counts}); see curate clean {path}")
    if not rows:
        raise InputError(f"{path!r} has no conversations; write some: curate identity --name Heron -o {path}")
    return Identity(path, hashlib.sha256(file.read_bytes()).hexdigest(), rows)


def _row(conversation: Conversation, path: str, index: int) -> Row:
    messages = with_tools(conversation.messages, conversation.tools)
    return Row(conversation.source_id or f"identity-{index}", 0, messages, None, "train", (path, index))
