"""Whole chats as one text, in which marks say who speaks: HH-RLHF, Guanaco, Baize, ChatML, MOSS, and logs of any kind.

A mark that no one types by chance (`[|Human|]`) is read wherever it stands; what stands before the first mark becomes
the system message. The words of a log (`User:`) are read only if they alternate, since a turn may quote such words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from curate.errors import RecordError
from curate.schemas.conversation import Conversation, Role
from curate.schemas.formats.format import Format
from curate.schemas.prompts import INPUT_MARK
from curate.schemas.reading import turns

RULE = "unclear_roles"
KEYS = ("text", "input", "chat", "conversation", "dialogue", "transcript", "plain_text", "content", "log")
_KEYS = frozenset(KEYS)
ID_KEYS = ("id", "conversation_id", "dialog_id", "chat_id")

_USER = ("human", "user", "instruction", "input", "question", "q", "me", "you", "用户", "问", "사용자")
_ASSISTANT = (
    "assistant",
    "chatgpt",
    "gpt",
    "ai",
    "bot",
    "model",
    "moss",
    "response",
    "answer",
    "a",
    "助手",
    "答",
    "어시스턴트",
)
ROLES: dict[str, Role] = {
    "system": "system",
    "function response": "tool",
    **dict.fromkeys((*_USER, "you said"), "user"),
    **dict.fromkeys((*_ASSISTANT, "chatgpt said"), "assistant"),
}
WEAK_NAMES = frozenset({"q", "a", "question", "answer", "问", "答", "me", "you", "model"})  # in many texts no speaker
_LOG_NAMES = "|".join(
    sorted(ROLES.keys() - {"instruction", "input", "response", "moss", "function response"}, key=len, reverse=True)
)


@dataclass(frozen=True)
class Dialect:
    """One way of marking who speaks: `mark` matches a mark, with the speaker's name as its group.

    `hint`: what every mark contains, found faster than a mark. `ends` are tokens at the end of a turn. `anywhere`: text
    may stand before the first mark. `alternates`: the text is read only if two speakers alternate.
    """

    name: str
    summary: str
    mark: re.Pattern[str]
    hint: str = ""
    ends: tuple[str, ...] = ("</s>", "<|endoftext|>")
    anywhere: bool = True
    alternates: bool = False

    def recognises(self, record: Mapping[str, object]) -> bool:
        """Return whether a record has a text that seems to be in this dialect."""
        return self.key(record) is not None

    def key(self, record: Mapping[str, object]) -> str | None:
        """Return the key of a record's text in this dialect."""
        if _KEYS.isdisjoint(record):
            return None
        return next((key for key in KEYS if isinstance(text := record.get(key), str) and self.fits(text)), None)

    def fits(self, text: str) -> bool:
        """Return whether a text seems to be in this dialect."""
        if self.anywhere:
            return self.hint in text and self.mark.search(text) is not None
        return self.begins(text) or self.begins(text.lstrip())

    def begins(self, text: str) -> bool:
        """Return whether a text begins with a mark of this dialect."""
        return self.mark.match(text) is not None

    def parse(self, record: Mapping[str, object]) -> Conversation:
        """Read one record; raises RecordError if it is not clear who speaks."""
        key = self.key(record)
        assert key is not None
        text = str(record[key])
        items = self.split(text)
        if not {"user", "assistant"} <= {item["role"] for item in items}:
            raise _unclear("it has no prompt with an answer", text)
        conversation = Conversation(None, [])
        id_key = next((name for name in ID_KEYS if record.get(name) not in (None, "")), "id")
        conversation.source_id = turns.read_source_id(conversation, record.get(id_key))
        turns.read_messages(conversation, items, "role", "content")
        turns.read_other_keys(conversation, record, frozenset({key, id_key}))
        return conversation

    def split(self, text: str) -> list[dict[str, str]]:
        """Return the turns of a text; raises RecordError if they do not alternate where they must."""
        marks = list(self.mark.finditer(text))
        if self.alternates:
            marks = _marks_of_speakers(marks, text)
        items = [{"role": "system", "content": text[: marks[0].start()].strip()}] if marks else []
        for match, end in zip(marks, [*(mark.start() for mark in marks[1:]), len(text)], strict=True):
            _add(items, _name(match), self._strip(text[match.end() : end]))
        if self.alternates and not all(item["content"] for item in items[1:-1]):
            raise _unclear("a turn is empty", text)
        return items[not items[0]["content"] : len(items) - (not items[-1]["content"])] if items else []

    def _strip(self, text: str) -> str:
        text = text.strip()
        while end := next((end for end in self.ends if text.endswith(end)), ""):
            text = text.removesuffix(end).rstrip()
        return text


def _name(mark: re.Match[str]) -> str:
    return mark[1].casefold()


def _add(items: list[dict[str, str]], name: str, text: str) -> None:
    """Append a turn, or an instruction's input to it."""
    if name == "input":
        items[-1]["content"] += f"{INPUT_MARK}{text}" if text else ""
    else:
        items.append({"role": ROLES[name], "content": text})


def _marks_of_speakers(marks: Sequence[re.Match[str]], text: str) -> list[re.Match[str]]:
    """Return the marks of the two names that speak; raises RecordError unless they alternate.

    Another name is text of a turn if it often stands for no speaker (`Question:`).
    """
    speakers = _speakers([_name(mark) for mark in marks])
    for mark in marks:
        if _name(mark) not in (*speakers, *WEAK_NAMES, "system", "input"):
            raise _unclear(f"{mark[1]!r} speaks beside {' and '.join(map(repr, speakers))}", text)
    kept = [mark for mark in marks if _name(mark) in (*speakers, "system", "input")]
    for before, mark in zip([None, *kept], kept, strict=False):
        if not _may_follow(before and _name(before), _name(mark)):
            raise _unclear(f"{mark[1]!r} follows {before[1]!r}" if before else f"{mark[1]!r} is first", text)
    return kept


def _speakers(names: Sequence[str]) -> list[str]:
    """Return the first name, and the one that answers it, rather one that often is a speaker."""
    speaking = [name for name in names if name not in ("system", "input")]
    others = [name for name in speaking if ROLES[name] != ROLES[speaking[0]]]
    sure = [name for name in others if name not in WEAK_NAMES]
    return [*speaking[:1], *(others if speaking[0] in WEAK_NAMES else sure or others)[:1]] if speaking else []


def _may_follow(before: str | None, name: str) -> bool:
    if name == "input":
        return before == "instruction"
    if name == "system":
        return before is None
    return before is None or ROLES[before] != ROLES[name]


def _unclear(problem: str, text: str) -> RecordError:
    return RecordError(RULE, f"the text has marks of who speaks, but {problem}", turns.preview(text.strip()))


BAIZE = Dialect(
    "baize", "Baize: {topic, input: '… [|Human|]… [|AI|]…'}.", re.compile(r"\[\|(Human|AI|System)\|\]"), "[|"
)
CHATML = Dialect(
    "chatml",
    "A chat written as ChatML: {text: '<|im_start|>user …<|im_end|> …'}.",
    re.compile(r"<\|im_start\|>[ \t]*(user|assistant|system)[ \t]*\n"),
    "<|im_start|>",
    ends=("<|im_end|>", "<|endoftext|>"),
)
GUANACO = Dialect(
    "guanaco",
    "Guanaco: {text: '### Human: …### Assistant: …'}.",
    re.compile(r"### ?(Human|User|Assistant|AI|Bot|System):"),
    "###",
)
ALPACA = Dialect(
    "alpaca_text",
    "Alpaca's prompt as text: {text: '… ### Instruction: … ### Input: … ### Response: …'}.",
    re.compile(r"^### ?(Instruction|Input|Response):", re.MULTILINE),
    "###",
    alternates=True,
)
HH = Dialect(
    "hh",
    "HH-RLHF: {chosen, rejected} or {text} as two line feeds, 'Human: …', two line feeds, 'Assistant: …'.",
    re.compile(r"\n\n(Human|Assistant|System):"),
    anywhere=False,
)
GLAIVE = Dialect(
    "glaive",
    "Glaive's function calls: {system: 'SYSTEM: …', chat: 'USER: … ASSISTANT: … FUNCTION RESPONSE: …'}.",
    re.compile(r"(?:\A|\n)[ \t]*(SYSTEM|USER|ASSISTANT|FUNCTION RESPONSE):"),
    anywhere=False,
)
LOG = Dialect(
    "log",
    "Plain text with a name before each turn: {text: 'User: … Assistant: …'}, one turn a line or more; must alternate.",
    re.compile(rf"^[ \t]*\*{{0,2}}({_LOG_NAMES})\*{{0,2}}[ \t]?[:：]\*{{0,2}}", re.IGNORECASE | re.MULTILINE),
    anywhere=False,
    alternates=True,
)
SURE = (BAIZE, CHATML, GUANACO, ALPACA, HH)  # the surest marks first


def begins_chat(text: str) -> bool:
    """Return whether a text begins as a chat: with a sure mark, or as a log with a name that is a speaker's.

    A name that often is not, such as `Question`, must have one that answers it.
    """
    text = text.lstrip()
    if any(dialect.begins(text) or dialect.begins(f"\n\n{text}") for dialect in SURE):
        return True
    names = [_name(mark) for mark in LOG.mark.finditer(text)] if LOG.begins(text) else []
    return bool(names) and (names[0] not in WEAK_NAMES or len(_speakers(names)) > 1)


def recognises_glaive(record: Mapping[str, object]) -> bool:
    """Return whether a record has glaive's two texts."""
    return isinstance(record.get("system"), str) and isinstance(chat := record.get("chat"), str) and GLAIVE.fits(chat)


def parse_glaive(record: Mapping[str, object]) -> Conversation:
    """Read one record; raises RecordError if the chat has no prompt with an answer."""
    return GLAIVE.parse({**record, "system": str(record["system"]).strip().removeprefix("SYSTEM:").strip()})


def split_chat(value: object) -> list[dict[str, str]] | None:
    """Return the turns of a text that begins with a sure mark, such as HH-RLHF's prompts and answers; else None."""
    if not isinstance(value, str):
        return None
    dialect = next((dialect for dialect in SURE if not dialect.alternates and dialect.begins(value)), None)
    return dialect.split(value) if dialect else None


FORMATS = (
    Format(
        GLAIVE.name,
        GLAIVE.summary,
        recognises_glaive,
        parse_glaive,
        writes=False,
        requires=("system", "chat"),
        holds="a text that begins with USER:",
    ),
    *(Format(dialect.name, dialect.summary, dialect.recognises, dialect.parse, writes=False) for dialect in SURE),
    Format(
        LOG.name,
        LOG.summary,
        LOG.recognises,
        LOG.parse,
        writes=False,
        requires=("text",),
        holds="a text with a name before each turn, such as User: and Assistant:",
    ),
)
