"""Parse tags: name, attributes and classes, once for each distinct tag."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from typing import Any

from curate.markdown.code import ATTRIBUTES

SPLIT = re.compile(rf"(</?[a-zA-Z]{ATTRIBUTES}>|<!--[^<>]*-->|<![a-zA-Z\[][^<>]*>)")
_NAME = re.compile(r"<(/?)([a-zA-Z][\w:-]*)")
_ATTRIBUTE = re.compile(r"""([^\s"'<>/=]+)(?:\s*=\s*("[^"]*"|'[^']*'|[^\s"'<>]+))?""")
CACHE = 4096  # distinct tags; most links occur only once

Handler = Callable[[Any, "Tag"], None]  # (walker, tag)


class Tag:
    """A parsed tag; a closing tag is named `/name`. `handler` writes its markdown."""

    __slots__ = ("attributes", "classes", "handler", "name")

    def __init__(self, text: str, choose: Callable[[Tag], Handler]) -> None:
        match = _NAME.match(text)
        self.name = f"{match[1]}{match[2].lower()}" if match else "!"
        self.attributes: dict[str, str] = {}
        for key, value in _ATTRIBUTE.findall(text, match.end()) if match else ():
            self.attributes.setdefault(key.lower(), unescape(value.strip("\"'")))
        self.classes = frozenset(self.attributes.get("class", "").split())
        self.handler = choose(self)


class Tags(dict[str, Tag]):
    """Maps the text of a tag to the parsed tag; `choose` selects its handler."""

    def __init__(self, choose: Callable[[Tag], Handler]) -> None:
        self._choose = choose

    def __missing__(self, text: str) -> Tag:
        if len(self) > CACHE:
            self.clear()
        tag = self[text] = Tag(text, self._choose)
        return tag


def decode_entities(text: str) -> str:
    """Decode entities once; the four that browsers write do not need the slow `unescape`."""
    text = text.replace("&quot;", '"').replace("&lt;", "<").replace("&gt;", ">").replace("&amp; ", "& ")
    return unescape(text) if "&" in text else text
