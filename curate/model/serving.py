"""The files next to a model's weights that let a server build the same prompts as training.

curate writes `tokenizer.json` (the tokenizer of training, exactly), `tokenizer_config.json` with the chat template,
`generation_config.json` with the stop tokens, a `Modelfile` for Ollama, and `curate.json`, which records how the model
was trained. `read_serving` returns the prompt format of a folder with such files.

`tokenizer_class` is always `PreTrainedTokenizerFast`: for `LlamaTokenizer`, transformers 5 builds its own normalizer,
and 136 of 137 difficult texts then get other ids than in training.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from curate.errors import InputError, ModelError
from curate.files import read_whole
from curate.model import generation
from curate.model.fingerprint import Fingerprint
from curate.model.generation import CONFIG, GENERATION, TOKENIZER_CONFIG, read_object, write_object
from curate.schemas import prompts, template_export
from curate.schemas.chat_templates import CHAT_TEMPLATES, NAMES
from curate.settings import decode_json
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer

MODEL, ADAPTER = "model", "adapter"  # kinds of results, and their subfolders in a run
BASE = "base"  # subfolder of an adapter, for a base that the run created
NOTE = "curate.json"
MODELFILE = "Modelfile"
CHAT_TEMPLATE = "chat_template.jinja"
FORMAT = 1  # of curate.json
KEPT_KEYS = ("pad_token", "unk_token", "additional_special_tokens")  # copied from the base's tokenizer_config.json


@dataclass(frozen=True)
class Serving:
    """The prompt format of a model: tokenizer, template and stop tokens."""

    tokenizer: Tokenizer
    chat_template: str  # Jinja, also for a built-in template
    stop_ids: tuple[int, ...]  # the tokens that end an answer, the trained one first
    stops: tuple[str, ...]  # their names; fewer than `stop_ids` where one has no name
    template: str | None = None  # name of a built-in template; None for the model's own

    @property
    def fitted(self) -> prompts.Template | None:
        """The built-in template with this tokenizer's control tokens; None for one that is a Jinja program."""
        if self.template not in prompts.TEMPLATES:
            return None
        return prompts.fit(prompts.get(self.template), self.tokenizer.control_ids)


def from_template(tokenizer: Tokenizer, template: str) -> Serving:
    """Return the serving form of a built-in template; raises RecipeError where the tokenizer lacks its tokens."""
    if template in CHAT_TEMPLATES:
        built_in = CHAT_TEMPLATES[template]
        built_in.check(tokenizer.control_ids)
        return _make_serving(tokenizer, built_in.text, (tokenizer.control_ids[built_in.stop],), template)
    fitted = prompts.fit(prompts.get(template), tokenizer.control_ids)
    stop = tokenizer.control_ids[template_export.stop_token(fitted)]
    return _make_serving(tokenizer, template_export.jinja(fitted), (stop,), template)


def from_chat_template(tokenizer: Tokenizer, chat_template: str, stop_ids: Sequence[int]) -> Serving:
    """Return the serving form of a model's own Jinja template; `stop_ids` are the tokens that end its answers."""
    return _make_serving(tokenizer, chat_template, stop_ids, None)


def _make_serving(tokenizer: Tokenizer, chat_template: str, stops: Sequence[int], template: str | None) -> Serving:
    names = {token: name for name, token in tokenizer.control_ids.items() if name not in ("bos", "eos")}
    stop_ids = tuple(dict.fromkeys((*stops, tokenizer.info.eos_id)))
    stop_names = tuple(names[token] for token in stop_ids if token in names)
    return Serving(tokenizer, chat_template, stop_ids, stop_names, template)


def with_stops(serving: Serving, more: Sequence[int]) -> Serving:
    """Return a prompt format with further stop tokens after its own, as far as the vocabulary has them."""
    known = [token for token in more if token < serving.tokenizer.info.vocab_size]
    stops = (*serving.stop_ids, *known)
    return _make_serving(serving.tokenizer, serving.chat_template, stops, serving.template)


def answer_lead(template: str | None) -> str:
    """Return what a built-in template writes between the prompt and the text of an answer, such as a blank."""
    return prompts.get(template).by_role["assistant"].lead if template in prompts.TEMPLATES else ""


# ---- write


@dataclass(frozen=True)
class Note:
    """The contents of `curate.json`: how the model was trained, and its prompt template."""

    kind: str  # model or adapter
    base: str  # folder or Hub name
    method: str
    template: str | None  # as in Serving
    stop: tuple[str, ...] = ()
    quantised: bool = False  # the base was kept in 4 bits (NF4) while the adapter was trained
    version: str = ""
    window: int = 0  # tokens of the longest piece that it was trained on; 0 if unknown
    fingerprint: Fingerprint | None = None  # of an adapter's base; None in adapters of earlier versions
    more: Mapping[str, Any] = field(default_factory=dict)  # further keys, written but not read

    def to_json(self) -> str:
        """Return the text of the file."""
        values = {"curate_model": FORMAT, **asdict(self)}
        return json.dumps({**values, **values.pop("more")}, indent=1, ensure_ascii=False) + "\n"


def write_files(folder: Path, serving: Serving, note: Note, *, positions: int, origin: Path | None = None) -> None:
    """Write the files next to the weights, except the model card.

    `positions` are those of the model, `origin` is the folder of the base, None where it has none. Raises
    TokenizerError where no exact tokenizer.json can be built.
    """
    serving = with_stops(serving, generation.stop_ids(origin))
    info = serving.tokenizer.info
    tokenizer_config = _tokenizer_config(serving, positions, origin)
    pad = serving.tokenizer.control_ids.get(_name(tokenizer_config.get("pad_token")))
    (folder / "tokenizer.json").write_text(serving.tokenizer.tokenizer_json(), "utf-8")
    write_object(folder / TOKENIZER_CONFIG, tokenizer_config)
    if info.kind == "sentencepiece":  # llama.cpp's converter prefers the original file
        shutil.copyfile(info.source, folder / "tokenizer.model")
    generation_config = generation.generation_config(origin, serving.stop_ids, info.bos_id, pad)
    write_object(folder / GENERATION, generation_config)
    generation.set_stops(folder / CONFIG, serving.stop_ids)
    (folder / MODELFILE).write_text(modelfile(serving, note), "utf-8")
    (folder / NOTE).write_text(replace(note, stop=serving.stops).to_json(), "utf-8")


def _tokenizer_config(serving: Serving, positions: int, origin: Path | None) -> dict[str, object]:
    """Return tokenizer_config.json."""
    info = serving.tokenizer.info
    base_config = read_object(origin / TOKENIZER_CONFIG) if origin else {}
    base_note = read_note(origin) if origin else None
    recorded = base_note is None or base_note.window > 0
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **({} if info.bos_token is None else {"bos_token": info.bos_token}),
        "eos_token": _eos_token(serving),
        **{key: names for key in KEPT_KEYS if (names := _names(base_config.get(key)))},
        "model_max_length": generation.max_length(origin, positions, recorded=recorded),
        "clean_up_tokenization_spaces": False,
        "chat_template": serving.chat_template,
    }


def _eos_token(serving: Serving) -> str:
    """Return the trained stop token, at which servers stop; a template that writes `eos_token` itself keeps its own."""
    info = serving.tokenizer.info
    writes_eos = serving.template is None and "eos_token" in serving.chat_template
    return info.eos_token if writes_eos or not serving.stops else serving.stops[0]


def _name(token: object) -> str:
    """Return a token of tokenizer_config.json: a text, or an object with its content; empty for anything else."""
    name = token.get("content") if isinstance(token, dict) else token
    return name if isinstance(name, str) else ""


def _names(tokens: object) -> str | list[str]:
    """Return a token or a list of tokens by name; an object's flags could differ from those of tokenizer.json."""
    return [_name(token) for token in tokens] if isinstance(tokens, list) else _name(tokens)


def modelfile(serving: Serving, note: Note) -> str:
    """Return an Ollama Modelfile: the path of the weights, the prompt as a Go template, the stop tokens."""
    weights = ["FROM ."] if note.kind == "model" else [f"FROM {note.base}", "ADAPTER ."]
    lines = ["# ollama create NAME -f Modelfile; for a GGUF file, FROM its path instead.", *weights]
    fitted = serving.fitted
    if fitted is None:
        lines.append("# The model has a Jinja chat template, which Ollama reads only from a GGUF file.")
    else:
        info = serving.tokenizer.info
        text = template_export.ollama(fitted, info.bos_token or "", info.eos_token)
        lines.append(f'TEMPLATE """{text}"""')
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in serving.stops]
    return "\n".join(lines) + "\n"


def training_tokenizer(tokenizer: Tokenizer, serving: Serving | None) -> Any:
    """Return a tokenizer of transformers that equals that of training, with the chat template of `serving`."""
    from tokenizers import Tokenizer as HuggingFaceTokenizer
    from transformers import PreTrainedTokenizerFast

    info = tokenizer.info
    eos = _eos_token(serving) if serving is not None else info.eos_token
    return PreTrainedTokenizerFast(
        tokenizer_object=HuggingFaceTokenizer.from_str(tokenizer.tokenizer_json()),
        eos_token=eos,
        clean_up_tokenization_spaces=False,
        **({} if info.bos_token is None else {"bos_token": info.bos_token}),
        **({} if serving is None else {"chat_template": serving.chat_template}),
    )


# ---- read


def read_note(folder: Path) -> Note | None:
    """Return the contents of a folder's `curate.json`, None where there is none, or one of another format.

    Raises ModelError for a damaged one: without it, the model would be taken for one with another prompt.
    """
    try:
        values = json.loads(read_whole(folder / NOTE))
        if not isinstance(values, dict) or values.get("curate_model") != FORMAT:
            return None
        return decode_json(Note, {key: value for key, value in values.items() if key != "more"})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{str(folder / NOTE)!r} is damaged: {error}; copy it again") from None


def read_serving(folder: Path, *, template: str | None = None) -> Serving:
    """Return the prompt format of a model in a folder, from its `curate.json` or else its own chat template.

    `template` names a built-in template to use instead. Raises TokenizerError, or InputError without any template.
    """
    tokenizer = load_tokenizer(str(folder))
    recorded = read_note(folder)
    name = template or (recorded.template if recorded else None)
    if name is not None:
        return with_stops(from_template(tokenizer, name), generation.stop_ids(folder))
    chat_template = own_chat_template(folder)
    if chat_template is None:
        raise InputError(
            f"the model in {str(folder)!r} has no chat template; name a built-in one: --template " + "|".join(NAMES)
        )
    return from_chat_template(tokenizer, chat_template, generation.stop_ids(folder))


def own_chat_template(folder: Path) -> str | None:
    """Return the Jinja chat template in a model's folder, None where there is none.

    Raises ModelError for a file that cannot be read.
    """
    path = folder / CHAT_TEMPLATE
    try:
        return read_whole(path).decode()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the chat template {str(path)!r} cannot be read: {getattr(error, 'strerror', error)}"
        ) from None
    template = read_object(folder / TOKENIZER_CONFIG).get("chat_template")
    if isinstance(template, list):  # older folders have several, by name
        by_name = {str(entry.get("name")): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = by_name.get("default")
    return template if isinstance(template, str) else None
