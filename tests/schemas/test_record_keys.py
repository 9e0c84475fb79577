"""Keys beside the turns: bad labels, preferences, answers, system texts, a second chat. No key vanishes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import RecordError
from curate.pipeline.repair_turns import RepairSettings, order
from curate.schemas import Conversation, formats
from curate.schemas.prompts import INPUT_MARK
from curate.schemas.reading.key_kinds import CHOSEN_KEYS, REJECTED_KEYS, SPECIAL_KEYS, is_false, is_true

Record = dict[str, Any]


def user(text: object, **keys: object) -> Record:
    return {"role": "user", "content": text, **keys}


def answer(text: object, **keys: object) -> Record:
    return {"role": "assistant", "content": text, **keys}


def human(text: object) -> Record:
    return {"from": "human", "value": text}


def gpt(text: object) -> Record:
    return {"from": "gpt", "value": text}


def contents(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.messages]


def rejection(record: object, settings: RepairSettings | None = None) -> str:
    """Return the rule that rejects a record while it is read or put in order."""
    with pytest.raises(RecordError) as caught:
        order(formats.parse(record), settings or RepairSettings())
    return caught.value.rule


CHAT = [user("Which tea?"), answer("Assam.")]
READ = [("user", "Which tea?"), ("assistant", "Assam.")]


# ---- labels


FALSE: list[object] = [False, 0, 0.0, -1, "false", "False", " FALSE ", "0", "0.0", "no", "bad", [True, False]]
TRUE: list[object] = [True, 1, 1.0, 0.9, "true", "True", "1", "yes", "Y", [False, True]]
NOT_FALSE: list[object] = [True, 1, "true", "1", None, "", "en", [], {}]
NOT_TRUE: list[object] = [False, 0, 0.1, "false", "0", None, "", "nan", []]


@pytest.mark.parametrize("key", ["label", "kto_tag", "Label", "KTO_TAG"])
@pytest.mark.parametrize("value", FALSE, ids=repr)
def test_a_record_with_a_false_label_is_rejected(key: str, value: object) -> None:
    assert rejection({"messages": CHAT, key: value}) == "bad_label"


@pytest.mark.parametrize("key", ["toxic", "redacted", "is_toxic", "Toxic", "isRedacted"])
@pytest.mark.parametrize("value", TRUE, ids=repr)
def test_a_toxic_or_redacted_record_is_rejected(key: str, value: object) -> None:
    assert rejection({"conversations": [human("Which tea?"), gpt("Assam.")], key: value}) == "bad_label"


@pytest.mark.parametrize(
    "keys",
    [
        *({"label": value} for value in NOT_FALSE),
        *({"toxic": value} for value in NOT_TRUE),
        {"redacted": False, "kto_tag": True},
    ],
    ids=repr,
)
def test_other_labels_keep_a_record(keys: Record) -> None:
    conversation = formats.parse({"messages": CHAT, **keys})
    assert order(conversation, RepairSettings()) == []
    assert (contents(conversation), conversation.metadata) == (READ, keys)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Which tea?", "completion": "Assam.", "label": False},
        {"prompt": [user("Which tea?")], "completion": [answer("Assam.")], "label": "false"},
        {"instruction": "Which tea?", "input": "", "output": "Assam.", "kto_tag": False},
        {"items": [human("Which tea?"), gpt("Assam.")], "label": 0},
        {"id": None, "source_id": None, "piece": None, "messages": CHAT, "label": False},
    ],
    ids=["prompt-completion", "messages", "alpaca", "items", "jsonl"],
)
def test_a_bad_label_counts_in_every_format_and_can_be_kept(record: Record) -> None:
    assert rejection(record) == "bad_label"
    conversation = formats.parse(record)
    order(conversation, RepairSettings(bad_label="keep"))
    assert contents(conversation) == READ


def test_a_bad_turn_takes_its_exchange_out() -> None:
    turns = [*CHAT, user("Bad.", toxic="True"), answer("Worse.", toxic=False), user("Which nut?"), answer("Pecan.")]
    conversation = formats.parse({"messages": turns})
    lost = order(conversation, RepairSettings())
    assert [(each.rule, each.message_range) for each in lost] == [("bad_label", (2, 4))]
    assert contents(conversation) == [*READ, ("user", "Which nut?"), ("assistant", "Pecan.")]


@given(st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=6) | st.none())
def test_no_value_is_both_true_and_false(value: object) -> None:
    assert not (is_true(value) and is_false(value))


# ---- preference data and completions


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Which tea?", "chosen": "Assam.", "rejected": "Mud."},
        {"prompt": [user("Which tea?")], "chosen": [answer("Assam.")], "rejected": [answer("Mud.")]},
        {"chosen": CHAT, "rejected": [user("Which tea?"), answer("Mud.")]},
        {"prompt": "Which tea? ", "chosen": CHAT, "rejected": [user("Which tea?"), answer("Mud.")]},
        {"messages": CHAT, "chosen": CHAT, "rejected": [user("Which tea?"), answer("Mud.")]},
        {"messages": CHAT, "chosen": "Assam.", "rejected": "Mud."},
        {"conversations": [human("Which tea?")], "chosen": gpt("Assam."), "rejected": gpt("Mud.")},
        {"instruction": "Which tea?", "input": "", "chosen": "Assam.", "rejected": "Mud."},
        {"question": "Which tea?", "chosen": "Assam.", "rejected": "Mud."},
        {"prompt": "Which tea?", "chosen": ["Assam."], "rejected": ["Mud."]},
        {
            "input": {"messages": [user("Which tea?")]},
            "preferred_output": [answer("Assam.")],
            "non_preferred_output": [answer("Mud.")],
        },
    ],
    ids=[
        *("texts", "messages", "implicit-prompt", "prompt-twice", "messages-twice", "answer-twice"),
        *("llama-factory", "alpaca", "question", "lists-of-one", "openai"),
    ],
)
def test_the_chosen_answer_is_read_and_the_rejected_one_kept_beside_it(record: Record) -> None:
    conversation = formats.parse(record)
    assert order(conversation, RepairSettings()) == []
    assert contents(conversation) == READ
    assert [(message.role, message.content) for message in conversation.rejected_answer] == [("assistant", "Mud.")]
    assert not {*CHOSEN_KEYS, *REJECTED_KEYS} & set(conversation.metadata)


def test_the_system_message_of_a_prompt_stays_with_a_chosen_chat() -> None:
    record = {"system": "Be brief.", "prompt": "Which tea?", "chosen": CHAT, "rejected": "Mud."}
    assert contents(formats.parse(record)) == [("system", "Be brief."), *READ]


def test_tools_beside_the_messages_of_openais_input_are_kept() -> None:
    tools = [{"type": "function", "function": {"name": "shop", "parameters": {}}}]
    record = {
        "input": {"messages": [user("Which tea?")], "tools": tools, "parallel_tool_calls": False},
        "preferred_output": [answer("Assam.")],
        "non_preferred_output": [answer("Mud.")],
    }
    conversation = formats.parse(record)
    assert json.loads(conversation.tools or "") == tools
    assert conversation.metadata["parallel_tool_calls"] is False


@pytest.mark.parametrize(
    ("record", "rule"),
    [
        ({"prompt": "Which tea?", "chosen": None, "rejected": "Mud."}, "bad_preference"),
        ({"conversations": [human("Which tea?")], "rejected": gpt("Mud.")}, "bad_preference"),
        ({"chosen": "Assam.", "rejected": "Mud."}, "bad_preference"),
        ({"messages": CHAT, "chosen": "Ceylon.", "rejected": "Mud."}, "bad_preference"),
        ({"prompt": "Which nut?", "chosen": CHAT, "rejected": CHAT}, "bad_preference"),
        ({"prompt": "Which tea?", "chosen": ["Assam.", "Ceylon."], "rejected": "Mud."}, "several_answers"),
        ({"prompt": "Which tea?", "chosen": "Assam.", "rejected": "Mud.", "label": False}, "bad_label"),
    ],
    ids=["no-chosen", "only-rejected", "no-prompt", "other-answer", "other-prompt", "two-chosen", "label"],
)
def test_preferences_that_are_not_clear_are_rejected_by_name(record: Record, rule: str) -> None:
    assert rejection(record) == rule


@pytest.mark.parametrize("flag", [{"rejected": False}, {"chosen": "model_a"}, {"chosen": True}, {"rejected": None}])
def test_flags_beside_a_whole_chat_are_no_preference(flag: Record) -> None:
    conversation = formats.parse({"messages": CHAT, **flag})
    assert (contents(conversation), conversation.metadata) == (READ, flag)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Which tea?", "completion": "Assam."},
        {"prompt": "Which tea?", "response": "Assam."},
        {"question": "Which tea?", "answer": "Assam."},
        {"input": "Which tea?", "target": "Assam."},
        {"prompt": [user("Which tea?")], "completion": [answer("Assam.")]},
        {"prompt": [user("Which tea?")], "completion": "Assam."},
        {"messages": [user("Which tea?")], "completion": "Assam."},
        {"conversations": [human("Which tea?")], "response": gpt("Assam.")},
        {"query": "Which tea?", "response": "Assam.", "history": []},
        {"conversations": [], "messages": CHAT},
        {"messages": [], "conversations": [human("Which tea?"), gpt("Assam.")]},
        {"conversations": [], "instruction": "Which tea?", "output": "Assam."},
        {"conversations": {"messages": CHAT}},
        {"data": {"messages": CHAT}},
        {"custom_id": "b", "body": {"model": "m", "messages": CHAT}},
    ],
    ids=[
        *("completion", "response", "question", "target", "messages", "mixed", "beside-messages", "beside-turns"),
        *("query", "empty-conversations", "empty-messages", "empty-beside-alpaca", "object", "wrapped", "request"),
    ],
)
def test_an_answer_is_read_wherever_it_stands(record: Record) -> None:
    assert contents(formats.parse(record)) == READ


@pytest.mark.parametrize(
    "history",
    [
        [["Hi", "Hello"]],
        [{"user": "Hi", "assistant": "Hello"}],
        [{"prompt": "Hi", "response": "Hello"}],
        [user("Hi"), answer("Hello")],
    ],
    ids=["lists", "objects", "pairs", "messages"],
)
@pytest.mark.parametrize("keys", [("instruction", "output"), ("query", "response")])
def test_a_history_is_read_in_its_forms(history: object, keys: tuple[str, str]) -> None:
    prompt, reply = keys
    record = {prompt: "Which tea?", reply: "Assam.", "history": history}
    assert contents(formats.parse(record)) == [("user", "Hi"), ("assistant", "Hello"), *READ]


def test_the_context_of_a_question_is_part_of_the_prompt() -> None:
    conversation = formats.parse({"instruction": "Which tea?", "context": "India.", "response": "Assam."})
    assert conversation.messages[0].content == f"Which tea?{INPUT_MARK}India."


def test_a_multiple_choice_question_is_not_read_without_its_choices() -> None:
    assert rejection({"question": "Which tea?", "choices": ["Assam", "Mud"], "answer": "A"}) == "unknown_format"


def test_the_solution_beside_a_prompt_alone_is_not_its_answer() -> None:
    assert rejection({"messages": [user("What is 6 * 7?")], "answer": "42"}) == "too_few_turns"


# ---- alternatives, a second chat, system texts


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": [human("Which tea?"), gpt(["Assam.", "Ceylon."])]},
        {"instruction": "Which tea?", "output": ["Assam.", "Ceylon."]},
        {"prompt": "Which tea?", "completion": ["Assam.", "Ceylon."]},
    ],
    ids=["turns", "alpaca", "completion"],
)
def test_several_answers_are_not_joined(record: Record) -> None:
    assert rejection(record) == "several_answers"


def test_one_answer_in_a_list_is_an_answer() -> None:
    assert contents(formats.parse({"conversations": [human("Which tea?"), gpt(["Assam."])]})) == READ


@pytest.mark.parametrize(
    "second",
    [
        {"conversations": [human("Which nut?"), gpt("Pecan.")]},
        {"conversations": [human("Which tea?"), gpt("Assam."), human("And?"), gpt("Ceylon.")]},
        {"instruction": "Which nut?", "output": "Pecan."},
    ],
    ids=["other", "longer", "alpaca"],
)
def test_two_chats_that_differ_are_rejected_by_name(second: Record) -> None:
    longer_is_first = len(second.get("conversations", ())) > 2
    record = {"messages": CHAT, **second}
    if longer_is_first:  # `conversations` are read first, and hold the shorter `messages`
        assert len(formats.parse(record).messages) == 4
    else:
        assert rejection(record) == "two_chats"


def test_the_same_chat_twice_is_read_once() -> None:
    record = {"messages": CHAT, "conversations": [human("Which tea?"), gpt("Assam. ")], "title": "T"}
    conversation = formats.parse(record)
    assert conversation.metadata == {"title": "T"}
    assert [message.role for message in conversation.messages] == ["user", "assistant"]


def test_a_list_that_is_no_chat_stays_in_the_metadata() -> None:
    conversation = formats.parse({"messages": CHAT, "title": "T", "instruction": "x"})
    assert conversation.metadata == {"title": "T", "instruction": "x"}


@pytest.mark.parametrize(
    "system",
    [
        "Be brief.",
        {"content": "Be brief."},
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        [{"type": "text", "text": "Be brief."}],
        ["Be brief."],
    ],
    ids=["text", "object", "message", "blocks", "list"],
)
@pytest.mark.parametrize("chat", [{"messages": CHAT}, {"instruction": "Which tea?", "output": "Assam."}])
@pytest.mark.parametrize("key", ["system", "system_prompt"])
def test_a_system_text_is_read_in_its_forms(system: object, chat: Record, key: str) -> None:
    conversation = formats.parse({**chat, key: system})
    assert contents(conversation) == [("system", "Be brief."), *READ]
    assert key not in conversation.metadata


def test_other_keys_of_a_system_prompts_blocks_are_kept() -> None:
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    conversation = formats.parse({"messages": CHAT, "system": system})
    assert contents(conversation) == [("system", "Be brief."), *READ]
    assert conversation.metadata == {"system": system}


def test_a_second_system_text_is_kept_and_named() -> None:
    conversation = formats.parse({"messages": CHAT, "system": "Be brief.", "system_prompt": "Be long."})
    assert contents(conversation)[0] == ("system", "Be brief.")
    assert conversation.metadata == {"system_prompt": "Be long."}
    assert [(edit.rule, edit.before) for edit in conversation.edits] == [("second_system", "Be long.")]


def test_a_system_object_without_text_is_rejected() -> None:
    assert rejection({"messages": CHAT, "system": {"tone": "kind"}}) == "bad_value"


# ---- no key vanishes

MARKS = st.integers(0, 10**6).map(lambda number: f"mark{number}x")
VALUES = st.recursive(
    MARKS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(MARKS, inner, max_size=3), max_leaves=4
)
ROLES = st.sampled_from(["user", "assistant", "system"])
TURN = st.builds(lambda role, text: {"role": role, "content": text}, ROLES, MARKS)
TURN_LISTS = st.lists(TURN, max_size=4)
NAMES = [
    *("conversations", "items", "messages", "prompt", "question", "query", "instruction", "input", "output", "context"),
    *("history", "system", "system_prompt", "answer", "title", "data", *sorted(SPECIAL_KEYS)[::9]),
    *(*CHOSEN_KEYS, *REJECTED_KEYS, "completion", "response", "label", "toxic", "image", "images"),
]
RECORDS = st.dictionaries(st.sampled_from(NAMES), TURN | TURN_LISTS | VALUES | st.booleans(), max_size=6)


def marks(value: object) -> set[str]:
    """Return the marks in a value, each of which must be found again."""
    text = json.dumps(value)
    return {word for word in text.replace('"', " ").replace("\\n", " ").split() if word.startswith("mark")}


@given(
    RECORDS,
    st.sampled_from(
        [
            {},
            {"messages": CHAT},
            {"conversations": [human("Which tea?")]},
            {"prompt": "Which tea?", "chosen": "Assam."},
            {"instruction": "Which tea?", "output": "Assam."},
            {"id": "a", "source_id": "a", "piece": None, "messages": CHAT, "metadata": {}},
        ]
    ),
)
def test_no_key_of_a_record_vanishes(extra: Record, base: Record) -> None:
    record = {**extra, **base}
    try:
        conversation = formats.parse(record)
    except RecordError as error:
        assert error.rule in formats.PROBLEMS  # the reject has the bytes of the whole record
        return
    read = [*conversation.messages, *conversation.rejected_answer]
    messages = [(message.content, message.name, message.tool_calls) for message in read]
    edits = [(edit.before, edit.after) for edit in conversation.edits]
    flaws = [(flaw.reason, flaw.evidence) for flaw in conversation.flaws]
    kept = json.dumps([messages, conversation.metadata, conversation.model, edits, flaws])
    assert [mark for mark in marks(record) if mark not in kept] == []


# ---- marks, system texts and messages in other spellings


@pytest.mark.parametrize(
    "keys",
    [
        *({"weight": value} for value in (0, 0.0, False, "0", "false", -1)),
        *({"train": False}, {"loss_weight": 0}, {"lossWeight": 0}, {"no_train": True}, {"deleted": 1}),
    ],
)
def test_a_record_that_is_not_to_be_trained_on_is_flagged(keys: Record) -> None:
    conversation = formats.parse({"messages": [user("Which lake?"), answer("Mead.")], **keys})
    assert [(flaw.rule, flaw.message) for flaw in conversation.flaws] == [("bad_label", None)]


@pytest.mark.parametrize("keys", [{"weight": 1}, {"weight": 0.5}, {"train": True}, {"deleted": False}, {"train": None}])
def test_a_record_that_may_be_trained_on_is_not(keys: Record) -> None:
    assert not formats.parse({"prompt": "Which lake?", "completion": "Mead.", **keys}).flaws


@pytest.mark.parametrize("key", ["systemPrompt", "systemMessage", "system_instruction", "System", "SYSTEM"])
def test_a_system_text_is_read_under_other_spellings(key: str) -> None:
    conversation = formats.parse({"messages": [user("Which lake?"), answer("Mead.")], key: "Be brief."})
    assert contents(conversation)[0] == ("system", "Be brief.")


@pytest.mark.parametrize("write", [json.dumps, str], ids=["json", "python"])
def test_messages_as_text_are_messages_in_pairs_and_preferences(write: Any) -> None:
    prompt, good, bad = write([user("Which lake?")]), write([answer("Mead.")]), write([answer("Erie.")])
    expected = [("user", "Which lake?"), ("assistant", "Mead.")]
    assert contents(formats.parse({"prompt": prompt, "completion": good})) == expected
    conversation = formats.parse({"prompt": prompt, "chosen": good, "rejected": bad})
    assert contents(conversation) == expected
    assert conversation.rejected_answer and conversation.rejected_answer[0].content == "Erie."


def test_whole_chats_as_text_are_a_preference() -> None:
    chats = [json.dumps([user("Which lake?"), answer(text)]) for text in ("Mead.", "Erie.")]
    conversation = formats.parse({"prompt": "Which lake?", "chosen": chats[0], "rejected": chats[1]})
    assert contents(conversation) == [("user", "Which lake?"), ("assistant", "Mead.")]
    assert conversation.rejected_answer and conversation.rejected_answer[0].content == "Erie."


@pytest.mark.parametrize("text", ['[{"role": "user", "content": "a"}]', '[{"lake": 1}]', "[{role: user", "[1, 2]"])
def test_an_answer_that_is_json_of_another_kind_stays_text(text: str) -> None:
    assert contents(formats.parse({"prompt": "Write JSON.", "completion": text}))[1] == ("assistant", text)


def test_a_question_with_choices_under_letters_is_not_read() -> None:
    with pytest.raises(RecordError) as caught:
        formats.parse({"question": "Which lake?", "A": "Mead", "B": "Erie", "answer": "A"})
    assert caught.value.rule == "unknown_format"


# ---- turns that name what they follow


def test_turns_that_follow_each_other_or_name_one_source_are_read() -> None:
    follow = [user("Which lake?", id="1", parent="0"), answer("Mead.", id="2", parent="1")]
    named = [user("Which lake?", parent="lakes"), answer("Mead.", parent="lakes")]
    for items in (follow, named):
        assert len(formats.parse({"messages": items}).messages) == 2


@pytest.mark.parametrize("key", ["is_safe", "accepted", "approved", "desirable"])
def test_a_record_that_was_not_approved_is_not_trained_on(key: str) -> None:
    assert [flaw.rule for flaw in formats.parse({"messages": CHAT, key: False}).flaws] == ["bad_label"]
    assert formats.parse({"messages": CHAT, key: True}).flaws == []


@pytest.mark.parametrize("key", ["flagged", "harmful", "is_unsafe"])
def test_a_record_that_was_flagged_is_not_trained_on(key: str) -> None:
    assert [flaw.rule for flaw in formats.parse({"messages": CHAT, key: True}).flaws] == ["bad_label"]
    assert formats.parse({"messages": CHAT, key: False}).flaws == []


@pytest.mark.parametrize("mark", [{"include_in_loss": False}, {"loss_scale": 0}, {"exclude_from_loss": True}])
def test_an_answer_outside_the_loss_is_not_trained_on(mark: Record) -> None:
    assert not formats.parse({"messages": [CHAT[0], {**CHAT[1], **mark}]}).messages[1].train


# ---- what belongs to the prompt, or to how the answer was found

DOCUMENT = "Lake Mead is in Nevada."
QUESTION = [user("Where is Lake Mead?"), answer("In Nevada.")]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": QUESTION, "context": DOCUMENT},
        {"messages": QUESTION, "documents": [DOCUMENT]},
        {"messages": QUESTION, "input": DOCUMENT},
        {"conversations": [human("Where is Lake Mead?"), gpt("In Nevada.")], "passages": [{"text": DOCUMENT}]},
        {"question": "Where is Lake Mead?", "answer": "In Nevada.", "documents": [DOCUMENT]},
        {"instruction": "Where is Lake Mead?", "output": "In Nevada.", "context": DOCUMENT},
        {"messages": [user(f"{DOCUMENT}\n\nWhere is Lake Mead?"), answer("In Nevada.")], "context": DOCUMENT},
    ],
    ids=repr,
)
def test_documents_beside_the_turns_stand_in_the_first_prompt(record: Record) -> None:
    assert formats.parse(record).messages[0].content == f"{DOCUMENT}\n\nWhere is Lake Mead?"


def test_documents_without_their_text_take_the_record_out() -> None:
    assert rejection({"messages": QUESTION, "documents": ["lake.pdf"]}) == "needs_context"


@pytest.mark.parametrize("key", ["reasoning", "thinking", "cot", "Complex_CoT", "reasoning_content"])
@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Where is Lake Mead?", "completion": "In Nevada."},
        {"instruction": "Where is Lake Mead?", "input": "", "output": "In Nevada."},
        {"Question": "Where is Lake Mead?", "Response": "In Nevada."},
        {"messages": QUESTION},
        {"prompt": "Where is Lake Mead?", "chosen": "In Nevada.", "rejected": "In Utah."},
    ],
    ids=repr,
)
def test_reasoning_beside_the_only_answer_is_its_own(record: Record, key: str) -> None:
    conversation = formats.parse({**record, key: "I know it."})
    assert [(m.content, m.reasoning) for m in conversation.messages][1] == ("In Nevada.", "I know it.")
    assert conversation.metadata == {}


def test_reasoning_beside_several_answers_stays_metadata() -> None:
    conversation = formats.parse({"messages": [*QUESTION, *CHAT], "reasoning": "I know it."})
    assert conversation.metadata == {"reasoning": "I know it."}


@pytest.mark.parametrize("metadata", [{"weight": 0}, {"toxic": True}, {"train": "false"}])
def test_marks_within_the_metadata_of_a_record_are_honoured(metadata: Record) -> None:
    assert rejection({"messages": CHAT, "metadata": metadata}) == "bad_label"
