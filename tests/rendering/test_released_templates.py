"""Chat templates of model families are rendered as in transformers, or refused with a reason."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from curate.dataset.arrow import Row
from curate.errors import RecipeError
from curate.rendering import proof
from curate.rendering.chat_template.renderer import JinjaRenderer
from curate.rendering.choices import Choices
from curate.rendering.factory import make_renderer
from curate.rendering.preparation import ExamplePreparer
from curate.schemas.conversation import Message, with_tools
from scripts import template_table
from tests.support import ROOT
from tests.support.model_families import (
    CALL,
    CONVERSATIONS,
    FAMILIES,
    FUNCTION_CALL,
    RESULT,
    TOOLS,
    TURNS,
    Families,
    answer,
    checker,
    prepare,
    template_of,
    user,
)

Result = tuple[int, str | None]
WITH_CALLS = ("calls", "tools", "tools turns", "reasoned calls")
SEVERAL = ("turns", "system", "reasoning turns", "some reasoning", "white space")
NO_CALLS: dict[str, Result] = dict.fromkeys(WITH_CALLS, (0, "template_rewrites"))  # calls are not written
REFUSES_CALLS: dict[str, Result] = dict.fromkeys(WITH_CALLS, (0, "template_refuses"))
NO_THOUGHT_OF_CALLS: dict[str, Result] = {"reasoned calls": (1, "template_rewrites")}  # nor is a call's reasoning
HIDES_TOOLS: dict[str, Result] = {"tools": (1, "hidden_tools"), "tools turns": (3, "hidden_tools")}
ONE_EACH: dict[str, Result] = dict.fromkeys(SEVERAL, (2, None))  # an example for each answer
CALLS_EACH: dict[str, Result] = {**dict.fromkeys(("calls", "tools"), (2, None)), "tools turns": (4, None)}
TOOLS_MOVE: dict[str, Result] = {"tools turns": (4, None)}  # definitions are in the last prompt only
# How many examples a conversation gives, and the rule of what is left out, where it is not one example.
RESULTS: dict[str, dict[str, Result]] = {
    "llama2": REFUSES_CALLS,
    "mistral_v1": REFUSES_CALLS,
    "mistral_v3": {"system": (2, None), **TOOLS_MOVE, "reasoned calls": (0, "template_refuses")},
    "mistral_v7": TOOLS_MOVE,
    "phi3_5": NO_CALLS,
    "phi4": REFUSES_CALLS,
    "gemma3": REFUSES_CALLS,
    "deepseek_r1_distill": {**ONE_EACH, **NO_CALLS},
    "llama3": NO_CALLS,
    "llama3_training": NO_CALLS,
    "llama3_1": NO_THOUGHT_OF_CALLS,
    "llama3_2": NO_THOUGHT_OF_CALLS,
    "qwen3": {**ONE_EACH, **CALLS_EACH},
    "qwen3_training": {**ONE_EACH, **CALLS_EACH, "reasoning turns": (1, None), "some reasoning": (1, None)},
    "qwen3_5_nothink_training": {  # its prompt has an empty thought
        **dict.fromkeys(("reasoning", "reasoning turns", "reasoned calls"), (0, "prompt_no_prefix")),
        "some reasoning": (1, "prompt_no_prefix"),
    },
    "lfm2_training": NO_CALLS,
    "nemotron_3_nano": {**ONE_EACH, **CALLS_EACH},
    "phi3": NO_CALLS,
    "phi3_training": NO_CALLS,
    "gemma": {**REFUSES_CALLS, "system": (0, "template_refuses")},
    "gemma3_training": REFUSES_CALLS,
    "cohere": REFUSES_CALLS,
    "cohere2_training": REFUSES_CALLS,
    "deepseekv3": {**ONE_EACH, "calls": (2, None), **HIDES_TOOLS, **NO_THOUGHT_OF_CALLS},
    "gptoss": {**ONE_EACH, **TOOLS_MOVE, "reasoned calls": (2, None)},
}


pytestmark = pytest.mark.usefixtures("cache_folder")


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Families:
    return Families(tmp_path_factory.mktemp("families"))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_answer_is_trained_on_as_it_is_prompted_for_or_left_out_by_name(name: str, families: Families) -> None:
    page = (ROOT / template_table.PAGE).read_text("utf-8")
    if name == "glm4moe":
        with pytest.raises(RecipeError, match="ends an answer with no control token") as refused:
            families.renderer(name)
        assert template_table.refused_line(FAMILIES[name], refused.value) in page
        return
    renderer = families.renderer(name)
    assert isinstance(renderer, JinjaRenderer)
    check = checker(renderer)
    outcomes = {kind: prepare(renderer, messages, check) for kind, messages in CONVERSATIONS.items()}
    results = {kind: (outcome.rows, outcome.rule) for kind, outcome in outcomes.items()}
    assert results == {**dict.fromkeys(CONVERSATIONS, (1, None)), **RESULTS.get(name, {})}
    assert template_table.line(FAMILIES[name], outcomes) in page, "run: python scripts/template_table.py"


@pytest.mark.parametrize("name", ["llama2", "cohere2_training", "qwen2_5"])
def test_a_cut_answer_is_trained_on_without_what_ends_it(name: str, families: Families) -> None:
    """LLaMA 2 writes a space before the end token, Cohere a token of its own."""
    renderer = families.renderer(name)
    cut = [user("Hi"), replace(answer("Hello"), stop=False), user("Go on"), answer("there.")]
    [example] = ExamplePreparer(renderer, 8_192).prepare([[Row("x", 0, cut, None, "train", ("f", 0))]]).examples
    trained = renderer.tokenizer.decode(example.ids[example.loss_mask].tolist())
    assert re.fullmatch(r"(<[|]START_\w+[|]>)*\s?Hello(<[|]START_\w+[|]>)*\s?there\.\s?(<[^<]+>)+", trained), trained


def test_an_answer_ends_with_the_end_token_if_it_follows_every_answer(families: Families) -> None:
    for name, stop in {"cohere2_training": "<|END_OF_TURN_TOKEN|>", "phi3": "<|end|>", "qwen3": "<|im_end|>"}.items():
        tokenizer = families.tokenizer(name)
        renderer = make_renderer("any", tokenizer, chat_template=template_of(name))
        assert renderer.stop_ids == (tokenizer.control_ids[stop],), name
        assert proof.prove(renderer, [TURNS[:2]], renderer.render_batch([TURNS[:2]])) == {}


def test_a_call_may_end_in_another_token(families: Families) -> None:
    tokenizer = families.tokenizer("gptoss")
    renderer = make_renderer("any", tokenizer, chat_template=template_of("gptoss"))
    assert renderer.stop_ids == (tokenizer.control_ids["<|return|>"], tokenizer.control_ids["<|call|>"])


def test_the_built_in_template_for_tools_writes_what_llama_3_1s_own_writes(families: Families) -> None:
    tokenizer = families.tokenizer("llama3_1")
    own, built_in = (
        make_renderer("llama3.1", tokenizer, chat_template=text) for text in (template_of("llama3_1"), None)
    )
    assert (built_in.name, built_in.stop_ids, built_in.shows_tools) == ("llama3.1", own.stop_ids, True)
    results = {}
    for kind, messages in CONVERSATIONS.items():
        ours, theirs = built_in.render_batch([messages]), own.render_batch([messages])
        assert proof.prove(built_in, [messages], ours) == {}
        if not theirs.problems:
            assert ours.encoded.ids.tolist() == theirs.encoded.ids.tolist(), kind
            assert ours.encoded.loss_mask.tolist() == theirs.encoded.loss_mask.tolist(), kind
        results[kind] = not theirs.problems
    assert [kind for kind, same in results.items() if not same] == ["reasoned calls"]  # theirs drops a call's reasoning


def test_the_built_in_template_for_tools_writes_a_text_before_a_call_and_refuses_two_calls(families: Families) -> None:
    renderer = make_renderer("llama3.1", families.tokenizer("llama3_1"))
    two = json.dumps([*json.loads(CALL), *json.loads(CALL)])
    said, several = ([user("Is it cold?"), answer("I look.", calls=calls), RESULT] for calls in (CALL, two))
    rendered = renderer.render_batch([said, several])
    assert list(proof.prove(renderer, [said, several], rendered)) == [1]
    assert rendered.problems[1].reason == (
        "the chat template says: LLaMA-3.1 makes one call at a time, and an answer has 2"
    )
    ids = rendered.encoded.ids[rendered.encoded.loss_mask]
    call = '{"name": "weather", "parameters": {"city": "Oslo"}}'
    assert renderer.tokenizer.decode(ids.tolist()) == f"I look.\n{call}<|eot_id|>"


TWO_CALLS = json.dumps(
    [{"id": f"call0000{n}", "type": "function", "function": {**FUNCTION_CALL, "name": f"f{n}"}} for n in (1, 2)]
)


@pytest.mark.parametrize("name", ["qwen2_5", "deepseekv3", "mistral_v3", "mistral_v7", None])
def test_results_are_rendered_in_the_order_of_their_calls(name: str | None, families: Families) -> None:
    """Qwen takes arguments as objects, DeepSeek as text; a built-in template writes the calls as they are."""
    tokenizer = families.tokenizer(name or "qwen2_5")
    renderer = make_renderer("chatml", tokenizer, chat_template=template_of(name) if name else None)
    first, second, stray = (Message("tool", f"it is {n}", tool_call_id=f"call0000{n}") for n in (1, 2, 3))
    rows = [
        [user("Both?"), answer("", calls=TWO_CALLS), *results, answer("Done.")]
        for results in ([first, second, stray], [stray, second, first])
    ]
    prepared = ExamplePreparer(renderer, 8_192).prepare(
        [[Row(str(at), 0, messages, None, "train", ("f", at))] for at, messages in enumerate(rows)]
    )
    half = len(prepared.examples) // 2
    assert half and not prepared.left_out
    for one, other in zip(prepared.examples[:half], prepared.examples[half:], strict=True):
        assert one.ids.tolist() == other.ids.tolist()
    text = tokenizer.decode(prepared.examples[half - 1].ids.tolist())
    assert [text.index(f"it is {n}") for n in (1, 2, 3)] == sorted(text.index(f"it is {n}") for n in (1, 2, 3))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("qwen3", '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>'),
        ("gptoss", ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Oslo"}<|call|>'),
        ("mistral_v7", '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Oslo"}, "id": "call00001"}]</s>'),
        ("llama3.1", '{"name": "weather", "parameters": {"city": "Oslo"}}<|eot_id|>'),
    ],
)
def test_what_closes_a_masked_reasoning_before_a_call_is_masked_too(name: str, call: str, families: Families) -> None:
    """`</think>`, or the end of gpt-oss's channel, as before a text."""
    own = name if name in FAMILIES else "llama3_1"
    template = template_of(name) if name in FAMILIES else None
    masked = Choices(reasoning="mask")
    renderer = make_renderer(name, families.tokenizer(own), chat_template=template, choices=masked)
    rows = [[Row("x", 0, CONVERSATIONS["reasoned calls"][:3], None, "train", ("f", 0))]]
    [example] = ExamplePreparer(renderer, 8_192).prepare(rows).examples
    assert renderer.tokenizer.decode(example.ids[example.loss_mask].tolist()) == call


# ---- preference pairs

PAIRS = {
    "plain": ([user("Hi"), answer("One."), user("More?"), answer("Two.")], [answer("Three.")]),
    "reasoning": (
        [user("Hi"), answer("One.", "Hm 1."), user("More?"), answer("Two.", "Hm 2.")],
        [answer("Three.", "Hm 3.")],
    ),
    "reasoning on one side": ([user("Hi"), answer("One.")], [answer("Two.", "Hm.")]),
    "tools": (
        with_tools([user("Hi"), answer("", None, CALL), RESULT, answer("Cold.")], TOOLS),
        with_tools([answer("Warm.")], TOOLS),
    ),
}


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("name", ["llama3_1", "qwen2_5", "qwen3", "deepseekv3", "gptoss"])
def test_both_sides_of_a_pair_have_the_same_prompt(name: str, kind: str, families: Families) -> None:
    renderer = make_renderer(name, families.tokenizer(name), chat_template=template_of(name))
    messages, rejected = PAIRS[kind]
    row = Row("pair", 0, messages, None, "train", ("dump.json", 0), rejected=rejected)
    prepared = ExamplePreparer(renderer, 2000, pairs=True).prepare([[row]])
    assert not prepared.left_out
    prompts = [example.ids[: int(example.loss_mask.argmax())].tolist() for example in prepared.examples]
    assert prompts[0] == prompts[1] != []
    for example, message in zip(prepared.examples, (messages[-1], rejected[-1]), strict=True):
        assert message.content in renderer.tokenizer.decode(example.ids[example.loss_mask].tolist())
