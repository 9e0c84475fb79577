"""A chat template as the program that it is: what it writes for messages, and what it does with reasoning and tools."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import takewhile
from os.path import commonprefix
from typing import Any

from curate.errors import RecordError
from curate.rendering.chat_template import environment
from curate.rendering.chat_template.environment import ReasoningKey
from curate.rendering.chat_template.placeholders import Placeholder, TemplateScanner
from curate.schemas.conversation import Message
from curate.tokenization.tokenizer import Tokenizer

_CALL = (  # to try what a template does with calls
    Message("user", "x"),
    Message(
        "assistant",
        "",
        tool_calls='[{"id": "call00001", "type": "function", "function": {"name": "f", "arguments": "{}"}}]',
    ),
    Message("tool", "y", name="f", tool_call_id="call00001"),
    Message("assistant", "z"),
)
_PROBE = "zq_probe"  # a function's name that no template has
OPEN_THOUGHT = re.compile(r"<think>\s*\Z")  # at the end of a prompt
CLOSED_THOUGHT = "\n</think>\n\n"  # after a reasoning
EMPTY_THOUGHT = re.compile(r"<think>(?P<rest>\s*</think>\s*)")  # at the start of an answer


class ChatProgram:
    """A compiled chat template, with a tokenizer's control tokens; raises RecipeError if it is not valid Jinja."""

    def __init__(self, chat_template: str, tokenizer: Tokenizer) -> None:
        self._template = environment.compile_template(chat_template)
        self._info = tokenizer.info
        # A template writes control tokens by their own names; `bos` and `eos` are curate's aliases.
        own_names = {name: token for name, token in tokenizer.control_ids.items() if name not in ("bos", "eos")}
        self.scanner = TemplateScanner(own_names, tokenizer.control_flags)

    def apply(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """Return what the template writes, as a server reads it; raises RecordError if it refuses the messages.

        White space next to a control string in a message stays, as that is text.
        """
        if not self.scanner.strips:
            return self.write(messages, add_generation_prompt=add_generation_prompt)
        text = self.write(self.scanner.shield(messages), add_generation_prompt=add_generation_prompt)
        return self.scanner.unshield(self.scanner.strip(text))

    def write(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """Return what the template writes; raises RecordError if it refuses the messages."""
        as_text = self._takes_arguments_as_text if any(message.tool_calls for message in messages) else False
        dicts = environment.message_dicts(messages, self.reasoning_key, arguments_as_text=as_text)
        try:
            tools = environment.parse_tools(messages[0].tools) if messages else None
            return self._template(**self._variables(dicts, add_generation_prompt, tools))
        except Exception as error:  # a template is a program: it may raise anything
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise RecordError("template_refuses", f"the chat template says: {lines[0]}") from None

    def _variables(
        self, messages: list[dict[str, Any]], add_generation_prompt: bool, tools: list[Any] | None = None
    ) -> dict[str, Any]:
        """Return the variables that transformers always defines; templates test some of them for None."""
        return {
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self._info.bos_token or "",
            "eos_token": self._info.eos_token,
        }

    def apply_to_placeholders(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """Return what the template writes for messages with placeholders instead of contents."""
        blank = self.scanner.insert_placeholders(messages)
        return self.apply(blank, add_generation_prompt=add_generation_prompt)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The end token if it follows every answer, else the first control token after the last; empty if none does.

        If a call ends in another token, that is the second. Raises RecordError for a template that does not write
        answers.
        """
        # Two answers: some templates end the last one differently.
        messages = [Message("user", "x"), Message("assistant", "x")] * 2
        items = [item for item, _ in self.scanner.scan(self.apply_to_placeholders(messages))]
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
        eos = self._info.eos_id
        stops = (eos,) if eos in common else tuple(last[:1])
        return (*stops, *self._call_stop(stops)) if stops else ()

    def _call_stop(self, stops: tuple[int, ...]) -> tuple[int, ...]:
        """Return the control token at the end of a call, where it is not one of `stops`; empty if there is none."""
        try:
            prompt, text = self.apply(_CALL[:1], add_generation_prompt=True), self.apply(_CALL[:2])
        except RecordError:
            return ()
        controls = [item for item, _ in self.scanner.scan(text[len(prompt) :]) if isinstance(item, int)]
        ends = text.startswith(prompt) and controls and not set(stops) & set(controls)
        return (controls[-1],) if ends else ()

    @cached_property
    def _takes_arguments_as_text(self) -> bool:
        """Whether the template accepts a call's arguments as JSON text only, not as objects."""
        for as_text in (False, True):
            dicts = environment.message_dicts(_CALL, arguments_as_text=as_text)
            try:
                self._template(**self._variables(dicts, False))
            except Exception:  # a template is a program: it may raise anything
                continue
            return as_text
        return False

    @cached_property
    def mid_system(self) -> bool:
        """Whether the template writes a system message amid the turns, in its place."""
        question, answer = Message("user", "x"), Message("assistant", "x")
        messages = [question, answer, Message("system", "x"), question, answer]
        try:
            items = self.scanner.scan(self.apply_to_placeholders(messages))
        except RecordError:
            return False
        return [item.message for item, _ in items if isinstance(item, Placeholder)] == list(range(len(messages)))

    @cached_property
    def reasoning_key(self) -> ReasoningKey | None:
        """The key under which the template looks for an answer's reasoning; None if it writes none."""
        return next(filter(self._writes_reasoning, environment.REASONING_KEYS), None)

    def _writes_reasoning(self, key: ReasoningKey) -> bool:
        """Return whether the template writes the reasoning of a last answer under this key."""
        messages = [Message("user", "x"), Message("assistant", "y", reasoning="\ue0f0r1\ue0f1")]
        try:
            text = self._template(**self._variables(environment.message_dicts(messages, key), False))
        except Exception:  # a template is a program: it may raise anything
            return False
        return "\ue0f0r1\ue0f1" in text

    @cached_property
    def _thought_close(self) -> str:
        """What the template writes between the reasoning and the content of an answer."""
        messages = [Message("user", "x"), Message("assistant", "y", reasoning="z")]
        try:
            items = [item for item, _ in self.scanner.scan(self.apply_to_placeholders(messages))]
        except RecordError:
            return ""
        index = {item.is_reasoning: i for i, item in enumerate(items) if isinstance(item, Placeholder) and item.message}
        if len(index) < 2:  # the prompt opens the thought
            return CLOSED_THOUGHT
        return "".join(self.scanner.fill(item, messages) for item in items[index[True] + 1 : index[False]])

    def close_thought(self, text: str, close: str | None = None) -> tuple[str, str]:
        """Return how much of `text`, which follows a reasoning, closes the thought, and what of the close is to come.

        A call may follow: the close is what is written there as before a content. `close` is what was to come before.
        """
        close = self._thought_close if close is None else close
        closed = commonprefix([close, text])  # noqa: RUF071 - of texts, not paths
        return closed, close[len(closed) :] if closed == text else ""

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the template writes the definitions of tools."""
        tools = json.dumps([{"type": "function", "function": {"name": _PROBE, "description": "", "parameters": {}}}])
        try:
            return _PROBE in self.apply([Message("user", "x", tools=tools)], add_generation_prompt=True)
        except RecordError:
            return False

    @cached_property
    def writes_empty_thought(self) -> bool:
        """Whether the template writes an empty thought before a last answer without reasoning."""
        messages = [Message("user", "x"), Message("assistant", "y")]
        prompt, text = self.apply(messages[:1], add_generation_prompt=True), self.apply(messages)
        return text.startswith(prompt) and EMPTY_THOUGHT.match(text[len(prompt) :]) is not None

    def writes_calls(self, messages: Sequence[Message], index: int) -> bool:
        """Return whether the template writes the calls of a message: another function's name shows in its text."""
        calls = messages[index].tool_calls
        if not calls:
            return True
        named = replace(messages[index], tool_calls=environment.rename_functions(calls, _PROBE))
        try:
            text = self.apply_to_placeholders([*messages[:index], named, *messages[index + 1 :]])
        except RecordError:  # the template knows the name of the tool that answers
            return True
        return _PROBE in text
