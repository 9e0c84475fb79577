"""Answers that follow a JSON schema, and forced calls, of models with random weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

llguidance = pytest.importorskip("llguidance")

from curate.inference.batch import Batch, Generation, ScoredToken
from curate.inference.grammar import Grammar, GrammarCompiler, GrammarError
from curate.inference.sampling import Sampling
from curate.model import serving as formats
from curate.model.artifact import renderer_for
from curate.model.serving import Serving
from curate.schemas.conversation import Message, with_tools
from curate.serving.errors import ApiError
from curate.serving.forms import Form, compiler_for
from curate.serving.models import Limits
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer
from tests.support import served
from tests.support.tiny_tokenizers import folder, sentencepiece_model, tiktoken_file

TEMPLATES = Path(__file__).parents[1] / "support/chat_templates"
ASK: Any = [{"role": "user", "content": "x"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["안녕 😀", 'a "quote"\n']},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 2},
        "x</s><|eot_id|>": {"type": "boolean"},
    },
    "required": ["kind", "sizes", "x</s><|eot_id|>"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
NOTHING: Any = {"type": "function", "function": {"name": "nothing"}}
TOOLS: Any = [{"type": "function", "function": {"name": "size", "parameters": SCHEMA}}, NOTHING]
NAMED: Any = {"type": "function", "function": {"name": "size"}}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    root = tmp_path_factory.mktemp("tokenizers")
    files: dict[str, dict[str, Any]] = {
        "llama3": {"tokenizer_model": tiktoken_file()},
        "llama2": {"tokenizer_model": sentencepiece_model()},
    }
    return {name: load_tokenizer(str(folder(root / name, **each))) for name, each in files.items()}


@pytest.fixture(scope="module")
def url(tokenizers: dict[str, Tokenizer]) -> Iterator[str]:
    opened = {
        "tools": served.untrained(tokenizers["llama3"], "llama3.1"),
        "plain": served.untrained(tokenizers["llama2"], "vicuna"),
    }
    with served.serving(opened, limits=Limits(rows=4, waiting=99, new_tokens=900)) as (url, _, _):
        yield url


@pytest.fixture(scope="module")
def create(url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client.chat.completions.create


def follows(text: str | None, schema: Mapping[str, Any] = SCHEMA) -> bool:
    jsonschema.validate(json.loads(text or ""), schema)
    return True


# ---- formats


@pytest.mark.parametrize("model", ["tools", "plain"])
def test_an_answer_follows_its_schema(create: Any, model: str) -> None:
    answer = create(model=model, messages=ASK, response_format=FORMAT, temperature=2, n=2, seed=1)
    for choice in answer.choices:
        assert choice.finish_reason == "stop" and follows(choice.message.content)
    assert answer.usage.completion_tokens > 40
    chunks = create(model=model, messages=ASK, response_format=FORMAT, temperature=2, seed=1, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == answer.choices[0].message.content, "alone and among others"


@pytest.mark.parametrize("model", ["tools", "plain"])
def test_any_object_is_json_as_far_as_it_goes(create: Any, model: str) -> None:
    """A random model ends few strings by itself; blanks between the parts have an end."""
    answer = create(
        model=model, messages=ASK, response_format={"type": "json_object"}, temperature=1.5, max_tokens=60, n=4, seed=2
    )
    for choice in answer.choices:
        assert (choice.message.content or "").startswith("{")
        assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)


def test_blanks_between_the_parts_have_an_end_that_a_client_cannot_lift(create: Any) -> None:
    schema = {"type": "object", "properties": {}, "additionalProperties": False, "x-guidance": {"lenient": True}}
    named = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    bias = {str(ord("\n")): 100, str(ord(" ")): 100}  # the bytes of the tiny tokenizer
    answer = create(model="tools", messages=ASK, response_format=named, temperature=0, logit_bias=bias)
    assert (answer.choices[0].finish_reason, json.loads(answer.choices[0].message.content)) == ("stop", {})


def test_answers_asked_for_together_are_those_of_each_alone(create: Any) -> None:
    def ask(seed: int) -> str:
        more = {"response_format": FORMAT} if seed % 3 else {"tools": TOOLS, "tool_choice": "required"}
        answer = create(model="tools", messages=ASK, temperature=1, seed=seed, max_tokens=40, **more)
        return str(answer.choices[0].message.model_dump(exclude_none=True))

    alone = [ask(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == alone


# ---- calls


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["any", "named"])
def test_a_call_is_forced(create: Any, choice: Any) -> None:
    answer = create(
        model="tools", messages=ASK, tools=TOOLS, tool_choice=choice, temperature=2, n=4, seed=3,
        parallel_tool_calls=False,
    )  # fmt: skip
    names = set()
    for each in answer.choices:
        [call] = each.message.tool_calls
        assert (each.finish_reason, each.message.content) == ("tool_calls", None)
        assert follows(call.function.arguments) if call.function.name == "size" else call.function.arguments == "{}"
        names.add(call.function.name)
    assert names == ({"size"} if choice is NAMED else {"size", "nothing"})


def test_a_forced_call_is_streamed_and_a_cut_one_is_text(create: Any) -> None:
    chunks = list(create(model="tools", messages=ASK, tools=TOOLS, tool_choice=NAMED, temperature=2, stream=True))
    [call] = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert follows(call.function.arguments) and chunks[-1].choices[0].finish_reason == "tool_calls"
    cut = create(model="tools", messages=ASK, tools=TOOLS, tool_choice=NAMED, max_tokens=20).choices[0]
    assert (cut.finish_reason, cut.message.tool_calls) == ("length", None)
    assert cut.message.content.startswith('{"name": "size"')


# ---- what is refused


def named(schema: object) -> Any:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def with_parameters(parameters: object) -> Any:
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    return {"tools": [tool], "tool_choice": "required"}


REFUSED: dict[str, tuple[Any, str, str]] = {
    "a schema that nothing follows": (named({"allOf": [{"type": "string"}, {"enum": [1]}]}), "response_format", "Uns"),
    "a keyword that is not known": (named({"not": {}}), "response_format", "Unimplemented keys"),
    "a schema elsewhere": (named({"$ref": "http://127.0.0.1:9/x"}), "response_format", "not present in a registry"),
    "a pattern that is none": (named({"type": "string", "pattern": "(["}), "response_format", "regex parse error"),
    "a large schema": (named({"properties": {f"p{n}": {} for n in range(20_000)}}), "response_format", "3,000 objects"),
    "a deep schema": (named(json.loads('{"items":' * 200 + "{}" + "}" * 200)), "response_format", "recursion"),
    "a schema as text": (named("{}"), "response_format.json_schema.schema", "must be an object"),
    "no schema": ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "object"),
    "another format": ({"response_format": {"type": "xml"}}, "response_format", "json_schema"),
    "a format as text": ({"response_format": "json"}, "response_format", "Expected `object"),
    "a format and tools": ({**named({}), "tools": TOOLS}, "response_format", "tool_choice"),
    "a call without tools": ({"tool_choice": "required"}, "tool_choice", "needs tools"),
    "a call of no tools": ({"tool_choice": NAMED, "tools": []}, "tool_choice", "needs tools"),
    "a call of an unknown tool": (
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "'f'",
    ),
    "a choice of another kind": ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice", "give"),
    "a choice that is none": ({"tools": TOOLS, "tool_choice": "maybe"}, "tool_choice", "give"),
    "parameters that are a list": (with_parameters([]), "tools[0].function.parameters", "object"),
    "parameters of another type": (with_parameters({"type": "string"}), "tools[0].function.parameters", "object"),
    "parameters that nothing follows": (
        with_parameters({"properties": {"a": False}, "required": ["a"]}), "tool_choice", "Unsatisfiable",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("more", "param", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_followed_is_refused_by_name(create: Any, more: Any, param: str, why: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(model="tools", messages=ASK, **more)
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")
    assert why in caught.value.message and "\n" not in caught.value.message


def test_a_template_without_tools_has_no_calls(create: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="shows no tools"):
        create(model="plain", messages=ASK, tools=TOOLS, tool_choice="required")


def test_without_the_package_both_are_refused_by_name(
    tokenizers: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    chat = served.untrained(tokenizers["llama3"], "llama3.1")
    for param in ("response_format", "tool_choice"):
        with pytest.raises(ApiError, match=r"the server lacks the extra \[structured\]") as caught:
            compiler_for(chat.renderer, chat.serving.stop_ids, 0, param)
        assert (caught.value.code, caught.value.param) == ("unsupported_parameter", param)


# ---- one grammar among others


def test_a_grammar_that_fails_ends_its_own_answer_alone(tokenizers: dict[str, Tokenizer]) -> None:
    chat = served.untrained(tokenizers["llama3"], "llama3.1")
    compiler = GrammarCompiler(chat.serving.tokenizer, chat.serving.stop_ids, 0)
    good = compiler.compile([[SCHEMA]])
    limits = llguidance.LLParserLimits(step_max_items=4)
    matcher = llguidance.LLMatcher(compiler._tokenizer, "start: x\nx: %json {}\n", log_level=0, limits=limits)
    batch, greedy = Batch(chat.model), Sampling()
    rows = [batch.join(Generation((1, 2, 3), greedy, grammar=grammar))[0] for grammar in (good, good, None)]
    with pytest.raises(GrammarError, match="Too many items"):
        batch.join(Generation((1, 2), greedy, grammar=Grammar(matcher)))
    constraint = rows[1]._constraint
    assert constraint is not None
    with pytest.raises(GrammarError, match="doesn't satisfy"):
        constraint.take(0)
    outcomes = dict(batch.step())
    assert [type(outcomes[row]) for row in rows] == [ScoredToken, GrammarError, ScoredToken]


# ---- how templates write calls

MARKED = """{%- if tools %}<|start_header_id|>system<|end_header_id|>{{ tools | tojson }}<|eot_id|>{%- endif %}
{%- for message in messages %}{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n' }}
{%- if message.role == 'assistant' and loop.last %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{{- message.content }}
{%- for call in message.tool_calls or [] %}{%- set function = call.function %}
{{- '<tool_call>\n{"name": "' + function.name + '", "arguments": ' }}{{- function.arguments | tojson }}
{{- '}\n</tool_call>' }}{%- endfor %}{{- '<|eot_id|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n' }}{%- endif %}
"""  # like Qwen3's: calls in marks, and empty reasoning before the last answer


def pieces(serving: Serving, form: Form, tools: Any = None) -> list[list[Any]]:
    renderer = renderer_for(serving)
    compiler = compiler_for(renderer, serving.stop_ids, 0, "x")
    messages = with_tools([Message("user", "Hi")], json.dumps(tools) if tools else None)
    made = form.pieces(renderer, compiler, messages)
    form.compile(compiler, made)
    return made


def test_calls_are_written_as_the_template_writes_them(tokenizers: dict[str, Tokenizer]) -> None:
    function = {"name": "f", "parameters": {"properties": {"a": {}}}}
    schema, tools = {"type": "object", **function["parameters"]}, [{"type": "function", "function": function}]  # type: ignore[dict-item]
    call, answer = Form("tool_choice", functions=(function,)), Form("response_format", schema=schema)
    stop = (tokenizers["llama3"].control_ids["<|eot_id|>"],)
    marked = formats.from_chat_template(tokenizers["llama3"], MARKED, stop)
    assert pieces(marked, call, tools) == [['<tool_call>\n{"name": "f", "arguments": ', schema, "}\n</tool_call>"]]
    assert pieces(marked, answer) == [[schema]]
    mistral = (TEMPLATES / "mistral_v3.jinja").read_text()
    listed = formats.from_chat_template(tokenizers["llama2"], mistral, (tokenizers["llama2"].info.eos_id,))
    [[before, inner, after]] = pieces(listed, call, tools)
    assert before.endswith('[TOOL_CALLS] [{"name": "f", "arguments": ') and inner == schema
    assert after == ', "id": "call00000"}]'
    assert pieces(listed, answer) == [[" ", schema]]
