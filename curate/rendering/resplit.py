"""Split a curated set again for another template, tokenizer or window than it was cleaned for.

The pieces of one conversation are joined: the system messages once, then its exchanges in order, without those that
cleaning rejected. The result is split by the same code as in `clean` (`curate.rendering.splitter`), with the counter of
the new renderer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from curate.dataset.arrow import Row
from curate.dataset.manifest import Manifest
from curate.display.figures import number
from curate.errors import RecordError
from curate.rendering.splitter import SplitResult, TokenCounter, piece_messages, split_with
from curate.schemas.conversation import Message
from curate.schemas.prompts import exchanges, system_positions
from curate.tokenization.tokenizer import TokenizerInfo


@dataclass(frozen=True)
class ResplitSummary:
    """Why a set was split again, and how many pieces changed.

    `before` and `after` count pieces. `changed`: new pieces that do not have the same messages as a piece of the set.
    `rejected`: exchanges over the new window. `absent`: exchanges and conversations that are not in the set, because
    cleaning rejected them as over the set's own window. `folded`: pieces with a system message amid the turns that
    is put before its prompt, because the new template cannot say it there.
    """

    reasons: tuple[str, ...]  # the differences between set and model, from `differences`
    before: int = 0
    after: int = 0
    changed: int = 0
    rejected: int = 0
    absent: int = 0
    folded: int = 0

    def __add__(self, other: ResplitSummary) -> ResplitSummary:
        # Two batches of one set have the same reasons.
        return ResplitSummary(
            self.reasons,
            self.before + other.before,
            self.after + other.after,
            self.changed + other.changed,
            self.rejected + other.rejected,
            self.absent + other.absent,
            self.folded + other.folded,
        )

    def __str__(self) -> str:
        over = f", {self.rejected:,} exchanges over the window left out" if self.rejected else ""
        absent = f"; {self.absent:,} that cleaning rejected as too long are not in the set" if self.absent else ""
        counts = f"{self.before:,} pieces became {self.after:,}, {self.changed:,} of them changed{over}{absent}"
        folded = f"; {self.folded:,} have a system message in a prompt (fold_system)" if self.folded else ""
        return f"split again ({'; '.join(self.reasons)}): {counts}{folded}"


@dataclass
class ResplitBatch:
    """The pieces of a batch of conversations after splitting again.

    `rejected`: for each exchange that no longer fits, a row with only its messages, and the reason.
    """

    pieces: list[Row]
    rejected: list[tuple[Row, RecordError]]
    changed: int = 0  # new pieces that do not have the same messages as an old one


def differences(manifest: Manifest, template: str, tokenizer: TokenizerInfo, max_tokens: int) -> list[str]:
    """Return how a set and a model differ, as `property old → new`; empty if the set's pieces can be used unchanged.

    `max_tokens` is the model's window.
    """
    own = manifest.tokenizer
    # Tokenizers are equal if their vocabularies are, whatever their names. Each row: name, old, new, whether equal.
    compared = (
        ("template", manifest.template, template, manifest.template == template),
        ("tokenizer", own.name, tokenizer.name, own.hash == tokenizer.hash),
        ("window", number(manifest.window), number(max_tokens), manifest.window == max_tokens),
    )
    return [f"{name} {old} → {new}" for name, old, new, same in compared if not same]


def join_pieces(rows: Sequence[Row]) -> list[Message]:
    """Return the messages of one conversation from its pieces, given in order."""
    return [message for own in _own_messages(rows) for message in own]


def _own_messages(rows: Sequence[Row]) -> list[list[Message]]:
    """Return the messages of each piece without the system messages before it that it repeats from earlier pieces."""
    own: list[list[Message]] = []
    instructions: list[Message] = []  # system messages so far
    for row in rows:
        messages, repeated = row.messages, 0
        while repeated < len(instructions) and messages[repeated : repeated + 1] == [instructions[repeated]]:
            repeated += 1
        own.append(messages[repeated:])
        instructions += [message for message in own[-1] if message.role == "system"]
    return own


def resplit(counter: TokenCounter, sources: Sequence[Sequence[Row]], max_tokens: int) -> ResplitBatch:
    """Split conversations again; each of `sources` has the pieces of one conversation, in order.

    Raises RecipeError if `max_tokens` is less than 1.
    """
    joined = [join_pieces(rows) for rows in sources]
    batch = ResplitBatch([], [])
    for rows, messages, result in zip(sources, joined, split_with(counter, joined, max_tokens), strict=True):
        _add(batch, rows, messages, result)
    return batch


def _add(batch: ResplitBatch, rows: Sequence[Row], messages: Sequence[Message], result: SplitResult) -> None:
    """Add the new pieces and rejected exchanges of one conversation."""
    # A new piece keeps language, split and source of the conversation: all its pieces have the same.
    base = replace(rows[0], name=_source_name(rows))
    old = _ranges(rows)
    system = system_positions(messages)
    for index, piece in enumerate(result.pieces):
        # The names that `clean` gives: the number is left out if there is only one piece.
        name = base.name if len(result.pieces) == 1 else f"{base.name}_{index}"
        rejected = rows[-1].rejected if piece.stop == len(messages) else []  # beside the last answer
        own = piece_messages(messages, piece, system)
        batch.pieces.append(replace(base, name=name, piece=index, messages=own, rejected=rejected))
        batch.changed += (piece.start, piece.stop) not in old
    for exchange in result.rejected:
        reason = f"messages {exchange.start} to {exchange.stop - 1}: {exchange.reason}"
        row = replace(base, messages=list(messages[exchange.start : exchange.stop]))
        batch.rejected.append((row, RecordError(exchange.rule, reason, exchange.evidence)))


def _source_name(rows: Sequence[Row]) -> str:
    """Return the id of a conversation: its only piece's name, or its first piece's without the number at the end."""
    return rows[0].name if len(rows) == 1 else rows[0].name.removesuffix(f"_{rows[0].piece}")


def _ranges(rows: Sequence[Row]) -> set[tuple[int, int]]:
    """Return the messages of each piece, without the system messages, as (start, stop) in the joined conversation."""
    start = 0
    ranges: set[tuple[int, int]] = set()
    for messages in _own_messages(rows):
        stop = start + len(messages)
        head = 0 if ranges else exchanges(messages)[0]
        ranges.add((start + head, stop))
        start = stop
    return ranges
