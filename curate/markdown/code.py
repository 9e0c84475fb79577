"""Extract code blocks from an answer's HTML: exact text, language and position.

From 2023 to 2026 the outermost element of a code block is a `pre`. Inside it, the language label, the
buttons and the scrolling boxes changed nine times. The code itself is in a `code` element, in CodeMirror's
`.cm-content`, or in a nested `pre`.
"""

from __future__ import annotations

import re
from html import unescape
from typing import NamedTuple

PLACE = "<pre/>"  # replaces an extracted block in the HTML

ATTRIBUTES = r"""[^<>"']*(?:(?:"[^"]*"|'[^']*')[^<>"']*)*+"""  # quoted values may contain `>`
_PRE = re.compile(rf"<(/?)pre\b{ATTRIBUTES}>")
_CODE = re.compile(rf"<code\b({ATTRIBUTES})>")
_EDITOR = re.compile(rf"<(\w+)\b(?=[^>]*\bcm-content\b){ATTRIBUTES}>")
_LANGUAGE = re.compile(r"\blanguage-([^\s\"'`<>]+)")
_CHROME = re.compile(rf"<(button|svg)\b{ATTRIBUTES}>")
_TAG = re.compile(rf"</?[a-zA-Z]{ATTRIBUTES}>")
_UPPER_TAG = re.compile(r"</?[A-Z][A-Z0-9]*")
_HIGHLIGHT = re.compile(rf"</?(?:span|code|wbr)\b{ATTRIBUTES}>")
_SPAN = re.compile(r'<span class="hljs-[a-z_ -]*">')
_LINE_BREAK = re.compile(r"<br\s*/?>(?:</br\s*>)?|</br\s*>")
_BOX = re.compile(rf"</?(?:div|span|section|p)\b{ATTRIBUTES}>")
_EDITOR_LINE = re.compile(r"</div>\s*(?=<div\b)")
_EMPTY_LINE = re.compile(r"<br\s*/?></div>")  # an editor gives an empty line a `br`, for its height
_BACKTICKS = re.compile("`{3,}")
_LABEL = re.compile(r"[\w+#.\- ]{0,30}")


class Block(NamedTuple):
    """A code block: the language after the fence, and the code without its last newline."""

    language: str
    body: str

    def fence(self) -> str:
        """Return the block as markdown, in a fence longer than any run of backticks inside."""
        fence = "```"
        if fence in self.body:
            fence = "`" * (1 + max(map(len, _BACKTICKS.findall(self.body))))
        return f"{fence}{self.language}\n{self.body}\n{fence}" if self.body else f"{fence}{self.language}\n{fence}"


def extract_blocks(html: str) -> tuple[str, list[Block]]:
    """Return the HTML with each code block replaced by `PLACE`, and the blocks in order.

    A `pre` without a closing tag ends where its code ends, or else at the end of the text.
    """
    if "<pre" not in html:
        html = _UPPER_TAG.sub(lambda tag: tag[0].lower(), html)
    parts: list[str] = []  # of the HTML without code blocks
    blocks: list[Block] = []
    position = 0
    label = ""  # from a `pre` with only a label, for the next `pre`
    balanced = True
    while opening := _opening(html, position):
        parts.append(html[position : opening.start()])
        end, position, balanced = _end(html, opening.end(), balanced)
        inner = html[opening.end() : end]
        if "<code" not in inner and (lone_label := _lone_label(inner, html[position : position + 200])):
            label = lone_label
            continue
        parts.append(PLACE)
        blocks.append(_block(inner, label))
        label = ""
    parts.append(html[position:])
    return "".join(parts), blocks


def _opening(html: str, position: int) -> re.Match[str] | None:
    while (position := html.find("<pre", position)) >= 0:
        if tag := _PRE.match(html, position):
            return tag
        position += 1
    return None


def _end(html: str, start: int, balanced: bool) -> tuple[int, int, bool]:
    """Return the end of a `pre`'s content, the end of its closing tag, and whether the tags are balanced so far.

    If they are not (a raw `<pre>` in the code, a truncated answer), the first closing tag ends the block.
    """
    first = html.find("</pre>", start)
    if first < 0:
        code = html.find("</code>", start)
        end = code + len("</code>") if code >= 0 else len(html)
        return end, end, False
    if balanced and html.find("<pre", start, first) >= 0:
        depth = 1
        for tag in _PRE.finditer(html, start):
            depth += -1 if tag[1] else 1
            if not depth:
                return tag.start(), tag.end(), True
        balanced = False
    return first, first + len("</pre>"), balanced


def _lone_label(inner: str, following: str) -> str:
    """Return the label in a `pre` that has only a label and is followed by the `pre` with the code; otherwise ""."""
    if not following.lstrip().lower().startswith("<pre") or "<" not in inner:
        return ""
    return "" if _EDITOR.search(inner) or _PRE.search(inner) else _label(inner)


def _block(inner: str, label: str) -> Block:
    """Return the block inside a `pre`."""
    position = inner.find("<code")
    code = _CODE.search(inner, position) if position >= 0 else None
    if code and "whitespace-pre" not in code[1]:
        code = next((tag for tag in _CODE.finditer(inner, position) if "whitespace-pre" in tag[1]), code)
    editor = None if code and "whitespace-pre" in code[1] else _EDITOR.search(inner)
    if code and not (editor and code.start() < editor.start()):
        return _in_code_element(inner, code, label)
    nested = None if editor else _PRE.search(inner)
    if element := editor or nested:
        body = _element(inner, element)
        language = _label(inner[: element.start()])
        inside = _PRE.match(body.lstrip())
        return Block(language or label, _text(_element(body.lstrip(), inside) if inside else body))
    return _block_from_text(inner, label)


def _in_code_element(inner: str, code: re.Match[str], label: str) -> Block:
    # The last closing tag: code that is HTML may contain `</code>` itself.
    end = inner.rfind("</code>", code.end())
    body = inner[code.end() : end if end >= 0 else len(inner)]
    class_name = _LANGUAGE.search(code[1])
    language = unescape(class_name[1]) if class_name else _label(inner[: code.start()])
    return Block(language or label, _text(body))


def _block_from_text(inner: str, label: str) -> Block:
    """Return the text of a `pre` without a code element, as a block."""
    text = _remove_boxes(_remove_chrome(inner, ""))
    return Block(label, _text(text).removeprefix("\n"))


def _remove_boxes(html: str) -> str:
    """Return code whose lines are elements of their own as plain lines."""
    return _BOX.sub("", _EDITOR_LINE.sub("\n", _EMPTY_LINE.sub("</div>", html)))


def _element(html: str, opening: re.Match[str]) -> str:
    """Return the content between an opening tag and its closing tag."""
    depth = 1
    name = re.match(r"\w+", opening[0][1:])
    for tag in re.finditer(rf"<(/?){name[0] if name else 'pre'}\b{ATTRIBUTES}>", html[opening.end() :]):
        depth += -1 if tag[1] else 1
        if not depth:
            return html[opening.end() : opening.end() + tag.start()]
    return html[opening.end() :]


def _label(header: str) -> str:
    """Return the language in a block's header: its first line outside buttons and icons, if that is a name."""
    text = unescape(_TAG.sub("\n", _remove_chrome(header, "\n"))).strip()
    line = text.partition("\n")[0].strip()
    line = line.removesuffix("Copy code") or line  # the text of a button that lost its tag
    return line.lower().replace(" ", "") if _LABEL.fullmatch(line) else ""


def _remove_chrome(html: str, replacement: str) -> str:
    """Replace each button and icon, including its content; one without a closing tag is kept."""
    kept: list[str] = []
    position = 0
    while opening := _CHROME.search(html, position):
        closing = f"</{opening[1]}>"
        end = html.find(closing, opening.end())
        if end < 0:
            break
        kept += html[position : opening.start()], replacement
        position = end + len(closing)
    return "".join((*kept, html[position:]))


def _text(body: str) -> str:
    """Return the code without highlighting, with entities decoded once and raw tags kept."""
    if "<" in body:
        # Most tags are these two: removing them first leaves few for the slower patterns.
        body = _SPAN.sub("", body.replace("</span>", ""))
    if "<" in body:
        if "cm-line" in body:
            body = _remove_boxes(body)
        body = _HIGHLIGHT.sub("", _LINE_BREAK.sub("\n", body))
    if "&" in body:
        body = unescape(body)
    return _remove_blank_end(body.removesuffix("\n"))


def _remove_blank_end(code: str) -> str:
    """Drop final lines that are only indentation; keep empty lines."""
    if code[-1:] not in (" ", "\t"):
        return code
    end = len(code.rstrip(" \t\n"))
    lines = code[end:].split("\n")
    first = 1 if end else 0  # the text after the last character ends that character's line
    while len(lines) > first and lines[-1]:
        lines.pop()
    return code[:end] + "\n".join(lines)
