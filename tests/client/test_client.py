"""The client against a scripted server, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

pytest.importorskip("httpx")

from curate.client import client as client_module
from curate.client import retries
from curate.client.budget import Budget, BudgetSpent
from curate.client.client import Client, Settings, ask_in_order
from curate.client.endpoint import make_endpoint
from curate.client.exchange import CHAT, Reply, Request
from curate.client.journal import Journal
from curate.errors import CurateError, InputError, RunError, ServerError
from tests.support.stub_server import Answer, Asked, error, reply, serving

KEY = "sk-planted-0123456789"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.002)


def request(number: int, text: str = "Hello", max_tokens: int = 20) -> Request:
    body = {"model": "stub", "messages": [{"role": "user", "content": text}], "max_tokens": max_tokens}
    return Request(f"r{number}", CHAT, body)


def ask(
    url: str,
    path: Path,
    requests: Sequence[Request],
    *,
    budget: Budget | None = None,
    key: str | None = None,
    window: int = 4,
    attempts: int = 4,
    told: list[str] | None = None,
) -> list[Reply]:
    """Ask all requests in order, and return the replies; the journal is at `path`."""

    async def run() -> list[Reply]:
        left = iter(requests)
        tell = (told if told is not None else []).append
        with Journal(path, {"model": "stub"}) as journal:
            used = budget or Budget()
            used.calls, used.tokens = journal.calls, journal.tokens
            settings = Settings(concurrency=window, attempts=attempts, timeout=5)
            async with Client(make_endpoint(url, key), journal, used, settings, tell=tell) as client:
                return [each async for _, each in ask_in_order(client, lambda _: next(left, None), window)]

    return asyncio.run(run())


def test_replies_come_in_the_order_of_the_requests(tmp_path: Path) -> None:
    def script(_: int, asked: Asked) -> Answer:
        text = asked.body["messages"][0]["content"]
        answer = reply(f"to {text}")
        return Answer(answer.body, delay=0.05 if text == "0" else 0)

    with serving(script) as (url, asked):
        replies = ask(url, tmp_path / "j", [request(number, str(number)) for number in range(9)])
    assert [each.text for each in replies] == [f"to {number}" for number in range(9)]
    assert {each.path for each in asked} == {"/v1/chat/completions"}
    assert replies[0].tokens == 15 and replies[0].model == "stub-1"


@pytest.mark.parametrize(
    "bad",
    [
        error(429, Retry_After="0.01"),
        error(503),
        error(500, "oops"),
        Answer(reply("whole").body, cut=True),
        Answer(b'{"choices": [{"mess'),
        Answer(b'{"choices": []}'),
        Answer(b"[" * 100_000),
        Answer(b"\xff\xfe<html>"),
        reply(5),  # type: ignore[arg-type]
    ],
    ids=["429", "503", "500", "cut", "half JSON", "no choice", "deep", "no JSON", "a number"],
)
def test_a_request_that_fails_is_sent_again(bad: Answer, tmp_path: Path) -> None:
    told: list[str] = []
    with serving(lambda number, _: bad if number < 2 else reply("fine")) as (url, asked):
        assert [each.text for each in ask(url, tmp_path / "j", [request(0)], told=told)] == ["fine"]
    assert len(asked) == 3 and len(told) == 2


@pytest.mark.parametrize("bad", [error(400, "too long"), error(500), Answer(b"{}")], ids=["400", "500", "malformed"])
def test_a_request_that_always_fails_is_told_and_not_asked_in_a_later_run(bad: Answer, tmp_path: Path) -> None:
    def script(_: int, asked: Asked) -> Answer:
        return bad if asked.body["messages"][0]["content"] == "bad" else reply("fine")

    requests = [request(0), request(1, "bad"), request(2)]
    with serving(script) as (url, asked):
        replies = ask(url, tmp_path / "j", requests)
        count = len(asked)
        again = ask(url, tmp_path / "j", requests)
    assert [each.text for each in replies] == ["fine", "", "fine"] and replies[1].error
    assert [(each.text, each.error) for each in again] == [(each.text, each.error) for each in replies]
    assert len(asked) == count and all(each.from_journal for each in again)


@pytest.mark.parametrize("status", [401, 403, 404, 302, 429])
def test_a_server_that_refuses_everything_ends_the_run_in_one_line(status: int, tmp_path: Path) -> None:
    with serving(lambda *_: error(status, "refused\nhere")) as (url, _), pytest.raises(ServerError) as caught:
        ask(url, tmp_path / "j", [request(0)], attempts=2)
    assert f"{status}: refused here; mend it, and type the same command" in str(caught.value)


def test_a_server_that_is_not_there_ends_the_run_and_the_same_run_goes_on(tmp_path: Path) -> None:
    requests = [request(number) for number in range(3)]
    with pytest.raises(ServerError, match="cannot be used"):
        ask("http://127.0.0.1:9", tmp_path / "j", requests, attempts=2)
    with serving(lambda *_: reply("here")) as (url, asked):
        assert [each.text for each in ask(url, tmp_path / "j", requests)] == ["here"] * 3
    assert len(asked) == 3


def test_the_wait_that_a_server_asks_for_holds_for_all_requests(tmp_path: Path) -> None:
    times: list[float] = []

    def script(number: int, _: Asked) -> Answer:
        times.append(time.monotonic())
        return error(429, Retry_After="0.3") if number == 0 else Answer(reply("x").body, delay=0.05)

    with serving(script) as (url, _):
        ask(url, tmp_path / "j", [request(number) for number in range(8)], window=2)
    assert sum(later - times[0] < 0.29 for later in times[1:]) <= 1  # one was under way
    with serving(lambda *_: error(429, Retry_After="86400")) as (url, _), pytest.raises(ServerError, match="86,400"):
        ask(url, tmp_path / "k", [request(0)])


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": format_datetime(datetime.now(UTC) + timedelta(days=1), usegmt=True)}, 86_400.0),
        ({"retry-after": format_datetime(datetime.now(UTC) - timedelta(days=1))}, 0.0),
        ({"retry-after": "nan"}, 0.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], expected: float) -> None:
    assert retries.read_retry_after(headers) == pytest.approx(
        expected, rel=0.1
    )  # a date is of when the tests were collected


# ---- journal


def test_a_run_that_goes_on_asks_nothing_twice(tmp_path: Path) -> None:
    requests = [request(number, str(number)) for number in range(6)]
    script: Callable[[int, Asked], Answer] = lambda _, asked: reply(asked.body["messages"][0]["content"] * 3)  # noqa: E731
    with serving(script) as (url, asked):
        first = ask(url, tmp_path / "j", requests[:4])
        second = ask(url, tmp_path / "j", requests)
    assert len(asked) == 6
    assert [each.text for each in second[:4]] == [each.text for each in first]
    with serving(script) as (url, asked):
        ask(url, tmp_path / "j", [request(0, "another text")])
    assert len(asked) == 1  # the same key, but something else is asked


def test_a_journal_cut_anywhere_is_repaired_and_the_run_goes_on(tmp_path: Path) -> None:
    requests = [request(number, str(number)) for number in range(3)]
    with serving(lambda _, asked: reply(asked.body["messages"][0]["content"])) as (url, asked):
        ask(url, tmp_path / "j", requests)
        whole = (tmp_path / "j").read_bytes()
        ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
        for cut in {1, *ends[:4:2], *(end - 9 for end in ends[::2]), len(whole) - 1}:
            (tmp_path / "k").write_bytes(whole[:cut])
            with Journal(tmp_path / "k", {"model": "stub"}) as journal:
                assert bool(journal.notes) == (cut not in ends)
                held = [bool(journal.find(each)) for each in requests]
            before = len(asked)
            assert [each.text for each in ask(url, tmp_path / "k", requests)] == ["0", "1", "2"]
            assert len(asked) - before == held.count(False)


def test_damaged_lines_are_told_and_a_foreign_journal_is_refused(tmp_path: Path) -> None:
    with serving(lambda *_: reply("x")) as (url, _):
        ask(url, tmp_path / "j", [request(0), request(1)])
    lines = (tmp_path / "j").read_bytes().splitlines(keepends=True)
    (tmp_path / "j").write_bytes(b"".join([*lines[:-1], b'{"reply": "r1"}\n', b"\x00\xff\n"]))
    with Journal(tmp_path / "j", {"model": "stub"}) as journal:
        assert "2 damaged lines" in journal.notes[0]
    with pytest.raises(RunError, match="another model"):
        Journal(tmp_path / "j", {"model": "other"})
    (tmp_path / "notes").write_text("mine\n")
    with pytest.raises(RunError, match="not a journal"):
        Journal(tmp_path / "notes", {})
    assert (tmp_path / "notes").read_text() == "mine\n"
    with Journal(tmp_path / "j", {"model": "stub"}), pytest.raises(RunError, match="another run"):
        Journal(tmp_path / "j", {"model": "stub"})


# ---- budget


def test_the_budget_of_calls_is_never_exceeded_also_over_several_runs(tmp_path: Path) -> None:
    requests = [request(number) for number in range(20)]
    with serving(lambda number, _: error(500) if number % 3 == 0 else reply("x")) as (url, asked):
        with pytest.raises(BudgetSpent, match="--max-calls"):
            ask(url, tmp_path / "j", requests, budget=Budget(max_calls=7))
        assert len(asked) == 7
        with pytest.raises(BudgetSpent):
            ask(url, tmp_path / "j", requests, budget=Budget(max_calls=10))
        assert len(asked) == 10


def test_the_budget_of_tokens_is_never_exceeded_and_stops_at_the_same_request(tmp_path: Path) -> None:
    requests = [request(number, max_tokens=30) for number in range(20)]
    most = requests[0].most_tokens
    counts = set()
    for run, window in enumerate((1, 3, 8)):
        with serving(lambda *_: reply("x", tokens=(5, 20))) as (url, asked):
            with pytest.raises(BudgetSpent, match="--max-tokens"):
                ask(url, tmp_path / str(run), requests, budget=Budget(max_tokens=250), window=window)
            counts.add(len(asked))
    assert counts == {(250 - most) // 25 + 1}


def test_tokens_are_estimated_where_a_server_does_not_count_them(tmp_path: Path) -> None:
    body = json.dumps({"choices": [{"message": {"content": "twelve bytes"}}]}).encode()
    with serving(lambda *_: Answer(body)) as (url, _):
        (answer,) = ask(url, tmp_path / "j", [request(0)])
    assert answer.answer_tokens >= 3 and answer.prompt_tokens >= 1


# ---- addresses and keys


def test_the_key_is_sent_and_written_nowhere(tmp_path: Path) -> None:
    script = [error(500, f"bad {KEY}"), reply(f"your key is {KEY}"), error(401, f"wrong key {KEY}")]
    told: list[str] = []
    with serving(lambda number, _: script[min(number, 2)]) as (url, asked):
        (answer,) = ask(url, tmp_path / "j", [request(0)], key=KEY, told=told)
        with pytest.raises(ServerError) as caught:
            ask(url, tmp_path / "j", [request(1)], key=KEY, told=told)
    assert asked[0].headers["Authorization"] == f"Bearer {KEY}"
    assert answer.text == "your key is [key]"
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()).decode()
    assert KEY not in written + str(told) + str(caught.value) + repr(make_endpoint(url, KEY))


def test_no_redirect_is_followed(tmp_path: Path) -> None:
    with serving(lambda *_: reply("x")) as (other, reached):
        script = Answer(b"", 307, {"Location": f"{other}/v1/chat/completions"})
        with serving(lambda *_: script) as (url, _), pytest.raises(ServerError):
            ask(url, tmp_path / "j", [request(0)], key=KEY)
    assert reached == []


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/", "http://localhost:8000/v1"),
        ("https://host/api/v3/", "https://host/api/v3"),
        ("http://[::1]:80/v1", "http://[::1]:80/v1"),
    ],
)
def test_addresses_are_completed(url: str, expected: str) -> None:
    assert make_endpoint(url).url == expected


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://host", "http://", "http://h:99999", "http://[::1", "http://a b", "http://u:p@host",
     "http://host/v1?key=1", "http://hö.st"],
)  # fmt: skip
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InputError):
        make_endpoint(url)


@pytest.mark.parametrize("key", ["has a blank in it", "nö-ascii-key", "line\nbreak-key"])
def test_what_is_no_key_is_refused_without_naming_it(key: str) -> None:
    with pytest.raises(InputError) as caught:
        make_endpoint("http://localhost", key)
    assert key not in str(caught.value)


def test_a_server_on_this_machine_needs_no_proxy_and_any_short_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with serving(lambda *_: reply("An EMPTY word")) as (url, asked):
        assert ask(url, tmp_path / "j", [request(0)], key="EMPTY")[0].text == "An EMPTY word"
    assert asked[0].headers["Authorization"] == "Bearer EMPTY"


def test_a_key_in_clear_over_a_network_is_known() -> None:
    assert make_endpoint("http://example.org", KEY).sends_key_in_clear
    assert not make_endpoint("http://127.0.0.1:1", KEY).sends_key_in_clear
    assert not make_endpoint("https://example.org", KEY).sends_key_in_clear


def test_a_reply_that_is_too_long_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MOST_BYTES", 1000)
    with serving(lambda *_: reply("x" * 5000)) as (url, _):
        (answer,) = ask(url, tmp_path / "j", [request(0)])
    assert answer.error and "longer than" in answer.error


def test_a_failure_while_a_reply_is_used_leaves_the_journal_whole(tmp_path: Path) -> None:
    async def run(url: str) -> None:
        left = iter([request(0), request(1)])
        with Journal(tmp_path / "j", {}) as journal:
            async with Client(make_endpoint(url), journal, Budget()) as client:
                async for _ in ask_in_order(client, lambda _: next(left, None), 2):
                    raise CurateError("stop")

    with serving(lambda *_: reply("x")) as (url, _), pytest.raises(CurateError, match="stop"):
        asyncio.run(run(url))
    with Journal(tmp_path / "j", {}) as journal:
        assert journal.notes == [] and journal.replies >= 1
