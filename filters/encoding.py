"""Filters on what damage left in texts: mojibake, characters that nobody sees, and marks of a prompt template.

Each has `action`: "flag" only measures, in a column of the set, "repair" mends the text outside code (all but the
last), "drop" rejects the conversation. Results of tools are left alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

import polars as pl

from curate.errors import RecipeError
from curate.filters.examples import Examples, chat
from curate.filters.registry import reject, repair, rule, signal
from curate.filters.repairs import repair_texts
from curate.filters.structure import FENCED
from curate.schemas.conversation import Conversation, Message

ACTIONS = ("flag", "repair", "drop")
CODE = FENCED + r"|`[^`\n]+`"
# UTF-8 read as Windows-1252 or Latin-1: a lead byte and continuation bytes. Quotes and dashes after a letter with an
# accent are also plain text ("café”…"), so at least one byte is another. Then: UTF-8 read as Windows-1251 (Russian).
_PLAIN = r"‘’“”–—…•‚„‹›«»°ºª™®©\u00a0"
_OTHER = r"\u0080-\u009f¡-§¨¬\u00ad¯±-¹¼-¿€ƒ†‡ˆ‰ŠŒŽ˜šœžŸ"
_1251 = r"\u0402-\u040f\u0452-\u045f°±µ·»…†‡€‰‹‘’“”•–—™›¤¦§©«¬®Ґґ\u00a0"
MOJIBAKE = (
    rf"[ÂÃÐÑ][{_OTHER}©®«»°º\u00a0]|[à-ï](?:[{_OTHER}][{_PLAIN}{_OTHER}]|[{_PLAIN}][{_OTHER}])|ðŸ"
    rf"|(?:[РС][{_1251}]){{2,}}"
)
OPENING, CLOSING = frozenset("\u202a\u202b\u202d\u202e\u2066\u2067\u2068"), frozenset("\u202c\u2069")
# Control characters but tab and line ends, soft hyphen, zero-width space and word joiner, byte-order mark. Zero-width
# joiners stay: emoji, Persian and Indic scripts need them.
HIDDEN = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u180e\u200b\u2060\ufeff"
BIDI = r"\u202a-\u202e\u2066-\u2069"

# Control tokens of released models (ChatML, LLaMA 2 and 3, Mistral, Gemma, Phi, DeepSeek, GPT), not in inline code
CONTROL = (
    r"<\|(?:im_start|im_end|im_sep|endoftext|endofprompt|begin_of_text|end_of_text|start_header_id|end_header_id|eot_id"
    r"|eom_id|python_tag|system|user|assistant|end|start|return|call|channel|message|constrain|pad|fim_\w+)\|>"
    r"|<[|｜](?:User|Assistant|begin▁of▁sentence|end▁of▁sentence)[|｜]>"
    r"|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|\[(?:AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]"
)
# A line that begins with a label: Alpaca's and Vicuna's headings, or a speaker on its own
LABEL = (
    r"(?m)^#{2,3} ?(?:Instruction|Response|Input|Human|Assistant|User|System):[ \t]*$|^### ?(?:Human|Assistant): "
    r"|^(?:USER|ASSISTANT|Human|Assistant): "
)


@signal(mojibake=pl.UInt32)
def garbled_texts(frame: pl.DataFrame) -> pl.DataFrame:
    """Count the prompts and answers with mojibake: text in UTF-8 that was read as another encoding ("donâ€™t")."""
    return frame.select(mojibake=_count(MOJIBAKE))


@signal(hidden_characters=pl.UInt32)
def hidden_texts(frame: pl.DataFrame) -> pl.DataFrame:
    """Count the prompts and answers with control characters, zero-width spaces, or unpaired marks of direction."""
    counts = frame.select(_count(f"[{HIDDEN}{BIDI}]").alias("counts"), (_count(f"[{BIDI}]") > 0).alias("marked"))
    marked = counts["marked"].arg_true()  # few
    rows = frame.select(pl.concat_list("prompts", "answers")).to_series().gather(marked)
    exact = [sum(map(_has_hidden, texts)) for texts in rows.to_list()]
    return pl.DataFrame({"hidden_characters": counts["counts"].scatter(marked, exact)})


def _has_hidden(text: str) -> bool:
    """Return whether a text has a hidden character, or a direction mark without its partner in the line."""
    return bool(re.search(f"[{HIDDEN}]", text)) or any(_pair(line) != line for line in text.split("\n"))


def _count(pattern: str) -> pl.Expr:
    texts = pl.concat_list("prompts", "answers")
    return texts.list.eval(pl.element().str.contains(pattern)).list.sum().fill_null(0).cast(pl.UInt32)


@rule(
    examples=Examples(
        chat("What is naÃ¯ve?", "It isnâ€™t clever."),
        chat("What is naïve?", "It isn’t clever: “CAFÉ”, “PÃO”, Île-de-France."),
        settings={"action": "drop"},
    )
)
def mojibake(action: str = "flag") -> pl.Expr:
    """Flag, mend or drop conversations with mojibake: UTF-8 that was read as another encoding ("donâ€™t").

    `action = "flag"` only measures, in the column `mojibake`; `repair` mends what ftfy can, outside code; `drop`
    rejects the conversation.
    """
    _check("mojibake", action)
    damaged = pl.col("mojibake")
    evidence = _first_match(MOJIBAKE)
    return reject((damaged > 0) & (action == "drop"), "mojibake in {count} messages", evidence=evidence, count=damaged)


@rule(
    examples=Examples(
        chat("Say a word.", "zero\u200bwidth"),
        chat("Say a word.", "می\u200cخواهم 👩\u200d🔬"),
        settings={"action": "drop"},
    )
)
def hidden_characters(action: str = "flag") -> pl.Expr:
    """Flag, remove or drop control characters, zero-width spaces, and marks of writing direction without a partner.

    `action = "flag"` only measures, in the column `hidden_characters`; `repair` removes them outside code, keeps pairs
    of direction marks, and composes letters with their accents (NFC); `drop` rejects the conversation.
    """
    _check("hidden_characters", action)
    count = pl.col("hidden_characters")
    evidence = _first_match(f"[{HIDDEN}{BIDI}]")
    return reject((count > 0) & (action == "drop"), "in {count} messages", evidence=evidence, count=count)


def _check(name: str, action: str) -> None:
    if action not in ACTIONS:
        raise RecipeError(f"filter {name!r}: action = {action!r} is not one of flag, repair, drop")


def _first_match(pattern: str) -> pl.Expr:
    texts = pl.concat_list("prompts", "answers")
    return (
        texts.list.eval(pl.element().str.extract(f"((?s:.){{0,40}}(?:{pattern})(?s:.){{0,40}})"))
        .list.drop_nulls()
        .list.first()
    )


@repair(of="mojibake")
def mend_mojibake(conversations: Sequence[Conversation], action: str = "flag") -> None:
    """Mend mojibake outside code, line by line, with ftfy."""
    if action == "repair":
        repair_texts(conversations, "mojibake", mend, when=_is_written)


@repair(of="hidden_characters")
def remove_hidden(conversations: Sequence[Conversation], action: str = "flag") -> None:
    """Remove characters that nobody sees, outside code, and compose letters with their accents."""
    if action == "repair":
        repair_texts(conversations, "hidden_characters", reveal, when=_is_written)


def mend(texts: list[str]) -> list[str | None]:
    """Return each text with mojibake as it was before, outside code; None for the others."""
    return _change(texts, MOJIBAKE, _fix_lines)


def reveal(texts: list[str]) -> list[str | None]:
    """Return each text with hidden characters without them, outside code; None for those that do not change."""
    return _change(texts, rf"[{HIDDEN}{BIDI}]|\p{{Mn}}", _remove_hidden)


def _is_written(message: Message) -> bool:
    return message.role != "tool"


def _change(texts: list[str], pattern: str, function: Callable[[str], str]) -> list[str | None]:
    """Return each text that has the pattern with all outside code as `function` returns it, None for the others."""
    series = pl.Series(texts, dtype=pl.String)
    damaged = series.str.contains(pattern)
    code = series.filter(damaged).str.extract_all(CODE).to_list()
    changed: list[str | None] = [None] * len(texts)
    for index, blocks in zip(damaged.arg_true(), code, strict=True):
        changed[index] = _outside(texts[index], blocks, function)
    return [None if after == before else after for before, after in zip(texts, changed, strict=True)]


def _outside(text: str, blocks: Sequence[str], function: Callable[[str], str]) -> str:
    """Return a text with all but its blocks of code as `function` returns it."""
    parts: list[str] = []
    position = 0
    for block in blocks:
        start = text.index(block, position)
        parts += function(text[position:start]), block
        position = start + len(block)
    return "".join([*parts, function(text[position:])])


def _fix_lines(text: str) -> str:
    from ftfy import fix_encoding  # late: few texts need it

    return "".join(line if line.isascii() else fix_encoding(line) for line in text.splitlines(keepends=True))


def _remove_hidden(text: str) -> str:
    lines = (_pair(line) for line in re.sub(f"[{HIDDEN}]", "", text).split("\n"))
    return unicodedata.normalize("NFC", "\n".join(lines))


def _pair(line: str) -> str:
    """Return a line without direction marks that have no partner in it (Unicode Annex 9: a paragraph ends them)."""
    if not re.search(f"[{BIDI}]", line):
        return line
    unpaired: set[int] = set()
    open_marks: dict[str, list[int]] = {"\u202c": [], "\u2069": []}
    for index, character in enumerate(line):
        if character in OPENING:
            open_marks["\u2069" if character >= "\u2066" else "\u202c"].append(index)
        elif character in CLOSING and open_marks[character]:
            open_marks[character].pop()
        elif character in CLOSING:
            unpaired.add(index)
    unpaired.update(*open_marks.values())
    return "".join(character for index, character in enumerate(line) if index not in unpaired)


@signal(template_leftovers=pl.UInt32)
def template_texts(frame: pl.DataFrame) -> pl.DataFrame:
    """Count the answers with a control token or a speaker's label of a prompt template, outside code."""
    return frame.select(template_leftovers=_marks().list.len().cast(pl.UInt32).fill_null(0))


@rule(
    examples=Examples(
        chat("Name a river.", "The Nile.<|im_end|>\n<|im_start|>user\nAnother?"),
        chat("What ends a turn in ChatML?", "The token `<|im_end|>` does."),
        settings={"action": "drop"},
    )
)
def template_leftovers(action: str = "flag") -> pl.Expr:
    """Flag or drop conversations in which an answer has what a prompt template left (`<|im_end|>`, `### Assistant:`).

    Code does not count. `action = "flag"` only measures, in the column `template_leftovers`; `drop` rejects the
    conversation.
    """
    if action not in ("flag", "drop"):
        raise RecipeError(f"filter 'template_leftovers': action = {action!r} is not one of flag, drop")
    count = pl.col("template_leftovers")
    return reject(
        (count > 0) & (action == "drop"),
        "a prompt template's marks in {count} answers",
        evidence=_marks().list.first(),
        count=count,
    )


def _marks() -> pl.Expr:
    """Return the first mark of each answer that has one."""
    likely = pl.element().filter(pl.element().str.contains(f"{CONTROL}|{LABEL}"))
    prose = likely.str.replace_all(FENCED, "\n").str.replace_all(r"`[^`\n]+`", "`")
    return pl.col("answers").list.eval(prose.str.extract(f"({CONTROL}|{LABEL})")).list.drop_nulls()
