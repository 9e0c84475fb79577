"""Run one batch of records through all steps that need no other batch: the work of one worker.

    parse → convert to markdown → repair → measure → filter → count and split → write a part

Decisions over the whole corpus (duplicates, ids, train or eval) follow in `curate.pipeline.corpus`, from the small
`summary` of each part; `curate.pipeline.tables` then writes the set from the parts in order.
"""

from __future__ import annotations

import functools
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from curate.dataset import columns
from curate.errors import RecordError
from curate.filters import caps, duplicates, registry, repairs, verdicts
from curate.filters.personal_data import redaction
from curate.ingest.decode import Chunk, decode_records
from curate.pipeline import frames, repair_html, repair_text, repair_turns, train_marks
from curate.pipeline.frames import Draft, Origin, Reject, part_file
from curate.pipeline.near import parts as near_parts
from curate.pipeline.recipe import Recipe
from curate.rendering import splitter
from curate.rendering.compiled_template import CompiledTemplate
from curate.rendering.mask_view import MaskedText, masked_text
from curate.schemas import formats, prompts
from curate.schemas.conversation import Conversation, Message
from curate.schemas.reading import turns
from curate.tokenization.tokenizer import Tokenizer, TokenizerInfo, load_tokenizer


@dataclass(frozen=True)
class CleanerFactory:
    """Builds a `Cleaner` in each worker: small and picklable."""

    recipe: Recipe
    parts: Path
    ratings: Mapping[str, bool] = field(default_factory=dict)  # of messages, by id

    def __call__(self) -> Cleaner:
        cleaner = Cleaner(self)
        cleaner.load_tokenizer()
        return cleaner


@dataclass(frozen=True)
class MaskTask:
    """Conversations to render with loss mask; a task for a worker, which has template and tokenizer loaded."""

    conversations: tuple[tuple[Message, ...], ...]


@dataclass(frozen=True)
class Part:
    """The result of one task: counts and hashes; its rows are in files named by `number`.

    `summary` has one row per measured conversation (`columns.PART_SUMMARY`); `pieces` is 0 if it was rejected, or if it
    is only measured for `alone`.
    """

    number: int
    read: int  # records, and further branches of records
    rejected: Counter[str]  # records by the first rule that rejects them
    alone: Counter[str]  # records that each rule would reject if no other that can be turned off were on
    summary: pl.DataFrame | pl.LazyFrame
    seconds: dict[str, float]
    tokenizer: TokenizerInfo | None = None  # None: that of the set whose rows were copied
    branches: int = 0  # of those read, the further ones of a record
    verdicts: pl.DataFrame | None = None  # kept rows that are rejected after all: row, rule, reason, evidence
    first: int = 0  # is added to the `source_index` of its rows


@dataclass(frozen=True)
class Cleaned:
    """A part with its tables, and what rules over the whole corpus compare (`near.parts.compared_texts`)."""

    part: Part
    summary: pl.DataFrame
    tables: dict[str, pl.DataFrame]
    texts: pl.DataFrame | None


@dataclass(frozen=True)
class TrainTask:
    """Messages of a part's kept conversations to train (see `train_marks`): the part's files are written again."""

    number: int
    gains: pl.DataFrame


class Cleaner:
    """Cleans chunks; as a step, changes parts and renders conversations."""

    def __init__(self, factory: CleanerFactory) -> None:
        recipe = factory.recipe
        for path in recipe.filter_files:
            registry.load(path)
        self.recipe = recipe
        self.options = replace(recipe.input.read_options(), ratings=factory.ratings)
        self.parts = factory.parts
        self.load_tokenizer = functools.cache(functools.partial(load_tokenizer, recipe.tokens.tokenizer))
        self.template = prompts.get(recipe.tokens.template)
        filters = registry.rules("filter")
        self.filters = [name for name in recipe.filters if name in filters]
        self.verdicts = verdicts.Filters({name: recipe.filters[name] for name in self.filters})
        self.signals = verdicts.needed_signals({name: recipe.filters[name] for name in self.filters}, recipe.signals)
        self.repairs = repairs.find_repairs(recipe.filters)
        self.repaired = frozenset(repair.of or repair.name for repair, _ in self.repairs)
        self.caps_prompts = caps.PROMPT_CAP in recipe.filters
        self.near = recipe.filters.get(duplicates.NEAR)
        self.redacted = redaction.redacted_families(recipe.filters)
        self.groups = tuple(columns.GROUP_SUMMARY) if caps.CAP in recipe.filters else ()
        self.scores: pl.DataFrame | None = None  # of a set whose records are cleaned again, by `columns.CHAT`
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @property
    def tokenizer(self) -> Tokenizer:
        """The recipe's tokenizer, loaded when it is first needed; copies of the cleaner share it."""
        return self.load_tokenizer()

    def __call__(self, task: MaskTask | TrainTask) -> tuple[MaskedText, ...] | None:
        """Change a part, or return the mask spans of conversations."""
        if isinstance(task, MaskTask):
            compiled = CompiledTemplate(self.template, self.tokenizer)
            return tuple(masked_text(compiled, messages) for messages in task.conversations)
        self._train(task.number, task.gains)
        return None

    def clean_chunks(self, number: int, chunks: Sequence[Chunk]) -> Cleaned:
        """Clean chunks; return the part, of which nothing is written yet."""
        self.seconds = defaultdict(float)
        rejects: list[Reject] = []
        with self._time_stage("parse"):
            drafts, read = self._parse(chunks, rejects)
        branches = sum(draft.branch > 0 for draft in drafts)
        alone = Counter(reject.rule for reject in rejects)
        with self._time_stage("markdown"):
            repair_html.convert((draft.conversation for draft in drafts), self.recipe.repair)
        with self._time_stage("repair"):
            repairs.apply_repairs([draft.conversation for draft in drafts], self.repairs)
            drafts, bare = self._repair(drafts, rejects, alone)
        with self._time_stage("frame"):
            counted = [*drafts, *bare]  # in one table, since each table has its cost
            messages = frames.messages_table(counted)
            frame = frames.conversations_table(counted, messages)
        with self._time_stage("signals"):
            frame = self._add_scores(verdicts.measure(frame, self.signals), counted)
        with self._time_stage("filters"):
            survivors = self._filter(frame, drafts, bare, rejects, alone)
        with self._time_stage("split"):
            pieces = self._split(drafts, survivors, rejects, alone)
        with self._time_stage("hash"):
            every_prompt = self.caps_prompts or bool(self.groups)
            summary = frames.summary_table(counted, messages, pieces, every_prompt)
            summary = summary.hstack(frame.select(self.groups))
        texts = near_parts.compared_texts(messages, frame, self.near, self.caps_prompts)
        with self._time_stage("write"):
            batch = frames.Batch(drafts, messages, frame, pieces, self.template)
            tables = {
                "kept": frames.kept_table(batch),
                "originals": self._redact_records(frames.originals_table(batch)),
                "rejected": self._redact_records(frames.rejected_table(self._redact_evidence(rejects), frame)),
            }
        rejected = Counter(reject.rule for reject in rejects if reject.scope == "record")
        part = Part(number, read, rejected, alone, summary, dict(self.seconds), self.tokenizer.info, branches)
        return Cleaned(part, summary, tables, texts)

    def _add_scores(self, frame: pl.DataFrame, drafts: Sequence[Draft]) -> pl.DataFrame:
        """Return the frame with what a model has measured of its conversations, where that is known."""
        if self.scores is None:
            return frame
        keys = frames.keys_table(drafts).join(self.scores, on=list(columns.CHAT), how="left", maintain_order="left")
        return frame.with_columns(keys.drop(columns.CHAT))

    def _redact_evidence(self, rejects: list[Reject]) -> list[Reject]:
        """Return the rejects without values that are redacted, which those of unparsed records still have."""
        if not self.redacted:
            return rejects
        texts = [text for each in rejects for text in (each.reason, each.evidence)]
        changed = iter(redaction.redact_texts(texts, self.redacted))
        ids = redaction.redact_ids([each.source_id for each in rejects], self.redacted)
        return [
            replace(each, source_id=source_id, reason=reason, evidence=evidence)
            for each, source_id, reason, evidence in zip(rejects, ids, changed, changed, strict=True)
        ]

    def _redact_records(self, table: pl.DataFrame) -> pl.DataFrame:
        """Return a table with redacted records, if the recipe says so; originals become the rejects of duplicates."""
        if not self.recipe.output.redact_rejects:
            return table
        texts = [record and record.decode("utf-8", "replace") for record in table["record"]]
        changed = iter(redaction.redact_texts([text for text in texts if text is not None], self.redacted))
        records = [None if text is None else next(changed).encode() for text in texts]
        return table.with_columns(record=pl.Series(records, dtype=pl.Binary))

    @contextmanager
    def _time_stage(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - start

    def _parse(self, chunks: Sequence[Chunk], rejects: list[Reject]) -> tuple[list[Draft], int]:
        """Return the conversations of the chunks' records, and their number together with the records without any."""
        drafts: list[Draft] = []
        before = len(rejects)
        raws = ((chunk.source_file, raw) for chunk in chunks for raw in decode_records(chunk))
        for number, (source_file, raw) in enumerate(raws):
            origin = Origin(number, source_file, raw.index)
            try:
                if raw.problem is not None:
                    raise raw.problem
                for branch, conversation in enumerate(formats.parse_all(raw.value, self.options)):
                    repair_text.clean_text(conversation, surrogates=raw.surrogates)
                    for repair, text in raw.repairs:
                        conversation.edit(repair, None, text, "")
                    drafts.append(Draft(origin, raw.raw, conversation, branch=branch))
            except RecordError as error:
                rejects.append(frames.reject_record(origin, raw.raw, _source_id(raw.value), error))
        return drafts, len(drafts) + len(rejects) - before

    def _repair(
        self, drafts: Sequence[Draft], rejects: list[Reject], alone: Counter[str]
    ) -> tuple[list[Draft], list[Draft]]:
        """Return the drafts in order, and those that `alone` is counted with where rules that are not alone took part.

        The second are the same conversations with all rules turned off that can be.
        """
        settings = self.recipe.repair
        kept: list[Draft] = []
        bare: list[Draft] = []
        for draft in drafts:
            if repair_turns.is_in_order(draft.conversation, settings):
                kept.append(draft)
                continue
            whole = draft.conversation.copy()
            rule = None
            try:
                draft.lost = repair_turns.order(draft.conversation, settings)
                if not self.template.mid_system:
                    repair_turns.note_folds(draft.conversation)
                kept.append(draft)
            except RecordError as error:
                rule = error.rule
                draft.lost = error.lost if isinstance(error, repair_turns.NothingLeft) else []
                rejects.extend(frames.reject_draft(draft, error))
            if repair_turns.has_switched(draft.lost, rule, self.repaired):
                draft.alone = False
                bare.extend(_repair_alone(draft, whole, settings, self.repaired, alone))
            elif rule is not None:
                alone[rule] += 1
        return kept, bare

    def _filter(
        self,
        frame: pl.DataFrame,
        drafts: Sequence[Draft],
        bare: Sequence[Draft],
        rejects: list[Reject],
        alone: Counter[str],
    ) -> list[int]:
        """Return the rows of drafts that no filter rejects, and count what each filter and the window reject alone.

        The rows of `bare` follow those of the drafts.
        """
        survivors: list[int] = []
        rejected: list[Draft] = list(bare)
        for row, verdict in enumerate(self.verdicts.apply(frame).iter_rows(named=True)):
            if row >= len(drafts):
                alone.update(verdict["rules"])
                continue
            if verdict["rule"] is None:
                survivors.append(row)
                continue
            draft = drafts[row]
            error = RecordError(verdict["rule"], verdict["reason"] or "", verdict["evidence"] or "")
            rejects.extend(frames.reject_draft(draft, error, row))
            if draft.alone:
                alone.update(verdict["rules"])
                rejected.append(draft)
        alone[splitter.TOO_LONG] += self._count_too_long(rejected)
        return survivors

    def _split(
        self, drafts: Sequence[Draft], survivors: Sequence[int], rejects: list[Reject], alone: Counter[str]
    ) -> dict[int, list[splitter.Piece]]:
        """Return the pieces of each surviving row; rows without pieces are rejected."""
        results = self._split_conversations([drafts[row] for row in survivors])
        pieces: dict[int, list[splitter.Piece]] = {}
        for row, result in zip(survivors, results, strict=True):
            draft = drafts[row]
            draft.lose(result.rejected)
            if result.pieces:
                pieces[row] = list(result.pieces)
                _name_continuations(draft.conversation, result.pieces)
                rejects.extend(frames.reject_exchanges(draft, row))
            else:
                rejects.extend(frames.reject_draft(draft, repair_turns.NothingLeft(draft.lost), row))
                alone[splitter.TOO_LONG] += draft.alone
        return pieces

    def _split_conversations(self, drafts: Sequence[Draft]) -> list[splitter.SplitResult]:
        settings = self.recipe.tokens
        conversations = [draft.conversation.messages for draft in drafts]
        return splitter.split_batch(
            conversations, self.template, self.tokenizer, settings.max_tokens, settings.overlong
        )

    def _count_too_long(self, drafts: Sequence[Draft]) -> int:
        """Return how many conversations have no exchange that fits the window; most need not be tokenized for that."""
        window = self.recipe.tokens.max_tokens
        large = [draft for draft in drafts if splitter.may_exceed(draft.conversation.messages, window)]
        return sum(not result.pieces for result in self._split_conversations(large))

    def _train(self, number: int, gains: pl.DataFrame) -> None:
        kept, originals = (pl.read_ipc(part_file(self.parts, number, name)) for name in ("kept", "originals"))
        counter = splitter.TemplateCounter(self.template, self.tokenizer)
        changed = pl.col("changed") | pl.col("row").is_in(gains["row"].unique().implode())
        tables = {
            frames.trained("kept"): train_marks.train_messages(kept, gains, counter),
            frames.trained("originals"): originals.with_columns(changed),
        }
        self.write(number, tables)

    def write(self, number: int, tables: Mapping[str, pl.DataFrame]) -> None:
        """Write the tables of a part."""
        for name, table in tables.items():
            table.write_ipc(part_file(self.parts, number, name), compression="uncompressed")


def _name_continuations(conversation: Conversation, pieces: Sequence[splitter.Piece]) -> None:
    """Record an edit for each piece that begins with a prompt such as "continue", and lacks what that continues."""
    for piece in pieces:
        own = conversation.messages[piece.start : piece.stop]
        if splitter.begins_with_continuation(own):
            prompt = next(message for message in own if message.role == "user")
            conversation.edit("lost_context", prompt.place, prompt.content, prompt.content)


def _source_id(value: object) -> str | None:
    """Return the id of a record that could not be parsed, if it is text."""
    source_id = value.get("id") if isinstance(value, dict) else None
    return turns.preview(source_id) if isinstance(source_id, str) else None


def _repair_alone(
    draft: Draft,
    whole: Conversation,
    settings: repair_turns.RepairSettings,
    filters: Set[str],
    alone: Counter[str],
) -> Iterator[Draft]:
    """Yield the draft with all rules off that can be turned off, unless one that is always on rejects it.

    Count the rule that does, or else each repair that would reject it alone. `filters` are those of the recipe that
    remove exchanges.
    """
    bare = _without_flaws(whole, filters)
    off = repair_turns.all_off(settings)
    try:
        repair_turns.order(bare.copy(), off)
    except RecordError as error:
        alone[error.rule] += 1
        return
    on = {rule: (bare, only) for rule, only in repair_turns.rules_that_are_on(settings).items()}
    for name in filters & {flaw.rule for flaw in whole.flaws}:
        on[name] = _without_flaws(whole, filters - {name}), off
    for rule, (conversation, only) in on.items():
        try:
            repair_turns.order(conversation.copy(), only)
        except RecordError:
            alone[rule] += 1
    repair_turns.order(bare, off)
    yield Draft(draft.origin, draft.raw, bare, branch=draft.branch)


def _without_flaws(conversation: Conversation, rules: Set[str]) -> Conversation:
    """Return a copy without the flaws of these rules."""
    copy = conversation.copy()
    copy.flaws = [flaw for flaw in copy.flaws if flaw.rule not in rules]
    return copy
