"""The bodies of requests: what each parameter may be, and which of OpenAI's are refused by name.

A parameter that would change the answer and is not implemented is an error unless it has its neutral value; those that
only label a request are ignored.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from curate.inference.sampling import Sampling
from curate.serving.errors import ApiError, unsupported
from curate.serving.forms import Form
from curate.serving.messages import read_function

MAX_CHOICES = 64  # answers of one request
MAX_STOPS, MAX_STOP_LENGTH = 16, 1000  # stop strings of one request, characters of each
MAX_TOP = 20  # log-probabilities of one token
COMPLETION_TOKENS = 16  # of a completion by default, as OpenAI's
_SMALLEST = math.ulp(0.0)  # of top_p: the most likely token alone, which OpenAI's API calls 0
_LABELS = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
}
_NEUTRAL: dict[str, tuple[object, ...]] = {  # what they may be, as it changes nothing
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "functions": ([],),
    "function_call": ("none", "auto"),
}
_ID = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)  # as JSON writes it, so that no two keys are one id
_PATH = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`\Z")

Count = Annotated[int, Meta(ge=1, le=2**31)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Stops = str | list[str] | None
_T = TypeVar("_T", bound="Order")


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """What a stream has besides the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # accepted, and never done


@dataclass(frozen=True, kw_only=True)
class Order:
    """What both kinds of requests have."""

    model: str
    max_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, Bias] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stop: Stops = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the counts of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def bias(self) -> tuple[tuple[int, float], ...]:
        """The ids of `logit_bias` with their values; raises ApiError for a key that is no id."""
        wrong = [key for key in self.logit_bias or {} if not _ID.fullmatch(key)]
        if wrong:
            raise ApiError(f"logit_bias: {wrong[0][:100]!r} is not the id of a token", param="logit_bias")
        return tuple((int(key), value) for key, value in (self.logit_bias or {}).items())

    def samplings(self, choices: int) -> list[Sampling]:
        """Return how the tokens of each choice are chosen; the first has the seed itself."""
        seed = secrets.randbits(63) if self.seed is None else self.seed % 2**63
        return [
            Sampling(
                temperature=1.0 if self.temperature is None else self.temperature,
                top_p=1.0 if self.top_p is None else max(self.top_p, _SMALLEST),
                top_k=self.top_k or 0,
                repetition=self.repetition_penalty or 1.0,
                frequency=self.frequency_penalty or 0.0,
                presence=self.presence_penalty or 0.0,
                bias=self.bias,
                seed=(seed + index) % 2**63,
            )
            for index in range(choices)
        ]


@dataclass(frozen=True, kw_only=True)
class ChatOrder(Order):
    """The body of a request for the next answer of a conversation."""

    messages: list[dict[str, Any]]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None

    @property
    def limit(self) -> int | None:
        """The most tokens of an answer, None where the request names none."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def scored(self) -> int | None:
        """How many likely tokens are scored; None where the answer's tokens are not."""
        return (self.top_logprobs or 0) if self.logprobs else None


@dataclass(frozen=True, kw_only=True)
class CompletionOrder(Order):
    """The body of a request for the continuation of a raw prompt: texts, or lists of ids."""

    prompt: str | list[Any]
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP)] | None = None

    @property
    def limit(self) -> int:
        """The most tokens of an answer."""
        return self.max_tokens or COMPLETION_TOKENS

    @property
    def scored(self) -> int | None:
        """How many likely tokens are scored; None where the answer's tokens are not."""
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts; raises ApiError for what is none."""
        values: list[Any] = self.prompt if isinstance(self.prompt, list) else [self.prompt]
        if values and all(type(value) is int for value in values):
            return [values]
        read = [value for value in values if isinstance(value, str) or _is_ids(value)]
        if not read or len(read) < len(values):
            raise ApiError("prompt must be a text, a list of texts, a list of ids, or a list of these", param="prompt")
        return read


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)


def read_body(data: bytes) -> dict[str, Any]:
    """Return the object in a body; raises ApiError for anything else."""
    try:
        value = msgspec.json.decode(data)
    except RecursionError:
        raise ApiError("the body is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise ApiError(f"the body is not JSON in UTF-8: {error}") from None
    if not isinstance(value, dict):
        raise ApiError("the body is not a JSON object")
    return value


def read_order(kind: type[_T], body: dict[str, Any]) -> _T:
    """Return the parameters of a request; raises ApiError for one that is unknown, unsupported or wrong."""
    known = {field.name for field in fields(kind)}
    if body.get("model") in (None, ""):
        raise ApiError("you must provide a model parameter", param="model")
    for name, value in body.items():
        if name not in known and name not in _LABELS:
            _check_unused(name, value)
    order = _convert(kind, {name: value for name, value in body.items() if name in known})
    _check_order(order)
    return order


def _convert(kind: type[_T], values: dict[str, Any]) -> _T:
    try:
        return msgspec.convert(values, kind)
    except RecursionError:
        raise ApiError("the body is nested too deeply") from None
    except msgspec.ValidationError as error:
        text = str(error)
        path = _PATH.search(text)
        param = path[1] if path else _missing(text)
        raise ApiError(f"{param or 'the body'}: {_PATH.sub('', text)}", param=param or None) from None


def _missing(text: str) -> str:
    """Return the name of the parameter that msgspec misses."""
    found = re.search(r"missing required field `(\w+)`", text)
    return found[1] if found else ""


def _check_unused(name: str, value: object) -> None:
    """Raise ApiError for a parameter that this server does not have, unless it changes nothing."""
    if value is None or value in _NEUTRAL.get(name, ()):
        return
    if name in _NEUTRAL:
        raise unsupported(name, "leave it out")
    raise ApiError(f"unrecognized request argument supplied: {name[:100]}", param=name[:100], code="unknown_parameter")


def _check_order(order: Order) -> None:
    if len(order.stops) > MAX_STOPS or not all(0 < len(stop) <= MAX_STOP_LENGTH for stop in order.stops):
        raise ApiError(f"stop: at most {MAX_STOPS} texts, each of 1 to {MAX_STOP_LENGTH:,} characters", param="stop")
    if order.stream_options is not None and not order.stream:
        raise ApiError("stream_options needs stream = true", param="stream_options")
    if isinstance(order, ChatOrder) and order.top_logprobs and not order.logprobs:
        raise ApiError("top_logprobs needs logprobs = true", param="top_logprobs")


# ---- what the answer must be


def shows_tools(order: ChatOrder) -> bool:
    """Return whether the prompt lists the tools."""
    return bool(order.tools) and order.tool_choice != "none"


def read_form(order: ChatOrder) -> Form | None:
    """Return what the answer must be, None if anything; raises ApiError for what is no format or no choice of tools."""
    functions, schema = _forced(order), _schema(order.response_format)
    if order.parallel_tool_calls is False and not functions:
        raise unsupported("parallel_tool_calls", "leave it out, or force a call with tool_choice")
    if schema is not None and shows_tools(order):
        raise unsupported(
            "response_format", 'an answer cannot be chosen among this and tools; set tool_choice = "none"'
        )
    if schema is not None:
        return Form("response_format", schema=schema)
    return Form("tool_choice", functions=functions) if functions else None


def _forced(order: ChatOrder) -> tuple[Mapping[str, Any], ...]:
    """Return the functions of which one must be called; none where the model chooses."""
    choice = order.tool_choice
    if choice in (None, "none", "auto"):
        return ()
    functions = [_callable(tool, index) for index, tool in enumerate(order.tools or ())]
    if not functions:
        raise ApiError("tool_choice needs tools", param="tool_choice")
    if choice == "required":
        return tuple(functions)
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise unsupported("tool_choice", 'give "none", "auto", "required", or a function by its name')
    named = tuple(each for each in functions if each["name"] == name)
    if not named:
        raise ApiError(f"tool_choice: no tool is named {name[:100]!r}", param="tool_choice")
    return named[:1]


def _callable(tool: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    """Return the function of a tool that can be forced; raises ApiError."""
    function = read_function(tool, index)
    if (function.get("parameters") or {}).get("type", "object") != "object":
        place = f"tools[{index}].function.parameters"
        raise ApiError(f"{place} must be of the type object, for a call to be forced", param=place)
    return function


def _schema(format_: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the schema that an answer must follow, None for any text."""
    kind = None if format_ is None else format_.get("type")
    if format_ is None or format_ == {"type": "text"}:
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        raise unsupported("response_format", "its type must be text, json_object or json_schema")
    named = format_.get("json_schema")
    schema = named.get("schema") if isinstance(named, dict) else None
    if not isinstance(schema, dict):
        name = "response_format.json_schema.schema"
        raise ApiError(f"{name} must be an object", param=name)
    return schema
