"""What apps and APIs of chat services write: Gemini's activity, AI Studio's chats, OpenAI's responses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import curate
from curate.errors import RecordError
from curate.schemas import Conversation, formats

ACTIVITY: dict[str, Any] = {
    "header": "Gemini Apps",
    "title": "Prompted Name a river in Mali.",
    "time": "2026-08-18T10:05:00Z",
    "products": ["Gemini Apps"],
    "safeHtmlItem": [{"html": "<div><p>The <strong>Niger</strong> is one.</p><ul><li>long</li></ul></div>"}],
}


def texts(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.messages]


def rule_and_reason(record: object) -> tuple[str, str]:
    with pytest.raises(RecordError) as raised:
        formats.parse(record)
    return raised.value.rule, raised.value.reason


# ---- Gemini


def test_an_activity_of_gemini_becomes_an_exchange_in_markdown(tmp_path: Path) -> None:
    dump = tmp_path / "MyActivity.json"
    dump.write_text(json.dumps([ACTIVITY]))
    folder = curate.clean([dump], tmp_path / "set").output
    [row] = pl.read_parquet(folder / "conversations.parquet").to_dicts()
    assert [message["content"] for message in row["messages"]] == [
        "Name a river in Mali.",
        "The **Niger** is one.\n\n- long",
    ]
    assert row["edit_names"] == ["html_to_markdown"]
    assert json.loads(row["metadata"])["time"] == ACTIVITY["time"]


@pytest.mark.parametrize(
    ("change", "rule", "words"),
    [
        pytest.param({"header": "Search", "products": ["Search"]}, "no_messages", "not of Gemini", id="other-product"),
        pytest.param({"title": "Used Gemini Apps"}, "no_messages", "is no prompt", id="no-prompt"),
        pytest.param({"title": "Eingegeben: Nenne einen Fluss"}, "no_messages", "not in English", id="other-language"),
        pytest.param({"title": ""}, "no_messages", "has no title", id="empty-title"),
        pytest.param({"title": 5}, "no_messages", "has no title", id="title-is-a-number"),
        pytest.param({"safeHtmlItem": "<p>x</p>"}, "bad_value", "other than HTML", id="html-is-text"),
        pytest.param({"safeHtmlItem": [{"html": 3}]}, "bad_value", "other than HTML", id="html-is-a-number"),
        pytest.param({"safeHtmlItem": [["<p>"]]}, "bad_value", "other than HTML", id="html-is-a-list"),
    ],
)
def test_an_activity_that_is_no_exchange_is_rejected_by_name(change: dict[str, Any], rule: str, words: str) -> None:
    got = rule_and_reason({**ACTIVITY, **change})
    assert got[0] == rule
    assert words in got[1]


def test_an_activity_without_an_answer_is_only_a_prompt() -> None:
    conversation = formats.parse({**ACTIVITY, "safeHtmlItem": []})
    assert texts(conversation) == [("user", "Name a river in Mali.")]


@pytest.mark.parametrize("key", ["attachedFiles", "imageFile", "audioFiles"])
def test_a_prompt_with_files_is_multimodal(key: str) -> None:
    [flaw] = formats.parse({**ACTIVITY, key: ["a.webp"]}).flaws
    assert flaw.rule == "multimodal"


def test_personal_data_of_an_activity_is_left_out_and_named() -> None:
    private = {"account": {"email": "a@b.c"}, "titleUrl": "https://x", "locationInfos": [{"name": "home"}]}
    conversation = formats.parse({**ACTIVITY, **private, "subtitles": [{"name": "kept"}]})
    assert not private.keys() & conversation.metadata.keys()
    assert conversation.metadata["subtitles"] == [{"name": "kept"}]
    [edit] = conversation.edits
    assert (edit.rule, edit.count) == ("personal_data", 3)


# ---- AI Studio


def studio(*chunks: object, **others: object) -> dict[str, object]:
    return {"runSettings": {"model": "models/gemini-2.5-pro"}, "chunkedPrompt": {"chunks": list(chunks)}, **others}


USER: dict[str, Any] = {"role": "user", "text": "What is 2 + 2?", "tokenCount": 7}
MODEL: dict[str, Any] = {"role": "model", "text": "It is four.", "finishReason": "STOP"}
THOUGHT: dict[str, Any] = {"role": "model", "text": "An easy sum.", "isThought": True, "thinkingBudget": -1}


def test_a_studio_chat_is_read_with_model_system_thoughts_and_code() -> None:
    code = {"role": "model", "executableCode": {"language": "PYTHON", "code": "print(2+2)"}}
    output = {"role": "model", "codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "4"}}
    instruction = {"parts": [{"text": "Be brief."}]}
    conversation = formats.parse(studio(USER, THOUGHT, code, output, MODEL, systemInstruction=instruction))
    assert conversation.model == "gemini-2.5-pro"
    assert [message.role for message in conversation.messages] == ["system", "user", "assistant", "tool", "assistant"]
    system, _, call, result, answer = conversation.messages
    assert system.content == "Be brief."
    assert call.reasoning == "An easy sum."
    assert json.loads(call.tool_calls or "")[0]["function"]["name"] == "code_execution"
    assert (result.name, result.content, result.tool_call_id) == ("code_execution", "4", "call_1")
    assert answer.content == "It is four."


def test_parts_of_a_chunk_are_joined_as_they_were_written() -> None:
    parts = [
        {"text": "Hm, ", "thought": True},
        {"text": "easy.", "thought": True},
        {"text": "It is "},
        {"text": "four."},
    ]
    answer = formats.parse(studio(USER, {"role": "model", "parts": parts})).messages[-1]
    assert (answer.reasoning, answer.content) == ("Hm, easy.", "It is four.")


def test_other_keys_of_chunks_are_kept_with_their_messages() -> None:
    signed = {**THOUGHT, "parts": [{"text": "An easy sum.", "thought": True, "thoughtSignature": "AB"}]}
    user, answer = formats.parse(studio(USER, signed, {**MODEL, "createTime": "now"})).messages
    assert json.loads(user.extra or "") == {"tokenCount": 7}
    extra = json.loads(answer.extra or "")
    assert extra["createTime"] == "now"
    assert extra["thoughts"] == [{"parts": [{"thoughtSignature": "AB"}], "thinkingBudget": -1}]


@pytest.mark.parametrize("value", ["x", {"a": 1}, [{"name": "f"}]])
def test_a_key_of_a_chunk_that_a_turn_has_with_another_meaning_is_kept_apart(value: object) -> None:
    messages = formats.parse(studio({**USER, "tool_calls": value}, {**MODEL, "name": "n", "content": value})).messages
    assert [message.content for message in messages] == ["What is 2 + 2?", "It is four."]
    assert messages[0].tool_calls is None
    assert json.loads(messages[0].extra or "")["part"] == {"tool_calls": value}
    assert json.loads(messages[1].extra or "")["part"] == {"content": value, "name": "n"}


@pytest.mark.parametrize(
    "chunk",
    [
        pytest.param({**MODEL, "finishReason": "MAX_TOKENS"}, id="too-long"),
        pytest.param({**MODEL, "errorMessage": "Internal error"}, id="error"),
        pytest.param({**THOUGHT}, id="only-thoughts"),
    ],
)
def test_an_answer_that_was_cut_has_no_stop(chunk: dict[str, object]) -> None:
    answer = formats.parse(studio(USER, chunk)).messages[-1]
    assert answer.role == "assistant"
    assert not answer.stop


@pytest.mark.parametrize(
    "key", ["driveImage", "inlineImage", "inlineFile", "driveDocument", "youtubeVideo", "driveAudio"]
)
def test_a_chunk_of_media_is_multimodal(key: str) -> None:
    chat = studio({"role": "user", key: {"id": "x"}}, USER, MODEL, USER, MODEL)
    assert [(flaw.rule, flaw.message) for flaw in formats.parse(chat).flaws] == [("multimodal", 0)]


def test_thoughts_before_a_prompt_do_not_become_those_of_a_later_answer() -> None:
    messages = formats.parse(studio(USER, THOUGHT, USER, MODEL)).messages
    assert [(message.role, message.reasoning) for message in messages] == [
        ("user", None),
        ("assistant", "An easy sum."),
        ("user", None),
        ("assistant", None),
    ]


@pytest.mark.parametrize(
    ("record", "rule"),
    [
        pytest.param({"chunkedPrompt": {"chunks": []}}, "no_messages", id="no-chunks"),
        pytest.param({"chunkedPrompt": {"chunks": None}}, "no_messages", id="null"),
        pytest.param(studio("text"), "bad_turn", id="chunk-is-text"),
        pytest.param(studio({"role": "model", "parts": ["x"]}), "bad_turn", id="part-is-text"),
        pytest.param(studio({"role": "narrator", "text": "x"}), "unknown_role", id="role"),
    ],
)
def test_a_studio_chat_that_is_not_clear_is_rejected_by_name(record: object, rule: str) -> None:
    assert rule_and_reason(record)[0] == rule


def test_a_prompt_that_was_not_sent_stays_in_the_metadata() -> None:
    record = studio(USER, MODEL)
    record["chunkedPrompt"]["pendingInputs"] = [{"text": "And 3 + 3?"}]  # type: ignore[index]
    conversation = formats.parse(record)
    assert len(conversation.messages) == 2
    assert conversation.metadata["pendingInputs"] == [{"text": "And 3 + 3?"}]


def test_a_request_to_geminis_api_is_read_with_calls_results_and_tools() -> None:
    record = {
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "contents": [
            {"role": "user", "parts": [{"text": "Is it cold?"}]},
            {
                "role": "model",
                "parts": [
                    {"text": "I need both.", "thought": True},
                    {"functionCall": {"name": "weather", "args": {"city": "Oslo"}}},
                    {"functionCall": {"name": "clock", "args": {}}},
                ],
            },
            {
                "role": "user",
                "parts": [
                    {"functionResponse": {"name": "clock", "response": {"now": "noon"}}},
                    {"functionResponse": {"name": "weather", "response": {"degrees": 4}}},
                ],
            },
            {"role": "model", "parts": [{"text": "It "}, {"text": "is."}]},
        ],
        "tools": [{"functionDeclarations": [{"name": "weather", "parameters": {}}]}, {"googleSearch": {"x": 1}}],
    }
    conversation = formats.parse(record)
    messages = conversation.messages
    roles = ["system", "user", "assistant", "assistant", "tool", "tool", "assistant"]
    assert [message.role for message in messages] == roles
    assert (messages[2].reasoning, messages[-1].content) == ("I need both.", "It is.")
    assert [message.tool_call_id for message in messages[4:6]] == ["call_2", "call_1"]
    assert messages[4].content == '{"now":"noon"}'
    assert json.loads(conversation.tools or "")[0]["function"]["name"] == "weather"
    assert conversation.metadata["google_tools"] == [{"googleSearch": {"x": 1}}]


def test_a_picture_in_a_request_to_geminis_api_is_multimodal() -> None:
    picture = {"role": "user", "parts": [{"inlineData": {"mimeType": "image/png"}}, {"text": "What is it?"}]}
    flaws = formats.parse({"contents": [picture, {"role": "model", "parts": [{"text": "A cat."}]}]}).flaws
    assert {flaw.rule for flaw in flaws} == {"multimodal"}


# ---- OpenAI's Responses API

PROMPT: dict[str, Any] = {"role": "user", "content": [{"type": "input_text", "text": "Is it cold in Oslo?"}]}
ANSWER: dict[str, Any] = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "It is 4 degrees."}],
}
CALL: dict[str, Any] = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city":"Oslo"}'}
RESULT: dict[str, Any] = {"type": "function_call_output", "call_id": "c1", "output": "4 C"}
REASONING: dict[str, Any] = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [{"type": "summary_text", "text": "I need the weather."}],
}


def response(*output: object, **others: object) -> dict[str, object]:
    return {"id": "resp_1", "object": "response", "model": "gpt-5", "input": [PROMPT], "output": list(output), **others}


def test_a_response_is_read_with_reasoning_calls_results_and_instructions() -> None:
    second = {**CALL, "call_id": "c2", "name": "clock"}
    late = {**RESULT, "call_id": "c2", "output": "noon"}
    record = response(REASONING, CALL, second, late, RESULT, ANSWER, instructions="Be short.")
    conversation = formats.parse(record)
    assert conversation.source_id == "resp_1"
    assert conversation.model == "gpt-5"
    roles = ["system", "user", "assistant", "tool", "tool", "assistant"]
    assert [message.role for message in conversation.messages] == roles
    call = conversation.messages[2]
    assert call.reasoning == "I need the weather."
    assert [item["id"] for item in json.loads(call.tool_calls or "")] == ["c1", "c2"]
    assert [message.tool_call_id for message in conversation.messages[3:5]] == ["c2", "c1"]


def test_each_reasoning_stays_with_the_turn_that_it_precedes() -> None:
    later = {**REASONING, "summary": [{"type": "summary_text", "text": "Now I know."}]}
    messages = formats.parse(response(REASONING, CALL, RESULT, later, ANSWER)).messages
    assert [message.reasoning for message in messages] == [None, "I need the weather.", None, "Now I know."]


def test_input_may_be_text_or_earlier_turns() -> None:
    assert texts(formats.parse(response(ANSWER, input="Cold?")))[0] == ("user", "Cold?")
    earlier = [PROMPT, ANSWER, {"role": "user", "content": "And in Rome?"}]
    assert len(formats.parse(response(ANSWER, input=earlier)).messages) == 4


def test_a_refusal_is_the_answer() -> None:
    refusal = {**ANSWER, "content": [{"type": "refusal", "refusal": "I cannot say."}]}
    assert formats.parse(response(refusal)).messages[-1].content == "I cannot say."


def test_an_incomplete_response_has_no_stop() -> None:
    record = response(ANSWER, status="incomplete", incomplete_details={"reason": "max_output_tokens"})
    assert not formats.parse(record).messages[-1].stop


def test_a_tool_that_openai_runs_stays_a_key_of_its_turn() -> None:
    search = {"type": "web_search_call", "id": "ws_1", "status": "completed"}
    answer = formats.parse(response(search, ANSWER)).messages[-1]
    assert json.loads(answer.extra or "")["hosted_tools"] == [search]


@pytest.mark.parametrize(
    ("record", "rule", "words"),
    [
        pytest.param(response(ANSWER, input=None), "no_messages", "has no 'input'", id="no-input"),
        pytest.param(response(ANSWER, input=5), "no_messages", "'input' is a number", id="input-is-a-number"),
        pytest.param(
            response(ANSWER, previous_response_id="resp_0"), "no_messages", "continues another", id="continued"
        ),
        pytest.param(response("text"), "bad_turn", "output item 0 is text", id="item-is-text"),
        pytest.param(response(None), "bad_turn", "output item 0 is null", id="item-is-null"),
        pytest.param(response({**ANSWER, "content": {"a": 1}}), "bad_value", "not text", id="content-is-an-object"),
        pytest.param(
            response(ANSWER, input=[{"role": "narrator", "content": "x"}]), "unknown_role", "narrator", id="role"
        ),
    ],
)
def test_a_response_that_is_not_clear_is_rejected_by_name(record: object, rule: str, words: str) -> None:
    got = rule_and_reason(record)
    assert got[0] == rule
    assert words in got[1]


def test_plain_pairs_of_input_and_output_are_no_responses() -> None:
    assert texts(formats.parse({"input": "Cold?", "output": "Yes."})) == [("user", "Cold?"), ("assistant", "Yes.")]


# ---- LibreChat


@pytest.mark.parametrize("sender", ["GPT-4", "Software Engineer"])
@pytest.mark.parametrize(
    ("keys", "stop"),
    [({"finish_reason": "stop"}, True), ({"finish_reason": "incomplete"}, False), ({"unfinished": True}, False)],
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_turn_of_librechat_has_the_role_of_its_creator(
    sender: str, keys: dict[str, Any], stop: bool, nested: bool
) -> None:
    prompt = {"messageId": "1", "parentMessageId": "0", "sender": "User", "isCreatedByUser": True, "text": "Hello"}
    answer = {
        "messageId": "2",
        "parentMessageId": "1",
        "sender": sender,
        "isCreatedByUser": False,
        "text": "Hi!",
        **keys,
    }
    messages = [{**prompt, "children": [{**answer, "children": []}]}] if nested else [prompt, answer]
    conversation = formats.parse({"conversationId": "c", "messages": messages})
    assert texts(conversation) == [("user", "Hello"), ("assistant", "Hi!")]
    assert conversation.messages[1].stop is stop
