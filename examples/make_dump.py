"""Write `sharegpt_dump.json`: about 200 ShareGPT rows with every kind of dirt found in real dumps.

    python examples/make_dump.py

The conversations come from `source/*.md` (written by hand) and `bulk.py` (generated from tables), their HTML from
`layouts.py`. `dump_kinds.json` lists the kind of dirt in each row. The output is the same bytes every time.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))  # also when it is run from elsewhere or loaded by a test

from bulk import Chat, all_chats, chat, element_turns  # noqa: E402
from dirt import IN_PLACE, ROOT, Row, digest  # noqa: E402
from layouts import LAYOUTS, render  # noqa: E402

SOURCES = ("en", "de", "es", "ja", "ko", "html")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def share_id(name: str) -> str:
    """Return an id of seven letters and digits, like ShareGPT's."""
    number = digest(name)
    return "".join(LETTERS[number // 62**place % 62] for place in range(7))


def read_source(path: Path) -> Iterator[Chat]:
    """Yield the conversations of one file of `source/`.

    They open with `%% chat NAME [LAYOUT] [model=…]`; messages with `%% user`, `%% assistant` (markdown to be
    rendered) or `%% assistant html` (an answer's page as it stands).
    """
    for block in re.split(r"^%% chat ", path.read_text(encoding="utf-8"), flags=re.M)[1:]:
        head, *rest = re.split(r"^%% (user|assistant html|assistant)\n", block, flags=re.M)
        name, *words = head.split()
        roles = ({"user": "human", "assistant": "gpt", "assistant html": "html"}[role] for role in rest[::2])
        texts = (text.strip("\n") for text in rest[1::2])
        model = next((word.removeprefix("model=") for word in words if word.startswith("model=")), None)
        layout = next((word for word in words if word in LAYOUTS), "v3")
        yield Chat(name, layout, tuple(zip(roles, texts, strict=True)), model)


def long_chat() -> Chat:
    """Return a chat of 31 exchanges, more than 2048 tokens."""
    opening = ("I want to learn the elements for an exam.", "Gladly. Name one, and I tell you what to remember.")
    return chat("long-elements", "v3", *opening, *(text for pair in element_turns() for text in pair))


def chats() -> list[Chat]:
    """Return every conversation before any dirt is added."""
    written = (chat for name in SOURCES for chat in read_source(FOLDER / "source" / f"{name}.md"))
    return [*written, *all_chats(), long_chat()]


def to_row(chat: Chat) -> Row:
    """Return the ShareGPT row: prompts as plain text, answers as HTML."""
    turns = []
    for role, text in chat.turns:
        value = render(text, chat.layout) if role == "gpt" else text
        turns.append({"from": "human" if role == "human" else "gpt", "value": value})
    row: Row = {"id": share_id(chat.name), "conversations": turns}
    return {**row, "model": chat.model} if chat.model else row


def plain(name: str, *texts: str) -> Row:
    """Make a row whose answers are stored as text, not HTML."""
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"id": share_id(name), "conversations": turns}


def answered(name: str, *texts: str) -> Row:
    """Make a row whose answers are rendered as HTML."""
    return to_row(chat(name, "v3", *texts))


def own_rows() -> Iterator[tuple[str, Row]]:
    """Yield (kind, row) for dirt that needs its own conversation."""
    yield "single_turn", plain("single-1", "Can you help me with my garden?")
    yield "single_turn", plain("single-2", "¿Me ayudas con un poema?")
    yield "no_turns", {"id": share_id("empty-1"), "conversations": []}
    yield "no_turns", {"id": share_id("empty-2"), "conversations": []}
    yield "too_short", plain("short-1", "hi", "Hello!")
    yield "answer_is_text", plain("plain-1", "Name three string instruments.", "Violin, cello and guitar.")
    yield (
        "answer_is_markdown",
        plain(
            "plain-2",
            "Two ways to make tea?",
            "1. **Hot**: pour boiling water on the leaves, wait 3 minutes.\n"
            "2. **Cold**: leave them in cold water overnight.\n\nIn a script that would be `sleep 180`.",
        ),
    )
    yield (
        "plain_regenerate_noise",
        plain("plain-3", "How many legs does a spider have?", "1 / 2\n\nEight. Insects have six."),
    )
    yield (
        "vendor_mention",
        answered(
            "vendor-1",
            "Who made you?",
            "I am ChatGPT, a language model trained by OpenAI. I can answer questions and help with writing.",
        ),
    )
    yield (
        "vendor_mention_in_prompt",
        answered(
            "vendor-2",
            "Write a headline about the release of ChatGPT in November 2022.",
            "**A chatbot that writes essays: curious crowds bring its servers down**",
        ),
    )
    yield (
        "repeated_digits",
        answered(
            "digits-1",
            "Write one billion in digits, and the same in Roman style if that works.",
            "In digits it is 1000000000. Roman numerals have no usual form for it; 1,000 is M, and larger ones need a bar.",
        ),
    )
    yield (
        "escape_codes",
        answered(
            "escape-1",
            "My log holds \u001b[31mERROR\u001b[0m and \u001b]0;title\u0007, what is that?",
            "Those are terminal escape codes. `ESC[31m` switches to red, `ESC[0m` back, and the second one sets the "
            "window's title. Remove them with:\n\n```bash\nsed 's/\\x1b\\[[0-9;]*m//g' app.log\n```",
        ),
    )
    yield (
        "control_tokens",
        answered(
            "control-1",
            "What do <s> and </s> and <|eot_id|> mean in a prompt?",
            "They mark borders: `<s>` the beginning and `</s>` the end of a text, `<|eot_id|>` the end of one turn.",
        ),
    )
    yield (
        "markup_in_prompt",
        answered(
            "markup-1",
            'Why does <![CDATA[ fail in HTML? And how do I close <div class="a" and <span x="?',
            "`CDATA` belongs to XML; an HTML parser reads it as a comment. As for the tags: finish the quotes first, then "
            "write `>`.",
        ),
    )
    yield (
        "markup_in_prompt",
        answered(
            "markup-2",
            "explain &amp;lt; and &nbsp; in **plain** words_with_underscores",
            "`&amp;` stands for an ampersand, so `&amp;lt;` shows as `&lt;`. `&nbsp;` is a space that doesn't break the line.",
        ),
    )
    yield "list_indices", _restarted_list()
    yield (
        "fraction_in_prompt",
        answered(
            "fraction-1",
            "What share is 1 / 2 of the class if the class has 28 pupils?",
            "Half of 28 is 14. So 14 pupils.",
        ),
    )


def _restarted_list() -> Row:
    """Return an answer whose list restarts at 1 after each code block."""
    steps = (("Make the folder:", "mkdir notes"), ("Enter it:", "cd notes"), ("Start:", "git init"))
    parts = (
        f"<ol><li>{text}</li></ol>" + render(f"```bash\n{code}\n```").removeprefix(ROOT).removesuffix("</div>")
        for text, code in steps
    )
    answer = f"{ROOT}<p>Three steps:</p>{''.join(parts)}<p>That is all.</p></div>"
    return plain("indices-1", "Start a git repository in a new folder notes, step by step.", answer)


def copies(clean: dict[str, Row]) -> Iterator[tuple[str, Row]]:
    """Yield (kind, row) for rows that repeat other rows, completely or in part."""
    for name in ("tides", "country-4-ko"):
        yield "duplicate_row", clean[name]
    for name in ("de-miete", "quadratic", "units-0"):
        yield "duplicate_new_id", {**clean[name], "id": share_id(name + " again")}
    for name, text in (("es-sol", "¿Por qué el mar es salado?"), ("planets-table", "Which planet has the most moons?")):
        answer = {
            "es-sol": "Porque los ríos llevan sales de las rocas al mar, y allí se quedan cuando el agua se evapora."
        }
        known = answer.get(name, "Saturn, with well over a hundred known moons. Jupiter comes second.")
        yield "same_id_other_content", {**answered(name + " other", text, known), "id": clean[name]["id"]}
    for name in ("quote", "de-fahrrad-2"):
        longer = clean["quote"] if name == "quote" else clean["country-1-de"]
        row = {**longer, "id": share_id(name + " prefix"), "conversations": longer["conversations"][:2]}
        yield "prefix_of_another", row


def malformed(clean: dict[str, Row]) -> Iterator[tuple[str, object]]:
    """Yield (kind, row) for malformed rows, each kind once."""
    bases = (clean[f"train-{number}-{language}"] for language in ("de", "es", "ja", "ko") for number in range(4))

    def base(kind: str) -> Row:
        made = copy.deepcopy(next(bases))
        ask = {"from": "human", "value": f"In a chat dump, what does the defect {kind!r} look like?"}
        reply = {"from": "gpt", "value": ROOT + "<p>Like the one in this very conversation.</p></div>"}
        thanks = {"from": "human", "value": f"Thank you, now I know what {kind!r} is."}
        end = {"from": "gpt", "value": ROOT + "<p>You are welcome.</p></div>"}
        return {"id": share_id(kind), "conversations": [ask, reply, thanks, end, *made["conversations"]]}

    yield "row_null", None
    yield "row_string", "conversations"
    yield "row_number", 42
    yield "row_list", ["human", "gpt"]
    row = base("null_turn")
    yield "null_turn", {**row, "conversations": [*row["conversations"], None]}
    row = base("text_turn")
    yield "text_turn", {**row, "conversations": [*row["conversations"], "continue"]}
    for kind, value in (("null_value", None), ("number_value", 42), ("list_value", [{"type": "text", "text": "hi"}])):
        row = base(kind)
        row["conversations"][1]["value"] = value
        yield kind, row
    for kind, key in (("missing_value", "value"), ("missing_from", "from")):
        row = base(kind)
        del row["conversations"][1][key]
        yield kind, row
    row = base("missing_id")
    yield "missing_id", {"conversations": row["conversations"]}
    yield "int_id", {**base("int_id"), "id": 1448521}
    yield "list_id", {**base("list_id"), "id": ["a", "b"]}
    yield "missing_conversations", {"id": share_id("missing_conversations"), "title": "New chat"}
    yield "null_conversations", {"id": share_id("null_conversations"), "conversations": None}
    row = base("dict_conversations")
    yield "dict_conversations", {**row, "conversations": {str(i): turn for i, turn in enumerate(row["conversations"])}}
    yield from odd_characters()


def odd_characters() -> Iterator[tuple[str, object]]:
    """Yield (kind, row) for rows that break a strict JSON or HTML parser."""
    yield (
        "lone_surrogate_prompt",
        answered(
            "surrogate-1",
            "Is \ud83d a whole emoji?",
            "No, it is only the first half of one: the second half is missing.",
        ),
    )
    yield (
        "lone_surrogate_answer",
        answered("surrogate-2", "Give me an emoji for rain.", "Here you are: \udf27 (it may show as a box)."),
    )
    row = answered("nan-1", "What does NaN stand for?", "Not a number: the result of 0 divided by 0 in floating point.")
    yield "nan", {**row, "created": float("nan"), "score": float("inf")}
    deep = ROOT + "<ul><li>" * 300 + "the bottom of the well" + "</li></ul>" * 300 + "</div>"
    row = plain("deep-1", "Show me 300 nested lists.", deep)
    yield "deep_nesting", row


def all_rows() -> list[tuple[str, str, object]]:
    """Return (sort key, kind, row) of every row; rows without dirt have the kind `clean`."""
    rows = {chat.name: to_row(chat) for chat in chats()}
    kinds = {name: kind for kind, (names, _) in IN_PLACE.items() for name in names}
    for names, change in IN_PLACE.values():
        for name in names:
            change(rows[name])
    made: list[tuple[str, str, object]] = [(name, kinds.get(name, "clean"), row) for name, row in rows.items()]
    made[-1] = (*made[-1][:1], "very_long", made[-1][2])
    extra = [*own_rows(), *copies(rows), *malformed(rows)]
    made += [(f"{kind} {number}", kind, row) for number, (kind, row) in enumerate(extra)]
    return sorted(made, key=lambda entry: digest(entry[0]))


def to_json(row: object) -> str:
    """Return one row as JSON on one line; escape only what UTF-8 cannot encode."""
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(row)
    return text


def build() -> tuple[str, str]:
    """Return the dump and a table of the dirt in each row (from 0), as JSON texts."""
    rows = all_rows()
    kinds: dict[str, list[int]] = {}
    for index, (_, kind, _) in enumerate(rows):
        kinds.setdefault(kind, []).append(index)
    dump = "[\n" + ",\n".join(to_json(row) for _, _, row in rows) + "\n]\n"
    table = ",\n".join(f"  {json.dumps(kind)}: {json.dumps(kinds[kind])}" for kind in sorted(kinds))
    return dump, "{\n" + table + "\n}\n"


def main() -> None:
    """Write both files to the folder of this script."""
    dump, table = build()
    (FOLDER / "sharegpt_dump.json").write_text(dump, encoding="utf-8", newline="\n")
    (FOLDER / "dump_kinds.json").write_text(table, encoding="utf-8", newline="\n")
    print(f"{dump.count(chr(10)) - 2} rows, {len(dump.encode()):,} bytes")


if __name__ == "__main__":
    main()
