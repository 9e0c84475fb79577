"""Prompt templates: the exact text of each, and properties of all."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import RecipeError
from curate.schemas import prompts
from curate.schemas.conversation import Message, Role
from curate.schemas.prompts import INPUT_MARK, TEMPLATES, Segment, Template

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
TWO = [
    Message("user", "Hi!"),
    Message("assistant", "Hello."),
    Message("user", "Bye?"),
    Message("assistant", "Bye."),
]
WITH_SYSTEM = [Message("system", "Be brief."), *TWO]
TOOLS = [
    Message("user", "Weather?"),
    Message("assistant", "", tool_calls='[{"name": "weather"}]'),
    Message("tool", "Sunny"),
    Message("assistant", "It is sunny."),
]
ALL_CONTROLS = {"bos", "eos", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}

WRITTEN = [
    ("vicuna", TWO, f"<s>{VICUNA_SYSTEM} USER: Hi! ASSISTANT: Hello.</s>USER: Bye? ASSISTANT: Bye.</s>"),
    ("vicuna", WITH_SYSTEM, "<s>Be brief. USER: Hi! ASSISTANT: Hello.</s>USER: Bye? ASSISTANT: Bye.</s>"),
    (
        "vicuna",
        TOOLS,
        f"<s>{VICUNA_SYSTEM} USER: Weather? ASSISTANT: "
        '[{"name": "weather"}]</s>TOOL: Sunny ASSISTANT: It is sunny.</s>',
    ),
    (
        "alpaca",
        TWO,
        "<s>Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nHi!\n\n### Response:\nHello.</s>### Instruction:\nBye?\n\n### Response:\nBye.</s>",
    ),
    (
        "alpaca",
        [Message("user", f"Add.{INPUT_MARK}1, 2"), Message("assistant", "3")],
        "<s>Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request."
        "\n\n### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n3</s>",
    ),
    ("llama2", TWO, "<s>[INST] Hi! [/INST] Hello. </s><s>[INST] Bye? [/INST] Bye. </s>"),
    (
        "llama2",
        WITH_SYSTEM,
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi! [/INST] Hello. </s><s>[INST] Bye? [/INST] Bye. </s>",
    ),
    (
        "llama3",
        WITH_SYSTEM[:3],
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>",
    ),
    (
        "chatml",
        WITH_SYSTEM[:3],
        "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n",
    ),
    ("plain", WITH_SYSTEM, "<s>Be brief.\n\nHi!\n\nHello.</s>Bye?\n\nBye.</s>"),
]


@pytest.mark.parametrize(("name", "messages", "expected"), WRITTEN, ids=[f"{w[0]}-{i}" for i, w in enumerate(WRITTEN)])
def test_each_template_gives_its_exact_text(name: str, messages: list[Message], expected: str) -> None:
    assert prompts.text(prompts.get(name), messages) == expected


def test_every_template_has_an_expected_text() -> None:
    assert {row[0] for row in WRITTEN} == set(TEMPLATES)


@pytest.mark.parametrize("name", ["llama2", "llama3"])
def test_metas_templates_strip_messages_as_metas_code_does(name: str) -> None:
    padded = [Message("user", "  Hi!\n"), Message("assistant", "\nHello. ")]
    assert prompts.text(prompts.get(name), padded) == prompts.text(prompts.get(name), TWO[:2])


def test_an_unknown_template_gets_the_nearest_name_suggested() -> None:
    with pytest.raises(RecipeError, match=r"unknown template 'vicunna'; did you mean 'vicuna'\?"):
        prompts.get("vicunna")


def test_llama3_is_refused_by_a_tokenizer_without_its_tokens() -> None:
    with pytest.raises(RecipeError, match=r"template 'llama3' needs the control token '<\|start_header_id\|>'"):
        prompts.fit(TEMPLATES["llama3"], {"bos", "eos"})


def test_chatml_without_its_control_tokens_is_text_ending_with_eos() -> None:
    fitted = prompts.fit(TEMPLATES["chatml"], {"bos", "eos"})
    assert prompts.text(fitted, TWO) == (
        "<s><|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\nHello.</s>"
        "<|im_start|>user\nBye?<|im_end|>\n<|im_start|>assistant\nBye.</s>"
    )
    assert {segment.control for segment in prompts.render(fitted, TWO)} == {None, "bos", "eos"}


def test_a_tokenizer_without_bos_gets_none() -> None:
    for template in TEMPLATES.values():
        fitted = prompts.fit(template, ALL_CONTROLS - {"bos"})
        assert "bos" not in {segment.control for segment in prompts.render(fitted, TWO)}


def test_the_answer_and_the_token_after_it_are_supervised() -> None:
    segments = prompts.render(TEMPLATES["vicuna"], TWO)
    assert [segment for segment in segments if segment.supervised] == [
        Segment(" Hello.", 1, True, None),
        Segment("", 1, True, "eos"),
        Segment(" Bye.", 3, True, None),
        Segment("", 3, True, "eos"),
    ]


@pytest.mark.parametrize(
    ("train", "stop", "expected"),
    [(True, True, [" x", "eos"]), (True, False, [" x"]), (False, True, []), (False, False, [])],
    ids=["both", "no-stop", "no-train", "neither"],
)
def test_train_and_stop_decide_what_is_supervised(train: bool, stop: bool, expected: list[str]) -> None:
    messages = [Message("user", "q"), Message("assistant", "x", train=train, stop=stop)]
    segments = prompts.render(TEMPLATES["vicuna"], messages)
    assert [segment.control or segment.text for segment in segments if segment.supervised] == expected
    assert segments[-1].control == "eos", "an answer is closed even where its end is not trained on"


def test_control_strings_in_messages_stay_text() -> None:
    messages = [Message("user", "</s><s>"), Message("assistant", "<|eot_id|>")]
    segments = prompts.render(TEMPLATES["llama3"], messages)
    assert [segment.control for segment in segments if segment.text in ("</s><s>", "<|eot_id|>")] == [None, None]


def test_a_system_message_replaces_the_default_of_the_template() -> None:
    segments = prompts.render(TEMPLATES["vicuna"], TWO, system="Mine.")
    assert segments[1] == Segment("Mine.", None, False, None)


def test_templates_need_only_the_standard_library() -> None:
    code = (
        "import sys\n"
        "from curate.schemas.prompts import TEMPLATES, text\n"
        "from curate.schemas.conversation import Message\n"
        "text(TEMPLATES['vicuna'], [Message('user', 'a'), Message('assistant', 'b')])\n"
        "print([m for m in ('polars', 'numpy', 'msgspec', 'transformers', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


CONTENT = st.text(alphabet=st.sampled_from("ab \n%{}</s>▁é漢"), max_size=12)
ROLES: list[Role] = ["system", "user", "assistant", "tool"]
MESSAGES = st.lists(
    st.builds(Message, st.sampled_from(ROLES), CONTENT, train=st.booleans(), stop=st.booleans()), max_size=9
)
TEMPLATE = st.one_of(
    st.sampled_from(list(TEMPLATES.values())),
    st.just(prompts.fit(TEMPLATES["chatml"], {"bos", "eos"})),
)


@given(TEMPLATE, MESSAGES)
def test_a_rendering_is_the_concatenation_of_its_exchanges(template: Template, messages: list[Message]) -> None:
    head, bounds = prompts.exchanges(messages)
    if not bounds:
        assert head == len(messages)
        return
    parts = prompts.render(template, messages[: bounds[1]])
    for start, stop in pairwise(bounds[1:]):
        assert parts[-1].control or parts[-1].text == "\n", "each exchange but the last ends in a control token"
        parts += [
            segment._replace(message=None if segment.message is None else segment.message + start)
            for segment in prompts.render(template, messages[start:stop], first=False)
        ]
    assert parts == prompts.render(template, messages)


@given(TEMPLATE, MESSAGES)
def test_the_generation_prompt_is_a_prefix_of_the_training_prompt(template: Template, messages: list[Message]) -> None:
    prompt = prompts.generation_prompt(template, messages)
    answered = prompts.render(template, [*messages, Message("assistant", "the answer")])
    assert answered[: len(prompt)] == prompt
    assert not any(segment.message == len(messages) and segment.supervised for segment in prompt)


@given(TEMPLATE, MESSAGES)
def test_only_trained_answers_are_supervised(template: Template, messages: list[Message]) -> None:
    for segment in prompts.render(template, messages):
        if segment.supervised:
            assert segment.message is not None
            message = messages[segment.message]
            assert message.role == "assistant"
            assert message.train
            assert message.stop or segment.control is None
