"""Render with a model's own Jinja chat template, as `apply_chat_template` of transformers does.

A template is a program that writes one text. It is rendered once with placeholders instead of contents. What remains
is the template's own text, which is cut at control tokens and divided between prompts and answers. The placeholders are
then filled, and the result must equal what the template writes for the messages themselves. Where it does not (some
templates remove the reasoning from earlier answers), the conversation is left out and listed. A control string in a
message stays text, because contents are only filled in after the text is cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from typing import NamedTuple

import numpy as np

from curate.errors import RecipeError, RecordError
from curate.rendering import jinja_env
from curate.rendering.encoding import encode
from curate.rendering.expected import EndedText, ExpectedSpans
from curate.rendering.placeholders import (
    Item,
    Placeholder,
    TemplatePart,
    TemplateScanner,
    cut_at,
    show_difference,
    strip_variants,
)
from curate.rendering.renderer import LossRule, RenderedBatch, Renderer
from curate.rendering.splitter import Fragment, Size, TokenCounter
from curate.rendering.text_batch import TextBatch
from curate.schemas.conversation import Message
from curate.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True)
class _Skeleton:
    """What all conversations with the same roles share.

    `problems`: why an answer cannot be supervised, by message index.
    """

    parts: list[TemplatePart]
    problems: dict[int, RecordError] = field(default_factory=dict)


class _Span(NamedTuple):
    """Characters of a block that belong to one message: `start` to `stop`, counted in the block."""

    message: int  # index in the conversation
    start: int
    stop: int
    supervised: bool


class JinjaRenderer(Renderer):
    """Renders with a Jinja chat template; raises RecipeError for one that cannot be used."""

    def __init__(self, chat_template: str, tokenizer: Tokenizer, loss: LossRule) -> None:
        self.chat_template = chat_template
        self.name = f"own:{hashlib.sha256(chat_template.encode()).hexdigest()[:12]}"
        self.tokenizer = tokenizer
        self.loss = loss
        self._skeletons: dict[object, _Skeleton] = {}  # by whatever a template may branch on, except contents
        # A template writes control tokens by their own names; `bos` and `eos` are curate's aliases.
        own_names = {name: token for name, token in tokenizer.control_ids.items() if name not in ("bos", "eos")}
        self._scanner = TemplateScanner(own_names)
        self._check()

    def __reduce__(self) -> tuple[type[JinjaRenderer], tuple[str, Tokenizer, LossRule]]:
        # A compiled template cannot be pickled: each worker compiles its own.
        return type(self), (self.chat_template, self.tokenizer, self.loss)

    def _check(self) -> None:
        """Refuse a template that fails, has no stop token, or is tokenized differently by a server."""
        question = [Message("user", "Hello there")]
        try:
            stops = self.stop_ids
            prompt = self.render_prompts([question])
        except RecordError as error:
            raise RecipeError(f"the chat template cannot be used: {error.reason}") from None
        if not stops:
            raise RecipeError("the chat template ends an answer with no control token, so a model would never stop")
        for problem in prompt.problems.values():
            raise RecipeError(f"the chat template cannot be used: {problem.reason}")
        ids, served = prompt.encoded.ids.tolist(), self._served_ids(question)
        if ids != served:
            raise RecipeError(
                "the chat template's prompt is tokenized differently by a server "
                f"({show_difference(ids, served)}); name one of curate's own templates with --template"
            )

    def _served_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the prompt's ids as a server makes them: all text in one call, control strings read as tokens."""
        from tokenizers import Tokenizer as HuggingFace

        text = self._apply(messages, add_generation_prompt=True)
        return list(HuggingFace.from_str(self.tokenizer.tokenizer_json()).encode(text, add_special_tokens=False).ids)

    # ---- the template's text

    @cached_property
    def _template(self) -> Callable[..., str]:
        return jinja_env.compile_template(self.chat_template)

    def _apply(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """Return what the template writes; raises RecordError if it refuses the messages."""
        info = self.tokenizer.info
        try:
            return self._template(
                messages=jinja_env.message_dicts(messages),
                # The variables that transformers always defines; templates test them for None.
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                bos_token=info.bos_token or "",
                eos_token=info.eos_token,
            )
        except Exception as error:  # a template is a program: it may raise anything
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise RecordError("template_refuses", f"the chat template says: {lines[0]}") from None

    def _apply_to_placeholders(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """Return what the template writes for messages with placeholders instead of contents."""
        blank = self._scanner.insert_placeholders(messages)
        return self._apply(blank, add_generation_prompt=add_generation_prompt)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The end token if it follows every answer, else the first control token after the last; empty if none does.

        Raises RecordError for a template that does not write answers.
        """
        # Two answers: some templates end the last one differently.
        messages = [Message("user", "x"), Message("assistant", "x")] * 2
        items = [item for item, _ in self._scanner.scan(self._apply_to_placeholders(messages))]
        # Where each message's content is among the items, by message index.
        content_index = {item.message: i for i, item in enumerate(items) if isinstance(item, Placeholder)}
        if 3 not in content_index:  # the second answer
            raise RecordError("template_rewrites", "it does not write the answer")
        first, last = (
            # control tokens between an answer's content and the next message's, if there is one
            [
                item
                for item in items[content_index.get(answer, 0) : content_index.get(answer + 1)]
                if isinstance(item, int)
            ]
            for answer in (1, 3)
        )
        common = [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))]
        eos = self.tokenizer.info.eos_id
        return (eos,) if eos in common else tuple(last[:1])

    @cached_property
    def mid_system(self) -> bool:
        """Whether the template writes a system message amid the turns, in its place."""
        question, answer = Message("user", "x"), Message("assistant", "x")
        messages = [question, answer, Message("system", "x"), question, answer]
        try:
            items = self._scanner.scan(self._apply_to_placeholders(messages))
        except RecordError:
            return False
        return [item.message for item, _ in items if isinstance(item, Placeholder)] == list(range(len(messages)))

    # ---- skeletons

    def _skeleton(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> _Skeleton:
        """Return the skeleton of these messages; raises RecordError if the template refuses them."""
        # A template may branch on names and tool calls, and write an empty content differently.
        key = add_generation_prompt, *((m.role, bool(m.content), m.name, m.tool_calls) for m in messages)
        skeleton = self._skeletons.get(key)
        if skeleton is None:
            skeleton = self._skeletons[key] = self._build_skeleton(messages, add_generation_prompt)
        return skeleton

    def _build_skeleton(self, messages: Sequence[Message], add_generation_prompt: bool) -> _Skeleton:
        # The template runs again for the prompt of each answer, so skeletons are cached.
        text = self._apply_to_placeholders(messages, add_generation_prompt=add_generation_prompt)
        items = self._scanner.scan(text)
        starts, problems = self._locate_answers(messages, text)
        written = {item.message for item, _ in items if isinstance(item, Placeholder)}
        for index, message in enumerate(messages):
            if message.role == "assistant" and message.content and index not in written:
                reason = "the chat template does not write what the answer says"
                problems[index] = RecordError("template_rewrites", reason)
        return _Skeleton(self._assign(cut_at(items, starts), starts, messages), problems)

    def _locate_answers(self, messages: Sequence[Message], text: str) -> tuple[dict[int, int], dict[int, RecordError]]:
        """Return where the answers start in the template's `text`, and why others cannot be located.

        The first is answers by position, in characters; the second is problems by message index.
        """
        starts: dict[int, int] = {}
        problems: dict[int, RecordError] = {}
        for index, message in enumerate(messages):
            if message.role == "assistant":
                try:
                    starts[self._answer_start(messages[:index], text)] = index
                except RecordError as error:
                    problems[index] = error
        return starts, problems

    def _answer_start(self, before: Sequence[Message], text: str) -> int:
        """Return the position in `text` where an answer starts, given the messages before it.

        That is after its generation prompt. Raises RecordError if the text does not begin with the prompt.
        """
        prompt = self._apply_to_placeholders(before, add_generation_prompt=True)
        if text.startswith(prompt):
            return len(prompt)
        # Which of two problems is it? The earlier messages differ, or only the prompt at their end does.
        if not text.startswith(self._apply_to_placeholders(before)):
            reason = "the chat template writes earlier messages differently when later ones follow"
            raise RecordError("template_rewrites", reason)
        reason = "the chat template's generation prompt is not what it writes before the answer"
        raise RecordError("prompt_no_prefix", reason, show_difference(prompt, text))

    def _assign(
        self, items: Sequence[tuple[Item, int]], starts: dict[int, int], messages: Sequence[Message]
    ) -> list[TemplatePart]:
        """Assign each item to a message.

        A content belongs to its own message, and everything from an answer's start to its stop token to the answer.
        """
        parts: list[TemplatePart] = []
        answer: int | None = None  # the answer that is being written
        after_content = False
        previous: int | None = None  # the message whose content was the last item
        for item, position in items:
            if position in starts:
                answer = starts[position]
                after_content = not messages[answer].content
            if isinstance(item, Placeholder) and item.message != answer:
                answer = None
                parts.append(TemplatePart(item, item.message))
            elif answer is None and isinstance(item, int):
                # A control token right after a content ends its message. It is supervised if the message is.
                parts.append(TemplatePart(item, previous, after_content=True))
            else:
                parts.append(TemplatePart(item, answer, after_content))
                after_content = after_content or isinstance(item, Placeholder)
                if isinstance(item, int) and after_content and item in self.stop_ids:
                    answer, after_content = None, False
            previous = item.message if isinstance(item, Placeholder) else None
        return parts

    # ---- rendering

    def render_batch(self, conversations: Sequence[Sequence[Message]]) -> RenderedBatch:
        """Render many conversations at once."""
        return self._render(conversations, add_generation_prompt=False)

    def render_prompts(self, conversations: Sequence[Sequence[Message]]) -> RenderedBatch:
        """Render the generation prompt after each conversation."""
        rendered = self._render(conversations, add_generation_prompt=True)
        unsupervised = np.zeros_like(rendered.encoded.loss_mask)  # [tokens]
        return replace(rendered, encoded=replace(rendered.encoded, loss_mask=unsupervised))

    def _render(self, conversations: Sequence[Sequence[Message]], *, add_generation_prompt: bool) -> RenderedBatch:
        batch = TextBatch()
        problems: dict[int, RecordError] = {}
        for index, messages in enumerate(conversations):
            try:
                self._append(batch, messages, add_generation_prompt)
            except RecordError as error:
                problems[index] = error
            batch.end_rendering()  # empty if it failed, so that indices stay those of the conversations
        return RenderedBatch(encode(batch, self.tokenizer), problems)

    def _append(self, batch: TextBatch, messages: Sequence[Message], add_generation_prompt: bool) -> None:
        """Append a rendering; raises RecordError if the template refuses or changes the messages."""
        text = self._apply(messages, add_generation_prompt=add_generation_prompt)
        skeleton = self._skeleton(messages, add_generation_prompt=add_generation_prompt)
        texts = [self._scanner.fill(part.item, messages) for part in skeleton.parts]
        # The template's program may do anything with contents, so each rendering is compared with its own output.
        if "".join(texts) != text:
            reason = "the chat template changes what the messages say"
            raise RecordError("template_rewrites", reason, show_difference("".join(texts), text))
        selected = self.loss.apply(messages)
        for index, problem in skeleton.problems.items():
            if self.loss.supervises(selected[index]) and not add_generation_prompt:
                raise problem
        self._append_parts(batch, skeleton.parts, texts, selected)

    def _append_parts(
        self, batch: TextBatch, parts: Sequence[TemplatePart], texts: Sequence[str], messages: Sequence[Message]
    ) -> None:
        """Append blocks, control tokens and spans; `texts` are the texts of `parts`, one for each."""
        block = ""  # text since the last control token
        spans: list[_Span] = []  # of the block
        for part, text in zip(parts, texts, strict=True):
            supervised = self._supervises(part, messages)
            if isinstance(part.item, int):
                _end_block(batch, block, spans)
                batch.add_control(part.item, supervised)
                block, spans = "", []
                continue
            # An answer has a span even if it is not supervised: its prompt ends there, so no token may cross.
            if part.message is not None and (supervised or messages[part.message].role == "assistant"):
                _extend(spans, _Span(part.message, len(block), len(block) + len(text), supervised))
            block += text
        _end_block(batch, block, spans)

    def _supervises(self, part: TemplatePart, messages: Sequence[Message]) -> bool:
        """Return whether the loss counts a part; what follows the content of a cut answer (`stop` false) is not."""
        if part.message is None or not self.loss.supervises(messages[part.message]):
            return False
        return messages[part.message].stop or not part.after_content

    # ---- for the proof

    def expected_spans(self, messages: Sequence[Message]) -> ExpectedSpans:
        """Return what the supervised spans must say: an answer is what the template writes after its prompt.

        Raises RecordError if the template refuses the messages.
        """
        selected = self.loss.apply(messages)
        escaped = self._scanner.escape_controls(messages)
        text = self._apply(escaped)
        parts = self._skeleton(messages).parts
        texts: list[EndedText] = []
        before_answers: list[str] = []
        for index, message in enumerate(selected):
            if not self.loss.supervises(message):
                continue
            own = [i for i, part in enumerate(parts) if part.message == index]
            if message.role == "assistant":
                prompt = self._apply(escaped[:index], add_generation_prompt=True)
                answer = self._expected_answer(text[len(prompt) :], message)
                texts += answer
                if any(content or end for content, end in answer):
                    before_answers.append(self._text_before(parts, own[0], messages) if own else "")
            elif own:
                end = parts[own[-1]].item
                stop = end if isinstance(end, int) and message.stop else None
                texts.append((self._scanner.fill(parts[own[0]].item, messages), stop))
        bos = self.tokenizer.info.bos_id  # None without a begin token, which then equals no item
        return ExpectedSpans(texts, before_answers, sum(part.item == bos for part in parts))

    def _text_before(self, parts: Sequence[TemplatePart], index: int, messages: Sequence[Message]) -> str:
        """Return the text between the last control token and the part at `index`."""
        controls = [i for i in range(index) if isinstance(parts[i].item, int)]
        block = parts[controls[-1] + 1 if controls else 0 : index]
        return "".join(self._scanner.fill(part.item, messages) for part in block)

    def _expected_answer(self, after: str, message: Message) -> list[EndedText]:
        """Return an answer up to its stop token, cut at control tokens; `after` is the text after its prompt."""
        scanner = self._scanner
        # A control string in the content could be taken for the stop token: the text is then cut after the content.
        if not scanner.has_control(message.content):
            after = scanner.until_control(after, self.stop_ids)
        content = next((text for text in strip_variants(message.content) if text in after), message.content)
        position = after.find(content)
        # -1 if the template changes the content; the proof then fails, as the ids do not decode to it.
        lead, tail = after[: max(position, 0)], after[max(position, 0) + len(content) :]
        texts = scanner.split_at_controls(lead)
        texts[-1] = (texts[-1][0] + content, None)
        if not message.stop:
            return texts
        for text, control in scanner.split_at_controls(scanner.until_control(tail, self.stop_ids)):
            texts[-1] = (texts[-1][0] + text, control)
            if control in self.stop_ids:
                return texts
            texts.append(("", None))
        return texts

    def counter(self) -> TokenCounter:
        """Return a counter that renders all messages of a piece together."""
        return _RenderingCounter(self)


def _extend(spans: list[_Span], span: _Span) -> None:
    """Append a span, or join it to the last one if it continues that; an empty span is left out."""
    last = spans[-1] if spans else None
    if last and (last.message, last.stop, last.supervised) == (span.message, span.start, span.supervised):
        spans[-1] = last._replace(stop=span.stop)
    elif span.start < span.stop:
        spans.append(span)


def _end_block(batch: TextBatch, text: str, spans: Sequence[_Span]) -> None:
    if text:  # control tokens in a row have no block between them
        batch.add_block(text)
        for span in spans:
            batch.add_span(span.start, span.stop, span.supervised)


class _RenderingCounter(TokenCounter):
    """Counts a piece as one rendering: how a template writes an exchange may depend on the others."""

    additive = False

    def __init__(self, renderer: JinjaRenderer) -> None:
        self._renderer = renderer
        self.mid_system = renderer.mid_system

    def sizes(self, fragments: Sequence[Fragment]) -> list[Size]:
        """Return the size of each rendering; 0 tokens for one that fails, which the proof reports later."""
        encoded = self._renderer.render_batch([messages for messages, _ in fragments]).encoded
        parts = map(encoded.tokens_of, range(len(encoded)))
        return [Size(part.stop - part.start, int(encoded.loss_mask[part].sum())) for part in parts]
