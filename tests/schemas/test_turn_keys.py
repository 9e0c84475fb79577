"""Every key of a turn is read, honoured, named, or kept in the message's `extra`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import RecordError
from curate.schemas import Conversation, Message, formats
from curate.schemas.prompts import CHATML, VICUNA, exchanges, fold_system, text
from curate.schemas.reading.key_kinds import KINDS, TURN_KINDS

PROMPT = {"role": "user", "content": "Name a lake."}


def read(*turns: dict[str, Any]) -> Conversation:
    return formats.parse({"messages": list(turns)})


def answer(**keys: object) -> Conversation:
    return read(PROMPT, {"role": "assistant", "content": "Lake Mead.", **keys})


def rules(conversation: Conversation) -> list[str]:
    return [edit.rule for edit in conversation.edits]


def flaws(conversation: Conversation) -> list[str]:
    return [flaw.rule for flaw in conversation.flaws]


# ---- reasoning

THOUGHT = "It is in Nevada."


@pytest.mark.parametrize(
    "keys",
    [
        {"reasoning_content": THOUGHT},
        {"reasoning": THOUGHT},
        {"thinking": THOUGHT},
        {"thought": THOUGHT},
        {"reasoningContent": THOUGHT},
        {"reasoning": THOUGHT, "reasoning_content": THOUGHT},
        {"reasoning_details": [{"type": "reasoning.text", "text": THOUGHT}]},
        {"reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}, {"text": THOUGHT}]},
        {"thoughts": [{"summary": "", "content": THOUGHT}]},
        {"content": [{"type": "thinking", "thinking": THOUGHT}, {"text": "Lake Mead."}]},
        {"content": [{"type": "reasoning", "value": THOUGHT}, {"type": "text", "value": "Lake Mead."}]},
        {"content": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": THOUGHT}]}, "Lake Mead."]},
        {"content": f"<think>{THOUGHT}</think>Lake Mead."},
        {"content": f"<think>\n{THOUGHT}\n</think>\n\nLake Mead."},
        {"content": f"\n<thinking>{THOUGHT}</thinking> Lake Mead."},
        {"content": f"<reasoning>{THOUGHT}</reasoning>\nLake Mead."},
        {"content": f"{THOUGHT}\n</think>\n\nLake Mead."},
        {"content": f"{THOUGHT}</think>\n\nLake Mead."},
        {"content": f"<thought>{THOUGHT}</thought>Lake Mead."},
        {"content": f"<seed:think>{THOUGHT}</seed:think>Lake Mead."},
        {"content": f"[THINK]{THOUGHT}[/THINK]Lake Mead."},
        {"content": f"◁think▷{THOUGHT}◁/think▷Lake Mead."},
        {
            "content": f"<|channel|>analysis<|message|>{THOUGHT}<|end|>"
            "<|start|>assistant<|channel|>final<|message|>Lake Mead.<|return|>"
        },
        {
            "content": f"<|begin_of_thought|>\n{THOUGHT}\n<|end_of_thought|>\n\n"
            "<|begin_of_solution|>\nLake Mead.\n<|end_of_solution|>"
        },
    ],
)  # fmt: skip
def test_reasoning_is_read_wherever_it_stands(keys: dict[str, object]) -> None:
    message = answer(**keys).messages[1]
    assert (message.content, message.reasoning, message.extra, message.stop) == ("Lake Mead.", THOUGHT, None, True)


@pytest.mark.parametrize("value", ["on", "Off", "high", {"effort": "low", "summary": "auto"}])
def test_a_setting_of_reasoning_is_no_reasoning(value: object) -> None:
    message = answer(reasoning=value).messages[1]
    assert (message.reasoning, message.extra) == (None, json.dumps({"reasoning": value}, separators=(",", ":")))


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"weight": 0}, (False, True, [])),
        ({"loss": "false", "source": "x"}, (False, True, [])),
        ({"finish_reason": "length"}, (True, False, [])),
        ({"toxic": True}, (True, True, ["bad_label"])),
        ({"hidden": True}, (True, True, ["hidden_turn"])),
        ({"label": 0, "loss": {"value": 3}}, (True, True, [])),  # a class, a figure
    ],
)
@pytest.mark.parametrize("key", ["metadata", "meta", "response_metadata"])
def test_marks_within_metadata_are_honoured(key: str, metadata: object, expected: object) -> None:
    conversation = answer(**{key: metadata})
    message = conversation.messages[1]
    assert (message.train, message.stop, flaws(conversation)) == expected
    assert json.loads(message.extra or "") == {key: metadata}


def test_an_error_stays_with_the_result_that_is_one() -> None:
    good = {"type": "tool_result", "tool_use_id": "a", "content": "4"}
    bad = {"type": "tool_result", "tool_use_id": "b", "content": "No such city.", "is_error": True}
    messages = read(PROMPT, {"role": "user", "content": [good, bad], "lang": "en"}).messages[1:]
    assert [(each.tool_call_id, each.extra) for each in messages] == [
        ("a", '{"lang":"en"}'),
        ("b", '{"is_error":true}'),
    ]


def test_other_keys_of_parts_are_kept() -> None:
    blocks = [{"type": "thinking", "thinking": THOUGHT, "signature": "s"}, {"text": "Lake Mead.", "citations": ["c"]}]
    hidden = {"type": "redacted_thinking", "data": "x"}
    message = answer(content=[*blocks, hidden]).messages[1]
    assert (message.content, message.reasoning) == ("Lake Mead.", THOUGHT)
    assert json.loads(message.extra or "") == {"parts": [{"signature": "s"}, {"citations": ["c"]}, hidden]}


@pytest.mark.parametrize("blank", ["<think>\n\n</think>\n\n", "<think></think>", "<think> </think>\n"])
def test_an_empty_block_of_reasoning_is_removed_by_name(blank: str) -> None:
    conversation = answer(content=f"{blank}Lake Mead.")
    assert (conversation.messages[1].content, conversation.messages[1].reasoning) == ("Lake Mead.", None)
    assert rules(conversation) == ["reasoning_from_text"]


@pytest.mark.parametrize("thought", ["a <think>b</think> c", "```\n</think>\n``` c", "I use <think> here"])
def test_marks_within_reasoning_are_a_part_of_it(thought: str) -> None:
    message = answer(content=f"<think>{thought}</think>\n\nLake Mead.").messages[1]
    assert (message.content, message.reasoning, message.train) == ("Lake Mead.", thought, True)


@pytest.mark.parametrize(
    "text",
    [
        "<think>a</think>b\n</think>\nc",
        "<think>`</think>` is a tag</think>c",
        "<|channel|>commentary to=functions.f<|message|>{}<|call|>",
        "<|channel|>final",
    ],
)
def test_marks_that_do_not_pair_up_stay_and_are_not_trained_on(text: str) -> None:
    conversation = answer(content=text)
    message = conversation.messages[1]
    assert (message.content, message.reasoning, message.train) == (text, None, False)
    assert rules(conversation) == ["unclear_reasoning"]


@pytest.mark.parametrize(
    "text",
    [
        "Use `<think>a</think>`.",
        "```\n<think>a</think>\n```",
        "A </think> ends it.",
        "See [THINK]a[/THINK].",
        "`</think>`\n\nb",
    ],
)
def test_marks_that_a_text_mentions_stay(text: str) -> None:
    conversation = answer(content=text)
    assert (conversation.messages[1].content, conversation.messages[1].train, conversation.edits) == (text, True, [])


def test_examples_are_turns_that_are_not_trained_on() -> None:
    example = [{"role": "system", "name": f"example_{name}", "content": name} for name in ("user", "assistant")]
    conversation = read(
        {"role": "system", "content": "Be brief."}, *example, PROMPT, {"role": "assistant", "content": "Mead."}
    )
    assert [(each.role, each.train) for each in conversation.messages[1:3]] == [("user", False), ("assistant", False)]
    assert rules(conversation) == ["example_turn"] * 2


def test_reasoning_that_is_never_closed_is_named_and_was_cut_off() -> None:
    conversation = answer(content=f"<think>{THOUGHT}")
    message = conversation.messages[1]
    assert (message.content, message.reasoning, message.stop) == ("", THOUGHT, False)
    assert "unclosed_reasoning" in rules(conversation)


def test_of_two_reasonings_that_differ_the_second_is_named_and_kept() -> None:
    conversation = answer(reasoning_content=THOUGHT, thinking="Another.")
    assert conversation.messages[1].reasoning == THOUGHT
    assert conversation.messages[1].extra == '{"thinking":"Another."}'
    assert rules(conversation) == ["second_reasoning"]


@pytest.mark.parametrize(
    "content",
    ["Use <think> tags.", "```\n<think>a</think>\n```", "Close with `</think>`.", "a\n```\n</think>\nb"],
)
def test_a_text_about_the_marks_is_kept(content: str) -> None:
    assert answer(content=content).messages[1] == Message("assistant", content)


def test_a_turn_of_reasoning_belongs_to_the_answer_after_it() -> None:
    conversation = read(PROMPT, {"role": "thought", "content": THOUGHT}, {"role": "assistant", "content": "Lake Mead."})
    assert conversation.messages[1:] == [Message("assistant", "Lake Mead.", reasoning=THOUGHT)]
    assert rules(conversation) == ["reasoning_turn"]


def test_an_answer_that_keeps_a_second_reasoning_in_its_text_is_not_trained_on() -> None:
    message = answer(content="<think>Or Erie?</think>Lake Mead.", reasoning=THOUGHT).messages[1]
    assert (message.reasoning, message.train) == (THOUGHT, False)


@pytest.mark.parametrize("nothing", ["None", "null", "nan"])
def test_what_tables_write_for_nothing_is_no_reasoning(nothing: str) -> None:
    conversation = answer(reasoning_content=nothing)
    assert conversation.messages[1].reasoning is None and rules(conversation) == ["empty_value"]


@pytest.mark.parametrize("key", ["content", "parts"])
def test_geminis_thoughts_are_reasoning(key: str) -> None:
    parts = [{"text": THOUGHT, "thought": True}, {"text": "Lake Mead."}]
    message = read(PROMPT, {"role": "model", key: parts}).messages[1]
    assert (message.reasoning, message.content) == (THOUGHT, "Lake Mead.")


@pytest.mark.parametrize("flag", ["thought", "isThought", "is_thinking"])
def test_a_turn_that_is_flagged_as_a_thought_belongs_to_the_answer_after_it(flag: str) -> None:
    thought = {"role": "model", "content": THOUGHT, flag: True}
    conversation = read(PROMPT, thought, {"role": "model", "content": "Lake Mead."})
    assert [(message.reasoning, message.content) for message in conversation.messages[1:]] == [(THOUGHT, "Lake Mead.")]


# ---- calls and results within an answer


def text_part(text: str) -> dict[str, object]:
    return {"type": "text", "text": text}


def call_part(identity: str, kind: str = "tool_use") -> dict[str, object]:
    return {"type": kind, "id": identity, "name": "look", "input": {}}


def result_part(identity: str, kind: str = "tool_result", content: object = "Found.") -> dict[str, object]:
    return {"type": kind, "tool_use_id": identity, "content": content}


@pytest.mark.parametrize("kind", ["tool", "mcp_tool", "web_search_tool"])
def test_results_within_an_answer_come_after_their_calls_and_before_its_end(kind: str) -> None:
    call = "server_tool_use" if kind == "web_search_tool" else f"{kind}_use"
    parts = [text_part("First."), call_part("a", call), result_part("a", f"{kind}_result"), text_part("Mead.")]
    conversation = answer(content=parts)
    assert [(message.role, message.content) for message in conversation.messages[1:]] == [
        ("assistant", "First."),
        ("tool", "Found."),
        ("assistant", "Mead."),
    ]
    assert conversation.messages[1].tool_calls and conversation.messages[2].tool_call_id == "a"
    assert "unlinked_result" not in rules(conversation)


def test_an_answer_with_results_within_keeps_its_marks_and_keys() -> None:
    parts = [call_part("a"), result_part("a"), text_part("Then."), call_part("b"), result_part("b"), text_part("Mead.")]
    conversation = answer(content=parts, weight=0, stop_reason="max_tokens", model="m", reasoning=THOUGHT)
    answers = [message for message in conversation.messages if message.role == "assistant"]
    assert [message.train for message in answers] == [False] * 3
    assert [message.stop for message in answers] == [True, True, False]
    assert [message.reasoning for message in answers] == [THOUGHT, None, None]
    assert [json.loads(message.extra or "{}").get("model") for message in answers] == [None, None, "m"]


@pytest.mark.parametrize("key", ["tool_calls", "toolCalls", "tool_call", "toolCall", "functionCall", "function_call"])
def test_calls_are_read_under_every_spelling_of_their_key(key: str) -> None:
    call = {"id": "a", "function": {"name": "look", "arguments": "{}"}}
    conversation = read(PROMPT, {"role": "assistant", "content": "", key: call}, {"role": "tool", "content": "Found."})
    assert conversation.messages[1].tool_calls and conversation.messages[2].tool_call_id == "a"


PICTURE = {"type": "image", "source": {"data": "x"}}


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "tool", "content": [text_part("Seen:"), PICTURE]},
        {"role": "user", "content": [result_part("a", content=[PICTURE])]},
    ],
    ids=["tool", "anthropic"],
)
def test_a_picture_in_a_tools_result_is_flagged(turn: dict[str, Any]) -> None:
    conversation = read(PROMPT, {"role": "assistant", "content": [call_part("a")]}, turn)
    assert flaws(conversation) == ["multimodal"]


def test_a_result_that_only_talks_of_pictures_is_not() -> None:
    found = [{"type": "image", "title": "A lake", "width": 9}]
    assert not flaws(
        read(PROMPT, {"role": "assistant", "content": [call_part("a")]}, {"role": "tool", "content": found})
    )


# ---- training and ends


@pytest.mark.parametrize(
    "key", ["weight", "loss_weight", "train", "trainable", "training", "learn", "loss", "lossWeight"]
)
@pytest.mark.parametrize("value", [0, 0.0, False, "0", "0.0", "false", "False", "no", "off"])
def test_a_mark_that_forbids_training_is_honoured_in_every_spelling(key: str, value: object) -> None:
    conversation = answer(**{key: value})
    assert not conversation.messages[1].train
    assert conversation.messages[1].extra is None


@pytest.mark.parametrize("value", [1, 1.0, True, "1", "true", "yes"])
def test_a_mark_that_allows_training_changes_nothing(value: object) -> None:
    assert answer(weight=value).messages[1] == Message("assistant", "Lake Mead.")


@pytest.mark.parametrize(("value", "train"), [(True, False), (1, False), ("true", False), (False, True), (0, True)])
def test_a_mask_is_the_opposite(value: object, train: bool) -> None:
    assert answer(mask=value).messages[1].train is train


@pytest.mark.parametrize("value", [0.5, "0.5", 2])
def test_a_fractional_weight_is_kept(value: object) -> None:
    message = answer(weight=value).messages[1]
    assert message.train
    assert json.loads(message.extra or "") == {"weight": value}


@pytest.mark.parametrize("value", ["maybe", [0, 1], {"a": 1}])
def test_a_mark_that_is_not_understood_is_named_and_not_trained_on(value: object) -> None:
    conversation = answer(mask=value)
    assert not conversation.messages[1].train
    assert rules(conversation) == ["unclear_train_mark"]


def test_a_message_that_may_be_trained_on_in_parts_is_not_trained_on() -> None:
    spans = [{"begin_offset": 0, "end_offset": 3, "train": False}, {"begin_offset": 4, "end_offset": 9, "train": True}]
    conversation = answer(train_detail=spans)
    assert not conversation.messages[1].train
    assert rules(conversation) == ["partly_trained"]


@pytest.mark.parametrize(
    "keys",
    [
        *({"finish_reason": word} for word in ("length", "max_tokens", "content_filter", "MAX_TOKENS")),
        *({"stop_reason": "max_tokens"}, {"finish_details": {"type": "interrupted"}}, {"status": "in_progress"}),
        *({"end_turn": False}, {"truncated": True}, {"complete": "false"}, {"stop": False}),
    ],
)
def test_an_answer_that_was_cut_off_has_no_stop(keys: dict[str, object]) -> None:
    assert not answer(**keys).messages[1].stop


@pytest.mark.parametrize("keys", [{"finish_reason": "stop"}, {"status": "finished_successfully"}, {"end_turn": True}])
def test_a_whole_answer_keeps_its_stop(keys: dict[str, object]) -> None:
    assert answer(**keys).messages[1].stop


# ---- what is not seen, and what is missing


@pytest.mark.parametrize(
    "keys",
    [
        *({"channel": "analysis"}, {"channel": "commentary"}, {"recipient": "browser"}, {"deleted": True}),
        *({"hidden": "true"}, {"visible": False}, {"metadata": {"is_visually_hidden_from_conversation": True}}),
    ],
)
def test_a_turn_that_the_user_does_not_see_is_flagged(keys: dict[str, object]) -> None:
    assert flaws(answer(**keys)) == ["hidden_turn"]


@pytest.mark.parametrize("keys", [{"channel": "final"}, {"recipient": "all"}, {"deleted": False}, {"visible": True}])
def test_a_visible_turn_is_not(keys: dict[str, object]) -> None:
    assert flaws(answer(**keys)) == []


@pytest.mark.parametrize(
    ("keys", "content"),
    [
        ({"documents": ["The text."]}, "The text.\n\nName a lake."),
        ({"documents": [{"title": "T", "text": "The text."}]}, "T\n\nThe text.\n\nName a lake."),
        ({"context": "Two words."}, "Two words.\n\nName a lake."),
        ({"attachments": [{"file_name": "a.txt", "extracted_content": "b c"}]}, "a.txt\n\nb c\n\nName a lake."),
    ],
)
def test_the_text_of_documents_is_put_before_the_prompt(keys: dict[str, object], content: str) -> None:
    conversation = read({**PROMPT, **keys})
    assert conversation.messages[0].content == content
    assert rules(conversation) == ["context_joined"]


@pytest.mark.parametrize(
    "keys",
    [
        {"files": ["a.csv"]},
        {"attachments": [{"file_name": "a"}]},
        {"documents": [{"id": 1}]},
        {"experimental_attachments": [{"url": "a"}]},
    ],
)
def test_a_prompt_without_the_text_of_its_files_is_flagged(keys: dict[str, object]) -> None:
    assert flaws(read({**PROMPT, **keys})) == ["needs_context"]


@pytest.mark.parametrize(
    "keys", [{"files": []}, {"attachments": None}, {"context": "chat"}, {"context": {"lang": "en"}}]
)
def test_nothing_beside_a_prompt_is_nothing(keys: dict[str, object]) -> None:
    conversation = read({**PROMPT, **keys})
    assert (conversation.messages[0].content, flaws(conversation)) == ("Name a lake.", [])


def test_a_refusal_is_the_answer_if_there_is_no_other() -> None:
    conversation = answer(content=None, refusal="I cannot.")
    assert conversation.messages[1] == Message("assistant", "I cannot.")
    assert answer(refusal="I cannot.").messages[1].extra == '{"refusal":"I cannot."}'


def test_answers_with_ranks_are_alternatives() -> None:
    ranked = [{"role": "assistant", "content": text, "rank": rank} for rank, text in enumerate(("a", "b"))]
    assert flaws(read(PROMPT, *ranked)) == ["several_answers"]


# ---- roles and texts


def test_two_roles_that_differ_are_not_chosen_from() -> None:
    with pytest.raises(RecordError, match="'from' is 'gpt' and 'role' is 'user'"):
        read({"role": "user", "from": "gpt", "content": "a"})


@pytest.mark.parametrize(
    "turn",
    [
        {"speaker": "user", "utterance": "Name a lake."},
        {"author": {"role": "user"}, "content": {"content_type": "text", "parts": ["Name a lake."]}},
        {"sender": "Human:", "body": "Name a lake."},
        {"role": "user", "from": "human", "message": "Name a lake."},
        {"message": {"role": "user", "content": "Name a lake."}},
        {"role": "用户", "content": "Name a lake."},
        {"role": "user", "content": "", "text": "Name a lake."},
    ],
)
def test_a_turn_is_read_with_other_names_of_its_keys(turn: dict[str, object]) -> None:
    messages = read(turn, {"role": "assistant", "content": "Lake Mead."}).messages
    assert messages == [Message("user", "Name a lake."), Message("assistant", "Lake Mead.")]


# ---- nothing vanishes

VALUES = st.recursive(
    st.integers(-9, 9) | st.booleans() | st.just("sentinel"),
    lambda inner: st.lists(inner, min_size=1, max_size=2) | st.dictionaries(st.just("k"), inner, min_size=1),
    max_leaves=4,
)
KEYS = st.sampled_from(
    [*TURN_KINDS, *KINDS, "name", "refusal", "rank", "markdown", "text", "value", "usage", "ünknown"]
)


@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=3), st.sampled_from(["user", "assistant", "system", "tool"]))
def test_no_key_of_a_turn_vanishes(keys: dict[str, object], role: str) -> None:
    try:
        conversation = read({"role": role, "content": "Lake Mead.", **keys}, {"role": "user", "content": "x"})
    except RecordError:
        return
    message = conversation.messages[0]
    extra = json.loads(message.extra or "{}")
    named = json.dumps([[e.before, e.after] for e in conversation.edits] + [f.reason for f in conversation.flaws])
    held = json.dumps([message.name, message.reasoning, message.tool_call_id, message.content])
    for key, value in keys.items():
        absorbed = TURN_KINDS.get(key) in ("train", "masked", "train_reasoning") or key == "stop"
        texts = [part for part in (str(value), "sentinel") if part in str(value)]
        assert extra.get(key) == value or absorbed or key in named or any(part in held for part in texts)


# ---- system messages amid the turns

CHAT = [
    Message("system", "Cat."),
    Message("user", "a"),
    Message("assistant", "b"),
    Message("system", "Dog."),
    Message("user", "c"),
    Message("assistant", "d"),
]


def test_a_system_message_amid_the_turns_begins_the_exchange_after_it() -> None:
    assert exchanges(CHAT) == (1, [1, 3, 6])
    assert exchanges([*CHAT[:4], Message("assistant", "d")]) == (1, [1, 5])


def test_a_template_that_cannot_say_it_has_it_before_the_prompt() -> None:
    assert VICUNA.mid_system is False and CHATML.mid_system is True
    folded = fold_system(CHAT)
    assert [(message.role, message.content) for message in folded[2:]] == [
        ("assistant", "b"),
        ("user", "Dog.\n\nc"),
        ("assistant", "d"),
    ]
    assert "<|im_start|>system\nDog.<|im_end|>\n<|im_start|>user\nc" in text(CHATML, CHAT)


ROLES = st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), max_size=8)


@given(ROLES, st.booleans())
def test_folding_keeps_all_texts_between_the_same_answers(roles: list[Any], first: bool) -> None:
    messages = [Message(role, f"<{index}>") for index, role in enumerate(roles)]
    folded = fold_system(messages, first)
    joined = "\n\n".join(message.content for message in folded)
    assert joined == "\n\n".join(message.content for message in messages)
    assert all(message.role != "system" for message in folded[first:])
    assert [m for m in folded if m.role == "assistant"] == [m for m in messages if m.role == "assistant"]
