"""One small record of each format that can be read, all with the same prompt and answer where the format allows it."""

from __future__ import annotations

from typing import Any

from curate.errors import RecordError
from curate.schemas import formats

Record = dict[str, Any]

PROMPT, ANSWER, WORSE = "Which tea?", "Assam.", "Mud."


def user(text: object, **keys: object) -> Record:
    return {"role": "user", "content": text, **keys}


def answer(text: object, **keys: object) -> Record:
    return {"role": "assistant", "content": text, **keys}


def node_of(role: str, text: str) -> Record:
    """Return a message of ChatGPT's export."""
    content = {"content_type": "text", "parts": [text]}
    return {"author": {"role": role}, "content": content, "status": "finished_successfully", "end_turn": True}


CHAT = [user(PROMPT), answer(ANSWER)]
WORSE_CHAT = [user(PROMPT), answer(WORSE)]
HH = f"\n\nHuman: {PROMPT}\n\nAssistant: {ANSWER}"
READ = [("user", PROMPT), ("assistant", ANSWER)]

EXAMPLES: dict[str, list[Record]] = {
    "sharegpt": [
        {"id": "a", "conversations": [{"from": "human", "value": PROMPT}, {"from": "gpt", "value": ANSWER}]},
        {"items": [{"from": "human", "value": PROMPT}, {"from": "gpt", "value": ANSWER}]},
    ],
    "chatgpt": [
        {
            "title": "Tea",
            "mapping": {
                "r": {"id": "r", "parent": None, "message": None},
                "u": {"id": "u", "parent": "r", "message": node_of("user", PROMPT)},
                "a": {"id": "a", "parent": "u", "message": node_of("assistant", ANSWER)},
            },
            "current_node": "a",
        }
    ],
    "responses": [
        {
            "object": "response",
            "input": [{"role": "user", "content": [{"type": "input_text", "text": PROMPT}]}],
            "output": [
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": ANSWER}]},
            ],
        },
        {"input": PROMPT, "output": [{"type": "message", "role": "assistant", "content": ANSWER}]},
    ],
    "gemini": [
        {
            "header": "Gemini Apps",
            "title": f"Prompted {PROMPT}",
            "time": "2026-08-18T10:05:00Z",
            "safeHtmlItem": [{"html": ANSWER}],
        }
    ],
    "ai_studio": [
        {
            "runSettings": {"model": "models/gemini-2.5-pro"},
            "chunkedPrompt": {"chunks": [{"role": "user", "text": PROMPT}, {"role": "model", "text": ANSWER}]},
        }
    ],
    "gemini_api": [
        {"contents": [{"role": "user", "parts": [{"text": PROMPT}]}, {"role": "model", "parts": [{"text": ANSWER}]}]}
    ],
    "claude": [
        {
            "uuid": "c",
            "name": "Tea",
            "chat_messages": [
                {"uuid": "1", "sender": "human", "text": PROMPT, "parent_message_uuid": None},
                {
                    "uuid": "2",
                    "sender": "assistant",
                    "content": [{"type": "text", "text": ANSWER}],
                    "parent_message_uuid": "1",
                },
            ],
        }
    ],
    "openai": [
        {"messages": CHAT},
        {"messages": CHAT, "chat_template_kwargs": {"enable_thinking": False, "python_tools": None}, "source": "s"},
    ],
    "alpaca": [{"instruction": PROMPT, "input": "", "output": ANSWER}],
    "preference": [
        {"prompt": PROMPT, "chosen": ANSWER, "rejected": WORSE},
        {"chosen": CHAT, "rejected": WORSE_CHAT},
        {"chosen": HH, "rejected": f"\n\nHuman: {PROMPT}\n\nAssistant: {WORSE}"},
        {
            "input": {"messages": CHAT[:1]},
            "preferred_output": CHAT[1:],
            "non_preferred_output": WORSE_CHAT[1:],
        },
    ],
    "stepwise": [{"prompt": PROMPT, "completions": [ANSWER], "labels": [True]}],
    "arena": [
        {"model_a": "m", "model_b": "n", "winner": "model_a", "conversation_a": CHAT, "conversation_b": WORSE_CHAT},
        {
            "winner": "model_b",
            "full_conversation": [
                {
                    "user": user(PROMPT),
                    "model_side_a": answer(WORSE),
                    "model_side_b": answer([{"type": "text", "text": ANSWER}]),
                }
            ],
        },
        {"prompt": PROMPT, "response_a": ANSWER, "response_b": WORSE, "winner_model_a": 1, "winner_model_b": 0},
    ],
    "pairs": [
        {"prompt": PROMPT, "completion": ANSWER},
        {"kind": "QA", "input": PROMPT, "target": ANSWER},
        {"instruction": PROMPT, "context": "", "response": ANSWER, "category": "open_qa"},
        {"question": PROMPT, "answer": ANSWER},
    ],
    "oasst": [
        {
            "message_tree_id": "t",
            "tree_state": "ready_for_export",
            "prompt": {
                "message_id": "t",
                "text": PROMPT,
                "role": "prompter",
                "replies": [
                    {"message_id": "x", "text": ANSWER, "role": "assistant", "rank": 0, "replies": []},
                    {"message_id": "y", "text": WORSE, "role": "assistant", "rank": 1, "replies": []},
                ],
            },
        }
    ],
    "self_instruct": [
        {
            "id": "seed_task_0",
            "name": "tea",
            "instruction": PROMPT,
            "instances": [{"input": "", "output": ANSWER}],
            "is_classification": False,
        }
    ],
    "wildchat": [
        {
            "conversation_hash": "h",
            "model": "m",
            "conversation": [
                user(PROMPT, toxic=False, redacted=False, hashed_ip="0f", header={"user-agent": "b"}, country="Peru"),
                answer(ANSWER, toxic=False, redacted=False, hashed_ip=None, header=None),
            ],
            "turn": 1,
            "toxic": False,
            "redacted": False,
            "hashed_ip": "0f",
            "header": {"user-agent": "b"},
        }
    ],
    "lmsys": [
        {
            "conversation_id": "c",
            "model": "m",
            "conversation": CHAT,
            "turn": 1,
            "openai_moderation": [],
            "redacted": False,
        },
        {"conversation": [{"system": "", "input": PROMPT, "output": ANSWER}]},
        {"conversation_id": 1, "category": "x", "conversation": [{"human": PROMPT, "assistant": ANSWER}]},
    ],
    "ultrachat": [{"id": "0", "data": [PROMPT, ANSWER]}],
    "turns": [
        {"turns": [{"speaker": "user", "utterance": PROMPT}, {"speaker": "assistant", "utterance": ANSWER}]},
        {"thread": [{"text": PROMPT, "role": "user"}, {"text": ANSWER, "role": "assistant"}]},
        {"dialog": [[PROMPT, ANSWER]]},
        {"chat": [["user", PROMPT], ["assistant", ANSWER]]},
        {"data": [{"user": PROMPT}, {"assistant": ANSWER}]},
    ],
    "moss": [
        {
            "conversation_id": "1",
            "meta_instruction": "",
            "num_turns": 1,
            "chat": {
                "turn_1": {
                    "Human": f"<|Human|>: {PROMPT}<eoh>\n",
                    "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n",
                    "Commands": "<|Commands|>: None<eoc>\n",
                    "Tool Responses": "<|Results|>: None<eor>\n",
                    "MOSS": f"<|MOSS|>: {ANSWER}<eom>\n",
                }
            },
        },
        {"plain_text": f"[Human]: {PROMPT}<eoh>\n[MOSS]: {ANSWER}<eoa>\n"},
    ],
    "glaive": [{"system": "", "chat": f"USER: {PROMPT}\n\n\nASSISTANT: {ANSWER} <|endoftext|>\n\n\n"}],
    "baize": [{"topic": "tea", "input": f"[|Human|] {PROMPT}\n[|AI|] {ANSWER}\n[|Human|] "}],
    "chatml": [
        {"text": f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n{ANSWER}<|im_end|>\n"},
    ],
    "guanaco": [{"text": f"### Human: {PROMPT}### Assistant: {ANSWER}"}],
    "alpaca_text": [{"text": f"### Instruction:\n{PROMPT}\n\n### Response:\n{ANSWER}</s>"}],
    "hh": [{"text": HH}],
    "log": [
        {"text": f"User: {PROMPT}\nAssistant: {ANSWER}"},
        {"text": f"Q: {PROMPT}\nA: {ANSWER}"},
        {"text": f"**Human:** {PROMPT}\n\n**AI:** {ANSWER}\n"},
        {"transcript": f"You said:\n{PROMPT}\n\nChatGPT said:\n{ANSWER}\n"},
        {"text": f"用户：{PROMPT}\n助手：{ANSWER}"},
    ],
}
ROWS = {"message_id": "x", "parent_id": "t", "message_tree_id": "t", "text": ANSWER, "role": "assistant", "rank": 0}
EXAMPLES |= {
    "open_webui": [
        {
            "id": "c",
            "chat": {
                "history": {
                    "messages": {
                        "p": {"id": "p", "parentId": None, "role": "user", "content": PROMPT},
                        "a": {"id": "a", "parentId": "p", "role": "assistant", "content": ANSWER, "model": "m"},
                    },
                    "currentId": "a",
                }
            },
        }
    ],
    "ultrafeedback": [
        {
            "source": "evol_instruct",
            "instruction": PROMPT,
            "completions": [
                {"response": WORSE, "model": "m1", "overall_score": 2.0},
                {"response": ANSWER, "model": "m2", "overall_score": 8.5, "custom_system_prompt": "Be honest."},
            ],
        }
    ],
    "nectar": [
        {
            "prompt": f"\n\nHuman: {PROMPT}\n\nAssistant: ",
            "answers": [{"answer": ANSWER, "model": "m", "rank": 1.0}, {"answer": WORSE, "model": "n", "rank": 2.0}],
            "good_natured": True,
        }
    ],
    "shp": [{"post_id": "p", "history": PROMPT, "human_ref_A": WORSE, "human_ref_B": ANSWER, "labels": 0}],
    "webgpt": [
        {
            "question": {"full_text": PROMPT, "dataset": "eli5", "id": "q"},
            **{"answer_0": ANSWER, "score_0": 0.5, "answer_1": WORSE, "score_1": -0.5},
        }
    ],
    "helpsteer": [
        {"context": [user(PROMPT)], "response1": ANSWER, "response2": WORSE, "overall_preference": -2},
        {"prompt": PROMPT, "response_1": WORSE, "response_2": ANSWER, "preference_strength": 1},
        {"prompt": PROMPT, "response": ANSWER, "helpfulness": 4, "correctness": 4, "verbosity": 1},
    ],
    "safe_rlhf": [
        {
            **{"prompt": PROMPT, "response_0": WORSE, "response_1": ANSWER, "better_response_id": 1},
            **{"is_response_0_safe": False, "is_response_1_safe": True},
        }
    ],
}
EXAMPLES["oasst_rows"] = [
    {
        "message_tree_id": "t",
        "tree_rows": [
            {"message_id": "t", "parent_id": None, "message_tree_id": "t", "text": PROMPT, "role": "prompter"},
            {**ROWS, "message_id": "w", "text": WORSE, "rank": 1},
            ROWS,
        ],
    }
]


def outcome(record: Record) -> str | list[tuple[str, str]]:
    """Return the roles and texts of a record, in which role names are cut to one letter, or the rule that rejects it.

    A message or record that is flagged ends with its rule.
    """
    try:
        conversation = formats.parse(record)
    except RecordError as error:
        assert error.rule in formats.PROBLEMS and error.reason
        return error.rule
    flaws = {flaw.message: flaw.rule for flaw in conversation.flaws}
    if None in flaws:
        return flaws[None]
    return [
        (message.role[0], message.content + (f" [{flaws[index]}]" if index in flaws else ""))
        for index, message in enumerate(conversation.messages)
    ]
