"""A conversation as HTML: answers as markdown with code in colours, prompts as typed, and what cleaning changed.

What a conversation says is text only: HTML in it is escaped, images are not shown, and addresses stand
beside their words instead of leading anywhere.
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
from curate.display.html import collapsible, escape, message_block, preformatted, truncate
from curate.display.text import safe
from curate.rendering.mask_view import MaskedText
from curate.schemas.conversation import Message

LONG = 2_500  # characters of a message; past them it is cut, and says so
MESSAGES, CHANGES = 8, 4  # of a conversation
EVIDENCE = 300
NESTED = 18  # lists and quotes in one another; what lies deeper would be hidden
ENDS = 160  # characters at each end of an unchanged stretch of a diff
# Languages of answers that are coloured. Of Pygments' hundreds some have patterns that take for ever on what is not
# theirs, and a name that is none of them would be looked for among all packages that are installed.
_NAMED = """
bash c c# c++ cpp csharp css dart diff dockerfile go graphql haskell html ini java javascript js json jsx julia kotlin
lua makefile matlab objective-c perl php powershell py python python3 r rb ruby rs rust scala sh shell sql swift toml ts
tsx typescript vb.net xml yaml yml zsh
"""
LANGUAGES = frozenset(_NAMED.split())
TAGS = {"same": "span", "gone": "del", "new": "ins"}


def render_conversation(chat: ConversationView, spans: MaskedText | None = None) -> str:
    """Return a conversation, its first messages in full; `spans` tell what of its rendering is trained on."""
    shown = "".join(_message(message) for message in chat.messages[:MESSAGES])
    unread = f'<pre class="plain">{escape(truncate(chat.unread, LONG))}</pre>' if chat.unread is not None else ""
    return _article(chat, shown + unread + _left(len(chat.messages) - MESSAGES) + _mask(chat, spans or ()))


def _mask(chat: ConversationView, spans: MaskedText) -> str:
    """Return the rendering with what is trained on marked, folded away."""
    shown, room = "", MESSAGES * LONG
    for part, is_trained in spans:
        marked = escape(truncate(part, max(room, 0)))
        shown += f"<mark>{marked}</mark>" if is_trained else marked
        room -= len(part)
        if room <= 0:
            break
    trained, tokens = (number(chat.facts.get(name) or 0) for name in ("answer_tokens", "tokens"))
    told = f"as training sees it: <mark>the loss counts</mark> {trained} of {tokens} tokens"
    return collapsible(told, preformatted(shown)) if shown else ""


def render_changes(chat: ConversationView, changes: Sequence[Change]) -> str:
    """Return what cleaning changed in a conversation, message by message."""
    changed = [one for one in changes if one.changed]
    shown = "".join(_changed(one) for one in changed[:CHANGES])
    same = len(changes) - len(changed)
    note = f'<p class="note">{same} {plural(same, "message")} unchanged</p>' if same else ""
    return _article(chat, shown + note + _left(len(changed) - CHANGES))


def _article(chat: ConversationView, body: str) -> str:
    facts = chat.facts
    told = [str(facts[key]) for key in ("split", "language", "model") if facts.get(key)]
    if facts.get("tokens") is not None:
        told.append(f"{number(facts['tokens'])} tokens")
    told += facts.get("edit_names") or []
    lost = chat.rejected
    why = ""
    if lost is not None:
        shown = lost.evidence if lost.evidence and not (chat.unread or "").startswith(lost.evidence) else ""
        evidence = f'<p class="evidence">{escape(truncate(shown, EVIDENCE))}</p>' if shown else ""
        twin = f" (stayed: <code>{escape(lost.twin)}</code>)" if lost.twin and lost.twin not in lost.reason else ""
        why = f'<p class="why"><b>{escape(lost.rule)}</b>: {escape(lost.reason)}{twin}</p>{evidence}'
    place = [chat.place] if chat.place != chat.id else []
    beside = escape(" · ".join([*place, *told]))
    head = f'<p class="head"><b>{escape(chat.id)}</b> <span class="note">{beside}</span></p>'
    return f"<article>{head}{why}{body}</article>"


def _left(count: int) -> str:
    return f'<p class="note">{count} more {plural(count, "message")}</p>' if count > 0 else ""


def _message(message: Message) -> str:
    content = truncate(message.content, LONG)
    body = _prose(content) if message.role == "assistant" else preformatted(escape(content))
    calls = preformatted(f"calls {escape(truncate(message.tool_calls, LONG))}") if message.tool_calls else ""
    return message_block(message.role, body + calls, message.name or "")


def _changed(one: Change) -> str:
    before, after = (side.content if side else "" for side in (one.before, one.after))
    what = "taken out" if one.after is None else "added" if one.before is None else "changed"
    shown, room = "", 2 * LONG
    for kind, part in diff.words(before, after):
        part = _middle(part) if kind == "same" else _seen(part)
        shown += f"<{TAGS[kind]}>{escape(truncate(part, max(room, 0)))}</{TAGS[kind]}>"
        room -= len(part)
        if room <= 0:
            shown += "…"
            break
    return message_block(one.role, preformatted(shown), what)


def _middle(part: str) -> str:
    return part if len(part) <= 2 * ENDS + 20 else f"{part[:ENDS]} … {part[-ENDS:]}"


def _seen(part: str) -> str:
    """Show line ends that went or came: of Windows, and where nothing else did."""
    return part.replace("\r\n", "␍\n") if part.strip() else part.replace("\r", "␍").replace("\n", "⏎\n")


# ---- markdown


def _prose(content: str) -> str:
    """Return an answer's markdown as HTML; as typed where it is nested deeper than the parser follows."""
    parser = _markdown()
    tokens = parser.parse(safe(content))
    if any(token.level >= NESTED for token in tokens):
        return preformatted(escape(content))
    return f'<div class="md" dir="auto">{parser.renderer.render(tokens, parser.options, {})}</div>'


@cache
def _markdown() -> MarkdownIt:
    settings = {"html": False, "breaks": True, "highlight": _highlighted, "maxNesting": NESTED + 2}
    made = MarkdownIt("commonmark", settings)
    made.enable(["table", "strikethrough"]).disable("image")
    for name, rule in {
        "link_open": _link_open,
        "link_close": _link_close,
        "heading_open": lambda *_: '<p class="h">',
        "heading_close": lambda *_: "</p>",
    }.items():
        made.add_render_rule(name, rule)
    return made


def _link_open(self: Any, tokens: Sequence[Any], index: int, options: Any, env: Any) -> str:
    return "<u>"


def _link_close(self: Any, tokens: Sequence[Any], index: int, options: Any, env: Any) -> str:
    """Write the address after the words that led to it, unless they are the address."""
    opened = max(at for at in range(index) if tokens[at].type == "link_open")
    words = "".join(token.content for token in tokens[opened:index])
    address = str(tokens[opened].attrs.get("href", ""))
    return "</u>" if words == address else f"</u> ({escape(address)})"


def _highlighted(code: str, language: str, _: str) -> str:
    """Return code with its words in classes of Pygments'; of a language that is not told apart, plain (empty)."""
    if language.lower() not in LANGUAGES:
        return ""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name

    return str(highlight(code, get_lexer_by_name(language), HtmlFormatter(nowrap=True)))
