"""Convert conversations to the text of their prompts, as a template writes them, with control tokens by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from curate.conversion.record_builder import content_id
from curate.conversion.tokenized import DEFAULT_TEMPLATE, Rendering
from curate.conversion.writers import Entry
from curate.dataset import manifest
from curate.dataset.manifest import Manifest
from curate.errors import InputError, RecordError
from curate.rendering.chat_template.renderer import JinjaRenderer
from curate.rendering.preparation import HIDDEN_TOOLS, HIDDEN_TOOLS_REASON
from curate.schemas import prompts
from curate.schemas.chat_templates import CHAT_TEMPLATES
from curate.schemas.conversation import Message
from curate.schemas.reading.tool_calls import order_results
from curate.tokenization.tokenizer import load_tokenizer

Write = Callable[[list[Message]], str]


class TextRenderer:
    """Writes conversations as prompts, by default in the set's template and with its end token.

    `hidden_tools` counts the conversations that train calls of tools which the template does not show.
    """

    def __init__(self, source: str | Path, rendering: Rendering) -> None:
        if rendering.choices.reasoning == "mask":
            raise InputError("reasoning 'mask' has no effect on 'text', which has no loss mask; give 'train' or 'drop'")
        path = Path(source)
        own = manifest.read(path)[1] if manifest.is_set(path) else None
        is_jinja = rendering.chat_template is not None or rendering.template in CHAT_TEMPLATES
        self._choices = rendering.choices
        self._write, self._shows_tools = (
            _with_chat_template(own, rendering) if is_jinja else (_with_template(own, rendering), False)
        )
        self.hidden_tools = 0

    def __call__(self, entry: Entry) -> tuple[str, str]:
        """Return a conversation's id and prompt.

        Raises RecordError for one that the template refuses, or of which it hides the tools.
        """
        chat = entry.conversation
        if not self._shows_tools and chat.tools and any(m.tool_calls and m.train for m in chat.messages):
            self.hidden_tools += 1
            if self._choices.hidden_tools == "leave_out":
                raise RecordError(HIDDEN_TOOLS, HIDDEN_TOOLS_REASON)
        messages = order_results(self._choices.apply(chat.messages_with_tools()))
        return chat.source_id or content_id(chat), self._write(messages)


def _with_template(own: Manifest | None, rendering: Rendering) -> Write:
    """Return the function that writes messages in a built-in template, which shows no definitions of tools."""
    form = prompts.get(rendering.template or (own.template if own else DEFAULT_TEMPLATE))
    bos, eos = (own.tokenizer.bos_token, own.tokenizer.eos_token) if own else (None, None)
    if rendering.tokenizer is not None:
        loaded = load_tokenizer(rendering.tokenizer)
        form = prompts.fit(form, loaded.control_ids)
        bos, eos = loaded.info.bos_token, loaded.info.eos_token
    fold = prompts.fold_system if not form.mid_system else list
    return lambda messages: prompts.text(form, fold(messages), bos=bos or "<s>", eos=eos or "</s>")


def _with_chat_template(own: Manifest | None, rendering: Rendering) -> tuple[Write, bool]:
    """Return the function that writes messages with a Jinja chat template, and whether that shows tools."""
    renderer = rendering.make_renderer(own)
    assert isinstance(renderer, JinjaRenderer)
    fold = prompts.fold_system if not renderer.mid_system else list
    return lambda messages: renderer.write_text(fold(messages)), renderer.shows_tools
