"""Stream the rows of a data set on the Hugging Face Hub, through the datasets library."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import polars as pl

from curate.errors import InputError, MissingExtra, error_message
from curate.ingest.tables.frame_rows import encode_frame
from curate.ingest.tables.table import Rows, Table

NAME = re.compile(r"hf:([\w.-]+(?:/[\w.-]+)?)((?::[^:/]+){0,2})")  # owner/name, perhaps a configuration and a split
BATCH_ROWS = 1000


def check_name(name: str) -> None:
    """Raise InputError for a name that is not of the form hf:owner/name[:config][:split]."""
    if NAME.fullmatch(name) is None:
        raise InputError(f"input {name!r} is no data set; write it as hf:owner/name or hf:owner/name:config:split")


def read_table(name: str, max_record_bytes: int) -> Table:
    """Open a data set; without a split all are read, and each row has its split under `split`.

    Raises InputError if it cannot be read (any further), and MissingExtra.
    """
    try:
        import datasets
        import huggingface_hub
    except ImportError:
        raise MissingExtra(f"reading {name!r}", "train") from None
    match = NAME.fullmatch(name)
    assert match is not None
    repository, parts = match[1], match[2].split(":")[1:]
    datasets.disable_progress_bars()  # curate prints only from its commands
    datasets.utils.logging.set_verbosity_error()
    try:
        huggingface_hub.HfApi().dataset_info(repository)  # tells at once, and without retries, whether it can be read
        config, split = _choose(datasets, repository, parts)
        splits = datasets.load_dataset(repository, config, split=split, streaming=True)
        streams = {split: splits} if split else dict(splits)
        columns = list(next(iter(streams.values())).features or {})
    except Exception as error:  # libraries below datasets raise errors of their own
        raise InputError(_message(name, repository, error)) from None
    names = tuple(columns if "split" in columns or not columns else [*columns, "split"])
    return Table(names, _read_rows(name, repository, streams, max_record_bytes))


def _choose(datasets: Any, repository: str, parts: list[str]) -> tuple[str | None, str | None]:
    """Return the configuration and the split; a single part is a configuration if there is one of this name."""
    if len(parts) == 2:
        return parts[0], parts[1]
    if not parts:
        return None, None
    known = datasets.get_dataset_config_names(repository)
    return (parts[0], None) if parts[0] in known else (None, parts[0])


def _read_rows(name: str, repository: str, streams: dict[str, Any], max_record_bytes: int) -> Iterator[Rows]:
    first = 0
    try:
        for split, stream in streams.items():
            for batch in stream.with_format("arrow").iter(batch_size=BATCH_ROWS):
                frame = pl.DataFrame(pl.from_arrow(batch))
                if "split" not in frame.columns:
                    frame = frame.with_columns(split=pl.lit(str(split)))
                yield from encode_frame(frame, first, max_record_bytes)
                first += frame.height
    except Exception as error:  # as above; what was read so far is kept
        raise InputError(f"{_message(name, repository, error)} (after {first:,} rows)") from None
    if not first:
        raise InputError(f"input {name!r} has no rows")


def _message(name: str, repository: str, error: Exception) -> str:
    """Return an error message of one line: why a data set cannot be read, and what to do."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/datasets/{repository}"
    match error:
        case errors.GatedRepoError():
            return f"input {name!r} is gated: ask for access at {page}, then log in with: hf auth login"
        case errors.RepositoryNotFoundError():
            return f"input {name!r} does not exist: no data set at {page} (private ones need: hf auth login)"
        case errors.OfflineModeIsEnabled():
            return f"input {name!r} cannot be read: HF_HUB_OFFLINE is set; unset it, or give files"
        case ValueError() | RuntimeError():
            return f"input {name!r} cannot be read: {error_message(error)[:300]}"
    return f"input {name!r} cannot be read: the Hub cannot be reached ({error_message(error)[:200]}); try again later"
