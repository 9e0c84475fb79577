"""How a result generates: with the settings of its base, and with every token that ends an answer.

A fine-tuned model learns one stop token; its base may have others, such as LLaMA-3.1's `<|eom_id|>` after a call.
Servers read them from `generation_config.json`, `config.json` or the tokenizer, so all three must agree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from curate.files import read_whole

GENERATION, CONFIG, TOKENIZER_CONFIG = "generation_config.json", "config.json", "tokenizer_config.json"
_MAX_LENGTH = 10**9  # tokens; transformers writes 1e30 for a length that is unknown
_NOT_KEPT = ("_from_model_config", "transformers_version", "eos_token_id")


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, empty if there is none: every file here is optional."""
    try:
        values = json.loads(read_whole(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def write_object(path: Path, values: Mapping[str, object]) -> None:
    """Write an object as a JSON file."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")


def stop_ids(folder: Path | None) -> tuple[int, ...]:
    """Return the tokens at which the model in a folder stops, by its generation_config.json or else config.json."""
    for path in (folder / GENERATION, folder / CONFIG) if folder else ():
        found: Any = read_object(path).get("eos_token_id")
        if ids := [token for token in (found if isinstance(found, list) else [found]) if _is_id(token)]:
            return tuple(ids)
    return ()


def _is_id(value: Any) -> bool:
    return type(value) is int and value >= 0


def generation_config(base: Path | None, stops: Sequence[int], bos: int | None, pad: int | None) -> dict[str, object]:
    """Return generation_config.json: that of the base's folder, such as its sampling, with these tokens.

    `pad` is used if the base has none.
    """
    values = read_object(base / GENERATION) if base else {}
    kept = {key: value for key, value in values.items() if key not in _NOT_KEPT}
    own_pad = kept.get("pad_token_id")
    return {
        **kept,
        **({} if bos is None else {"bos_token_id": bos}),
        "eos_token_id": _one_or_list(stops),
        "pad_token_id": own_pad if _is_id(own_pad) else stops[-1] if pad is None else pad,
    }


def _one_or_list(stops: Sequence[int]) -> int | list[int]:
    return list(stops) if len(stops) > 1 else stops[0]


def set_stops(config: Path, stops: Sequence[int]) -> None:
    """Write the stop tokens into a model's config.json, if there is one.

    Its `pad_token_id` stays: transformers never trains the embedding of that token.
    """
    if values := read_object(config):
        write_object(config, {**values, "eos_token_id": _one_or_list(stops)})


def max_length(base: Path | None, positions: int, *, recorded: bool = True) -> int:
    """Return the longest input of a model in tokens: by its base's tokenizer, or else the model's positions.

    `recorded` is false for a base that an earlier curate wrote: its tokenizer has the window of the set.
    """
    length = read_object(base / TOKENIZER_CONFIG).get("model_max_length") if base and recorded else None
    return length if type(length) is int and 0 < length <= _MAX_LENGTH else positions
