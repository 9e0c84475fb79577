"""Conversations in a terminal: rendered, as stored, with their loss mask, or before and after cleaning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markdown import Markdown, TableElement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from curate.analysis import diff
from curate.analysis.conversations import ConversationView
from curate.analysis.diff import Change
from curate.analysis.explanation import Rejection
from curate.display import terminal
from curate.display.figures import number, plural
from curate.display.terminal import safe_line
from curate.display.text import safe
from curate.rendering.mask_view import MaskView
from curate.report.terminal.explain import add_details
from curate.schemas.conversation import Message

STYLES = {"system": "magenta", "user": "cyan", "assistant": "green", "tool": "yellow"}
TRAINED = "black on green"
BRACKETS = {"gone": ("[-", "-]"), "new": ("{+", "+}"), "trained": ("[[", "]]")}  # without colours
DIFF_STYLES = {"gone": "red strike", "new": "green"}
MAX_UNREADABLE = 4_000  # characters shown of a record that is not a conversation
HEADER_COLUMNS = ("split", "language", "model")


class WithBar:
    """A renderable with a coloured bar on its left."""

    def __init__(self, content: RenderableType, style: str) -> None:
        self.content = content
        self.style = style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        bar = Segment("| " if options.ascii_only else "▌ ", console.get_style(self.style))
        rows = console.render_lines(self.content, options.update(width=max(options.max_width - 2, 1)), pad=False)
        filled = [index for index, row in enumerate(rows) if any(segment.text.strip() for segment in row)]
        for row in rows[filled[0] : filled[-1] + 1] if filled else []:  # tables are padded with empty lines
            yield bar
            yield from row
            yield Segment.line()


class HighlightedText:
    """Text with highlighted parts: in colour, or in brackets if the output has no colours."""

    def __init__(self, parts: Iterable[tuple[str, str | None]]) -> None:
        self.parts = [(safe(text), kind) for text, kind in parts if text]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        plain = console.no_color or console.color_system is None
        shown = Text()
        for text, kind in self.parts:
            if kind is None:
                shown.append(text)
            elif plain:
                shown.append(f"{BRACKETS[kind][0]}{text}{BRACKETS[kind][1]}")
            else:
                shown.append(text, DIFF_STYLES.get(kind, TRAINED))
        yield shown


class FoldedTable(TableElement):
    """A Markdown table whose cells wrap instead of being cut."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for table in super().__rich_console__(console, options):
            for column in table.columns if isinstance(table, Table) else ():
                column.overflow = "fold"
            yield table


class SafeMarkdown(Markdown):
    """Markdown that hides nothing: HTML, images and links are shown as text, and line breaks are kept."""

    elements: ClassVar = {**Markdown.elements, "table_open": FoldedTable}

    def __init__(self, markup: str) -> None:
        super().__init__("", code_theme="ansi_dark", hyperlinks=False)
        parser = MarkdownIt("commonmark", {"html": False}).enable("strikethrough").enable("table")
        self.markup = markup
        self.parsed = _show_hidden(parser.parse(markup))


def _show_hidden(tokens: Iterable[Token]) -> list[Token]:
    """Replace images by their Markdown source and soft line breaks by hard ones."""
    shown = []
    for token in tokens:
        if token.type == "softbreak":
            token = Token("hardbreak", "br", 0)
        elif token.type == "image":
            token = Token("text", "", 0, content=f"![{token.content}]({token.attrs.get('src', '')})")
        elif token.children:
            token.children = _show_hidden(token.children)
        shown.append(token)
    return shown


def render_conversation(
    view: ConversationView, sizes: Sequence[int] | None = None, *, raw: bool = False
) -> RenderableType:
    """Render a conversation; `sizes` are the token counts of its messages; `raw` shows the text as stored."""
    parts: list[RenderableType] = [_head(view), Text()]
    for index, message in enumerate(view.messages):
        parts += [_message(message, sizes[index] if sizes else None, raw), Text()]
    if view.unread is not None:
        text = view.unread if raw else _cut(view.unread)
        parts += [Text("original record", "dim"), WithBar(terminal.safe_text(text), "dim"), Text()]
    for message in view.rejected_answer:
        parts += [_message(message, None, raw, "rejected answer"), Text()]
    return Group(*parts[:-1])


def render_mask(view: ConversationView, masks: Sequence[MaskView]) -> RenderableType:
    """Render a conversation as training sees it, with the supervised text and stop tokens highlighted; row by row."""
    parts: list[RenderableType] = [_head(view)]
    for mask in masks:
        totals = f": {number(mask.supervised)} of {number(mask.tokens)} tokens"
        name = f"row {mask.name}, " if mask.name else ""
        parts.append(HighlightedText([(name, None), ("trained on", "trained"), (totals, None)]))
        if mask.left_out:
            parts.append(Text(f"left out of training: {safe_line(mask.left_out)}", "dim"))
        text = HighlightedText((text, "trained" if trained else None) for text, trained in mask.text)
        parts += [Text(), text, Text()]
    return Group(*parts[:-1])


def render_diff(
    view: ConversationView, changes: Sequence[Change], rejections: Sequence[Rejection] = ()
) -> RenderableType:
    """Render what cleaning changed in a record, message by message; `rejections` are those of its exchanges."""
    parts: list[RenderableType] = [
        _head(view),
        *(_rejection(rejection) for rejection in rejections if rejection != view.rejected),
        Text(),
    ]
    unchanged = 0
    for change in changes:
        if not change.changed:
            unchanged += 1
            continue
        parts += [_change(change), Text()]
    if unchanged:
        note = f"{unchanged} {plural(unchanged, 'message')} unchanged"
        if unchanged == len(changes) and view.facts.get("edit_names"):
            note += f"; curate explain {safe_line(view.place)} shows the repairs made while parsing"
        parts += [Text(note, "dim"), Text()]
    return Group(*parts[:-1])


def _change(change: Change) -> RenderableType:
    before = change.before.content if change.before else ""
    after = change.after.content if change.after else ""
    label = "removed" if change.after is None else "added" if change.before is None else "changed"
    title = Text.assemble((change.role, f"bold {STYLES[change.role]}"), (f" · {label}", "dim"))
    parts = [(text, None if kind == "same" else kind) for kind, text in diff.diff_words(before, after)]
    return Group(title, WithBar(HighlightedText(parts), STYLES[change.role]))


def _head(view: ConversationView) -> RenderableType:
    facts = view.facts
    notes = [str(facts[key]) for key in HEADER_COLUMNS if facts.get(key)]
    if facts.get("tokens") is not None:
        notes.append(f"{number(facts['tokens'])} tokens ({number(facts['answer_tokens'])} trained on)")
    count = len(view.messages)
    notes.append(f"{count} {plural(count, 'message')}")
    title = Text.assemble((safe_line(view.id), "bold"), "  ", (safe_line(" · ".join(notes)), "dim"))
    rows: list[RenderableType] = [title]
    place = view.place if view.place != view.id else ""
    repairs = ", ".join(facts.get("edit_names") or [])
    subtitle = " · ".join(part for part in (place, f"repaired: {repairs}" if repairs else "") if part)
    if subtitle:
        rows.append(Text(safe_line(subtitle), "dim"))
    if view.rejected is not None:
        rows.append(_rejection(view.rejected))
    return Group(*rows)


def _rejection(rejection: Rejection) -> Text:
    label = "exchange rejected" if rejection.scope == "exchange" else "rejected"
    text = Text.assemble((label, "bold red"), f" by {safe_line(rejection.rule)}: {safe_line(rejection.reason)}")
    return add_details(text, rejection)


def _cut(text: str) -> str:
    more = (
        f"\n… {number(len(text) - MAX_UNREADABLE)} more characters; --raw shows all"
        if len(text) > MAX_UNREADABLE
        else ""
    )
    return text[:MAX_UNREADABLE] + more


def _message(message: Message, size: int | None, raw: bool, note: str = "") -> RenderableType:
    style = STYLES[message.role]
    notes = [note] if note else []
    notes += [] if size is None else [f"{number(size)} {plural(size, 'token')}"]
    notes += [] if message.train or message.role != "assistant" else ["not trained on"]
    notes += [] if message.stop or message.role != "assistant" else ["cut off: its end is not trained on"]
    name = f" {safe_line(message.name)}" if message.name else ""
    title = Text.assemble((message.role + name, f"bold {style}"), (f" · {' · '.join(notes)}" if notes else "", "dim"))
    text = safe(message.content)
    body: list[RenderableType] = [SafeMarkdown(text) if message.role == "assistant" and not raw else Text(text)]
    if message.reasoning:
        body.insert(0, Text(f"reasoning: {safe(message.reasoning)}", "dim"))
    if message.tool_calls:
        body.append(Text(f"calls: {safe(message.tool_calls)}", "yellow"))
    return Group(title, WithBar(Group(*body), style))
