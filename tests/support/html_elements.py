"""Compares an answer's HTML with the rendering of its markdown: same elements, same text.

White space is folded outside `pre`. Only the attributes `href`, `src`, `start` and a code block's language count.
Wrappers (`div`) and ChatGPT's elements around code are not part of an answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from html.parser import HTMLParser

from markdown_it import MarkdownIt

MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])

_KEPT = ("href", "src", "start")
_WRAPPERS = ("div",)
_SAME = {"b": "strong", "i": "em", "del": "s"}
_VOID = ("br", "hr", "img")
_BLOCKS = {"p", "ul", "ol", "li", "pre", "blockquote", "table", "thead", "tbody", "tr", "td", "th"}
_BLOCKS |= {"hr", "br"}
_BLOCKS |= {f"h{level}" for level in range(1, 7)}
_CODE_BLOCK = re.compile(r"<pre\b.*?<code\b([^>]*)>(.*?)</code>.*?</pre>", re.S)
_LANGUAGE = re.compile(r"language-([^\s\"]+)")
_LABEL = re.compile(r"<span[^>]*>([^<]*)</span>")

Part = tuple[str, ...]


def rendered(markdown: str) -> list[Part]:
    """Return the elements and texts of rendered markdown, in order."""
    return parts(MARKDOWN.render(markdown))


def parts(html: str) -> list[Part]:
    """Return the elements and texts of an answer, in order."""
    reader = _Reader()
    reader.feed(_CODE_BLOCK.sub(_plain_block, html))
    reader.close()
    return list(_fold(reader.parts))


def code_blocks(html: str) -> list[tuple[str, str]]:
    """Return language and body of each code block of an answer, read independently of curate."""
    blocks = []
    for match in _CODE_BLOCK.finditer(html):
        reader = _Reader()
        reader.feed(f"<code>{match[2]}</code>")
        blocks.append((_language(match), "".join(part[1] for part in reader.parts if part[0] == "#")))
    return blocks


def _language(block: re.Match[str]) -> str:
    named = _LANGUAGE.search(block[1])
    label = _LABEL.search(block[0])
    return named[1] if named else label[1].lower() if label else ""


def _plain_block(block: re.Match[str]) -> str:
    language = _language(block)
    named = f' class="language-{escape(language)}"' if language else ""
    return f"<pre><code{named}>{re.sub(r'</?span[^>]*>', '', block[2])}</code></pre>"


class _Reader(HTMLParser):
    """Collects elements and texts in order."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[Part] = []
        self._pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        name = _SAME.get(tag, tag)
        self._pre += name == "pre"
        if name not in _WRAPPERS:
            self.parts.append(("<", name, *_attributes(name, dict(attrs))))
        if name in _VOID:
            self.parts.append((">", name))

    def handle_endtag(self, tag: str) -> None:
        name = _SAME.get(tag, tag)
        self._pre -= name == "pre"
        if name not in (*_WRAPPERS, *_VOID):
            self.parts.append((">", name))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_data(self, data: str) -> None:
        self.parts.append(("#", data, "pre" if self._pre else ""))


def _attributes(tag: str, attributes: dict[str, str | None]) -> Iterator[str]:
    for key in _KEPT:
        value = attributes.get(key)
        if value is not None and (key, value) != ("start", "1"):
            yield f"{key}={value}"
    if tag == "code":
        yield from _LANGUAGE.findall(attributes.get("class") or "")[:1]


def _fold(parts: list[Part]) -> Iterator[Part]:
    """Join neighbouring texts and fold white space; remove it at the edges of blocks."""
    texts: list[Part] = []
    for part in parts:
        if part[0] == "#" and texts and texts[-1][0] == "#":
            texts[-1] = ("#", texts[-1][1] + part[1], part[2])
        else:
            texts.append(part)
    for index, part in enumerate(texts):
        if part[0] != "#":
            yield part
        elif part[2]:
            yield ("#", part[1].removesuffix("\n"))
        else:
            text = re.sub(r"\s+", " ", part[1])
            if index == 0 or texts[index - 1][1] in _BLOCKS:
                text = text.lstrip()
            if index == len(texts) - 1 or texts[index + 1][1] in _BLOCKS:
                text = text.rstrip()
            if text:
                yield ("#", text)
