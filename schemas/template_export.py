"""Prompt templates in the languages of serving: Jinja for transformers and vLLM, Go's for Ollama.

Both are written from the same `prompts.Template` that training renders with, so that a served prompt is
the trained one by construction; tests hold the ids of both equal. Two things differ by intent. An answer
that comes back from a server with the blank that the template itself puts before it (Vicuna's `ASSISTANT: `)
gets no second one. Ollama puts BOS first by itself, so its template leaves the first one out.

Only the standard library is imported here; a template is text until someone renders it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from curate.schemas.conversation import Role
from curate.schemas.prompts import BOS, EOS, INPUT_MARK, Control, Part, Template, Turn

CALLS = """
    {%- if message['tool_calls'] -%}
      {%- set calls = message['tool_calls'] if message['tool_calls'] is string else message['tool_calls'] | tojson -%}
      {%- set content = content ~ '\\n' ~ calls if content else calls -%}
    {%- endif -%}"""


def stop_token(template: Template) -> Control:
    """Return the control token that ends an answer: `eos`, or one of the tokenizer's own."""
    return next(part for part in template.by_role["assistant"].after if isinstance(part, Control))


# ---- Jinja


def jinja(template: Template) -> str:
    """Return a fitted template (`prompts.fit`) as a Jinja chat template.

    Every block strips the white space around it, so that the text is the same whatever `trim_blocks` says.
    It reads `messages`, `bos_token`, `eos_token` and `add_generation_prompt`, as transformers gives them.
    """
    joins = bool(template.join)
    parts = [
        "{%- set ns = namespace(fresh=true, text=false) -%}",
        _say(template.start),
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
        "  " + _say(template.by_role["assistant"].before),
        "{%- endif -%}",
    ]
    return "\n".join(part for part in parts if part.strip())


def _is_one_of(roles: Sequence[Role]) -> str:
    if len(roles) == 1:
        return f"message['role'] == {_quoted(roles[0])}"
    return f"message['role'] in [{', '.join(map(_quoted, roles))}]"


def _say(parts: Sequence[Part]) -> str:
    """Return expressions that write these parts; BOS and EOS by the names that tokenizer_config.json gives."""
    names = {BOS: "bos_token", EOS: "eos_token"}
    words = (names.get(part) if isinstance(part, Control) else None for part in parts)
    return "".join(f"{{{{- {word or _quoted(part)} -}}}}" for word, part in zip(words, parts, strict=True))


def _quoted(text: str) -> str:
    mark = '"' if "'" in text else "'"
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n").replace(mark, "\\" + mark)
    return f"{mark}{escaped}{mark}"


def _ends_in_text(parts: Sequence[Part]) -> bool:
    return bool(parts) and not isinstance(parts[-1], Control)


def _default_system(template: Template) -> str:
    """Return what is said where no system message leads: the template's own system line, if it has one."""
    if not template.system:
        return ""
    turn = template.by_role["system"]
    line = _quoted(template.system)
    if template.system_with_input:
        prompts = "(messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | first | default(''))"
        line = f"({_quoted(template.system_with_input)} if {_quoted(INPUT_MARK)} in {prompts} else {line})"
    return (
        "{%- if not messages or messages[0]['role'] != 'system' -%}\n  "
        + _say(template.opens)
        + _say(turn.before)
        + f"{{{{- {line} -}}}}"
        + _say(turn.after)
        + "{%- set ns.fresh = false -%}"
        + ("{%- set ns.text = true -%}" if _ends_in_text((*turn.before, "x", *turn.after)) else "")
        + "\n{%- endif -%}"
    )


def _opening(template: Template, joined: str | None) -> str:
    """Return what opens an exchange, or parts a message from the text before it where `joined` holds."""
    opens = _say(template.opens) + ("{%- set ns.text = true -%}" if _ends_in_text(template.opens) else "")
    if template.join and joined:
        head = f"{{%- if ns.fresh -%}}{opens}{{%- elif" if template.opens else "{%- if not ns.fresh and"
        return f"  {head} ns.text and {joined} -%}}{_say((template.join,))}{{%- endif -%}}"
    return f"  {{%- if ns.fresh -%}}{opens}{{%- endif -%}}" if template.opens else ""


def _turn(turn: Turn, answer: bool, joins: bool) -> str:
    content = "{{- content -}}"
    if turn.lead:  # what a server hands back begins with the lead already
        content = (
            f"{{%- if not content.startswith({_quoted(turn.lead)}) -%}}{_say((turn.lead,))}{{%- endif -%}}" + content
        )
    tail = _say((turn.tail,) if turn.tail else ())
    lines = [CALLS.strip("\n") if answer else "", f"    {_say(turn.before)}{content}{tail}{_say(turn.after)}"]
    return "\n".join(line for line in (*lines, _text_follows(turn) if joins else "") if line)


def _text_follows(turn: Turn) -> str:
    """Return the note whether the rendering now ends in text, so that the next message is parted from it."""
    if turn.after or turn.lead or turn.tail:
        return f"    {{%- set ns.text = {str(_ends_in_text(turn.after or ('x',))).lower()} -%}}"
    before = _ends_in_text(turn.before)
    return f"    {{%- set ns.text = {'true' if before else 'ns.text or content != ' + _quoted('')} -%}}"


# ---- Ollama


def ollama(template: Template, bos: str, eos: str) -> str:
    """Return a fitted template in Go's template language, as Ollama's Modelfile takes it.

    Go's templates can neither strip nor search a text, so contents come as they are, an Alpaca prompt with an
    input gets the system line of one without, and tool calls are left to the caller's content.
    """
    names = {str(BOS): bos, str(EOS): eos}

    def say(parts: Sequence[Part]) -> str:
        words = (names.get(part, str(part)) if isinstance(part, Control) else part for part in parts)
        return "".join(f"{{{{- {json.dumps(word, ensure_ascii=False)} -}}}}" for word in words)

    return _Go(template, say).text()


@dataclass(frozen=True)
class _Go:
    """Writes one template; `$fresh`: the next message opens an exchange, `$text`: what stands so far ends in text."""

    template: Template
    say: Callable[[Sequence[Part]], str]

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
            f'{{{{- if ne $last "assistant" -}}}}{self._opening(None)}{self.say(answer.before)}{{{{- end -}}}}',
        ]
        return "\n".join(line for line in lines if line)

    def _start(self) -> str:
        return self.say([part for part in self.template.start if part != BOS])

    def _opens(self) -> str:
        """Return what opens an exchange; Ollama itself writes the BOS that would stand first of all."""
        opens = self.template.opens
        if not opens:
            return ""
        again = f"{{{{- if not $first -}}}}{self.say(opens[:1])}{{{{- end -}}}}" if opens[0] == BOS else ""
        rest = opens[1:] if opens[0] == BOS else opens
        return f"{again}{self.say(rest)}{{{{- $first = false -}}}}{{{{- $text = true -}}}}"

    def _opening(self, joined: str | None) -> str:
        opens, join = self._opens(), self.template.join
        if join and joined:
            joins = f"{{{{- else if and $text ({joined}) -}}}}{self.say((join,))}"
            return f"{{{{- if $fresh -}}}}{opens}{joins}{{{{- end -}}}}"
        return f"{{{{- if $fresh -}}}}{opens}{{{{- end -}}}}" if opens else ""

    def _system(self) -> str:
        if not self.template.system:
            return ""
        turn = self.template.by_role["system"]
        said = self._opens() + self.say((*turn.before, self.template.system, *turn.after))
        text = str(_ends_in_text((*turn.before, "x", *turn.after))).lower()
        leads = '{{- $system := false -}}{{- range $i, $m := .Messages -}}{{- if and (eq $i 0) (eq .Role "system") -}}'
        leads += "{{- $system = true -}}{{- end -}}{{- end -}}"
        said += f"{{{{- $fresh = false -}}}}{{{{- $text = {text} -}}}}"
        return f"{leads}\n{{{{- if not $system -}}}}{said}{{{{- end -}}}}"

    def _turn(self, number: int, turn: Turn, roles: list[Role]) -> str:
        tests = " ".join(f'(eq .Role "{role}")' for role in roles)
        lead = self.say((turn.lead,)) if turn.lead else ""
        if lead:  # an answer that comes back as it was generated begins with it
            size = len(turn.lead)
            has = f"and (ge (len .Content) {size}) (eq (slice .Content 0 {size}) {json.dumps(turn.lead)})"
            lead = f"{{{{- if not ({has}) -}}}}{lead}{{{{- end -}}}}"
        after = self.say(((turn.tail,) if turn.tail else ()) + turn.after)
        if "assistant" in roles:  # an answer that stands last is one to go on with
            after = f"{{{{- if lt $i (len (slice $.Messages 1)) -}}}}{after}{{{{- end -}}}}"
        text = f"{{{{- $text = {_go_text(turn)} -}}}}" if self.template.join else ""
        word = "else if" if number else "if"
        test = f"or {tests}" if len(roles) > 1 else tests
        return f"{{{{- {word} {test} -}}}}{self.say(turn.before)}{lead}{{{{- .Content -}}}}{after}{text}"


def _go_text(turn: Turn) -> str:
    if turn.after or turn.lead or turn.tail:
        return str(_ends_in_text(turn.after or ("x",))).lower()
    return "true" if _ends_in_text(turn.before) else '(or $text (ne .Content ""))'


def _by_turn(template: Template) -> list[tuple[Turn, list[Role]]]:
    """Return the turns in order, with the roles that share each."""
    return [(turn, [role for role, _ in group]) for turn, group in groupby(template.turns, key=lambda item: item[1])]
