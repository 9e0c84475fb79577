"""Convert conversations from any format that curate reads to any that it writes.

Records stream through one at a time, so memory does not grow with the file. The target appears once it is complete.
A record that cannot be read, or that the target format cannot represent, is written to `TARGET.left-out.jsonl` with
the rule and the reason.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from curate.conversion import hub, rendered_text, tokenized, trainer_configs
from curate.conversion.output import ConvertResult, Output, Split, left_out_file, open_output
from curate.conversion.readers import AlteredRecords, InputRecord
from curate.conversion.record_builder import RecordBuilder, check_options
from curate.conversion.selection import Damaged, read_selected
from curate.conversion.tokenized import Rendering
from curate.conversion.writers import (
    COMPRESSED,
    CsvWriter,
    Entry,
    HuggingFaceWriter,
    JsonWriter,
    TextWriter,
    Writer,
    conversation_table,
    stream_to,
)
from curate.dataset import manifest
from curate.dataset.query import Query, read_ids
from curate.errors import CurateError, InputError, RecordError, did_you_mean
from curate.ingest.remote.address import is_remote
from curate.remote.sets import find_set
from curate.remote.targets import file_target
from curate.rendering.choices import Choices, EmptyThink, HiddenTools, Reasoning
from curate.rendering.factory import read_chat_template
from curate.rendering.preparation import describe_hidden
from curate.schemas import formats
from curate.schemas.formats import labelling
from curate.schemas.writing import WriteOptions

RENDERED, FOLDER = "rendered", "hf"
PROMPT_FORMATS = ("text", RENDERED)
KEPT_FLAWS = ("bad_label", "multimodal")  # rules of flaws that may be kept


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str,
    template: str | None = None,
    tokenizer: str | None = None,
    where: str | None = None,
    search: str | None = None,
    ids: str | Path | Collection[str] | None = None,
    sample: int | None = None,
    seed: int = 0,
    stratify: str | None = None,
    split: Split | None = None,
    keep: Collection[str] = (),
    history: bool = False,
    shape: str | None = None,
    shards: int | None = None,
    config_for: Collection[str] = (),
    push_to_hub: str | None = None,
    max_tokens: int | None = None,
    loss: str | None = None,
    chat_template: str | Path | None = None,
    reasoning: Reasoning | None = None,
    empty_think: EmptyThink | None = None,
    hidden_tools: HiddenTools | None = None,
) -> ConvertResult:
    """Write the conversations of a curated set, or of a file in any known format, in another format.

    A target ending in `.json` becomes one JSON array, any other text target JSON lines; `.gz` and `.zst` compress it.
    The target of `hf` is a folder. `template`, `chat_template` (a file), `tokenizer`, `reasoning` and `hidden_tools`
    are for `text` and `rendered`; `max_tokens`, `loss` and `empty_think` are for `rendered` only. Without them, the
    set's own settings are used, and the defaults of `curate.rendering.choices.Choices`. `where`, `search`, `ids` (a
    list, or a file with one on each line), `sample`, `stratify` and `split` select conversations, see
    `curate.dataset.query.Query`. Records that a dump marks as bad or that need media are left out, except for the
    rules in `keep`. `history` is for `alpaca`, `shape` for `trl` (see their modules). `shards` writes so many
    files, `NAME-00000-of-00008.jsonl` and so on, with each conversation in the next one. `config_for` names
    trainers (`llama-factory`, `axolotl`) whose settings for the file are written beside it. `push_to_hub` uploads
    it to that repository of the Hugging Face Hub, private if it is new. Raises CurateError in one line and leaves
    the target unchanged.
    """
    form = formats.get(to)
    if is_remote(target) and (to == FOLDER or config_for):
        raise InputError("a folder ('hf') and trainers' settings are written on this machine; give a local target")
    source = find_set(source)
    query = make_query(where, search, ids, split, sample, seed, stratify)
    check_keep(keep)
    options = WriteOptions(history, shape or "")
    check_options(form, options)
    if shards is not None and to == FOLDER:
        raise InputError("shards have no effect on 'hf', which makes its own")
    trainer_configs.check_trainers(config_for, to, options.shape, Path(target), shards)
    if push_to_hub is not None:
        hub.check_push(push_to_hub, to, source, split)
    _check_rendering(to, (template, tokenizer, chat_template, reasoning, hidden_tools), (max_tokens, loss, empty_think))
    choices = Choices(reasoning or "train", empty_think or "all", hidden_tools or "leave_out")
    rendering = Rendering(template, tokenizer, max_tokens, loss or "all", read_chat_template(chat_template), choices)

    def write(path: Path, damaged: Damaged) -> tuple[ConvertResult, Collection[str]]:
        if to == RENDERED:
            return tokenized.write(source, path, rendering, query, keep, shards, damaged), ()
        render = rendered_text.TextRenderer(source, rendering) if to == "text" else None
        return _convert(source, path, RecordBuilder(form, options), render, query, keep, shards, damaged)

    with file_target(target) as path:
        _check_target(source, path, form)
        try:
            try:
                result, seen = write(path, ())
            except AlteredRecords as found:  # known at the end of their stream, which is rare
                result, seen = write(path, found.records)
            result = _add_configs(result, config_for, to, seen)
        except OSError as error:
            raise CurateError(f"cannot write {str(target)!r}: {error.strerror or error}") from error
        if push_to_hub is not None:
            result = replace(result, pushed_to=hub.push(push_to_hub, source, result, to, split))
    return result.moved_to(str(target).rpartition("/")[0]) if is_remote(target) else result


def _convert(
    source: str | Path,
    path: Path,
    builder: RecordBuilder,
    render: rendered_text.TextRenderer | None,
    query: Query,
    keep: Collection[str],
    shards: int | None,
    damaged: Damaged,
) -> tuple[ConvertResult, Collection[str]]:
    """Write the conversations, and return the result and what they have, see `RecordBuilder`."""
    warnings: list[str] = []
    open_partial = functools.partial(_open_writer, target=path, builder=builder, render=render)
    with open_output(path, open_partial, folder=builder.form.name == FOLDER, shards=shards) as output:
        for record, entry in read_selected(source, query, output, warnings, keep, damaged):
            _write(output, record, entry, builder)
    if render is not None and render.hidden_tools:
        warnings.append(describe_hidden(render.hidden_tools, tokenized.HIDDEN_OPTION))
    return output.result(warnings), builder.seen


def _check_rendering(to: str, for_prompts: Sequence[object], for_ids: Sequence[object]) -> None:
    """Raise InputError for settings of rendering that have no effect on a format."""
    if to not in PROMPT_FORMATS and any(for_prompts):
        raise InputError(
            f"a template, tokenizer or choice of reasoning and tools has no effect on {to!r}; they are for 'text' and "
            "'rendered'"
        )
    if to != RENDERED and any(for_ids):
        raise InputError(f"a window, loss or choice of empty thoughts has no effect on {to!r}; they are for 'rendered'")


def _add_configs(result: ConvertResult, trainers: Collection[str], form: str, seen: Collection[str]) -> ConvertResult:
    """Write the trainers' settings, and return the result with their files and warnings."""
    if not trainers:
        return result
    configs = trainer_configs.write_configs(trainers, form, result.target, result.files, seen)
    warnings = (*result.warnings, *trainer_configs.find_untrained(trainers, form, seen))
    return replace(result, warnings=warnings, configs=tuple(configs))


def _open_writer(
    partial: Path, target: Path, builder: RecordBuilder, render: Callable[[Entry], tuple[str, str]] | None
) -> Writer[Entry]:
    """Open a writer of a format to `partial`; the target's name decides on array or lines, and on compression."""
    form = builder.form
    if form.name == "parquet":
        return conversation_table(partial)
    if form.name == FOLDER:
        return HuggingFaceWriter(partial)
    stream, array = stream_to(partial, target)
    if render is not None:
        return TextWriter(stream, render)
    if form.name == labelling.NAME:
        return CsvWriter(stream, labelling.COLUMNS, builder)
    return JsonWriter(stream, form.array or array, builder)


def _write(output: Output[Entry], record: InputRecord, entry: Entry, builder: RecordBuilder) -> None:
    """Write a conversation, or leave it out if the format cannot represent it."""
    output.count_edits(entry)
    try:
        output.write(entry)
        if lost := builder.find_lost(entry):
            output.not_held.update(lost)
    except RecordError as error:
        output.leave_out(record, entry, error)


def make_query(
    where: str | None,
    search: str | None,
    ids: str | Path | Collection[str] | None,
    split: str | None,
    sample: int | None,
    seed: int,
    stratify: str | None = None,
) -> Query:
    """Return the query of these settings; raises InputError for a file of ids that cannot be read or a sample of 0."""
    named = read_ids(ids) if isinstance(ids, str | Path) else None if ids is None else frozenset(ids)
    if sample is not None and sample < 1:
        raise InputError(f"sample is {sample}; give a number of conversations, at least 1")
    if stratify is not None and sample is None:
        raise InputError(f"stratify {stratify!r} has no effect without a sample; give its number of conversations too")
    return Query(where, search, named, split, sample, seed, stratify)


def check_keep(keep: Collection[str]) -> None:
    """Raise InputError for a rule whose flaws cannot be kept."""
    for rule in keep:
        if rule not in KEPT_FLAWS:
            raise InputError(f"keep: unknown rule {rule!r}{did_you_mean(rule, KEPT_FLAWS)}")


def _check_target(source: str | Path, target: Path, form: formats.Format) -> None:
    """Raise InputError if the target cannot be written, or would overwrite the source."""
    shown = str(target)
    if not form.writes:
        raise InputError(f"{form.name!r} can be read, not written")
    if form.name == FOLDER and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{shown!r} already exists; 'hf' writes a new folder: give another name")
    if form.name != FOLDER and target.is_dir():
        raise InputError(f"{shown!r} is a folder; give a file in it, such as {str(target / 'out.jsonl')!r}")
    if form.name != FOLDER and target.exists() and not target.is_file():
        raise InputError(f"{shown!r} is not a plain file; give another target")
    if not target.parent.is_dir():
        raise InputError(f"cannot write {target.name!r}: there is no folder {str(target.parent)!r}")
    if target.suffix in COMPRESSED and (form.name == "parquet" or target.stem.endswith(".parquet")):
        raise InputError(f"{shown!r}: Parquet files are already compressed; give a target that ends in .parquet")
    if manifest.is_set(target.parent) and target.name in manifest.FILES:
        raise InputError(f"{shown!r} is part of a curated set; give a file outside it")
    if str(source) == "-":
        return
    resolved = Path(source).resolve()
    for output in (target, left_out_file(target)):
        if resolved == output.resolve() or resolved in output.resolve().parents:
            raise InputError(f"{shown!r} would overwrite the source ({str(source)!r}); give another target")
