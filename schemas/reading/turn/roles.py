"""The names of roles, and who speaks in a turn."""

from __future__ import annotations

import re
from collections.abc import Mapping

from curate.errors import RecordError
from curate.schemas.conversation import Conversation, Role
from curate.schemas.reading.values import MAX_NAME, describe_type, preview

ROLE_KEYS = ("from", "role")
SPEAKER_KEYS = (
    "author",
    "speaker",
    "sender",
)  # read where there is no key of `ROLE_KEYS`; with one, they name a person

# Names of the two main formats: read without an edit.
STANDARD_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
ROLE_ALIASES: dict[str, Role] = {
    **dict.fromkeys(("prompter", "customer", "person", "questioner", "asker", "instruction", "question"), "user"),
    **dict.fromkeys(("chatgpt", "bing", "bard", "claude", "gemini", "llama", "gpt4", "vicuna", "alpaca"), "assistant"),
    **dict.fromkeys(("model", "ai", "bot", "chatbot", "llm", "output", "response", "answer"), "assistant"),
    **dict.fromkeys(("用户", "사용자", "ユーザー", "usuario", "utilisateur", "benutzer", "пользователь"), "user"),
    **dict.fromkeys(("助手", "어시스턴트", "アシスタント", "asistente", "ассистент", "机器人"), "assistant"),
    **dict.fromkeys(("system_prompt", "sys", "系统", "시스템", "システム"), "system"),
    **dict.fromkeys(("tool_response", "function_response", "function-response", "ipython", "tool_result"), "tool"),
}
CALL_ROLES = frozenset({"function_call", "function-call", "tool_call", "tool_calls"})  # the assistant calls a tool
THOUGHT_ROLES = frozenset({"thought", "thoughts", "thinking", "reasoning"})  # before the assistant's answer
_MODEL = re.compile(r"(?:chat)?(?:gpt|claude|gemini|llama|vicuna|qwen|deepseek|mistral|mixtral|gemma)[-_. ]?[\dv-]")
_MISSING = (None, "")


def known_role(name: object) -> Role | None:
    """Return the role that a name stands for, whatever its case and with or without a colon; None for another value."""
    if not isinstance(name, str):
        return None
    folded = _fold(name)
    if folded in CALL_ROLES or folded in THOUGHT_ROLES or _MODEL.match(folded):
        return "assistant"
    return STANDARD_ROLES.get(folded) or ROLE_ALIASES.get(folded)


def _fold(name: str) -> str:
    return name.strip().rstrip(":：").rstrip().casefold()


def has_role(turn: Mapping[object, object]) -> bool:
    """Return whether an object is a turn, which has a role, rather than a part of one."""
    return any(isinstance(turn.get(key), str) for key in ROLE_KEYS)


def is_prompt(turn: Mapping[str, object]) -> bool:
    """Return whether a turn has the role of the user."""
    return role_of(turn) == "user"


def role_of(turn: Mapping[str, object]) -> Role | None:
    """Return a turn's role, or None if it has none that is known."""
    return known_role(next((turn[key] for key in ROLE_KEYS if turn.get(key) is not None), None))


def take_role(conversation: Conversation, turn: dict[str, object], index: int) -> tuple[Role | None, str]:
    """Remove the role's keys from a turn; return the role, or None if it is missing, and its name in lower case.

    Raises RecordError for a name that stands for no role, and for two names of different roles.
    """
    key = _role_key(turn, index)
    if key is None:
        return None, ""
    name = turn.pop(key)
    if isinstance(name, dict) and _is_speaker(name):  # ChatGPT's author
        turn |= {f"{key}_{other}": value for other, value in name.items() if other != "role" and value not in _MISSING}
        name = name["role"]
    if not isinstance(name, str):
        raise RecordError("unknown_role", f"the role of turn {index} is {describe_type(name)}", preview(name))
    if name in STANDARD_ROLES:
        return STANDARD_ROLES[name], name
    role = known_role(name) or _creator(turn)
    if role is None:
        raise RecordError("unknown_role", f"the role of turn {index} is {preview(name)[:MAX_NAME]!r}", preview(name))
    folded = _fold(name)
    if folded not in CALL_ROLES and folded not in THOUGHT_ROLES:
        conversation.edit("role_alias", index, name, role)
    return role, folded


def _creator(turn: dict[str, object]) -> Role | None:
    """Return the role of LibreChat's turns, whose sender may have any name."""
    created_by_user = turn.get("isCreatedByUser")
    return None if not isinstance(created_by_user, bool) else "user" if created_by_user else "assistant"


def _role_key(turn: dict[str, object], index: int) -> str | None:
    """Return the key of the role, and remove a second one that says the same."""
    present = [key for key in ROLE_KEYS if turn.get(key) not in _MISSING]
    if len(present) < 2:
        speakers = (key for key in SPEAKER_KEYS if _is_speaker(turn.get(key)))
        return present[0] if present else next(speakers, None)
    known = {key: role for key in present if (role := known_role(turn[key]))}
    if len(set(known.values())) > 1:
        names = " and ".join(f"{key!r} is {preview(turn[key])[:MAX_NAME]!r}" for key in present)
        raise RecordError("unknown_role", f"turn {index} has two roles that differ: {names}", preview(turn))
    if len(known) == 2:
        del turn[ROLE_KEYS[1]]
    return next(iter(known), present[0])


def _is_speaker(value: object) -> bool:
    return (isinstance(value, str) and bool(value)) or (isinstance(value, dict) and isinstance(value.get("role"), str))
