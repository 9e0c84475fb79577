"""Render with a built-in prompt template."""

from __future__ import annotations

from collections.abc import Sequence

from curate.rendering import encode
from curate.rendering.compiled_template import ANSWERS, Layout
from curate.rendering.placeholders import Words
from curate.rendering.proof_fast import Teller, Told
from curate.rendering.renderer import Base, Expected, Loss, Written
from curate.rendering.split import Counter, Counting
from curate.schemas import prompts
from curate.schemas.conversation import Message
from curate.tokenization.tokenizer import Tokenizer


class TemplateRenderer(Base):
    """Renders with one of the built-in templates."""

    def __init__(self, template: prompts.Template, tokenizer: Tokenizer, loss: Loss) -> None:
        self.name = template.name
        self.tokenizer = tokenizer
        self.loss = loss
        self.layout = Layout(template, tokenizer, loss.roles)
        self._teller = Teller(self.layout.template, tokenizer, self.layout.stop_id)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """What ends an answer."""
        return (self.layout.stop_id,)

    def write(self, conversations: Sequence[Sequence[Message]]) -> Written:
        """Return many renderings at once."""
        sheet = encode.Sheet()
        for messages in conversations:
            self.layout.write(sheet, self.loss.select(messages))
        return Written(encode.encode(sheet, self.tokenizer))

    def write_prompts(self, conversations: Sequence[Sequence[Message]]) -> Written:
        """Return what asks for the next answer, for each conversation."""
        sheet = encode.Sheet()
        for messages in conversations:
            self.layout.write_prompt(sheet, messages)
        return Written(encode.encode(sheet, self.tokenizer))

    def told(self, messages: Sequence[Message]) -> Told | None:
        """Return what a rendering must spell; null where others than answers are trained on."""
        return self._teller.tell(self.loss.select(messages)) if self.loss.roles == ANSWERS else None

    def counter(self) -> Counting:
        """Return what the splitter counts pieces with."""
        return Counter(self.layout.template, self.tokenizer, self.loss.roles)

    def expected(self, messages: Sequence[Message]) -> Expected:
        """Return what a rendering must hold, from the template's segments."""
        messages = self.loss.select(messages)
        segments = prompts.render(self.layout.template, messages, roles=self.loss.roles)
        words: dict[int, Words] = {}
        asked: list[str] = []
        run = ""
        for segment in segments:
            if segment.supervised and segment.message is not None:
                if segment.message not in words and messages[segment.message].role == "assistant":
                    asked.append(run)
                text, end = words.get(segment.message, ("", None))
                end = end if segment.control is None else self.tokenizer.control_ids[segment.control]
                words[segment.message] = (text + segment.text, end)
            run = "" if segment.control is not None else run + segment.text
        bos = self.tokenizer.info.bos_id  # an end token may have the same id
        controls = (self.tokenizer.control_ids[one.control] for one in segments if one.control is not None)
        return Expected(list(words.values()), asked, sum(token == bos for token in controls))
