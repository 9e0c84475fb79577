"""Conversations under way: answers, and further prompts by a model in the user's place, in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from curate.client.exchange import Reply, Request
from curate.generation.similarity import words
from curate.generation.steps import Ask, Asker, Drop, Prompt, Sampling, problem
from curate.generation.wording import wording

SORRY_WORDS = 80  # an answer with "sorry" and fewer words is a refusal (WizardLM)


@dataclass
class Talk:
    """A conversation: its name, its prompt, the messages so far, and the requests that made them, with their steps."""

    name: str
    prompt: Prompt
    messages: list[dict[str, str]]
    steps: list[tuple[str, Request]] = field(default_factory=list)
    model: str = ""

    @property
    def turns(self) -> int:
        """How many prompts have their answer."""
        return sum(message["role"] == "assistant" for message in self.messages)


@dataclass(frozen=True)
class Turn:
    """Whose message of a talk is asked for."""

    talk: Talk
    role: str


@dataclass(frozen=True)
class Talks:
    """Makes talks of prompts."""

    asker: Asker
    sampling: Sampling
    user_sampling: Sampling
    turns: int
    refuse_sorry: bool = False

    def start(self, name: str, prompt: Prompt) -> Talk:
        """Return a talk that begins with a prompt, with its answer if it has one."""
        messages = [{"role": "system", "content": prompt.system}] * bool(prompt.system)
        messages = [*messages, {"role": "user", "content": prompt.text}]
        steps = [("prompt", prompt.made_by)] if prompt.made_by else []
        talk = Talk(name, prompt, messages, steps, prompt.model)
        if prompt.answer is not None:
            talk.messages.append({"role": "assistant", "content": prompt.answer})
        return talk

    def next(self, talk: Talk) -> Ask | None:
        """Return what to ask for next, None for a talk that is complete."""
        if talk.messages[-1]["role"] == "user":
            key = f"{talk.name}-answer-{talk.turns + 1}"
            return Ask(self.asker.chat(key, talk.messages, self.sampling), Turn(talk, "assistant"))
        if talk.turns >= self.turns:
            return None
        key = f"{talk.name}-user-{talk.turns + 1}"
        return Ask(self.asker.chat(key, _swapped(talk.messages), self.user_sampling), Turn(talk, "user"))

    def take(self, ask: Ask, reply: Reply) -> Drop | None:
        """Add a reply to its talk; return why it cannot be used, after which the talk ends with its last answer."""
        turn: Turn = ask.context
        talk, text = turn.talk, reply.text.strip()
        found = problem(reply)
        if found is None and turn.role == "assistant" and self.refuse_sorry and _is_sorry(text):
            found = "sorry", f"an answer with 'sorry' and fewer than {SORRY_WORDS} words"
        talk.steps.append((turn.role if turn.role == "user" else "answer", ask.request))
        if found is None:
            talk.messages.append({"role": turn.role, "content": text})
            talk.model = reply.model or talk.model
            return None
        prompt = talk.messages[-1]["content"]
        if talk.messages[-1]["role"] == "user":
            talk.messages.pop()
        return Drop(*found, reply.text, ask.request.key, prompt, {"talk": talk.name})


def _swapped(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return a talk as the model in the user's place sees it: the assistant's messages come to it."""
    roles = {"user": "assistant", "assistant": "user"}
    spoken = [{"role": roles[each["role"]], "content": each["content"]} for each in messages if each["role"] in roles]
    system = str(wording()["user"]["system"]).strip()
    opening = {"role": "user", "content": "Begin the talk."}  # templates want a user's message first
    return [{"role": "system", "content": system}, opening, *spoken]


def _is_sorry(text: str) -> bool:
    return "sorry" in text.lower() and len(words(text)) < SORRY_WORDS


def to_record(talk: Talk, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a complete talk as a record in OpenAI's form, with where it comes from under `generation`."""
    prompt = talk.prompt
    origin: dict[str, Any] = {
        **facts,
        "source": prompt.source,
        "parents": list(prompt.parents),
        "requests": [
            {
                "step": step,
                "key": request.key,
                "prompt_hash": request.hash,
                **{name: request.body[name] for name in ("seed", "temperature", "top_p") if name in request.body},
            }
            for step, request in talk.steps
        ],
    }
    if prompt.language:
        origin["language"] = prompt.language
    if prompt.depth:
        origin["depth"] = prompt.depth
    return {"id": talk.name, "messages": talk.messages, "model": talk.model or facts["model"], "generation": origin}
