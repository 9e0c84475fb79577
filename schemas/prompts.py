"""Prompt templates: how messages become the text and control tokens that a model reads.

A rendering is a list of segments, either text or one control token by name (`bos`, `eos`,
`<|eot_id|>`), so that a control token is always placed as an id and text can never become one.
The text between two control tokens is one tokenisation: a trainer joins neighbouring text segments,
tokenises once, and finds the supervised characters by their offsets. Only the standard library is
imported here, so a machine that has torch and nothing else can render.

Sources: FastChat's vicuna_v1.1 (colon style, `</s>` after each answer); Stanford Alpaca's prompts in
Alpaca-LoRA's form (`### Response:` on its own line); Meta's LLaMA-2 chat and LLaMA-3 chat formats,
whose own code strips each message; OpenAI's ChatML.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

from curate.errors import RecipeError, did_you_mean
from curate.schemas.conversation import Message, Role

ANSWERS: tuple[Role, ...] = ("assistant",)  # who is supervised where nothing else is asked for
INPUT_MARK = "\n\n### Input:\n"  # in an Alpaca user message: the instruction stands before it, its input after it


class Control(str):
    """The name of a control token: `bos`, `eos`, or one of the tokenizer's own."""

    __slots__ = ()


BOS, EOS = Control("bos"), Control("eos")
Part = str | Control


class Segment(NamedTuple):
    """One stretch of a rendering: text, or (text empty) the control token named in `control`.

    `message` is the index of the message it renders (null: the template's own words), `supervised`
    whether it is trained on: an answer with `train`, and the token after it where `stop` holds too
    (`render` takes other roles than the assistant's).
    """

    text: str
    message: int | None
    supervised: bool
    control: str | None


Written = tuple[tuple[str, str | None], ...]  # parts as (text, null) or ("", control token)


def _written(parts: Iterable[Part]) -> Written:
    return tuple(("", str(part)) if isinstance(part, Control) else (part, None) for part in parts if part)


@dataclass(frozen=True)
class Turn:
    """How one role is written: what stands before the content and after it; `lead` and `tail` count as content."""

    before: tuple[Part, ...] = ()
    after: tuple[Part, ...] = ()
    lead: str = ""
    tail: str = ""

    @cached_property
    def written(self) -> tuple[Written, Written]:
        """What stands before and after, ready to be put into segments."""
        return _written(self.before), _written(self.after)


@dataclass(frozen=True)
class Template:
    """A prompt format, as data.

    `start` opens the conversation and `opens` each exchange; `join` stands between two messages of one
    exchange that no control token parts. `system` is said where a conversation has no system message
    (`system_with_input` if its first prompt carries an Alpaca input). `strips`: contents are stripped
    of outer white space. `needs` names control tokens without which the format has no meaning.
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

    @cached_property
    def by_role(self) -> dict[Role, Turn]:
        """The turns by role."""
        return dict(self.turns)

    @cached_property
    def written(self) -> tuple[Written, Written]:
        """What starts a conversation and opens an exchange, ready to be put into segments."""
        return _written(self.start), _written(self.opens)


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
    turns=(("system", _im("system")), ("user", _im("user")), ("tool", _im("tool")), ("assistant", _im("assistant"))),
)

PLAIN = Template(
    name="plain",
    summary="Plain: messages parted by an empty line, the end token after each answer",
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
    """Return a template by name; raises RecipeError with the nearest name where there is none."""
    if name not in TEMPLATES:
        raise RecipeError(f"unknown template {name!r}{did_you_mean(name, TEMPLATES)}")
    return TEMPLATES[name]


def fit(template: Template, controls: Collection[str]) -> Template:
    """Return the template as a tokenizer with these control tokens can write it.

    A missing `bos` is left out; a missing mark of ChatML is written as text, and the end of an answer
    becomes `eos`. Raises RecipeError where the format has no meaning without a token.
    """
    missing = [name for name in template.needs if name not in controls]
    if missing:
        others = ", ".join(name for name, other in TEMPLATES.items() if not other.needs)
        raise RecipeError(
            f"template {template.name!r} needs the control token {missing[0]!r}, "
            f"which this tokenizer does not have; use one of {others}"
        )
    return _fit(template, frozenset(controls))


@lru_cache(maxsize=64)
def _fit(template: Template, controls: frozenset[str]) -> Template:
    def known(parts: Iterable[Part]) -> tuple[Part, ...]:
        kept = (part for part in parts if part != BOS or BOS in controls)
        return tuple(part if not isinstance(part, Control) or part in controls else str(part) for part in kept)

    def turn(role: Role, old: Turn) -> Turn:
        ends = [part for part in old.after if isinstance(part, Control)]
        after = (EOS,) if role == "assistant" and not set(ends) <= controls else known(old.after)
        return replace(old, before=known(old.before), after=after)

    turns = tuple((role, turn(role, old)) for role, old in template.turns)
    return replace(template, turns=turns, start=known(template.start), opens=known(template.opens))


def _put(out: list[Segment], parts: Written, message: int | None, supervised: bool = False) -> None:
    """Append parts; of them only control tokens can be supervised."""
    for text, control in parts:
        out.append(Segment(text, message, supervised and control is not None, control))


def content_of(template: Template, message: Message) -> str:
    """Return what is said: the content, and after it the tool calls of an answer, as their JSON."""
    content = message.content.strip() if template.strips else message.content
    if message.role == "assistant" and message.tool_calls:
        return f"{content}\n{message.tool_calls}" if content else message.tool_calls
    return content


def default_system(template: Template, messages: Sequence[Message]) -> str:
    """Return what the template says where the messages begin with no system message, else nothing."""
    if messages and messages[0].role == "system":
        return ""
    first = next((message.content for message in messages if message.role == "user"), "")
    return template.system_with_input if template.system_with_input and INPUT_MARK in first else template.system


def _open(out: list[Segment], template: Template, fresh: bool, joined: bool, message: int | None) -> None:
    """Open an exchange (`fresh`), or part a message from the text before it (`joined`)."""
    if fresh:
        _put(out, template.written[1], message)
    elif joined and template.join and out and out[-1].control is None:
        out.append(Segment(template.join, message, False, None))


def _render(
    template: Template, messages: Sequence[Message], first: bool, system: str | None, roles: Collection[Role] = ANSWERS
) -> tuple[list[Segment], bool]:
    """Return the segments, and whether the next message would open an exchange."""
    out: list[Segment] = []
    fresh = True
    system = default_system(template, messages) if system is None else system
    if first:
        _put(out, template.written[0], None)
    if first and system:
        _open(out, template, fresh, True, None)
        before, after = template.by_role["system"].written
        _put(out, (*before, (system, None), *after), None)
        fresh = False
    for index, message in enumerate(messages):
        turn = template.by_role[message.role]
        answer = message.role == "assistant"
        before, after = turn.written
        _open(out, template, fresh, not answer, index)
        _put(out, before, index)
        supervised = message.role in roles and message.train
        content = turn.lead + content_of(template, message) + turn.tail
        if content:
            out.append(Segment(content, index, supervised, None))
        _put(out, after, index, supervised and message.stop)
        fresh = answer
    return out, fresh


def render(
    template: Template,
    messages: Sequence[Message],
    *,
    first: bool = True,
    system: str | None = None,
    roles: Collection[Role] = ANSWERS,
) -> list[Segment]:
    """Return a conversation's segments; with `first` false, of exchanges that follow others in it.

    The rendering of a conversation is that of its system message and first exchange, followed by that
    of each later exchange with `first` false (see `exchanges`): each answer ends in a control token.
    `system` stands in for what the template itself would say before messages without a system message.
    `roles` are those whose messages are supervised, where their `train` holds.
    """
    return _render(template, messages, first, system, roles)[0]


def generation_prompt(
    template: Template, messages: Sequence[Message], *, system: str | None = None, roles: Collection[Role] = ANSWERS
) -> list[Segment]:
    """Return the segments that ask a model for its next answer: a prefix of that answer's rendering.

    `system` and `roles` are as for `render`.
    """
    out, fresh = _render(template, messages, True, system, roles)
    _open(out, template, fresh, False, len(messages))
    _put(out, template.by_role["assistant"].written[0], len(messages))
    return out


def text(template: Template, messages: Sequence[Message], *, bos: str = "<s>", eos: str = "</s>") -> str:
    """Return a conversation as text, control tokens by name; for reading, as ids are never made from it."""
    names = {"bos": bos, "eos": eos}
    return "".join(
        names.get(segment.control, segment.control) if segment.control else segment.text
        for segment in render(template, messages)
    )


def exchanges(messages: Sequence[Message]) -> tuple[int, list[int]]:
    """Return how many system messages lead a conversation, and where each exchange starts, then its end.

    An exchange ends with an answer that a user or system message follows; what tools say stands within it.
    """
    head = 0
    while head < len(messages) and messages[head].role == "system":
        head += 1
    if head == len(messages):
        return head, []
    starts = [
        index
        for index in range(head + 1, len(messages))
        if messages[index - 1].role == "assistant" and messages[index].role in ("user", "system")
    ]
    return head, [head, *starts, len(messages)]
