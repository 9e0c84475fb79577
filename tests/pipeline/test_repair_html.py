"""HTML in answers: ChatGPT's wrapper after and before words of its page, other sites' HTML, and what stays text."""

from __future__ import annotations

import pytest

from curate import markdown
from curate.errors import RecordError
from curate.pipeline import repair_html, repair_turns
from curate.pipeline.repair_turns import RepairSettings
from curate.schemas.conversation import Conversation, Message

ROOT = '<div class="markdown prose w-full break-words light">'
WRAPPED = f"{ROOT}<p>Rye is <strong>a grain</strong>.</p></div>"
TEXT = "Rye is **a grain**."


def converted(answer: str, html: str = "auto", *, chrome: bool = True) -> Conversation:
    """Convert one answer, and put its conversation in order."""
    conversation = Conversation(None, [Message("user", "What is rye?"), Message("assistant", answer)])
    settings = RepairSettings(html=html, chrome=chrome)  # type: ignore[arg-type]
    repair_html.convert([conversation], settings)
    repair_turns.order(conversation, settings)
    return conversation


def rules(conversation: Conversation) -> list[str]:
    return [edit.rule for edit in conversation.edits]


PAGE_WORDS = [
    "Thought for 12 seconds",
    "Thought for 1m 3s",
    "Thought for a few seconds",
    "Reasoned about rye and other grains for 4 seconds",
    "Finished browsing\n",
    "ChatGPT\n",
    "ChatGPT said:\n\n",
    "Searched 5 sites ",
    "Searched the web",
    "Used Browse with Bing",
    "Used Wolfram Alpha\n",
    "Model: GPT-4\n\n",
    "Model: Default (GPT-3.5)\n\n",
    "ChatGPT\n2 / 3\n",
    "Analyzing…",
    "\u200bGPT-4 ",
]


@pytest.mark.parametrize("words", PAGE_WORDS)
def test_words_of_the_page_before_a_wrapper_are_cut_by_a_named_edit(words: str) -> None:
    conversation = converted(words + WRAPPED)
    assert conversation.messages[1].content == TEXT
    assert conversation.messages[1].was_html
    assert rules(conversation) == ["chrome", "html_to_markdown"]


@pytest.mark.parametrize("words", ["Copy code", "\n2 / 2", "Regenerate response", "Copy\nEdit\nShare", "Read aloud"])
def test_and_so_are_those_after_it(words: str) -> None:
    conversation = converted(WRAPPED + words)
    assert conversation.messages[1].content == TEXT
    assert rules(conversation) == ["chrome", "html_to_markdown"]
    assert conversation.edits[0].before == words


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (f"Here you go: {WRAPPED}", f"Here you go:\n\n{TEXT}"),
        (f"{WRAPPED}You said more", f"{TEXT}\n\nYou said more"),
        (f"I * think_so < 3.\n\n{WRAPPED}", f"I * think_so < 3.\n\n{TEXT}"),  # text is not escaped as HTML is
        (f"Thought for 3s{WRAPPED}Searched the web{WRAPPED}Copy", f"{TEXT}\n\n{TEXT}"),
        (f"Well.{ROOT}<p>a</p><div><p>b</p></div></div>So.", "Well.\n\na\n\nb\n\nSo."),
        (f"Cut off: {ROOT}<p>Rye is", "Cut off:\n\nRye is"),
        (f"Nested{ROOT}<p>a</p>{WRAPPED}</div>", f"Nested\n\na\n\n{TEXT}"),
        (f"Upper {WRAPPED.replace('div', 'DIV')}", f"Upper\n\n{TEXT}"),
        (f"<b>Bold</b> words {WRAPPED}", f"**Bold** words\n\n{TEXT}"),
    ],
)
def test_other_words_stay_as_text(answer: str, expected: str) -> None:
    assert converted(answer).messages[1].content == expected


def test_nothing_is_cut_where_chrome_is_off() -> None:
    conversation = converted(f"ChatGPT\n{WRAPPED}Copy", chrome=False)
    assert conversation.messages[1].content == f"ChatGPT\n\n{TEXT}\n\nCopy"
    assert rules(conversation) == ["html_to_markdown"]


@pytest.mark.parametrize(
    "answer",
    [
        f"Answers are in `{ROOT}`.",
        f"Like this:\n\n```html\n{WRAPPED}\n```\nThat is all.",
        f"Like this:\n\n~~~\n{WRAPPED}",
        f"> ```html\n> {WRAPPED}\n> ```",
        'Use <div class="markdown"> for your readme.',  # not ChatGPT's
        "markdown prose <div>",
    ],
)
def test_a_wrapper_in_code_is_left_alone(answer: str) -> None:
    conversation = converted(answer)
    assert conversation.messages[1].content == answer
    assert rules(conversation) == []


@pytest.mark.parametrize(
    "answer",
    [
        f"ChatGPT puts its answers into {ROOT} for styling.",
        f"It is {ROOT}…</div>, with dots.",
        f"See {ROOT}",
    ],
)
def test_a_wrapper_that_cannot_be_converted_is_never_trained_on(answer: str) -> None:
    with pytest.raises(RecordError) as error:
        converted(answer)
    assert error.value.rule == "raw_html"
    assert "markdown prose" in error.value.evidence
    assert converted(answer, "never").messages[1].content == answer  # as was asked


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("<p>Rye is <b>a grain</b>.</p>", TEXT),
        ("Rye is <b>a grain</b>.", TEXT),
        ("<ul><li>a</li><li>b</li></ul>", "- a\n- b"),
        ("a<br>b", "a\nb"),
        ("<pre><code>x = 1\n</code></pre>", "```\nx = 1\n```"),
        ("AT&amp;T\n\nand 1 &lt; 2", "AT&T\n\nand 1 < 2"),
        (f"Thought for 3s{WRAPPED}", TEXT),
        (f"In {ROOT}words</div> here", "In\n\nwords\n\nhere"),
    ],
)
def test_html_of_other_sites_is_converted_if_the_recipe_says_so(answer: str, expected: str) -> None:
    conversation = converted(answer, "always")
    assert conversation.messages[1].content == expected
    assert "html_to_markdown" in rules(conversation)
    if ROOT not in answer:
        assert converted(answer).messages[1].content == answer


@pytest.mark.parametrize(
    "answer",
    [
        "Plain *markdown*\n\nwith 1 < 2 and x > y.",
        "Use `<b>` for bold.",
        "```html\n<p>x</p>\n```\nThat is a paragraph, `&amp;` is an entity.",
        "vector<int> and List<String>",
    ],
)
def test_text_and_code_without_html_stay_as_they_are(answer: str) -> None:
    assert converted(answer, "always").messages[1].content == answer


def test_prompts_are_never_html() -> None:
    prompt = f"Thought for 12 seconds{WRAPPED}"
    conversation = Conversation(None, [Message("user", prompt), Message("assistant", "It is HTML, I think.")])
    repair_html.convert([conversation], RepairSettings(html="always"))
    assert conversation.messages[0].content == prompt


@pytest.mark.parametrize(
    "text",
    [
        f"x {ROOT}" * 20_000,
        f"`{ROOT}" * 20_000,
        f"x {ROOT}<p>" * 20_000,
        f"```\n{ROOT}\n" * 10_000,
        '<div class="markdown ' * 50_000,
        "Model: " * 30 + WRAPPED,
        f"x{ROOT}" + "<div>" * 100_000,
    ],
    ids=["openings", "backticks", "paragraphs", "fences", "cut tags", "words", "divs"],
)
def test_hostile_text_is_read_to_its_end(text: str) -> None:
    if markdown.has_wrapper(text):
        for segment in markdown.split_wrappers(text):
            markdown.is_of_the_page(segment.text)
    markdown.has_html(text)
