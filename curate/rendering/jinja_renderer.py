"""A model's own Jinja chat template as a renderer: its text found piece by piece, so that ids and mask can be proven.

A template is a program that writes one text. Rendered once with holes in place of the contents, it shows what it
writes itself: that is cut at control tokens, and what is asked with is told from what is answered. The holes are then
filled, and what comes out must be what the template writes of the messages themselves; where it is not (a template
that takes thoughts out of earlier answers), the conversation is left out by name. A control string in a message
stays text, as it stands in a hole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile

import numpy as np

from curate.errors import RecipeError, RecordError
from curate.rendering import encode, jinja_env
from curate.rendering.encode import Sheet
from curate.rendering.placeholders import Cutter, Hole, Literal, Part, Words, filled, parting, variants
from curate.rendering.renderer import Base, Expected, Loss, Written
from curate.rendering.split import Counting, Rendering, Size
from curate.schemas.conversation import Message
from curate.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True)
class _Shape:
    """What all conversations of the same roles have in common; `problems`: answers that cannot be trained on."""

    parts: list[Part]
    problems: dict[int, RecordError] = field(default_factory=dict)


class ChatTemplateRenderer(Base):
    """Renders with a Jinja chat template, as `apply_chat_template` of transformers does."""

    def __init__(self, chat_template: str, tokenizer: Tokenizer, loss: Loss) -> None:
        self.chat_template = chat_template
        self.name = f"own:{hashlib.sha256(chat_template.encode()).hexdigest()[:12]}"
        self.tokenizer = tokenizer
        self.loss = loss
        self._shapes: dict[object, _Shape] = {}
        names = {name: token for name, token in tokenizer.control_ids.items() if name not in ("bos", "eos")}
        self._cutter = Cutter(names)
        self._check()

    def __reduce__(self) -> tuple[type[ChatTemplateRenderer], tuple[str, Tokenizer, Loss]]:
        return type(self), (self.chat_template, self.tokenizer, self.loss)

    def _check(self) -> None:
        """Refuse a template that cannot be rendered, ends no answer, or is read otherwise where it is served."""
        try:
            stops = self.stop_ids
            written = self.write_prompts([[Message("user", "Hello there")]])
        except RecordError as error:
            raise RecipeError(f"the chat template cannot be used: {error.reason}") from None
        if not stops:
            raise RecipeError("the chat template ends an answer with no control token, so a model would never stop")
        for problem in written.problems.values():
            raise RecipeError(f"the chat template cannot be used: {problem.reason}")
        served = self._served([Message("user", "Hello there")])
        if written.rows.ids.tolist() != served:
            raise RecipeError(
                "the chat template is tokenised otherwise where it is served "
                f"({parting(written.rows.ids.tolist(), served)}); name one of curate's own templates"
            )

    def _served(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids by which a server asks: the whole text at once, control strings read as such."""
        from tokenizers import Tokenizer as HuggingFace

        text = self._text(messages, asks=True)
        return list(HuggingFace.from_str(self.tokenizer.tokenizer_json()).encode(text, add_special_tokens=False).ids)

    # ---- the template's text

    @cached_property
    def _template(self) -> Callable[..., str]:
        return jinja_env.compile_template(self.chat_template)

    def _text(self, messages: Sequence[Message], *, asks: bool = False) -> str:
        """Return what the template writes; raises RecordError where it refuses."""
        info = self.tokenizer.info
        try:
            return self._template(
                messages=jinja_env.plain(messages),
                tools=None,
                documents=None,
                add_generation_prompt=asks,
                bos_token=info.bos_token or "",
                eos_token=info.eos_token,
            )
        except Exception as error:  # a template is a program: it may raise anything
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise RecordError("template_refuses", f"the chat template says: {said[0]}") from None

    def _holed(self, messages: Sequence[Message], *, asks: bool = False) -> str:
        return self._text(self._cutter.holed(messages), asks=asks)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """What ends an answer: the end token where it follows every answer, else the first control token that does.

        None where there is none.
        """
        messages = [Message("user", "x"), Message("assistant", "x")] * 2
        items = [item for item, _ in self._cutter.items(self._holed(messages))]
        places = {item.message: at for at, item in enumerate(items) if isinstance(item, Hole)}
        if 3 not in places:
            raise RecordError("template_rewrites", "it does not write the answer")
        first, last = (
            [item for item in items[places.get(answer, 0) : places.get(answer + 1)] if isinstance(item, int)]
            for answer in (1, 3)
        )
        both = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))]
        return (self.tokenizer.info.eos_id,) if self.tokenizer.info.eos_id in both else tuple(last[:1])

    # ---- shapes

    def _shape(self, messages: Sequence[Message], *, asks: bool = False) -> _Shape:
        """Return the shape of these messages; raises RecordError where the template refuses them."""
        key = asks, *((m.role, bool(m.content), m.name, m.tool_calls) for m in messages)
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._shapes[key] = self._find_shape(messages, asks)
        return shape

    def _find_shape(self, messages: Sequence[Message], asks: bool) -> _Shape:
        whole = self._holed(messages, asks=asks)
        problems: dict[int, RecordError] = {}
        starts: dict[int, int] = {}  # place in the text -> the answer that begins there
        for index, message in enumerate(messages):
            if message.role == "assistant":
                try:
                    starts[self._start(messages[:index], whole)] = index
                except RecordError as error:
                    problems[index] = error
        found = self._cutter.items(whole)
        written = {item.message for item, _ in found if isinstance(item, Hole)}
        reason = "the chat template does not write what the answer says"
        problems |= {
            i: RecordError("template_rewrites", reason)
            for i, m in enumerate(messages)
            if m.role == "assistant" and m.content and i not in written
        }
        items: list[tuple[str | int | Hole, int]] = []
        for item, place in found:
            size = len(item) if isinstance(item, str) and not isinstance(item, Literal) else 0
            cut = next((at for at in starts if place < at < place + size), None)
            if isinstance(item, str) and cut is not None:
                items += [(item[: cut - place], place), (item[cut - place :], cut)]
            else:
                items.append((item, place))
        return _Shape(self._owned(items, starts, messages), problems)

    def _start(self, before: Sequence[Message], whole: str) -> int:
        """Return where an answer begins: what asks for it must be how the text begins."""
        prompt = self._holed(before, asks=True)
        if whole.startswith(prompt):
            return len(prompt)
        if not whole.startswith(self._holed(before)):
            reason = "the chat template writes earlier messages otherwise once later ones follow"
            raise RecordError("template_rewrites", reason)
        reason = "the chat template asks for an answer with words that do not stand before it"
        raise RecordError("prompt_no_prefix", reason, parting(prompt, whole))

    def _owned(
        self, items: list[tuple[str | int | Hole, int]], starts: dict[int, int], messages: Sequence[Message]
    ) -> list[Part]:
        """Tell whose words each part is: an answer's from where it begins to its stop token, another's its content."""
        parts: list[Part] = []
        owner: int | None = None
        tail = False
        before: int | None = None  # whose content has just been written
        for item, place in items:
            if place in starts:
                owner = starts[place]
                tail = not messages[owner].content
            if isinstance(item, Hole) and item.message != owner:
                owner = None
                parts.append(Part(item, item.message))
            elif owner is None and isinstance(item, int):  # what ends a message that is no answer
                parts.append(Part(item, before, tail=True))
            else:
                parts.append(Part(item, owner, tail))
                tail = tail or isinstance(item, Hole)
                if isinstance(item, int) and tail and item in self.stop_ids:
                    owner, tail = None, False
            before = item.message if isinstance(item, Hole) else None
        return parts

    # ---- writing

    def write(self, conversations: Sequence[Sequence[Message]]) -> Written:
        """Return many renderings at once, and why there are none of some conversations."""
        return self._write(conversations, asks=False)

    def write_prompts(self, conversations: Sequence[Sequence[Message]]) -> Written:
        """Return what asks for the next answer, for each conversation."""
        return self._write(conversations, asks=True)

    def _write(self, conversations: Sequence[Sequence[Message]], *, asks: bool) -> Written:
        sheet = Sheet()
        problems: dict[int, RecordError] = {}
        for index, messages in enumerate(conversations):
            try:
                self._put(sheet, messages, asks)
            except RecordError as error:
                problems[index] = error
            sheet.end()
        rows = encode.encode(sheet, self.tokenizer)
        return Written(replace(rows, mask=np.zeros_like(rows.mask)) if asks else rows, problems)

    def _put(self, sheet: Sheet, messages: Sequence[Message], asks: bool) -> None:
        """Append a rendering; raises RecordError where the template refuses or rewrites the messages."""
        real = self._text(messages, asks=asks)
        shape = self._shape(messages, asks=asks)
        texts = [filled(part.item, messages, self._cutter.names) for part in shape.parts]
        if "".join(texts) != real:
            reason = "the chat template changes what the messages say"
            raise RecordError("template_rewrites", reason, parting("".join(texts), real))
        selected = self.loss.select(messages)
        for index, problem in shape.problems.items():
            if self._trains(selected[index]) and not asks:
                raise problem
        self._put_parts(sheet, shape.parts, texts, selected)

    def _put_parts(
        self, sheet: Sheet, parts: Sequence[Part], texts: Sequence[str], messages: Sequence[Message]
    ) -> None:
        run = ""
        stretches: list[tuple[int, int, int, bool]] = []  # owner, start, stop, trained
        for part, text in zip([*parts, Part(-1)], [*texts, ""], strict=True):
            message = None if part.owner is None else messages[part.owner]
            trained = message is not None and self._trains(message) and (message.stop or not part.tail)
            if isinstance(part.item, int):
                if run:
                    sheet.run(run)
                for _, start, stop, counts in stretches:
                    sheet.stretch(start, stop, counts)
                run, stretches = "", []
                if part.item >= 0:
                    sheet.mark(part.item, trained)
                continue
            if part.owner is not None and message is not None and (message.role == "assistant" or trained):
                last = stretches[-1] if stretches else None
                if last and last[0] == part.owner and last[2] == len(run) and last[3] == trained:
                    stretches[-1] = (part.owner, last[1], len(run) + len(text), trained)
                elif text:
                    stretches.append((part.owner, len(run), len(run) + len(text), trained))
            run += text

    def _trains(self, message: Message) -> bool:
        return message.train and message.role in self.loss.roles

    # ---- what must be found

    def expected(self, messages: Sequence[Message]) -> Expected:
        """Return what a rendering must hold: each answer by the text that follows what asks for it."""
        selected = self.loss.select(messages)
        told = self._cutter.guarded(messages)
        full = self._text(told)
        parts = self._shape(messages).parts
        words: list[Words] = []
        asked: list[str] = []
        for index, message in enumerate(selected):
            if not self._trains(message):
                continue
            own = [at for at, part in enumerate(parts) if part.owner == index]
            if message.role == "assistant":
                said = self._answer(full[len(self._text(told[:index], asks=True)) :], message)
                words += said
                if not any(text or end for text, end in said):
                    continue
                back = [at for at in range(own[0]) if isinstance(parts[at].item, int)] if own else []
                before = parts[back[-1] + 1 if back else 0 : own[0]] if own else []
                asked.append("".join(filled(part.item, messages, self._cutter.names) for part in before))
            elif own:
                mark = parts[own[-1]].item
                end = mark if isinstance(mark, int) and message.stop else None
                words.append((filled(parts[own[0]].item, messages, self._cutter.names), end))
        bos = self.tokenizer.info.bos_id
        return Expected(words, asked, sum(part.item == bos for part in parts))

    def _answer(self, after: str, message: Message) -> list[Words]:
        """Return an answer's words from the text that follows what asks for it, up to the stop token."""
        if not self._cutter.has_controls(message.content):
            after = self._cutter.until(after, self.stop_ids)
        content = next((text for text in variants(message.content) if text in after), message.content)
        at = after.find(content)
        lead, rest = after[: max(at, 0)], after[max(at, 0) + len(content) :]
        said = self._cutter.words(lead)
        said[-1] = (said[-1][0] + content, None)
        if not message.stop:
            return said
        for text, control in self._cutter.words(self._cutter.until(rest, self.stop_ids)):
            said[-1] = (said[-1][0] + text, control)
            if control in self.stop_ids:
                return said
            said.append(("", None))
        return said

    def counter(self) -> Counting:
        """Return what the splitter counts pieces with."""
        return _Counter(self)


class _Counter:
    """Counts whole renderings: what a template writes of one exchange may depend on the others."""

    additive = False

    def __init__(self, made: ChatTemplateRenderer) -> None:
        self.made = made

    def opening(self, head: Sequence[Message], own: Sequence[Message]) -> None:
        """Tell nothing: see `additive`."""

    def sizes(self, renderings: Sequence[Rendering]) -> list[Size]:
        """Return the size of each rendering; of one that cannot be written 0, as the proof names it later."""
        rows = self.made.write([messages for messages, _ in renderings]).rows
        cuts = zip(rows.offsets[:-1].tolist(), rows.offsets[1:].tolist(), strict=True)
        return [Size(stop - start, int(rows.mask[start:stop].sum())) for start, stop in cuts]
