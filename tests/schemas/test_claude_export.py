"""Claude's export: trees by parent, blocks of every type, attachments, and what is left out."""

from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import RecordError
from curate.schemas import formats
from curate.schemas.conversation import Conversation
from curate.schemas.formats.exports.claude import ROOT
from curate.schemas.reading.options import ReadOptions

Json = dict[str, Any]


def block(text: str) -> Json:
    return {"type": "text", "text": text, "citations": []}


def message(key: str, sender: str, *content: Json, parent: str | None = None, **others: object) -> Json:
    flat = "\n\n".join(item["text"] for item in content if item["type"] == "text")
    value: Json = {"uuid": key, "text": flat, "content": list(content), "sender": sender}
    value |= {"created_at": "2026-01-01T00:00:00Z", "attachments": [], "files": []}
    return {**value, **({} if parent is None else {"parent_message_uuid": parent}), **others}


def record(*messages: Json, **others: object) -> Json:
    return {"uuid": "c1", "name": "Rye", "account": {"uuid": "me"}, "chat_messages": list(messages), **others}


def read(value: Json, **options: bool) -> Conversation:
    return formats.parse(value, ReadOptions(**options))  # type: ignore[arg-type]


def shown(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.messages]


def rules(conversation: Conversation) -> list[str]:
    return [edit.rule for edit in conversation.edits if edit.rule != "private_data"]


PROMPT = message("u", "human", block("Rye?"))
ANSWER = message("a", "assistant", block("Twelve hours."))


def test_older_exports_without_parents_are_read_in_order() -> None:
    conversation = read(record(PROMPT, ANSWER, message("u2", "human", block("Warm?"))))
    assert shown(conversation) == [("user", "Rye?"), ("assistant", "Twelve hours."), ("user", "Warm?")]
    assert conversation.source_id == "c1" and conversation.model is None
    assert conversation.metadata == {"name": "Rye"}


def mixed() -> Json:
    """Return a chat whose array mixes two branches: an answer regenerated, each followed by a prompt."""
    return record(
        message("u", "human", block("Rye?"), parent=ROOT),
        message("a2", "assistant", block("Two hours."), parent="u", created_at="2026-01-03T00:00:00Z"),
        message("a1", "assistant", block("One hour."), parent="u"),
        message("v1", "human", block("Sure?"), parent="a1"),
        message("b1", "assistant", block("No."), parent="v1", created_at="2026-01-02T00:00:00Z"),
    )


def test_a_tree_is_walked_up_from_its_newest_leaf() -> None:
    assert shown(read(mixed())) == [("user", "Rye?"), ("assistant", "Two hours.")]
    assert read(mixed()).metadata["other_branches"] == 1
    named = {**mixed(), "current_leaf_message_uuid": "b1"}
    assert [content for _, content in shown(read(named))] == ["Rye?", "One hour.", "Sure?", "No."]


def test_every_branch_is_read_and_no_answer_is_trained_on_twice() -> None:
    value = mixed()
    value["chat_messages"] += [
        message("b2", "assistant", block("Yes."), parent="v1", created_at="2026-01-02T00:00:00Z")
    ]
    branches = formats.parse_all(value, ReadOptions(branches=True))
    trained = [[m.content for m in c.messages if m.role == "assistant" and m.train] for c in branches]
    assert trained == [["Two hours."], ["One hour.", "No."], ["Yes."]]


@pytest.mark.parametrize(
    ("parents", "expected", "edits"),
    [
        pytest.param({"u": "a"}, ["Rye?", "Twelve hours."], ["broken_tree"], id="a cycle"),
        pytest.param({"u": "gone"}, ["Rye?", "Twelve hours."], ["broken_tree"], id="a parent that is missing"),
        pytest.param({"u": None}, ["Rye?", "Twelve hours."], [], id="a parent that is null"),
        pytest.param({"u": ROOT, "a": "u"}, ["Rye?", "Twelve hours."], [], id="the usual root"),
    ],
)
def test_odd_parents_leave_what_is_above_the_leaf(parents: Json, expected: list[str], edits: list[str]) -> None:
    messages = [{**PROMPT, "parent_message_uuid": parents["u"]}, {**ANSWER, "parent_message_uuid": "u"}]
    conversation = read(record(*messages))
    assert [content for _, content in shown(conversation)] == expected and rules(conversation) == edits


@pytest.mark.parametrize("value", [None, [], "text", {}, [None], [[]]])
def test_a_chat_without_messages_is_a_reject_of_its_own(value: object) -> None:
    with pytest.raises(RecordError, match="'chat_messages'") as error:
        read({"uuid": "c", "chat_messages": value})
    assert error.value.rule == "no_messages"


def test_thoughts_and_tools_are_parts_of_the_answer() -> None:
    answer = message(
        "a",
        "assistant",
        {"type": "thinking", "thinking": "Look it up.", "summaries": [{"summary": "Looking"}], "cut_off": False},
        block("Let me see."),
        {"type": "tool_use", "id": "t1", "name": "web_search", "input": {"query": "rye"}},
        {
            "type": "tool_result",
            "tool_use_id": "t1",
            "name": "web_search",
            "content": [
                {"type": "knowledge", "title": "Rye", "url": "https://rye.example", "text": "Rye rises."},
                {"type": "local_resource", "file_path": "/out/rye.md", "name": "rye", "uuid": "x"},
                {"type": "text", "text": "12 h"},
            ],
        },
        {"type": "token_budget", "remaining": 9},
        block("Twelve hours."),
    )
    conversation = read(record(PROMPT, answer))
    assert shown(conversation) == [
        ("user", "Rye?"),
        ("assistant", "Let me see."),
        ("tool", "Rye\nhttps://rye.example\nRye rises.\n\nrye\n/out/rye.md\n\n12 h"),
        ("assistant", "Twelve hours."),
    ]
    _, call, result, last = conversation.messages
    assert call.reasoning == "Look it up." and result.tool_call_id == "t1" and call.train and last.train
    [read_call] = json.loads(call.tool_calls or "")
    assert read_call["function"] == {"name": "web_search", "arguments": '{"query":"rye"}'}
    kept = json.loads(last.extra or "")["blocks"]
    assert {"type": "token_budget", "remaining": 9} in kept and kept[0]["summaries"] == [{"summary": "Looking"}]


def test_an_artifact_has_no_result_and_gets_an_empty_one() -> None:
    artifact = {"type": "tool_use", "name": "artifacts", "input": {"command": "create", "content": "print(1)"}}
    conversation = read(record(PROMPT, message("a", "assistant", artifact, block("Done."))))
    assert [role for role, _ in shown(conversation)] == ["user", "assistant", "tool", "assistant"]
    assert rules(conversation) == ["missing_result"]


def test_the_text_of_attachments_is_a_part_of_the_prompt() -> None:
    pasted = {"file_name": "", "file_type": "txt", "extracted_content": "Pasted text."}
    paper = {"file_name": "paper.pdf", "file_size": 3, "extracted_content": "On rye."}
    prompt = message("u", "human", block("Sum up."), attachments=[pasted, paper], files=[{"file_name": "paper.pdf"}])
    conversation = read(record(prompt, ANSWER))
    assert conversation.messages[0].content == "Sum up.\n\nPasted text.\n\npaper.pdf\n\nOn rye."
    assert rules(conversation) == ["attachment_text"] and not conversation.flaws


@pytest.mark.parametrize(
    "others",
    [
        pytest.param({"files": [{"file_name": "rye.png", "file_kind": "image"}]}, id="a picture"),
        pytest.param({"files": [{"file_uuid": "f"}]}, id="a file without a name"),
        pytest.param({"attachments": [{"file_name": "a.xls", "extracted_content": ""}]}, id="a file without text"),
        pytest.param({"content": [block("x"), {"type": "image", "source": {"data": "…"}}]}, id="a picture's block"),
    ],
)
def test_what_the_export_does_not_hold_is_a_flaw_of_its_turn(others: Json) -> None:
    conversation = read(record(PROMPT, ANSWER, {**message("u2", "human", block("x")), **others}))
    assert [(flaw.rule, flaw.message) for flaw in conversation.flaws] == [("multimodal", 2)]


def test_a_picture_in_a_result_is_a_flaw() -> None:
    call = {"type": "tool_use", "id": "t", "name": "view", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "file_uuid": "f"}]}
    conversation = read(record(PROMPT, message("a", "assistant", call, result, block("A loaf."))))
    assert [flaw.message for flaw in conversation.flaws] == [2]


@pytest.mark.parametrize(
    ("content", "flat", "expected"),
    [
        pytest.param([], "flat", "flat", id="no blocks, the flattened text"),
        pytest.param(None, "flat", "flat", id="content is null"),
        pytest.param("plain", "", "plain", id="content is text"),
        pytest.param([block("a"), block("b")], "x", "a\n\nb", id="two texts"),
        pytest.param([], "", "", id="an empty message"),
        pytest.param([{"type": "voice_note", "text": "said", "title": "t"}], "", "said", id="an unknown block"),
    ],
)
def test_a_messages_text_is_in_its_blocks_or_flattened(content: object, flat: str, expected: str) -> None:
    for sender in ("human", "assistant"):
        value = {"uuid": "m", "sender": sender, "content": content, "text": flat}
        assert read(record(value)).messages[0].content == expected


def test_an_unknown_sender_is_a_reject() -> None:
    with pytest.raises(RecordError, match="the role of turn 1 is 'ghost'"):
        read(record(PROMPT, message("g", "ghost", block("boo"))))


def test_the_account_is_left_out_with_a_count() -> None:
    conversation = read(record(PROMPT, ANSWER))
    assert [(edit.rule, edit.count) for edit in conversation.edits] == [("private_data", 1)]
    assert "'me'" not in repr(conversation)
    others = {"organization": {"id": "mine"}, "sessionToken": "secret", "organization_uuid": "", "project": "open"}
    conversation = read(record(PROMPT, ANSWER, **others))
    assert [(edit.rule, edit.count) for edit in conversation.edits] == [("private_data", 3)]
    assert "mine" not in repr(conversation) and "secret" not in repr(conversation)
    assert conversation.metadata["project"] == "open"


def test_a_file_without_a_name_is_named_so() -> None:
    prompt = {**PROMPT, "attachments": [{"url": "https://example.org/a"}], "files": [{"file_uuid": "f7"}]}
    reasons = [flaw.reason for flaw in read(record(prompt, ANSWER)).flaws]
    assert reasons == [
        "turn 0 holds a file without a name, which a text model cannot see",
        "turn 0 holds the file 'f7', which a text model cannot see",
    ]


def test_no_key_vanishes() -> None:
    answer = message("a", "assistant", {**block("x"), "b": "key-1"}, new="key-2")
    prompt = message("u", "human", {**block("x"), "b": "key-3"}, new="key-4")
    conversation = read(record(prompt, answer, project={"uuid": "key-5"}))
    found = json.dumps(conversation.metadata) + "".join(m.extra or "" for m in conversation.messages)
    assert all(f"key-{number}" in found for number in range(1, 6))


def test_a_design_chat_is_read() -> None:
    value = {
        "id": "d1",
        "project": {"id": "p"},
        "messages": [
            {"id": "m1", "role": "user", "contentBlocks": [{"type": "text", "text": "A logo."}]},
            {
                "id": "m2",
                "role": "assistant",
                "contentBlocks": [
                    {"type": "thinking", "thinking": "Round."},
                    {"type": "tool_call", "toolName": "draw", "input": {"shape": "o"}, "output": "drawn"},
                    {"type": "error", "message": "late"},
                    {"type": "text", "text": "Here."},
                    {"type": "user_interjection", "text": "Nice"},
                ],
            },
        ],
    }
    conversation = read(value)
    assert shown(conversation) == [
        ("user", "A logo."),
        ("assistant", ""),
        ("tool", "drawn"),
        ("assistant", "Here."),
        ("user", "Nice"),
    ]
    assert conversation.source_id == "d1" and conversation.messages[1].reasoning == "Round."


def test_records_fit_the_schema_of_the_format() -> None:
    path = Path(formats.__file__).parent / "records" / "claude.schema.json"
    schema = jsonschema.Draft202012Validator(json.loads(path.read_text("utf-8")))
    for value in (mixed(), record(PROMPT, ANSWER)):
        schema.validate(value)


KEYS = st.sampled_from("abcdef")
PARENTS = st.dictionaries(KEYS, st.none() | KEYS | st.just("gone") | st.just(ROOT), min_size=1)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(PARENTS, st.booleans())
def test_any_tree_is_read_along_the_parents(parents: dict[str, str | None], branches: bool) -> None:
    messages = [
        {**message(key, "assistant" if key in "bdf" else "human", block(key)), "parent_message_uuid": parent}
        for key, parent in parents.items()
    ]
    conversations = formats.parse_all(record(*messages), ReadOptions(branches=branches))
    words = "\n\n".join(m.content for m in conversations[0].messages).split("\n\n")
    assert len(set(words)) == len(words)
    assert all(parents[below] == above for above, below in itertools.pairwise(words))
    trained = [m.content for c in conversations for m in c.messages if m.role == "assistant" and m.train]
    assert len(set(trained)) == len(trained)


@given(
    st.sampled_from(["sender", "text", "content", "attachments", "files", "parent_message_uuid", "uuid", "input"]),
    JUNK,
    st.sampled_from(["text", "thinking", "tool_use", "tool_result", "image", "flag", ""]),
)
def test_junk_in_place_of_any_value_never_crashes(place: str, junk: Any, kind: str) -> None:
    odd = {"type": kind, "text": junk, "thinking": junk, "input": junk, "content": junk, "name": junk, "id": junk}
    for sender in ("human", "assistant"):
        value = record(PROMPT, {**message("x", sender, block("x")), "content": [odd]}, {**ANSWER, place: junk})
        with contextlib.suppress(RecordError):
            formats.parse_all(value, ReadOptions(branches=True))
