"""LMSYS-Chat-1M, WildChat, UltraChat and lists like theirs, with what is wrong in them."""

from __future__ import annotations

import json

import pytest

from curate.errors import RecordError
from curate.schemas import formats
from tests.schemas.formats.examples import ANSWER, CHAT, EXAMPLES, PROMPT, Record, answer, outcome, user

READ = [("u", PROMPT), ("a", ANSWER)]


def with_id(*texts: object) -> Record:
    return {"id": "0", "data": list(texts)}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        # LMSYS-Chat-1M, XTuner, Firefly
        ({"conversation": CHAT, "redacted": True}, "bad_label"),
        ({"conversation": [user(PROMPT), answer(None)]}, [("u", PROMPT), ("a", "")]),
        ({"conversation": [user(PROMPT), {"role": "NAME_1", "content": ANSWER}]}, "unknown_role"),
        ({"conversation": [user(PROMPT), None]}, "bad_turn"),
        ({"conversation": [user(PROMPT), ANSWER]}, "bad_turn"),
        ({"conversation": [user(PROMPT), answer({"x": 1})]}, "bad_value"),
        ({"conversation": [user(PROMPT), answer([ANSWER, "Ceylon."])]}, "several_answers"),
        ({"conversation": []}, "unknown_format"),
        ({"conversation": [{"system": "Be brief.", "input": PROMPT, "output": ANSWER}]}, [("s", "Be brief."), *READ]),
        (
            {"conversation": [{"human": PROMPT, "assistant": ANSWER}, {"human": "And?", "assistant": None}]},
            [*READ, ("u", "And?")],
        ),
        ({"conversation": [{"human": PROMPT, "user": "x", "assistant": ANSWER}]}, "unclear_roles"),
        ({"conversation": [{"instruction": PROMPT, "input": "x", "output": ANSWER}]}, "unclear_roles"),
        ({"conversation": [{"human": ["a", "b"], "assistant": ANSWER}]}, [("u", "a\nb"), ("a", ANSWER)]),
        # UltraChat
        (with_id(PROMPT, ANSWER, "And?"), [*READ, ("u", "And?")]),
        (with_id(PROMPT, ""), [("u", PROMPT), ("a", "")]),
        (with_id(PROMPT), "unknown_format"),
        (with_id(PROMPT, None), "unknown_format"),
        (with_id(PROMPT, 5), "unknown_format"),
        (with_id(), "unknown_format"),
        ({"data": [PROMPT, ANSWER]}, "unknown_format"),
        ({"id": "0", "data": f"{PROMPT} {ANSWER}"}, "unknown_format"),
        ({"id": "0", "data": [{"x": 1}, {"y": 2}]}, "unknown_format"),
        # other lists
        ({"turns": [PROMPT, "And?"], "question_id": 81}, "unclear_roles"),
        ({"dialog": ["Hi, Ann.", "Hi, Bob."], "act": [1, 1]}, "unclear_roles"),
        ({"turns": [{"speaker": "Ann", "text": "Hi"}, {"speaker": "Bob", "text": "Hi"}]}, "unknown_role"),
        ({"turns": [{"speaker": "user", "utterance": PROMPT}, {"speaker": "bot", "utterance": ANSWER}]}, READ),
        ({"turns": [{"user": "ann", "text": "Hi"}]}, "unknown_format"),
        ({"dialogue": [[PROMPT, ANSWER, "And?"]]}, "unknown_format"),
        ({"dialogue": [[PROMPT, ANSWER], ["And?"]]}, "bad_turn"),
        ({"chat": [["user", PROMPT], ["assistant", ANSWER], ["user", "And?"]]}, [*READ, ("u", "And?")]),
        ({"utterances": [{"author": "prompter", "body": PROMPT}, {"author": "AI", "message": ANSWER}]}, READ),
        ({"rounds": [{"question": PROMPT, "answer": 42}]}, [("u", PROMPT), ("a", "42")]),
        ({"thread": {"a": 1}}, "unknown_format"),
        # the same turns where ShareGPT and OpenAI have theirs
        ({"conversations": [{"user": PROMPT}, {"assistant": ANSWER}]}, READ),
        ({"conversations": [[PROMPT, ANSWER]]}, READ),
        ({"messages": [["user", PROMPT], ["assistant", ANSWER]]}, READ),
        ({"messages": [{"speaker": "user", "text": PROMPT}, {"speaker": "assistant", "text": ANSWER}]}, READ),
        ({"messages": [{"question": PROMPT, "answer": ANSWER}]}, READ),
        ({"conversations": [PROMPT, ANSWER]}, "bad_turn"),
    ],
    ids=repr,
)
def test_turns_under_other_names(record: Record, expected: object) -> None:
    assert outcome(record) == expected


def test_ids_models_and_other_keys_are_kept() -> None:
    conversation = formats.parse(EXAMPLES["lmsys"][0])
    assert (conversation.source_id, conversation.model) == ("c", "m")
    assert conversation.metadata == {"turn": 1, "openai_moderation": [], "redacted": False}
    assert formats.parse(EXAMPLES["lmsys"][2]).source_id == "1"


def test_keys_beside_a_prompt_with_its_answer_stay_with_the_answer() -> None:
    record = {"conversation": [{"human": PROMPT, "assistant": ANSWER, "weight": 0, "toxic": True}]}
    conversation = formats.parse(record)
    assert [message.train for message in conversation.messages] == [True, False]
    assert [(flaw.rule, flaw.message) for flaw in conversation.flaws] == [("bad_label", 1)]


# ---- WildChat


def wildchat(*turns: object, **keys: object) -> Record:
    return {"conversation_hash": "h", "conversation": list(turns), **keys}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (wildchat(*CHAT, toxic=True), "bad_label"),
        (wildchat(*CHAT, redacted="true"), "bad_label"),
        (wildchat(user(PROMPT, toxic=True), CHAT[1]), [("u", f"{PROMPT} [bad_label]"), ("a", ANSWER)]),
        (wildchat(CHAT[0], answer(ANSWER, redacted=1)), [("u", PROMPT), ("a", f"{ANSWER} [bad_label]")]),
        (wildchat(*CHAT, toxic=False, redacted=None), READ),
        (wildchat(user(PROMPT, hashed_ip=5, header=["x"]), CHAT[1]), READ),
        (wildchat(CHAT[0], None), "bad_turn"),
        (wildchat(CHAT[0], {"content": ANSWER}), READ),
        (wildchat(user(""), CHAT[1]), [("u", ""), ("a", ANSWER)]),
        (wildchat(), "unknown_format"),
    ],
    ids=repr,
)
def test_wildchat(record: Record, expected: object) -> None:
    assert outcome(record) == expected


def test_what_tells_who_wrote_is_removed_from_turns_and_record_by_name() -> None:
    conversation = formats.parse(EXAMPLES["wildchat"][0])
    kept = json.dumps([conversation.metadata, [(m.content, m.extra) for m in conversation.messages]])
    for secret in ("0f", "user-agent", "hashed_ip", "header"):
        assert secret not in kept
    assert [(edit.rule, edit.before, edit.count) for edit in conversation.edits] == [
        ("personal_data", "hashed_ip, header", 2)
    ]
    assert conversation.source_id == "h"


@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_personal_data_is_removed_from_wildchat_in_other_shapes_too(key: str) -> None:
    wildchat_turns = EXAMPLES["wildchat"][0]["conversation"]
    conversation = formats.parse({key: wildchat_turns, "hashed_ip": "0f", "header": {"user-agent": "b"}})
    kept = json.dumps([conversation.metadata, [message.extra for message in conversation.messages]])
    assert "0f" not in kept and "user-agent" not in kept and "Peru" in kept
    assert {edit.rule for edit in conversation.edits} == {"personal_data"}


def test_a_list_of_texts_says_what_to_do() -> None:
    with pytest.raises(RecordError, match="name no role; if they alternate from prompt to answer, name it 'data'"):
        formats.parse({"turns": ["a", "b"]})
