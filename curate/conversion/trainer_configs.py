"""The settings by which LLaMA-Factory and axolotl load a converted file, written beside it."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from curate import files
from curate.conversion.writers import COMPRESSED
from curate.errors import InputError, did_you_mean
from curate.schemas.formats import alpaca, openai, sharegpt, trl, vicuna

LLAMA_FACTORY, AXOLOTL = TRAINERS = ("llama-factory", "axolotl")
DATASET_INFO = "dataset_info.json"  # LLaMA-Factory's name for it
OPENAI_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}
# Axolotl's keys for each format.
AXOLOTL_KEYS: dict[str, dict[str, object]] = {
    sharegpt.NAME: {
        "type": "chat_template",
        "field_messages": "conversations",
        "message_property_mappings": {"role": "from", "content": "value"},
        "message_field_training": "weight",
    },
    openai.NAME: {"type": "chat_template", "field_messages": "messages", "message_field_training": "weight"},
    trl.NAME: {"type": "chat_template", "field_messages": "messages"},
    alpaca.NAME: {"type": "alpaca"},
    "rendered": {"type": ""},
}
AXOLOTL_KEYS[vicuna.NAME] = {
    key: value for key, value in AXOLOTL_KEYS[sharegpt.NAME].items() if key != "message_field_training"
}
LLAMA_FACTORY_FORMATS = (sharegpt.NAME, vicuna.NAME, openai.NAME, trl.NAME, alpaca.NAME)


def check_trainers(trainers: Collection[str], form: str, shape: str, target: Path, shards: int | None) -> None:
    """Raise InputError for a trainer that is unknown or cannot load such a file, or a damaged dataset_info.json."""
    for trainer in trainers:
        if trainer not in TRAINERS:
            raise InputError(f"config_for: unknown trainer {trainer!r}{did_you_mean(trainer, TRAINERS)}")
        known = LLAMA_FACTORY_FORMATS if trainer == LLAMA_FACTORY else tuple(AXOLOTL_KEYS)
        if form not in known or shape in (trl.COMPLETION, trl.PREFERENCE):
            shown = f"{form} ({shape})" if shape else form
            raise InputError(f"curate writes no settings of {trainer} for {shown}; it does for {', '.join(known)}")
        if trainer == LLAMA_FACTORY and target.suffix in COMPRESSED:
            raise InputError(f"LLaMA-Factory does not read {target.suffix} files; give a name without it")
        if trainer == LLAMA_FACTORY and shards is not None:
            raise InputError("LLaMA-Factory's entry names one file; leave out the shards")
    if LLAMA_FACTORY in trainers:
        _read_dataset_info(target.with_name(DATASET_INFO))


def write_configs(
    trainers: Collection[str], form: str, target: Path, paths: tuple[Path, ...], seen: Collection[str]
) -> list[Path]:
    """Write the settings of each trainer, and return the files; `seen` are what the conversations have."""
    written = []
    for trainer in trainers:
        if trainer == LLAMA_FACTORY:
            file = target.with_name(DATASET_INFO)
            entries = {**_read_dataset_info(file), target.stem: _dataset_info(form, target, seen)}
            text = json.dumps(entries, indent=2, ensure_ascii=False) + "\n"
        else:
            file = target.with_name(f"{target.name.partition('.')[0]}.axolotl.yaml")
            text = _stanza(form, paths)
        files.write_text(file, text)
        written.append(file)
    return written


def find_untrained(trainers: Collection[str], form: str, seen: Collection[str]) -> list[str]:
    """Return warnings about what a trainer does not see in the file."""
    warnings = []
    if LLAMA_FACTORY in trainers and "untrained" in seen:
        warnings.append("LLaMA-Factory trains on every answer, also on those whose weight is 0 in the file")
    if AXOLOTL in trainers and "calls" in seen and form == sharegpt.NAME:
        warnings.append("axolotl reads no tool calls from this format; write 'openai'")
    return warnings


def _read_dataset_info(file: Path) -> dict[str, object]:
    """Return the entries of an existing file; none if there is no file."""
    if not file.exists():
        return {}
    try:
        entries = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {str(file)!r}, which gets an entry: {error}") from error
    if not isinstance(entries, dict):
        raise InputError(f"cannot add an entry to {str(file)!r}: it is not a JSON object of data sets")
    return entries


def _dataset_info(form: str, target: Path, seen: Collection[str]) -> dict[str, object]:
    entry: dict[str, object] = {"file_name": target.name}
    tools = {"tools": "tools"} if "tools" in seen else {}
    if form == alpaca.NAME:
        columns = {"prompt": "instruction", "query": "input", "response": "output"}
        optional = {key: key for key in ("system", "history") if key in seen}
        return {**entry, "formatting": "alpaca", "columns": {**columns, **optional}}
    if form in (sharegpt.NAME, vicuna.NAME):
        columns = {"messages": "conversations", **tools}
        return {**entry, "formatting": "sharegpt", "columns": columns, "tags": _SHAREGPT}
    return {**entry, "formatting": "openai", "columns": {"messages": "messages", **tools}, "tags": OPENAI_TAGS}


_SHAREGPT = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"} | {
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}


def _stanza(form: str, paths: tuple[Path, ...]) -> str:
    """Return axolotl's `datasets:` in YAML; one item for each file."""
    lines = ["datasets:"]
    for path in paths:
        kind = "parquet" if path.suffix == ".parquet" else "json"
        items = {"path": str(path), "ds_type": kind, **AXOLOTL_KEYS[form]}
        first = "  - "
        for key, value in items.items():
            lines.append(f"{first}{key}:{'' if value == '' else f' {json.dumps(value, ensure_ascii=False)}'}")
            first = "    "
    return "\n".join(lines) + "\n"
