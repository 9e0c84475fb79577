"""A Jinja chat template as a function of messages, in an environment as transformers makes it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from curate.errors import MissingExtra, RecipeError
from curate.schemas.conversation import Message
from curate.schemas.openai import call_ids

_GUARDED = re.compile(r"strftime_now\s+is\s+defined")
_TODAY = datetime(2024, 7, 26)  # LLaMA-3.1's own default: a run resumed tomorrow must render the same ids


def plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as chat templates take them: tool calls as values, their arguments too, results by their call."""
    found = []
    for message, call_id in zip(messages, call_ids(messages), strict=True):
        plain: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.name is not None:
            plain["name"] = message.name
        if message.tool_calls:
            plain["tool_calls"] = _calls(message.tool_calls)
        if call_id:
            plain["tool_call_id"] = call_id
        found.append(plain)
    return found


def _calls(text: str) -> Any:
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
    """Return a chat template as a function, in an environment as transformers makes it; raises RecipeError.

    `{% generation %}` marks are read over. The date is a fixed one where a template asks for it unguarded.
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
        """Passes over the marks by which some templates tell what a model wrote; it is told from the prompts here."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> Node:
            line = next(parser.stream).lineno
            return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: object, ensure_ascii: bool = False, **settings: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **settings)

    settings = {"trim_blocks": True, "lstrip_blocks": True, "extensions": [Generation, loopcontrols]}
    made = ImmutableSandboxedEnvironment(**settings)
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = refuse
    if not _GUARDED.search(chat_template):
        made.globals["strftime_now"] = _TODAY.strftime
    try:
        return made.from_string(chat_template).render
    except jinja2.TemplateSyntaxError as error:
        raise RecipeError(f"the chat template is no Jinja: {error.message} (line {error.lineno})") from None
