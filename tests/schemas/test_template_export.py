"""Exported templates give the same text and ids on a server as in training."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from curate.schemas import prompts, template_export
from curate.schemas.conversation import Message, Role
from curate.schemas.prompts import TEMPLATES

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
CONTROL_STRINGS = {"<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}
FITTED = {
    **{name: prompts.fit(template, {"bos", "eos", *CONTROL_STRINGS}) for name, template in TEMPLATES.items()},
    "chatml as text": prompts.fit(TEMPLATES["chatml"], {"bos", "eos"}),
    "llama2 without bos": prompts.fit(TEMPLATES["llama2"], {"eos"}),
}


def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def environment(*, blocks: bool) -> ImmutableSandboxedEnvironment:
    """Return a Jinja environment set up as in transformers (`blocks`) or as in other engines."""
    jinja = ImmutableSandboxedEnvironment(trim_blocks=blocks, lstrip_blocks=blocks)
    jinja.globals["raise_exception"] = raise_exception
    return jinja


COMPILED = {
    (name, blocks): environment(blocks=blocks).from_string(template_export.jinja(template))
    for name, template in FITTED.items()
    for blocks in (True, False)
}


def plain(messages: list[Message]) -> list[dict[str, Any]]:
    """Return messages as a caller of a chat API passes them."""
    return [
        {
            "role": message.role,
            "content": message.content,
            **({"tool_calls": message.tool_calls} if message.tool_calls else {}),
        }
        for message in messages
    ]


def rendered(name: str, messages: list[Message], *, blocks: bool = True, generate: bool = False) -> str:
    return COMPILED[name, blocks].render(messages=plain(messages), add_generation_prompt=generate, **NAMES)


def written(segments: list[prompts.Segment]) -> str:
    names = {"bos": "<s>", "eos": "</s>"}
    return "".join(
        names.get(segment.control, segment.control) if segment.control else segment.text for segment in segments
    )


CONTENT = st.text(alphabet=st.sampled_from("ab \n%{}'\"\\</s>▁é漢"), max_size=12)
ROLES: list[Role] = ["system", "user", "assistant", "tool"]
CALLS = st.one_of(st.none(), st.just('[{"name": "weather", "arguments": {"at": "Köln\'s"}}]'))


def message(role: Role, content: str, calls: str | None) -> Message:
    """Return a message; an answer that began with a blank would be taken for a server's own (tested below)."""
    return Message(role, content.lstrip(" ") if role == "assistant" else content, tool_calls=calls)


MESSAGES = st.lists(st.builds(message, st.sampled_from(ROLES), CONTENT, CALLS), max_size=8)


@given(st.sampled_from(list(FITTED)), MESSAGES, st.booleans())
def test_the_jinja_template_gives_the_text_of_training(name: str, messages: list[Message], blocks: bool) -> None:
    template = FITTED[name]
    assert rendered(name, messages, blocks=blocks) == written(prompts.render(template, messages))
    prompt = rendered(name, messages, blocks=blocks, generate=True)
    assert prompt == written(prompts.generation_prompt(template, messages))


def test_an_alpaca_prompt_with_an_input_gets_the_system_line_for_it() -> None:
    messages = [Message("user", f"Add.{prompts.INPUT_MARK}1, 2"), Message("assistant", "3")]
    assert rendered("alpaca", messages) == written(prompts.render(FITTED["alpaca"], messages))
    assert "paired with an input" in rendered("alpaca", messages)


@pytest.mark.parametrize("name", FITTED)
def test_an_answer_sent_back_unchanged_continues_its_prompt(name: str) -> None:
    asked = [Message("user", "Hi!")]
    turn = FITTED[name].by_role["assistant"]
    generated = f"{turn.lead}Hello."
    history = rendered(name, [*asked, Message("assistant", generated), Message("user", "Bye?")], generate=True)
    assert history.startswith(rendered(name, asked, generate=True) + generated)


def test_tool_calls_in_api_form_are_written_as_json() -> None:
    calls = [{"name": "weather", "arguments": {"at": "Köln"}}]
    asked = {"role": "user", "content": "Weather?"}
    answer = {"role": "assistant", "content": None, "tool_calls": calls}
    text = COMPILED["vicuna", True].render(messages=[asked, answer], **NAMES)
    assert json.loads(text.rpartition("ASSISTANT: ")[2].removesuffix("</s>")) == calls


@pytest.mark.parametrize("name", FITTED)
def test_an_unknown_role_is_refused(name: str) -> None:
    with pytest.raises(jinja2.TemplateError, match="no such role in this template: critic"):
        COMPILED[name, True].render(messages=[{"role": "critic", "content": "x"}], **NAMES)


@pytest.mark.parametrize(
    ("name", "stop"),
    [("vicuna", "eos"), ("alpaca", "eos"), ("llama2", "eos"), ("llama3", "<|eot_id|>"), ("chatml", "<|im_end|>")],
)
def test_the_stop_token_is_the_token_after_an_answer_in_training(name: str, stop: str) -> None:
    assert template_export.stop_token(FITTED[name]) == stop
    assert template_export.stop_token(FITTED["chatml as text"]) == "eos"


# ---- Ollama: its server renders a Go template, run here by Go if it is installed

GO = """package main

import ("encoding/json"; "os"; "strings"; "text/template")

type Message struct { Role, Content string }
type Case struct { Template string; Messages []Message }

func main() {
	var cases []Case
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil { panic(err) }
	out := []string{}
	for _, one := range cases {
		made, err := template.New("").Parse(one.Template)
		if err != nil { panic(err) }
		var text strings.Builder
		if err := made.Execute(&text, map[string]any{"Messages": one.Messages}); err != nil { panic(err) }
		out = append(out, text.String())
	}
	json.NewEncoder(os.Stdout).Encode(out)
}
"""
ASKED = [Message("user", "Say \"a\"\\n\nto 'b'")]
ANSWERED = [*ASKED, Message("assistant", "a"), Message("user", "And?")]
TALKS = [
    ASKED,
    ANSWERED,
    [Message("system", "Be brief."), *ANSWERED],
    [*ANSWERED, Message("tool", "x"), Message("tool", "y")],
    [Message("system", ""), Message("user", ""), *ANSWERED],
]


def test_ollamas_template_gives_the_text_of_training(tmp_path: Path) -> None:
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go is not installed, and nothing else runs its templates")
    cases, expected = [], []
    for template in FITTED.values():
        text = template_export.ollama(template, "<s>", "</s>")
        for talk in TALKS:
            cases.append(
                {"Template": text, "Messages": [{"Role": message.role, "Content": message.content} for message in talk]}
            )
            expected.append(written(prompts.generation_prompt(template, talk)).removeprefix("<s>"))
    (tmp_path / "main.go").write_text(GO, "utf-8")
    environment = {**os.environ, "GOCACHE": str(tmp_path / "cache"), "GOFLAGS": "-mod=mod"}
    done = subprocess.run(
        [go, "run", "main.go"], cwd=tmp_path, env=environment, input=json.dumps(cases), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


@pytest.mark.parametrize("name", FITTED)
def test_ollamas_template_can_be_quoted_in_a_modelfile(name: str) -> None:
    assert '"""' not in template_export.ollama(FITTED[name], "<s>", "</s>")
