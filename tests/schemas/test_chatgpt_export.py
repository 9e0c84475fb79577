"""ChatGPT's export: trees of every shape, several nodes of one answer, what is left out, and what is mended."""

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
from curate.schemas.reading.options import ReadOptions

Json = dict[str, Any]


def text(*parts: object) -> Json:
    return {"content_type": "text", "parts": list(parts)}


def node(key: str, parent: str | None, role: str, content: object, **message: object) -> Json:
    """Return a node of 2026: without `children`."""
    author = {"role": role, "name": message.pop("name", None), "metadata": {}}
    defaults = {"id": key, "author": author, "create_time": float(len(key)), "content": content, "metadata": {}}
    defaults |= {"status": "finished_successfully", "end_turn": role == "assistant" or None, "weight": 1.0}
    defaults |= {"recipient": "all", "channel": None}
    return {"id": key, "parent": parent, "message": {**defaults, **message}}


def record(*nodes: Json, current: str | None = None, **others: object) -> Json:
    mapping = {"root": {"id": "root", "parent": None, "message": None}, **{item["id"]: item for item in nodes}}
    leaf = {"current_node": current or nodes[-1]["id"]}
    return {"title": "Bread", "mapping": mapping, **leaf, "conversation_id": "c1", "id": "c1", **others}


def chain(*messages: tuple[str, object, Json]) -> Json:
    """Return a chat without branches: (role, content, other keys of the message)."""
    parents = ["root", *(f"n{number}" for number in range(len(messages)))]
    nodes = [
        node(f"n{number}", parents[number], role, content, **others)
        for number, (role, content, others) in enumerate(messages)
    ]
    return record(*nodes)


def read(value: Json, **options: bool) -> Conversation:
    return formats.parse(value, ReadOptions(**options))  # type: ignore[arg-type]


def shown(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.messages]


def rules(conversation: Conversation) -> dict[str, int]:
    return {edit.rule: edit.count for edit in conversation.edits}


PROMPT: tuple[str, object, Json] = ("user", text("Rye?"), {})
ANSWER: tuple[str, object, Json] = ("assistant", text("Twelve hours."), {})


def forked() -> Json:
    """Return a chat in which the first prompt was edited, and the answer to the edited one regenerated twice."""
    return record(
        node("u", "root", "user", text("Ry?")),
        node("a", "u", "assistant", text("What?")),
        node("u2", "root", "user", text("Rye?")),
        node("a1", "u2", "assistant", text("One hour.")),
        node("a2", "u2", "assistant", text("Twelve hours."), metadata={"model_slug": "gpt-4o"}),
        node("a3", "u2", "assistant", text("Two hours.")),
        node("u3", "a2", "user", text("Warm?")),
        node("a4", "u3", "assistant", text("Three.")),
        current="a4",
    )


def test_the_branch_that_was_shown_last_is_read() -> None:
    conversation = read(forked())
    expected = [("user", "Rye?"), ("assistant", "Twelve hours."), ("user", "Warm?"), ("assistant", "Three.")]
    assert shown(conversation) == expected
    assert conversation.source_id == "c1" and conversation.model == "gpt-4o"
    assert conversation.metadata == {"title": "Bread", "other_branches": 3}


def test_every_branch_is_read_and_no_answer_is_trained_on_twice() -> None:
    branches = formats.parse_all(forked(), ReadOptions(branches=True))
    last = [conversation.messages[-1].content for conversation in branches]
    assert last == ["Three.", "What?", "One hour.", "Two hours."]
    trained = [m.content for c in branches for m in c.messages if m.role == "assistant" and m.train]
    assert sorted(trained) == ["One hour.", "Three.", "Twelve hours.", "Two hours.", "What?"]


def test_a_branch_below_a_known_answer_does_not_train_it_again() -> None:
    value = record(
        node("u", "root", "user", text("A?")),
        node("a", "u", "assistant", text("a")),
        node("u1", "a", "user", text("B?")),
        node("b", "u1", "assistant", text("b")),
        node("u2", "a", "user", text("C?")),
        node("c", "u2", "assistant", text("c")),
        node("u3", "a", "user", text("never answered")),
        current="b",
    )
    branches = formats.parse_all(value, ReadOptions(branches=True))
    assert [[m.train for m in c.messages if m.role == "assistant"] for c in branches] == [[True, True], [False, True]]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"current_node": None}, id="no current node"),
        pytest.param({"current_node": "gone"}, id="a current node that is missing"),
        pytest.param({"id": None}, id="no id of the record"),
    ],
)
def test_without_a_current_node_the_newest_leaf_is_read(change: Json) -> None:
    assert shown(read({**chain(PROMPT, ANSWER), **change})) == [("user", "Rye?"), ("assistant", "Twelve hours.")]


def test_older_exports_list_children_and_may_not_name_parents() -> None:
    value = chain(PROMPT, ANSWER)
    for item, children in zip(value["mapping"].values(), (["n0"], ["n1"], []), strict=True):
        del item["parent"]
        item["children"] = children
    assert shown(read(value)) == [("user", "Rye?"), ("assistant", "Twelve hours.")]


def test_a_cycle_and_a_missing_node_leave_what_is_above_the_leaf() -> None:
    cycle = chain(PROMPT, ANSWER)
    cycle["mapping"]["n0"]["parent"] = "n1"
    assert shown(read(cycle)) == [("user", "Rye?"), ("assistant", "Twelve hours.")]
    assert rules(read(cycle)) == {"broken_tree": 1}
    lost = chain(("user", text("Lost"), {}), PROMPT, ANSWER)
    del lost["mapping"]["n0"]
    assert shown(read(lost)) == [("user", "Rye?"), ("assistant", "Twelve hours.")]
    assert rules(read(lost)) == {"broken_tree": 1}


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"title": "t", "current_node": "x"}, id="no mapping"),
        pytest.param({"title": "t", "mapping": None, "current_node": None}, id="mapping is null"),
        pytest.param({"title": "t", "mapping": {}, "current_node": None}, id="no node"),
        pytest.param({"title": "t", "conversation_id": "c", "update_time": 1.5}, id="neither mapping nor current node"),
        pytest.param({"title": "t", "mapping": "{}"}, id="mapping is text"),
        pytest.param({"title": "t", "mapping": {"a": None}}, id="a node that is null"),
        pytest.param(record(node("s", "root", "system", text(""), weight=0.0)), id="only a hidden message"),
    ],
)
def test_an_empty_chat_is_a_reject_of_its_own(value: Json) -> None:
    with pytest.raises(RecordError, match="mapping") as error:
        read(value)
    assert error.value.rule == "no_messages"


def test_several_nodes_of_one_answer_are_one_message() -> None:
    thoughts = [{"summary": "Plan", "content": "Think of rye.", "chunks": [], "finished": True}]
    conversation = read(
        chain(
            PROMPT,
            ("assistant", {"content_type": "thoughts", "thoughts": thoughts}, {"end_turn": False}),
            ("assistant", {"content_type": "reasoning_recap", "content": "Thought for 4 seconds"}, {}),
            ("assistant", text("Half. "), {"channel": "commentary", "end_turn": False}),
            ("assistant", text("Twelve"), {"channel": "final", "end_turn": False}),
            ("assistant", text("hours."), {"channel": "final"}),
        )
    )
    assert shown(conversation) == [("user", "Rye?"), ("assistant", "Twelve\n\nhours.")]
    answer = conversation.messages[-1]
    assert answer.reasoning == "Think of rye.\n\nHalf. " and answer.stop
    extra = json.loads(answer.extra or "")
    assert extra["thoughts"] == [{"summary": "Plan"}]
    assert [joined["id"] for joined in extra["joined"]] == ["n2", "n3", "n4", "n5"]
    assert extra["joined"][0]["reasoning_recap"] == "Thought for 4 seconds"


def test_a_tool_is_called_and_answers() -> None:
    conversation = read(
        chain(
            PROMPT,
            ("assistant", text("Let me compute."), {"end_turn": False}),
            ("assistant", {"content_type": "code", "language": "unknown", "text": "6*2"}, {"recipient": "python"}),
            ("tool", {"content_type": "execution_output", "text": "12"}, {"name": "python"}),
            ANSWER,
        )
    )
    assert shown(conversation)[1:] == [
        ("assistant", "Let me compute."),
        ("tool", "12"),
        ("assistant", "Twelve hours."),
    ]
    [call] = json.loads(conversation.messages[1].tool_calls or "")
    assert call == {"id": "n2", "type": "function", "function": {"name": "python", "arguments": '{"code": "6*2"}'}}
    assert conversation.messages[2].tool_call_id == "n2" and conversation.messages[2].name == "python"


def test_browsing_and_canvas_are_calls_with_results() -> None:
    page = {"content_type": "tether_quote", "url": "https://rye.example", "domain": "x", "text": "Rye.", "title": "R"}
    canvas = '{"name":"Rye","type":"document","content":"# Rye"}'
    conversation = read(
        chain(
            PROMPT,
            ("assistant", {"content_type": "code", "language": "unknown", "text": 'search("rye")'},
             {"recipient": "browser"}),
            ("tool", {"content_type": "tether_browsing_display", "result": "# rye", "summary": None},
             {"name": "browser"}),
            ("tool", page, {"name": "browser"}),
            ("assistant", text(canvas), {"recipient": "canmore.create_textdoc"}),
            ("tool", text("Successfully created."), {"name": "canmore.create_textdoc"}),
            ANSWER,
        )
    )  # fmt: skip
    roles = [message.role for message in conversation.messages]
    assert roles == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert conversation.messages[2].content == "# rye\n\nR\nhttps://rye.example\nRye."
    [call] = json.loads(conversation.messages[3].tool_calls or "")
    assert call["function"] == {"name": "canmore.create_textdoc", "arguments": canvas}


def test_two_calls_in_a_row_have_the_results_of_their_names() -> None:
    conversation = read(
        chain(
            PROMPT,
            ("assistant", text("{}"), {"recipient": "web.run"}),
            ("assistant", text("[1]"), {"recipient": "bio"}),
            ("tool", text("saved"), {"name": "bio"}),
            ("tool", text("found"), {"name": "web.run"}),
            ANSWER,
        )
    )
    assert len(json.loads(conversation.messages[1].tool_calls or "")) == 2
    assert [m.tool_call_id for m in conversation.messages[2:4]] == ["n2", "n1"]


def test_a_call_without_a_result_gets_an_empty_one() -> None:
    conversation = read(chain(PROMPT, ("assistant", text("Remember."), {"recipient": "bio"}), ANSWER))
    assert [message.role for message in conversation.messages] == ["user", "assistant", "tool", "assistant"]
    assert rules(conversation) == {"missing_result": 1}


def instructions() -> Json:
    context = {"content_type": "user_editable_context", "user_profile": "I bake.", "user_instructions": "Be brief."}
    memory = {"content_type": "model_editable_context", "model_set_context": "Lives in Busan."}
    data = {"user_context_message_data": {"about_user_message": "I bake."}, "is_user_system_message": True}
    return chain(
        ("system", text(""), {"weight": 0.0}),
        ("user", context, {"metadata": data}),
        ("assistant", memory, {}),
        PROMPT,
        ("assistant", text("hidden"), {"metadata": {"is_visually_hidden_from_conversation": True}}),
        ("user", text("also hidden"), {"weight": 0}),
        ANSWER,
    )


def test_hidden_messages_and_private_texts_are_left_out_with_a_count() -> None:
    conversation = read(instructions())
    assert shown(conversation) == [("user", "Rye?"), ("assistant", "Twelve hours.")]
    assert rules(conversation) == {"hidden_message": 2, "private_data": 2}
    assert "bake" not in repr(conversation) and "Busan" not in repr(conversation)


def test_custom_instructions_become_the_system_message_on_request() -> None:
    conversation = read(instructions(), custom_instructions=True)
    assert shown(conversation)[0] == ("system", "I bake.\n\nBe brief.\n\nLives in Busan.")
    assert rules(conversation) == {"hidden_message": 2}
    branches = formats.parse_all(instructions(), ReadOptions(custom_instructions=True, branches=True))
    assert [message.role for message in branches[0].messages] == ["system", "user", "assistant"]


def test_a_hidden_result_of_a_call_stays_since_the_answer_needs_it() -> None:
    hidden = {"is_visually_hidden_from_conversation": True}
    call = ("assistant", text("{}"), {"recipient": "web.run"})
    conversation = read(chain(PROMPT, call, ("tool", text("found"), {"name": "web.run", "metadata": hidden}), ANSWER))
    assert ("tool", "found") in shown(conversation)


def test_pictures_are_flagged_by_turn_and_spoken_words_are_read() -> None:
    picture = {"content_type": "image_asset_pointer", "asset_pointer": "file-service://x", "width": 3}
    spoken = {"content_type": "audio_transcription", "text": "Hello", "direction": "in"}
    sound = {"content_type": "audio_asset_pointer", "asset_pointer": "sediment://y"}
    film = {"content_type": "real_time_user_audio_video_asset_pointer", "audio_asset_pointer": sound}
    conversation = read(
        chain(
            ("user", {"content_type": "multimodal_text", "parts": [picture, "What is it?"]}, {}),
            ANSWER,
            ("user", {"content_type": "multimodal_text", "parts": [spoken, film]}, {}),
            ("assistant", {"content_type": "multimodal_text", "parts": [{**spoken, "text": "Hi"}, sound]}, {}),
            ("user", {"content_type": "multimodal_text", "parts": [sound]}, {}),
            ANSWER,
        )
    )
    assert [content for _, content in shown(conversation)] == [
        "What is it?", "Twelve hours.", "Hello", "Hi", "", "Twelve hours."
    ]  # fmt: skip
    assert [(flaw.rule, flaw.message) for flaw in conversation.flaws] == [("multimodal", 0), ("multimodal", 4)]


def test_a_file_that_only_the_page_has_is_a_flaw_unless_a_tool_reads_it() -> None:
    files = {"metadata": {"attachments": [{"id": "f", "name": "rye.pdf"}]}}
    call = ("assistant", text("{}"), {"recipient": "python"})
    result = ("tool", text("12"), {"name": "python"})
    assert [flaw.message for flaw in read(chain(("user", text("Sum?"), files), ANSWER)).flaws] == [0]
    assert not read(chain(("user", text("Sum?"), files), call, result, ANSWER)).flaws


@pytest.mark.parametrize(
    ("keys", "stop"),
    [
        ({}, True),
        ({"status": "in_progress"}, False),
        ({"end_turn": False}, False),
        ({"end_turn": None}, False),
        ({"end_turn": None, "metadata": {"finish_details": {"type": "stop"}}}, True),
        ({"metadata": {"finish_details": {"type": "max_tokens"}}}, False),
        ({"metadata": {"finish_details": {"type": "interrupted"}}}, False),
    ],
)
def test_an_answer_that_was_cut_off_has_no_stop(keys: Json, stop: bool) -> None:
    assert read(chain(PROMPT, ("assistant", text("Twelve"), keys))).messages[-1].stop is stop


def test_the_model_is_the_messages_then_the_records() -> None:
    assert read({**chain(PROMPT, ANSWER), "default_model_slug": "gpt-5"}).model == "gpt-5"
    named = chain(PROMPT, ("assistant", text("x"), {"metadata": {"model_slug": "o3"}}))
    assert read({**named, "default_model_slug": "gpt-5"}).model == "o3"
    assert read(chain(PROMPT, ANSWER)).model is None


CITE = "\ue200cite\ue202turn0search1\ue201"


@pytest.mark.parametrize(
    ("before", "metadata", "after"),
    [
        (f"Rye rises {CITE}.", {}, "Rye rises."),
        (f"Rye rises {CITE}", {"content_references": [{"matched_text": CITE, "alt": "([R](https://r.example))"}]},
         "Rye rises ([R](https://r.example))"),
        (f"Rye {CITE}", {"content_references": [{"matched_text": CITE, "alt": None, "items": [
            {"title": "R", "url": "https://r.example?utm_source=chatgpt.com"}]}]}, "Rye ([R](https://r.example))"),
        ("Rye【12†L3-L5】 rises【3:0†source】.", {}, "Rye rises."),
        ("Rye【5†source】.", {"citations": [{"start_ix": 3, "end_ix": 13, "metadata": {
            "title": "R", "url": "https://r.example"}}]}, "Rye([R](https://r.example))."),
        ('In \ue200entity\ue202["city","Busan","a city"]\ue201 it rises.', {}, "In Busan it rises."),
        ("See \ue200url\ue202rye\ue202https://r.example\ue201.", {}, "See [rye](https://r.example)."),
        ("Rye rises \ue200cite\ue202turn0", {}, "Rye rises"),
        ("Take [the file](sandbox:/mnt/data/rye.csv) now", {}, "Take the file now"),
        ("![plot](sandbox:/mnt/data/p(1).png) at sandbox:/mnt/data/x", {}, "plot at /mnt/data/x"),
        ("【注】 stays, and so does sandbox: play", {}, "【注】 stays, and so does sandbox: play"),
    ],
)  # fmt: skip
def test_marks_of_the_page_become_links_or_are_cut(before: str, metadata: Json, after: str) -> None:
    conversation = read(chain(PROMPT, ("assistant", text(before), {"metadata": metadata})))
    assert conversation.messages[-1].content == after
    assert {edit.message for edit in conversation.edits} == (set() if before == after else {1})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(text("a", None, "b"), "a\nb", id="parts with null"),
        pytest.param(text(), "", id="no parts"),
        pytest.param({"content_type": "text", "parts": "a"}, "a", id="parts that are text"),
        pytest.param({"content_type": "text", "text": "a"}, "a", id="text in place of parts"),
        pytest.param("a", "a", id="content that is text"),
        pytest.param(None, "", id="content that is null"),
        pytest.param({"content_type": "code", "language": "python", "text": "x"}, "```python\nx\n```", id="code"),
        pytest.param({"content_type": "citable_code_output", "output_str": "a"}, "a", id="citable output"),
        pytest.param({"content_type": "of_2030", "text": "a", "new": 1}, "a", id="an unknown type with text"),
    ],
)
def test_content_of_every_type_is_read(content: object, expected: str) -> None:
    conversation = read(chain(PROMPT, ("assistant", content, {})))
    assert conversation.messages[-1].content == expected and not conversation.flaws


def test_content_without_text_is_a_flaw_and_an_unknown_role_a_reject() -> None:
    conversation = read(chain(PROMPT, ("assistant", {"content_type": "widget", "state": {"a": 1}}, {})))
    assert [flaw.reason for flaw in conversation.flaws] == [
        "turn 1 holds content of type 'widget', which a text model cannot see"
    ]
    with pytest.raises(RecordError, match="the role of turn 1 is 'critic'"):
        read(chain(PROMPT, ("critic", text("bad"), {})))


def test_a_tools_error_without_a_call_is_left_out() -> None:
    error = {"content_type": "system_error", "name": "tool_error", "text": "Error"}
    assert [m.role for m in read(chain(PROMPT, ("tool", error, {"name": "python"}), ANSWER)).messages] == [
        "user",
        "assistant",
    ]


def test_no_key_vanishes() -> None:
    value = chain(PROMPT, ("assistant", {**text("x"), "c": "key-1"}, {"new": "key-2", "metadata": {"m": "key-3"}}))
    value["mapping"]["n1"]["message"]["author"]["metadata"] = {"a": "key-4"}
    value["mapping"]["n1"]["other"] = "key-5"
    value["record_key"] = "key-6"
    conversation = read(value)
    found = json.dumps(conversation.metadata) + (conversation.messages[-1].extra or "")
    assert all(f"key-{number}" in found for number in range(1, 7))


def test_odd_values_are_kept_as_text_that_can_be_written() -> None:
    value = chain(PROMPT, ("assistant", text("x"), {"big": 10**30, "half": "\ud83d", "metadata": {"n": 2**70}}))
    extra = json.loads(read(value).messages[-1].extra or "")
    assert extra["big"] == str(10**30) and extra["half"] == "\ud83d"


@pytest.mark.parametrize(
    ("ratings", "rejected"),
    [
        ({"a2": True, "a1": False}, "One hour."),
        ({"a2": True, "a3": False}, "Two hours."),
        ({"a2": True}, "Two hours."),
        ({"a2": True, "a3": True}, "One hour."),
        ({"a1": True, "a3": False}, None),
    ],
)
def test_an_answer_rated_up_is_preferred_to_one_beside_it(ratings: dict[str, bool], rejected: str | None) -> None:
    value = {**forked(), "current_node": "a2"}
    conversation = formats.parse(value, ReadOptions(ratings=ratings))
    assert conversation.messages[-1].content == "Twelve hours." and not conversation.flaws
    assert [m.content for m in conversation.rejected_answer] == ([rejected] if rejected else [])


def test_an_answer_that_calls_a_tool_is_not_preferred_to_one_without() -> None:
    code = {"content_type": "code", "language": "python", "text": "1 + 1"}
    value = record(
        node("u", "root", "user", text("Sum?")),
        node("c", "u", "assistant", code, recipient="python"),
        node("r", "c", "tool", {"content_type": "execution_output", "text": "2"}, name="python"),
        node("a", "r", "assistant", text("Two.")),
        node("b", "u", "assistant", text("Three.")),
        current="a",
    )
    conversation = formats.parse(value, ReadOptions(ratings={"a": True}))
    assert [message.role for message in conversation.messages] == ["user", "assistant", "tool", "assistant"]
    assert not conversation.rejected_answer


def test_an_answer_rated_down_is_flagged() -> None:
    conversation = formats.parse(forked(), ReadOptions(ratings={"a2": False}, custom_instructions=True))
    assert [(flaw.rule, flaw.message) for flaw in conversation.flaws] == [("bad_label", 1)]
    assert not conversation.rejected_answer


def test_another_formats_record_may_have_a_key_of_that_name() -> None:
    messages = [{"role": "user", "content": "Rye?"}, {"role": "assistant", "content": "Twelve hours."}]
    for mapping in ({"rye": "grain"}, {}, None):
        conversation = formats.parse({"messages": messages, "mapping": mapping})
        assert shown(conversation) == [("user", "Rye?"), ("assistant", "Twelve hours.")]


def test_records_fit_the_schema_of_the_format() -> None:
    path = Path(formats.__file__).parent / "records" / "chatgpt.schema.json"
    schema = jsonschema.Draft202012Validator(json.loads(path.read_text("utf-8")))
    for value in (forked(), instructions(), chain(PROMPT, ANSWER)):
        schema.validate(value)


def test_a_large_tree_is_read_in_one_pass() -> None:
    nodes = [
        node(f"n{n}", f"n{n - 1}" if n else "root", "user" if n % 2 else "assistant", text("x")) for n in range(9_999)
    ]
    nodes += [node(f"leaf{n}", "n9998", "assistant", text("y")) for n in range(9_999)]
    for item in nodes:
        item["message"]["create_time"] = None
    conversation = read({**record(*nodes), "current_node": None})
    assert len(conversation.messages) == 9_999 and conversation.metadata["other_branches"] == 9_998


KEYS = st.sampled_from(["root", *"abcdefg"])
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PARENTS = st.dictionaries(KEYS, st.none() | KEYS | st.just("gone"), max_size=8)


@given(PARENTS, st.none() | KEYS | st.just("gone"), st.booleans())
def test_any_tree_is_read_along_the_parents_of_its_leaf(
    parents: dict[str, str | None], current: str | None, branches: bool
) -> None:
    nodes = {key: node(key, parent, "user", text(key)) for key, parent in parents.items()}
    for key, item in nodes.items():
        item["message"]["author"]["role"] = "assistant" if key in "bdf" else "user"
    value = {"mapping": nodes, "current_node": current}
    try:
        conversations = formats.parse_all(value, ReadOptions(branches=branches))
    except RecordError as error:
        assert not nodes and error.rule == "no_messages"
        return
    if current in nodes:
        words = "\n\n".join(message.content for message in conversations[0].messages).split("\n\n")
        assert words[-1] == current and len(set(words)) == len(words)
        assert all(parents[below] == above for above, below in itertools.pairwise(words))
    trained = [m.content for c in conversations for m in c.messages if m.role == "assistant" and m.train]
    assert len(set(trained)) == len(trained)


@given(st.sampled_from(["message", "content", "parts", "author", "metadata", "recipient", "parent", "thoughts"]), JUNK)
def test_junk_in_place_of_any_value_never_crashes(place: str, junk: Any) -> None:
    value = chain(PROMPT, ("assistant", {"content_type": "thoughts", "thoughts": []}, {}), ANSWER)
    for item in value["mapping"].values():
        for holder in (item, item["message"], (item["message"] or {}).get("content")):
            if isinstance(holder, dict) and place in holder:
                holder[place] = junk
    with contextlib.suppress(RecordError):
        formats.parse_all(value, ReadOptions(branches=True, custom_instructions=True))
