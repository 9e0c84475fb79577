"""Walk an answer's tags once and write markdown: blocks, their line prefixes and the space between them.

`elements` defines what each element does; this module owns the shared state. Containers (lists,
items, quotes, cells) are frames on a stack, so nesting needs no recursion. Whether a list is loose (blank lines
between its items) is known only at its end, so the positions of its separators are stored until then.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from curate.markdown.code import PLACE, Block
from curate.markdown.escaping import escape_inline, escape_lines
from curate.markdown.placeholders import ALTERNATIVE, BREAK, CODE, LINK, OPAQUE, SPACE, WIDE_SPACE, replace_placeholders
from curate.markdown.tags import SPLIT, Tag, Tags, decode_entities

Kind = Literal["root", "quote", "list", "item", "table", "row", "cell"]
MAX_DEPTH = 24  # frames; deeper nesting is not shown by indentation
LOOKAHEAD = 16  # times that each tag may be examined ahead of the walk; only hostile input needs more
_ORIGINAL = {alternative: original for original, alternative in ALTERNATIVE.items()} | {key: key for key in ALTERNATIVE}

_ROWS = ("table", "row")
# For each kind of block in an item: the blocks before it that would absorb it without a blank line between.
_RUNS_ON = {
    "text": ("p", "text", "quote", "list", "table", "math"),
    "table": ("quote", "list", "table", "math"),
    "math": ("quote", "list", "table"),
    "quote": ("quote",),
}
_EDGES = SPACE + BREAK
_BREAKS = re.compile(f"[{SPACE}]*{BREAK}[{_EDGES}]*")
_LINE_ENDS = re.compile(r"[ \t]+\n")
_SPACES = re.compile(f"[{_EDGES}]+")
_CLOSING_HASHES = re.compile(r"(?<![^ ])(#+)\Z")  # a final run of `#` in a heading, which markdown would drop
_BACKTICKS = re.compile("`+")


class Frame:
    """An open container: the prefix of its lines, and the kind of its last block."""

    last = ""  # kind of the block written last
    paragraphs = 0  # of an item, in markup that puts a paragraph in every item
    loose = False
    ordered = False
    number = 1
    bullet = ""  # of a list: `-` or `+`, or the `.` or `)` after a number
    alignment = ""  # of a cell
    start = 0  # of a cell: its index in `out`
    gaps: list[int]  # of a list: indices in `out` of separators, which get a blank line if it is loose
    rows: list[list[tuple[str, str]]]  # of a table: alignment and content of each cell

    def __init__(self, kind: Kind, prefix: str, parent: Frame | None) -> None:
        self.kind = kind
        self.prefix = prefix
        self.parent = parent


class Walker:
    """The state of a walk over one answer."""

    def __init__(self, tokens: list[str], blocks: Sequence[Block], tags: Tags, citations: str) -> None:
        self.tokens = tokens  # text, tag, text, tag, …, text
        self.tag_index = -1  # index of the current tag
        self.tags = tags
        self.has_blocks = bool(blocks)
        self.blocks = iter(blocks)
        self.citations = citations
        self.out: list[str] = []
        self.inline: list[str] = []  # parts of the current text block
        self.opaque: list[str] = []  # finished markdown that the placeholders OPAQUE and CODE stand for
        self.open: list[tuple[str, int, str]] = []  # inline elements: placeholder, index in `inline`, link target
        self.closed = -1  # index in `inline` after the emphasis that was closed last
        self.frame = Frame("root", "", None)
        self.depth = 0
        self.counts = dict.fromkeys(("root", "quote", "list", "item", "table", "row", "cell"), 0)
        self.heading = 0
        self.paragraph = False
        self.modern = False  # a paragraph as markup since 2025 puts one in every list item
        self.nested = dict.fromkeys(ALTERNATIVE, 0)  # how many of each emphasis are open
        self.endless: set[str] = set()  # names of elements that have no closing tag from here on
        self.budget = LOOKAHEAD * len(tokens) + 1_000  # tags that may still be examined ahead of the walk

    def run(self) -> str:
        """Walk to the end and return the markdown."""
        tokens, tags, inline = self.tokens, self.tags, self.inline
        end = len(tokens)
        while True:
            text = tokens[self.tag_index + 1]
            if text and (inline or text.strip(SPACE)):
                inline.append(decode_entities(text) if "&" in text else text)
            self.tag_index += 2
            if self.tag_index >= end:
                break
            tag = tags[tokens[self.tag_index]]
            tag.handler(self, tag)
        self.flush()
        while self.depth:
            self.pop()
        return replace_placeholders("".join(self.out), self.opaque).strip(SPACE)

    # Frames

    def push(self, kind: Kind, prefix: str) -> Frame:
        """Open a container; past `MAX_DEPTH` its lines have the prefix of the container around it."""
        self.depth += 1
        self.counts[kind] += 1
        self.frame = Frame(kind, prefix if self.depth <= MAX_DEPTH else self.frame.prefix, self.frame)
        return self.frame

    def pop(self) -> Frame:
        """Close the innermost container and write the output that depends on its contents."""
        if self.inline:
            self.flush()
        frame = self.frame
        kind = frame.kind
        self.depth -= 1
        self.counts[kind] -= 1
        self.frame = frame.parent or frame
        if kind == "cell":
            self._end_cell(frame)
        elif kind == "table":
            self._end_table(frame)
        elif frame.loose:
            self._widen(frame.gaps)
        elif not frame.last and kind in ("item", "quote"):
            self.out[-1] = self.out[-1].rstrip()
        return frame

    def close(self, kind: Kind) -> None:
        """Close the nearest container of this kind and those inside it; do nothing if there is none."""
        if self.inline:
            self.flush()
        if self.counts[kind]:
            while self.pop().kind != kind:
                pass

    def _widen(self, gaps: list[int]) -> None:
        for index in gaps:
            line = self.out[index]
            self.out[index] = f"\n{line[1:].rstrip()}{line}"

    # Blocks

    def begin(self, kind: str) -> Frame:
        """Write the separator before a new block, and return its container."""
        frame = self.frame
        if frame.kind in _ROWS:  # a caption, or text outside the cells
            while frame.kind in _ROWS and frame.parent:
                frame = frame.parent
        if frame.kind == "item":
            if frame.last:
                self._begin_in_item(frame, kind)
            elif kind == "p":
                self._note_paragraph(frame)
        elif frame.last:
            prefix = frame.prefix
            self.out.append(f"\n{prefix.rstrip()}\n{prefix}" if prefix else "\n" if frame.kind == "cell" else "\n\n")
        frame.last = kind
        return frame

    def _begin_in_item(self, frame: Frame, kind: str) -> None:
        enclosing_list = frame.parent
        if not enclosing_list:
            return
        if kind == "p":
            self._note_paragraph(frame)
        if kind != "list" and (frame.paragraphs or frame.last in _RUNS_ON.get(kind, ())):
            enclosing_list.loose = True  # without a blank line it would run into the block before it
        enclosing_list.gaps.append(len(self.out))
        self.out.append(f"\n{frame.prefix}")

    def _note_paragraph(self, frame: Frame) -> None:
        if self.modern:
            frame.paragraphs += 1
        elif frame.parent:
            frame.parent.loose = True

    def flush(self) -> None:
        """Write the pending text as a block: a paragraph, a heading, or the text of an item or cell."""
        inline = self.inline
        if not inline:
            return
        if self.open:
            self.end_inline()
        text = "".join(inline).strip(_EDGES)
        inline.clear()
        self.closed = -1
        if not text:
            return
        heading = self.heading
        frame = self.begin("heading" if heading else "p" if self.paragraph else "text")
        if not (self.paragraph or heading or self.depth):
            self.out.append(text.replace(BREAK, "\n"))  # an answer stored as markdown text inside `div`s
            return
        if BREAK in text:
            text = _BREAKS.sub(_hard_break if frame.kind != "cell" else _line_ends, text)
        elif " \n" in text:
            text = _LINE_ENDS.sub("\n", text)
        text = escape_inline(text)
        self.out.append(self._heading_lines(text, heading, frame) if heading else self._lines(text, frame))

    def _heading_lines(self, text: str, level: int, frame: Frame) -> str:
        """Return a heading; one of several lines is underlined, since `#` allows only one line."""
        text = _CLOSING_HASHES.sub(r"\\\1", text)
        if "\n" not in text:
            return f"{'#' * level} {text}"
        if level > 2 or frame.kind == "cell":
            return f"{'#' * level} {_SPACES.sub(' ', text)}"
        return f"{self._lines(text, frame)}\n{frame.prefix}{'===' if level == 1 else '---'}"

    def _lines(self, text: str, frame: Frame) -> str:
        if frame.kind != "cell":
            text = escape_lines(text)
        return text.replace("\n", f"\n{frame.prefix}") if frame.prefix and "\n" in text else text

    def write_code(self, block: Block) -> None:
        """Write a fenced code block; in a table cell, which cannot contain one, a code span for each line."""
        self.flush()
        if self.counts["cell"]:
            for line in block.body.split("\n"):
                self.inline.append(BREAK)
                self.write_span(line)
            return
        prefix = self.begin("code").prefix
        fenced = block.fence()
        if prefix:
            fenced = "\n".join(f"{prefix}{line}" if line else prefix.rstrip() for line in fenced.split("\n"))
        self.write_opaque(fenced[len(prefix) :], self.out)

    def write_block(self, kind: str, text: str) -> None:
        """Write a block of finished markdown."""
        self.flush()
        prefix = self.begin(kind).prefix
        self.write_opaque(text.replace("\n", f"\n{prefix}"), self.out)

    def _end_cell(self, frame: Frame) -> None:
        content = "".join(self.out[frame.start :]).strip(SPACE)
        del self.out[frame.start :]
        content = content.replace("  \n", "<br>").replace("\n", "<br>")
        if not self.counts["cell"]:
            content = content.replace("|", "\\|")
        self.frame.rows[-1].append((frame.alignment, content))

    def _end_table(self, frame: Frame) -> None:
        rows = [row for row in frame.rows if row]
        if not rows:
            return
        if self.counts["cell"]:  # a nested table: write its cells as text
            self.begin("table")
            self.out.append("\n".join(" ".join(content for _, content in row) for row in rows))
            return
        width = max(map(len, rows))
        rows = [row + [("", "")] * (width - len(row)) for row in rows]
        lines = [f"| {' | '.join(content for _, content in row)} |" for row in rows]
        lines.insert(1, f"| {' | '.join(_RULES.get(align, '---') for align, _ in rows[0])} |")
        prefix = self.begin("table").prefix
        self.out.append(f"\n{prefix}".join(lines))

    # Inline

    def write_opaque(self, markdown: str, into: list[str], placeholder: str = OPAQUE) -> None:
        """Write finished markdown as a placeholder, so that it is not changed later."""
        if self.counts["cell"]:
            markdown = markdown.replace("|", "\\|")
        self.opaque.append(markdown)
        into.append(placeholder)

    def write_span(self, code: str) -> None:
        """Write a code span, padded if CommonMark would strip one of its spaces or misread a backtick at its edge."""
        if not code:
            return
        code = code.replace("\n", " ")
        fence = "`"
        if fence in code:
            lengths = {len(backticks) for backticks in _BACKTICKS.findall(code)}
            while len(fence) in lengths:
                fence += "`"
        pad = " " if code[0] == "`" or code[-1] == "`" or (code[0] == " " == code[-1] and code.strip(" ")) else ""
        self.write_opaque(f"{fence}{pad}{code}{pad}{fence}", self.inline, CODE)

    def open_inline(self, placeholder: str, target: str = "") -> None:
        """Open emphasis, or a link to `target`."""
        if placeholder in ALTERNATIVE:
            self.nested[placeholder] += 1
            if self.nested[placeholder] > 1:
                return  # strong in strong is strong
            if self.closed == len(self.inline):
                placeholder = ALTERNATIVE[placeholder]
        self.open.append((placeholder, len(self.inline), target))
        self.inline.append(placeholder)

    def close_inline(self, placeholder: str) -> None:
        """Close an inline element and those opened inside it."""
        if placeholder in ALTERNATIVE:
            self.nested[placeholder] = max(0, self.nested[placeholder] - 1)
            if self.nested[placeholder]:
                return
        if any(placeholder in (opened, _ORIGINAL.get(opened)) for opened, _, _ in self.open):
            while self._close(*self.open.pop()) != placeholder:
                pass

    def end_inline(self) -> None:
        """Close all inline elements of the pending text."""
        while self.open:
            self._close(*self.open.pop())

    def _close(self, placeholder: str, start: int, target: str) -> str:
        """Write the end of an inline element, and return its placeholder."""
        inline = self.inline
        content = "".join(inline[start + 1 :])
        core = content.strip(_EDGES + WIDE_SPACE)
        original = _ORIGINAL.get(placeholder, placeholder)
        if original in self.nested:
            self.nested[original] = 0
        if not core:
            inline[start:] = [content] if content else []
        elif placeholder == LINK:
            self._close_link(start, content, target)
        else:
            # Emphasis in markdown cannot begin or end with white space: move it outside.
            before, _, after = content.partition(core) if core != content else ("", "", "")
            if before or after:
                inline[start:] = [before, placeholder, core, placeholder]
            else:
                inline.append(placeholder)
            self.closed = len(inline)
            if after:
                inline.append(after)
        return original

    def _close_link(self, start: int, content: str, target: str) -> None:
        if content in (target, target.removeprefix("mailto:")) and _AUTOLINK.fullmatch(content):
            del self.inline[start:]
            self.write_opaque(f"<{content}>", self.inline)
            return
        self.write_opaque(f"]({destination(target)})", self.inline)

    # Lookahead

    def end_of(self, name: str) -> int:
        """Return the index of the tag that closes the current element, or -1."""
        if name in self.endless:
            return -1
        depth, closing = 1, f"/{name}"
        for index in range(self.tag_index + 2, min(len(self.tokens), self.tag_index + self.budget), 2):
            tag_name = self.tags[self.tokens[index]].name
            if tag_name == name:
                depth += 1
            elif tag_name == closing:
                depth -= 1
                if not depth:
                    self.budget -= index - self.tag_index
                    return index
        self.endless.add(name)
        return -1

    def inside(self, end: int) -> list[tuple[Tag, str]]:
        """Return the tags from the current one to `end`, each with the text after it."""
        return [(self.tags[self.tokens[i]], self.tokens[i + 1]) for i in range(self.tag_index, end, 2)]

    def skip_to(self, end: int) -> None:
        """Continue after the tag at `end`; code blocks before it are dropped."""
        if self.has_blocks:
            for _ in range(self.tokens[self.tag_index : end].count(PLACE)):
                next(self.blocks, None)
        self.tag_index = end


_RULES = {"left": ":--", "center": ":-:", "right": "--:"}
_AUTOLINK = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,31}:[^\s<>\x00-\x1f]+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+", re.A)
_PLAIN_TARGET = re.compile(r"[^\s()<>\\]*(?:\([^\s()<>\\]*\)[^\s()<>\\]*)*")


def destination(target: str) -> str:
    """Return a link target in markdown syntax."""
    target = re.sub(r"\s", lambda space: f"%{ord(space[0]):02X}" if space[0] < "\x7f" else space[0], target)
    return target if _PLAIN_TARGET.fullmatch(target) else f"<{target.replace('<', '%3C').replace('>', '%3E')}>"


def _hard_break(match: re.Match[str]) -> str:
    return "  \n" if match[0].count(BREAK) == 1 else "\n\n"


def _line_ends(match: re.Match[str]) -> str:
    """Return line ends for a cell, which become `<br>`; without spaces, so that a backslash before one is escaped."""
    return "\n" * match[0].count(BREAK)


def walk(html: str, blocks: Sequence[Block], handlers: Tags, citations: str) -> str:
    """Return one answer's HTML as markdown; `blocks` are its extracted code blocks."""
    return Walker(SPLIT.split(html), blocks, handlers, citations).run()
