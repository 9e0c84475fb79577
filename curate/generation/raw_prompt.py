"""The raw text before a user's first message, and what ends that message, by a prompt template: for Magpie."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from curate.errors import InputError
from curate.model.serving import own_chat_template
from curate.rendering.chat_template.environment import compile_template
from curate.schemas import prompts
from curate.schemas.chat_templates import CHAT_TEMPLATES, NAMES
from curate.schemas.conversation import Message
from curate.schemas.prompts import TEMPLATES

_MARK = "zq0user0text0zq"
_CONTROL = re.compile(r"\s*(<[^<>\s]{1,40}>|\[/?[A-Z_]{2,20}\])")
_NAMES = {"bos": "", "eos": "</s>"}


@dataclass(frozen=True)
class RawPrompt:
    """A template up to the user's text, without the begin token, which servers add, and the strings that end it."""

    text: str
    stops: tuple[str, ...]


def find_raw_prompt(template: str, system: str = "") -> RawPrompt:
    """Return the raw prompt of a built-in template, a Jinja file, or a model's folder.

    Raises InputError where there is no such template, or it does not write the user's text.
    """
    if template in TEMPLATES:
        return _split(_write_built_in(template, system), template)
    if template in CHAT_TEMPLATES:
        return _split(_write_jinja(CHAT_TEMPLATES[template].text, system, template), template)
    path = Path(template)
    text = own_chat_template(path) if path.is_dir() else _read(path) if path.is_file() else None
    if text is None:
        raise InputError(
            f"no prompt template {template!r}; give the folder of the model, a Jinja file, or one of {', '.join(NAMES)}"
        )
    return _split(_write_jinja(text, system, template), template)


def raw_prompt_of(chat_template: str, system: str = "") -> RawPrompt:
    """Return the raw prompt of a model's own Jinja template."""
    return _split(_write_jinja(chat_template, system, "the model's"), "the model's")


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the template {str(path)!r}: {error}") from None


def _write_built_in(name: str, system: str) -> str:
    messages = [Message("system", system)] * bool(system) + [Message("user", _MARK)]
    segments = prompts.generation_prompt(prompts.get(name), messages)
    return "".join(
        _NAMES.get(segment.control, segment.control) if segment.control else segment.text for segment in segments
    )


def _write_jinja(chat_template: str, system: str, name: str) -> str:
    messages = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": _MARK}]
    render = compile_template(chat_template)
    try:
        return render(messages=messages, bos_token="", eos_token="</s>", add_generation_prompt=True)
    except Exception as error:  # a program of someone else
        raise InputError(f"the template {name!r} fails on a single message: {error}") from None


def _split(text: str, name: str) -> RawPrompt:
    before, mark, after = text.partition(_MARK)
    if not mark or not before.strip():
        raise InputError(f"the template {name!r} does not say where the user's text begins, so Magpie cannot use it")
    control = _CONTROL.match(after)
    stop = control[1] if control else next((line.strip() for line in after.splitlines() if line.strip()), "")
    if not stop:
        raise InputError(f"the template {name!r} does not say where the user's text ends, so Magpie cannot use it")
    return RawPrompt(before, (stop,))
