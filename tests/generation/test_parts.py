"""Parts of generation: similarity, Alpaca's rules, reading of replies, templates, files of prompts, the live view."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rapidfuzz")

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from curate.cli.progress.generate import progress_line, render_state
from curate.client.exchange import Reply, Request
from curate.errors import InputError
from curate.generation import inputs, wording
from curate.generation.raw_prompt import find_raw_prompt
from curate.generation.run import State
from curate.generation.self_instruct import SelfInstruct, check_instruction
from curate.generation.similarity import SimilarTexts, words
from curate.generation.steps import Asker, Drop, Prompt, Sampling

TEXTS = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f"]), max_size=9).map(" ".join)


def lcs(first: list[str], second: list[str]) -> int:
    row = [0] * (len(second) + 1)
    for one in first:
        previous = 0
        for place, other in enumerate(second, 1):
            previous, row[place] = row[place], previous + 1 if one == other else max(row[place], row[place - 1])
    return row[-1]


@settings(max_examples=60)
@given(st.lists(TEXTS, max_size=8), TEXTS, st.sampled_from([0.3, 0.5, 0.7, 0.9]), st.sets(st.sampled_from("0123")))
def test_the_nearest_text_is_that_of_the_definition(
    texts: list[str], new: str, limit: float, ignored: set[str]
) -> None:
    similar = SimilarTexts(limit)
    scores = {}
    for number, text in enumerate(texts):
        similar.add(str(number), text)
        total = len(text.split()) + len(new.split())
        score = 2 * lcs(text.split(), new.split()) / total if total else 0.0
        if score > limit and str(number) not in ignored:
            scores[str(number)] = score
        assert similar.score(text, new) == pytest.approx(score if total else 1.0)
    near = similar.nearest(new, ignored)
    assert (near is None) == (not scores)
    if near is not None:
        assert near.score == scores[near.name] == max(scores.values())


def test_words_are_those_of_all_scripts() -> None:
    assert words("Don't stop, Größe_2!") == ["don", "t", "stop", "größe", "2"]
    assert words("写一首诗 about 月亮") == ["写", "一", "首", "诗", "about", "月", "亮"]
    assert words("...") == [] and len(words("ab中cd")) == 3


@pytest.mark.parametrize(
    ("instruction", "language", "rule"),
    [
        ("Name three rivers in Europe", "en", None),
        ("Name three rivers", "en", "words"),
        ("word " * 151, "en", "words"),
        ("word " * 150, "en", None),
        ("Draw a house with two windows", "en", "not_text"),
        ("Write about the file system of a drawer", "en", "not_text"),
        ("Write a short text about drawers and profiles", "en", None),
        ("Write a program that adds two numbers", "en", "start"),
        ("- Name three rivers in Europe", "en", "first_letter"),
        ("Élaborate on the rivers of Europe", "en", "first_letter"),
        ("Écris une phrase sur la mer", "fr", None),
        ("¿Cuáles son los ríos de Europa?", "es", None),
        ("Zeichne ein Haus mit zwei Fenstern", "de", "not_text"),
        ("写一首关于月亮的诗", "zh", None),
        ("请画一只可爱的猫", "zh", "not_text"),
        ("写诗", "zh", "words"),
        ("Describe the image to a friend of yours", "", "not_text"),
    ],
)
def test_alpacas_rules(instruction: str, language: str, rule: str | None) -> None:
    found = check_instruction(instruction, language)
    assert (found[0] if found else None) == rule


@pytest.mark.parametrize("language", wording.wording()["languages"])
def test_our_own_seeds_pass_the_rules_and_are_unlike_each_other(language: str) -> None:
    tasks = inputs.read_tasks(wording.seeds_text(language), language, language)
    prompts, answers = SimilarTexts(0.7), SimilarTexts(0.7)
    for task in tasks:
        assert check_instruction(task.instruction, language) is None, task.instruction
        assert prompts.nearest(task.instruction) is None, task.instruction
        assert answers.nearest(task.output) is None, task.output
        prompts.add(task.name, task.instruction)
        answers.add(task.name, task.output)
        assert 0 < len(task.output) <= 600 and len(task.instruction) <= 200 and len(task.input) <= 300, task.name
    with_input = sum(bool(task.input) for task in tasks)
    assert len(tasks) >= 40 and 15 <= with_input <= len(tasks) - 15
    long = 50 if language == "zh" else 150
    assert sum(len(task.output) > long for task in tasks) >= 6  # not one-liners alone
    openings = Counter(words(task.instruction)[0] for task in tasks)
    assert max(openings.values()) <= 6, openings.most_common(3)
    assert [task.name for task in tasks] == [f"seed-{language}-{number:02}" for number in range(len(tasks))]


def read(text: str, finish: str = "stop") -> list[Prompt | Drop]:
    seeds = {"en": inputs.read_tasks(wording.seeds_text("en"), "en", "en")}
    method = SelfInstruct(Asker("m", 0), seeds, Sampling(1.0, 1.0, 100))
    return list(method.read(method.next(), Reply(text, finish)))


GOOD = "Instruction: Name a river.\nInput: <none>\nOutput: The Rhine.\nIt is long."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"### 4\n{GOOD}\n### 5\n{GOOD}", ["The Rhine.\nIt is long."] * 2),
        (f"###\n{GOOD}\n###\n", ["The Rhine.\nIt is long."]),
        ("### 4\n**Instruction:** A b\n**Input:** c d\n**Output:** e", ["e"]),
        ("### 4\n1. instruction: A b\noutput: e", ["e"]),
        ("### 4\nInstruction: A\nInput: \nOutput: x\nInput: y\nOutput: z", ["x\nInput: y\nOutput: z"]),
        ("Sure, here are the tasks!\n### 4\n" + GOOD, ["malformed", "The Rhine.\nIt is long."]),
        ("### 4\nInstruction: A\nInput: b", ["malformed"]),
        ("### 4\nOutput: A\nInstruction: b", ["malformed"]),
        ("### 4\nInstruction: \nOutput: b", ["malformed"]),
        ("### 4\nInstruction: A\nOutput:", ["malformed"]),
        ("I cannot help with that.", ["malformed"]),
        ("###", []),
    ],
)
def test_a_reply_is_read_into_tasks(text: str, expected: list[str]) -> None:
    assert [each.rule if isinstance(each, Drop) else each.answer for each in read(text)] == expected


def test_the_last_task_of_a_cut_reply_is_dropped() -> None:
    found = read(f"### 4\n{GOOD}\n### 5\n{GOOD}", "length")
    assert isinstance(found[0], Prompt) and isinstance(found[1], Drop) and found[1].rule == "cut_off"
    assert "The Rhine" in found[1].text


def test_the_prompt_shows_tasks_of_one_language_and_later_one_that_was_generated() -> None:
    seeds = {code: inputs.read_tasks(wording.seeds_text(code), code, code) for code in ("de", "zh")}
    method = SelfInstruct(Asker("m", 0), seeds, Sampling(1.0, 1.0, 100))
    first, second = (method.next().request.body["messages"][0]["content"] for _ in range(2))
    assert "in German" in first and "in Chinese" in second and "tasks 4 to 20" in first
    assert first.count("Instruction: ") == 3
    method.accept(Prompt("Frage\n\nText", "Frage", "x", language="de", answer="Antwort"), "made-1")
    third = method.next().request.body["messages"][0]["content"]
    assert "Instruction: Frage\nInput: Text\nOutput: Antwort" in third and third.count("Instruction: ") == 3


@pytest.mark.parametrize(
    ("template", "text", "stop"),
    [
        ("chatml", "<|im_start|>user\n", "<|im_end|>"),
        ("llama3", "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
        ("llama2", "[INST] ", "[/INST]"),
        ("vicuna", "USER: ", "ASSISTANT:"),
        ("alpaca", "### Instruction:\n", "### Response:"),
        ("llama3.1", "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
    ],
)
def test_the_raw_prompt_of_a_template_ends_where_the_user_begins(template: str, text: str, stop: str) -> None:
    if template == "llama3.1":
        pytest.importorskip("jinja2")
    raw = find_raw_prompt(template)
    assert raw.text.endswith(text) and raw.stops == (stop,)
    assert "<s>" not in raw.text and "Be kind." in find_raw_prompt(template, "Be kind.").text


def test_the_raw_prompt_of_a_jinja_file_and_of_a_models_folder(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    jinja = "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}<|assistant|>\n"
    (tmp_path / "chat_template.jinja").write_text(jinja)
    for template in (tmp_path, tmp_path / "chat_template.jinja"):
        raw = find_raw_prompt(str(template))
        assert (raw.text, raw.stops) == ("<|user|>\n", ("</s>",))
    (tmp_path / "bad.jinja").write_text("{{ raise_exception('no') }}")
    with pytest.raises(InputError, match="fails on a single message"):
        find_raw_prompt(str(tmp_path / "bad.jinja"))
    (tmp_path / "mute.jinja").write_text("<|user|>")
    with pytest.raises(InputError, match="where the user's text begins"):
        find_raw_prompt(str(tmp_path / "mute.jinja"))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("p.txt", "One?\n\n Two? \n", ["One?", "Two?"]),
        ("p.md", "[1, 2]\n", ["[1, 2]"]),
        ("p.json", '["One?", {"prompt": "Two?"}]', ["One?", "Two?"]),
        ("p.jsonl", '"One?"\n{"instruction": "Two", "input": "x", "output": "y"}\n', ["One?", "Two\n\nx"]),
        ("p.jsonl", '{"conversations": [{"from": "human", "value": "One?"}, {"from": "gpt", "value": "x"}]}', ["One?"]),
        ("p.jsonl", '{"messages": [{"role": "assistant", "content": "x"}]}\n"Two?"', [None, "Two?"]),
        ("p.jsonl", '{"instruction": "One", "instances": [{"input": "", "output": "y"}]}', ["One"]),
        ("p.jsonl", 'null\n7\n{"prompt": ""}\n"Two?"', [None, None, None, "Two?"]),
    ],
)
def test_prompts_are_read_from_many_kinds_of_files(name: str, text: str, expected: list[str | None]) -> None:
    found = inputs.read_prompts(text, name)
    assert [each.text if isinstance(each, Prompt) else None for each in found] == expected


@pytest.mark.parametrize("text", ["", "\n\n", "{", "[" * 5000, '{"a": 1}', "[]"])
def test_a_file_without_prompts_is_one_line(text: str) -> None:
    with pytest.raises(InputError) as caught:
        inputs.read_prompts(text, "p.jsonl")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line",
    ['{"instruction": "x"}', '{"instruction": "", "output": "y"}', "5", '{"instruction": "x", "instances": []}'],
)
def test_seeds_that_are_none_are_named(line: str) -> None:
    good = json.dumps({"instruction": "x", "instances": [{"input": None, "output": "y"}]})
    assert inputs.read_tasks(good, "s")[0].prompt == "x"
    with pytest.raises(InputError, match="s, task 2: no instruction with an output"):
        inputs.read_tasks(f"{good}\n{line}", "s")


def test_the_live_view_shows_hostile_text_as_text() -> None:
    state = State(100, accepted=5, calls=7, tokens=900, replies=7)
    state.dropped.update({"similar": 3, "words": 1})
    state.prompt, state.answer = "\x1b[31mred\x1b]0;title\x07 \u202e[bold]x[/bold]", "line\r" * 400
    out = io.StringIO()
    Console(file=out, width=70, force_terminal=False).print(render_state(state))
    shown = out.getvalue()
    assert not any(character in shown for character in "\x1b\x07\r\u202e")
    assert "5 of 100 conversations · dropped: similar 3, words 1" in shown
    assert "[bold]x[/bold]" in shown and "…" in shown
    assert progress_line(state).startswith("5 of 100 conversations · dropped: similar 3, words 1 · 7 calls, 900 tokens")


def test_the_seed_of_a_request_depends_on_its_key_only() -> None:
    asker, sampling = Asker("m", 5), Sampling(1.0, 1.0, 10)

    def body(request: Request) -> Any:
        return request.body["seed"]

    assert body(asker.chat("a", [], sampling)) == body(asker.complete("a", "x", (), sampling))
    assert body(asker.chat("a", [], sampling)) != body(asker.chat("b", [], sampling))
