"""The reasoning of an answer: under keys of its turn, in parts of its content, or in marks at the start of its text."""

from __future__ import annotations

import re

from curate.schemas.conversation import Conversation, Message
from curate.schemas.reading.key_kinds import TURN_KINDS, has_content
from curate.schemas.reading.turn.parts import reasoning_text

FROM_TEXT, UNCLOSED, SECOND = "reasoning_from_text", "unclosed_reasoning", "second_reasoning"  # repairs
UNCLEAR = "unclear_reasoning"

# DeepSeek-R1, QwQ, Qwen3 and others: <think>; Anthropic's prompts: <thinking>; Sky-T1: <|begin_of_thought|>.
_PAIRS = {
    **{f"<{name}>": f"</{name}>" for name in ("think", "thinking", "thought", "reasoning", "seed:think")},
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "[THINK]": "[/THINK]",  # Magistral
    "◁think▷": "◁/think▷",  # Kimi
}
_SETTINGS = frozenset(  # also those of a summary, in OpenAI's `reasoning: {effort, summary}`
    {"on", "off", "high", "medium", "low", "minimal", "auto", "enabled", "disabled", "true", "false"}
    | {"concise", "detailed"}
)
_SCANNERS = {start: re.compile(f"({re.escape(start)})|({re.escape(end)})|```") for start, end in _PAIRS.items()}
# gpt-oss: <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>
_CHANNEL = re.compile(
    r"\s*(?:<\|start\|>assistant)?<\|channel\|>(analysis|commentary|final)<\|message\|>"
    r"((?:(?!<\|(?:channel|start|message)\|>).)*?)(?:<\|end\|>|<\|return\|>|\s*\Z)",
    re.DOTALL,
)
_HARMONY = ("<|channel|>", "<|start|>assistant<|channel|>")
STARTS = frozenset(mark[:2] for mark in _PAIRS)  # of an answer that may begin with a mark
_OPEN = re.compile(r"\s*(" + "|".join(map(re.escape, _PAIRS)) + ")")
# Where the chat template wrote the opening mark: on a line of its own, or after a sentence and before a blank line.
_CLOSED_ONLY = re.compile(r"\n</think>\n|(?<=[.!?。！？)])[ ]?</think>\n(?=\n)")
_SOLUTION = re.compile(r"\s*<\|begin_of_solution\|>\s*(.*?)\s*(?:<\|end_of_solution\|>\s*)?", re.DOTALL)


def take_reasoning(conversation: Conversation, message: Message, turn: dict[str, object], index: int) -> None:
    """Move the reasoning from an answer's keys to the message, which may have some from its parts.

    Of several that differ, the first is kept, and the others stay among the keys.
    """
    for key in [key for key in turn if TURN_KINDS.get(key) == "reasoning"]:
        text = reasoning_text(turn[key])
        if text is None or _is_setting(text) or (not text.strip() and turn[key] not in ("", [], {})):
            continue
        if message.reasoning and has_content(text) and text.strip() != message.reasoning.strip():
            conversation.edit(SECOND, index, text, "")
            continue
        if text.strip() and not has_content(text):  # "None", as tables write nothing
            conversation.edit("empty_value", index, text, "")
        message.reasoning = message.reasoning or (text if has_content(text) else None)
        del turn[key]


def _is_setting(text: str) -> bool:
    """Return whether a text says whether or how much to think, as Nemotron's `reasoning: on` does."""
    return text.strip().casefold() in _SETTINGS


def take_record_reasoning(conversation: Conversation) -> None:
    """Move the reasoning beside a record's only answer from the metadata to it, if it has none that differs."""
    answers = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
    if len(answers) == 1 and not conversation.messages[answers[0]].tool_calls:
        take_reasoning(conversation, conversation.messages[answers[0]], conversation.metadata, answers[0])


def split_reasoning(conversation: Conversation, message: Message, index: int) -> None:
    """Move reasoning in marks from the start of an answer's text to the message.

    Marks that are never closed leave no answer, and the answer was cut off. An answer whose marks do not pair up keeps
    them in its text, and is not trained on.
    """
    text, found = message.content, list[str]()
    if text.lstrip().startswith(_HARMONY):
        _split_channels(conversation, message, index)
        return
    while opened := _OPEN.match(text):
        body, closing, rest = _close(text[opened.end() :], opened[1])
        if not closing:
            message.stop = False
            conversation.edit(UNCLOSED, index, text, "")
        elif opened[1] not in rest and _is_closed_again(rest, _PAIRS[opened[1]]):
            _keep_unclear(conversation, message, index)
            return
        found.append(body.removeprefix("\n").removesuffix("\n"))
        text = _after_mark(rest)
    if not found and (closed := _closed_only(text)):
        found, text = [text[: closed.start()]], text[closed.end() :].removeprefix("\n")
    if found:
        _move(conversation, message, [part for part in found if part.strip()], text, index)


def _is_closed_again(rest: str, end: str) -> bool:
    """Return whether the end of reasoning stands once more in what follows it, other than in code."""
    in_code = False
    for found in re.finditer(f"{re.escape(end)}|```", rest):
        if found[0] == "```":
            in_code = not in_code
        elif not in_code and "`" not in (rest[found.start() - 1 : found.start()], rest[found.end() : found.end() + 1]):
            return True
    return False


def _close(text: str, mark: str) -> tuple[str, str, str]:
    """Return the text before the end of an open mark, that end, and what follows; marks may be nested.

    An end within a block of code counts only if there is no other. If the marks do not balance, the last end counts.
    """
    end, depth, in_code, last = _PAIRS[mark], 1, False, None
    for found in _SCANNERS[mark].finditer(text):
        if found[0] == "```":
            in_code = not in_code
        elif not in_code:
            depth += 1 if found[1] else -1
            last = found if found[2] else last
            if depth == 0:
                break
    if last is None:
        return text.partition(end)
    return text[: last.start()], end, text[last.end() :]


def _split_channels(conversation: Conversation, message: Message, index: int) -> None:
    """Move what stands in other channels than the final one to the reasoning; without a final one it was cut off."""
    text, place = message.content, 0
    found: dict[str, list[str]] = {"analysis": [], "commentary": [], "final": []}
    while part := _CHANNEL.match(text, place):
        found[part[1]].append(part[2].strip())
        place = part.end()
    if text[place:].strip() or len(found["final"]) > 1:
        _keep_unclear(conversation, message, index)
        return
    if not found["final"]:
        message.stop = False
        conversation.edit(UNCLOSED, index, text, "")
    thoughts = [part for part in (*found["analysis"], *found["commentary"]) if part]
    _move(conversation, message, thoughts, "".join(found["final"]), index)


def _keep_unclear(conversation: Conversation, message: Message, index: int) -> None:
    message.train = False
    conversation.edit(UNCLEAR, index, message.content, message.content)


def _after_mark(rest: str) -> str:
    """Return the answer after the mark, without the two line feeds or the blanks that separate them."""
    solution = _SOLUTION.fullmatch(rest) if "<|begin_of_solution|>" in rest else None
    if solution:
        return solution[1]
    return rest.removeprefix("\n").removeprefix("\n") if rest[:1] == "\n" else rest.lstrip(" \t")


def _closed_only(text: str) -> re.Match[str] | None:
    """Return the end of reasoning that has no beginning, unless it may be quoted."""
    closed = _CLOSED_ONLY.search(text)
    if closed is None or not text[closed.end() :].strip():
        return None
    before, after = text[: closed.start()], text[closed.end() :]
    return closed if "think>" not in before + after and before.count("```") % 2 == 0 else None


def _move(conversation: Conversation, message: Message, found: list[str], text: str, index: int) -> None:
    reasoning = "\n\n".join(found)
    if message.reasoning and reasoning and reasoning.strip() != message.reasoning.strip():
        conversation.edit(SECOND, index, reasoning, "")
        message.train = False  # the text keeps it, and is no answer
        return
    conversation.edit(FROM_TEXT, index, message.content, text)
    message.content, message.reasoning = text, message.reasoning or reasoning or None
