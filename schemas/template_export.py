"""Prompt templates in the languages of serving engines: Jinja for transformers and vLLM, Go templates for Ollama.

Both are written from the `prompts.Template` that training renders with, so a served prompt is the trained one; tests
compare their ids. There are two intended differences. An answer that a client sends back with the space that the
template itself puts before it (Vicuna's `ASSISTANT: `) gets no second one. Ollama adds BOS itself, so its template
omits the first one.

Only the standard library is imported here; a template is text until an engine renders it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from curate.schemas.conversation import Role
from curate.schemas.prompts import BOS, EOS, INPUT_MARK, Control, Part, Template, Turn

TOOL_CALLS = """
    {%- if message['tool_calls'] -%}
      {%- set calls = message['tool_calls'] if message['tool_calls'] is string else message['tool_calls'] | tojson -%}
      {%- set content = content ~ '\\n' ~ calls if content else calls -%}
    {%- endif -%}"""


def stop_token(template: Template) -> Control:
    """Return the control token that ends an answer: `eos` or another one of the tokenizer."""
    return next(part for part in template.by_role["assistant"].after if isinstance(part, Control))


# ---- Jinja


def jinja(template: Template) -> str:
    """Return a fitted template (`prompts.fit`) as a Jinja chat template.

    Every block strips the white space around it, so that `trim_blocks` makes no difference. Its variables are those of
    transformers: `messages`, `bos_token`, `eos_token` and `add_generation_prompt`.
    """
    joins = bool(template.join)
    parts = [
        "{%- set ns = namespace(fresh=true, text=false) -%}",
        _expressions(template.start),
        _default_system(template),
        "{%- for message in messages -%}",
        _opening(template, "message['role'] != 'assistant'"),
        "  {%- set content = (message['content'] or '')" + (" | trim" if template.strips else "") + " -%}",
    ]
    for number, (turn, roles) in enumerate(_by_turn(template)):
        parts.append(f"  {{%- {'elif' if number else 'if'} {_is_one_of(roles)} -%}}")
        parts.append(_turn(turn, "assistant" in roles, joins))
    parts += [
        "  {%- else -%}{{- raise_exception('no such role in this template: ' ~ message['role']) -}}{%- endif -%}",
        "  {%- set ns.fresh = message['role'] == 'assistant' -%}",
        "{%- endfor -%}",
        "{%- if add_generation_prompt -%}",
        _opening(template, None),
        "  " + _expressions(template.by_role["assistant"].before),
        "{%- endif -%}",
    ]
    return "\n".join(part for part in parts if part.strip())


def _is_one_of(roles: Sequence[Role]) -> str:
    if len(roles) == 1:
        return f"message['role'] == {_quote(roles[0])}"
    return f"message['role'] in [{', '.join(map(_quote, roles))}]"


def _expressions(parts: Sequence[Part]) -> str:
    """Return Jinja expressions for these parts; BOS and EOS are variables from tokenizer_config.json."""
    names = {BOS: "bos_token", EOS: "eos_token"}
    variables = (names.get(part) if isinstance(part, Control) else None for part in parts)
    return "".join(f"{{{{- {name or _quote(part)} -}}}}" for name, part in zip(variables, parts, strict=True))


def _quote(text: str) -> str:
    quote = '"' if "'" in text else "'"
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n").replace(quote, "\\" + quote)
    return f"{quote}{escaped}{quote}"


def _ends_in_text(parts: Sequence[Part]) -> bool:
    return bool(parts) and not isinstance(parts[-1], Control)


def _default_system(template: Template) -> str:
    """Return the template's own system text, if it has one, for messages without a leading system message."""
    if not template.system:
        return ""
    turn = template.by_role["system"]
    line = _quote(template.system)
    if template.system_with_input:
        prompts = "(messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | first | default(''))"
        line = f"({_quote(template.system_with_input)} if {_quote(INPUT_MARK)} in {prompts} else {line})"
    return (
        "{%- if not messages or messages[0]['role'] != 'system' -%}\n  "
        + _expressions(template.opens)
        + _expressions(turn.before)
        + f"{{{{- {line} -}}}}"
        + _expressions(turn.after)
        + "{%- set ns.fresh = false -%}"
        + ("{%- set ns.text = true -%}" if _ends_in_text((*turn.before, "x", *turn.after)) else "")
        + "\n{%- endif -%}"
    )


def _opening(template: Template, join_test: str | None) -> str:
    """Return what opens an exchange, or separates a message from the text before it if the test `join_test` is true."""
    opens = _expressions(template.opens) + ("{%- set ns.text = true -%}" if _ends_in_text(template.opens) else "")
    if template.join and join_test:
        head = f"{{%- if ns.fresh -%}}{opens}{{%- elif" if template.opens else "{%- if not ns.fresh and"
        return f"  {head} ns.text and {join_test} -%}}{_expressions((template.join,))}{{%- endif -%}}"
    return f"  {{%- if ns.fresh -%}}{opens}{{%- endif -%}}" if template.opens else ""


def _turn(turn: Turn, answer: bool, joins: bool) -> str:
    content = "{{- content -}}"
    if turn.lead:  # an answer that a client sends back already begins with the lead
        content = (
            f"{{%- if not content.startswith({_quote(turn.lead)}) -%}}{_expressions((turn.lead,))}{{%- endif -%}}"
            + content
        )
    tail = _expressions((turn.tail,) if turn.tail else ())
    lines = [
        TOOL_CALLS.strip("\n") if answer else "",
        f"    {_expressions(turn.before)}{content}{tail}{_expressions(turn.after)}",
    ]
    return "\n".join(line for line in (*lines, _text_follows(turn) if joins else "") if line)


def _text_follows(turn: Turn) -> str:
    """Return the assignment that records whether the rendering now ends in text, to be separated from the next one."""
    if turn.after or turn.lead or turn.tail:
        return f"    {{%- set ns.text = {str(_ends_in_text(turn.after or ('x',))).lower()} -%}}"
    before = _ends_in_text(turn.before)
    return f"    {{%- set ns.text = {'true' if before else 'ns.text or content != ' + _quote('')} -%}}"


# ---- Ollama


def ollama(template: Template, bos: str, eos: str) -> str:
    """Return a fitted template as a Go template, for Ollama's Modelfile.

    Go templates can neither strip nor search a text. So contents are not stripped, an Alpaca prompt with an input gets
    the system text of one without, and tool calls are not rendered.
    """
    names = {str(BOS): bos, str(EOS): eos}

    def expressions(parts: Sequence[Part]) -> str:
        texts = (names.get(part, str(part)) if isinstance(part, Control) else part for part in parts)
        return "".join(f"{{{{- {json.dumps(text, ensure_ascii=False)} -}}}}" for text in texts)

    return _GoTemplate(template, expressions).text()


@dataclass(frozen=True)
class _GoTemplate:
    """Write one template. In it, `$fresh`: the next message opens an exchange; `$text`: the output ends in text."""

    template: Template
    expressions: Callable[[Sequence[Part]], str]

    def text(self) -> str:
        template = self.template
        answer = template.by_role["assistant"]
        lines = ["{{- $fresh := true -}}{{- $text := false -}}{{- $first := true -}}", self._start(), self._system()]
        lines += [
            "{{- range $i, $message := .Messages -}}",
            self._opening('ne .Role "assistant"'),
            *(self._turn(number, turn, roles) for number, (turn, roles) in enumerate(_by_turn(template))),
            "{{- end -}}",
            '{{- $fresh = eq .Role "assistant" -}}',
            "{{- end -}}",
            '{{- $last := "" -}}{{- range .Messages -}}{{- $last = .Role -}}{{- end -}}',
            f'{{{{- if ne $last "assistant" -}}}}{self._opening(None)}{self.expressions(answer.before)}{{{{- end -}}}}',
        ]
        return "\n".join(line for line in lines if line)

    def _start(self) -> str:
        return self.expressions([part for part in self.template.start if part != BOS])

    def _opens(self) -> str:
        """Return what opens an exchange; Ollama itself writes the first BOS."""
        opens = self.template.opens
        if not opens:
            return ""
        bos = f"{{{{- if not $first -}}}}{self.expressions(opens[:1])}{{{{- end -}}}}" if opens[0] == BOS else ""
        parts = opens[1:] if opens[0] == BOS else opens
        return f"{bos}{self.expressions(parts)}{{{{- $first = false -}}}}{{{{- $text = true -}}}}"

    def _opening(self, join_test: str | None) -> str:
        opens, join = self._opens(), self.template.join
        if join and join_test:
            joins = f"{{{{- else if and $text ({join_test}) -}}}}{self.expressions((join,))}"
            return f"{{{{- if $fresh -}}}}{opens}{joins}{{{{- end -}}}}"
        return f"{{{{- if $fresh -}}}}{opens}{{{{- end -}}}}" if opens else ""

    def _system(self) -> str:
        if not self.template.system:
            return ""
        turn = self.template.by_role["system"]
        line = self._opens() + self.expressions((*turn.before, self.template.system, *turn.after))
        text = str(_ends_in_text((*turn.before, "x", *turn.after))).lower()
        leads = '{{- $system := false -}}{{- range $i, $m := .Messages -}}{{- if and (eq $i 0) (eq .Role "system") -}}'
        leads += "{{- $system = true -}}{{- end -}}{{- end -}}"
        line += f"{{{{- $fresh = false -}}}}{{{{- $text = {text} -}}}}"
        return f"{leads}\n{{{{- if not $system -}}}}{line}{{{{- end -}}}}"

    def _turn(self, number: int, turn: Turn, roles: list[Role]) -> str:
        tests = " ".join(f'(eq .Role "{role}")' for role in roles)
        lead = self.expressions((turn.lead,)) if turn.lead else ""
        if lead:  # an answer that a client sends back already begins with it
            size = len(turn.lead)
            has_lead = f"and (ge (len .Content) {size}) (eq (slice .Content 0 {size}) {json.dumps(turn.lead)})"
            lead = f"{{{{- if not ({has_lead}) -}}}}{lead}{{{{- end -}}}}"
        after = self.expressions(((turn.tail,) if turn.tail else ()) + turn.after)
        if "assistant" in roles:  # the model continues an answer that comes last
            after = f"{{{{- if lt $i (len (slice $.Messages 1)) -}}}}{after}{{{{- end -}}}}"
        text = f"{{{{- $text = {_go_text(turn)} -}}}}" if self.template.join else ""
        word = "else if" if number else "if"
        test = f"or {tests}" if len(roles) > 1 else tests
        return f"{{{{- {word} {test} -}}}}{self.expressions(turn.before)}{lead}{{{{- .Content -}}}}{after}{text}"


def _go_text(turn: Turn) -> str:
    if turn.after or turn.lead or turn.tail:
        return str(_ends_in_text(turn.after or ("x",))).lower()
    return "true" if _ends_in_text(turn.before) else '(or $text (ne .Content ""))'


def _by_turn(template: Template) -> list[tuple[Turn, list[Role]]]:
    """Return the turns in order, with the roles that share each."""
    return [(turn, [role for role, _ in group]) for turn, group in groupby(template.turns, key=lambda item: item[1])]
