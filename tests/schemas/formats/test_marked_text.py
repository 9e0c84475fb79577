"""Chats as one text: HH-RLHF, Guanaco, Baize, ChatML, Alpaca's prompts, glaive, MOSS, and logs."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import RecordError
from curate.schemas import formats
from curate.schemas.prompts import INPUT_MARK
from tests.schemas.formats.examples import ANSWER, HH, PROMPT, WORSE, Record, outcome

READ = [("u", PROMPT), ("a", ANSWER)]
IM = "<|im_start|>{}\n{}<|im_end|>\n".format


def text(value: str) -> Record:
    return {"text": value}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        # Guanaco
        (f"### Human: {PROMPT}\n### Assistant: {ANSWER}\n### Human:", READ),
        (f"Be brief.\n### Human: {PROMPT}### Assistant: {ANSWER}", [("s", "Be brief."), *READ]),
        (f"### System: Be brief.### Human: {PROMPT}### Assistant: {ANSWER}", [("s", "Be brief."), *READ]),
        (
            f"### Human: {PROMPT}### Human: Quick!### Assistant: {ANSWER}",
            [("u", PROMPT), ("u", "Quick!"), ("a", ANSWER)],
        ),
        (f"### Human: {PROMPT}### Assistant: {ANSWER}</s>", READ),
        (f"### Human: {PROMPT}### Assistant: ### Human: And?", [("u", PROMPT), ("a", ""), ("u", "And?")]),
        (f"### Human: {PROMPT}", "unclear_roles"),
        ("### Human:", "unclear_roles"),
        (f"### Assistant: {ANSWER}", "unclear_roles"),
        (f"### Heading\n\n{PROMPT}", "unknown_format"),
        # Alpaca's prompts
        (
            f"### Instruction:\n{PROMPT}\n\n### Input:\nIndia.\n\n### Response:\n{ANSWER}",
            [("u", f"{PROMPT}{INPUT_MARK}India."), ("a", ANSWER)],
        ),
        (
            f"Below is a task.\n\n### Instruction:\n{PROMPT}\n\n### Response:{ANSWER}",
            [("s", "Below is a task."), *READ],
        ),
        (f"### Instruction:\n{PROMPT}\n\n### Input:\n\n\n### Response:\n{ANSWER}", READ),
        (f"### Instruction:\n{PROMPT}\n\n### Response:\n{ANSWER}\n\n### Input:\nx", "unclear_roles"),
        (f"### Input:\nx\n\n### Response:\n{ANSWER}", "unclear_roles"),
        (f"### Response:\n{ANSWER}", "unclear_roles"),
        (f"### Instruction:\n{PROMPT}\n\n### Response:\n", "unclear_roles"),
        (f"### Instruction:\na\n### Instruction:\nb\n### Response:\n{ANSWER}", "unclear_roles"),
        # HH-RLHF
        (f"{HH}\n\nHuman:", READ),
        (f"{HH}\n\nHuman: And?\n\nHuman: Now?", [*READ, ("u", "And?"), ("u", "Now?")]),
        (f"\n\nHuman: a\n\nb\n\nAssistant: {ANSWER}", [("u", "a\n\nb"), ("a", ANSWER)]),
        (f"\n\nHuman: {PROMPT}\n\nAssistant: I said:\nHuman: no", [("u", PROMPT), ("a", "I said:\nHuman: no")]),
        (f"\n\nHuman:{PROMPT}\n\nAssistant:{ANSWER}", READ),
        (f"\n\nHuman: {PROMPT}", "unclear_roles"),
        ("\n\nHuman:\n\nAssistant:", "unclear_roles"),
        (f"\n\nAssistant: {ANSWER}\n\nHuman: {PROMPT}\n\nAssistant: {ANSWER}", [("a", ANSWER), *READ]),
        # Baize
        (f"The conversation.\n[|Human|] {PROMPT}\n[|AI|] {ANSWER}", [("s", "The conversation."), *READ]),
        (f"[|Human|]{PROMPT}[|AI|]{ANSWER}[|Human|]And?[|AI|]", [*READ, ("u", "And?")]),
        (f"[|Human|][|AI|]{ANSWER}", [("u", ""), ("a", ANSWER)]),
        ("[|Human|] [|AI|] ", "unclear_roles"),
        (f"[|AI|] {ANSWER}", "unclear_roles"),
        (f"[|Human|] {PROMPT} [|Human|] again [|AI|] {ANSWER}", [("u", PROMPT), ("u", "again"), ("a", ANSWER)]),
        (f"[Human] {PROMPT} [AI] {ANSWER}", "unknown_format"),
        (f"[|System|] Be brief. [|Human|] {PROMPT} [|AI|] {ANSWER}", [("s", "Be brief."), *READ]),
        # ChatML
        (IM("system", "Be brief.") + IM("user", PROMPT) + IM("assistant", ANSWER), [("s", "Be brief."), *READ]),
        (IM("user", PROMPT) + IM("assistant", "") + IM("user", "And?"), [("u", PROMPT), ("a", ""), ("u", "And?")]),
        (IM("user", PROMPT) + f"<|im_start|>assistant\n{ANSWER}", READ),
        (IM("user", PROMPT) + "<|im_start|>assistant\n", "unclear_roles"),
        (IM("user", PROMPT) + IM("assistant", ANSWER) + "<|endoftext|>", READ),
        (IM("narrator", PROMPT), "unknown_format"),
        (IM("assistant", ANSWER), "unclear_roles"),
        (f"What does <|im_start|> mean? {PROMPT}", "unknown_format"),
    ],
    ids=repr,
)
def test_texts_with_sure_marks(value: str, expected: object) -> None:
    assert outcome(text(value)) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            f"User: {PROMPT}\nAssistant: {ANSWER}\nUser: And?\nAssistant: Ceylon.",
            [*READ, ("u", "And?"), ("a", "Ceylon.")],
        ),
        (f"System: Be brief.\nUser: {PROMPT}\nAssistant: {ANSWER}", [("s", "Be brief."), *READ]),
        (f"User: {PROMPT}\nin two lines\n\nAssistant: {ANSWER}", [("u", f"{PROMPT}\nin two lines"), ("a", ANSWER)]),
        (f"human: {PROMPT}\nai: {ANSWER}", READ),
        (f"Human: {PROMPT}\nAI: Question: x\nAnswer: y", [("u", PROMPT), ("a", "Question: x\nAnswer: y")]),
        (f"Question: {PROMPT}\nAnswer: {ANSWER}", READ),
        (f"Assistant: Hi\nUser: {PROMPT}\nAssistant: {ANSWER}", [("a", "Hi"), *READ]),
        (f"User: {PROMPT}\nAssistant: {ANSWER}\nUser:", READ),
        (f"User: {PROMPT}\nUser: Quick!\nAssistant: {ANSWER}", "unclear_roles"),
        (f"User: {PROMPT}\nHuman: x\nAssistant: {ANSWER}", "unclear_roles"),
        (f"User: {PROMPT}\nAssistant: {ANSWER}\nChatGPT: x", "unclear_roles"),
        (f"User: {PROMPT}\nAssistant:\nUser: And?\nAssistant: {ANSWER}", "unclear_roles"),
        (f"User: {PROMPT}", "unclear_roles"),
        ("User:", "unclear_roles"),
        (f"User: {PROMPT}\nAssistant: {ANSWER}\nSystem: x", "unclear_roles"),
        (f"A talk of Monday\nUser: {PROMPT}\nAssistant: {ANSWER}", "unknown_format"),
        (f"Ann: {PROMPT}\nBob: {ANSWER}", "unknown_format"),
        (f"User {PROMPT}\nAssistant {ANSWER}", "unknown_format"),
        ("Usage: a tool\nA: b", "unknown_format"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("key", ["text", "transcript", "log"])
def test_logs_are_read_only_if_their_names_alternate(key: str, value: str, expected: object) -> None:
    assert outcome({key: value}) == expected


@pytest.mark.parametrize("key", ["chosen", "rejected"])
def test_a_text_beside_other_keys_of_a_format_stays_what_it_is(key: str) -> None:
    record = {"instruction": PROMPT, "output": ANSWER, "text": f"### Instruction:\n{PROMPT}\n### Response:\n{ANSWER}"}
    assert outcome(record) == READ
    record = {"prompt": f"\n\nHuman: {PROMPT}\n\nAssistant:", "chosen": ANSWER, "rejected": WORSE}
    assert outcome(record) == READ
    assert formats.parse(record).rejected_answer[0].content == WORSE


def test_only_the_last_answers_of_two_texts_may_differ() -> None:
    one = f"{HH}\n\nHuman: And?\n\nAssistant: Ceylon."
    conversation = formats.parse({"chosen": one, "rejected": f"{HH}\n\nHuman: And?\n\nAssistant: {WORSE}"})
    assert [message.content for message in conversation.rejected_answer] == [WORSE]
    other = f"\n\nHuman: {PROMPT}\n\nAssistant: {WORSE}\n\nHuman: And?\n\nAssistant: {WORSE}"
    conversation = formats.parse({"chosen": one, "rejected": other})
    assert (conversation.rejected_answer, conversation.metadata) == ([], {"rejected": other})


def test_the_reason_says_which_names_do_not_alternate() -> None:
    with pytest.raises(RecordError, match="'Assistant' follows 'Assistant'"):
        formats.parse(text("User: a\nAssistant: b\nAssistant: c"))
    with pytest.raises(RecordError, match="'Human' speaks beside 'user' and 'assistant'"):
        formats.parse(text("User: a\nAssistant: b\nHuman: c"))


WORDS = st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=1, max_size=8)


@given(
    st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4),
    st.sampled_from(
        [
            ("User: ", "Assistant: ", "\n"),
            ("### Human: ", "### Assistant: ", ""),
            ("[|Human|]", "[|AI|]", "\n"),
            ("\n\nHuman: ", "\n\nAssistant: ", ""),
            ("<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n"),
        ]
    ),
)
def test_a_chat_that_is_written_in_a_dialect_is_read_again(
    exchanges: list[tuple[str, str]], marks: tuple[str, str, str]
) -> None:
    before_prompt, before_answer, end = marks
    written = "".join(f"{before_prompt}{one}{end}{before_answer}{two}{end}" for one, two in exchanges)
    assert outcome(text(written)) == [turn for one, two in exchanges for turn in (("u", one), ("a", two))]


# ---- glaive


CALL = """<functioncall> {"name": "f", "arguments": '{"a": 1}'} <|endoftext|>"""


@pytest.mark.parametrize(
    ("chat", "roles"),
    [
        (f"USER: {PROMPT}\n\n\nASSISTANT: {ANSWER} <|endoftext|>\n\n\n", "ua"),
        (f"USER: {PROMPT}\n\n\nASSISTANT: {CALL}\n\n\nFUNCTION RESPONSE: {{}}\n\n\nASSISTANT: {ANSWER}", "uata"),
        (f"USER: {PROMPT}\n\n\nUSER: Quick!\n\n\nASSISTANT: {ANSWER}", "uua"),
        (f"USER: {PROMPT}\n\n\nASSISTANT: \n\n\nUSER: And?\n\n\nASSISTANT: {ANSWER}", "uaua"),
        (f"\n USER: {PROMPT}\nASSISTANT: {ANSWER}", "ua"),
        (f"USER: {PROMPT}\n\n\nASSISTANT: {ANSWER}\n\n\nFUNCTION RESPONSE: {{}}", "uat"),
        (f"USER: {PROMPT}", "unclear_roles"),
        (f"ASSISTANT: {ANSWER}", "unclear_roles"),
        (f"{PROMPT} {ANSWER}", "unknown_format"),
    ],
    ids=repr,
)
def test_glaive(chat: str, roles: str) -> None:
    read = outcome({"system": "SYSTEM: You have tools.\n", "chat": chat})
    assert read == roles if isinstance(read, str) else "".join(role for role, _ in read) == f"s{roles}"
    if not isinstance(read, str):
        assert read[0] == ("s", "You have tools.")


# ---- MOSS


def moss(**texts: object) -> Record:
    """Return a turn with texts in MOSS's marks; a text that is None is left out."""
    usual = {"Human": f"<|Human|>: {PROMPT}<eoh>\n", "MOSS": f"<|MOSS|>: {ANSWER}<eom>\n"}
    return {key: value for key, value in {**usual, **texts}.items() if value is not None}


def chat(*turns: object, **keys: object) -> Record:
    return {"chat": {f"turn_{number}": turn for number, turn in enumerate(turns, 1)}, **keys}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (chat(moss(), moss()), [*READ, *READ]),
        (chat(moss(), meta_instruction="Be brief."), [("s", "Be brief."), *READ]),
        ({"conversation": chat(moss())["chat"]}, READ),
        (chat(moss(Human=f"{PROMPT}")), READ),
        (
            chat(moss(Commands='<|Commands|>: Search("tea")<eoc>\n', Results="<|Results|>: r<eor>")),
            [("u", PROMPT), ("a", ""), ("t", "r"), ("a", ANSWER)],
        ),
        (chat(moss(Commands="<|Commands|>: look it up<eoc>\n")), "bad_value"),
        (chat(moss(Commands="<|Commands|>: None.<eoc>\n")), READ),
        (chat(moss(Commands='<|Commands|>: Search("tea"), None<eoc>\n')), [("u", PROMPT), ("a", ""), ("a", ANSWER)]),
        (chat(moss(MOSS=None)), "bad_turn"),
        (chat(moss(MOSS=5)), "bad_value"),
        (chat(moss(Human="<|Human|>: None<eoh>")), [("u", ""), ("a", ANSWER)]),
        (chat(None), "bad_turn"),
        ({"chat": {"turn_1": moss(), "turn_3": moss()}}, "bad_turn"),
        ({"chat": {"turn_2": moss()}}, "unknown_format"),
        ({"plain_text": f"[Human]: {PROMPT}<eoh>\n"}, "unclear_roles"),
    ],
    ids=repr,
)
def test_moss(record: Record, expected: object) -> None:
    assert outcome(record) == expected


def test_inner_thoughts_of_moss_are_the_reasoning_before_a_call_or_an_answer() -> None:
    thoughts = {"Inner Thoughts": "<|Inner Thoughts|>: Look it up.<eot>\n"}
    plain = formats.parse(chat(moss(**thoughts)))
    called = formats.parse(chat(moss(**thoughts, Commands='<|Commands|>: Search("tea")<eoc>\n')))
    assert [message.reasoning for message in plain.messages] == [None, "Look it up."]
    assert [message.reasoning for message in called.messages] == [None, "Look it up.", None]


def test_calls_of_moss_keep_their_arguments() -> None:
    commands = '<|Commands|>: Search("a, (b)"), Calculate("2*(3+1)")<eoc>\n'
    conversation = formats.parse(chat(moss(Commands=commands, **{"Tool Responses": "<|Results|>: r<eor>"})))
    assert [
        json.loads(call["function"]["arguments"]) for call in json.loads(conversation.messages[1].tool_calls or "")
    ] == [
        {"input": "a, (b)"},
        {"input": "2*(3+1)"},
    ]
