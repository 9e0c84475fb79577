"""How a trained model is asked: the files beside its weights that make a served prompt the trained one.

A folder of ours holds, besides weights: `tokenizer.json` (the exact one that training counted with),
`tokenizer_config.json` with the chat template, `generation_config.json` with the stop tokens, a `Modelfile`
for Ollama, and `curate.json`, which says what made it; `read` finds the way back from a folder to a prompt.

The tokenizer's class is written as `PreTrainedTokenizerFast` and never as `LlamaTokenizer`: transformers 5 builds
the latter's normaliser anew, and of 137 tricky texts 136 then get other ids than in training.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curate.errors import InputError
from curate.schemas import prompts, template_export
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer

NOTE = "curate.json"
MODELFILE = "Modelfile"
CHAT_TEMPLATE = "chat_template.jinja"
FORMAT = 1  # of curate.json
KEPT_KEYS = ("pad_token", "unk_token", "additional_special_tokens")  # of the base's tokenizer_config.json


@dataclass(frozen=True)
class Serving:
    """A prompt as a server renders it, and what ends an answer.

    `template` names a built-in template, or is null for a Jinja template of the model's own; `chat_template` is
    Jinja either way. `stops` and `stop_ids` are the tokens that end an answer, the trained one first.
    """

    tokenizer: Tokenizer
    chat_template: str
    stop_ids: tuple[int, ...]
    stops: tuple[str, ...]
    template: str | None = None

    @property
    def fitted(self) -> prompts.Template | None:
        """The built-in template as this tokenizer writes it."""
        if self.template is None:
            return None
        return prompts.fit(prompts.get(self.template), self.tokenizer.control_ids)


def of(tokenizer: Tokenizer, template: str) -> Serving:
    """Return how prompts of a built-in template are served; raises RecipeError where the tokenizer cannot write it."""
    fitted = prompts.fit(prompts.get(template), tokenizer.control_ids)
    stop = tokenizer.control_ids[template_export.stop_token(fitted)]
    return _serving(tokenizer, template_export.jinja(fitted), (stop,), template)


def of_own(tokenizer: Tokenizer, chat_template: str, stop_ids: Sequence[int]) -> Serving:
    """Return how prompts of a model's own Jinja template are served; `stop_ids` is what ends an answer in it."""
    return _serving(tokenizer, chat_template, stop_ids, None)


def _serving(tokenizer: Tokenizer, chat_template: str, stops: Sequence[int], template: str | None) -> Serving:
    names = {token: name for name, token in tokenizer.control_ids.items() if name not in ("bos", "eos")}
    stop_ids = tuple(dict.fromkeys((*stops, tokenizer.info.eos_id)))
    said = tuple(names[token] for token in stop_ids if token in names)
    return Serving(tokenizer, chat_template, stop_ids, said, template)


def lead(template: str | None) -> str:
    """Return what a template writes between the prompt and the words of an answer, which is no part of them."""
    return prompts.get(template).by_role["assistant"].lead if template in prompts.TEMPLATES else ""


# ---- written


@dataclass(frozen=True)
class Note:
    """What `curate.json` says: how the folder came to be, and how it is asked."""

    kind: str  # model or adapter
    base: str
    method: str
    template: str | None
    stop: tuple[str, ...] = ()
    quantised: bool = False  # the base was held in 4 bits (NF4) while the adapter was trained
    version: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the file's text."""
        plain = {"curate_model": FORMAT, **{key: value for key, value in vars(self).items() if key != "more"}}
        return json.dumps({**plain, **self.more}, indent=1, ensure_ascii=False) + "\n"


def write(folder: Path, serving: Serving, note: Note, *, window: int, origin: Path | None = None) -> None:
    """Write all that stands beside the weights but the model card; `origin` is the base's folder, if it has one.

    Raises TokenizerError where no exact tokenizer.json can be built.
    """
    info = serving.tokenizer.info
    (folder / "tokenizer.json").write_text(serving.tokenizer.tokenizer_json(), "utf-8")
    _dump(folder / "tokenizer_config.json", _tokenizer_config(serving, window, origin))
    if info.kind == "sentencepiece":  # llama.cpp's converter reads the original where there is one
        shutil.copyfile(info.source, folder / "tokenizer.model")
    _dump(folder / "generation_config.json", _generation_config(serving))
    (folder / MODELFILE).write_text(modelfile(serving, note), "utf-8")
    (folder / NOTE).write_text(note.to_json(), "utf-8")


def _dump(path: Path, values: Mapping[str, object]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _tokenizer_config(serving: Serving, window: int, origin: Path | None) -> dict[str, object]:
    """Return tokenizer_config.json; a built-in template's stop token is the tokenizer's end, as serving expects it."""
    info = serving.tokenizer.info
    own = _json(origin / "tokenizer_config.json") if origin else {}
    end = serving.stops[0] if serving.template is not None else info.eos_token
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **({} if info.bos_token is None else {"bos_token": info.bos_token}),
        "eos_token": end,
        **{key: own[key] for key in KEPT_KEYS if own.get(key)},
        "model_max_length": window,
        "clean_up_tokenization_spaces": False,
        "chat_template": serving.chat_template,
    }


def _generation_config(serving: Serving) -> dict[str, object]:
    info, ends = serving.tokenizer.info, list(serving.stop_ids)
    first = {} if info.bos_id is None else {"bos_token_id": info.bos_id}
    return {**first, "eos_token_id": ends if len(ends) > 1 else ends[0], "pad_token_id": ends[-1]}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def modelfile(serving: Serving, note: Note) -> str:
    """Return an Ollama Modelfile: where the weights are, the prompt in Go's template language, the stop tokens."""
    start = ["FROM ."] if note.kind == "model" else [f"FROM {note.base}", "ADAPTER ."]
    lines = ["# ollama create NAME -f Modelfile; for a GGUF file, FROM its path instead.", *start]
    fitted = serving.fitted
    if fitted is None:
        lines.append("# The prompt is a Jinja template of the model's own, which Ollama reads from a GGUF file alone.")
    else:
        info = serving.tokenizer.info
        text = template_export.ollama(fitted, info.bos_token or "", info.eos_token)
        lines.append(f'TEMPLATE """{text}"""')
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in serving.stops]
    return "\n".join(lines) + "\n"


# ---- read


def note(folder: Path) -> Note | None:
    """Return what `curate.json` of a folder says, or null where there is none."""
    found = _json(folder / NOTE)
    if found.get("curate_model") != FORMAT:
        return None
    known = {key: found[key] for key in ("kind", "base", "method", "template", "quantised", "version") if key in found}
    return Note(**known, stop=tuple(found.get("stop", ())))


def read(folder: Path, *, template: str | None = None) -> Serving:
    """Return how the model in a folder is asked: as its `curate.json` says, or by its own chat template.

    `template` names a built-in template instead. Raises TokenizerError or InputError with what to type.
    """
    tokenizer = load_tokenizer(str(folder))
    said = note(folder)
    name = template or (said.template if said else None)
    if name is not None:
        return of(tokenizer, name)
    own = own_chat_template(folder)
    if own is None:
        raise InputError(
            f"{str(folder)!r} does not say how it is asked: it has no chat template; name one: --template "
            + "|".join(prompts.TEMPLATES)
        )
    ends = _json(folder / "generation_config.json").get("eos_token_id", [])
    return of_own(tokenizer, own, ends if isinstance(ends, list) else [ends])


def own_chat_template(folder: Path) -> str | None:
    """Return the Jinja chat template that a model's folder ships, or null."""
    try:
        return (folder / CHAT_TEMPLATE).read_text("utf-8")
    except OSError:
        pass
    found = _json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(found, list):  # several by name, in older folders
        named = {str(one.get("name")): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None
