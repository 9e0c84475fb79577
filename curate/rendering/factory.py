"""Choose the renderer for a built-in template or a model's own chat template."""

from __future__ import annotations

from curate.rendering.jinja_renderer import JinjaRenderer
from curate.rendering.renderer import Renderer, parse_loss
from curate.rendering.template_renderer import TemplateRenderer
from curate.schemas import prompts
from curate.tokenization.tokenizer import Tokenizer


def make_renderer(
    template: str, tokenizer: Tokenizer, *, loss: str = "all", chat_template: str | None = None
) -> Renderer:
    """Return a renderer for a built-in template, or for `chat_template`, a Jinja text, if there is one.

    `loss` is `all` answers, the `last` one, or `roles:…`; a message's own `train` and `stop` always apply.
    Raises RecipeError for an unknown template or loss, or a chat template that cannot be used.
    """
    rule = parse_loss(loss)
    if chat_template is not None:
        return JinjaRenderer(chat_template, tokenizer, rule)
    return TemplateRenderer(prompts.get(template), tokenizer, rule)
