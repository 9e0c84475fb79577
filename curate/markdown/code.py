"""Lifts code blocks out of an answer's HTML: their exact text, their language, and where they stood.

From 2023 to 2026 the outermost element of a code block is a `pre`. Inside it the language label, the
buttons and the scrolling boxes changed nine times; the code itself stands in a `code`, in CodeMirror's
`.cm-content`, or in a `pre` inside the `pre`.
"""

from __future__ import annotations

import re
from html import unescape
from typing import NamedTuple

PLACE = "<pre/>"  # what stands in the HTML where a block was lifted out

ATTRIBUTES = r"""[^<>"']*(?:(?:"[^"]*"|'[^']*')[^<>"']*)*+"""  # quoted values may hold `>`
_PRE = re.compile(r"<(/?)pre\b" + ATTRIBUTES + ">", re.I)
_CODE = re.compile(rf"<code\b({ATTRIBUTES})>", re.I)
_CODE_END = re.compile(r"</code\s*>", re.I)
_EDITOR = re.compile(rf"<(\w+)\b(?=[^>]*\bcm-content\b){ATTRIBUTES}>", re.I)
_LANGUAGE = re.compile(r"\blanguage-([^\s\"'`<>]+)")
_CHROME = re.compile(rf"<(button|svg)\b{ATTRIBUTES}>", re.I)
_CHROME_END = {name: re.compile(rf"</{name}\s*>", re.I) for name in ("button", "svg")}
_TAG = re.compile(rf"</?[a-zA-Z]{ATTRIBUTES}>")
_HIGHLIGHT = re.compile(rf"</?(?:span|code|wbr)\b{ATTRIBUTES}>", re.I)
_SPAN = re.compile(r'<span(?: class="[^"<>]*")?>')
_LINE_BREAK = re.compile(r"<br\s*/?>", re.I)
_BOX = re.compile(rf"</?(?:div|span|section|p)\b{ATTRIBUTES}>", re.I)
_EDITOR_LINE = re.compile(r"</div>\s*(?=<div\b)", re.I)
_TICKS = re.compile("`{3,}")
_LABEL = re.compile(r"[\w+#.\- ]{0,30}")


class Block(NamedTuple):
    """One code block: what follows the fence's backticks, and the code without its last newline."""

    language: str
    body: str

    def fenced(self) -> str:
        """Return the block as markdown, in a fence longer than any run of backticks inside."""
        fence = "```"
        if fence in self.body:
            fence = "`" * (1 + max(map(len, _TICKS.findall(self.body))))
        return f"{fence}{self.language}\n{self.body}\n{fence}" if self.body else f"{fence}{self.language}\n{fence}"


def lift(html: str) -> tuple[str, list[Block]]:
    """Return the HTML with each code block replaced by `PLACE`, and the blocks in their order.

    A `pre` that was cut off runs to the end of the text.
    """
    rest: list[str] = []
    blocks: list[Block] = []
    at = 0
    label = ""  # of a `pre` that held the label alone, for the next one
    balanced = True
    while opening := _PRE.search(html, at):
        rest.append(html[at : opening.start()])
        at = opening.end()
        if opening[1]:  # a closing tag without its opening one
            continue
        end, at, balanced = _end(html, at, balanced)
        inner = html[opening.end() : end]
        if found := _only_label(inner, html[at : at + 200]):
            label = found
            continue
        rest.append(PLACE)
        blocks.append(_block(inner, label))
        label = ""
    rest.append(html[at:])
    return "".join(rest), blocks


def _end(html: str, start: int, balanced: bool) -> tuple[int, int, bool]:
    """Return where the content of a `pre` ends, where its closing tag does, and whether tags balance so far.

    Where they don't (code with a raw `<pre>` in it, an answer cut short), the first closing tag counts.
    """
    depth = 1
    first = None
    for tag in _PRE.finditer(html, start):
        depth += -1 if tag[1] else 1
        first = first or (tag if tag[1] else None)
        if not depth or (first and not balanced):
            return tag.start(), tag.end(), balanced
    return (first.start(), first.end(), False) if first else (len(html), len(html), False)


def _only_label(inner: str, following: str) -> str:
    """Return the label of a `pre` that holds nothing else, where the `pre` with its code comes next."""
    if not following.lstrip().lower().startswith("<pre") or "<" not in inner:
        return ""
    return "" if _CODE.search(inner) or _EDITOR.search(inner) or _PRE.search(inner) else _label(inner)


def _block(inner: str, label: str) -> Block:
    """Read one block from what stands between `<pre>` and `</pre>`."""
    code = _CODE.search(inner)
    for other in _CODE.finditer(inner, code.end()) if code and "whitespace-pre" not in code[1] else ():
        if "whitespace-pre" in other[1]:
            code = other
    if code:
        return _in_code_element(inner, code, label)
    editor = _EDITOR.search(inner)
    nested = None if editor else _PRE.search(inner)
    if element := editor or nested:
        body = _element(inner, element)
        language = _label(inner[: element.start()])
        inside = _PRE.match(body.lstrip())
        return Block(language or label, _text(_element(body.lstrip(), inside) if inside else body))
    return _bare(inner, label)


def _in_code_element(inner: str, code: re.Match[str], label: str) -> Block:
    # The last closing tag: code that is HTML may hold `</code>` itself.
    ends = [end.start() for end in _CODE_END.finditer(inner, code.end())]
    body = inner[code.end() : ends[-1] if ends else len(inner)]
    named = _LANGUAGE.search(code[1])
    language = unescape(named[1]) if named else _label(inner[: code.start()])
    return Block(language or label, _text(body))


def _bare(inner: str, label: str) -> Block:
    """Read a `pre` without any code element: its text."""
    text = _BOX.sub("", _EDITOR_LINE.sub("\n", _without_chrome(inner, "")))
    return Block(label, _text(text).removeprefix("\n"))


def _element(html: str, opening: re.Match[str]) -> str:
    """Return what stands between an opening tag and the closing one that balances it."""
    depth = 1
    name = re.match(r"\w+", opening[0][1:])
    for tag in re.finditer(rf"<(/?){name[0] if name else 'pre'}\b{ATTRIBUTES}>", html[opening.end() :], re.I):
        depth += -1 if tag[1] else 1
        if not depth:
            return html[opening.end() : opening.end() + tag.start()]
    return html[opening.end() :]


def _label(header: str) -> str:
    """Return the language that a block's header shows: its first words outside buttons and icons."""
    text = unescape(_TAG.sub("\n", _without_chrome(header, "\n"))).strip()
    line = text.partition("\n")[0].strip()
    return line.lower().replace(" ", "") if _LABEL.fullmatch(line) else ""


def _without_chrome(html: str, instead: str) -> str:
    """Drop buttons and icons with all they hold; one that never closes stays."""
    kept: list[str] = []
    at = 0
    while opening := _CHROME.search(html, at):
        closing = _CHROME_END[opening[1].lower()].search(html, opening.end())
        if not closing:
            break
        kept += html[at : opening.start()], instead
        at = closing.end()
    return "".join((*kept, html[at:]))


def _text(body: str) -> str:
    """Return code as it was written: highlighting off, entities decoded once, raw tags kept."""
    if "<" in body:
        # Most tags are these two, and short; what is left of them is rare.
        body = _SPAN.sub("", body.replace("</span>", ""))
    if "<" in body:
        body = _HIGHLIGHT.sub("", _LINE_BREAK.sub("\n", body))
        if "cm-line" in body:
            body = _BOX.sub("", _EDITOR_LINE.sub("\n", body))
    if "&" in body:
        body = unescape(body)
    return body.removesuffix("\n")
