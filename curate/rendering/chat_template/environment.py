"""Compile a Jinja chat template in an environment like that of transformers, and convert messages to its input."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Literal, get_args

from curate.errors import MissingExtra, RecipeError
from curate.schemas.conversation import Message
from curate.schemas.prompts import with_reasoning
from curate.schemas.reading.tool_calls import call_ids

# A template that tests whether `strftime_now` is defined has its own default date, so it is not given the function.
_OPTIONAL_DATE = re.compile(r"strftime_now\s+is\s+defined")
# LLaMA-3.1's default date. It is fixed, because a run that is resumed tomorrow must render the same ids.
_TODAY = datetime(2024, 7, 26)
MAX_TEMPLATE = 200_000  # characters: 2.5 s to compile; released ones have up to 30,000


# Under which keys templates look for an answer's reasoning: one of its own, or within the content.
ReasoningKey = Literal["reasoning_content", "thinking", "reasoning", "content"]
REASONING_KEYS: tuple[ReasoningKey, ...] = get_args(ReasoningKey)


def message_dicts(
    messages: Sequence[Message],
    reasoning_key: ReasoningKey | None = "reasoning_content",
    *,
    arguments_as_text: bool = False,
) -> list[dict[str, Any]]:
    """Return messages as chat templates expect them, with tool calls parsed from JSON.

    There is one dict for each message, in order. `reasoning_key` is the key of an answer's reasoning; None leaves it
    out. The arguments of calls are objects, or JSON text.
    """
    dicts = []
    for message, call_id in zip(messages, call_ids(messages), strict=True):
        # The keys of OpenAI's chat format, which chat templates on the Hub are written for.
        fields: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning and reasoning_key:
            fields[reasoning_key] = with_reasoning(message) if reasoning_key == "content" else message.reasoning
        if message.name is not None:
            fields["name"] = message.name
        if message.tool_calls:
            fields["tool_calls"] = _parse_calls(message.tool_calls, arguments_as_text)
        if call_id:  # of the call that a tool message answers
            fields["tool_call_id"] = call_id
        dicts.append(fields)
    return dicts


def _parse_calls(text: str, arguments_as_text: bool) -> Any:
    """Return tool calls as JSON values; text that is not valid JSON is returned unchanged."""
    try:
        calls = json.loads(text)
    except ValueError:
        return text
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and "arguments" in function:
            function["arguments"] = _arguments(function["arguments"], arguments_as_text)
    return calls


def parse_tools(tools: str | None) -> list[Any] | None:
    """Return the definitions of tools, which are JSON text, as templates expect them; None if there are none."""
    values = json.loads(tools) if tools else None
    return values if isinstance(values, list) and values else None


def rename_functions(calls: str, name: str) -> str:
    """Return calls, which are JSON text, with this name for each function."""
    values = json.loads(calls)
    functions = [call.get("function", call) for call in values if isinstance(call, dict)]
    for function in functions:
        if isinstance(function, dict):
            function["name"] = name
    return json.dumps(values)


def _arguments(value: Any, as_text: bool) -> Any:
    """Return a call's arguments as an object, or as JSON text.

    OpenAI's format has them as text. Templates such as LLaMA-3.1's apply `tojson` to them, which would quote a text
    once more; others, such as DeepSeek-V3's, join them to text.
    """
    if as_text:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def compile_template(chat_template: str) -> Callable[..., str]:
    """Return a chat template as a function from its variables to text.

    `{% generation %}` tags are ignored. A template that needs today's date always gets the same one. Raises RecipeError
    for a template that is not valid Jinja, MissingExtra without Jinja.
    """
    try:
        import jinja2
        from jinja2.ext import Extension, loopcontrols
        from jinja2.nodes import Node, Scope
        from jinja2.parser import Parser

        from curate.rendering.chat_template.sandbox import LimitedEnvironment
    except ModuleNotFoundError:
        raise MissingExtra("a model's own chat template", "train") from None

    class Generation(Extension):
        """Ignores the tags that some templates put around answers; answers are located without them."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> Node:
            line = next(parser.stream).lineno
            return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    # Chat templates are written for transformers: settings, filters and globals are the same, except for the date.
    # The sandbox keeps a downloaded template from reaching Python through attributes, and from changing the messages.
    settings = {"trim_blocks": True, "lstrip_blocks": True, "extensions": [Generation, loopcontrols]}
    environment = LimitedEnvironment(**settings)
    environment.globals["raise_exception"] = raise_exception
    if not _OPTIONAL_DATE.search(chat_template):
        environment.globals["strftime_now"] = _TODAY.strftime
    if len(chat_template) > MAX_TEMPLATE:
        raise RecipeError(f"the chat template has {len(chat_template):,} characters, more than {MAX_TEMPLATE:,}")
    try:
        template = environment.from_string(chat_template)
    except RecursionError:
        raise RecipeError("the chat template is nested too deeply") from None
    except jinja2.TemplateSyntaxError as error:
        raise RecipeError(f"the chat template is not valid Jinja: {error.message} (line {error.lineno})") from None

    def render(**variables: Any) -> str:
        environment.restart()
        return environment.join(template.generate(**variables))

    return render
