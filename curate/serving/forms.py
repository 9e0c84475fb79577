"""What an answer must be: JSON that follows a schema, or a call of a tool as the model's template writes it.

How a template writes an answer is not guessed from its text: an answer is rendered as for training, and what stands
around its arguments is what the grammar has there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curate.errors import CurateError, MissingExtra
from curate.inference.answers import call_id, read_answer
from curate.inference.grammar import Grammar, GrammarCompiler, GrammarError, Piece
from curate.rendering.renderer import Renderer
from curate.schemas.conversation import Message, with_tools
from curate.schemas.reading.tool_calls import are_same
from curate.serving.errors import ApiError, too_deep, unsupported

_KEY, _VALUE = '"curate_probe"', '"1"'
_PROBE = f"{{{_KEY}: {_VALUE}}}"  # an object that no template writes by itself
_NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}  # a function without parameters


@dataclass(frozen=True)
class Form:
    """What the answer to a request must be: an object of `schema`, or else a call of one of `functions`."""

    param: str  # of the request
    schema: Mapping[str, Any] | None = None
    functions: tuple[Mapping[str, Any], ...] = ()

    def pieces(self, renderer: Renderer, compiler: GrammarCompiler, messages: Sequence[Message]) -> list[list[Piece]]:
        """Return the answers that the form allows, with schemas in place of values.

        Raises ApiError where the template writes none that can be read again.
        """
        try:
            if self.schema is not None:
                return [_object(renderer, compiler, messages, self.schema)]
            return [_call(renderer, compiler, messages, function) for function in self.functions]
        except CurateError as error:
            raise unsupported(self.param, f"the model's template writes no such answer ({error})") from None

    def compile(self, compiler: GrammarCompiler, pieces: Sequence[Sequence[Piece]]) -> Grammar:
        """Return the grammar; raises ApiError for a schema that cannot be followed."""
        try:
            return compiler.compile(pieces)
        except GrammarError as error:
            raise self.refuse(error) from None
        except RecursionError:
            raise too_deep(self.param) from None

    def refuse(self, error: GrammarError) -> ApiError:
        """Return the error for a schema that cannot be followed, or not to the end."""
        where = "" if self.schema is not None else "the parameters of a tool: "
        return ApiError(f"{self.param}: {where}{error}", param=self.param)


def compiler_for(renderer: Renderer, stop_ids: Sequence[int], vocabulary: int, param: str) -> GrammarCompiler:
    """Return what compiles grammars for a model; raises ApiError without the package that does it."""
    try:
        return GrammarCompiler(renderer.tokenizer, stop_ids, vocabulary)
    except MissingExtra:
        raise unsupported(param, "the server lacks the extra [structured]") from None


# ---- how the template writes it


def _answer(renderer: Renderer, messages: Sequence[Message], answer: Message) -> list[int]:
    """Return the ids of an answer after the prompt that asks for it, without the stop token."""
    prompt = renderer.generation_prompt(messages).tolist()
    whole = renderer.render([with_tools([*messages, answer], messages[0].tools)])[0].ids.tolist()
    ids = whole[len(prompt) :]
    if whole[: len(prompt)] != prompt:
        raise GrammarError("the prompt changes with the answer")
    end = next((at for at, token in enumerate(ids) if token in renderer.stop_ids), len(ids))
    return list(ids[:end])


def _lead(renderer: Renderer, compiler: GrammarCompiler, messages: Sequence[Message]) -> str:
    """Return what comes before an answer's text: blanks, or marks of reasoning without any."""
    first = compiler.pieces(_answer(renderer, messages, Message("assistant", _PROBE)))[:1]
    before, probe, _ = first[0].partition(_PROBE) if first and isinstance(first[0], str) else ("", "", "")
    return before if probe else ""


def _object(
    renderer: Renderer, compiler: GrammarCompiler, messages: Sequence[Message], schema: Mapping[str, Any]
) -> list[Piece]:
    """Return an object of a schema, after the blanks that come before an answer; marks of reasoning are left out."""
    lead = _lead(renderer, compiler, messages)
    return [schema] if lead.strip() or not lead else [lead, schema]


def _call(
    renderer: Renderer, compiler: GrammarCompiler, messages: Sequence[Message], function: Mapping[str, Any]
) -> list[Piece]:
    """Return a call of a function with the schema of its parameters as its arguments."""
    call = {"name": function["name"], "arguments": _PROBE}
    calls = json.dumps([{"id": call_id(messages, 0), "type": "function", "function": call}], ensure_ascii=False)
    ids = _answer(renderer, messages, Message("assistant", "", tool_calls=calls))
    marks = lead if (lead := _lead(renderer, compiler, messages)).strip() else ""
    read = read_answer(renderer.tokenizer.decode(ids).removeprefix(marks), messages)
    if read.tool_calls is None or read.content or not are_same(read.tool_calls, calls):
        raise GrammarError("a call that it writes is not read as one")
    first, *others = compiler.pieces(ids)
    start = first.removeprefix(marks) if isinstance(first, str) else first
    parameters = {"type": "object", **(function.get("parameters") or _NOTHING)}
    pieces = [part for piece in (start, *others) for part in _split(piece, parameters)]
    if not any(isinstance(piece, Mapping) for piece in pieces):
        raise GrammarError("it writes arguments in another form than JSON")
    return pieces


def _split(piece: str | int, schema: Mapping[str, Any]) -> list[Piece]:
    """Return a piece with the schema in place of the arguments in it, if it has them."""
    at = piece.find(_KEY) if isinstance(piece, str) else -1
    if isinstance(piece, int) or at < 0:
        return [piece] if piece != "" else []
    start = piece.rindex("{", 0, at)
    _, end = json.JSONDecoder().raw_decode(piece, start)
    parts: list[Piece] = [piece[:start], schema, piece[end:]]
    return [part for part in parts if part != ""]
