"""Prompt templates: how messages become the text and control tokens that a model reads.

A rendering is a list of segments, each a text or one control token by name (`bos`, `eos`, `<|eot_id|>`). So a control
token is always placed as an id, and no text can become one. The text between two control tokens is tokenized in one
call: a trainer joins neighbouring text segments, tokenizes them once, and locates the supervised characters by their
offsets. Only the standard library is imported here, so that rendering needs nothing else.

Sources: FastChat's vicuna_v1.1 (colon style, `</s>` after each answer); Stanford Alpaca's prompts in Alpaca-LoRA's form
(`### Response:` on its own line); Meta's LLaMA-2 chat and LLaMA-3 chat formats, whose own code strips each message;
OpenAI's ChatML.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

from curate.errors import RecipeError, did_you_mean
from curate.schemas.conversation import Message, Role

ANSWERS: tuple[Role, ...] = ("assistant",)  # roles that are supervised by default
INPUT_MARK = "\n\n### Input:\n"  # in an Alpaca prompt, between the instruction and its input


class Control(str):
    """The name of a control token: `bos`, `eos`, or one of the tokenizer's own."""

    __slots__ = ()


BOS, EOS = Control("bos"), Control("eos")
Part = str | Control


class Segment(NamedTuple):
    """One part of a rendering: a text, or, with empty text, the control token named in `control`.

    `message` is the index of the message it belongs to, None for the template's own text. `supervised`: it is trained
    on. That is an answer with `train`, and the token after it if `stop` is also set; `render` can add other roles.
    """

    text: str
    message: int | None
    supervised: bool
    control: str | None


SegmentParts = tuple[tuple[str, str | None], ...]  # (text, None) or ("", control token) for each segment


def _segment_parts(parts: Iterable[Part]) -> SegmentParts:
    return tuple(("", str(part)) if isinstance(part, Control) else (part, None) for part in parts if part)


@dataclass(frozen=True)
class Turn:
    """How one role is written: `before` and `after` surround the content; `lead` and `tail` count as part of it."""

    before: tuple[Part, ...] = ()
    after: tuple[Part, ...] = ()
    lead: str = ""
    tail: str = ""

    @cached_property
    def segment_parts(self) -> tuple[SegmentParts, SegmentParts]:
        """`before` and `after`, as parts of segments."""
        return _segment_parts(self.before), _segment_parts(self.after)


@dataclass(frozen=True)
class Template:
    """A prompt format, as data.

    `start` opens the conversation and `opens` each exchange. `join` separates two messages of one exchange that have no
    control token between them. `system` is the system text of a conversation without a system message
    (`system_with_input` if its first prompt has an Alpaca input). `strips`: outer white space of messages is removed.
    `needs`: control tokens that the format cannot be written without. `mid_system`: it can say a system message amid
    the turns; for another, `fold_system` makes it part of a prompt.
    """

    name: str
    summary: str
    turns: tuple[tuple[Role, Turn], ...]
    start: tuple[Part, ...] = (BOS,)
    opens: tuple[Part, ...] = ()
    join: str = ""
    system: str = ""
    system_with_input: str = ""
    strips: bool = False
    needs: tuple[str, ...] = ()
    mid_system: bool = False

    @cached_property
    def by_role(self) -> dict[Role, Turn]:
        """The turns by role."""
        return dict(self.turns)

    @cached_property
    def segment_parts(self) -> tuple[SegmentParts, SegmentParts]:
        """`start` and `opens`, as parts of segments."""
        return _segment_parts(self.start), _segment_parts(self.opens)


VICUNA = Template(
    name="vicuna",
    summary="Vicuna v1.1: USER: … ASSISTANT: …</s>",
    system="A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    join=" ",
    turns=(
        ("system", Turn()),
        ("user", Turn(before=("USER: ",))),
        ("tool", Turn(before=("TOOL: ",))),
        ("assistant", Turn(before=(" ASSISTANT:",), lead=" ", after=(EOS,))),
    ),
)

ALPACA = Template(
    name="alpaca",
    summary="Alpaca: ### Instruction: … ### Response: …</s>, with ### Input: where a prompt has one",
    system="Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    system_with_input="Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.",
    join="\n\n",
    turns=(
        ("system", Turn()),
        ("user", Turn(before=("### Instruction:\n",))),
        ("tool", Turn(before=("### Tool:\n",))),
        ("assistant", Turn(before=("\n\n### Response:\n",), after=(EOS,))),
    ),
)

LLAMA2 = Template(
    name="llama2",
    summary="LLaMA-2 chat: <s>[INST] <<SYS>>…<</SYS>> … [/INST] … </s>, one <s> for each exchange",
    start=(),
    opens=(BOS, "[INST] "),
    join="\n\n",
    strips=True,
    turns=(
        ("system", Turn(before=("<<SYS>>\n",), after=("\n<</SYS>>",))),
        ("user", Turn()),
        ("tool", Turn()),
        ("assistant", Turn(before=(" [/INST]",), lead=" ", tail=" ", after=(EOS,))),
    ),
)

EOT = Control("<|eot_id|>")


def _header(role: str) -> Turn:
    return Turn(before=(Control("<|start_header_id|>"), role, Control("<|end_header_id|>"), "\n\n"), after=(EOT,))


LLAMA3 = Template(
    name="llama3",
    summary="LLaMA-3 chat: <|start_header_id|>user<|end_header_id|> … <|eot_id|>",
    strips=True,
    needs=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    mid_system=True,
    turns=(
        ("system", _header("system")),
        ("user", _header("user")),
        ("tool", _header("ipython")),
        ("assistant", _header("assistant")),
    ),
)


def _im(role: str) -> Turn:
    return Turn(before=(Control("<|im_start|>"), role + "\n"), after=(Control("<|im_end|>"), "\n"))


CHATML = Template(
    name="chatml",
    summary="ChatML: <|im_start|>user … <|im_end|>; a tokenizer without these tokens has them as text, and its own end",
    mid_system=True,
    turns=(("system", _im("system")), ("user", _im("user")), ("tool", _im("tool")), ("assistant", _im("assistant"))),
)

PLAIN = Template(
    name="plain",
    summary="Plain: messages separated by an empty line, the end token after each answer",
    join="\n\n",
    turns=(
        ("system", Turn()),
        ("user", Turn()),
        ("tool", Turn()),
        ("assistant", Turn(before=("\n\n",), after=(EOS,))),
    ),
)

TEMPLATES = {template.name: template for template in (VICUNA, ALPACA, LLAMA2, LLAMA3, CHATML, PLAIN)}


def get(name: str) -> Template:
    """Return a template by name; raises RecipeError, with the nearest name, for an unknown one."""
    if name not in TEMPLATES:
        raise RecipeError(f"unknown template {name!r}{did_you_mean(name, TEMPLATES)}")
    return TEMPLATES[name]


def fit(template: Template, controls: Collection[str]) -> Template:
    """Adapt a template to a tokenizer with these control tokens.

    A missing `bos` is left out. Missing ChatML tokens are written as text, and answers then end in `eos`. Raises
    RecipeError for a format that needs a missing token.
    """
    check_needs(template.name, template.needs, controls)
    return _fit(template, frozenset(controls))


def check_needs(name: str, needs: Collection[str], controls: Collection[str]) -> None:
    """Raise RecipeError if a template needs a control token that is not among `controls`."""
    missing = [token for token in needs if token not in controls]
    if missing:
        alternatives = ", ".join(other for other, known in TEMPLATES.items() if not known.needs)
        raise RecipeError(
            f"template {name!r} needs the control token {missing[0]!r}, "
            f"which this tokenizer does not have; use one of {alternatives}"
        )


@lru_cache(maxsize=64)
def _fit(template: Template, controls: frozenset[str]) -> Template:
    def fit_parts(parts: Iterable[Part]) -> tuple[Part, ...]:
        kept = (part for part in parts if part != BOS or BOS in controls)
        return tuple(part if not isinstance(part, Control) or part in controls else str(part) for part in kept)

    def fit_turn(role: Role, old: Turn) -> Turn:
        ends = [part for part in old.after if isinstance(part, Control)]
        after = (EOS,) if role == "assistant" and not set(ends) <= controls else fit_parts(old.after)
        return replace(old, before=fit_parts(old.before), after=after)

    turns = tuple((role, fit_turn(role, old)) for role, old in template.turns)
    return replace(template, turns=turns, start=fit_parts(template.start), opens=fit_parts(template.opens))


def _append(out: list[Segment], parts: SegmentParts, message: int | None, supervised: bool = False) -> None:
    """Append parts; only the control tokens among them can be supervised."""
    for text, control in parts:
        out.append(Segment(text, message, supervised and control is not None, control))


def with_reasoning(message: Message) -> str:
    """Return a message's content after its reasoning, in the marks of DeepSeek-R1's and Qwen3's answers."""
    if not message.reasoning:
        return message.content
    return f"<think>\n{message.reasoning}\n</think>\n\n{message.content}"


def fold_reasoning(message: Message) -> Message:
    """Return a message with its reasoning as part of the content; not supervised if the reasoning may not be."""
    if not message.reasoning:
        return message
    train = message.train and message.train_reasoning
    return replace(message, content=with_reasoning(message), reasoning=None, train=train)


def system_before(messages: Sequence[Message], start: int) -> list[int]:
    """Return the positions of the system messages before `start`: the instructions in force there."""
    return [index for index in range(start) if messages[index].role == "system"]


def system_positions(messages: Sequence[Message]) -> list[int]:
    """Return the positions of the system messages."""
    return system_before(messages, len(messages))


def has_mid_system(messages: Sequence[Message]) -> bool:
    """Return whether a system message follows another message."""
    return "system" in [message.role for message in messages[1:]]


def fold_system(messages: Sequence[Message], first: bool = True) -> Sequence[Message]:
    """Return messages with a system message only at the start, for templates that cannot say one elsewhere.

    Several at the start become one. A later one is put before the prompt that follows it, after the prompt that it
    follows, or becomes a prompt; so it stays between the same answers. With `first` false, none is at the start.
    """
    if not (has_mid_system(messages) or (messages and not first and messages[0].role == "system")):
        return messages
    folded: list[Message] = []
    was_system = False  # the last message came from a system message
    for message in messages:
        previous = folded[-1] if folded else None
        is_system = message.role == "system"
        at_start = is_system and first and (previous is None or previous.role == "system")
        if previous is not None and (
            (at_start and previous.role == "system")
            or (previous.role == "user" and (is_system or (was_system and message.role == "user")))
        ):
            kept = previous if is_system else message
            folded[-1] = replace(kept, content=f"{previous.content}\n\n{message.content}")
        else:
            folded.append(replace(message, role="user") if is_system and not at_start else message)
        was_system = is_system
    return folded


def is_masked(message: Message) -> bool:
    """Return whether a message has a reasoning that is not supervised, before a content that may be."""
    return bool(message.reasoning) and message.train and not message.train_reasoning


def content_of(template: Template, message: Message) -> str:
    """Return a message's text as rendered: its reasoning and content, then an answer's tool calls as JSON.

    A masked reasoning is not part of it: it is written before it, as a text of its own.
    """
    content = message.content if is_masked(message) else with_reasoning(message)
    content = content.strip() if template.strips else content
    if message.role == "assistant" and message.tool_calls:
        return f"{content}\n{message.tool_calls}" if content else message.tool_calls
    return content


def default_system(template: Template, messages: Sequence[Message]) -> str:
    """Return the template's own system text, or an empty one if the messages begin with a system message."""
    if messages and messages[0].role == "system":
        return ""
    first = next((message.content for message in messages if message.role == "user"), "")
    return template.system_with_input if template.system_with_input and INPUT_MARK in first else template.system


def _append_opening(
    out: list[Segment], template: Template, new_exchange: bool, joins: bool, message: int | None
) -> None:
    """Append what opens an exchange, or else, with `joins`, what separates a message from text before it."""
    if new_exchange:
        _append(out, template.segment_parts[1], message)
    elif joins and template.join and out and out[-1].control is None:
        out.append(Segment(template.join, message, False, None))


def _render(
    template: Template, messages: Sequence[Message], first: bool, system: str | None, roles: Collection[Role] = ANSWERS
) -> tuple[list[Segment], bool]:
    """Return the segments, and whether the next message would open an exchange."""
    out: list[Segment] = []
    new_exchange = True
    system = default_system(template, messages) if system is None else system
    if first:
        _append(out, template.segment_parts[0], None)
    if first and system:
        _append_opening(out, template, new_exchange, True, None)
        before, after = template.by_role["system"].segment_parts
        _append(out, (*before, (system, None), *after), None)
        new_exchange = False
    for index, message in enumerate(messages):
        turn = template.by_role[message.role]
        answer = message.role == "assistant"
        before, after = turn.segment_parts
        _append_opening(out, template, new_exchange, not answer, index)
        _append(out, before, index)
        supervised = message.role in roles and message.train
        lead = turn.lead
        if is_masked(message):
            out.append(Segment(lead + with_reasoning(replace(message, content="")), index, False, None))
            lead = ""
        content = lead + content_of(template, message) + turn.tail
        if content:
            out.append(Segment(content, index, supervised, None))
        _append(out, after, index, supervised and message.stop)
        new_exchange = answer
    return out, new_exchange


def render(
    template: Template,
    messages: Sequence[Message],
    *,
    first: bool = True,
    system: str | None = None,
    roles: Collection[Role] = ANSWERS,
) -> list[Segment]:
    """Return the segments of a conversation; with `first=False`, of exchanges from its middle.

    A conversation renders as its system message and first exchange, followed by each later exchange with `first=False`
    (see `exchanges`), because each answer ends in a control token. `system` replaces the template's own system text.
    `roles`: whose messages are supervised, if their `train` is set.
    """
    return _render(template, messages, first, system, roles)[0]


def generation_prompt(
    template: Template, messages: Sequence[Message], *, system: str | None = None, roles: Collection[Role] = ANSWERS
) -> list[Segment]:
    """Return the segments that ask a model for its next answer: a prefix of the rendering with that answer.

    `system` and `roles` as in `render`.
    """
    out, new_exchange = _render(template, messages, True, system, roles)
    _append_opening(out, template, new_exchange, False, len(messages))
    _append(out, template.by_role["assistant"].segment_parts[0], len(messages))
    return out


def text(template: Template, messages: Sequence[Message], *, bos: str = "<s>", eos: str = "</s>") -> str:
    """Return a conversation as text, with control tokens by name. For display only: ids are never made from it."""
    names = {"bos": bos, "eos": eos}
    return "".join(
        names.get(segment.control, segment.control) if segment.control else segment.text
        for segment in render(template, messages)
    )


def exchanges(messages: Sequence[Message]) -> tuple[int, list[int]]:
    """Return the number of leading system messages, and the start of each exchange followed by the end of the last.

    An exchange ends with an answer that a user message follows; system messages between the two belong to the next
    exchange. Tool messages are inside it.
    """
    head = 0
    while head < len(messages) and messages[head].role == "system":
        head += 1
    if head == len(messages):
        return head, []
    starts: list[int] = []
    previous = head  # the last message that is not a system message
    for index in range(head + 1, len(messages)):
        role = messages[index].role
        if role == "user" and messages[previous].role == "assistant":
            starts.append(previous + 1)
        if role != "system":
            previous = index
    return head, [head, *starts, len(messages)]
