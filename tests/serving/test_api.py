"""OpenAI's client talks to the server: answers, streams, stops, seeds, tools, errors, access."""

from __future__ import annotations

import copy
import json
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import takewhile
from typing import Any

import httpx
import openai
import pytest

from curate.inference.chat import Chat
from curate.rendering.mask_view import view_rows
from curate.schemas.conversation import Message, with_tools
from curate.serving.access import Access
from curate.serving.app import MAX_BODY
from curate.serving.models import Limits, ServedModel
from tests.support import served, tiny_runs

FIRST, FIRST_ANSWER, SECOND, SECOND_ANSWER = (message.content for message in tiny_runs.TALK)
ASK: Any = [{"role": "user", "content": FIRST}]
TOOLS: Any = json.loads(served.TOOLS)
Body = Mapping[str, Any]
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # httpx would read all certificates for each client
HTTP = httpx.Client(verify=NO_TLS, timeout=30)


@pytest.fixture(scope="module", autouse=True)
def close_connections() -> Iterator[None]:
    yield
    HTTP.close()


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return served.talker(tmp_path_factory.mktemp("talker"))


@pytest.fixture(scope="module")
def site(talker: Chat) -> Iterator[tuple[str, Mapping[str, ServedModel], list[str]]]:
    with served.serving({"talk": talker, "org/other": talker}) as running:
        yield running


@pytest.fixture(scope="module")
def url(site: tuple[str, Any, Any]) -> str:
    return site[0]


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def wait_until(done: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not done():
        assert time.monotonic() < until
        time.sleep(0.01)


# ---- answers


def test_an_answer_has_text_reason_and_counts(client: openai.OpenAI, talker: Chat) -> None:
    answer = client.chat.completions.create(model="talk", messages=ASK, temperature=0)
    assert answer.choices[0].message.content == FIRST_ANSWER
    assert (answer.choices[0].finish_reason, answer.model) == ("stop", "talk")
    assert answer.usage is not None
    prompt = talker.renderer.generation_prompt([Message("user", FIRST)])
    tokens = talker.serving.tokenizer.counts([FIRST_ANSWER])[0]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), tokens)
    assert answer.usage.total_tokens == len(prompt) + tokens
    more = [
        *ASK,
        {"role": "assistant", "content": FIRST_ANSWER},
        {"role": "user", "content": [{"type": "text", "text": SECOND}]},
    ]
    again = client.chat.completions.create(model="org/other", messages=more, temperature=0)
    assert again.choices[0].message.content == SECOND_ANSWER


def test_the_models_are_listed(client: openai.OpenAI, url: str) -> None:
    assert [model.id for model in client.models.list()] == ["talk", "org/other"]
    assert client.models.retrieve("org/other").id == "org/other"
    assert HTTP.get(f"{url}/health").json() == {"status": "ok"}


def test_a_stream_says_the_same_and_ends_with_the_counts(client: openai.OpenAI, url: str) -> None:
    usage: Any = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(model="talk", messages=ASK, temperature=0, stream=True, stream_options=usage)
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == FIRST_ANSWER
    assert [chunk.choices[0].finish_reason for chunk in chunks[-3:-1]] == [None, "stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 3
    assert all(chunk.usage is None for chunk in chunks[:-1])
    body = {"model": "talk", "messages": ASK, "stream": True, "max_tokens": 2}
    raw = HTTP.post(f"{url}/v1/chat/completions", json=body)
    assert raw.headers["content-type"].startswith("text/event-stream")
    assert raw.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
def test_no_part_of_a_stop_string_is_sent(client: openai.OpenAI, stream: bool) -> None:
    create: Any = client.chat.completions.create
    answer = create(model="talk", messages=ASK, temperature=0, stop=["f past", "zzz"], stream=stream)
    shown = FIRST_ANSWER.partition("f past")[0]
    if stream:
        chunks = list(answer)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == shown
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (shown, "stop")


def test_a_limit_cuts_an_answer(client: openai.OpenAI) -> None:
    for limit in ({"max_tokens": 2}, {"max_completion_tokens": 2}):
        answer = client.chat.completions.create(model="talk", messages=ASK, temperature=0, **limit)  # type: ignore[call-overload]
        assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 2)


def test_a_seed_gives_the_same_answer_alone_and_among_others(client: openai.OpenAI) -> None:
    def ask(seed: int, n: int = 1) -> list[str | None]:
        messages: Any = [{"role": "user", "content": "x"}]
        answer = client.chat.completions.create(
            model="talk", messages=messages, seed=seed, temperature=2, max_tokens=12, n=n
        )
        return [choice.message.content for choice in answer.choices]

    alone = [ask(seed)[0] for seed in range(6)]
    assert len(set(alone)) > 3
    assert ask(0, n=3) == alone[:3]
    with ThreadPoolExecutor(6) as pool:
        assert [answer[0] for answer in pool.map(ask, range(6))] == alone


def test_log_probabilities_belong_to_the_text(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="talk", messages=ASK, temperature=0, logprobs=True, top_logprobs=2)
    scores = answer.choices[0].logprobs
    assert scores is not None and scores.content is not None
    assert b"".join(bytes(each.bytes or []) for each in scores.content).decode() == FIRST_ANSWER
    assert all(len(each.top_logprobs) == 2 and each.top_logprobs[0].logprob == each.logprob for each in scores.content)
    stream = client.chat.completions.create(model="talk", messages=ASK, temperature=0, logprobs=True, stream=True)
    parts = [chunk.choices[0] for chunk in stream]
    streamed = [each for part in parts if part.logprobs for each in part.logprobs.content or []]
    assert [each.logprob for each in streamed] == pytest.approx([each.logprob for each in scores.content], abs=1e-4)


# ---- raw prompts


def test_a_raw_prompt_has_the_ids_of_training(client: openai.OpenAI, talker: Chat, site: Any) -> None:
    ids = talker.renderer.generation_prompt([Message("user", FIRST)]).tolist()
    text = talker.serving.tokenizer.decode(ids)
    assert list(site[1]["talk"].raw_prompt(text).ids) == ids
    bos = talker.serving.tokenizer.info.bos_token or ""
    assert list(site[1]["talk"].raw_prompt(text.removeprefix(bos)).ids) == ids, "BOS comes once"
    for prompt in (text, ids, [text], [ids]):
        answer = client.completions.create(model="talk", prompt=prompt, temperature=0, max_tokens=50, logprobs=1)
        assert answer.choices[0].text == FIRST_ANSWER
        assert answer.choices[0].finish_reason == "stop"
    scores = answer.choices[0].logprobs
    assert scores is not None and scores.tokens is not None and scores.text_offset is not None
    assert [
        FIRST_ANSWER[at : at + len(token)] for at, token in zip(scores.text_offset, scores.tokens, strict=True)
    ] == scores.tokens


def test_a_model_can_be_asked_for_the_next_prompt(client: openai.OpenAI, talker: Chat) -> None:
    """As Magpie does: the raw prompt is the template up to what the user says."""
    rendered = talker.renderer.render([tiny_runs.TALK])[0].ids.tolist()
    text = talker.serving.tokenizer.decode(rendered).partition(FIRST)[0]
    answer = client.completions.create(model="talk", prompt=text, n=2, seed=1, max_tokens=4)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage is not None and answer.usage.completion_tokens <= 8


# ---- the prompt is that of training


def test_a_chat_prompt_has_the_ids_that_show_mask_shows(talker: Chat, site: Any) -> None:
    model: ServedModel = site[1]["talk"]
    for talk, tools in ((tiny_runs.TALK, None), (served.CALLED, served.TOOLS)):
        rendered = talker.renderer.render([with_tools(talk, tools)])[0]
        for index, message in enumerate(talk):
            if message.role == "assistant":
                ids = list(model.chat_prompt(talk[:index], tools).ids)
                assert ids == rendered.ids[: len(ids)].tolist()
                assert rendered.loss_mask[len(ids)], "what follows is what was trained"
                assert not rendered.loss_mask[len(ids) - 1]
        shown = view_rows(talker.renderer, with_tools(talk, tools))[0].text  # as `show --mask` has it
        before = "".join(text for text, _ in takewhile(lambda part: not part[1], shown))
        assert talker.serving.tokenizer.decode(model.chat_prompt(talk[:1], tools).ids) == before


# ---- tools


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_and_its_result_make_a_round_trip(client: openai.OpenAI, stream: bool) -> None:
    messages: Any = [{"role": "user", "content": "Clock?"}]
    create: Any = client.chat.completions.create
    answer = create(model="talk", messages=messages, tools=TOOLS, tool_choice="auto", temperature=0, stream=stream)
    if stream:
        chunks = [chunk.choices[0] for chunk in answer]
        assert chunks[-1].finish_reason == "tool_calls"
        [call] = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
        assert not any(chunk.delta.content for chunk in chunks)
        assert (call.function.name, json.loads(call.function.arguments)) == ("clock", {"zone": 9})
        return
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    [call] = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("clock", {"zone": 9})
    assert isinstance(call.function.arguments, str)
    messages += [choice.message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "noon"}]
    last = create(model="talk", messages=messages, tools=TOOLS, temperature=0)
    assert (last.choices[0].message.content, last.choices[0].finish_reason) == ("It is noon.", "stop")


def test_without_a_choice_of_tools_the_model_is_told_of_none(client: openai.OpenAI) -> None:
    create: Any = client.chat.completions.create
    counts = [
        create(model="talk", messages=ASK, max_tokens=1, **more).usage.prompt_tokens
        for more in ({}, {"tools": TOOLS, "tool_choice": "none"}, {"tools": TOOLS})
    ]
    assert counts[0] == counts[1] < counts[2]


# ---- what is refused

WRONG: dict[str, tuple[Body, str | None]] = {
    "no messages": ({"messages": []}, "messages"),
    "messages are a text": ({"messages": "hello"}, "messages"),
    "a message is a text": ({"messages": ["hello"]}, "messages[0]"),
    "no role": ({"messages": [{"content": "x"}]}, "messages[0].role"),
    "a role is a list": ({"messages": [{"role": [], "content": "x"}]}, "messages[0].role"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content"),
    "an image": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
    "the model spoke last": ({"messages": [*ASK, {"role": "assistant", "content": "x"}]}, "messages"),
    "a message has more": ({"messages": [{**ASK[0], "audio": {"id": "1"}}]}, "messages[0].audio"),
    "calls without arguments": (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}, *ASK]},
        "messages[0].tool_calls",
    ),
    "hot": ({"temperature": 3}, "temperature"),
    "a text for a number": ({"temperature": "1"}, "temperature"),
    "no choices": ({"n": 0}, "n"),
    "many choices": ({"n": 1000}, "n"),
    "a fraction of tokens": ({"max_tokens": 1.5}, "max_tokens"),
    "no tokens": ({"max_tokens": 0}, "max_tokens"),
    "a huge number": ({"seed": 10**30}, "seed"),
    "an empty stop": ({"stop": [""]}, "stop"),
    "many stops": ({"stop": ["x"] * 99}, "stop"),
    "a large penalty": ({"frequency_penalty": 2.5}, "frequency_penalty"),
    "a penalty as a text": ({"presence_penalty": "1"}, "presence_penalty"),
    "a bias on a word": ({"logit_bias": {"the": 1}}, "logit_bias"),
    "a bias on an id twice": ({"logit_bias": {"5": 1, "05": 1}}, "logit_bias"),
    "a bias on an unknown id": ({"logit_bias": {"999999999": 1}}, "logit_bias"),
    "a large bias": ({"logit_bias": {"5": 101}}, "logit_bias[...]"),
    "one call at most": ({"parallel_tool_calls": False}, "parallel_tool_calls"),
    "a tool without a name": ({"tools": [{"type": "function", "function": {}}]}, "tools[0]"),
    "unknown": ({"min_p": 0.1}, "min_p"),
    "likely tokens of none": ({"top_logprobs": 2}, "top_logprobs"),
    "options without a stream": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "no model": ({"model": None}, "model"),
    "a model as a list": ({"model": ["talk"]}, "model"),
}


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    (name, error), *more = response.json().items()
    assert (name, more, set(error)) == ("error", [], {"message", "type", "param", "code"})
    assert isinstance(error["message"], str) and error["message"]
    return dict(error)


@pytest.mark.parametrize(("changes", "param"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_parameter_is_named(url: str, changes: Body, param: str | None) -> None:
    body = {"model": "talk", "messages": ASK, **changes}
    error = error_of(HTTP.post(f"{url}/v1/chat/completions", json=body), 400)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")


def test_a_wrong_raw_prompt_is_refused(url: str, talker: Chat) -> None:
    prompts: list[Any] = [[], [1, "x"], [[]], {"a": 1}, [-1], [10**9], [[5], 5], None, [1.5], [True], [10**30]]
    for prompt in prompts:
        error = error_of(HTTP.post(f"{url}/v1/completions", json={"model": "talk", "prompt": prompt}), 400)
        assert error["param"] in ("prompt", "prompt[0]"), prompt
    body = {"model": "talk", "prompt": ["x"] * 40, "n": 2}
    assert error_of(HTTP.post(f"{url}/v1/completions", json=body), 400)["param"] == "prompt"


def test_parameters_that_change_nothing_are_accepted(client: openai.OpenAI) -> None:
    create: Any = client.chat.completions.create
    answer = create(
        model="talk", messages=ASK, max_tokens=1, user="me", metadata={"a": "b"}, store=False, frequency_penalty=0,
        presence_penalty=0.0, logit_bias={}, response_format={"type": "text"}, top_p=0, stop=None,
        extra_body={"top_k": 1, "repetition_penalty": 1.1},
    )  # fmt: skip
    assert answer.usage.completion_tokens == 1


def test_penalties_and_a_bias_change_the_answer(client: openai.OpenAI) -> None:
    create: Any = client.completions.create

    def likely(**settings: Any) -> list[str]:
        answer = create(model="talk", prompt=[20, 21], temperature=0, max_tokens=8, logprobs=1, **settings)
        return list(answer.choices[0].logprobs.tokens)

    forced = likely(logit_bias={"30": 100})
    assert len(set(forced)) == 1 and len(forced) == 8
    apart = likely(logit_bias={"30": 50, "31": 49.5, "32": 49}, presence_penalty=2, frequency_penalty=2)
    assert len(set(apart)) == 3


def test_errors_are_those_that_the_client_knows(client: openai.OpenAI) -> None:
    long: Any = [{"role": "user", "content": "word " * 2000}]
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="tlak", messages=ASK)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    for messages, limit in ((long, 1), (ASK, 600)):
        if limit == 600:
            messages = [{"role": "user", "content": "word " * 450}]
        with pytest.raises(openai.BadRequestError) as full:
            client.chat.completions.create(model="talk", messages=messages, max_tokens=limit)
        assert full.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="allows 600 at most"):
        client.chat.completions.create(model="talk", messages=ASK, max_tokens=601)
    with pytest.raises(openai.NotFoundError, match="POST /v1/embeddings does not exist"):
        client.embeddings.create(model="talk", input="x")


HOSTILE: dict[str, tuple[bytes, int]] = {
    "empty": (b"", 400),
    "no JSON": (b"hello", 400),
    "no object": (b"[1]", 400),
    "not UTF-8": (b'{"model": "\xff\xfe"}', 400),
    "UTF-16": ('{"model": "talk"}'.encode("utf-16"), 400),
    "half a character": (b'{"model": "\\ud800", "messages": []}', 400),
    "deep": (b'{"model": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
    "deep messages": (
        b'{"model":"talk","messages":[{"role":"assistant","tool_calls":' + b"[" * 900 + b"]" * 900 + b"}]}", 400,
    ),
    "deep tools": (
        b'{"model":"talk","messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"f",'
        b'"parameters":' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}}]}", 400,
    ),
    "a number without end": (b'{"model": ' + b"9" * 100_000 + b"}", 400),
    "not a number": (b'{"model": "talk", "messages": [], "temperature": NaN}', 400),
    "a model without end": (b'{"model": "' + b"x" * 1_000_000 + b'", "messages": []}', 404),
    "huge": (b'{"model": "' + b"x" * MAX_BODY + b'"}', 413),
    "zeros": (b"\0" * 1000, 400),
}  # fmt: skip


@pytest.mark.parametrize(("body", "status"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_body_gets_an_error_in_openais_shape(url: str, body: bytes, status: int) -> None:
    for path in ("chat/completions", "completions"):
        response = HTTP.post(f"{url}/v1/{path}", content=body, headers={"Content-Type": "application/json"})
        if "deep tools" in str(body[:0]) or response.status_code != status:
            assert path == "completions" and 400 <= response.status_code < 500, response.text[:200]
        error_of(response, response.status_code)


def test_other_types_and_methods_are_refused(url: str) -> None:
    path = f"{url}/v1/chat/completions"
    error_of(HTTP.post(path, content=b"{}", headers={"Content-Type": "text/plain"}), 415)
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    error_of(HTTP.post(path, content=b"{}", headers=headers), 415)
    error_of(HTTP.get(path), 405)
    error_of(HTTP.get(f"{url}/v1/chat/../../etc/passwd"), 404)
    error_of(HTTP.get(f"{url}/v1/models/none"), 404)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /health HTTP/1.1\r\n" + b"".join(b"x-%d: 1\r\n" % n for n in range(20_000)) + b"\r\n",
        b"nonsense\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
    ],
    ids=["many headers", "no HTTP", "a wrong length"],
)
def test_what_is_not_http_gets_an_error_in_openais_shape(url: str, sent: bytes) -> None:
    address, port = url.removeprefix("http://").split(":")
    with socket.create_connection((address, int(port)), timeout=30) as connection:
        connection.sendall(sent)
        reply = b""
        while part := connection.recv(65536):
            reply += part
    assert reply.startswith(b"HTTP/1.1 4")
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


# ---- load


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_place(talker: Chat, stream: bool) -> None:
    endless = copy.copy(talker)
    endless.serving = replace(talker.serving, stop_ids=(-1,))
    limits = Limits(rows=2, waiting=8, new_tokens=900)
    with served.serving({"talk": endless}, limits=limits) as (url, models, log):
        worker = models["talk"].worker
        body = {"model": "talk", "messages": ASK, "max_tokens": 900, "n": 4, "stream": stream}
        with httpx.Client(verify=NO_TLS) as client:
            if stream:
                with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
                    lines = response.iter_lines()  # whose end would close the connection
                    next(lines)
                    wait_until(lambda: worker.load == (2, 2))
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post(f"{url}/v1/chat/completions", json=body, timeout=0.3)
        wait_until(lambda: worker.load == (0, 0))
        wait_until(lambda: bool(log))
    assert log[0].split("  ")[6] == "cut"


def test_requests_beyond_the_limit_are_told_to_come_back(talker: Chat) -> None:
    limits = Limits(rows=1, waiting=1, new_tokens=600)
    with served.serving({"talk": talker}, limits=limits) as (url, models, _log):
        body = {"model": "talk", "messages": [{"role": "user", "content": "x"}], "temperature": 2, "n": 3}
        response = HTTP.post(f"{url}/v1/chat/completions", json=body)
        assert error_of(response, 429)["code"] == "rate_limit_exceeded"
        assert response.headers["retry-after"] == "1"
        assert models["talk"].worker.load == (0, 0)


def test_an_error_of_the_model_ends_its_requests_and_not_the_server(
    talker: Chat, site: Any, client: openai.OpenAI
) -> None:
    url, _, log = site
    hook = talker.model.register_forward_pre_hook(lambda *_: 1 / 0)
    try:
        body = {"model": "talk", "messages": ASK}
        assert error_of(HTTP.post(f"{url}/v1/chat/completions", json=body), 500)["type"] == "server_error"
        streamed = HTTP.post(f"{url}/v1/chat/completions", json={**body, "stream": True}).text
        assert '"server_error"' in streamed and streamed.endswith("data: [DONE]\n\n")
    finally:
        hook.remove()
    assert any("ZeroDivisionError" in line for line in log)
    assert client.chat.completions.create(model="talk", messages=ASK, temperature=0).choices[0].finish_reason == "stop"


# ---- access and log


def test_the_token_is_needed_where_there_is_one(talker: Chat) -> None:
    with served.serving({"talk": talker}, access=Access("a-planted-token")) as (url, _, log):
        with openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError) as caught:
                client.models.list()
            assert caught.value.code == "invalid_api_key"
        with openai.OpenAI(base_url=f"{url}/v1", api_key="a-planted-token") as client:
            assert len(list(client.models.list())) == 1
        for header in ("", "Basic a-planted-token", "Bearer", "Bearer ü"):
            error_of(HTTP.get(f"{url}/v1/models", headers=[(b"Authorization", header.encode("latin-1"))]), 401)
        assert HTTP.get(f"{url}/health").status_code == 200
    assert len(log) == 7 and "planted" not in "".join(log)


def test_pages_of_other_origins_get_nothing_by_default(talker: Chat) -> None:
    origin = "https://example.org"
    ask = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with served.serving({"talk": talker}, access=Access(hosts=("127.0.0.1",))) as (url, _, _log):
        assert "access-control-allow-origin" not in HTTP.options(f"{url}/v1/models", headers=ask).headers
        error = error_of(HTTP.get(f"{url}/v1/models", headers={"Host": "evil.example:80"}), 403)
        assert error["code"] == "wrong_host"
    with served.serving({"talk": talker}, access=Access("t", origins=(origin,))) as (url, _, _log):
        allowed = HTTP.options(f"{url}/v1/models", headers=ask)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, origin)
        assert (
            "access-control-allow-origin" not in HTTP.get(f"{url}/v1/models", headers={"Origin": "https://x.y"}).headers
        )


def test_the_log_has_a_line_for_each_request_and_no_text(site: Any) -> None:
    url, _, log = site
    body = {"model": "talk", "messages": [{"role": "user", "content": "a secret"}], "max_tokens": 1}
    before = len(log)
    HTTP.post(f"{url}/v1/chat/completions?key=secret", json=body)
    HTTP.get(f"{url}/secret%0A")
    HTTP.post(f"{url}/v1/completions", json={"model": "secret", "prompt": "secret"})
    wait_until(lambda: len(log) == before + 3)
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d  POST  /v1/chat/completions  200  talk  \d+ \+ [01] tokens  \w+  [\d.]+ s", log[before]
    )
    assert "secret" not in "".join(log)
