"""Conversations as HTML: answers as Markdown with highlighted code, prompts as typed, and what cleaning changed.

Messages are text only: HTML is escaped, images are not loaded, and links become their text and address.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from markdown_it import MarkdownIt

from curate.analysis import diff
from curate.analysis.conversations import ConversationView
from curate.analysis.diff import Change
from curate.display.figures import number, plural
from curate.display.html import collapsible, escape, message_block, preformat, truncate
from curate.display.text import safe
from curate.rendering.mask_view import MaskedText
from curate.schemas.conversation import Message

LONG = 2_500  # characters shown of a message
MESSAGES, CHANGES = 8, 4  # of a conversation
EVIDENCE = 300
NESTED = 18  # levels of lists and quotes; the parser would hide deeper ones
ENDS = 160  # characters shown at each end of an unchanged span of a diff
# Languages that are highlighted. Some of Pygments' other lexers backtrack for minutes on foreign text, and an unknown
# name makes Pygments search the plugins of every installed package.
_NAMED = """
bash c c# c++ cpp csharp css dart diff dockerfile go graphql haskell html ini java javascript js json jsx julia kotlin
lua makefile matlab objective-c perl php powershell py python python3 r rb ruby rs rust scala sh shell sql swift toml ts
tsx typescript vb.net xml yaml yml zsh
"""
LANGUAGES = frozenset(_NAMED.split())
TAGS = {"same": "span", "gone": "del", "new": "ins"}


def render_conversation(view: ConversationView, spans: MaskedText | None = None) -> str:
    """Return a conversation's first messages; `spans` are those of its rendering, each trained on or not."""
    shown = "".join(_message(message) for message in view.messages[:MESSAGES])
    rejected = "".join(_message(message, "rejected answer") for message in view.rejected_answer[:MESSAGES])
    unread = f'<pre class="plain">{escape(truncate(view.unread, LONG))}</pre>' if view.unread is not None else ""
    return _article(view, shown + unread + _more(len(view.messages) - MESSAGES) + rejected + _mask(view, spans or ()))


def _mask(view: ConversationView, spans: MaskedText) -> str:
    """Return the rendering in a collapsed block, with the supervised spans highlighted."""
    shown, room = "", MESSAGES * LONG
    for text, is_trained in spans:
        escaped = escape(truncate(text, max(room, 0)))
        shown += f"<mark>{escaped}</mark>" if is_trained else escaped
        room -= len(text)
        if room <= 0:
            break
    trained, tokens = (number(view.facts.get(name) or 0) for name in ("answer_tokens", "tokens"))
    summary = f"as training sees it: <mark>the loss counts</mark> {trained} of {tokens} tokens"
    return collapsible(summary, preformat(shown)) if shown else ""


def render_changes(view: ConversationView, changes: Sequence[Change]) -> str:
    """Return what cleaning changed in a conversation, message by message."""
    changed = [change for change in changes if change.changed]
    shown = "".join(_change(change) for change in changed[:CHANGES])
    same = len(changes) - len(changed)
    note = f'<p class="note">{same} {plural(same, "message")} unchanged</p>' if same else ""
    return _article(view, shown + note + _more(len(changed) - CHANGES))


def _article(view: ConversationView, body: str) -> str:
    facts = view.facts
    notes = [str(facts[key]) for key in ("split", "language", "model") if facts.get(key)]
    if facts.get("tokens") is not None:
        notes.append(f"{number(facts['tokens'])} tokens")
    notes += facts.get("edit_names") or []
    rejection = view.rejected
    reason = ""
    if rejection is not None:
        text = rejection.evidence or ""
        is_shown = text and not (view.unread or "").startswith(text)
        evidence = f'<p class="evidence">{escape(truncate(text, EVIDENCE))}</p>' if is_shown else ""
        twin = (
            f" (kept twin: <code>{escape(rejection.twin)}</code>)"
            if rejection.twin and rejection.twin not in rejection.reason
            else ""
        )
        reason = f'<p class="why"><b>{escape(rejection.rule)}</b>: {escape(rejection.reason)}{twin}</p>{evidence}'
    place = [view.place] if view.place != view.id else []
    note = escape(" · ".join([*place, *notes]))
    head = f'<p class="head"><b>{escape(view.id)}</b> <span class="note">{note}</span></p>'
    return f"<article>{head}{reason}{body}</article>"


def _more(count: int) -> str:
    return f'<p class="note">{count} more {plural(count, "message")}</p>' if count > 0 else ""


def _message(message: Message, note: str = "") -> str:
    content = truncate(message.content, LONG)
    body = render_markdown(content) if message.role == "assistant" else preformat(escape(content))
    reasoning = _labelled("reasoning", message.reasoning)
    calls = _labelled("calls", message.tool_calls)
    return message_block(message.role, reasoning + body + calls, note or message.name or "")


def _labelled(label: str, text: str | None) -> str:
    return f'<p class="note">{label}</p>{preformat(escape(truncate(text, LONG)))}' if text else ""


def _change(change: Change) -> str:
    before, after = (message.content if message else "" for message in (change.before, change.after))
    label = "removed" if change.after is None else "added" if change.before is None else "changed"
    shown, room = "", 2 * LONG
    for kind, part in diff.diff_words(before, after):
        part = _shorten_unchanged(part) if kind == "same" else _show_line_ends(part)
        shown += f"<{TAGS[kind]}>{escape(truncate(part, max(room, 0)))}</{TAGS[kind]}>"
        room -= len(part)
        if room <= 0:
            shown += "…"
            break
    return message_block(change.role, preformat(shown), label)


def _shorten_unchanged(part: str) -> str:
    return part if len(part) <= 2 * ENDS + 20 else f"{part[:ENDS]} … {part[-ENDS:]}"


def _show_line_ends(part: str) -> str:
    """Make changed line ends visible: carriage returns, and all line ends if nothing else changed."""
    return part.replace("\r\n", "␍\n") if part.strip() else part.replace("\r", "␍").replace("\n", "⏎\n")


# ---- markdown


def render_markdown(content: str) -> str:
    """Return an answer's Markdown as HTML, or its plain text if it is nested too deeply to parse."""
    parser = _parser()
    tokens = parser.parse(safe(content))
    if any(token.level >= NESTED for token in tokens):
        return preformat(escape(content))
    return f'<div class="md" dir="auto">{parser.renderer.render(tokens, parser.options, {})}</div>'


@cache
def _parser() -> MarkdownIt:
    settings = {"html": False, "breaks": True, "highlight": _highlight, "maxNesting": NESTED + 2}
    parser = MarkdownIt("commonmark", settings)
    parser.enable(["table", "strikethrough"]).disable("image")
    for name, rule in {
        "link_open": _link_open,
        "link_close": _link_close,
        "heading_open": lambda *_: '<p class="h">',
        "heading_close": lambda *_: "</p>",
    }.items():
        parser.add_render_rule(name, rule)
    return parser


def _link_open(self: Any, tokens: Sequence[Any], index: int, options: Any, env: Any) -> str:
    return "<u>"


def _link_close(self: Any, tokens: Sequence[Any], index: int, options: Any, env: Any) -> str:
    """Write the address after the link's text, unless they are the same."""
    start = max(i for i in range(index) if tokens[i].type == "link_open")
    text = "".join(token.content for token in tokens[start:index])
    address = str(tokens[start].attrs.get("href", ""))
    return "</u>" if text == address else f"</u> ({escape(address)})"


def _highlight(code: str, language: str, _: str) -> str:
    """Return code highlighted by Pygments, empty (plain) for a language that is not in LANGUAGES."""
    if language.lower() not in LANGUAGES:
        return ""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name

    return str(highlight(code, get_lexer_by_name(language), HtmlFormatter(nowrap=True)))
