"""The models that are served: their names, prompts and answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from curate.errors import CurateError, InputError
from curate.inference.answers import AnswerReader
from curate.inference.batch import Generation
from curate.inference.chat import Chat, chat
from curate.inference.grammar import Grammar, GrammarCompiler
from curate.inference.sampling import Sampling, TextDecoder
from curate.model import artifact as artifacts
from curate.model.files import OnMessage
from curate.model.serving import ADAPTER, MODEL, answer_lead
from curate.schemas.conversation import Message, with_tools
from curate.serving.errors import ApiError, too_deep
from curate.serving.forms import Form, compiler_for
from curate.serving.worker import Deliver, Job, QueueFull, Worker

CONTEXT = 8  # ids of a raw prompt that its continuation is decoded with, for the space at its start


@dataclass(frozen=True)
class Limits:
    """What a server allows."""

    rows: int = 8  # answers of one model that are generated together
    waiting: int = 256  # more that may wait, for each model
    new_tokens: int = 4096  # of one answer


@dataclass(frozen=True)
class Prompt:
    """The ids of a prompt, and of the end of it that the answer's text continues (none for a chat's answer)."""

    ids: tuple[int, ...]
    context: tuple[int, ...] = ()


class ServedModel:
    """A model with a name, and the thread that generates its answers."""

    def __init__(self, name: str, opened: Chat, limits: Limits) -> None:
        self.name = name
        self.opened = opened
        self.limits = limits
        self.created = int(time.time())
        self.worker = Worker(opened.model, rows=limits.rows, waiting=limits.waiting)
        self._grammars: GrammarCompiler | None = None  # once one is asked for
        self._lock = threading.Lock()  # of the renderer and the tokenizer, which are not safe for several threads

    # ---- prompts

    def chat_prompt(self, messages: Sequence[Message], tools: str | None) -> Prompt:
        """Return the prompt for the next answer, with the ids of training; raises ApiError if it cannot be rendered."""
        renderer = self.opened.renderer
        if tools and not renderer.shows_tools:
            raise ApiError(f"the template of {self.name} shows no tools", param="tools", code="unsupported_parameter")
        try:
            with self._lock:
                ids = renderer.generation_prompt(with_tools(messages, tools)).tolist()
        except CurateError as error:
            raise ApiError(str(error), param="messages") from None
        except RecursionError:
            raise too_deep("messages or tools") from None
        return self._checked(Prompt(tuple(ids)), "messages")

    def raw_prompt(self, prompt: str | Sequence[int]) -> Prompt:
        """Return a text as ids, with the control strings in it as tokens and BOS before it, as other servers do.

        A list of ids is used as it is. Raises ApiError for an empty prompt or an id that the vocabulary lacks.
        """
        if isinstance(prompt, str):
            ids = self._raw_ids(prompt)
        else:
            ids = list(prompt)
            if not all(0 <= token < self._vocabulary for token in ids):
                raise ApiError(f"prompt: an id is not below {self._vocabulary:,}", param="prompt")
        return self._checked(Prompt(tuple(ids), tuple(ids[-CONTEXT:])), "prompt")

    def _raw_ids(self, text: str) -> list[int]:
        bos = self.opened.serving.tokenizer.info.bos_token
        with self._lock:
            encoded = self._encoder.encode(text, add_special_tokens=not (bos and text.startswith(bos)))
        ids: list[int] = encoded.ids
        return ids

    def grammar(self, form: Form, messages: Sequence[Message], tools: str | None) -> Grammar:
        """Return the grammar of answers of a form to messages; raises ApiError where there can be none."""
        with self._lock:
            compiler = self._compiler(form.param)
            pieces = form.pieces(self.opened.renderer, compiler, with_tools(messages, tools))
        return form.compile(compiler, pieces)

    def _compiler(self, param: str) -> GrammarCompiler:
        if self._grammars is None:
            stops = self.opened.serving.stop_ids
            self._grammars = compiler_for(self.opened.renderer, stops, self._vocabulary, param)
        return self._grammars

    @cached_property
    def _encoder(self) -> Any:
        from tokenizers import Tokenizer as HuggingFaceTokenizer

        return HuggingFaceTokenizer.from_str(self.opened.serving.tokenizer.tokenizer_json())

    @cached_property
    def _vocabulary(self) -> int:
        return len(self.opened.model.get_input_embeddings().weight)

    def _checked(self, prompt: Prompt, param: str) -> Prompt:
        if not prompt.ids:
            raise ApiError("the prompt is empty", param=param)
        window = self.opened.window
        if window and len(prompt.ids) >= window:
            raise _too_long(window, f"the {param} have {len(prompt.ids):,}", param)
        return prompt

    def room(self, prompt: Prompt, limit: int | None, param: str) -> int:
        """Return the most tokens of an answer; raises ApiError for a limit that leaves the window or the server's."""
        most, window = self.limits.new_tokens, self.opened.window
        if limit is not None and limit > most:
            raise ApiError(f"{param} is {limit:,}; this server allows {most:,} at most", param=param)
        left = window - len(prompt.ids) if window else most
        if limit is not None and limit > left:
            asked = f"you asked for {limit:,} after a prompt of {len(prompt.ids):,}"
            raise _too_long(window, asked, param)
        return limit or min(left, most)

    # ---- answers

    def job(
        self,
        prompt: Prompt,
        sampling: Sampling,
        deliver: Deliver,
        *,
        room: int,
        stops: Sequence[str] = (),
        scored: int | None = None,
        grammar: Grammar | None = None,
    ) -> Job:
        """Return an answer to generate; raises ApiError for a bias on an id that the vocabulary lacks."""
        if any(token >= self._vocabulary for token, _ in sampling.bias):
            raise ApiError(f"logit_bias: an id is not below {self._vocabulary:,}", param="logit_bias")
        serving = self.opened.serving
        lead = "" if prompt.context else answer_lead(serving.template)
        decoder = TextDecoder(serving.tokenizer, lead, prompt.context)
        reader = AnswerReader(decoder, serving.stop_ids, stops, room=room)
        generation = Generation(prompt.ids, replace(sampling, max_new_tokens=room), scored, grammar)
        return Job(generation, reader, deliver)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue answers; raises ApiError if too many wait."""
        try:
            self.worker.submit(jobs)
        except QueueFull:
            raise ApiError(
                f"too many requests wait for {self.name}; try again later",
                status=429,
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                headers={"Retry-After": "1"},
            ) from None

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of a token's text."""
        table = self.opened.serving.tokenizer.token_bytes
        if table is not None and token < len(table) and table[token]:
            return table[token]
        return self.opened.serving.tokenizer.decode([token]).encode()


def _too_long(window: int, what: str, param: str) -> ApiError:
    message = f"this model's maximum context length is {window:,} tokens, but {what}; shorten the prompt or the answer"
    return ApiError(message, param=param, code="context_length_exceeded")


# ---- load


def read_names(models: Sequence[str]) -> dict[str, str]:
    """Return the models by the names that they are served under, from arguments `MODEL` or `NAME=MODEL`.

    A model's default name is its Hub name or that of its folder or file. Raises InputError for a name twice.
    """
    named: dict[str, str] = {}
    for argument in models:
        name, equals, model = argument.partition("=")
        if not equals or Path(argument).exists():
            name, model = default_name(argument), argument
        if not name or not model:
            raise InputError(f"{argument!r} is neither MODEL nor NAME=MODEL")
        if name in named:
            raise InputError(f"two models would be named {name!r}; name one of them: OTHER={model}")
        named[name] = model
    return named


def default_name(model: str) -> str:
    """Return the name to serve a model under: a run's for its result, a file's without its ending, a Hub name."""
    path = Path(model).expanduser()
    if not path.exists():
        return model
    path = path.resolve()
    if path.name in (MODEL, ADAPTER) and (path.parent / "config.toml").exists():  # of a run
        path = path.parent
    return path.stem if path.is_file() else path.name


def load(
    named: Mapping[str, str],
    limits: Limits,
    *,
    template: str | None = None,
    base: str | None = None,
    say: OnMessage,
    **loading: Any,
) -> dict[str, ServedModel]:
    """Load models by name; `loading` are settings of `curate.chat`, `base` and `template` are for a single model.

    Raises CurateError with what to type; a wrong path is found before the first model is loaded.
    """
    for each in named.values():
        artifacts.serving_of(artifacts.find_artifact(each, base=base), template)
    open_model: Callable[..., Chat] = chat
    return {
        name: ServedModel(name, open_model(model, base=base, template=template, say=say, **loading), limits)
        for name, model in named.items()
    }
