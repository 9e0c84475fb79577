"""Several answers to one prompt: the best is read, the worst rejected; ties, unsafe and unhelpful answers are named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import RecordError
from curate.schemas import formats
from tests.schemas.formats.examples import ANSWER, CHAT, EXAMPLES, PROMPT, READ, WORSE, WORSE_CHAT, Record, outcome

OUTCOME = [(role[:1], text) for role, text in READ]
SHP, WEBGPT, SAFE = (EXAMPLES[name][0] for name in ("shp", "webgpt", "safe_rlhf"))
PREFERENCE, STRENGTH, RATED = EXAMPLES["helpsteer"]


def ultrafeedback(*answers: tuple[object, object], **keys: object) -> Record:
    completions = [{"response": text, "overall_score": score, **keys} for text, score in answers]
    return {"instruction": PROMPT, "completions": completions}


def nectar(*answers: tuple[object, object]) -> Record:
    return {"prompt": PROMPT, "answers": [{"answer": text, "rank": rank} for text, rank in answers]}


def aspects(rating: object) -> Record:
    return {"annotations": {"honesty": {"Rating": rating}, "helpfulness": {"Rating": "4"}}}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (ultrafeedback((WORSE, "2.0"), (ANSWER, "8.0")), OUTCOME),
        (ultrafeedback((WORSE, 1), (ANSWER, None), (ANSWER, 7)), OUTCOME),
        (ultrafeedback((ANSWER, None)), OUTCOME),
        (ultrafeedback((ANSWER, 8), ("", 10)), OUTCOME),
        (ultrafeedback((ANSWER, 8), (None, 10)), OUTCOME),
        (ultrafeedback((ANSWER, 8), (WORSE, 8)), "no_preference"),
        (ultrafeedback((ANSWER, None), (WORSE, None)), "no_preference"),
        (ultrafeedback((ANSWER, 8), (WORSE, "N/A")), "no_preference"),
        (ultrafeedback(("", 8), (None, 2)), "no_preference"),
        ({"instruction": PROMPT, "completions": []}, "unknown_format"),
        ({"instruction": PROMPT, "completions": [{"response": ANSWER, "rating": 3}, "x", None]}, OUTCOME),
        (
            {
                "instruction": PROMPT,
                "completions": [
                    {"response": WORSE, "fine-grained_score": 1.5},
                    {"response": ANSWER, "fine-grained_score": 4.75},
                ],
            },
            OUTCOME,
        ),
        (
            {
                "instruction": PROMPT,
                "completions": [{"response": WORSE, **aspects("2")}, {"response": ANSWER, **aspects("5")}],
            },
            OUTCOME,
        ),
        ({"instruction": 5, "completions": [{"response": ANSWER}]}, [("u", "5"), ("a", ANSWER)]),
        ({"instruction": PROMPT, "completions": [{"response": {"x": 1}, "score": 5}]}, "bad_value"),
        (nectar((ANSWER, 1), (WORSE, 7), ("Dust.", 3)), OUTCOME),
        (nectar((WORSE, "2.0"), (ANSWER, "1.0")), OUTCOME),
        (nectar((ANSWER, 1), (WORSE, 1)), "no_preference"),
        ({**nectar((ANSWER, 1)), "answers": "x"}, "unknown_format"),
        ({**SHP, "labels": 1}, [("u", PROMPT), ("a", WORSE)]),
        ({**SHP, "labels": "0"}, OUTCOME),
        ({**SHP, "labels": 0.5}, "no_preference"),
        ({**SHP, "labels": None}, "no_preference"),
        ({**SHP, "human_ref_A": ""}, OUTCOME),
        ({**SHP, "human_ref_A": None, "human_ref_B": ""}, "no_preference"),
        ({**WEBGPT, "score_0": 0.0, "score_1": 0.0}, "no_preference"),
        ({**WEBGPT, "score_1": None}, "no_preference"),
        ({**WEBGPT, "question": PROMPT}, OUTCOME),
        ({**WEBGPT, "question": {"full_text": None}}, [("u", ""), ("a", ANSWER)]),
        ({**WEBGPT, "answer_1": ""}, OUTCOME),
        ({**PREFERENCE, "overall_preference": 3}, [("u", PROMPT), ("a", WORSE)]),
        ({**PREFERENCE, "overall_preference": "-1"}, OUTCOME),
        ({**PREFERENCE, "overall_preference": 0}, "no_preference"),
        ({**PREFERENCE, "overall_preference": None}, "no_preference"),
        ({**PREFERENCE, "context": PROMPT}, OUTCOME),
        ({**PREFERENCE, "context": [*WORSE_CHAT, CHAT[0]]}, [("u", PROMPT), ("a", WORSE), *OUTCOME]),
        ({**PREFERENCE, "context": [{"role": "narrator", "content": "x"}]}, "unknown_role"),
        ({**STRENGTH, "preference_strength": 0}, "no_preference"),
        ({**RATED, "helpfulness": 2.0}, OUTCOME),
        ({**RATED, "helpfulness": 1}, [OUTCOME[0], ("a", f"{ANSWER} [bad_label]")]),
        ({**RATED, "helpfulness": "0"}, [OUTCOME[0], ("a", f"{ANSWER} [bad_label]")]),
        ({**RATED, "helpfulness": None}, OUTCOME),
        (
            {**RATED, "prompt": f"{PROMPT}\n<extra_id_1>Assistant\n{WORSE}\n<extra_id_1>User\nAnd?"},
            [("u", PROMPT), ("a", WORSE), ("u", "And?"), ("a", ANSWER)],
        ),
        ({**SAFE, "is_response_1_safe": False}, [OUTCOME[0], ("a", f"{ANSWER} [bad_label]")]),
        ({**SAFE, "is_response_1_safe": "false"}, [OUTCOME[0], ("a", f"{ANSWER} [bad_label]")]),
        ({**SAFE, "better_response_id": 0}, [OUTCOME[0], ("a", f"{WORSE} [bad_label]")]),
        ({**SAFE, "better_response_id": "1"}, OUTCOME),
        ({**SAFE, "better_response_id": None}, "no_preference"),
        ({**SAFE, "better_response_id": 2}, "no_preference"),
        ({**SAFE, "response_0": None}, OUTCOME),
    ],
    ids=repr,
)
def test_the_best_answer_is_read(record: Record, expected: object) -> None:
    assert outcome(record) == expected


@pytest.mark.parametrize(
    "record",
    [record for name in ("ultrafeedback", "nectar", "shp", "webgpt", "safe_rlhf") for record in EXAMPLES[name]]
    + EXAMPLES["helpsteer"][:2],
    ids=lambda record: next(iter(record)),
)
def test_the_worst_answer_is_the_rejected_one(record: Record) -> None:
    conversation = formats.parse(record)
    assert [(message.role, message.content) for message in conversation.rejected_answer] == [("assistant", WORSE)]
    assert WORSE not in json.dumps(conversation.metadata) and ANSWER not in json.dumps(conversation.metadata)


def test_what_a_list_says_of_its_answers_is_kept() -> None:
    conversation = formats.parse(ultrafeedback((WORSE, 1), ("Ceylon.", 5), (ANSWER, 9), critique="c"))
    assert conversation.metadata["completions"] == [
        {"overall_score": 1, "critique": "c"},
        {"response": "Ceylon.", "overall_score": 5, "critique": "c"},
        {"overall_score": 9, "critique": "c"},
    ]


def test_of_several_best_answers_the_first_is_read_and_named() -> None:
    conversation = formats.parse(ultrafeedback((WORSE, 1), (ANSWER, 9), ("Ceylon.", 9)))
    assert conversation.messages[-1].content == ANSWER
    assert [(edit.rule, edit.count) for edit in conversation.edits] == [("tied_answers", 2)]
    assert [message.content for message in conversation.rejected_answer] == [WORSE]


@given(st.lists(st.integers(0, 3), min_size=2, max_size=6))
def test_no_answer_is_better_than_the_one_read_and_none_worse_than_the_rejected(scores: list[int]) -> None:
    record = ultrafeedback(*((f"Answer {place}.", score) for place, score in enumerate(scores)))
    by_text: dict[str, Any] = {each["response"]: each["overall_score"] for each in record["completions"]}
    try:
        conversation = formats.parse(record)
    except RecordError as error:
        assert error.rule == "no_preference" and len(set(scores)) == 1
        return
    assert by_text[conversation.messages[-1].content] == max(scores)
    assert by_text[conversation.rejected_answer[0].content] == min(scores) < max(scores)


# ---- pairs with scores


PAIR = {"prompt": PROMPT, "chosen": CHAT, "rejected": WORSE_CHAT}


@pytest.mark.parametrize("keys", ["score_{}", "{}_score", "{}_rating", "rating_{}", "{}-rating"])
def test_the_scores_of_a_pair_are_read(keys: str) -> None:
    chosen, rejected = keys.format("chosen"), keys.format("rejected")
    better = formats.parse({**PAIR, chosen: 5, rejected: "4"})
    assert better.rejected_answer and not better.edits
    tied = formats.parse({**PAIR, "messages": CHAT, chosen: 4.0, rejected: 4})
    assert tied.rejected_answer == [] and tied.metadata["rejected"] == WORSE_CHAT
    assert [edit.rule for edit in tied.edits] == ["tied_answers"]
    with pytest.raises(RecordError, match="the chosen answer has the") as caught:
        formats.parse({**PAIR, chosen: 3, rejected: 4})
    assert caught.value.rule == "bad_preference"
    assert formats.parse({**PAIR, chosen: None, rejected: 4}).rejected_answer


def test_a_pair_of_whole_chats_with_its_source_beside_it_is_a_pair() -> None:
    source = {"conversation": [{"input": PROMPT, "output": "Tea."}], "original_response": "Tea."}
    conversation = formats.parse({**source, **PAIR, "chosen_rating": 5, "rejected_rating": 2, "chosen_model": "m"})
    assert [(message.role, message.content) for message in conversation.messages] == READ
    assert conversation.metadata["conversation"] == source["conversation"]
