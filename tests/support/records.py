"""Records with tools, reasoning and more, of the formats that can hold them, for tests that hold for every format."""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]

_CALL: Record = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
_TOOL: Record = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
_CHAT: list[Record] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Is it cold in Oslo?"},
    {"role": "assistant", "content": "It is."},
]
_BLOCKS: Record = {  # Anthropic's messages
    "system": [{"type": "text", "text": "Be brief."}],
    "tools": [{"name": "weather", "description": "W", "input_schema": {"type": "object", "properties": {}}}],
    "messages": [
        {"role": "user", "content": "Is it cold in Oslo?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I look.", "signature": "s"},
                {"type": "text", "text": "Let me look."},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "4"}]},
                {"type": "text", "text": "In one line."},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "It is."}]},
    ],
}
_TOOL_CHAT: list[Record] = [
    {"role": "user", "content": [{"type": "text", "text": "Is it cold in Oslo?"}]},
    {"role": "assistant", "content": None, "tool_calls": [_CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "4 degrees"},
    {"role": "assistant", "reasoning_content": "4 is cold.", "content": "It is."},
]

RICH: dict[str, list[Record]] = {
    "sharegpt": [
        {"id": "a", "conversations": [{"from": "human", "value": "Is it cold?"}, {"from": "gpt", "value": "It is."}]},
        {
            "tools": [_TOOL],
            "conversations": [
                {"from": "human", "value": "Is it cold?"},
                {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
                {"from": "observation", "value": "4 degrees"},
                {"from": "gpt", "value": "It is."},
            ],
        },
    ],
    "jsonl": [
        {"id": "a", "source_id": "a", "piece": None, "messages": _CHAT, "model": "m", "metadata": {"title": "T"}}
    ],
    "openai": [{"messages": _CHAT}, _BLOCKS, {"id": "a", "messages": _TOOL_CHAT, "tools": [_TOOL]}],
    "alpaca": [
        {"instruction": "Is it cold?", "input": "4 degrees", "output": "It is."},
        {"instruction": "And now?", "output": "Yes.", "history": [["Is it cold?", "It is."]], "system": "Be brief."},
    ],
    "preference": [
        {"prompt": "Is it cold?", "chosen": "It is.", "rejected": "No."},
        {"prompt": _CHAT[:2], "chosen": [_CHAT[2]], "rejected": [{"role": "assistant", "content": "No."}]},
    ],
    "pairs": [{"prompt": "Is it cold?", "completion": "It is."}, {"query": "Is it cold?", "response": "It is."}],
    "responses": [
        {
            "id": "resp_1",
            "object": "response",
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "Is it cold?"}]}],
            "output": [
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "I need the weather."}]},
                {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "4 degrees"},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "It is."}]},
            ],
        }
    ],
    "gemini": [
        {
            "header": "Gemini Apps",
            "title": "Prompted Is it cold?",
            "time": "2026-08-18T10:05:00Z",
            "safeHtmlItem": [{"html": "<p>It is.</p>"}],
        }
    ],
    "ai_studio": [
        {
            "runSettings": {"model": "models/gemini-2.5-pro"},
            "systemInstruction": {"text": "Be brief."},
            "chunkedPrompt": {
                "chunks": [
                    {"role": "user", "text": "Is it cold?"},
                    {"role": "model", "text": "It is winter.", "isThought": True, "parts": [{"text": "It is winter."}]},
                    {"role": "model", "executableCode": {"language": "PYTHON", "code": "print(4)"}},
                    {"role": "model", "codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "4"}},
                    {"role": "model", "parts": [{"text": "It "}, {"text": "is."}]},
                ]
            },
        }
    ],
}
