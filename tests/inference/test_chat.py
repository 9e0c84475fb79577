"""`curate chat`: a model answers as it was trained, in one turn or several, in a terminal or a pipe."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import peft
import pytest
from click.testing import CliRunner, Result

import curate
from curate.cli import cli
from curate.errors import CurateError, InputError, ModelError, install_command
from curate.inference.chat import Chat
from curate.inference.sampling import Sampling
from curate.model import artifact, serving
from curate.schemas.conversation import Message
from curate.schemas.reading.tool_calls import find_calls
from curate.tokenization.tokenizer import load_tokenizer
from tests.support import tiny_runs
from tests.support.tiny_tokenizers import folder, tiktoken_file

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # what peft asks
FIRST_PROMPT, FIRST_ANSWER, SECOND_PROMPT, SECOND_ANSWER = (message.content for message in tiny_runs.TALK)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_runs.run(tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_runs.run(tmp_path_factory.mktemp("lora"), "lora")


def call(*arguments: Any, text: str | None = None) -> Result:
    return CliRunner().invoke(cli, ["chat", *map(str, arguments)], input=text)


@pytest.mark.parametrize("form", ["run", "folder"])
def test_a_model_gives_its_trained_answer_and_stops(run: Path, form: str) -> None:
    result = call(run if form == "run" else run / "model", "--prompt", FIRST_PROMPT, "--temperature", "0")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{FIRST_ANSWER}\n"
    assert result.stderr == ""


def test_an_adapter_finds_its_base_and_can_be_disabled(adapter: Path) -> None:
    opened = curate.chat(str(adapter), temperature=0.0, max_new_tokens=20)
    assert str(opened.artifact).startswith(
        f"lora adapter '{adapter / 'adapter'}' on its base '{adapter.parent / 'base'}'"
    )
    assert opened.ask(FIRST_PROMPT) == FIRST_ANSWER
    opened.reset()
    opened.as_base = True
    assert opened.ask(FIRST_PROMPT) != FIRST_ANSWER
    opened.as_base = False
    opened.reset()
    assert opened.ask(FIRST_PROMPT) == FIRST_ANSWER


def test_a_conversation_continues_over_several_turns(run: Path) -> None:
    result = call(run, "--prompt", FIRST_PROMPT, "--prompt", SECOND_PROMPT, "--temperature", "0")
    assert result.stdout == f"{FIRST_ANSWER}\n{SECOND_ANSWER}\n"


def test_a_pipe_is_one_prompt_and_an_empty_one_is_refused(run: Path) -> None:
    assert call(run, "--temperature", "0", text=f"{FIRST_PROMPT}\n").stdout == f"{FIRST_ANSWER}\n"
    result = call(run, text=" \n")
    assert result.exit_code == 2
    assert "no prompt: pipe" in result.stderr


def test_the_prompt_has_the_ids_of_training(run: Path) -> None:
    opened = curate.chat(str(run))
    renderer = artifact.renderer_for(opened.serving)
    opened.messages = list(tiny_runs.TALK[:2])
    ids, left_out = opened._prompt(tiny_runs.TALK[:3])
    training_ids = renderer.render([tiny_runs.TALK])[0].ids.tolist()
    assert left_out == 0
    assert training_ids[: len(ids)] == ids
    opened.system = "Speak briefly."
    rendered = renderer.render([[Message("system", "Speak briefly."), *tiny_runs.TALK]])[0].ids.tolist()
    ids, _ = opened._prompt(tiny_runs.TALK[:1])
    assert rendered[: len(ids)] == ids


def test_a_seed_gives_the_same_answer_again(run: Path) -> None:
    answers = [call(run, "--prompt", "?", "--seed", 5, "--temperature", 2, "--max-new-tokens", 8).stdout for _ in "ab"]
    assert answers[0] == answers[1]
    assert call(run, "--prompt", "?", "--seed", 6, "--temperature", 2, "--max-new-tokens", 8).stdout != answers[0]


def test_a_cut_answer_is_reported_on_stderr(run: Path) -> None:
    result = call(run, "--prompt", FIRST_PROMPT, "--temperature", 0, "--max-new-tokens", 3)
    assert "cut off after 3 tokens" in result.stderr
    assert FIRST_ANSWER.startswith(result.stdout.strip())


def test_the_oldest_exchanges_are_dropped_when_the_window_is_full(run: Path) -> None:
    opened = curate.chat(str(run), temperature=0.0, max_new_tokens=8)
    opened.window = 250
    for _ in range(6):
        opened.ask(FIRST_PROMPT)
    assert opened.last is not None
    assert opened.last.left_out > 0
    assert len(opened.messages) == 12, "nothing is forgotten, it is only not sent"
    with pytest.raises(InputError, match=r"tokens, too many for the model's window of 250"):
        opened.ask("word " * 200)


def test_an_answer_that_the_caller_stops_early_is_kept(run: Path) -> None:
    opened = curate.chat(str(run), temperature=0.0)
    answer = opened.stream(FIRST_PROMPT)
    assert isinstance(answer, Generator)
    first = next(part for part in answer if part)
    answer.close()
    assert opened.messages[-1] == Message("assistant", first)
    assert opened.last is not None
    assert not opened.last.stopped


# ---- another base


def test_another_base_of_the_same_shape_is_refused_by_name(adapter: Path, tmp_path: Path) -> None:
    other = tiny_runs.other_base(tmp_path)
    match = (
        r"base' of the adapter '.*adapter': .*other weights \(.*\); give .*--base FOLDER, or use this one: --other-base"
    )
    for command in (curate.chat, lambda name, **more: curate.merge(name, tmp_path / "out", **more)):
        with pytest.raises(ModelError, match=match) as caught:
            command(str(adapter), base=str(other))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    same = tmp_path / "copy"
    shutil.copytree(adapter.parent / "base", same)  # another folder with the same weights
    said = call(adapter, "--base", same, "--prompt", FIRST_PROMPT, "--temperature", 0)
    assert (said.stdout, said.stderr) == (f"{FIRST_ANSWER}\n", "")
    said = call(adapter, "--base", other, "--other-base", "--prompt", "?", "--max-new-tokens", 1)
    assert said.exit_code == 0
    assert "other weights" in said.stderr and "used all the same" in said.stderr


def test_an_adapter_without_a_fingerprint_gets_a_warning(adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter.parent, tmp_path / "old")
    file = tmp_path / "old" / "run" / "adapter" / serving.NOTE
    values = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in values.items() if key not in ("fingerprint", "window")}))
    said = call(tmp_path / "old" / "run", "--prompt", FIRST_PROMPT, "--temperature", "0")
    assert said.stdout == f"{FIRST_ANSWER}\n"
    assert "does not record on which weights it was trained" in said.stderr


# ---- not a model


def refused(name: object, match: str, **settings: Any) -> None:
    with pytest.raises(CurateError, match=match) as caught:
        curate.chat(str(name), **settings)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_not_a_model_gets_one_clear_line(run: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    (tmp_path / "begun" / "config.toml").touch()
    refused(tmp_path / "begun", r"has no result yet; continue it: curate finetune --resume")
    checkpoint = tmp_path / "begun" / "checkpoints" / "step-000001"
    checkpoint.mkdir()
    (checkpoint / "manifest.json").touch()
    (checkpoint / "state.json").touch()
    refused(checkpoint, rf"is a checkpoint; continue its run: curate finetune --resume {tmp_path / 'begun'}$")
    refused(tmp_path, "neither a model, an adapter nor a run")
    refused(run / "modle", r"did you mean 'model'\?")
    refused(run / "model" / "config.json", "is a file")
    refused(run, "is a model, not an adapter; leave out --base", base=str(adapter))
    refused(run, "device 'tpu9'", device="tpu9")
    refused(run, "temperature = -1", temperature=-1.0)
    refused(run, "unknown template 'vicunna'; did you mean 'vicuna'", template="vicunna")


def test_a_foreign_adapter_uses_the_template_of_its_base(adapter: Path, tmp_path: Path) -> None:
    """The folder is as peft writes it, without tokenizer and note; its base has both."""
    model = tiny_runs.base()
    tuned = peft.get_peft_model(model, tiny_runs.ADAPTERS["lora"]())
    tuned.peft_config["default"].base_model_name_or_path = str(adapter.parent / "base")
    tuned.save_pretrained(str(tmp_path / "a"), save_embedding_layers=False)
    opened = curate.chat(str(tmp_path / "a"), max_new_tokens=2)
    assert (opened.serving.template, opened.has_adapter) == ("vicuna", True)
    assert str(opened.artifact).startswith("lora adapter")
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": None}))
    refused(tmp_path / "a", "does not name its base; give it: --base")
    assert curate.chat(str(tmp_path / "a"), base=str(adapter.parent / "base")).has_adapter


def test_an_adapter_that_does_not_fit_gets_one_clear_line(adapter: Path, tmp_path: Path) -> None:
    wider = tiny_runs.base(hidden_size=32)
    wider.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", serving.NOTE):
        (tmp_path / name).write_bytes((adapter.parent / "base" / name).read_bytes())
    refused(adapter, "hidden_size is 32, not 64", base=str(tmp_path))
    refused(adapter, "does not fit its base: size mismatch", base=str(tmp_path), other_base=True)


# ---- at a terminal


def at_a_terminal(run: Path, typed: list[str]) -> str:
    """Run the command in a pseudo-terminal, type a line at each prompt, and return the output."""
    main, side = pty.openpty()
    command = [sys.executable, "-m", "curate", "chat", str(run), "--temperature", "0", "--max-new-tokens", "20"]
    env = {**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=env, start_new_session=True)
    os.close(side)
    shown, waiting, until = "", list(typed), time.monotonic() + 120
    while time.monotonic() < until:
        ready, _, _ = select.select([main], [], [], 1)
        try:
            shown += os.read(main, 4096).decode("utf-8", "replace") if ready else ""
        except OSError:  # the other side is closed: the program has ended
            break
        if waiting and shown.count("> ") > len(typed) - len(waiting):
            os.write(main, waiting.pop(0).encode() + b"\n")
    process.wait(10)
    os.close(main)
    assert process.returncode == 0, shown
    return shown


@pytest.mark.slow
def test_a_terminal_session_can_talk_reset_and_quit(adapter: Path) -> None:
    shown = at_a_terminal(adapter, [FIRST_PROMPT, SECOND_PROMPT, "/reset", "/base", FIRST_PROMPT, "/nope", "/quit"])
    assert "lora adapter" in shown
    assert shown.count(FIRST_ANSWER) == 1, "the base has not learnt it"
    assert SECOND_ANSWER.split(";")[0] in shown
    assert "(new conversation)" in shown
    assert "(adapter off)" in shown
    assert "no command /nope" in shown


def test_without_the_training_extra_the_error_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "curate", "chat", "x"], capture_output=True, text=True, env=env, input="a"
    )
    assert done.returncode == 1
    assert done.stderr == f"error: curate chat needs the extra [train]: {install_command('train')}\n"


def test_chat_errors_are_curate_errors() -> None:
    assert issubclass(ModelError, CurateError)


# ---- tools

DEFINITIONS = [{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}]
CALLED = '{"name": "f", "arguments": {"x": 1}}'


@pytest.mark.parametrize(
    ("answer", "content", "names"),
    [
        ('{"name": "f", "parameters": {"x": 1}}', "", ["f"]),  # LLaMA-3.1
        (f"I look.\n{CALLED}", "I look.", ["f"]),
        (f"<|python_tag|>{CALLED}", "", ["f"]),
        (f"[TOOL_CALLS] [{CALLED}, {CALLED}]", "", ["f", "f"]),  # Mistral
        (f"Yes.\n<tool_call>\n{CALLED}\n</tool_call>", "Yes.", ["f"]),  # Hermes, Qwen
        ('{"temperature": 3}', '{"temperature": 3}', []),
        (f"{CALLED}\nand so on", f"{CALLED}\nand so on", []),
        ("[1, 2]", "[1, 2]", []),
    ],
)
def test_the_calls_of_an_answer_are_found(answer: str, content: str, names: list[str]) -> None:
    text, calls = find_calls(answer)
    assert text == content
    assert [value["function"]["name"] for value in json.loads(calls or "[]")] == names
    assert all(json.loads(value["function"]["arguments"]) == {"x": 1} for value in json.loads(calls or "[]"))


def test_definitions_are_in_the_prompt_and_a_result_answers_its_call(tmp_path: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_tokenizer(str(folder(tmp_path / "t", tokenizer_model=tiktoken_file())))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.info.vocab_size, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=4096,
    )  # fmt: skip
    prompt_format = serving.from_template(tokenizer, "llama3.1")
    sampling = Sampling(temperature=0, max_new_tokens=3)
    chat = Chat(LlamaForCausalLM(config), prompt_format, tools=json.dumps(DEFINITIONS), sampling=sampling)
    with pytest.raises(InputError, match="calls no tool"):
        list(chat.stream_result("7"))
    question, called = Message("user", "x?"), chat._read_answer(f"I look.\n{CALLED}")
    chat.messages = [question, called]
    assert [(call.name, call.arguments) for call in chat.open_calls] == [("f", '{"x":1}')]
    list(chat.stream_result("7"))
    assert (chat.open_calls, chat.messages[2].tool_call_id) == ([], json.loads(called.tool_calls or "")[0]["id"])
    prompt = tokenizer.decode(chat._prompt(chat.messages[:3])[0])
    assert '"name": "f"' in prompt.partition("x?")[0]
    assert prompt.endswith(
        'x?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nI look.\n{"name": "f", "parameters": {"x": 1}}'
        '<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n"7"<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_tools_that_cannot_be_shown_or_read_are_refused(run: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "tools.json", tmp_path / "bad.json"
    good.write_text(json.dumps(DEFINITIONS))
    bad.write_text('["f"]')
    for file, match in (
        (good, "shows no tools"),
        (bad, "no definitions"),
        (tmp_path / "none", "cannot read the tools"),
    ):
        result = call(run, "--tools", file, "--prompt", "x")
        assert result.exit_code == 1
        assert match in result.stderr
