"""OASST's trees, Arena's pairs, self-instruct's tasks, TRL's shapes, SmolTalk2's settings, with what may be wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import RecordError
from curate.schemas import formats
from curate.schemas.prompts import INPUT_MARK
from curate.schemas.reading.options import ReadOptions
from tests.schemas.formats.examples import (
    ANSWER,
    CHAT,
    EXAMPLES,
    PROMPT,
    ROWS,
    WORSE,
    WORSE_CHAT,
    Record,
    answer,
    outcome,
    user,
)

READ = [("u", PROMPT), ("a", ANSWER)]

# ---- OASST


def node(text: object, *replies: object, **keys: object) -> Record:
    return {"text": text, "role": "prompter", "replies": list(replies), **keys}


def reply(text: object, *replies: object, **keys: object) -> Record:
    return {**node(text, *replies), "role": "assistant", **keys}


def tree(prompt: object) -> Record:
    return {"message_tree_id": "t", "tree_state": "ready_for_export", "prompt": prompt}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (tree(node(PROMPT, reply(WORSE, rank=1), reply(ANSWER, rank=0))), READ),
        (tree(node(PROMPT, reply(WORSE), reply(ANSWER, rank=2))), READ),
        (tree(node(PROMPT, reply(ANSWER), reply(WORSE))), READ),
        (tree(node(PROMPT, reply(WORSE, rank=0, deleted=True), reply(ANSWER, rank=1))), READ),
        (tree(node(PROMPT, reply(WORSE, rank=0, review_result=False), reply(ANSWER, rank=1))), READ),
        (tree(node(PROMPT, reply(ANSWER, node("And?")))), READ),
        (
            tree(node(PROMPT, reply(ANSWER, node("Hm?"), node("And?", reply("Ceylon."))))),
            [*READ, ("u", "And?"), ("a", "Ceylon.")],
        ),
        (tree(node(PROMPT)), "no_messages"),
        (tree(node(PROMPT, reply(ANSWER, deleted=True))), "no_messages"),
        (tree(node(PROMPT, reply(ANSWER), deleted=True)), "no_messages"),
        (tree({**node(PROMPT), "replies": None}), "no_messages"),
        (tree(node(PROMPT, None, "x", reply(ANSWER))), READ),
        (tree(node(None, reply(ANSWER))), [("u", ""), ("a", ANSWER)]),
        (tree(node(PROMPT, reply({"x": 1}))), "bad_value"),
        (tree(node(PROMPT, {**reply(ANSWER), "role": 5})), "no_messages"),
        (tree({"text": PROMPT, "role": "prompter"}), "unknown_format"),
        ({**node(PROMPT, reply(ANSWER)), "message_id": "t", "parent_id": None}, READ),
        ({**node(PROMPT), "message_id": "t", "parent_id": None}, "tree_row"),
        (ROWS, "tree_row"),
        ({**ROWS, "parent_id": None}, "tree_row"),
        ({**ROWS, "text": None}, "tree_row"),
    ],
    ids=repr,
)
def test_oasst(record: Record, expected: object) -> None:
    assert outcome(record) == expected


def test_messages_of_a_tree_that_are_not_read_are_counted() -> None:
    conversation = formats.parse(EXAMPLES["oasst"][0])
    assert [(edit.rule, edit.count) for edit in conversation.edits] == [("other_replies", 1)]
    assert (conversation.source_id, conversation.metadata) == ("t", {"tree_state": "ready_for_export"})


def test_every_branch_ends_with_an_answer() -> None:
    best = reply(ANSWER, node("And?", reply("Ceylon."), reply("Darjeeling.")), node("Hm?"), rank=0)
    record = tree(node(PROMPT, reply(WORSE, rank=1), best))
    conversations = formats.parse_all(record, ReadOptions(branches=True))
    texts = [[message.content for message in conversation.messages] for conversation in conversations]
    assert texts == [[PROMPT, ANSWER, "And?", "Ceylon."], [PROMPT, ANSWER, "And?", "Darjeeling."], [PROMPT, WORSE]]
    assert {conversation.source_id for conversation in conversations} == {"t"}
    trained = [[m.content for m in each.messages if m.role == "assistant" and m.train] for each in conversations]
    assert trained == [[ANSWER, "Ceylon."], ["Darjeeling."], [WORSE]], "an answer that branches share is trained once"


TREES: st.SearchStrategy[Any] = st.recursive(
    st.builds(node, st.just("p")), lambda inner: st.builds(node, st.just("p"), inner, inner), max_leaves=8
)


def with_roles(value: Record, depth: int = 0) -> Record:
    """Return a tree whose levels alternate, and whose texts are numbered by level and place."""
    replies = [with_roles(each, depth + 1) for each in value["replies"]]
    return {**value, "role": "assistant" if depth % 2 else "prompter", "replies": replies}


@given(TREES)
def test_the_best_path_is_the_first_branch_and_no_branch_continues_another(value: Record) -> None:
    record = tree(with_roles(value))
    try:
        best = formats.parse(record)
    except RecordError as error:
        assert error.rule == "no_messages" and not value["replies"]
        return
    branches = formats.parse_all(record, ReadOptions(branches=True))
    assert branches[0].messages == best.messages
    assert all(branch.messages[-1].role == "assistant" for branch in branches)


def rows(*nodes: tuple[object, object, str], **keys: object) -> Record:
    """Return the rows of one tree: id, parent and text of each."""
    roles = ["prompter", "assistant"]
    return {
        "message_tree_id": "t",
        "tree_rows": [
            {"message_id": name, "parent_id": parent, "text": text, "role": roles[parent is not None], **keys}
            for name, parent, text in nodes
        ],
    }


FIRST = ("t", None, PROMPT)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (rows(FIRST, ("a", "t", ANSWER)), READ),
        (rows(("a", "t", ANSWER), FIRST), READ),
        (rows((1, None, PROMPT), (2, 1, ANSWER)), READ),
        (rows(("t", "", PROMPT), ("a", "t", ANSWER)), [("a", PROMPT), ("a", ANSWER)]),
        (rows(FIRST), "no_messages"),
        (rows(FIRST, ("a", "t", ANSWER), deleted=True), "no_messages"),
        (rows(FIRST, ("a", "t", ANSWER), deleted="True"), "no_messages"),
        (rows(FIRST, ("a", "x", ANSWER)), "tree_row"),
        (rows(FIRST, ("a", "t", ANSWER), ("a", "t", WORSE)), "tree_row"),
        (rows(("t", "a", PROMPT), ("a", "t", ANSWER)), "tree_row"),
        ({"tree_rows": [ROWS, 5]}, "tree_row"),
        ({"tree_rows": []}, "tree_row"),
    ],
    ids=repr,
)
def test_rows_of_a_tree(record: Record, expected: object) -> None:
    assert outcome(record) == expected


@pytest.mark.parametrize("ranks", [(1, 0), ("1", "0"), (None, 2), ("", 0)], ids=repr)
def test_the_answer_of_the_best_rank_is_read_from_rows(ranks: tuple[object, object]) -> None:
    record = rows(FIRST, ("w", "t", WORSE), ("a", "t", ANSWER))
    for row, rank in zip(record["tree_rows"][1:], ranks, strict=True):
        row["rank"] = rank
    assert outcome(record) == READ
    texts = [each.messages[-1].content for each in formats.parse_all(record, ReadOptions(branches=True))]
    assert texts == [ANSWER, WORSE]


def test_a_row_alone_is_rejected_by_its_id() -> None:
    with pytest.raises(RecordError, match="no rows near it link message 'x' \\(parent 't'\\)"):
        formats.parse(ROWS)


# ---- Arena


def battle(winner: object, one: object = CHAT, other: object = WORSE_CHAT) -> Record:
    return {"winner": winner, "conversation_a": one, "conversation_b": other}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (battle("model_a"), READ),
        (battle("model_b", WORSE_CHAT, CHAT), READ),
        (battle(" Model_A "), READ),
        (battle("tie"), "no_preference"),
        (battle("tie (bothbad)"), "no_preference"),
        (battle("both_bad"), "no_preference"),
        (battle(None), "no_preference"),
        (battle(1), "no_preference"),
        ({"conversation_a": CHAT, "conversation_b": WORSE_CHAT}, "no_preference"),
        (battle("model_a", json.dumps(CHAT)), READ),
        (battle("model_a", "hi"), "no_messages"),
        (battle("model_a", other="hi"), "no_messages"),
        (battle("model_a", [user(PROMPT), None]), "bad_turn"),
        (battle("model_a", []), "unknown_format"),
        (battle("model_a", [user(PROMPT), answer([{"type": "text", "text": ANSWER}])]), READ),
        ({**battle("model_a"), "toxic": True}, "bad_label"),
        ({"prompt": '["a","b"]', "response_a": '["c","d"]', "response_b": '["e"]', "winner_model_a": 1}, "bad_turn"),
        ({"prompt": PROMPT, "response_a": ANSWER, "response_b": WORSE, "winner_tie": 1}, "no_preference"),
        (
            {"prompt": PROMPT, "response_a": ANSWER, "response_b": WORSE, "winner_model_a": 1, "winner_model_b": 1},
            "no_preference",
        ),
        ({"winner": "model_a", "full_conversation": ["x"]}, "bad_turn"),
    ],
    ids=repr,
)
def test_arena(record: Record, expected: object) -> None:
    assert outcome(record) == expected


def test_the_winners_model_is_the_conversations() -> None:
    conversation = formats.parse({**battle("model_b", WORSE_CHAT, CHAT), "model_a": "m", "model_b": "n", "id": 7})
    assert (conversation.model, conversation.source_id) == ("n", "7")
    assert conversation.metadata == {"winner": "model_b", "model_a": "m", "model_b": "n"}


def test_a_chat_that_differs_earlier_than_its_last_answer_stays_in_the_metadata() -> None:
    longer = [*WORSE_CHAT, user("And?"), answer(WORSE)]
    conversation = formats.parse(battle("model_a", [*CHAT, user("And?"), answer(ANSWER)], longer))
    assert conversation.rejected_answer == []
    assert conversation.metadata["conversation_b"] == longer


# ---- self-instruct


def task(*instances: object, **keys: object) -> Record:
    return {"id": "s", "instruction": PROMPT, "instances": list(instances), **keys}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (task({"input": "", "output": ANSWER}), READ),
        (task({"input": None, "output": ANSWER}), READ),
        (task({"output": ANSWER}), READ),
        (task({"input": "India.", "output": ANSWER}), [("u", f"{PROMPT}{INPUT_MARK}India."), ("a", ANSWER)]),
        (task({"input": "", "output": ""}), [("u", PROMPT), ("a", "")]),
        (task({"input": "", "output": 4}), [("u", PROMPT), ("a", "4")]),
        (task({"input": "", "output": [ANSWER, WORSE]}), "several_answers"),
        (task(), "no_messages"),
        (task({"input": ""}), "bad_turn"),
        (task(None), "bad_turn"),
        (task(ANSWER), "bad_turn"),
        (task({"output": ANSWER, "id": "x"}), "bad_turn"),
        ({"instruction": PROMPT, "instances": ANSWER}, "unknown_format"),
        ({"instruction": PROMPT, "outputs": [ANSWER, WORSE]}, "unknown_format"),
    ],
    ids=repr,
)
def test_self_instruct(record: Record, expected: object) -> None:
    assert outcome(record) == expected


def test_each_instance_is_a_conversation_with_the_keys_of_its_task() -> None:
    record = task({"input": "1", "output": "one"}, {"input": "2", "output": "two"}, is_classification=True)
    conversations = formats.parse_all(record)
    assert [conversation.messages[-1].content for conversation in conversations] == ["one", "two"]
    for conversation in conversations:
        assert (conversation.source_id, conversation.metadata) == ("s", {"is_classification": True})


# ---- stepwise supervision


def steps(completions: object, labels: object) -> Record:
    return {"prompt": PROMPT, "completions": completions, "labels": labels}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (steps(["One.", "Two."], [True, True]), [("u", PROMPT), ("a", "One.\nTwo.")]),
        (steps(["One.", "Two."], [True, False]), "bad_label"),
        (steps(["One."], [0]), "bad_label"),
        (steps(["One."], ["true"]), [("u", PROMPT), ("a", "One.")]),
        (steps(["One."], [True, True]), "bad_turn"),
        (steps([], []), "bad_turn"),
        (steps(["One.", None], [True, True]), "bad_turn"),
        (steps([["One."]], [True]), "bad_turn"),
        (steps("One.", [True]), "unknown_format"),
        ({"prompt": PROMPT, "completions": ["One."]}, "unknown_format"),
        ({"prompt": PROMPT, "completion": ANSWER, "label": False}, "bad_label"),
        ({"prompt": PROMPT, "completion": ANSWER, "label": True}, READ),
        ({"prompt": PROMPT}, "unknown_format"),
        ({"text": "The sky is blue."}, "unknown_format"),
    ],
    ids=repr,
)
def test_the_shapes_of_trl(record: Record, expected: object) -> None:
    assert outcome(record) == expected


# ---- SmolTalk2

TOOL = {"name": "f", "parameters": {"type": "object"}}


def smoltalk(**settings: object) -> Record:
    return {"messages": CHAT, "chat_template_kwargs": settings}


@pytest.mark.parametrize(
    ("settings", "system", "tools", "left"),
    [
        ({"custom_instructions": "Be brief."}, "Be brief.", None, None),
        (
            {"custom_instructions": "", "enable_thinking": True},
            None,
            None,
            {"custom_instructions": "", "enable_thinking": True},
        ),
        ({"custom_instructions": None}, None, None, {"custom_instructions": None}),
        ({"custom_instructions": ["x"]}, None, None, {"custom_instructions": ["x"]}),
        ({"xml_tools": [json.dumps(TOOL)]}, None, [TOOL], None),
        ({"xml_tools": [TOOL], "python_tools": []}, None, [TOOL], None),
        ({"xml_tools": [TOOL], "python_tools": [json.dumps(TOOL)]}, None, [TOOL, TOOL], None),
        ({"python_tools": ["def f(): ..."]}, None, None, {"python_tools": ["def f(): ..."]}),
        ({"python_tools": []}, None, None, {"python_tools": []}),
        ({"xml_tools": None}, None, None, {"xml_tools": None}),
    ],
    ids=repr,
)
def test_smoltalk2(settings: Record, system: str | None, tools: list[Record] | None, left: Record | None) -> None:
    conversation = formats.parse(smoltalk(**settings))
    assert [message.content for message in conversation.messages if message.role == "system"] == (
        [system] if system else []
    )
    definitions = [tool.get("function", tool) for tool in json.loads(conversation.tools or "[]")]
    assert definitions == [*(tool for tool in [TOOL, TOOL] if tool in (tools or []))][: len(tools or [])]
    assert conversation.metadata.get("chat_template_kwargs") == left


def test_a_second_system_text_of_the_settings_is_named() -> None:
    record = {
        "messages": [{"role": "system", "content": "A"}, *CHAT],
        "chat_template_kwargs": {"custom_instructions": "B"},
    }
    conversation = formats.parse(record)
    assert [(edit.rule, edit.before) for edit in conversation.edits] == [("second_system", "B")]
    assert conversation.metadata["chat_template_kwargs"] == {"custom_instructions": "B"}


def test_settings_beside_a_preference_are_read() -> None:
    record = {"chosen": CHAT, "rejected": WORSE_CHAT, "chat_template_kwargs": {"custom_instructions": "Be brief."}}
    conversation = formats.parse(record)
    assert outcome(record) == [("s", "Be brief."), *READ]
    assert [message.content for message in conversation.rejected_answer] == [WORSE]


def test_settings_that_are_no_object_stay() -> None:
    assert formats.parse({"messages": CHAT, "chat_template_kwargs": None}).metadata == {"chat_template_kwargs": None}
