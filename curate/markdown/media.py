"""Formulas, links, citations, images, superscripts and subscripts."""

from __future__ import annotations

import re

from curate.markdown.placeholders import LINK
from curate.markdown.tags import Tag, decode_entities
from curate.markdown.walker import Walker, destination

_TRACKING = re.compile(r"(?<=[?&])utm_source=chatgpt\.com(?:&|$|(?=#))")
_DIGITS = "0123456789+-−=()"
_SCRIPTS = {
    "sup": str.maketrans(_DIGITS, "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾"),
    "sub": str.maketrans(_DIGITS, "₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎"),
}
_MORE_SITES = re.compile(r"\s*\+\d+\s*")


def is_formula(tag: Tag) -> bool:
    """Return whether an element is a formula."""
    return (
        tag.name == "math"
        or "katex" in tag.classes
        or "katex-display" in tag.classes
        or tag.attributes.get("role") == "math"
        or "data-math-source" in tag.attributes
    )


def formula(walker: Walker, tag: Tag) -> bool:
    """Write a formula's TeX and skip KaTeX's other copies of it; return False if there is no TeX."""
    end = walker.end_of(tag.name)
    inside = walker.inside(end) if end >= 0 else []
    tex = tag.attributes.get("data-math-source") or tag.attributes.get("aria-label") if inside else ""
    tex = (tex or _annotation(inside)).strip(" \t\n\u200b")
    if not tex:
        return "katex" in tag.classes and _glyphs(walker, inside, end)
    walker.skip_to(end)
    if not any("katex-display" in t.classes or t.attributes.get("display") in ("block", "true") for t, _ in inside):
        walker.write_opaque(f"${tex.replace(chr(10), ' ')}$", walker.inline)
    elif walker.counts["cell"] or walker.heading:
        walker.write_opaque(f"$${tex.replace(chr(10), ' ')}$$", walker.inline)
    else:
        walker.write_block("math", f"$$\n{tex}\n$$")
    return True


def _glyphs(walker: Walker, inside: list[tuple[Tag, str]], end: int) -> bool:
    """Write the visible text of a formula without TeX, and skip its MathML copy."""
    start = next((index for index, (tag, _) in enumerate(inside) if "katex-html" in tag.classes), -1)
    if start < 0:
        return False
    shown = decode_entities("".join(text for _, text in inside[start:])).replace("\u200b", "")
    walker.inline.append(shown)
    walker.skip_to(end)
    return True


def _annotation(inside: list[tuple[Tag, str]]) -> str:
    parts: list[str] = []
    for tag, text in inside:
        if tag.name == "/annotation":
            return decode_entities("".join(parts))
        if parts or (tag.name == "annotation" and tag.attributes.get("encoding") == "application/x-tex"):
            parts.append(text)
    return ""


# Links and images


def link(walker: Walker, tag: Tag) -> None:
    """Open a link; without a target it is plain text."""
    if any(placeholder == LINK for placeholder, _, _ in walker.open):
        walker.close_inline(LINK)
    target = remove_tracking(tag.attributes.get("href", ""))
    if target:
        walker.open_inline(LINK, target)


def end_link(walker: Walker, tag: Tag) -> None:
    walker.close_inline(LINK)


def remove_tracking(target: str) -> str:
    """Drop the query parameter that ChatGPT adds to links."""
    if "utm_source=chatgpt.com" not in target:
        return target
    return re.sub(r"[?&](?=#|$)", "", _TRACKING.sub("", target))


def image(walker: Walker, tag: Tag) -> None:
    source = tag.attributes.get("src", "")
    if source.lower().startswith(("http://", "https://")):
        text = re.sub(r"([\[\]\\])", r"\\\1", " ".join(tag.attributes.get("alt", "").split()))
        walker.write_opaque(f"![{text}]({destination(source)})", walker.inline)
    else:
        walker.write_opaque("[image]", walker.inline)


def citation(walker: Walker, tag: Tag) -> None:
    """Write a citation pill, which shows a source's site and the number of further sites, as a link in parentheses."""
    end = walker.end_of(tag.name)
    if end < 0:
        return
    inside = walker.inside(end)
    if walker.citations == "links":
        target = next((t.attributes["href"] for t, _ in inside if t.name == "a" and "href" in t.attributes), "")
        names = [decode_entities(text).strip() for _, text in inside if not _MORE_SITES.fullmatch(text)]
        site = re.sub(r"\s*\+\d+$", "", " ".join(filter(None, names)))
        if target:
            space = "" if not walker.inline or walker.inline[-1][-1:].isspace() else " "
            walker.inline.append(space)
            walker.write_opaque(f"([{site}]({destination(remove_tracking(target))}))", walker.inline)
        elif site:
            walker.inline.append(f" ({site})")
    walker.skip_to(end)


def script(walker: Walker, tag: Tag) -> None:
    """Write `sup` and `sub` of digits as Unicode characters, so that 10⁶ does not become 106; "1st" is unchanged."""
    end = walker.end_of(tag.name)
    text = walker.tokens[walker.tag_index + 1].strip()
    if end == walker.tag_index + 2 and text and not text.strip(_DIGITS):
        walker.inline.append(text.translate(_SCRIPTS[tag.name]))
        walker.skip_to(end)
