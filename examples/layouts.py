"""Render markdown to the HTML of an answer on ChatGPT's page, in the layouts of several years.

This supports only what the example conversations use: headings, lists, tables, quotes, fences, task lists,
maths and inline marks. A line break inside a paragraph becomes `<br>`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """One year's layout: the classes of the answer's root, the text between blocks, and the code block."""

    root: str
    code: Callable[[str, str], str]
    between: str = ""  # nothing from 2022 to 2024, a line feed since 2025
    loose: bool = False  # list items contain a paragraph even in a simple list


COPY = '<svg stroke="currentColor" fill="none" viewBox="0 0 24 24" class="h-4 w-4"><path d="M16 4h2v14"></path></svg>'
KEYWORDS = (
    "and|as|class|const|def|else|export|for|fn|from|func|function|if|import|in|int|let|mut|new|return|select|while|with"
)
TOKENS = re.compile(rf"""(?P<comment>(?://|\# )[^\n]*)|(?P<string>"[^"\n]*")|(?P<keyword>\b(?:{KEYWORDS})\b)""")


def highlight(code: str) -> str:
    """Wrap keywords, strings and comments as highlight.js does."""
    parts, end = [], 0
    for match in TOKENS.finditer(code):
        parts.append(html.escape(code[end : match.start()], quote=False))
        parts.append(f'<span class="hljs-{match.lastgroup}">{html.escape(match.group(), quote=False)}</span>')
        end = match.end()
    return "".join(parts) + html.escape(code[end:], quote=False)


def code_v2(language: str, code: str) -> str:
    """Early 2023: a black box, no label, a button in the header."""
    classes = f"!whitespace-pre-wrap hljs language-{language}" if language else "!whitespace-pre-wrap hljs"
    return (
        '<pre><div class="bg-black mb-4 rounded-md"><div class="flex items-center relative text-gray-200 bg-gray-800 '
        f'px-4 py-2 text-xs font-sans"><button class="flex ml-auto gap-2">{COPY}Copy code</button></div>'
        f'<div class="p-4 overflow-y-auto"><code class="{classes}">{highlight(code)}\n</code></div></div></pre>'
    )


def code_v3(language: str, code: str) -> str:
    """2023: the language's name is in the header's first span."""
    classes = f"!whitespace-pre hljs language-{language}" if language else "!whitespace-pre hljs"
    return (
        '<pre><div class="bg-black rounded-md mb-4"><div class="flex items-center relative text-gray-200 bg-gray-800 '
        f'px-4 py-2 text-xs font-sans justify-between rounded-t-md"><span>{language}</span>'
        f'<button class="flex ml-auto gap-2">{COPY}Copy code</button></div>'
        f'<div class="p-4 overflow-y-auto"><code class="{classes}">{highlight(code)}\n</code></div></div></pre>'
    )


def code_v4(language: str, code: str) -> str:
    """Late 2023: `gizmo:` classes, here on a page in Chinese."""
    classes = f"!whitespace-pre hljs language-{language}" if language else "!whitespace-pre hljs"
    return (
        '<pre><div class="bg-black rounded-md"><div class="flex items-center relative text-gray-200 bg-gray-800 '
        f'gizmo:dark:bg-token-surface-primary px-4 py-2 text-xs font-sans justify-between rounded-t-md"><span>{language}'
        f'</span><button class="flex ml-auto gizmo:ml-0 gap-2 items-center">{COPY}复制代码</button></div>'
        f'<div class="p-4 overflow-y-auto"><code class="{classes}">{highlight(code)}\n</code></div></div></pre>'
    )


def code_v5(language: str, code: str) -> str:
    """2024: a dark box, the button inside a span with a state."""
    classes = f"!whitespace-pre hljs language-{language}" if language else "!whitespace-pre hljs"
    return (
        '<pre><div class="dark bg-gray-950 rounded-md border-[0.5px] border-token-border-medium"><div class="flex '
        f"items-center relative text-token-text-secondary bg-token-main-surface-secondary px-4 py-2 text-xs font-sans "
        f'justify-between rounded-t-md"><span>{language}</span><div class="flex items-center"><span data-state="closed">'
        f'<button class="flex gap-1 items-center">{COPY}Code kopieren</button></span></div></div>'
        f'<div class="overflow-y-auto p-4" dir="ltr"><code class="{classes}">{highlight(code)}\n</code></div></div></pre>'
    )


def code_v7(language: str, code: str) -> str:
    """2025: a bare label, a sticky sibling with the button, and the `!` behind the class."""
    classes = f"whitespace-pre! language-{language}" if language else "whitespace-pre!"
    return (
        '<pre class="overflow-visible!"><div class="contain-inline-size rounded-2xl relative bg-token-sidebar-surface-'
        f'primary"><div class="flex items-center text-token-text-secondary px-4 py-2 text-xs font-sans h-9">{language}'
        '</div><div class="sticky top-9"><div class="absolute end-0 bottom-0 flex h-9 items-center pe-2"><button '
        'class="flex gap-1 items-center select-none py-1" aria-label="Copiar"><svg width="20" height="20"></svg>Copiar '
        'código</button></div></div><div class="overflow-y-auto p-4" dir="ltr">'
        f'<code class="{classes}"><span><span>{highlight(code)}\n</span></span></code></div></div></pre>'
    )


def code_v8(language: str, code: str) -> str:
    """Late 2025: as 2025, with icons by reference."""
    return (
        code_v7(language, code)
        .replace('class="overflow-visible!"', 'class="overflow-visible! px-0!"')
        .replace('<svg width="20" height="20"></svg>', '<svg width="20" height="20"><use href="#ce3544"></use></svg>')
    )


DISPLAY_NAMES = {"typescript": "TypeScript", "javascript": "JavaScript", "cpp": "C++", "sql": "SQL", "bash": "Bash"}


def code_v9(language: str, code: str) -> str:
    """2026: an editor's viewer; the name as shown, no `language-` class, one `<br>` a line."""
    name = DISPLAY_NAMES.get(language, language.capitalize())
    lines = "<br>".join(f"<span>{html.escape(line, quote=False)}</span>" if line else "" for line in code.split("\n"))
    return (
        '<pre class="overflow-visible! px-0!"><div class="relative w-full mt-4 mb-1"><div class="border rounded-3xl">'
        f'<div class="flex items-center px-4 py-2"><svg width="16" height="16"><use href="#code"></use></svg>{name}</div>'
        '<div class="flex"><button type="button" aria-label="Copy"><svg width="20" height="20"></svg></button></div>'
        '<div id="code-block-viewer" class="cm-editor ͼs"><div class="cm-scroller"><div class="cm-content">'
        f"{lines}</div></div></div></div></div></pre>"
    )


OLD = "markdown prose w-full break-words dark:prose-invert light"
NEW = "markdown prose dark:prose-invert w-full break-words light markdown-new-styling"
LAYOUTS = {
    "v2": Layout("markdown prose break-words dark:prose-invert dark", code_v2),
    "v3": Layout(OLD, code_v3),
    "v4": Layout(OLD, code_v4),
    "v5": Layout(OLD, code_v5),
    "v7": Layout(NEW, code_v7, "\n", loose=True),
    "v8": Layout(NEW, code_v8, "\n", loose=True),
    "v9": Layout(NEW.replace("break-words", "wrap-break-word"), code_v9, "\n", loose=True),
}


def katex(tex: str, display: bool) -> str:
    """Return a formula the way KaTeX lays it out: MathML, the TeX as an annotation, and the glyphs."""
    glyphs = html.escape(re.sub(r"\\[a-z]+|[{}]", "", tex), quote=False)
    inner = (
        '<span class="katex"><span class="katex-mathml"><math xmlns="http://www.w3.org/1998/Math/MathML"><semantics>'
        f'<mrow><mi>{glyphs}</mi></mrow><annotation encoding="application/x-tex">{html.escape(tex, quote=False)}'
        f'</annotation></semantics></math></span><span class="katex-html" aria-hidden="true"><span class="base">'
        f'<span class="strut"></span><span class="mord">{glyphs}</span><span class="mspace">\u200b</span></span></span></span>'
    )
    return f'<span class="katex-display">{inner}</span>' if display else inner


INLINE = re.compile(
    r"`(?P<code>[^`]+)`|\$(?P<maths>[^$\n]+)\$|!\[(?P<alt>[^]]*)\]\((?P<src>[^)]+)\)|\[(?P<text>[^]]+)\]\((?P<href>[^)]+)\)"
    r"|\*\*(?P<strong>.+?)\*\*|(?<![\w*])\*(?P<em>[^*\n]+)\*(?![\w*])|~~(?P<s>.+?)~~"
)


def inline(text: str) -> str:
    """Render code, maths, links, images, strong, emphasis and strike; escape the rest."""
    parts, end = [], 0
    for match in INLINE.finditer(text):
        parts.append(html.escape(text[end : match.start()], quote=False))
        parts.append(_mark(match))
        end = match.end()
    return "".join(parts) + html.escape(text[end:], quote=False)


def _mark(match: re.Match[str]) -> str:
    kind, found = match.lastgroup, match.groupdict()
    if kind == "code":
        return f"<code>{html.escape(found['code'], quote=False)}</code>"
    if kind == "maths":
        return katex(found["maths"], display=False)
    if kind == "src":
        return f'<img src="{html.escape(found["src"])}" alt="{html.escape(found["alt"])}">'
    if kind == "href":
        return f'<a href="{html.escape(found["href"])}" target="_new">{inline(found["text"])}</a>'
    tag = {"strong": "strong", "em": "em", "s": "del"}[str(kind)]
    return f"<{tag}>{inline(found[str(kind)])}</{tag}>"


ITEM = re.compile(r"(?P<indent> *)(?P<mark>[-*]|\d+\.) (?P<rest>.*)")
FENCE = re.compile(r"(?P<fence>`{3,})(?P<language>\S*)$")


def render(markdown: str, layout: str = "v3") -> str:
    """Return an answer's HTML, root and all."""
    look = LAYOUTS[layout]
    body = look.between.join(_blocks(markdown.split("\n"), look))
    return f'<div class="{look.root}">{look.between}{body}{look.between}</div>'


def _blocks(lines: list[str], look: Layout) -> Iterator[str]:
    at = 0
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        block, at = _block(lines, at, look)
        yield block


def _block(lines: list[str], at: int, look: Layout) -> tuple[str, int]:
    """Return the HTML of the block that starts at line `at`, and the line after it."""
    line = lines[at]
    if fence := FENCE.match(line):
        end = lines.index(fence["fence"], at + 1)
        return look.code(fence["language"], "\n".join(lines[at + 1 : end])), end + 1
    if line == "$$":
        end = lines.index("$$", at + 1)
        return katex("\n".join(lines[at + 1 : end]), display=True), end + 1
    if line.startswith("#"):
        level = len(line) - len(line.lstrip("#"))
        return f"<h{level}>{inline(line[level:].strip())}</h{level}>", at + 1
    if ITEM.match(line):
        return _list(lines, at, look)
    end = at
    while end < len(lines) and lines[end].strip():
        end += 1
    if line.startswith("|"):
        return _table([_cells(row) for row in lines[at:end]]), end
    if line.startswith(">"):
        inner = [row.removeprefix(">").removeprefix(" ") for row in lines[at:end]]
        return f"<blockquote>{look.between.join(_blocks(inner, look))}</blockquote>", end
    return f"<p>{('<br>' + look.between).join(inline(row) for row in lines[at:end])}</p>", end


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def _table(rows: list[list[str]]) -> str:
    styles = [
        ' style="text-align: right;"' if rule.endswith(":") and not rule.startswith(":") else "" for rule in rows[1]
    ]
    head = "".join(f"<th{style}>{inline(cell)}</th>" for cell, style in zip(rows[0], styles, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{style}>{inline(cell)}</td>" for cell, style in zip(row, styles, strict=True)) + "</tr>"
        for row in rows[2:]
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _list(lines: list[str], at: int, look: Layout) -> tuple[str, int]:
    """Return the HTML of a list, including blocks indented below its items, and the line after it."""
    first = ITEM.match(lines[at])
    assert first is not None
    ordered, items = first["mark"][0].isdigit(), []
    while at < len(lines) and (match := ITEM.match(lines[at])) and match["mark"][0].isdigit() == ordered:
        width = len(match["mark"]) + 1
        own, at = [match["rest"]], at + 1
        while at < len(lines) and (lines[at].startswith(" " * width) or _goes_on(lines, at, width)):
            own.append(lines[at][width:])
            at += 1
        items.append(_item(own, look))
        at = _next_item(lines, at)
    start = first["mark"].rstrip(".")
    tag = "ol" if ordered else "ul"
    opening = f'<ol start="{start}">' if ordered and start != "1" else f"<{tag}>"
    return opening + look.between + look.between.join(items) + look.between + f"</{tag}>", at


def _goes_on(lines: list[str], at: int, width: int) -> bool:
    """Return whether an empty line is inside an item: something indented follows it."""
    return not lines[at].strip() and at + 1 < len(lines) and lines[at + 1].startswith(" " * width)


def _next_item(lines: list[str], at: int) -> int:
    """Skip the empty lines between two items of one list; stay where another block follows."""
    ahead = at
    while ahead < len(lines) and not lines[ahead].strip():
        ahead += 1
    return ahead if ahead < len(lines) and ITEM.match(lines[ahead]) else at


def _item(own: list[str], look: Layout) -> str:
    text, box, kind = own[0], "", ""
    if task := re.match(r"\[([ x])\] ", text):
        checked = ' checked=""' if task[1] == "x" else ""
        text, box, kind = text[4:], f'<input disabled=""{checked} type="checkbox"> ', ' class="task-list-item"'
    rest = look.between.join(_blocks(own[1:], look))
    loose = look.loose or "" in own or bool(box)
    first = f"<p>{box}{inline(text)}</p>" if loose else inline(text)
    gap = look.between if loose else ""
    return f"<li{kind}>{gap}{first}{gap}{rest}{gap if rest else ''}</li>"
