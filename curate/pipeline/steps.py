"""One batch of records through every step that needs no other batch: the work of one worker.

    records → conversations → repaired → markdown → measured → filtered → counted and split → a part on disk

What concerns the whole corpus (duplicates, ids, train or eval) is decided later, over the small
`summary` of each part; `curate.pipeline.corpus` then writes the set from the parts in their order.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from curate import markdown
from curate.errors import RecordError
from curate.filters import registry
from curate.filters import verdicts as run
from curate.ingest.decode import Chunk, decode_records
from curate.pipeline import frames, repair_text, repair_turns
from curate.pipeline.frames import Draft, Reject
from curate.pipeline.recipe import Recipe
from curate.rendering import split
from curate.rendering.compiled_template import CompiledTemplate
from curate.rendering.mask_view import MaskedText, masked_text
from curate.schemas import formats, prompts, read_turns
from curate.schemas.conversation import Conversation, Message
from curate.tokenization.tokenizer import TokenizerInfo, load_tokenizer


@dataclass(frozen=True)
class Plan:
    """What a worker needs to know: small, picklable, the same for every worker."""

    recipe: Recipe
    parts: Path

    def __call__(self) -> Cleaner:
        return Cleaner(self)


@dataclass(frozen=True)
class Shown:
    """Conversations whose rendering will be looked at: a task for a worker, which has template and tokenizer open."""

    conversations: tuple[tuple[Message, ...], ...]


@dataclass(frozen=True)
class Part:
    """What comes of one chunk: small figures here, the rows in files named by `number`.

    `summary` has a row for each conversation that could be measured: `row`, `source_file`,
    `source_index`, `source_id`, `chain`, `cluster`, `pieces` (0: rejected).
    """

    number: int
    read: int
    rejected: Counter[str]  # records, by the rule that took them first
    alone: Counter[str]  # records each rule would have taken alone
    exchanges: Counter[str]  # exchanges lost from kept records, by rule
    summary: pl.DataFrame
    tokenizer: TokenizerInfo
    seconds: dict[str, float]


class Cleaner:
    """The step that `curate.engine` runs: call it with a numbered chunk, get a `Part`."""

    def __init__(self, plan: Plan) -> None:
        recipe = plan.recipe
        for path in recipe.filter_files:
            registry.load(path)
        self.recipe = recipe
        self.parts = plan.parts
        self.tokenizer = load_tokenizer(recipe.tokens.tokenizer)
        self.template = prompts.get(recipe.tokens.template)
        filters = registry.rules("filter")
        self.filters = [name for name in recipe.filters if name in filters]
        self.verdicts = run.Filters({name: recipe.filters[name] for name in self.filters})
        self.signals = {name: signal.settings for name, signal in registry.rules("signal").items()}
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def __call__(self, task: tuple[int, Chunk] | Shown) -> Part | tuple[MaskedText, ...]:
        """Clean one chunk and write its part; or tell what is trained on in conversations."""
        if isinstance(task, Shown):
            compiled = CompiledTemplate(self.template, self.tokenizer)
            return tuple(masked_text(compiled, messages) for messages in task.conversations)
        return self._clean(*task)

    def _clean(self, number: int, chunk: Chunk) -> Part:
        self.seconds = defaultdict(float)
        rejects: list[Reject] = []
        with self._timed("parse"):
            drafts, read = self._parse(chunk, rejects)
        with self._timed("markdown"):
            self._to_markdown(drafts)
        with self._timed("repair"):
            drafts = self._order(drafts, rejects)
        with self._timed("frame"):
            flat = frames.messages_table(drafts)
            frame = frames.frame_of(drafts, flat)
        with self._timed("signals"):
            frame = run.measure(frame, self.signals)
        with self._timed("filters"):
            survivors, alone = self._filter(frame, drafts, rejects)
        with self._timed("split"):
            pieces = self._split(drafts, survivors, rejects)
        with self._timed("hash"):
            summary = frames.summary(chunk.source_file, drafts, pieces)
        with self._timed("write"):
            tables = {
                "kept": frames.kept(chunk.source_file, drafts, flat, frame, pieces),
                "originals": frames.originals(chunk.source_file, drafts, pieces),
                "rejected": frames.rejected(chunk.source_file, rejects, frame),
            }
            self._write(number, tables)
        rejected, exchanges = _counts(rejects)
        alone += Counter({rule: n for rule, n in rejected.items() if rule not in self.filters})
        return Part(number, read, rejected, alone, exchanges, summary, self.tokenizer.info, dict(self.seconds))

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - start

    def _parse(self, chunk: Chunk, rejects: list[Reject]) -> tuple[list[Draft], int]:
        drafts: list[Draft] = []
        raws = decode_records(chunk)
        for raw in raws:
            try:
                if raw.problem is not None:
                    raise raw.problem
                conversation = formats.parse(raw.value)
                repair_text.clean_text(conversation, surrogates=raw.surrogates)
                if raw.note:
                    conversation.edit("lenient_json", None, raw.note, "")
                drafts.append(Draft(raw.index, raw.raw, conversation))
            except RecordError as error:
                rejects.append(frames.reject_record(raw.index, raw.raw, _source_id(raw.value), error))
        return drafts, len(raws)

    def _to_markdown(self, drafts: Sequence[Draft]) -> None:
        """Convert the HTML answers of all conversations to markdown in one call."""
        settings = self.recipe.repair
        found: list[tuple[Conversation, int]] = []
        for draft in drafts:
            for position, message in enumerate(draft.conversation.messages):
                if message.role != "assistant":
                    if message.content[:1] == "<" and message.role == "user" and settings.html == "auto":
                        _unwrap(draft.conversation, position)
                    continue
                if settings.html == "auto" and markdown.looks_like_html(message.content):
                    found.append((draft.conversation, position))
                elif settings.chrome:
                    _strip_chrome(draft.conversation, position)
        texts = markdown.to_markdown(
            [conversation.messages[position].content for conversation, position in found],
            citations=settings.citations,
        )
        _replace(found, texts)

    def _order(self, drafts: Sequence[Draft], rejects: list[Reject]) -> list[Draft]:
        kept = []
        for draft in drafts:
            try:
                draft.lost = repair_turns.order(draft.conversation, self.recipe.repair)
                kept.append(draft)
            except RecordError as error:
                rejects.append(frames.reject_record(draft.index, draft.raw, draft.conversation.source_id, error))
        return kept

    def _filter(
        self, frame: pl.DataFrame, drafts: Sequence[Draft], rejects: list[Reject]
    ) -> tuple[list[int], Counter[str]]:
        """Return the rows that no filter takes, and how many each filter would take alone."""
        verdicts = self.verdicts.apply(frame)
        alone: Counter[str] = Counter()
        survivors = []
        for row, verdict in enumerate(verdicts.iter_rows(named=True)):
            if verdict["rule"] is None:
                survivors.append(row)
                continue
            alone.update(verdict["rules"])
            draft = drafts[row]
            error = RecordError(verdict["rule"], verdict["reason"] or "", verdict["evidence"] or "")
            rejects.append(frames.reject_record(draft.index, draft.raw, draft.conversation.source_id, error, row))
        return survivors, alone

    def _split(
        self, drafts: Sequence[Draft], survivors: Sequence[int], rejects: list[Reject]
    ) -> dict[int, list[split.Piece]]:
        """Return the pieces of each surviving row; rows left with none are rejected."""
        settings = self.recipe.tokens
        results = split.split_batch(
            [drafts[row].conversation.messages for row in survivors],
            self.template,
            self.tokenizer,
            settings.max_tokens,
            settings.overlong,
        )
        pieces: dict[int, list[split.Piece]] = {}
        for row, result in zip(survivors, results, strict=True):
            draft = drafts[row]
            draft.lose(result.rejected)
            if result.pieces:
                pieces[row] = list(result.pieces)
                rejects.extend(frames.reject_exchanges(draft))
            else:
                first = draft.lost[0]
                error = RecordError(first.rule, first.reason, first.evidence)
                rejects.append(frames.reject_record(draft.index, draft.raw, draft.conversation.source_id, error, row))
        return pieces

    def _write(self, number: int, tables: dict[str, pl.DataFrame]) -> None:
        for name, table in tables.items():
            table.write_ipc(part_file(self.parts, number, name), compression="uncompressed")


def part_file(parts: Path, number: int, name: str) -> Path:
    """Return where a part's rows lie; `name` is kept, originals or rejected."""
    return parts / f"{number:06d}.{name}.arrow"


def _source_id(value: object) -> str | None:
    """Return the id of a value that could not become a conversation, if it has one that can be written."""
    found = value.get("id") if isinstance(value, dict) else None
    return read_turns.preview(found) if isinstance(found, str) else None


def _unwrap(conversation: Conversation, position: int) -> None:
    message = conversation.messages[position]
    text = markdown.unwrap_prompt(message.content)
    if text != message.content:
        conversation.edit("prompt_markup", position, message.content, text)
        message.content = text


def _strip_chrome(conversation: Conversation, position: int) -> None:
    message = conversation.messages[position]
    stripped = markdown.strip_chrome(message.content)
    if stripped != message.content:
        conversation.edit("chrome", position, message.content, stripped)
        message.content = stripped


def _replace(found: Sequence[tuple[Conversation, int]], texts: Sequence[str]) -> None:
    """Put the markdown in place of the HTML, one edit a conversation: its first message, how many there were."""
    counts = Counter(id(conversation) for conversation, _ in found)
    for (conversation, position), text in zip(found, texts, strict=True):
        message = conversation.messages[position]
        if count := counts.pop(id(conversation), 0):
            conversation.edit("html_to_markdown", position, message.content, text, count)
        message.content = text
        message.was_html = True


def _counts(rejects: Sequence[Reject]) -> tuple[Counter[str], Counter[str]]:
    records = Counter(reject.rule for reject in rejects if reject.scope == "record")
    exchanges = Counter(reject.rule for reject in rejects if reject.scope == "exchange")
    return records, exchanges
