"""`curate serve`: what it refuses before it loads a model, and the real process."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from click.testing import CliRunner, Result

from curate.cli import cli
from curate.errors import InputError, install_command
from curate.serving import models, server
from curate.serving.access import Address
from tests.support import served, tiny_runs

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # what peft asks
FIRST, ANSWER, *_ = (message.content for message in tiny_runs.TALK)
ASK: Any = [{"role": "user", "content": FIRST}]


def call(*arguments: object, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(cli, ["serve", *map(str, arguments)])


def refused(result: Result, match: str) -> None:
    assert result.exit_code == 1, result.output
    assert re.search(match, result.stderr), result.stderr
    assert result.stderr.count("\n") == 1


# ---- before a model is loaded


def test_an_address_that_others_reach_needs_a_token() -> None:
    refused(
        call("x", "--host", "0.0.0.0"), "other machines can reach 0.0.0.0, so a token is needed: put one into CURATE_"
    )
    refused(call("x", "--host", "0.0.0.0", "--token-env", "MINE", CURATE_SERVE_TOKEN="t"), "into MINE, and send it")
    refused(call("x", CURATE_SERVE_TOKEN="two words"), "the token in CURATE_SERVE_TOKEN has blanks")
    access = Address("0.0.0.0", 1, "t", "T").access
    assert (access.token, access.hosts) == ("t", ())
    for host in ("127.0.0.1", "127.8.8.8", "localhost", "::1"):
        assert Address(host, 1, None, "T").access.token is None
    for host in ("0.0.0.0", "::", "example.org", "127.evil.example", ""):
        with pytest.raises(InputError, match="needed"):
            assert Address(host, 1, None, "T").access


def test_a_port_that_is_taken_is_told_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(call("x", "--port", port), f"cannot serve on 127.0.0.1, port {port}: .*; give another port: --port")
    with pytest.raises(InputError, match="give another address: --host"):
        server.bind("no.such.name.invalid", 0)


def test_models_have_the_names_of_their_folders_or_those_given(tmp_path: Path) -> None:
    run = tmp_path / "first"
    for part in ("adapter", "model"):
        (run / part).mkdir(parents=True)
    (run / "config.toml").touch()
    (tmp_path / "small.Q4.gguf").touch()
    (tmp_path / "a=b").mkdir()
    assert models.default_name(str(run)) == models.default_name(f"{run}/") == "first"
    assert models.default_name(str(run / "adapter")) == "first"
    assert models.default_name(str(tmp_path / "small.Q4.gguf")) == "small.Q4"
    assert models.default_name("org/name") == "org/name"
    assert models.read_names(["x=org/name", str(tmp_path / "a=b")]) == {"x": "org/name", "a=b": str(tmp_path / "a=b")}
    refused(call(run, run / "model"), "two models would be named 'first'; name one of them: OTHER=")
    refused(call("=x", "--port", 0), "neither MODEL nor NAME=MODEL")
    refused(call("a/b", "c/d", "--base", "x", "--port", 0), "--base is for one adapter")
    refused(call(tmp_path / "a=b", "--port", 0), "neither a model, an adapter nor a run")


# ---- the process


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_runs.run(tmp_path_factory.mktemp("full")), tiny_runs.run(tmp_path_factory.mktemp("lora"), "lora")


@pytest.fixture
def process(folders: tuple[Path, Path], tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """Serve a run and an adapter; yield the process, its URL and its log."""
    full, lora = folders
    log = tmp_path / "log"
    running = served.start([f"full={full}", f"lora={lora}"], log, CURATE_SERVE_TOKEN="planted-token")
    until, found = time.monotonic() + 120, None
    while not found and running.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
        found = re.search(r"serving at (\S+)/v1 with a token", log.read_text())
    assert found, log.read_text()
    try:
        yield running, found[1], log
    finally:
        running.kill()
        running.wait()


@pytest.mark.slow
def test_a_run_and_an_adapter_are_served_until_a_signal(process: tuple[subprocess.Popen[bytes], str, Path]) -> None:
    running, url, log = process
    with openai.OpenAI(base_url=f"{url}/v1", api_key="planted-token", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["full", "lora"]
        for name in ("full", "lora"):
            answer = client.chat.completions.create(model=name, messages=ASK, temperature=0)
            assert answer.choices[0].message.content == ANSWER
        prompt = "x " * 50
        stream = client.completions.create(
            model="full", prompt=prompt, temperature=2, seed=1, max_tokens=300, stream=True
        )
        next(stream)
        running.send_signal(signal.SIGTERM)
        *_, last = stream  # the answer that was under way is finished
        assert last.choices[0].finish_reason in ("stop", "length")
        assert running.wait(60) == 0
        with pytest.raises(openai.APIConnectionError):
            client.models.list()
    text = log.read_text()
    assert text.endswith("stopped\n")
    assert "planted-token" not in text and FIRST not in text and "half past" not in text
    assert "Traceback" not in text


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("curate.serving.run", "curate.serving.app"):
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    result = call("x")
    refused(result, "")
    assert result.stderr == f"error: curate serve needs the extra [serve]: {install_command('serve')}\n"
