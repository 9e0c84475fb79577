"""Clients that send anything, do not read, or come all at once: each gets an error in OpenAI's shape, or its answer."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

import httpx
import pytest

from curate.serving.models import Limits, ServedModel
from curate.serving.requests import ChatOrder, CompletionOrder
from curate.tokenization.tokenizer import load_tokenizer
from tests.support import served
from tests.support.tiny_tokenizers import folder, sentencepiece_model

MESSAGES = [{"role": "user", "content": "x"}]
BODIES: dict[str, dict[str, Any]] = {
    "chat/completions": {"model": "m", "messages": MESSAGES, "max_tokens": 1},
    "completions": {"model": "m", "prompt": "x", "max_tokens": 1},
}
ODD: list[Any] = [True, -1, 1.5, 10**30, "", [], [{}], {"type": "function", "function": 1}]
ORDERS = {"chat/completions": ChatOrder, "completions": CompletionOrder}
BYTES = {str(3 + byte): 20.0 for byte in "й".encode()}  # the tokens of its bytes, which often make it


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Mapping[str, ServedModel]]]:
    tokenizer = load_tokenizer(str(folder(tmp_path_factory.mktemp("t"), tokenizer_model=sentencepiece_model())))
    limits = Limits(rows=4, waiting=400, new_tokens=400)
    with served.serving({"m": served.untrained(tokenizer, "vicuna")}, limits=limits) as (url, models, _):
        yield url, models


@pytest.fixture(scope="module")
def http(site: tuple[str, Any]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{site[0]}/v1/", verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), timeout=60) as client:
        yield client


def checked(response: httpx.Response) -> int:
    """Return the status of a response, which is an answer or an error in OpenAI's shape."""
    value = response.json() if "event-stream" not in response.headers["content-type"] else {"choices": []}
    assert response.status_code == 200 or set(value["error"]) == {"message", "type", "param", "code"}
    assert len(response.content) < 3000 and response.status_code < 500, response.text
    return response.status_code


@pytest.mark.parametrize("path", BODIES)
def test_any_value_of_any_field_is_used_or_refused(http: httpx.Client, path: str) -> None:
    names = [*(field.name for field in fields(ORDERS[path])), "functions", "echo", "user", "unknown"]
    statuses = {checked(http.post(path, json={**BODIES[path], name: value})) for name in names for value in ODD}
    assert statuses == {200, 400}


def test_any_value_in_a_message_is_used_or_refused(http: httpx.Client) -> None:
    keys, roles = (
        ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "audio"),
        ("assistant", "tool"),
    )
    for key in keys:
        for role in roles:
            for value in ODD:
                messages = [{"role": role, "content": "a", key: value}, *MESSAGES]
                checked(http.post("chat/completions", json={**BODIES["chat/completions"], "messages": messages}))


def streamed(http: httpx.Client, body: Mapping[str, Any]) -> tuple[list[tuple[str, str]], Any]:
    """Return text and end of each choice of a stream, and the counts."""
    texts, ends, usage = dict[int, str](), dict[int, str](), None
    sent = {**body, "stream": True, "stream_options": {"include_usage": True}}
    for line in http.post("chat/completions", json=sent).text.split("\n\n"):
        chunk = json.loads(line.removeprefix("data: ")) if line.startswith("data: {") else {"choices": []}
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            index = choice["index"]
            texts[index] = texts.get(index, "") + (choice["delta"].get("content") or "")
            ends[index] = choice["finish_reason"] or ends.get(index, "")
    return [(texts[index], ends[index]) for index in sorted(texts)], usage


@pytest.mark.parametrize("stop", [None, ["\ufffd\ufffd", "an"], ["й", "\ufffdй"]], ids=["none", "halves", "characters"])
def test_a_stream_says_what_a_whole_answer_says_whatever_its_tokens_cut(
    http: httpx.Client, stop: list[str] | None
) -> None:
    letters = 0
    for seed in range(2):
        body = {
            "stop": stop,
            **BODIES["chat/completions"],
            "seed": seed,
            "n": 2,
            "max_tokens": 24,
            "logit_bias": BYTES,
            "temperature": 2,
        }
        whole = http.post("chat/completions", json=body).json()
        expected = [(choice["message"]["content"], choice["finish_reason"]) for choice in whole["choices"]]
        assert streamed(http, body) == (expected, whole["usage"])
        assert not any(each in text for each in stop or () for text, _ in expected)
        letters += sum(ord(letter) > 127 and letter != "\ufffd" for text, _ in expected for letter in text)
    assert letters > 0 or stop


def test_many_at_once_get_what_each_gets_alone(http: httpx.Client) -> None:
    def ask(number: int) -> Any:
        messages = [{"role": "user", "content": "word " * (number % 7)}]
        body = {"model": "m", "messages": messages, "seed": number, "temperature": number % 3, "max_tokens": 3}
        answer = http.post("chat/completions", json=body).json()
        return answer["choices"], answer["usage"]

    alone = [ask(number) for number in range(24)]
    with ThreadPoolExecutor(24) as pool:
        assert list(pool.map(ask, range(24))) == alone


def test_clients_that_do_not_read_or_do_not_send_hold_up_nobody(http: httpx.Client, site: tuple[str, Any]) -> None:
    address = (http.base_url.host, int(http.base_url.port or 0))
    body = json.dumps({"model": "m", "messages": MESSAGES, "max_tokens": 400, "n": 3, "stream": True, "logprobs": True})
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    whole = f"{head}content-length: {len(body)}\r\n\r\n{body}".encode()
    opened = [socket.socket() for _ in range(2)]
    for connection, sent in zip(opened, (whole, whole[:-9]), strict=True):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.connect(address)
        connection.sendall(sent)
    assert checked(http.post("chat/completions", json=BODIES["chat/completions"])) == 200
    for connection in opened:
        connection.close()
    until = time.monotonic() + 30
    while site[1]["m"].worker.load != (0, 0):
        assert time.monotonic() < until
        time.sleep(0.01)
