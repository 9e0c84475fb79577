"""Handlers that write the markdown of each HTML element, including ChatGPT's own."""

from __future__ import annotations

import re
from itertools import islice

from curate.markdown import media
from curate.markdown.media import is_formula
from curate.markdown.placeholders import BREAK, EMPHASIS, STRIKE, STRONG
from curate.markdown.tags import Handler, Tag, Tags, decode_entities
from curate.markdown.walker import Frame, Walker

_COUNTER = re.compile(r"\s*\d+ / \d+\s*")
_ALIGN = re.compile(r"text-align:\s*(left|center|right)", re.I)
_START = re.compile(r"\d{1,9}")


# Text


def transparent(walker: Walker, tag: Tag) -> None:
    """Drop the tag and keep the content."""


def block(walker: Walker, tag: Tag) -> None:
    """Start or end a block-level element."""
    walker.flush()
    walker.paragraph = False


def paragraph(walker: Walker, tag: Tag) -> None:
    """Start a `p`. Markup since 2025 puts one in each list item, with line breaks around it or attributes on it."""
    if walker.inline:
        walker.flush()
    walker.paragraph = True
    if walker.frame.kind == "item":
        walker.modern = bool(tag.attributes) or "\n" in walker.tokens[walker.tag_index - 1]


def end_paragraph(walker: Walker, tag: Tag) -> None:
    if walker.inline:
        walker.flush()
    walker.paragraph = False


def heading(walker: Walker, tag: Tag) -> None:
    walker.flush()
    walker.heading = int(tag.name[1])


def end_heading(walker: Walker, tag: Tag) -> None:
    walker.flush()
    walker.heading = 0


def strong(walker: Walker, tag: Tag) -> None:
    walker.open_inline(STRONG)


def end_strong(walker: Walker, tag: Tag) -> None:
    walker.close_inline(STRONG)


def emphasis(walker: Walker, tag: Tag) -> None:
    walker.open_inline(EMPHASIS)


def end_emphasis(walker: Walker, tag: Tag) -> None:
    walker.close_inline(EMPHASIS)


def strike(walker: Walker, tag: Tag) -> None:
    walker.open_inline(STRIKE)


def end_strike(walker: Walker, tag: Tag) -> None:
    walker.close_inline(STRIKE)


def line_break(walker: Walker, tag: Tag) -> None:
    if walker.inline:
        walker.inline.append(BREAK)


def end_line_break(walker: Walker, tag: Tag) -> None:
    """`</br>` is a line break, as in browsers, except right after `<br>`, which it closes."""
    tokens, index = walker.tokens, walker.tag_index
    if index < 2 or tokens[index - 1] or walker.tags[tokens[index - 2]].name != "br":
        line_break(walker, tag)


def rule(walker: Walker, tag: Tag) -> None:
    # In an item, `---` would make a heading of the line above, or look like the item's own marker.
    walker.write_block("rule", "***" if walker.frame.kind == "item" else "---")


def code_span(walker: Walker, tag: Tag) -> None:
    """Write inline code: the text up to the closing tag, including raw tags."""
    end = walker.end_of("code")
    if end < 0:
        return
    parts = [walker.tokens[walker.tag_index + 1]]
    for index in range(walker.tag_index + 2, end, 2):
        name = walker.tags[walker.tokens[index]].name
        if name == "pre":
            parts.append("".join(extracted.body for extracted in islice(walker.blocks, 1)))
        elif name.lstrip("/") == "br":
            parts.append("\n")
        elif name.lstrip("/") not in ("span", "code"):
            parts.append(walker.tokens[index])
        parts.append(walker.tokens[index + 1])
    code = "".join(parts)
    walker.write_span(decode_entities(code) if "&" in code else code)
    walker.tag_index = end


def code_block(walker: Walker, tag: Tag) -> None:
    """Insert an extracted code block."""
    code = next(walker.blocks, None)
    if code:
        walker.write_code(code)


# Lists and quotes


def bullets(walker: Walker, tag: Tag) -> None:
    _list(walker, False, 1)


def numbers(walker: Walker, tag: Tag) -> None:
    start = tag.attributes.get("start", "")
    _list(walker, True, int(start) if _START.fullmatch(start) else 1)


def _list(walker: Walker, ordered: bool, number: int) -> None:
    walker.flush()
    walker.paragraph = False
    outer = walker.frame
    if outer.kind == "list":
        outer = _item(walker)
    runs_on = ordered and number != 1 and outer.last in ("text", "p", "quote", "list")
    if outer.kind == "item" and outer.parent and runs_on:
        outer.parent.loose = True  # only a list that starts at 1 can follow text without a blank line
    # Two lists in a row need different markers, or markdown joins them.
    follows = outer.last == "list" and outer.ordered == ordered
    markers = ".)" if ordered else "-+"
    marker = markers[1] if follows and outer.bullet == markers[0] else markers[0]
    walker.begin("list")
    outer.ordered, outer.bullet = ordered, marker
    frame = walker.push("list", outer.prefix)
    frame.ordered, frame.bullet, frame.number, frame.gaps = ordered, marker, number, []


def end_list(walker: Walker, tag: Tag) -> None:
    walker.close("list")
    walker.paragraph = False


def item(walker: Walker, tag: Tag) -> None:
    if walker.inline:
        walker.flush()
    walker.paragraph = False
    if walker.frame.kind == "item":
        walker.close("item")
    elif walker.frame.kind != "list":
        _list(walker, False, 1)
    _item(walker)


def _item(walker: Walker) -> Frame:
    frame = walker.frame
    marker = f"{frame.number}{frame.bullet} " if frame.ordered else f"{frame.bullet} "
    if frame.last:
        frame.gaps.append(len(walker.out))
        walker.out.append(f"\n{frame.prefix}")
    frame.last = "item"
    frame.number += 1
    walker.out.append(marker)
    return walker.push("item", frame.prefix + " " * len(marker))


def end_item(walker: Walker, tag: Tag) -> None:
    walker.close("item")
    walker.paragraph = False


def checkbox(walker: Walker, tag: Tag) -> None:
    """Write a task list's checkbox; the page or an extension added all other inputs."""
    if tag.attributes.get("type") == "checkbox" and walker.counts["item"] and not walker.inline:
        walker.write_opaque("[x]" if "checked" in tag.attributes else "[ ]", walker.inline)
        walker.modern = True
        if not walker.tokens[walker.tag_index + 1][:1].isspace():
            walker.inline.append(" ")


def quote(walker: Walker, tag: Tag) -> None:
    walker.flush()
    walker.paragraph = False
    outer = walker.begin("quote")
    walker.out.append("> ")
    walker.push("quote", f"{outer.prefix}> ")


def end_quote(walker: Walker, tag: Tag) -> None:
    walker.close("quote")
    walker.paragraph = False


# Tables


def table(walker: Walker, tag: Tag) -> None:
    walker.flush()
    if walker.counts["cell"] < 3:  # rows of deeper tables become rows of the table around them
        walker.push("table", walker.frame.prefix).rows = []


def end_table(walker: Walker, tag: Tag) -> None:
    walker.close("table")


def row(walker: Walker, tag: Tag) -> None:
    walker.flush()
    while walker.frame.kind in ("cell", "row"):
        walker.pop()
    if walker.frame.kind == "table":
        rows = walker.frame.rows
        rows.append([])
        walker.push("row", "").rows = rows


def end_row(walker: Walker, tag: Tag) -> None:
    if walker.counts["row"]:
        walker.close("row")


def cell(walker: Walker, tag: Tag) -> None:
    if walker.inline:
        walker.flush()
    walker.paragraph = False
    if walker.frame.kind == "cell":
        walker.pop()
    if walker.frame.kind == "row":
        frame = walker.push("cell", "")
        frame.start = len(walker.out)
        alignment = _ALIGN.search(tag.attributes.get("style", ""))
        frame.alignment = alignment[1].lower() if alignment else tag.attributes.get("align", "").lower()


def end_cell(walker: Walker, tag: Tag) -> None:
    walker.close("cell")
    walker.paragraph = False


# Elements without content


def drop(walker: Walker, tag: Tag) -> None:
    """Drop the element with its content, or only its tag if it is not closed."""
    end = walker.end_of(tag.name)
    if end >= 0:
        walker.skip_to(end)


def button(walker: Walker, tag: Tag) -> None:
    """Drop buttons in any language, except those around images of the answer."""
    end = walker.end_of("button")
    if end >= 0 and not any(inner.name == "img" for inner, _ in walker.inside(end)):
        walker.skip_to(end)


def counter(walker: Walker, tag: Tag) -> None:
    """Drop the counter of regenerated answers, such as "1 / 2"."""
    end = walker.end_of(tag.name)
    if end >= 0 and _COUNTER.fullmatch("".join(text for _, text in walker.inside(end))):
        walker.skip_to(end)


def formula(walker: Walker, tag: Tag) -> None:
    if not media.formula(walker, tag):
        _plain(tag)(walker, tag)


def hidden(walker: Walker, tag: Tag) -> None:
    """Drop elements hidden from screen readers, unless they are the only copy of a formula."""
    end = walker.end_of(tag.name)
    if end < 0 or any(is_formula(inner) or "katex-html" in inner.classes for inner, _ in walker.inside(end)):
        _plain(tag)(walker, tag)
    else:
        walker.skip_to(end)


def _is_text_button(tag: Tag) -> bool:
    return "entity-underline" in tag.classes or "behavior-btn" in tag.classes


def _plain(tag: Tag) -> Handler:
    return _HANDLERS.get(tag.name, transparent)


def handler(tag: Tag) -> Handler:
    """Return a tag's handler: first by the classes and attributes of ChatGPT's own elements, then by name."""
    if tag.name[0] != "/" and is_formula(tag):
        return formula
    if tag.attributes and tag.name[0] != "/":
        if tag.attributes.get("data-testid") == "webpage-citation-pill":
            return media.citation
        if "sr-only" in tag.classes or "data-edge" in tag.attributes:
            return drop
        if {"flex-grow", "flex-shrink-0"} <= tag.classes:
            return counter
        if tag.name == "button":
            return transparent if _is_text_button(tag) else button
        if tag.attributes.get("aria-hidden") == "true":
            return hidden
    return _plain(tag)


_BLOCKS = (
    "div section article header footer main figure figcaption aside nav body html dl dt dd details summary address "
    "form fieldset center"
)
_HANDLERS: dict[str, Handler] = {
    **{prefix + name: block for name in _BLOCKS.split() for prefix in ("", "/")},
    **dict.fromkeys(("svg", "style", "script", "head", "template", "noscript"), drop),
    **{f"h{level}": heading for level in range(1, 7)},
    **{f"/h{level}": end_heading for level in range(1, 7)},
    **dict.fromkeys(("strong", "b"), strong),
    **dict.fromkeys(("/strong", "/b"), end_strong),
    **dict.fromkeys(("em", "i"), emphasis),
    **dict.fromkeys(("/em", "/i"), end_emphasis),
    **dict.fromkeys(("del", "s", "strike"), strike),
    **dict.fromkeys(("/del", "/s", "/strike"), end_strike),
    **dict.fromkeys(("td", "th"), cell),
    **dict.fromkeys(("/td", "/th"), end_cell),
    **dict.fromkeys(("ul", "menu"), bullets),
    **dict.fromkeys(("/ul", "/menu", "/ol"), end_list),
    "a": media.link,
    "/a": media.end_link,
    "blockquote": quote,
    "/blockquote": end_quote,
    "br": line_break,
    "/br": end_line_break,
    "button": button,
    "code": code_span,
    "hr": rule,
    "img": media.image,
    "input": checkbox,
    "li": item,
    "/li": end_item,
    "ol": numbers,
    "p": paragraph,
    "/p": end_paragraph,
    "pre": code_block,
    "sub": media.script,
    "sup": media.script,
    "table": table,
    "/table": end_table,
    "tr": row,
    "/tr": end_row,
}

TAGS = Tags(handler)
