"""Pairs are rendered as two sides, both proven; a pair of which either side fails is left out by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from curate.dataset.arrow import Row
from curate.rendering.choices import Choices
from curate.rendering.factory import make_renderer
from curate.rendering.preparation import ExamplePreparer, PreparedBatch
from curate.rendering.renderer import Renderer
from curate.schemas.conversation import Message, with_tools
from curate.tokenization.tokenizer import load_tokenizer
from tests.support.tiny_tokenizers import folder, sentencepiece_model

USER, GOOD, BAD = Message("user", "Which tea?"), Message("assistant", "Assam."), Message("assistant", "Mud.")
# Writes reasoning, and closes each message; that of earlier answers is dropped, as Qwen3's template does.
THINKS = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content and loop.last %}"
    "({{ m.reasoning_content }}){% endif %}"
    "{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tokenizer(str(folder(tmp_path_factory.mktemp("t"), tokenizer_model=sentencepiece_model())))


@pytest.fixture(scope="module")
def renderer(tokenizer: Any) -> Renderer:
    return make_renderer("vicuna", tokenizer)


def pair(*messages: Message, rejected: list[Message], name: str = "tea") -> Row:
    return Row(name, 0, list(messages), "en", "train", ("dump.json", 0), rejected=rejected)


def prepare(renderer: Renderer, *rows: Row, window: int = 400) -> PreparedBatch:
    return ExamplePreparer(renderer, window, pairs=True).prepare([[row] for row in rows])


def trained(renderer: Renderer, prepared: PreparedBatch) -> list[tuple[str, str]]:
    """Return the name of each example and the text that it trains."""
    return [
        (example.name, renderer.tokenizer.decode(example.ids[example.loss_mask].tolist()))
        for example in prepared.examples
    ]


def left_out(prepared: PreparedBatch) -> list[tuple[str, str]]:
    return [(row.name, problem.rule) for row, problem in prepared.left_out]


def test_both_sides_have_the_prompt_and_train_only_the_last_answer(renderer: Renderer) -> None:
    prepared = prepare(renderer, pair(USER, GOOD, USER, replace(GOOD, content="Ceylon."), rejected=[BAD]))
    texts = trained(renderer, prepared)
    assert [name for name, _ in texts] == ["tea", "tea (rejected)"]
    assert [text.strip().removesuffix("</s>") for _, text in texts] == ["Ceylon.", "Mud."]
    prompts = [example.ids[: int(example.loss_mask.argmax())].tolist() for example in prepared.examples]
    assert prompts[0] == prompts[1]
    assert (prepared.rendered, prepared.failed, prepared.left_out) == (1, 0, [])


def test_every_answer_of_a_rejected_side_counts_and_its_own_marks_do_not(renderer: Renderer) -> None:
    steps = [replace(BAD, content="Let me look."), Message("tool", "no tea"), replace(BAD, train=False)]
    texts = trained(renderer, prepare(renderer, pair(USER, GOOD, rejected=steps)))
    assert texts[1][1].count("Let me look.") == texts[1][1].count("Mud.") == 1
    assert "no tea" not in texts[1][1]


LONG = Message("assistant", "tea " * 400)


@pytest.mark.parametrize(
    ("messages", "rejected", "name", "rule"),
    [
        ((USER, GOOD), [], "tea", "no_pair"),
        ((USER,), [BAD], "tea", "unusable_pair"),
        ((USER, GOOD), [GOOD], "tea", "same_answers"),
        ((USER, LONG), [BAD], "tea", "too_long"),
        ((USER, GOOD), [LONG], "tea (rejected)", "too_long"),
        ((USER, replace(GOOD, train=False)), [BAD], "tea", "nothing_trained"),
        ((USER, GOOD), [Message("tool", "no tea")], "tea (rejected)", "nothing_trained"),
    ],
)
def test_a_row_without_two_sides_to_compare_is_left_out_by_name(
    renderer: Renderer, messages: tuple[Message, ...], rejected: list[Message], name: str, rule: str
) -> None:
    prepared = prepare(renderer, pair(*messages, rejected=rejected), pair(USER, GOOD, rejected=[BAD], name="kept"))
    assert left_out(prepared) == [(name, rule)]
    assert [example.name for example in prepared.examples] == ["kept", "kept (rejected)"]


def test_the_choices_about_reasoning_apply_to_both_sides(tokenizer: Any) -> None:
    thought = [replace(message, reasoning=f"Hm {message.content}") for message in (GOOD, BAD)]
    texts = {}
    for reasoning in ("train", "mask", "drop"):
        renderer = make_renderer("x", tokenizer, chat_template=THINKS, choices=Choices(reasoning))
        prepared = prepare(renderer, pair(USER, thought[0], USER, thought[0], rejected=[thought[1]]))
        assert not prepared.left_out, prepared.left_out
        texts[reasoning] = ["Hm" in text for _, text in trained(renderer, prepared)]
        whole = [tokenizer.decode(example.ids.tolist()) for example in prepared.examples]
        assert ["Hm" in text for text in whole] == [reasoning != "drop"] * 2
    assert texts == {"train": [True, True], "mask": [False, False], "drop": [False, False]}


def test_tools_that_the_template_hides_leave_both_sides_out(renderer: Renderer) -> None:
    definitions = '[{"type": "function", "function": {"name": "brew", "parameters": {}}}]'
    call = replace(BAD, tool_calls='[{"function": {"name": "brew", "arguments": "{}"}}]')
    row = pair(*with_tools([USER, GOOD], definitions), rejected=with_tools([call], definitions))
    assert left_out(prepare(renderer, row)) == [("tea", "hidden_tools")]


def test_splitting_again_keeps_the_rejected_answer_beside_the_last_one(renderer: Renderer) -> None:
    talk = [message for number in range(6) for message in (replace(USER, content=f"Tea {number}?"), GOOD)]
    row = pair(*talk, rejected=[BAD])
    prepared = ExamplePreparer(renderer, 220, ("window 400 → 220",), pairs=True).prepare([[row]])
    assert [example.name.removesuffix(" (rejected)") for example in prepared.examples] == [
        prepared.examples[0].name
    ] * 2
    assert {rule for _, rule in left_out(prepared)} == {"no_pair"}
    assert "Tea 5?" in renderer.tokenizer.decode(prepared.examples[0].ids.tolist())


def test_a_template_that_refuses_one_side_leaves_the_pair_out(tokenizer: Any) -> None:
    refuses = (
        "{% for m in messages %}{% if 'Mud' in m.content %}{{ raise_exception('no') }}{% endif %}{% endfor %}" + THINKS
    )
    prepared = prepare(make_renderer("x", tokenizer, chat_template=refuses), pair(USER, GOOD, rejected=[BAD]))
    assert left_out(prepared) == [("tea (rejected)", "template_refuses")]
    assert (prepared.rendered, prepared.failed) == (1, 1)
