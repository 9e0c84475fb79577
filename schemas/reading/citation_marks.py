"""Repair what ChatGPT's own page shows in place of text: marks of citations, and links into its sandbox."""

from __future__ import annotations

import re
from collections.abc import Mapping

from curate.schemas.conversation import EXCERPT, Edit
from curate.schemas.reading.values import is_json_list

# U+E200 opens a mark, U+E202 separates its fields, U+E201 closes it; an answer that was cut off may not close one.
_MARK = re.compile("\ue200([^\ue200\ue201\ue202]*)((?:\ue202[^\ue200\ue201\ue202]*)*)(?:\ue201|(?=\\s|$|\ue200))")
_STRAY = re.compile("[\ue200-\ue206]")
_BRACKETS = re.compile(r"【\d+(?::\d+)?†[^【】\n]{0,200}】")  # 【12†L3-L5】, 【3:0†source】
_SANDBOX_LINK = re.compile(r"!?\[([^\[\]\n]*)\]\(sandbox:[^()\s]*(?:\([^()\s]*\)[^()\s]*)*\)")
_SANDBOX_PATH = re.compile(r"sandbox:(?=/)")
_UTM = re.compile(r"[?&]utm_source=chatgpt\.com(?=[)\s#]|$)")
CONTEXT = 60  # characters of an edit before the first mark
_BEFORE_STOP = re.compile(r"[ \t]+(?=[.,;:!?)。，；：！？]|$)", re.M)


def mend(text: str, metadata: Mapping[str, object]) -> tuple[str, list[Edit]]:
    """Return a text with its marks replaced by the links or words that `metadata` has for them, or cut; and the edits.

    The edits have no message yet.
    """
    edits: list[Edit] = []
    if "\ue200" in text or "【" in text or "\ue201" in text:
        text = _mend_citations(text, _replacements(text, metadata), edits)
    if "sandbox:" in text:
        text = _mend_sandbox(text, edits)
    return text, edits


def _mend_citations(before: str, known: Mapping[str, str], edits: list[Edit]) -> str:
    count = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal count
        count += 1
        own = known.get(match.group())
        return own if own is not None else _words(match)

    text = _STRAY.sub("", _BRACKETS.sub(replace, _MARK.sub(replace, before)))
    if text != before:
        text = _cut_blanks(before, text)
        start = min(position for position in map(before.find, ("\ue200", "\ue201", "【")) if position >= 0)
        edits.append(_edit("citation_marks", max(count, 1), before, text, start))
    return text


def _mend_sandbox(before: str, edits: list[Edit]) -> str:
    """Replace links to files that only ChatGPT's page has by their text."""
    text, links = _SANDBOX_LINK.subn(r"\1", before)
    text, paths = _SANDBOX_PATH.subn("", text)
    if text != before:
        edits.append(_edit("sandbox_links", links + paths, before, text, before.find("sandbox:")))
    return text


def _edit(rule: str, count: int, before: str, after: str, place: int) -> Edit:
    start = max(0, place - CONTEXT)
    return Edit(rule, None, count, before[start : start + EXCERPT], after[start : start + EXCERPT])


def _words(match: re.Match[str]) -> str:
    """Return the words that a mark itself holds: an entity's name or a link's text; empty for a mere reference."""
    if match.re is not _MARK:
        return ""
    fields = match.group(2).split("\ue202")[1:]
    if match.group(1) == "url" and fields:
        return f"[{fields[0]}]({fields[1]})" if len(fields) > 1 and fields[1].startswith("http") else fields[0]
    if match.group(1) == "entity" and fields and is_json_list(fields[0]):
        names = re.findall(r'"((?:[^"\\]|\\.)*)"', fields[0])
        return names[1] if len(names) > 1 else ""
    return ""


def _cut_blanks(before: str, text: str) -> str:
    """Cut the blanks that a mark leaves before a stop or at the end of a line, unless the text had such blanks."""
    return text if _BEFORE_STOP.search(before) else _BEFORE_STOP.sub("", text)


def _replacements(text: str, metadata: Mapping[str, object]) -> dict[str, str]:
    """Return the text for each mark that the metadata knows: as links in markdown."""
    found: dict[str, str] = {}
    for citation in _objects(metadata.get("citations")):
        start, stop, source = citation.get("start_ix"), citation.get("end_ix"), citation.get("metadata")
        if isinstance(start, int) and isinstance(stop, int) and isinstance(source, dict):
            mark = text[max(start, 0) : max(stop, 0)]
            if link := _link(source):
                found[mark] = link
    for reference in _objects(metadata.get("content_references")):
        matched, words = reference.get("matched_text"), reference.get("alt")
        if isinstance(matched, str) and matched.strip():
            has_words = isinstance(words, str) and bool(words.strip())
            if shown := str(words) if has_words else _links(reference.get("items")):
                found[matched] = _UTM.sub("", shown)
    return found


def _objects(value: object) -> list[dict[str, object]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _links(items: object) -> str:
    return ", ".join(filter(None, map(_link, _objects(items))))


def _link(source: Mapping[str, object]) -> str:
    url, title = source.get("url"), source.get("title")
    if not isinstance(url, str) or not url.startswith("http"):
        return ""
    name = title if isinstance(title, str) and title.strip() else url
    return f"([{name.replace('[', '(').replace(']', ')')}]({_UTM.sub('', url)}))"
