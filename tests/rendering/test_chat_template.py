"""A model's own chat template gives the ids of transformers with a proven mask, or is refused with a named reason."""

from __future__ import annotations

import importlib.util
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curate.dataset.arrow import Row
from curate.display.figures import percent
from curate.errors import RecipeError
from curate.rendering import proof
from curate.rendering.choices import Choices, EmptyThink, Reasoning
from curate.rendering.factory import make_renderer
from curate.rendering.preparation import ExamplePreparer, PreparedBatch, PreparedExample
from curate.rendering.renderer import Renderer
from curate.schemas import prompts, template_export
from curate.schemas.conversation import Message
from curate.schemas.prompts import TEMPLATES
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer
from tests.rendering.test_renderer import conversations, fits, trained
from tests.support.tiny_tokenizers import double_newline_tiktoken, folder, sentencepiece_model

# Written after the templates that these models ship, shortened.
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{{- system_message }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' }}
        {{- message.tool_calls[0].function.name + '", "parameters": ' }}
        {{- message.tool_calls[0].function.arguments | tojson }}{{- "}" }}{{- "<|eot_id|>" }}
    {%- elif message.role == "tool" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" + message.content + "<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}
{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}
{% set system_message = false %}{% endif %}{% for message in loop_messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}
{% if loop.index0 == 0 and system_message != false %}
{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}
{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}
{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""
MARKED = """{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>' }}
{%- if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ '<|eot_id|>' }}{% endgeneration %}
{% else %}{{ m.content }}{{ '<|eot_id|>' }}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>' }}{% endif %}"""
HEADER = "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>' }}"
ASKS = "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>' }}{% endif %}"


def loop(body: str, asks: str) -> str:
    return "{{ bos_token }}{% for m in messages %}" + HEADER + body + "{% endfor %}" + asks


# Answers before the last one lose their thoughts, and the last one has an empty thought where it has none.
THINKS = (
    "{{ bos_token }}{% for m in messages %}"
    + HEADER
    + "{% set c = m.content %}{% if m.role == 'assistant' and '</think>' in c %}"
    + "{% set c = c.split('</think>')[-1] %}{% endif %}"
    + "{% if m.role == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}{{ c + '<|eot_id|>' }}{% endfor %}"
    + ASKS
)
TWO = [
    Message("user", "the dog?"),
    Message("assistant", "It sleeps."),
    Message("user", "안녕 the fox?"),
    Message("assistant", "你好。 Bye"),
]
SYSTEM = Message("system", "Be brief.")


pytestmark = pytest.mark.usefixtures("cache_folder")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    root = tmp_path_factory.mktemp("own")
    sources = {
        "sentencepiece": folder(root / "sp", tokenizer_model=sentencepiece_model(lines=False)),
        "tiktoken": folder(root / "tik", tokenizer_model=double_newline_tiktoken()),
    }
    return {name: load_tokenizer(str(path)) for name, path in sources.items()}


def served(tokenizer: Tokenizer, template: str, messages: list[dict[str, Any]], *, asks: bool = False) -> list[int]:
    """Return the ids of transformers' apply_chat_template."""
    import tokenizers as library
    from transformers import PreTrainedTokenizerFast

    fast: Any = PreTrainedTokenizerFast(
        tokenizer_object=library.Tokenizer.from_str(tokenizer.tokenizer_json()),
        bos_token=tokenizer.info.bos_token,
        eos_token=tokenizer.info.eos_token,
    )
    ids = fast.apply_chat_template(messages, chat_template=template, add_generation_prompt=asks, return_dict=False)
    return [int(token) for token in ids]


def plain(messages: list[Message]) -> list[dict[str, Any]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def proven(renderer: Renderer, batch: list[list[Message]]) -> dict[int, str]:
    return {
        index: problem.rule for index, problem in proof.prove(renderer, batch, renderer.render_batch(batch)).items()
    }


CASES = [("llama3", "tiktoken", LLAMA3), ("llama2", "sentencepiece", LLAMA2), ("marked", "tiktoken", MARKED)]


@pytest.mark.parametrize(("name", "kind", "template"), CASES, ids=[name for name, *_ in CASES])
@pytest.mark.parametrize("system", [False, True], ids=["bare", "system"])
def test_the_ids_are_those_of_transformers(
    name: str, kind: str, template: str, system: bool, tokenizers: dict[str, Tokenizer]
) -> None:
    template = template.replace("strftime_now is defined", "false")  # transformers writes today's date
    renderer = make_renderer("any", tokenizers[kind], chat_template=template)
    messages = [*([SYSTEM] if system else []), *TWO]
    [rendered] = renderer.render([messages])
    expected = served(tokenizers[kind], template, plain(messages))
    assert rendered.ids.tolist() == expected
    prompt = served(tokenizers[kind], template, plain(messages[:-1]), asks=True)
    assert renderer.generation_prompt(messages[:-1]).tolist() == prompt == expected[: len(prompt)]
    assert proven(renderer, [messages]) == {}


def test_answers_and_their_ends_are_trained_on(tokenizers: dict[str, Tokenizer]) -> None:
    renderer = make_renderer("any", tokenizers["tiktoken"], chat_template=LLAMA3)
    assert trained(renderer, [SYSTEM, *TWO]) == ["It sleeps.<|eot_id|>", "你好。 Bye<|eot_id|>"]
    last = make_renderer("any", tokenizers["tiktoken"], chat_template=LLAMA3, loss="last")
    assert trained(last, TWO) == ["你好。 Bye<|eot_id|>"]
    users = make_renderer("any", tokenizers["tiktoken"], chat_template=LLAMA3, loss="roles:user")
    assert trained(users, TWO) == ["the dog?<|eot_id|>", "안녕 the fox?<|eot_id|>"]
    assert proven(users, [TWO]) == proven(last, [TWO]) == {}
    assert renderer.stop_ids == (tokenizers["tiktoken"].control_ids["<|eot_id|>"],)


def test_train_and_stop_of_messages_are_respected(tokenizers: dict[str, Tokenizer]) -> None:
    renderer = make_renderer("any", tokenizers["tiktoken"], chat_template=LLAMA3)
    messages = [TWO[0], Message("assistant", "No", train=False), TWO[2], Message("assistant", "It sl", stop=False)]
    assert trained(renderer, messages) == ["It sl"]
    assert proven(renderer, [messages]) == {}


def test_the_date_in_a_template_is_fixed(tokenizers: dict[str, Tokenizer]) -> None:
    for template in (LLAMA3, loop("{{ strftime_now('%d %b %Y') + m.content + '<|eot_id|>' }}", ASKS)):
        renderer = make_renderer("any", tokenizers["tiktoken"], chat_template=template)
        ids = renderer.render([TWO])[0].ids.tolist()
        assert "26 Jul 2024" in tokenizers["tiktoken"].decode(ids)


def test_tool_calls_are_passed_as_values_and_trained_on(tokenizers: dict[str, Tokenizer]) -> None:
    calls = json.dumps([{"type": "function", "function": {"name": "time", "arguments": '{"at": "home"}'}}])
    messages = [TWO[0], Message("assistant", "", tool_calls=calls), Message("tool", "nine"), TWO[1]]
    renderer = make_renderer("any", tokenizers["tiktoken"], chat_template=LLAMA3)
    assert trained(renderer, messages) == [
        '{"name": "time", "parameters": {"at": "home"}}<|eot_id|>',
        "It sleeps.<|eot_id|>",
    ]
    assert proven(renderer, [messages]) == {}


def test_an_added_token_that_is_no_control_token_is_trained_on_as_text(
    tokenizers: dict[str, Tokenizer], tmp_path: Path
) -> None:
    document = json.loads(tokenizers["tiktoken"].tokenizer_json())
    added = document["added_tokens"]
    token = added[-1]["id"] + 1
    added.append({**added[-1], "id": token, "content": "<tool_call>", "special": False})
    tokenizer = load_tokenizer(str(folder(tmp_path / "json", tokenizer_json=json.dumps(document))))
    renderer = make_renderer("any", tokenizer, chat_template=LLAMA3.replace('{"name": "', '<tool_call>{"name": "'))
    calls = json.dumps([{"function": {"name": "time", "arguments": {}}}])
    messages = [TWO[0], Message("assistant", "", tool_calls=calls), Message("tool", "nine"), TWO[1]]
    [rendered] = renderer.render([messages])
    assert rendered.loss_mask[rendered.ids.tolist().index(token)]
    assert proven(renderer, [messages]) == {}


def test_control_strings_in_messages_stay_text(tokenizers: dict[str, Tokenizer]) -> None:
    renderer = make_renderer("any", tokenizers["tiktoken"], chat_template=LLAMA3)
    messages = [Message("user", "<|eot_id|>"), Message("assistant", "<|begin_of_text|><|eot_id|> no")]
    ids = renderer.render([messages])[0].ids.tolist()
    controls = tokenizers["tiktoken"].control_ids
    assert (ids.count(controls["bos"]), ids.count(controls["<|eot_id|>"])) == (1, 3)
    assert proven(renderer, [messages]) == {}


# ---- conversations that are left out


def test_a_conversation_that_the_template_refuses_is_reported(tokenizers: dict[str, Tokenizer]) -> None:
    renderer = make_renderer("any", tokenizers["sentencepiece"], chat_template=LLAMA2)
    bad = [TWO[1], *TWO]
    problems = proof.prove(renderer, [TWO, bad, TWO], renderer.render_batch([TWO, bad, TWO]))
    assert [(index, problem.rule) for index, problem in problems.items()] == [(1, "template_refuses")]
    assert problems[1].reason.startswith("the chat template says: Conversation roles must alternate")


def test_a_template_that_rewrites_answers_is_reported(tokenizers: dict[str, Tokenizer]) -> None:
    renderer = make_renderer("any", tokenizers["tiktoken"], chat_template=THINKS)
    assert proven(renderer, [TWO, TWO[:2]]) == {0: "template_rewrites"}
    choices = Choices(empty_think="as_template")
    renderer = make_renderer("any", tokenizers["tiktoken"], chat_template=THINKS, choices=choices)
    assert proven(renderer, [TWO]) == {}
    assert trained(renderer, TWO) == ["It sleeps.<|eot_id|>", "<think></think>你好。 Bye<|eot_id|>"]


@pytest.mark.parametrize(
    ("empty_think", "texts"),
    [
        ("all", ["<think></think>It sleeps.<|eot_id|>", "<think></think>你好。 Bye<|eot_id|>"]),
        ("as_template", ["It sleeps.<|eot_id|>", "<think></think>你好。 Bye<|eot_id|>"]),
        ("none", ["It sleeps.<|eot_id|>", "你好。 Bye<|eot_id|>"]),
    ],
)
def test_an_empty_thought_is_written_as_chosen(
    empty_think: EmptyThink, texts: list[str], tokenizers: dict[str, Tokenizer]
) -> None:
    choices = Choices(empty_think=empty_think)
    renderer = make_renderer("any", tokenizers["tiktoken"], chat_template=THINKS, choices=choices)
    prepared = prepare(renderer, TWO)
    assert [text for example in prepared.examples for text in decoded(renderer, example)] == texts
    assert prepared.left_out == []
    assert prepared.by_answer.pieces == (empty_think == "all")


# Earlier answers lose their reasoning, as when a server sends them back.
REASONS = loop(
    "{% if m.role == 'assistant' and m.reasoning_content and loop.last %}"
    "{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m.content + '<|eot_id|>' }}",
    ASKS,
)
REASONED = [
    TWO[0],
    Message("assistant", "It sleeps.", reasoning="Look."),
    TWO[2],
    Message("assistant", "Bye", reasoning="Wave."),
]


@pytest.mark.parametrize("template", [REASONS, None], ids=["own", "built-in"])
@pytest.mark.parametrize(
    ("reasoning", "texts"),
    [
        ("train", ["<think>Look.</think>It sleeps.", "<think>Wave.</think>Bye"]),
        ("mask", ["It sleeps.", "Bye"]),
        ("drop", ["It sleeps.", "Bye"]),
    ],
)
def test_reasoning_is_trained_masked_or_dropped(
    reasoning: Reasoning, texts: list[str], template: str | None, tokenizers: dict[str, Tokenizer]
) -> None:
    choices = Choices(reasoning)
    renderer = make_renderer("llama3", tokenizers["tiktoken"], chat_template=template, choices=choices)
    prepared = prepare(renderer, REASONED)
    assert prepared.left_out == []
    if template is None:
        texts = [text.replace("<think>", "<think>\n").replace("</think>", "\n</think>\n\n") for text in texts]
    assert [text for example in prepared.examples for text in decoded(renderer, example)] == [
        f"{text}<|eot_id|>" for text in texts
    ]
    whole = "".join(renderer.tokenizer.decode(example.ids.tolist()) for example in prepared.examples)
    assert ("Wave." in whole) == (reasoning != "drop")
    assert prepared.by_answer.pieces == (template is not None and reasoning != "drop")


def test_the_cost_of_a_rendering_for_each_answer_is_said(tokenizers: dict[str, Tokenizer]) -> None:
    prepared = prepare(make_renderer("any", tokenizers["tiktoken"], chat_template=REASONS), REASONED)
    sizes = [len(example.ids) for example in prepared.examples]
    more = percent(sum(sizes[:-1]), sizes[-1])
    assert str(prepared.by_answer) == (
        "1 piece rendered as 2 rows, one for each answer, because the chat template leaves out the answer's reasoning: "
        f"{sum(sizes)} tokens, {more} more"
    )


def prepare(renderer: Renderer, messages: list[Message]) -> PreparedBatch:
    return ExamplePreparer(renderer, 4_096).prepare([[Row("a", 0, messages, None, "train", ("f", 0))]])


def decoded(renderer: Renderer, example: PreparedExample) -> list[str]:
    """Return the texts of an example that are trained on."""
    mask = np.r_[False, example.loss_mask, False]
    starts, stops = np.flatnonzero(mask[1:] & ~mask[:-1]), np.flatnonzero(~mask[1:] & mask[:-1])
    return [renderer.tokenizer.decode(example.ids[i:j].tolist()) for i, j in zip(starts, stops, strict=True)]


def test_a_prompt_with_text_unseen_in_training_is_reported(tokenizers: dict[str, Tokenizer]) -> None:
    asks = ASKS.replace("<|end_header_id|>'", "<|end_header_id|><think>'")
    template = loop("{{ m.content + '<|eot_id|>' }}", asks)
    renderer = make_renderer("any", tokenizers["tiktoken"], chat_template=template)
    assert proven(renderer, [TWO]) == {0: "prompt_no_prefix"}


def test_a_template_that_rewrites_earlier_messages_is_reported(tokenizers: dict[str, Tokenizer]) -> None:
    body = "{{ '(last) ' if loop.last and m.role == 'user' else '' }}{{ m.content + '<|eot_id|>' }}"
    renderer = make_renderer("any", tokenizers["tiktoken"], chat_template=loop(body, ASKS))
    assert proven(renderer, [TWO]) == {0: "template_rewrites"}


REFUSED = {
    "invalid Jinja": ("{% if %}", "the chat template is not valid Jinja: Expected an expression"),
    "no end": (loop("{{ m.content }}", ASKS), "ends an answer with no control token"),
    "no answers": ("{{ raise_exception('never') }}", "cannot be used: the chat template says: never"),
    "silent": ("{{ bos_token }}", "cannot be used: it does not write the answer"),
}


@pytest.mark.parametrize(("template", "says"), REFUSED.values(), ids=list(REFUSED))
def test_an_unusable_template_is_refused(template: str, says: str, tokenizers: dict[str, Tokenizer]) -> None:
    with pytest.raises(RecipeError, match=says):
        make_renderer("any", tokenizers["tiktoken"], chat_template=template)


# ---- compared with the built-in templates

CONTENT = st.lists(
    st.sampled_from(["the dog", " sleeps.", "\n", "  ", "안녕", "é", "</s>", "<|eot_id|>", "%s", "12", ":", "{{ x }}"]),
    min_size=1,
    max_size=5,
).map(lambda texts: "x" + "".join(texts) + "y")
MESSAGES = st.lists(
    st.builds(Message, st.sampled_from(["user", "assistant", "tool", "system"]), CONTENT, train=st.booleans()),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("kind", ["sentencepiece", "tiktoken"])
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(messages=MESSAGES, name=st.sampled_from(list(TEMPLATES)), loss=st.sampled_from(["all", "last"]))
def test_a_built_in_template_as_jinja_gives_the_same_ids_and_mask(
    kind: str, messages: list[Message], name: str, loss: str, tokenizers: dict[str, Tokenizer]
) -> None:
    tokenizer = tokenizers[kind]
    if not fits(name, tokenizer):
        return
    fitted = prompts.fit(TEMPLATES[name], tokenizer.control_ids)
    built_in = make_renderer(name, tokenizer, loss=loss)
    own = make_renderer("any", tokenizer, loss=loss, chat_template=template_export.jinja(fitted))
    [expected], [rendered] = built_in.render([messages]), own.render([messages])
    assert rendered.ids.tolist() == expected.ids.tolist()
    assert rendered.loss_mask.tolist() == expected.loss_mask.tolist()
    assert own.stop_ids == built_in.stop_ids
    assert own.generation_prompt(messages).tolist() == built_in.generation_prompt(messages).tolist()
    nothing = not expected.loss_mask.any()
    assert proven(own, [messages]) == ({0: "nothing_trained"} if nothing else {})
    [size] = own.counter().sizes([(messages, True)])
    assert (size.tokens, size.answer_tokens) == (len(rendered.ids), int(np.sum(rendered.loss_mask)))


def test_a_token_across_the_border_of_an_earlier_answer_is_split_in_prompts_too(
    tokenizers: dict[str, Tokenizer],
) -> None:
    chatml = prompts.fit(TEMPLATES["chatml"], tokenizers["tiktoken"].control_ids)
    renderer = make_renderer("any", tokenizers["tiktoken"], chat_template=template_export.jinja(chatml))
    assert proven(renderer, [[TWO[0], Message("assistant", "\nthe fox"), *TWO[2:]]]) == {}


def test_the_renderer_can_be_pickled(tokenizers: dict[str, Tokenizer]) -> None:
    renderer = make_renderer("any", tokenizers["tiktoken"], chat_template=LLAMA3)
    again = pickle.loads(pickle.dumps(renderer))
    assert again.render([TWO])[0].ids.tolist() == renderer.render([TWO])[0].ids.tolist()


@pytest.mark.slow
def test_real_conversations_are_proven_with_llama3s_own_template(shared: Path) -> None:
    if importlib.util.find_spec("llama_models") is None:
        pytest.skip("llama-models, which ships LLaMA-3's tokenizer, is not installed")
    renderer = make_renderer("any", load_tokenizer(), chat_template=LLAMA3)
    asked = [
        conversation for conversation in conversations(shared, 20) if conversation[0].role == "user"
    ]  # the template refuses a leading answer
    batch = [conversation for conversation in asked if any(m.role == "assistant" and m.content for m in conversation)]
    assert len(batch) > 250
    assert proven(renderer, batch) == {}


AMID = [
    *(Message("user", "a"), Message("assistant", "b"), Message("system", "Be brief.")),
    *(Message("user", "c"), Message("assistant", "d")),
]


@pytest.mark.parametrize(
    ("template", "kind", "can_say_it"),
    [(LLAMA3, "tiktoken", True), (LLAMA2, "sentencepiece", False)],
    ids=["llama3", "llama2"],
)
def test_a_system_message_amid_the_turns_is_in_the_prompt_of_a_template_that_refuses_it(
    template: str, kind: str, can_say_it: bool, tokenizers: dict[str, Tokenizer]
) -> None:
    renderer = make_renderer("any", tokenizers[kind], chat_template=template)
    assert renderer.mid_system is can_say_it
    preparer = ExamplePreparer(renderer, 500, ("template",))
    prepared = preparer.prepare([[Row("x", 0, AMID, None, "train", ("f", 0))]])
    assert (len(prepared.examples), prepared.left_out) == (1, [])
    assert prepared.resplit is not None and prepared.resplit.folded == (not can_say_it)
    assert ("fold_system" in str(prepared.resplit)) is not can_say_it
    before, _, after = renderer.tokenizer.decode(prepared.examples[0].ids.tolist()).partition("Be brief.")
    assert "b" in before and "c" in after
