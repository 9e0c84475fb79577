"""Compares an answer's HTML with the rendering of its markdown: same elements, same text.

White space is folded outside `pre`, and attributes are ignored but for `href`, `src`, `start` and a code block's language.
Wrappers (`div`, `thead`, `tbody`) and what ChatGPT puts around code are no elements of an answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape

from lxml import html as lxml_html
from markdown_it import MarkdownIt

MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])

_KEPT = ("href", "src", "start")
_WRAPPERS = ("div", "thead", "tbody")
_SAME = {"b": "strong", "i": "em", "del": "s"}
_BLOCKS = frozenset("p ul ol li pre blockquote table tr td th h1 h2 h3 h4 h5 h6 hr br".split())
_CODE_BLOCK = re.compile(r"<pre\b.*?<code\b([^>]*)>(.*?)</code>.*?</pre>", re.S)
_LANGUAGE = re.compile(r"language-([^\s\"]+)")
_LABEL = re.compile(r"<span[^>]*>([^<]*)</span>")

Part = tuple[str, ...]


def rendered(markdown: str) -> list[Part]:
    """Return the elements and texts of rendered markdown, in order."""
    return parts(MARKDOWN.render(markdown))


def parts(html: str) -> list[Part]:
    """Return the elements and texts of an answer, in order."""
    root = lxml_html.fragment_fromstring(f"<div>{_CODE_BLOCK.sub(_plain_block, html)}</div>")
    return list(_folded(list(_walk(root, False))))


def code_blocks(html: str) -> list[tuple[str, str]]:
    """Return language and body of each code block of an answer, read from the HTML by another way than ours."""
    blocks = []
    for found in _CODE_BLOCK.finditer(html):
        element = lxml_html.fragment_fromstring(f"<pre><code>{found[2]}</code></pre>")
        blocks.append((_language(found), str(element.text_content())))
    return blocks


def _language(block: re.Match[str]) -> str:
    named = _LANGUAGE.search(block[1])
    label = _LABEL.search(block[0])
    return named[1] if named else label[1].lower() if label else ""


def _plain_block(block: re.Match[str]) -> str:
    language = _language(block)
    named = f' class="language-{escape(language)}"' if language else ""
    return f"<pre><code{named}>{re.sub(r'</?span[^>]*>', '', block[2])}</code></pre>"


def _walk(element: lxml_html.HtmlElement, in_pre: bool) -> Iterator[Part]:
    if isinstance(element.tag, str):
        name = _SAME.get(element.tag, element.tag)
        within = in_pre or name == "pre"
        if name not in _WRAPPERS:
            yield ("<", name, *_attributes(element))
        if element.text:
            yield ("#", element.text, "pre" if within else "")
        for child in element:
            yield from _walk(child, within)
        if name not in _WRAPPERS:
            yield (">", name)
    if element.tail:
        yield ("#", element.tail, "pre" if in_pre else "")


def _attributes(element: lxml_html.HtmlElement) -> Iterator[str]:
    for key in _KEPT:
        value = element.get(key)
        if value is not None and (key, value) != ("start", "1"):
            yield f"{key}={value}"
    if element.tag == "code":
        yield from _LANGUAGE.findall(element.get("class") or "")[:1]


def _folded(found: list[Part]) -> Iterator[Part]:
    """Join neighbouring texts and fold white space; beside a block's edge there is none."""
    texts: list[Part] = []
    for part in found:
        if part[0] == "#" and texts and texts[-1][0] == "#":
            texts[-1] = ("#", texts[-1][1] + part[1], part[2])
        else:
            texts.append(part)
    for place, part in enumerate(texts):
        if part[0] != "#":
            yield part
        elif part[2]:
            yield ("#", part[1].removesuffix("\n"))
        else:
            text = re.sub(r"\s+", " ", part[1])
            if place == 0 or texts[place - 1][1] in _BLOCKS:
                text = text.lstrip()
            if place == len(texts) - 1 or texts[place + 1][1] in _BLOCKS:
                text = text.rstrip()
            if text:
                yield ("#", text)
