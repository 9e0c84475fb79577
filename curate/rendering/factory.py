"""Make the renderer of a template: a built-in one, or a model's own chat template."""

from __future__ import annotations

from curate.rendering.jinja_renderer import ChatTemplateRenderer
from curate.rendering.renderer import Renderer, parse_loss
from curate.rendering.template_renderer import TemplateRenderer
from curate.schemas import prompts
from curate.tokenization.tokenizer import Tokenizer


def make_renderer(
    template: str, tokenizer: Tokenizer, *, loss: str = "all", chat_template: str | None = None
) -> Renderer:
    """Return the renderer of a template; with `chat_template`, a Jinja text, that one is used instead.

    `loss`: `all` answers, the `last` one, or `roles:…`; the messages' own `train` and `stop` always hold.
    Raises RecipeError for a template, loss or chat template that is not known or cannot be used.
    """
    selected = parse_loss(loss)
    if chat_template is not None:
        return ChatTemplateRenderer(chat_template, tokenizer, selected)
    return TemplateRenderer(prompts.get(template), tokenizer, selected)
