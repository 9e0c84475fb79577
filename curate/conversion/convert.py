"""Conversations from one file format to another: any that is read, into any that is written.

Records stream through one at a time, so memory does not grow with the file. What is written stands
aside until it is whole. A record that cannot be read, or that the target format cannot hold, is
written to `TARGET.left-out.jsonl` with the rule and the reason, never dropped in silence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from curate import files
from curate.conversion.output import ConvertResult, Split, left_out_line, left_out_of
from curate.conversion.read import Found, entry_of, rows_of
from curate.conversion.writers import COMPRESSED, Entry, Stream, Writer, encode, open_writer
from curate.dataset import manifest
from curate.errors import CurateError, InputError, RecordError
from curate.schemas import formats, prompts

RENDERED, FOLDER = "rendered", "hf"
PROMPTS = ("text", RENDERED)
DEFAULT_TEMPLATE = "vicuna"


@dataclass
class _Tally:
    read: int = 0
    written: int = 0
    other_split: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    edits: Counter[str] = field(default_factory=Counter)


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str,
    template: str | None = None,
    tokenizer: str | None = None,
    split: Split | None = None,
    max_tokens: int | None = None,
    loss: str | None = None,
    chat_template: str | Path | None = None,
) -> ConvertResult:
    """Write the conversations of a curated set, or of a file in any known format, in another format.

    A target ending in `.json` becomes one JSON array, any other text target lines; `.gz` and `.zst` compress; that of
    `hf` is a folder. `template` and `tokenizer` are for `text` (for the names of its control tokens) and `rendered`;
    `max_tokens`, `loss` and `chat_template` (a file) for `rendered` alone, where what is not given is the set's own.
    Raises CurateError in one line; the target then stands as it stood.
    """
    form = formats.get(to)
    path = Path(target)
    _check_target(source, path, form)
    if to not in PROMPTS and (template or tokenizer):
        raise InputError(f"a template or tokenizer changes nothing in {to!r}; they are for 'text' and 'rendered'")
    if to != RENDERED and (max_tokens or loss or chat_template):
        raise InputError(f"a window, loss or chat template changes nothing in {to!r}; they are for 'rendered'")
    try:
        if to == RENDERED:
            from curate.conversion import tokenized

            how = tokenized.Rendering(template, tokenizer, max_tokens, loss or "all", _read(chat_template))
            return tokenized.write(source, path, how, split)
        render = _renderer(source, template, tokenizer) if to == "text" else None
        return _convert(source, path, lambda partial: open_writer(partial, path, form, render), split)
    except OSError as error:
        raise CurateError(f"cannot write {str(target)!r}: {error.strerror or error}") from error


def _read(chat_template: str | Path | None) -> str | None:
    """Return the text of a file with a Jinja chat template."""
    try:
        return None if chat_template is None else Path(chat_template).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the chat template {str(chat_template)!r}: {error}") from error


def _convert(
    source: str | Path, target: Path, writer_to: Callable[[Path], Writer], split: Split | None
) -> ConvertResult:
    left_out_file = left_out_of(target)
    warnings: list[str] = []
    tally = _Tally()
    with files.replacing(target) as partial, files.replacing(left_out_file) as partial_left_out:
        with closing(Stream(partial_left_out)) as left_out, closing(writer_to(partial)) as writer:
            for row in rows_of(source, warnings):
                _pass_on(row, writer, left_out, tally, split)
            writer.finish()
        if not tally.left_out:
            partial_left_out.unlink()
            left_out_file.unlink(missing_ok=True)  # an earlier run's
    found = left_out_file if tally.left_out else None
    counts = (tally.read, tally.written, dict(tally.left_out), tally.other_split, dict(tally.edits))
    return ConvertResult(target, *counts, found, tuple(warnings))


def _pass_on(row: Found, writer: Writer, left_out: Stream, tally: _Tally, split: Split | None) -> None:
    """Write one record, or say in `left_out` why it is not written."""
    tally.read += 1
    entry: Entry | None = None
    try:
        entry = entry_of(row)
        tally.edits.update(edit.rule for edit in entry.conversation.edits)
        if split and entry.split is None:
            raise InputError(f"{row.file!r} has no train and eval; only a curated set does")
        if split and entry.split != split:
            tally.other_split += 1
            return
        writer.write(entry)
        tally.written += 1
    except RecordError as error:
        tally.left_out[error.rule] += 1
        left_out.line(encode(left_out_line(row, entry, error)))


def _check_target(source: str | Path, target: Path, form: formats.Format) -> None:
    """Refuse a target that cannot be written, or that what is read would be lost to."""
    shown = str(target)
    if form.name == FOLDER and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{shown!r} is there already; 'hf' writes a folder of its own: name a new one")
    if form.name != FOLDER and target.is_dir():
        raise InputError(f"{shown!r} is a folder; name a file in it, such as {str(target / 'out.jsonl')!r}")
    if form.name != FOLDER and target.exists() and not target.is_file():
        raise InputError(f"{shown!r} is not a plain file; name another")
    if not target.parent.is_dir():
        raise InputError(f"there is no folder {str(target.parent)!r} to write {target.name!r} in")
    if target.suffix in COMPRESSED and (form.name == "parquet" or target.stem.endswith(".parquet")):
        raise InputError(f"{shown!r}: Parquet is compressed in itself; name the target .parquet")
    if manifest.is_set(target.parent) and target.name in manifest.FILES:
        raise InputError(f"{shown!r} is part of a curated set; name a file outside it")
    if str(source) == "-":
        return
    read = Path(source).resolve()
    for written in (target, left_out_of(target)):
        if read == written.resolve() or read in written.resolve().parents:
            raise InputError(f"{shown!r} would be written over what is read ({str(source)!r}); name another target")


def _renderer(source: str | Path, template: str | None, tokenizer: str | None) -> Callable[[Entry], str]:
    """Return how a conversation is shown: in the set's own template and end token, unless others are named."""
    path = Path(source)
    own = manifest.read(path)[1] if manifest.is_set(path) else None
    form = prompts.get(template or (own.template if own else DEFAULT_TEMPLATE))
    bos, eos = (own.tokenizer.bos_token, own.tokenizer.eos_token) if own else (None, None)
    if tokenizer is not None:
        from curate.tokenization.tokenizer import load_tokenizer

        loaded = load_tokenizer(tokenizer)
        form = prompts.fit(form, loaded.control_ids)
        bos, eos = loaded.info.bos_token, loaded.info.eos_token
    return lambda entry: prompts.text(form, entry.conversation.messages, bos=bos or "<s>", eos=eos or "</s>")
