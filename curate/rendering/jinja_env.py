"""Compile a Jinja chat template in an environment like that of transformers, and convert messages to its input."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from curate.errors import MissingExtra, RecipeError
from curate.schemas.conversation import Message
from curate.schemas.openai import call_ids

# A template that tests for `strftime_now` has a date of its own to fall back on, so it gets none here.
_OPTIONAL_DATE = re.compile(r"strftime_now\s+is\s+defined")
_TODAY = datetime(2024, 7, 26)  # LLaMA-3.1's own default: a run resumed tomorrow must render the same ids


def message_dicts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as chat templates expect them, tool calls and their arguments parsed from JSON."""
    dicts = []
    for message, call_id in zip(messages, call_ids(messages), strict=True):
        fields: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.name is not None:
            fields["name"] = message.name
        if message.tool_calls:
            fields["tool_calls"] = _parse_calls(message.tool_calls)
        if call_id:
            fields["tool_call_id"] = call_id
        dicts.append(fields)
    return dicts


def _parse_calls(text: str) -> Any:
    """Return tool calls as values; what is not JSON stays text."""
    try:
        calls = json.loads(text)
    except ValueError:
        return text
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            try:
                function["arguments"] = json.loads(function["arguments"])
            except ValueError:
                continue
    return calls


def compile_template(chat_template: str) -> Callable[..., str]:
    """Return a chat template as a function; raises RecipeError if it is not valid Jinja.

    `{% generation %}` tags are ignored. A template that needs today's date always gets the same one.
    """
    try:
        import jinja2
        from jinja2.ext import Extension, loopcontrols
        from jinja2.nodes import Node, Scope
        from jinja2.parser import Parser
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError:
        raise MissingExtra("a model's own chat template", "train") from None

    class Generation(Extension):
        """Ignores the tags with which some templates mark answers; answers are found without them."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> Node:
            line = next(parser.stream).lineno
            return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: object, ensure_ascii: bool = False, **settings: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **settings)

    settings = {"trim_blocks": True, "lstrip_blocks": True, "extensions": [Generation, loopcontrols]}
    environment = ImmutableSandboxedEnvironment(**settings)
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    if not _OPTIONAL_DATE.search(chat_template):
        environment.globals["strftime_now"] = _TODAY.strftime
    try:
        return environment.from_string(chat_template).render
    except jinja2.TemplateSyntaxError as error:
        raise RecipeError(f"the chat template is not valid Jinja: {error.message} (line {error.lineno})") from None
