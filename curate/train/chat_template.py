"""A model's own Jinja chat template as a renderer: its text found piece by piece, so that ids and mask can be proven.

A template is a program that writes one text. Rendered once with holes in place of the contents, it shows what it
writes itself: that is cut at control tokens, and what is asked with is told from what is answered. The holes are then
filled, and what comes out must be what the template writes of the messages themselves; where it is not (a template
that takes thoughts out of earlier answers), the conversation is left out by name. A control string in a message
stays text, as it stands in a hole.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from curate import runs
from curate.errors import RecipeError, RecordError
from curate.runs import Sheet
from curate.schemas.conversation import Message
from curate.split import Counting, Rendering, Size
from curate.tokens import Tokenizer
from curate.train import jinja
from curate.train.render import Base, Expected, Loss, Words, Written

# A hole is white space, gone in the output where the template strips, around a number and a quotation mark, escaped
# where the template writes JSON.
_EDGE = "\u2003"
_HOLE = re.compile(f'({_EDGE}?)\ue0f0(\\d+)(\\\\?)"\ue0f1({_EDGE}?)')
_KEPT = re.compile("\ue0f2(\\d+)\ue0f3")  # where a name or a tool call says a control string, by its id
_MARKS = re.compile("[\ue0f0-\ue0f3]")


class _Literal(str):
    """A control string that is text."""


@dataclass(frozen=True)
class _Hole:
    """Where a content stands; `left`, `right`: white space at its ends is kept; `quoted`: as a string of JSON."""

    message: int
    left: bool
    right: bool
    quoted: bool


@dataclass(frozen=True)
class _Part:
    """A stretch of a rendering: text, a control token's id, or a hole.

    `owner`: the message whose words it is, as a model would write them; `tail`: it stands after the content.
    """

    item: str | int | _Hole
    owner: int | None = None
    tail: bool = False


@dataclass(frozen=True)
class _Shape:
    """What all conversations of the same roles have in common; `problems`: answers that cannot be trained on."""

    parts: list[_Part]
    problems: dict[int, RecordError] = field(default_factory=dict)


class ChatTemplateRenderer(Base):
    """Renders with a Jinja chat template, as `apply_chat_template` of transformers does."""

    def __init__(self, chat_template: str, tokenizer: Tokenizer, loss: Loss) -> None:
        self.chat_template = chat_template
        self.name = f"own:{hashlib.sha256(chat_template.encode()).hexdigest()[:12]}"
        self.tokenizer = tokenizer
        self.loss = loss
        self._shapes: dict[object, _Shape] = {}
        self._controls = {name: token for name, token in tokenizer.control_ids.items() if name not in ("bos", "eos")}
        self._names = {token: name for name, token in self._controls.items()}
        self._control = re.compile("|".join(map(re.escape, sorted(self._controls, key=len, reverse=True))) or "(?!)")
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
                f"({_parting(written.rows.ids.tolist(), served)}); name one of curate's own templates"
            )

    def _served(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids by which a server asks: the whole text at once, control strings read as such."""
        from tokenizers import Tokenizer as HuggingFace

        text = self._text(messages, asks=True)
        return list(HuggingFace.from_str(self.tokenizer.tokenizer_json()).encode(text, add_special_tokens=False).ids)

    # ---- the template's text

    @cached_property
    def _template(self) -> Callable[..., str]:
        return jinja.compile_template(self.chat_template)

    def _text(self, messages: Sequence[Message], *, asks: bool = False) -> str:
        """Return what the template writes; raises RecordError where it refuses."""
        info = self.tokenizer.info
        try:
            return self._template(
                messages=jinja.plain(messages),
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
        holes = [
            Message(m.role, f'{_EDGE}\ue0f0{i}"\ue0f1{_EDGE}' if m.content else "", m.name, m.tool_calls)
            for i, m in enumerate(self._guarded(messages))
        ]
        return self._text(holes, asks=asks)

    def _guarded(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages in whose names and tool calls control strings are marked, so that they stay text."""

        def marked(text: str | None) -> str | None:
            if text and _MARKS.search(text):
                raise RecordError("template_refuses", "a name or a tool call holds characters that stand for contents")
            return text and self._control.sub(lambda found: f"\ue0f2{self._controls[found[0]]}\ue0f3", text)

        return [replace(m, name=marked(m.name), tool_calls=marked(m.tool_calls)) for m in messages]

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """What ends an answer: the first control token after it; none where there is none."""
        text = self._holed([Message("user", "x"), Message("assistant", "x")])
        items = [item for item, _ in self._items(text)]
        answer = next((at for at, item in enumerate(items) if isinstance(item, _Hole) and item.message == 1), None)
        if answer is None:
            raise RecordError("template_rewrites", "it does not write the answer")
        return tuple(item for item in items[answer:] if isinstance(item, int))[:1]

    # ---- shapes

    def _items(self, text: str) -> list[tuple[str | int | _Hole, int]]:
        """Cut a text with holes into text, control tokens and holes, each with its place."""
        out: list[tuple[str | int | _Hole, int]] = []
        done = 0
        found = [*_HOLE.finditer(text), *_KEPT.finditer(text), *self._control.finditer(text)]
        for match in sorted(found, key=lambda one: one.start()):
            if match.start() > done:
                out.append((text[done : match.start()], done))
            out.append((self._item(match), match.start()))
            done = match.end()
        return [*out, (text[done:], done)] if done < len(text) else out

    def _item(self, match: re.Match[str]) -> str | int | _Hole:
        if match.re is _HOLE:
            return _Hole(int(match[2]), bool(match[1]), bool(match[4]), bool(match[3]))
        return _Literal(self._names[int(match[1])]) if match.re is _KEPT else self._controls[match[0]]

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
        items: list[tuple[str | int | _Hole, int]] = []
        for item, place in self._items(whole):
            size = len(item) if isinstance(item, str) and not isinstance(item, _Literal) else 0
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
        raise RecordError("prompt_no_prefix", reason, _parting(prompt, whole))

    def _owned(
        self, items: list[tuple[str | int | _Hole, int]], starts: dict[int, int], messages: Sequence[Message]
    ) -> list[_Part]:
        """Tell whose words each part is: an answer's from where it begins to its stop token, another's its content."""
        parts: list[_Part] = []
        owner: int | None = None
        tail = False
        before: int | None = None  # whose content has just been written
        for item, place in items:
            if place in starts:
                owner = starts[place]
                tail = not messages[owner].content
            if isinstance(item, _Hole) and item.message != owner:
                owner = None
                parts.append(_Part(item, item.message))
            elif owner is None and isinstance(item, int):  # what ends a message that is no answer
                parts.append(_Part(item, before, tail=True))
            else:
                parts.append(_Part(item, owner, tail))
                tail = tail or isinstance(item, _Hole)
                if isinstance(item, int) and tail and item in self.stop_ids:
                    owner, tail = None, False
            before = item.message if isinstance(item, _Hole) else None
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
        rows = runs.encode(sheet, self.tokenizer)
        return Written(replace(rows, mask=np.zeros_like(rows.mask)) if asks else rows, problems)

    def _put(self, sheet: Sheet, messages: Sequence[Message], asks: bool) -> None:
        """Append a rendering; raises RecordError where the template refuses or rewrites the messages."""
        real = self._text(messages, asks=asks)
        shape = self._shape(messages, asks=asks)
        texts = [_filled(part.item, messages, self._names) for part in shape.parts]
        if "".join(texts) != real:
            reason = "the chat template changes what the messages say"
            raise RecordError("template_rewrites", reason, _parting("".join(texts), real))
        selected = self.loss.select(messages)
        for index, problem in shape.problems.items():
            if self._trains(selected[index]) and not asks:
                raise problem
        self._put_parts(sheet, shape.parts, texts, selected)

    def _put_parts(
        self, sheet: Sheet, parts: Sequence[_Part], texts: Sequence[str], messages: Sequence[Message]
    ) -> None:
        run = ""
        stretches: list[tuple[int, int, int, bool]] = []  # owner, start, stop, trained
        for part, text in zip([*parts, _Part(-1)], [*texts, ""], strict=True):
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
        told = self._guarded(messages)
        full = self._text(told)
        parts = self._shape(messages).parts
        words: list[Words] = []
        asked: list[str] = []
        for index, message in enumerate(selected):
            if not self._trains(message):
                continue
            own = [at for at, part in enumerate(parts) if part.owner == index]
            if message.role == "assistant":
                words += self._answer(full[len(self._text(told[:index], asks=True)) :], message)
                back = [at for at in range(own[0]) if isinstance(parts[at].item, int)] if own else []
                before = parts[back[-1] + 1 if back else 0 : own[0]] if own else []
                asked.append("".join(_filled(part.item, messages, self._names) for part in before))
            elif own:
                mark = parts[own[-1]].item
                end = mark if isinstance(mark, int) and message.stop else None
                words.append((_filled(parts[own[0]].item, messages, self._names), end))
        bos = self.tokenizer.info.bos_id
        return Expected(words, asked, sum(part.item == bos for part in parts))

    def _answer(self, after: str, message: Message) -> list[Words]:
        """Return an answer's words from the text that follows what asks for it, up to the stop token."""
        content = next((text for text in _variants(message.content) if text in after), message.content)
        at = after.find(content)
        lead, rest = after[: max(at, 0)], after[max(at, 0) + len(content) :]
        said = self._words(lead)
        said[-1] = (said[-1][0] + content, None)
        if not message.stop:
            return said
        ends = (found.end() for found in self._control.finditer(rest) if self._controls[found[0]] in self.stop_ids)
        for text, control in self._words(rest[: next(ends, None)]):
            said[-1] = (said[-1][0] + text, control)
            if control in self.stop_ids:
                return said
            said.append(("", None))
        return said

    def _words(self, text: str) -> list[Words]:
        """Cut the template's own text at control tokens."""
        out: list[Words] = [("", None)]
        for item, _ in self._items(text):
            said = out.pop()[0]
            out += [(said, item), ("", None)] if isinstance(item, int) else [(said + str(item), None)]
        return out

    def counter(self) -> Counting:
        """Return what the splitter counts pieces with."""
        return _Counter(self)


class _Counter:
    """Counts whole renderings: what a template writes of one exchange may depend on the others."""

    additive = False

    def __init__(self, made: ChatTemplateRenderer) -> None:
        self.made = made

    def sizes(self, renderings: Sequence[Rendering]) -> list[Size]:
        """Return the size of each rendering; of one that cannot be written 0, as the proof names it later."""
        rows = self.made.write([messages for messages, _ in renderings]).rows
        cuts = zip(rows.offsets[:-1].tolist(), rows.offsets[1:].tolist(), strict=True)
        return [Size(stop - start, int(rows.mask[start:stop].sum())) for start, stop in cuts]


def _filled(item: str | int | _Hole, messages: Sequence[Message], names: dict[int, str]) -> str:
    if isinstance(item, int):
        return names[item]
    if isinstance(item, str):
        return item
    content = messages[item.message].content
    content = content if item.left else content.lstrip()
    content = content if item.right else content.rstrip()
    return json.dumps(content, ensure_ascii=False)[1:-1] if item.quoted else content


def _variants(content: str) -> tuple[str, ...]:
    return content, content.rstrip(), content.lstrip(), content.strip()


def _parting(ours: Sequence[Any], theirs: Sequence[Any]) -> str:
    """Show where two texts, or two lists of ids, part."""
    at = next((i for i, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), len(ours))
    return f"{ours[max(0, at - 10) : at + 40]!r} and {theirs[max(0, at - 10) : at + 40]!r}"
