"""Render with a built-in prompt template.

The ids come from a compiled template, which fills format strings. What the proof compares them with comes from the
template's segments, which are built for each conversation by other code.
"""

from __future__ import annotations

from collections.abc import Sequence

from curate.rendering.choices import DEFAULT, Choices
from curate.rendering.compiled_template import ANSWERS, CompiledTemplate
from curate.rendering.encoding import encode
from curate.rendering.expected import EndedText, ExpectedSpans, ExpectedText, TextExpectations
from curate.rendering.renderer import LossRule, RenderedBatch, Renderer
from curate.rendering.splitter import TemplateCounter, TokenCounter
from curate.rendering.text_batch import TextBatch
from curate.schemas import prompts
from curate.schemas.conversation import Message
from curate.tokenization.tokenizer import Tokenizer


class TemplateRenderer(Renderer):
    """Renders with one of the built-in templates."""

    def __init__(
        self, template: prompts.Template, tokenizer: Tokenizer, loss: LossRule, choices: Choices = DEFAULT
    ) -> None:
        self.choices = choices
        self.name = template.name
        self.tokenizer = tokenizer
        self.loss = loss
        self._compiled = CompiledTemplate(template, tokenizer, loss.roles)
        # `CompiledTemplate` fits the template to the tokenizer; the expectations must be those of the fitted one.
        self._expectations = TextExpectations(self._compiled.template, tokenizer, self._compiled.stop_id)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The token that ends an answer; a built-in template has exactly one."""
        return (self._compiled.stop_id,)

    @property
    def mid_system(self) -> bool:
        """Whether the template can say a system message amid the turns."""
        return self._compiled.template.mid_system

    def render_batch(self, conversations: Sequence[Sequence[Message]]) -> RenderedBatch:
        """Render many conversations at once; none can fail."""
        batch = TextBatch()
        for messages in conversations:
            self._compiled.append(batch, self.loss.apply(messages))
        return RenderedBatch(encode(batch, self.tokenizer))

    def render_prompts(self, conversations: Sequence[Sequence[Message]]) -> RenderedBatch:
        """Render each conversation and the generation prompt after it; none can fail."""
        batch = TextBatch()
        for messages in conversations:
            self._compiled.append_prompt(batch, messages)
        return RenderedBatch(encode(batch, self.tokenizer))

    def counter(self) -> TokenCounter:
        """Return a counter of single exchanges, whose tokens add up to those of a piece."""
        return TemplateCounter(self._compiled.template, self.tokenizer, self.loss.roles)

    def expected_text(self, messages: Sequence[Message]) -> ExpectedText | None:
        """Return what a rendering must decode to; None where other roles than the assistant are supervised."""
        return self._expectations.expect(self.loss.apply(messages)) if self.loss.roles == ANSWERS else None

    def expected_spans(self, messages: Sequence[Message]) -> ExpectedSpans:
        """Return what the supervised spans must say, from the template's segments."""
        messages = self.loss.apply(messages)
        # In order of the rendering; each is text or one control token.
        segments = prompts.render(self._compiled.template, messages, roles=self.loss.roles)
        controls = self.tokenizer.control_ids
        texts: dict[int, EndedText] = {}  # by message index, in order
        before_answers: list[str] = []
        block = ""  # text since the last control token
        for segment in segments:
            if segment.supervised and segment.message is not None:
                # The first segment of an answer: the block so far is the end of its prompt.
                if segment.message not in texts and messages[segment.message].role == "assistant":
                    before_answers.append(block)
                text, end = texts.get(segment.message, ("", None))
                end = end if segment.control is None else controls[segment.control]
                texts[segment.message] = (text + segment.text, end)
            block = "" if segment.control is not None else block + segment.text
        bos = self.tokenizer.info.bos_id  # compared by id: a tokenizer may begin and end with the same token
        tokens = (controls[segment.control] for segment in segments if segment.control is not None)
        return ExpectedSpans(list(texts.values()), before_answers, sum(token == bos for token in tokens))
