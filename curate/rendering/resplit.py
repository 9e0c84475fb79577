"""A set split again for another template, tokenizer or window than it was cleaned for.

The pieces of one source are joined: the system message once, its exchanges in order, those that cleaning rejected
absent. What comes of it is split by clean's own splitter, whole exchanges again, counted as they will be trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from curate.dataset.arrow import Row
from curate.dataset.manifest import Manifest
from curate.errors import RecordError
from curate.rendering.split import Counting, messages_of, split_with
from curate.schemas.conversation import Message
from curate.tokenization.tokenizer import TokenizerInfo

COUNTS = ("before", "after", "changed", "rejected", "absent")


@dataclass(frozen=True)
class Resplit:
    """Why a set was split again, and what came of it.

    `changed`: pieces that hold other messages than any piece of the set. `rejected`: exchanges over the new window.
    `absent`: exchanges and conversations that cleaning rejected as over the set's own window, and that are not in it.
    """

    reasons: tuple[str, ...]
    before: int = 0
    after: int = 0
    changed: int = 0
    rejected: int = 0
    absent: int = 0

    def plus(self, other: Resplit) -> Resplit:
        """Return both counts together."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in COUNTS)
        return Resplit(self.reasons, *(one + two for one, two in pairs))

    def __str__(self) -> str:
        over = f", {self.rejected:,} exchanges over the window left out" if self.rejected else ""
        absent = f"; {self.absent:,} that cleaning found too long are not in the set" if self.absent else ""
        counts = f"{self.before:,} pieces became {self.after:,}, {self.changed:,} of them changed{over}{absent}"
        return f"split again ({'; '.join(self.reasons)}): {counts}"


def reasons(manifest: Manifest, template: str, tokenizer: TokenizerInfo, max_tokens: int) -> list[str]:
    """Return how a set and a model differ; an empty list means that the set's pieces fit unchanged."""
    own = manifest.tokenizer
    pairs = (
        ("template", manifest.template, template, manifest.template == template),
        ("tokenizer", own.name, tokenizer.name, own.hash == tokenizer.hash),
        ("window", manifest.window, max_tokens, manifest.window == max_tokens),
    )
    return [f"{what} {old} → {new}" for what, old, new, same in pairs if not same]


def join(rows: Sequence[Row]) -> list[Message]:
    """Return the messages of one source from its pieces, in their order."""
    head = _shared_head([row.messages for row in rows])
    return [*rows[0].messages[:head], *(message for row in rows for message in row.messages[head:])]


def _shared_head(pieces: Sequence[Sequence[Message]]) -> int:
    """Return how many leading system messages all pieces have in common."""
    head = 0
    while all(len(piece) > head and piece[head].role == "system" for piece in pieces) and all(
        piece[head] == pieces[0][head] for piece in pieces
    ):
        head += 1
    return head


def split_again(
    counter: Counting, sources: Sequence[Sequence[Row]], max_tokens: int
) -> tuple[list[Row], list[tuple[Row, RecordError]], int]:
    """Return the new pieces, what no longer fits, and how many pieces are changed.

    An exchange that does not fit comes as a row of its messages alone, with the reason.
    """
    joined = [join(rows) for rows in sources]
    pieces: list[Row] = []
    rejected: list[tuple[Row, RecordError]] = []
    changed = 0
    for rows, messages, split in zip(sources, joined, split_with(counter, joined, max_tokens), strict=True):
        base = replace(rows[0], name=_base(rows))
        old = _ranges(rows)
        for number, piece in enumerate(split.pieces):
            name = base.name if len(split.pieces) == 1 else f"{base.name}_{number}"
            pieces.append(replace(base, name=name, piece=number, messages=messages_of(messages, piece)))
            changed += (piece.start, piece.stop) not in old
        for lost in split.rejected:
            where = f"messages {lost.start} to {lost.stop - 1}: {lost.reason}"
            row = replace(base, messages=list(messages[lost.start : lost.stop]))
            rejected.append((row, RecordError(lost.rule, where, lost.evidence)))
    return pieces, rejected, changed


def _base(rows: Sequence[Row]) -> str:
    """Return the id of a source: of several pieces without the number at its end."""
    return rows[0].name if len(rows) == 1 else rows[0].name.removesuffix(f"_{rows[0].piece}")


def _ranges(rows: Sequence[Row]) -> set[tuple[int, int]]:
    """Return where each piece's own messages stand in the joined conversation."""
    head = at = _shared_head([row.messages for row in rows])
    found = set()
    for row in rows:
        stop = at + len(row.messages) - head
        found.add((at, stop))
        at = stop
    return found
