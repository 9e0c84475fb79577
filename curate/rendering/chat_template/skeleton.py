"""A rendering without its contents: what a chat template writes, divided between prompts and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from curate.errors import RecordError
from curate.rendering.chat_template.placeholders import Item, Placeholder, TemplatePart, cut_at, show_difference
from curate.rendering.chat_template.program import CLOSED_THOUGHT, EMPTY_THOUGHT, OPEN_THOUGHT, ChatProgram
from curate.rendering.choices import EmptyThink
from curate.schemas.conversation import Message


@dataclass(frozen=True)
class Skeleton:
    """What all conversations with the same roles share.

    `parts` are what the template writes. `written` are what the rendering has: the same, but for the thought of the
    last answer; an index is that of a part. `problems`: why an answer cannot be supervised, by message index.
    """

    parts: list[TemplatePart]
    written: list[int | TemplatePart]
    problems: dict[int, RecordError] = field(default_factory=dict)


class Skeletons:
    """Builds the skeletons of conversations, and keeps them."""

    def __init__(self, program: ChatProgram, empty_think: EmptyThink) -> None:
        self._program = program
        self._empty_think = empty_think
        self._skeletons: dict[object, Skeleton] = {}  # by whatever a template may branch on, except contents

    def get(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> Skeleton:
        """Return the skeleton of these messages; raises RecordError if the template refuses them."""
        # A template may branch on names and tool calls, and write an empty content differently.
        flags = ((m.role, bool(m.content), bool(m.reasoning), m.name, m.tool_calls) for m in messages)
        key = add_generation_prompt, messages[0].tools if messages else None, *flags
        skeleton = self._skeletons.get(key)
        if skeleton is None:
            skeleton = self._skeletons[key] = self._build_skeleton(messages, add_generation_prompt)
        return skeleton

    def _build_skeleton(self, messages: Sequence[Message], add_generation_prompt: bool) -> Skeleton:
        # The template runs again for the prompt of each answer, so skeletons are cached.
        text = self._program.apply_to_placeholders(messages, add_generation_prompt=add_generation_prompt)
        items = self._program.scanner.scan(text)
        starts, problems, thought = self._locate_answers(messages, text)
        parts = self._assign(cut_at(items, starts), starts, messages)
        problems = {**self._find_missing(messages, parts, bool(thought)), **problems}
        return Skeleton(parts, self._write_thought(parts, messages, thought), problems)

    def _locate_answers(
        self, messages: Sequence[Message], text: str
    ) -> tuple[dict[int, int], dict[int, RecordError], str]:
        """Return where the answers start in the template's `text`, and why others cannot be located.

        The first is answers by position, in characters; the second is problems by message index. The third is the start
        of a thought that the prompt of the last answer has, and the text has not.
        """
        starts: dict[int, int] = {}
        problems: dict[int, RecordError] = {}
        thought = ""
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            try:
                start, opened = self._answer_start(messages[:index], text)
                if opened and index < len(messages) - 1:
                    reason = "the chat template's generation prompt opens a thought, which is not in earlier answers"
                    raise RecordError("prompt_no_prefix", reason)
                starts[start] = index
                thought = opened
            except RecordError as error:
                problems[index] = error
        return starts, problems, thought

    def _answer_start(self, before: Sequence[Message], text: str) -> tuple[int, str]:
        """Return the position in `text` where an answer starts, given the messages before it.

        That is after its generation prompt. If the prompt ends in the start of a thought that the text has not, that is
        also returned. Raises RecordError if the text does not begin with the prompt.
        """
        prompt = self._program.apply_to_placeholders(before, add_generation_prompt=True)
        if text.startswith(prompt):
            return len(prompt), ""
        thought = OPEN_THOUGHT.search(prompt)
        if thought and text.startswith(prompt[: thought.start()]):
            return thought.start(), thought[0]
        # Which of two problems is it? The earlier messages differ, or only the prompt at their end does.
        if not text.startswith(self._program.apply_to_placeholders(before)):
            reason = "the chat template writes earlier messages differently when later ones follow"
            raise RecordError("template_rewrites", reason)
        reason = "the chat template's generation prompt is not what it writes before the answer"
        raise RecordError("prompt_no_prefix", reason, show_difference(prompt, text))

    def _find_missing(
        self, messages: Sequence[Message], parts: Sequence[TemplatePart], opens_thought: bool
    ) -> dict[int, RecordError]:
        """Return why answers cannot be supervised where the template does not write all, by message index.

        `opens_thought`: the reasoning of the last answer is written after the start of a thought in its prompt.
        """
        written = {(part.item.message, part.item.is_reasoning) for part in parts if isinstance(part.item, Placeholder)}
        problems: dict[int, RecordError] = {}
        lost = ""  # a message that the prompt of later answers lacks
        for index, message in enumerate(messages):
            has_text = not message.content or (index, False) in written
            if not has_text or not self._program.writes_calls(messages, index):
                what = "calls" if has_text else "text"
                lost = lost or f"the chat template does not write the {what} of message {index}, of role {message.role}"
            if message.role == "assistant":
                is_last = index == len(messages) - 1
                has_thought = (index, True) in written or (is_last and opens_thought)
                if reason := lost or self._find_thought_problem(message, has_thought, is_last):
                    problems[index] = RecordError("template_rewrites", reason)
        return problems

    def _find_thought_problem(self, answer: Message, has_thought: bool, is_last: bool) -> str:
        """Return why an answer cannot be supervised with its thought as it is written; empty if it can."""
        if answer.reasoning:
            return "" if has_thought else "the chat template leaves out the answer's reasoning"
        is_mixed = not is_last and self._empty_think == "all" and self._program.writes_empty_thought
        return "the chat template writes an empty thought before the last answer only" if is_mixed else ""

    def _write_thought(
        self, parts: Sequence[TemplatePart], messages: Sequence[Message], thought: str
    ) -> list[int | TemplatePart]:
        """Return the parts of a rendering, with the thought of the last answer as the model is to write it.

        `thought` is the start of a thought at the end of the prompt, which the text lacks: then the rest of the thought
        is written after it. Without it, an empty thought is left out if `empty_think` says so.
        """
        written: list[int | TemplatePart] = list(range(len(parts)))
        last = len(messages) - 1
        if not (thought or (self._empty_think == "none" and messages[last].role == "assistant")):
            return written
        start = next((i for i, part in enumerate(parts) if part.message == last), len(parts))
        first = parts[start].item if start < len(parts) else ""
        own = EMPTY_THOUGHT.match(first) if isinstance(first, str) else None
        new: list[TemplatePart] = []
        if thought:
            new += [TemplatePart(item) for item, _ in self._program.scanner.scan(thought)]
            if messages[last].reasoning:
                new.append(TemplatePart(Placeholder(last, True, True, False, True), last, is_reasoning=True))
            close = own["rest"].lstrip("\n") if own else CLOSED_THOUGHT
            new += [TemplatePart(item, last, is_reasoning=True) for item, _ in self._program.scanner.scan(close)]
        if own and (thought or not messages[last].reasoning):
            rest = own.string[own.end() :]
            new += [replace(parts[start], item=rest)] if rest else []
            return [*written[:start], *new, *written[start + 1 :]]
        return [*written[:start], *new, *written[start:]]

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
                after_content = after_content or (isinstance(item, Placeholder) and not item.is_reasoning)
                if isinstance(item, int) and after_content and item in self._program.stop_ids:
                    answer, after_content = None, False
            previous = item.message if isinstance(item, Placeholder) else None
        return self._mark_close(_mark_reasoning(parts))

    def _mark_close(self, parts: Sequence[TemplatePart]) -> list[TemplatePart]:
        """Mark what closes a reasoning that no content follows as part of it, cutting a text where a call begins."""
        contents = {part.message for part in parts if _is_content(part, part.message)}
        marked: list[TemplatePart] = []
        close: str | None = ""  # what is still to come of it; None where it begins
        for part in parts:
            item = part.item
            if isinstance(item, Placeholder):
                close = None if item.is_reasoning and item.message not in contents else ""
                marked.append(part)
                continue
            text = item if isinstance(item, str) else self._program.scanner.control_names[item]
            closed, close = self._program.close_thought(text, close) if close != "" else ("", "")
            if closed == text or (closed and isinstance(item, str)):
                marked.append(replace(part, item=closed if isinstance(item, str) else item, is_reasoning=True))
                part = replace(part, item=text[len(closed) :])
            marked += [part] if part.item != "" else []
        return marked


def _mark_reasoning(parts: Sequence[TemplatePart]) -> list[TemplatePart]:
    """Mark the parts of each answer with a reasoning, from its start to its content, or else to the reasoning's end."""
    marked = list(parts)
    for end, part in enumerate(parts):
        if isinstance(part.item, Placeholder) and part.item.is_reasoning:
            content = next((i for i, other in enumerate(parts) if _is_content(other, part.message)), end + 1)
            for i in range(content):
                if parts[i].message == part.message:
                    marked[i] = replace(parts[i], is_reasoning=True)
    return marked


def _is_content(part: TemplatePart, message: int | None) -> bool:
    return isinstance(part.item, Placeholder) and not part.item.is_reasoning and part.item.message == message
