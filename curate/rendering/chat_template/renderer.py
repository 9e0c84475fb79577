"""Render with a model's own Jinja chat template, as `apply_chat_template` of transformers does.

A template is a program that writes one text. It is rendered once with placeholders instead of contents and reasonings.
What remains is the template's own text, which is cut at control tokens and divided between prompts and answers. The
placeholders are then filled, and the result must equal what the template writes for the messages themselves. A control
string in a message stays text, because contents are only filled in after the text is cut.

Where one rendering cannot train every answer as a server prompts for it (some templates remove the reasoning from
earlier answers), the conversation has a problem, and `curate.rendering.preparation` renders each answer by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from curate.errors import RecipeError, RecordError
from curate.rendering.chat_template.environment import ReasoningKey
from curate.rendering.chat_template.placeholders import Placeholder, TemplatePart, show_difference, strip_variants
from curate.rendering.chat_template.program import CLOSED_THOUGHT, EMPTY_THOUGHT, OPEN_THOUGHT, ChatProgram
from curate.rendering.chat_template.skeleton import Skeletons
from curate.rendering.choices import DEFAULT, Choices
from curate.rendering.encoding import encode
from curate.rendering.expected import EndedText, ExpectedSpans
from curate.rendering.renderer import LossRule, RenderedBatch, Renderer
from curate.rendering.splitter import Fragment, Size, TokenCounter
from curate.rendering.text_batch import TextBatch
from curate.schemas.conversation import Message
from curate.tokenization.tokenizer import Tokenizer

Written = list[tuple[TemplatePart, str]]  # the parts of a rendering, each with its text


class _Span(NamedTuple):
    """Characters of a block that belong to one message: `start` to `stop`, counted in the block."""

    message: int  # index in the conversation
    start: int
    stop: int
    supervised: bool


class JinjaRenderer(Renderer):
    """Renders with a Jinja chat template; raises RecipeError for one that cannot be used.

    `name` is that of a built-in template; by default, one is made from the text.
    """

    def __init__(
        self, chat_template: str, tokenizer: Tokenizer, loss: LossRule, choices: Choices = DEFAULT, *, name: str = ""
    ) -> None:
        self.chat_template = chat_template
        self.choices = choices
        self.name = name or f"own:{hashlib.sha256(chat_template.encode()).hexdigest()[:12]}"
        self.tokenizer = tokenizer
        self.loss = loss
        self._program = ChatProgram(chat_template, tokenizer)
        self._scanner = self._program.scanner
        self._skeletons = Skeletons(self._program, choices.empty_think)
        self._check()

    def __reduce__(self) -> tuple[object, tuple[str, Tokenizer, LossRule, Choices]]:
        # A compiled template cannot be pickled: each worker compiles its own.
        arguments = self.chat_template, self.tokenizer, self.loss, self.choices
        return partial(type(self), name=self.name), arguments

    def _check(self) -> None:
        """Refuse a template that fails, has no stop token, or is tokenized differently by a server."""
        question, answer = Message("user", "Hello there"), Message("assistant", "Good day")
        try:
            stops = self.stop_ids
            prompt = self.render_prompts([[question]])
        except RecordError as error:
            raise RecipeError(f"the chat template cannot be used: {error.reason}") from None
        if not stops:
            raise RecipeError("the chat template ends an answer with no control token, so a model would never stop")
        for problem in prompt.problems.values():
            raise RecipeError(f"the chat template cannot be used: {problem.reason}")
        self._check_served([question])
        with suppress(RecordError):  # it may refuse a second question, or a server's form of an answer
            self._check_served([question, answer, question])

    def _check_served(self, messages: Sequence[Message]) -> None:
        """Refuse a template whose prompt has other ids at a server, which tokenizes all text in one call."""
        from tokenizers import Tokenizer as HuggingFace

        text = self._program.write(messages, add_generation_prompt=True)
        server = HuggingFace.from_str(self.tokenizer.tokenizer_json())
        served = list(server.encode(text, add_special_tokens=False).ids)
        ids = self._ids(self._scanner.strip(text))
        if ids != served:
            cause = self._scanner.describe_flags(text)
            raise RecipeError(
                f"the chat template's prompt is tokenized differently by a server{cause and f', because {cause}'} "
                f"({show_difference(ids, served)}); name one of curate's own templates with --template"
            )

    def _ids(self, text: str) -> list[int]:
        """Return the ids of a template's text, with each control string as its token."""
        ids: list[int] = []
        for item, _ in self._scanner.scan(text):
            ids += [item] if isinstance(item, int) else self.tokenizer.encode_blocks([str(item)])[0].tolist()
        return ids

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        return self._program.stop_ids

    @property
    def reasoning_key(self) -> ReasoningKey | None:
        """The key under which the template looks for an answer's reasoning; None if it writes none."""
        return self._program.reasoning_key

    @property
    def mid_system(self) -> bool:
        """Whether the template writes a system message amid the turns, in its place."""
        return self._program.mid_system

    @property
    def shows_tools(self) -> bool:
        """Whether the template writes the definitions of tools."""
        return self._program.shows_tools

    # ---- rendering

    def write_text(self, messages: Sequence[Message]) -> str:
        """Return what the template writes; raises RecordError if it refuses the messages."""
        return self._program.write(messages)

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
        selected = self.loss.apply(messages)
        written = self._write(selected, add_generation_prompt=add_generation_prompt)
        self._append_parts(batch, written, selected)

    def _write(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> Written:
        """Return the parts of a rendering, each with its text.

        Raises RecordError if the template refuses or changes the messages, or if an answer cannot be supervised.
        """
        skeleton = self._skeletons.get(messages, add_generation_prompt=add_generation_prompt)
        problems = {
            index: problem
            for index, problem in skeleton.problems.items()
            if self.loss.supervises(messages[index]) and not add_generation_prompt
        }
        if problems.keys() == {len(messages) - 1} and any(message.reasoning for message in messages[:-1]):
            return self._write_after_served_prompt(messages)
        for problem in problems.values():
            raise problem
        text = self._program.apply(messages, add_generation_prompt=add_generation_prompt)
        matched = list(zip(skeleton.parts, self._match(skeleton.parts, messages, text), strict=True))
        return [
            matched[part] if isinstance(part, int) else (part, self._scanner.fill(part.item, messages))
            for part in skeleton.written
        ]

    def _write_after_served_prompt(self, messages: Sequence[Message]) -> Written:
        """Return the prompt of a last answer as a server sends it, and the answer.

        For templates that write the reasoning of earlier calls in the prompt, and no longer once the answer follows.
        How the answer is written then shows without their reasoning.
        """
        bare = _without_earlier_reasoning(messages)
        written = self._write(bare)
        start = next(i for i, (part, _) in enumerate(written) if part.message == len(messages) - 1)
        prompt = self._write(messages[:-1], add_generation_prompt=True)
        return [*((replace(part, message=None), text) for part, text in prompt), *written[start:]]

    def _match(self, parts: Sequence[TemplatePart], messages: Sequence[Message], text: str) -> list[str]:
        """Return the text of each part, which together are what the template writes for the messages.

        A template's program may do anything with contents. Raises RecordError for a text that it changes, other than by
        removing white space at the ends.
        """
        texts: list[str] = []
        position = 0
        for part in parts:
            fits = (fill for fill in self._scanner.fills(part.item, messages) if text.startswith(fill, position))
            filled = next(fits, None)
            if filled is None:
                raise _changed(part, messages, text[position:])
            texts.append(filled)
            position += len(filled)
        if position < len(text):
            raise _changed(parts[-1], messages, text[position:])
        return texts

    def _append_parts(
        self, batch: TextBatch, parts: Sequence[tuple[TemplatePart, str]], messages: Sequence[Message]
    ) -> None:
        """Append blocks, control tokens and spans; each part comes with its text."""
        block = ""  # text since the last control token
        spans: list[_Span] = []  # of the block
        for part, text in parts:
            supervised = self._supervises(part, messages)
            if isinstance(part.item, int):
                _end_block(batch, block, spans)
                batch.add_control(part.item, supervised)
                block, spans = "", []
                continue
            # An answer has a span even if it is not supervised: its prompt ends there, so no token may cross. With no
            # roles, as for a guard, the answers are another model's, and are tokenized with what is around them.
            is_answer = part.message is not None and messages[part.message].role == "assistant" and self.loss.roles
            if part.message is not None and (supervised or is_answer):
                _extend(spans, _Span(part.message, len(block), len(block) + len(text), supervised))
            block += text
        _end_block(batch, block, spans)

    def _supervises(self, part: TemplatePart, messages: Sequence[Message]) -> bool:
        """Return whether the loss counts a part.

        It does not count what follows the content of a cut answer (`stop` false), and a reasoning that is masked.
        """
        if part.message is None or not self.loss.supervises(messages[part.message]):
            return False
        message = messages[part.message]
        return (message.stop or not part.after_content) and (message.train_reasoning or not part.is_reasoning)

    # ---- for the proof

    def expected_spans(self, messages: Sequence[Message]) -> ExpectedSpans:
        """Return what the supervised spans must say: an answer is what the template writes after its prompt.

        Raises RecordError if the template refuses the messages.
        """
        selected = self.loss.apply(messages)
        escaped = self._scanner.escape_controls(messages)
        parts = self._write(selected)
        texts: list[EndedText] = []
        before_answers: list[str] = []
        for index, message in enumerate(selected):
            if not self.loss.supervises(message):
                continue
            own = [i for i, (part, _) in enumerate(parts) if part.message == index and self._supervises(part, selected)]
            if message.role == "assistant":
                answer = self._expected_answer(self._after_prompt(escaped, index), message)
                texts += answer
                if any(content or end for content, end in answer):
                    before_answers.append(_text_before(parts, own[0]) if own else "")
            elif own:
                end = parts[own[-1]][0].item
                texts.append((parts[own[0]][1], end if isinstance(end, int) and message.stop else None))
        bos = self.tokenizer.info.bos_id  # None without a begin token, which then equals no item
        return ExpectedSpans(texts, before_answers, sum(part.item == bos for part, _ in parts))

    def _after_prompt(self, messages: Sequence[Message], index: int) -> str:
        """Return what follows an answer's prompt in a rendering."""
        text, prompt = self._program.apply(messages), self._program.apply(messages[:index], add_generation_prompt=True)
        answer = messages[index]
        thought = OPEN_THOUGHT.search(prompt)
        if thought and text.startswith(prompt[: thought.start()]) and not text.startswith(prompt):
            after = text[thought.start() :]
            own = EMPTY_THOUGHT.match(after)
            close, after = (own["rest"].lstrip("\n"), after[own.end() :]) if own else (CLOSED_THOUGHT, after)
            return f"{answer.reasoning or ''}{close}{after}"
        if not text.startswith(prompt) and any(message.reasoning for message in messages[:index]):
            return self._after_prompt(_without_earlier_reasoning(messages), index)
        after = text[len(prompt) :]
        if index == len(messages) - 1 and self.choices.empty_think == "none" and not answer.reasoning:
            return EMPTY_THOUGHT.sub("", after, count=1) if EMPTY_THOUGHT.match(after) else after
        return after

    def _expected_answer(self, after: str, message: Message) -> list[EndedText]:
        """Return an answer up to its stop token, cut at control tokens; `after` is the text after its prompt.

        A reasoning that is masked is left out, with the template's text around it.
        """
        scanner = self._scanner
        reasoning = message.reasoning or ""
        # A control string in what the message says could be taken for the stop token: it is then cut after the content.
        if not scanner.has_control(reasoning + message.content):
            after = scanner.until_control(after, self.stop_ids)
        texts: list[EndedText] = [("", None)]
        if reasoning:
            lead, said, after = _partition(after, reasoning)
            texts = _append_text(scanner.split_at_controls(lead), said)
        lead, said, after = _partition(after, message.content)
        if reasoning and not message.train_reasoning:
            texts, lead = [("", None)], "" if message.content else lead
            after = after if message.content else after.removeprefix(self._program.close_thought(after)[0])
        first, *others = scanner.split_at_controls(lead)
        texts = _append_text([*texts[:-1], (texts[-1][0] + first[0], first[1]), *others], said)
        if not message.stop:
            return texts
        for text, control in scanner.split_at_controls(scanner.until_control(after, self.stop_ids)):
            texts[-1] = (texts[-1][0] + text, control)
            if control in self.stop_ids:
                return texts
            texts.append(("", None))
        return texts

    def counter(self) -> TokenCounter:
        """Return a counter that renders all messages of a piece together."""
        return _RenderingCounter(self)


def _changed(part: TemplatePart, messages: Sequence[Message], rest: str) -> RecordError:
    """Return the error that the template changes what a message says; `rest` is its text from there on."""
    item = part.item
    if not isinstance(item, Placeholder):
        return RecordError("template_rewrites", "the chat template writes something else for these messages", rest[:80])
    message = messages[item.message]
    name = "reasoning" if item.is_reasoning else "text"
    said = (message.reasoning or "") if item.is_reasoning else message.content
    reason = f"the chat template changes the {name} of message {item.message}, of role {message.role}"
    return RecordError("template_rewrites", reason, show_difference(said, rest))


def _text_before(parts: Sequence[tuple[TemplatePart, str]], index: int) -> str:
    """Return the text between the last control token and the part at `index`."""
    controls = [i for i in range(index) if isinstance(parts[i][0].item, int)]
    return "".join(text for _, text in parts[controls[-1] + 1 if controls else 0 : index])


def _without_earlier_reasoning(messages: Sequence[Message]) -> list[Message]:
    """Return messages of which only the last has a reasoning."""
    return [*(replace(message, reasoning=None) for message in messages[:-1]), messages[-1]]


def _partition(text: str, said: str) -> tuple[str, str, str]:
    """Return the text before what a message says, that as the template writes it, and the text after it.

    Nothing is before it if the template changes it; the proof then fails, as the ids do not decode to it.
    """
    said = next((variant for variant in strip_variants(said) if variant in text), said)
    position = max(text.find(said), 0)
    return text[:position], said, text[position + len(said) :]


def _append_text(texts: list[EndedText], text: str) -> list[EndedText]:
    """Return texts, of which the last has no end, with a text appended to that."""
    return [*texts[:-1], (texts[-1][0] + text, None)]


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
        """Return the size of each rendering, of its longest one where each answer needs its own.

        It is 0 tokens for one that fails, which the proof reports later.
        """
        rendered = self._renderer.render_batch([messages for messages, _ in fragments])
        sizes = _sizes(rendered)
        for index in rendered.problems:
            rows = _sizes(self._renderer.render_batch(self._renderer.answer_rows(fragments[index][0])))
            sizes[index] = max(rows, default=sizes[index])
        return sizes


def _sizes(rendered: RenderedBatch) -> list[Size]:
    encoded = rendered.encoded
    parts = map(encoded.tokens_of, range(len(encoded)))
    return [Size(part.stop - part.start, int(encoded.loss_mask[part].sum())) for part in parts]
