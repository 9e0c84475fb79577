"""Convert flat answers as a Polars column: most answers have no nesting and need no walk.

`FLAT` is the grammar of these answers: paragraphs, headings, rules, extracted code blocks, and lists of
single paragraphs, with text in which no character could be markdown. For such an answer, replacing each tag
without its context gives the same result as the walker. One pass of a finite automaton recognises flat answers
(about 450 MB/s), and a second pass replaces their tags.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import polars as pl

from curate.markdown.code import PLACE, Block
from curate.pattern_cache import keep_patterns

# Text, in parts that are never markup, whatever surrounds them.
_WORD = r"[A-Za-z0-9]+(?:_+[A-Za-z0-9]+)*"  # an underscore inside a word is not emphasis
_SAFE = r"[^<&*_`~\\\[\]|\x00-\x20A-Za-z0-9]"  # any other character that is never markup
_CHARACTER = (
    rf"(?:{_WORD}|{_SAFE}|\[|\||&(?:quot|gt|#39|#x27);|&lt;(?:[=0-9]|/?[A-Za-z][A-Za-z0-9]*&gt;)"
    r"|\]+(?:[^<&*_`~\\\[\]|(:\x00-\x20]|&(?:quot|gt|#39|#x27);))"
)
_SOLID = _CHARACTER.replace(r"\x00-\x20", r"\x00-\x20\s")  # nor white space beyond ASCII, such as U+3000
_TEXT = (
    rf"(?:{_CHARACTER}|[ ]|\]+ |~[A-Za-z0-9 ]|\\[A-Za-z0-9 ]| \* "
    r"|&lt;(?:/?[A-Za-z][A-Za-z0-9]*)? |&amp; |&amp;&amp; )"
)
# Beginnings of a line that is not a list item, a heading, a quote, a rule or an underline.
_OPENING = (
    r"[A-Za-z]|[0-9]+(?:[^<&*_`~\\\[\]|\x00-\x1f.)0-9]|\.[0-9])|[^<>&*_`~\\\[\]|\x00-\x20A-Za-z0-9#+\-=:]"
    r"|[#+\-=][A-Za-z0-9]|\[|&quot;|&#39;|&#x27;|&lt;/?[A-Za-z][A-Za-z0-9]*(?:&gt;| )"
)
_FIRST = rf"(?:{_OPENING})"
_NEXT = rf"(?:{_OPENING}|(?:[02-9]|[1-9][0-9]{{1,8}})[.)])"  # only a list that starts at 1 can interrupt a paragraph
_PHRASE = rf"{_SOLID}(?:{_TEXT}*{_SOLID})?\]*"
_CODE = r"(?:[^<&`\x00-\x20]|&(?:lt|gt|quot|amp|#39|#x27);)"
_INLINE = rf"(?:<strong>{_PHRASE}</strong>|<em>{_PHRASE}</em>|<code>{_CODE}(?:[ ]*{_CODE})*</code>)"


def _line(first: str) -> str:
    """Return the grammar of a line that has no white space at its end and no two inline elements next to each other."""
    return (
        rf"(?:{first}(?:{_TEXT}*{_CHARACTER})?|[0-9]+|\]+[,;]?"
        rf"|(?:{first}{_TEXT}*)?(?:{_INLINE}{_TEXT}+)*{_INLINE}(?:{_TEXT}*{_CHARACTER})?)\]*"
    )


_LINES = rf"{_line(_FIRST)}(?:(?:<br ?/?>\n|\n[ ]*){_line(_NEXT)})*"  # the walker drops spaces after a <br>
_ITEMS = rf"(?:(?:<li>{_LINES}</li>)+|(?:<li><p>{_LINES}</p></li>)+)"
_LIST = rf'<(?:ul|ol(?: start="[1-9][0-9]{{0,8}}")?)>{_ITEMS}</[uo]l>'
_BLOCK = rf"<p>{_LINES}</p>|{PLACE}|<hr ?/?>|<h[1-6]>{_line(_FIRST)}</h[1-6]>"
_ROOT = r'<div class="(?:[^"<>&]* )?markdown(?: [^"<>&]*)?"(?: [a-z-]+="[^"<>&]*")*>'
_ROOT_END = "</div>"
FLAT = rf"^{_ROOT}(?:{_BLOCK}|{_LIST})*{_ROOT_END}$"
# Left to the walker: two lists in a row need different markers, a `#` at the end of a heading a backslash.
_NOT_FLAT = [f"</{first}><{second}" for first in ("ul", "ol") for second in ("ul", "ol")] + ["#</h"]

_FENCE, _LIST_START, _ITEM, _LIST_END = "\x01", "\x02", "\x05", "\x06"
_REPLACEMENTS = {
    "</p></li></ul>": f"{_LIST_END}\n\n",
    "</p></li></ol>": f"{_LIST_END}\n\n",
    "</p></li>": "\n\n",
    "</li></ul>": f"{_LIST_END}\n\n",
    "</li></ol>": f"{_LIST_END}\n\n",
    "</li>": "\n",
    "<ul>": f"{_LIST_START}-",
    "<ol>": f"{_LIST_START}1",
    '<ol start="': _LIST_START,
    '"><li><p>': _ITEM,
    '"><li>': _ITEM,
    "<li><p>": _ITEM,
    "<li>": _ITEM,
    "<p>": "",
    "</p>": "\n\n",
    **{f"<h{level}>": f"{'#' * level} " for level in range(1, 7)},
    **{f"</h{level}>": "\n\n" for level in range(1, 7)},
    **{f"<hr{end}>": "---\n\n" for end in ("", "/", " /")},
    **{f"<br{end}>\n": "  \n" for end in ("", "/", " /")},
    PLACE: f"{_FENCE}\n\n",
    "<strong>": "**",
    "</strong>": "**",
    "<em>": "*",
    "</em>": "*",
    "<code>": "`",
    "</code>": "`",
    "&lt;": "<",
    "&gt;": ">",
    "&quot;": '"',
    "&amp;": "&",
    "&#39;": "'",
    "&#x27;": "'",
}


def indices_with_code(answers: Sequence[str]) -> list[int]:
    """Return the indices of answers with a code block."""
    return _column(answers).str.contains("<pre", literal=True).arg_true().to_list()


@keep_patterns
def convert(answers: Sequence[str], blocks: Sequence[Sequence[Block]]) -> list[str | None]:
    """Return the markdown of each flat answer, None for the others; `blocks`: the code blocks extracted from each."""
    column = _column(answers)
    flat = column.str.contains(FLAT) & ~column.str.contains_any(_NOT_FLAT)
    converted = (
        pl.select(pl.when(flat).then(column))
        .to_series()
        .str.replace_many(list(_REPLACEMENTS), list(_REPLACEMENTS.values()), leftmost=True)
    )
    return [
        None if text is None else _finish(text, extracted)
        for text, extracted in zip(converted.to_list(), blocks, strict=True)
    ]


def _column(answers: Sequence[str]) -> pl.Series:
    """Return the answers as a column; None for an answer with a lone surrogate, which Polars cannot store."""
    try:
        return pl.Series(answers, dtype=pl.String)
    except UnicodeEncodeError:
        return pl.Series([text if _is_encodable(text) else None for text in answers], dtype=pl.String)


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _finish(text: str, blocks: Sequence[Block]) -> str:
    """Remove the root element, write list markers, and insert the code blocks."""
    text = text[text.find(">") + 1 : -len(_ROOT_END)]
    if _LIST_START in text:
        before, *lists = text.split(_LIST_START)
        text = "".join((before, *map(_list, lists)))
    text = text.rstrip("\n")
    if not blocks:
        return text
    between = text.split(_FENCE)
    return "".join(part for pair in zip(between, (*(b.fence() for b in blocks), ""), strict=True) for part in pair)


def _list(text: str) -> str:
    """Return one list and the text after it; `text` starts with a dash or the first number."""
    content, _, after = text.partition(_LIST_END)
    start, *items = content.split(_ITEM)
    gap = 2 if "\n\n" in content else 1
    if content.count("\n") > gap * (len(items) - 1):  # an item of several lines
        items = [_indent(item, 2 if start == "-" else len(f"{n}. ")) for n, item in _number(items, start)]
    if start == "-":
        return f"- {'- '.join(items)}{after}"
    return "".join([*[f"{number}. {item}" for number, item in _number(items, start)], after])


def _number(items: list[str], start: str) -> Iterator[tuple[int, str]]:
    return enumerate(items, 1 if start == "-" else int(start))


def _indent(item: str, width: int) -> str:
    lines = item.rstrip("\n")
    return lines.replace("\n", "\n" + " " * width) + item[len(lines) :]
