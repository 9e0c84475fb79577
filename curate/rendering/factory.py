"""Create renderers: for a built-in template or a model's own chat template, with the tokenizer of a set."""

from __future__ import annotations

from pathlib import Path

from curate.dataset.manifest import Manifest
from curate.errors import InputError, TokenizerError
from curate.rendering.chat_template.renderer import JinjaRenderer
from curate.rendering.choices import DEFAULT, Choices
from curate.rendering.renderer import Renderer, parse_loss
from curate.rendering.template_renderer import TemplateRenderer
from curate.schemas import prompts, template_export
from curate.schemas.chat_templates import CHAT_TEMPLATES
from curate.schemas.prompts import BOS, EOS
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer


def make_renderer(
    template: str,
    tokenizer: Tokenizer,
    *,
    loss: str = "all",
    chat_template: str | None = None,
    choices: Choices = DEFAULT,
) -> Renderer:
    """Return a renderer for a built-in template, or for `chat_template`, a Jinja text, if there is one.

    `loss` is `all` answers, the `last` one, or `roles:…`; a message's own `train` and `stop` always apply.
    Raises RecipeError for an unknown template or loss, or a chat template that cannot be used.
    """
    rule = parse_loss(loss)
    if chat_template is not None:
        return JinjaRenderer(chat_template, tokenizer, rule, choices)
    if template in CHAT_TEMPLATES:
        built_in = CHAT_TEMPLATES[template]
        built_in.check(tokenizer.control_ids)
        return JinjaRenderer(built_in.text, tokenizer, rule, choices, name=template)
    form = prompts.get(template)
    if tokenizer.control_flags and _differs_at_server(fitted := prompts.fit(form, tokenizer.control_ids), tokenizer):
        return JinjaRenderer(template_export.jinja(fitted), tokenizer, rule, choices, name=template)
    return TemplateRenderer(form, tokenizer, rule, choices)


def _differs_at_server(template: prompts.Template, tokenizer: Tokenizer) -> bool:
    """Return whether a control token of a fitted template takes in white space, or may be text, when it is read."""
    names: dict[str, str | None] = {BOS: tokenizer.info.bos_token, EOS: tokenizer.info.eos_token}
    parts = [*template.start, *template.opens]
    for _, turn in template.turns:
        parts += [*turn.before, *turn.after]
    return any(tokenizer.control_flags.get(names.get(part, part) or "") for part in parts)


def read_chat_template(path: str | Path | None) -> str | None:
    """Return the text of a file with a Jinja chat template; raises InputError for one that cannot be read."""
    try:
        return None if path is None else Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the chat template {str(path)!r}: {error}") from error


def load_set_tokenizer(manifest: Manifest, *, bulk: bool = True) -> Tokenizer:
    """Load a set's tokenizer by name (`bulk` as in `load_tokenizer`).

    Raises TokenizerError if it is not found, or has another vocabulary.
    """
    name = manifest.own_tokenizer()
    tokenizer = load_tokenizer(name, bulk=bulk)
    if tokenizer.info.hash != manifest.tokenizer.hash:
        raise TokenizerError(f"the tokenizer {name!r} is not the one that the set was cleaned with")
    return tokenizer
