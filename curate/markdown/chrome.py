"""Recognise ChatGPT's markup, and remove what the page or an extension added around an answer."""

from __future__ import annotations

import functools
import re
from html import unescape

from curate.markdown.code import ATTRIBUTES

INVISIBLE = "\u200b\u200c\u200d\u200e\u200f\u2060\u202a\u202b\u202c\u202d\u202e\ufeff\u00ad"  # fmt: skip
_EDGE = INVISIBLE + " \t\r\n"

_TAG = re.compile(rf"<([a-zA-Z][\w-]*)({ATTRIBUTES})/?>")
_CLASS = re.compile(r"""\bclass\s*=\s*(?:"([^"]*)"|'([^']*)')""", re.I)
_CHATGPT_TAG = re.compile(
    r"""\bdata-message-author-role\s*=\s*["']?assistant|\bdata-writing-block\b|\bdata-section-id="""
    r"""|\bdata-start=["']?\d+["']?\s+data-end=["']?\d|\bcontain-inline-size\b|\boverflow-visible!|\bhljs\b"""
    r"""|\bgizmo:|\bbg-black\b[^"]*\brounded-md\b|\brounded-md\b[^"]*\bbg-black\b"""
)
_MAX_HEAD = 4_000  # characters that are searched for an answer's root: avatars, names and buttons come before it

_COUNTER = re.compile(r"\d{1,3} / \d{1,3}[ \t]*(?:\r?\n)+(?=\s*\S)")
_COUNTER_PREFIX = re.compile(r"\d{1,3} / \d{1,3}\s*")
_WORD_COUNT = re.compile(r"[ \t]*Copy\d+ chars / \d+ words[ \t]*")
_TEXT_BEFORE_ROOT = re.compile(r"(?:chatgpt(?: said:)?|\d{1,3} / \d{1,3}|\s)*", re.I)
_TEXT_AFTER_ROOT = re.compile(
    rf"(?:<(?:div|span|p)\b{ATTRIBUTES}>\s*)*Copy\d+ chars / \d+ words\s*(?:</(?:div|span|p)>\s*)*\Z", re.I
)
_ANY_TAG = re.compile(rf"</?[a-zA-Z]{ATTRIBUTES}>|<!--[^<>]*-->")
_USER_TURN = re.compile(r"""\bdata-message-author-role\s*=\s*["']?user|\bdata-turn\s*=\s*["']?user""")
_IGNORED_ELEMENT = re.compile(
    rf"<(button|svg)\b{ATTRIBUTES}>.*?</\1>|<(h[1-6])\b(?=[^>]*\bsr-only\b){ATTRIBUTES}>[^<]*</\2>", re.I | re.S
)
_IMAGE = re.compile(r"<img\b(?![^>]*\balt=[\"']User[\"'])", re.I)
_MAX_BOXES = 20  # elements that may enclose a prompt's text inside its bubble
_FENCE = re.compile(r"^([ \t>]*)(`{3,}|~{3,})(.*)$")
_LABEL_AND_BUTTON = re.compile(r"([\w+#.-]*)Copy code(.*)")


def looks_like_html(text: str) -> bool:
    """Return whether an answer is ChatGPT's markup, and not text or markdown that contains HTML."""
    start = text[:64].lstrip(_EDGE)
    if start[:1].isdigit():
        start = _COUNTER_PREFIX.sub("", start)
    if start[:1] != "<":
        return False
    first = _TAG.match(text)
    if first and _is_chatgpt_tag(first[0]):  # nearly always
        return True
    return any(_is_chatgpt_tag(tag[0]) for tag in _TAG.finditer(text, 0, _MAX_HEAD))


@functools.lru_cache(maxsize=1024)
def _is_chatgpt_tag(tag: str) -> bool:
    classes = _classes(tag)
    return "markdown" in classes or bool(_CHATGPT_TAG.search(tag))


def _classes(tag: str) -> list[str]:
    match = _CLASS.search(tag)
    return (match[1] or match[2] or "").split() if match else []


def has_class(tag: str, name: str) -> bool:
    """Return whether an element has a class, by its opening tag."""
    return name in _classes(tag)


def trim_chrome(html: str) -> str:
    """Remove page text around an answer's root element: a name, a counter, a word count."""
    html = html.strip(_EDGE)
    root = next((tag for tag in _TAG.finditer(html, 0, _MAX_HEAD) if "markdown" in _classes(tag[0])), None)
    if root and root.start() and _TEXT_BEFORE_ROOT.fullmatch(unescape(_ANY_TAG.sub("", html[: root.start()]))):
        html = html[root.start() :]
    return _TEXT_AFTER_ROOT.sub("", html) if "chars /" in html[-80:] else html


def unwrap_prompt(text: str) -> str:
    """Return a prompt without the markup of ChatGPT's message bubble; other prompts are returned unchanged.

    HTML that a user typed is text. A prompt is unwrapped only if it is one bubble with no visible text around it. If
    there are tags inside the bubble, its markup must also identify it as the user's message.
    """
    head = text[:_MAX_HEAD]
    tags = _TAG.finditer(head) if text.startswith("<") and "whitespace-pre-wrap" in head else iter(())
    bubble = next((tag for tag in tags if "whitespace-pre-wrap" in _classes(tag[0])), None)
    element = inside_element(text, bubble.end(), bubble[1]) if bubble else None
    if not bubble or not element:
        return text
    before, inside, after = head[: bubble.start()], element[0], text[element[1] :]
    if (
        _has_visible_content(before)
        or _has_visible_content(after)
        or any("markdown" in _classes(tag[0]) for tag in _TAG.finditer(before))
    ):
        return text
    inside = _remove_boxes(inside)
    if _ANY_TAG.search(inside) and not _USER_TURN.search(head[: bubble.end()]):
        return text
    return unescape(inside)


def inside_element(text: str, start: int, name: str) -> tuple[str, int] | None:
    """Return the content from `start` of an element, and the index after its closing tag; None if it is not closed."""
    depth = 1
    for tag in re.compile(rf"<(/?){name}\b{ATTRIBUTES}>", re.I).finditer(text, start):
        depth += -1 if tag[1] else 1
        if not depth:
            return text[start : tag.start()], tag.end()
    return None


def _remove_boxes(inside: str) -> str:
    """Remove elements that enclose the whole content of a bubble."""
    for _ in range(_MAX_BOXES):
        box = _TAG.match(inside)
        is_box = box and box[1].lower() == "div" and "markdown" not in _classes(box[0])
        element = inside_element(inside, box.end(), box[1]) if box and is_box else None
        if not element or element[1] != len(inside):
            break
        inside = element[0]
    return inside


def _has_visible_content(html: str) -> bool:
    """Return whether there is visible content other than buttons; text only for screen readers does not count."""
    return bool(_ANY_TAG.sub("", _IGNORED_ELEMENT.sub("", html)).strip()) or bool(_IMAGE.search(html))


def strip_chrome(text: str) -> str:
    """Remove page text from an answer that is not HTML: counters, word counts, `Copy code`; code is unchanged.

    Leading invisible characters are removed too. A counter is removed only if it is alone on the first line.
    """
    text = text.lstrip(INVISIBLE)
    text = _COUNTER.sub("", text, count=1) if _COUNTER.match(text) else text
    if "chars /" not in text and "Copy code" not in text:
        return text
    return "\n".join(_clean_lines(text.split("\n")))


def _clean_lines(lines: list[str]) -> list[str]:
    kept: list[str] = []
    index = 0
    while index < len(lines):
        line = lines[index]
        opening = _FENCE.match(line)
        if opening:
            end = _fence_end(lines, index, opening[2])
            kept += _clean_fence(lines[index:end], opening)
            index = end
            continue
        cleaned = _WORD_COUNT.sub("", line) if "chars /" in line else line
        if cleaned or not line:
            kept.append(cleaned)
        index += 1
    return kept


def _fence_end(lines: list[str], start: int, fence: str) -> int:
    """Return the index after a fenced block; an unclosed block ends at the last line."""
    closing = re.compile(rf"[ \t>]*{fence[0]}{{{len(fence)},}}[ \t]*")
    for index in range(start + 1, len(lines)):
        if closing.fullmatch(lines[index]):
            return index + 1
    return len(lines)


def _clean_fence(lines: list[str], opening: re.Match[str]) -> list[str]:
    """Remove `Copy code` from a block's header; a block with nothing else is dropped."""
    indent, fence, info = opening.groups()
    closed = len(lines) > 1 and lines[-1].strip(" \t>").startswith(fence)
    body = lines[1:-1] if closed else lines[1:]
    header = info.removesuffix(fence)  # ```pythonCopy code``` on one line
    if glued := _LABEL_AND_BUTTON.fullmatch(_WORD_COUNT.sub("", header).strip()):
        info, code = glued.groups()
        body = [indent + code] * bool(code) + body
        if not any(line.strip() for line in body):
            return []
    elif "chars /" in info:
        info = _WORD_COUNT.sub("", info)
    elif (
        not info.strip()
        and body
        and (glued := _LABEL_AND_BUTTON.fullmatch(body[0].strip()))
        and (glued[1] or len(body) == 1)
    ):
        info, code = glued.groups()
        body = [indent + code] * bool(code) + body[1:]
        if not any(line.strip() for line in body):
            return []
    else:
        return lines
    return [f"{indent}{fence}{info}", *body, *lines[len(lines) - closed :]]
