"""Chat templates of released models (shipped with TRL) are rendered as in transformers, or refused with a reason."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from curate.dataset.arrow import Row
from curate.errors import RecipeError
from curate.rendering import proof
from curate.rendering.chat_template import environment
from curate.rendering.chat_template.environment import ReasoningKey
from curate.rendering.chat_template.renderer import JinjaRenderer
from curate.rendering.factory import make_renderer
from curate.rendering.preparation import ExamplePreparer, PreparedExample
from curate.rendering.renderer import Renderer
from curate.schemas.conversation import Message, with_tools
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer
from tests.model.test_model_folder import SYSTEM, TWO_EXCHANGES
from tests.rendering.test_renderer import with_double_newline
from tests.support.tiny_tokenizers import folder

CONTROL = re.compile(r"<[|｜][^<>|｜\s]+[|｜]>|<bos>|<eos>|<start_of_turn>|<end_of_turn>|\[gMASK\]|<sop>")
ENDS = {  # the end token that each model's configuration names
    "llama3": "<|eot_id|>",
    "llama3_training": "<|eot_id|>",
    "llama3_1": "<|eot_id|>",
    "llama3_2": "<|eot_id|>",
    "qwen2_5": "<|im_end|>",
    "qwen2_5_training": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "qwen3_training": "<|im_end|>",
    "qwen3_instruct_2507_training": "<|im_end|>",
    "qwen3_5_nothink_training": "<|im_end|>",
    "lfm2_training": "<|im_end|>",
    "nemotron_3_nano": "<|im_end|>",
    "phi3": "<|endoftext|>",
    "phi3_training": "<|end|>",
    "gemma": "<end_of_turn>",
    "gemma3_training": "<end_of_turn>",
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "cohere2_training": "<|END_OF_TURN_TOKEN|>",
    "deepseekv3": "<｜end▁of▁sentence｜>",
    "glm4moe": "<|endoftext|>",
    "gptoss": "<|return|>",
}
FUNCTION_CALL = {"name": "weather", "arguments": '{"city": "Oslo"}'}
CALL = json.dumps([{"id": "call00001", "type": "function", "function": FUNCTION_CALL}])
CITY = {"type": "string", "description": "Where"}
PARAMETERS = {"type": "object", "properties": {"city": CITY}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "The weather of a city", "parameters": PARAMETERS}
TOOLS = json.dumps([{"type": "function", "function": FUNCTION}])


def user(text: str) -> Message:
    return Message("user", text)


def answer(text: str, reasoning: str | None = None, calls: str | None = None) -> Message:
    return Message("assistant", text, tool_calls=calls, reasoning=reasoning)


RESULT = Message("tool", "4 degrees", name="weather", tool_call_id="call00001")
CALLS = [user("Is it cold?"), answer("", calls=CALL), RESULT, answer("It is cold.")]
SUM = [user("2 + 2?"), answer("It is 4.", "Two and two.")]
CODE = answer("    def f():\n        return 1\n")
CONVERSATIONS = {
    "plain": [user("Hi there"), answer("Hello!")],
    "turns": TWO_EXCHANGES,
    "system": [SYSTEM, *TWO_EXCHANGES],
    "reasoning": SUM,
    "reasoning turns": [*SUM, user("3 + 3?"), answer("It is 6.", "Twice 3.")],
    "some reasoning": [*SUM, user("3 + 3?"), answer("It is 6.")],
    "calls": CALLS,
    "tools": with_tools(CALLS, TOOLS),
    "reasoned calls": [user("Is it cold?"), answer("", "I look.", CALL), RESULT, answer("It is cold.", "4 is cold.")],
    "white space": [user("Code, please "), CODE, user("  x\n"), answer("\n\ny\n\n")],
}
Result = tuple[int, str | None]
WITH_CALLS = ("calls", "tools", "reasoned calls")
SEVERAL = ("turns", "system", "reasoning turns", "some reasoning", "white space")
NO_CALLS: dict[str, Result] = dict.fromkeys(WITH_CALLS, (0, "template_rewrites"))  # calls are not written
REFUSES_CALLS: dict[str, Result] = dict.fromkeys(WITH_CALLS, (0, "template_refuses"))
NO_THOUGHT_OF_CALLS: dict[str, Result] = {"reasoned calls": (1, "template_rewrites")}  # nor is a call's reasoning
ONE_EACH: dict[str, Result] = dict.fromkeys(SEVERAL, (2, None))  # an example for each answer
CALLS_EACH: dict[str, Result] = dict.fromkeys(("calls", "tools"), (2, None))
# How many examples a conversation gives, and the rule of what is left out, where it is not one example.
RESULTS: dict[str, dict[str, Result]] = {
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
    "deepseekv3": {**ONE_EACH, "calls": (2, None), "tools": (1, "hidden_tools"), **NO_THOUGHT_OF_CALLS},
    "gptoss": {**ONE_EACH, "reasoned calls": (2, None)},
}


pytestmark = pytest.mark.usefixtures("cache_folder")


@pytest.fixture(scope="module")
def templates() -> dict[str, str]:
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip("TRL, which ships released chat templates, is not installed")
    files = Path(spec.origin).parent / "chat_templates"
    return {name: (files / f"{name}.jinja").read_text("utf-8") for name in ENDS if (files / f"{name}.jinja").is_file()}


@pytest.fixture(scope="module")
def tokenizers(templates: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """Return a vocabulary with the control tokens of all templates, for each end token."""
    root = tmp_path_factory.mktemp("released")
    plain = load_tokenizer(str(folder(root / "plain", tokenizer_model=with_double_newline())))
    document = json.loads(plain.tokenizer_json())
    named = {"<bos>", *ENDS.values(), *(name for text in templates.values() for name in CONTROL.findall(text))}
    document["added_tokens"] += [
        {**document["added_tokens"][-1], "id": plain.info.vocab_size + at, "content": name, "special": True}
        for at, name in enumerate(sorted(named - set(plain.control_ids)))
    ]
    loaded = {}
    for number, end in enumerate(sorted(set(ENDS.values()))):
        ends = json.dumps({"bos_token": "<bos>" if "turn" in end else "<|begin_of_text|>", "eos_token": end})
        path = folder(root / str(number), tokenizer_json=json.dumps(document), tokenizer_config_json=ends)
        loaded[end] = load_tokenizer(str(path))
    return loaded


def served(
    tokenizer: Tokenizer, template: str, messages: Sequence[Message], key: ReasoningKey | None, *, asks: bool = False
) -> list[int]:
    """Return the ids of transformers' apply_chat_template."""
    from transformers import AutoTokenizer

    fast: Any = AutoTokenizer.from_pretrained(Path(tokenizer.info.source).parent, local_files_only=True)
    as_text = "arguments + " in template.replace("['", ".").replace("']", "").replace(" +", " + ").replace("  ", " ")
    dicts = environment.message_dicts(messages, key, arguments_as_text=as_text)
    tools = environment.parse_tools(messages[0].tools)
    encoded = fast.apply_chat_template(
        dicts, tools=tools, chat_template=template, add_generation_prompt=asks, return_dict=True
    )
    return [int(token) for token in encoded["input_ids"]]


def check_example(
    example: PreparedExample, messages: Sequence[Message], renderer: Renderer, served_ids: Callable[..., list[int]]
) -> None:
    """Check the ids before each answer that is trained on, and the mask, by prompts that only transformers makes."""
    ids, mask = example.ids.tolist(), example.loss_mask.tolist()
    wanted = [False] * len(ids)
    trained = [i for i, message in enumerate(messages) if message.role == "assistant" and message.train]
    for index in trained:
        prompt = served_ids(messages[:index], asks=True)
        assert ids[: len(prompt)] == prompt
        stop = next(at for at in range(len(prompt), len(ids)) if ids[at] in renderer.stop_ids)
        wanted[len(prompt) : stop + 1] = [True] * (stop + 1 - len(prompt))
        text = renderer.tokenizer.decode(ids[len(prompt) : stop])
        assert messages[index].content.strip() in text
        assert (messages[index].reasoning or "") in text
    assert mask == wanted


@pytest.mark.parametrize("name", list(ENDS))
def test_every_answer_is_trained_on_as_it_is_prompted_for_or_left_out_by_name(
    name: str, templates: dict[str, str], tokenizers: dict[str, Tokenizer]
) -> None:
    if name not in templates:
        pytest.skip("this TRL does not ship it")
    tokenizer = tokenizers[ENDS[name]]
    # transformers writes today's date
    template = (
        templates[name].replace("strftime_now is defined", "false").replace('strftime_now("%Y-%m-%d")', '"2024-07-26"')
    )
    if name == "glm4moe":
        with pytest.raises(RecipeError, match="ends an answer with no control token"):
            make_renderer("any", tokenizer, chat_template=template)
        return
    renderer = make_renderer("any", tokenizer, chat_template=template)
    assert isinstance(renderer, JinjaRenderer)
    key = renderer.reasoning_key
    results: dict[str, Result] = {}
    for kind, messages in CONVERSATIONS.items():
        prepared = ExamplePreparer(renderer, 8_192).prepare([[Row(kind, 0, list(messages), None, "train", ("f", 0))]])
        results[kind] = len(prepared.examples), next((problem.rule for _, problem in prepared.left_out), None)
        by_answer = {f"{kind}#{number}": row for number, row in enumerate(renderer.answer_rows(messages))}
        for example in prepared.examples:
            own = by_answer.get(example.name, messages)
            check_example(example, own, renderer, partial(served, tokenizer, template, key=key))
    assert results == {**dict.fromkeys(CONVERSATIONS, (1, None)), **RESULTS.get(name, {})}


def test_an_answer_ends_with_the_end_token_if_it_follows_every_answer(
    templates: dict[str, str], tokenizers: dict[str, Tokenizer]
) -> None:
    for name, stop in {"cohere2_training": "<|END_OF_TURN_TOKEN|>", "phi3": "<|end|>", "qwen3": "<|im_end|>"}.items():
        tokenizer = tokenizers[ENDS[name]]
        renderer = make_renderer("any", tokenizer, chat_template=templates[name])
        assert renderer.stop_ids == (tokenizer.control_ids[stop],), name
        assert proof.prove(renderer, [TWO_EXCHANGES[:2]], renderer.render_batch([TWO_EXCHANGES[:2]])) == {}


def test_a_call_may_end_in_another_token(templates: dict[str, str], tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers[ENDS["gptoss"]]
    renderer = make_renderer("any", tokenizer, chat_template=templates["gptoss"])
    assert renderer.stop_ids == (tokenizer.control_ids["<|return|>"], tokenizer.control_ids["<|call|>"])


def test_the_built_in_template_for_tools_writes_what_llama_3_1s_own_writes(
    templates: dict[str, str], tokenizers: dict[str, Tokenizer]
) -> None:
    tokenizer = tokenizers["<|eot_id|>"]
    own, built_in = (make_renderer("llama3.1", tokenizer, chat_template=text) for text in (templates["llama3_1"], None))
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


def test_the_built_in_template_for_tools_writes_a_text_before_a_call_and_refuses_two_calls(
    tokenizers: dict[str, Tokenizer],
) -> None:
    renderer = make_renderer("llama3.1", tokenizers["<|eot_id|>"])
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


@pytest.mark.parametrize("name", ["qwen2_5", "deepseekv3", None])
def test_results_are_rendered_in_the_order_of_their_calls(
    name: str | None, templates: dict[str, str], tokenizers: dict[str, Tokenizer]
) -> None:
    """Qwen takes arguments as objects, DeepSeek as text; a built-in template writes the calls as they are."""
    tokenizer = tokenizers[ENDS[name or "qwen2_5"]]
    renderer = make_renderer("chatml", tokenizer, chat_template=templates[name] if name else None)
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
def test_both_sides_of_a_pair_have_the_same_prompt(
    name: str, kind: str, templates: dict[str, str], tokenizers: dict[str, Tokenizer]
) -> None:
    renderer = make_renderer(name, tokenizers[ENDS[name]], chat_template=templates[name])
    messages, rejected = PAIRS[kind]
    row = Row("pair", 0, messages, None, "train", ("dump.json", 0), rejected=rejected)
    prepared = ExamplePreparer(renderer, 2000, pairs=True).prepare([[row]])
    assert not prepared.left_out
    prompts = [example.ids[: int(example.loss_mask.argmax())].tolist() for example in prepared.examples]
    assert prompts[0] == prompts[1] != []
    for example, message in zip(prepared.examples, (messages[-1], rejected[-1]), strict=True):
        assert message.content in renderer.tokenizer.decode(example.ids[example.loss_mask].tolist())
