"""A server of a tiny model in a thread of the test, over real HTTP; and `curate serve` as a process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from curate.inference.chat import Chat
from curate.model import serving as formats
from curate.model.artifact import renderer_for
from curate.schemas.conversation import Message, with_tools
from curate.serving import server
from curate.serving.access import Access
from curate.serving.app import make_app
from curate.serving.models import Limits, ServedModel
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer
from tests.support import ROOT, tiny_runs
from tests.support.tiny_tokenizers import folder, tiktoken_file

TOOLS = '[{"type": "function", "function": {"name": "clock", "description": "", "parameters": {}}}]'
CALL = '[{"id": "call00000", "type": "function", "function": {"name": "clock", "arguments": "{\\"zone\\":9}"}}]'
CALLED = [  # a conversation with a call, which the model knows by heart, like `tiny_runs.TALK`
    Message("user", "Clock?"),
    Message("assistant", "", tool_calls=CALL),
    Message("tool", "noon", tool_call_id="call00000"),
    Message("assistant", "It is noon."),
]


def talker(root: Path) -> Chat:
    """Return a model with LLaMA-3.1's template that knows two conversations by heart, one with tools."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = load_tokenizer(str(folder(root / "tokenizer", tokenizer_model=tiktoken_file())))
    config = LlamaConfig(
        vocab_size=tokenizer.info.vocab_size, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.2,
    )  # fmt: skip
    model, prompt_format = LlamaForCausalLM(config), formats.from_template(tokenizer, "llama3.1")
    talks = [tiny_runs.TALK, with_tools(CALLED, TOOLS)]
    tiny_runs.learn(model, renderer_for(prompt_format), 40, talks)
    model.set_attn_implementation("sdpa")  # the kernel of training reads packed rows
    return Chat(model, prompt_format)


def untrained(tokenizer: Tokenizer, template: str) -> Chat:
    """Return a model with random weights."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.info.vocab_size + 5, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=2048, initializer_range=0.3,
    )  # fmt: skip
    return Chat(LlamaForCausalLM(config), formats.from_template(tokenizer, template))


@contextmanager
def serving(
    opened: Mapping[str, Chat], *, access: Access | None = None, limits: Limits | None = None
) -> Iterator[tuple[str, Mapping[str, ServedModel], list[str]]]:
    """Serve models in a thread; yield the URL, the models and the log."""
    limits = limits or Limits(rows=4, waiting=8, new_tokens=600)
    models = {name: ServedModel(name, chat, limits) for name, chat in opened.items()}
    log: list[str] = []
    bound, ready = server.bind("127.0.0.1", 0), threading.Event()
    running = server.make_server(make_app(models, access or Access(), log.append), ready.set)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield server.url(bound), models, log
    finally:
        running.should_exit = True
        thread.join(30)
        for model in models.values():
            model.worker.stop()


def start(arguments: Sequence[object], log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Start `curate serve` with a free port; its output goes to a file."""
    command = [sys.executable, "-m", "curate", "serve", *map(str, arguments), "--port", "0"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=env, cwd=log.parent)
