"""Open WebUI's chats: branches, reasoning and calls in elements or items, ratings, and what is not trained on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from curate.errors import RecordError
from curate.schemas import Conversation, formats
from curate.schemas.reading.options import ReadOptions

Json = dict[str, Any]

PROMPT, ANSWER, OTHER = "What is 15 * 17?", "It is 255.", "It is 250."


def message(name: str, parent: str | None, role: str, content: object, **keys: object) -> Json:
    return {"id": name, "parentId": parent, "childrenIds": [], "role": role, "content": content, **keys}


def chat(*messages: Json, current: str | None = None, **keys: object) -> Json:
    history = {"messages": {each["id"]: each for each in messages}, "currentId": current or messages[-1]["id"]}
    return {"id": "c", "user_id": "u", "title": "Sums", "chat": {"title": "Sums", "history": history, **keys}}


ASKED = message("p", None, "user", PROMPT, timestamp=1, models=["m"])


def answered(content: object, **keys: object) -> Json:
    return chat(ASKED, message("a", "p", "assistant", content, model="m", timestamp=2, **keys))


def texts(conversation: Conversation) -> list[tuple[str, str]]:
    return [(each.role, each.content) for each in conversation.messages]


READ = [("user", PROMPT), ("assistant", ANSWER)]


def details(kind: str, body: str, **attributes: str) -> str:
    shown = "".join(f' {key}="{value}"' for key, value in attributes.items())
    return f'<details type="{kind}" done="true"{shown}>\n<summary>Done</summary>\n{body}\n</details>\n'


def test_the_current_branch_is_read_and_the_others_on_request() -> None:
    record = chat(
        ASKED,
        message("b", "p", "assistant", OTHER, timestamp=3),
        message("a", "p", "assistant", ANSWER, timestamp=2),
        current="a",
    )
    conversation = formats.parse(record)
    assert texts(conversation) == READ and conversation.metadata["other_branches"] == 1
    branches = formats.parse_all(record, ReadOptions(branches=True))
    assert [each.messages[-1].content for each in branches] == [ANSWER, OTHER]
    record["chat"]["history"]["currentId"] = "gone"
    assert formats.parse(record).messages[-1].content == OTHER, "the newest"


def test_model_metadata_and_system_prompt_are_read_and_the_user_is_not() -> None:
    record = answered(ANSWER)
    record["chat"] |= {"models": ["m"], "params": {"system": "Be brief.", "top_k": 3}, "tags": ["maths"], "title": "T"}
    conversation = formats.parse(record)
    assert texts(conversation) == [("system", "Be brief."), *READ]
    assert (conversation.source_id, conversation.model) == ("c", "m")
    assert conversation.metadata == {
        **{"models": ["m"], "params": {"top_k": 3}, "tags": ["maths"]},
        **{"title": "Sums", "chat": {"title": "T"}},
    }
    assert [edit.rule for edit in conversation.edits] == ["private_data"]


def test_a_chat_without_the_record_around_it_is_read() -> None:
    assert texts(formats.parse(answered(ANSWER)["chat"])) == READ


def test_the_list_of_the_messages_shown_is_not_read_twice() -> None:
    record = answered(ANSWER)
    record["chat"]["messages"] = list(record["chat"]["history"]["messages"].values())
    assert "messages" not in formats.parse(record).metadata
    record["chat"]["messages"].append(message("x", "a", "user", "And?"))
    with pytest.raises(RecordError, match="two chats that differ"):
        formats.parse(record)


@pytest.mark.parametrize("body", ["> 15 * 17\n> is 255", "&gt; 15 * 17\n&gt; is 255"], ids=["plain", "escaped"])
def test_reasoning_in_an_element_is_read(body: str) -> None:
    conversation = formats.parse(answered(details("reasoning", body, duration="3") + ANSWER))
    assert texts(conversation) == READ
    assert conversation.messages[1].reasoning == "15 * 17\nis 255"


def test_calls_in_elements_are_read_with_their_results() -> None:
    attributes = {
        "id": "c1",
        "name": "sum",
        "arguments": "&quot;{\\&quot;x\\&quot;: 1}&quot;",
        "result": "&quot;255&quot;",
    }
    conversation = formats.parse(answered("I ask." + details("tool_calls", "", **attributes) + ANSWER))
    assert texts(conversation) == [("user", PROMPT), ("assistant", "I ask."), ("tool", "255"), ("assistant", ANSWER)]
    [call] = json.loads(conversation.messages[1].tool_calls or "")
    assert call == {"id": "c1", "type": "function", "function": {"name": "sum", "arguments": '{"x": 1}'}}
    assert (conversation.messages[2].name, conversation.messages[2].tool_call_id) == ("sum", "c1")


def test_code_that_was_run_is_a_call() -> None:
    code = details("code_interpreter", "```python\nprint(15 * 17)\n```", output="{&quot;stdout&quot;: &quot;255&quot;}")
    conversation = formats.parse(answered(code + ANSWER))
    [call] = json.loads(conversation.messages[1].tool_calls or "")
    assert json.loads(call["function"]["arguments"]) == {"code": "print(15 * 17)"}
    assert conversation.messages[2].content == '{"stdout": "255"}' and conversation.messages[3].content == ANSWER


def test_items_of_an_answer_are_read_rather_than_its_text() -> None:
    items = [
        {"type": "reasoning", "id": "r", "content": [{"type": "output_text", "text": "15 times 17."}], "duration": 3},
        {"type": "function_call", "call_id": "c1", "name": "sum", "arguments": '{"x":1}', "status": "completed"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "255"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": ANSWER}]},
    ]
    conversation = formats.parse(answered(details("reasoning", "> 15") + ANSWER, output=items))
    assert texts(conversation) == [("user", PROMPT), ("assistant", ""), ("tool", "255"), ("assistant", ANSWER)]
    assert conversation.messages[1].reasoning == "15 times 17."
    assert '"duration":3' in (conversation.messages[1].extra or conversation.messages[3].extra or "")


def test_ratings_make_labels_and_pairs() -> None:
    up, down = {"annotation": {"rating": 1}}, {"annotation": {"rating": "-1", "reason": "wrong"}}
    worse = message("b", "p", "assistant", OTHER)
    pair = formats.parse(chat(ASKED, worse, message("a", "p", "assistant", ANSWER, **up)))
    assert [each.content for each in pair.rejected_answer] == [OTHER] and not pair.flaws
    bad = formats.parse(answered(ANSWER, **down))
    assert [(flaw.rule, flaw.message) for flaw in bad.flaws] == [("bad_label", 1)]
    assert "wrong" in (bad.messages[1].extra or "")
    assert not formats.parse(answered(ANSWER, annotation={"rating": 0})).flaws


@pytest.mark.parametrize(
    ("keys", "rule"),
    [
        ({"files": [{"type": "image", "url": "data:image/png;base64,AA"}]}, "multimodal"),
        ({"files": [{"type": "file", "name": "a.pdf"}]}, "needs_context"),
        ({"files": []}, None),
    ],
    ids=["picture", "file", "none"],
)
def test_files_of_a_prompt_are_flagged(keys: Json, rule: str | None) -> None:
    record = chat({**ASKED, **keys}, message("a", "p", "assistant", ANSWER))
    assert [flaw.rule for flaw in formats.parse(record).flaws] == ([rule] if rule else [])


def test_an_answer_from_sources_or_of_a_tool_without_a_name_needs_context() -> None:
    shown = formats.parse(answered(ANSWER, sources=[{"document": ["15 * 17 = 255"]}]))
    nameless = formats.parse(answered('<details type="tool_calls"><summary>x</summary>"255"</details>' + ANSWER))
    assert [[flaw.rule for flaw in each.flaws] for each in (shown, nameless)] == [["needs_context"]] * 2
    assert texts(nameless) == READ


@pytest.mark.parametrize("keys", [{"done": False}, {"error": {"content": "out of memory"}}], ids=["not done", "error"])
def test_an_answer_that_was_not_finished_has_no_stop(keys: Json) -> None:
    assert not formats.parse(answered(ANSWER, **keys)).messages[1].stop
    assert formats.parse(answered(ANSWER, done=True)).messages[1].stop


def test_elements_of_other_kinds_stay_in_the_text() -> None:
    text = "<details><summary>More</summary>x</details>\n" + ANSWER
    assert formats.parse(answered(text)).messages[1].content == text


@pytest.mark.parametrize(
    ("record", "rule"),
    [
        ({"id": "c", "chat": {"history": {"messages": {}, "currentId": None}}}, "no_messages"),
        ({"id": "c", "chat": {"history": {"messages": {"p": None}}}}, "no_messages"),
        (chat({**ASKED, "role": "narrator"}), "unknown_role"),
        (chat({**ASKED, "role": None}), "unknown_role"),
        (answered({"x": 1}), "bad_value"),
        (answered(True), "bad_value"),
        ({"id": "c", "chat": {"history": {"messages": "x"}}}, "unknown_format"),
        ({"id": "c", "chat": {"history": []}}, "unknown_format"),
    ],
    ids=repr,
)
def test_what_is_wrong_is_named(record: Json, rule: str) -> None:
    with pytest.raises(RecordError) as error:
        formats.parse(record)
    assert error.value.rule == rule and error.value.reason


def test_a_cycle_and_a_missing_message_cost_only_what_is_above_them() -> None:
    lost = formats.parse(chat(ASKED | {"parentId": "gone"}, message("a", "p", "assistant", ANSWER)))
    assert texts(lost) == READ and "broken_tree" in [edit.rule for edit in lost.edits]
    loop = formats.parse(chat(ASKED | {"parentId": "a"}, message("a", "p", "assistant", ANSWER)))
    assert texts(loop) == READ
