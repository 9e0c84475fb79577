"""The page of blind votes over HTTP: what is hidden, what is written, who may use it, and what goes wrong."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

import curate
from curate.arena import run
from curate.arena.battle import AnswerPart, Arena
from curate.arena.contestants import AnswerFile, AskSettings, Messages, Piece
from curate.arena.prompts import Chat, Prompt
from curate.cli import cli
from curate.errors import InputError
from curate.serving.access import Access
from tests.arena.arenas import HOSTILE, Voter, serving, streamed, texts, write_answers
from tests.support import ROOT, stub_server
from tests.support.stub_server import Answer, Asked

NAMES = ("zebra-secret", "okapi-secret")


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Two files of answers to three prompts, two of which they share."""
    one = write_answers(tmp_path / "first-file.jsonl", {"P1": "one **A**", "P2": HOSTILE, "only here": "x"})
    other = write_answers(tmp_path / "second-file.jsonl", {"P2": "other B", "P1": "other A"})
    return [f"{NAMES[0]}={one}", f"{NAMES[1]}={other}"]


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_names_are_hidden_until_the_vote_is_in_the_file(tmp_path: Path, files: list[str]) -> None:
    votes = tmp_path / "votes.jsonl"
    with serving(files, votes) as (voter, said):
        for path in ("/", "/arena.js", "/arena.css"):
            reply = voter.http.get(path)
            assert reply.status_code == 200 and "script-src 'self'" in reply.headers["content-security-policy"]
            voter.seen += f"{reply.headers}{reply.text}"
        battle = voter.start()
        answers = texts(voter.ask(battle))
        assert voter.vote(battle, "best").status_code == 400
        for secret in (*NAMES, "first-file", "second-file", str(tmp_path)):
            assert secret not in voter.seen
        shown = voter.vote(battle, "left").json()
        assert {shown["left"], shown["right"]} == set(NAMES) and shown["votes"] == 1
        (line,) = lines(votes)
        assert (line["model_a"], line["model_b"], line["winner"]) == (shown["left"], shown["right"], "model_a")
        for letter, side in (("a", "left"), ("b", "right")):
            assert line[f"conversation_{letter}"] == [
                {"role": "user", "content": battle["prompt"]},
                {"role": "assistant", "content": answers[side]},
            ]
        assert voter.vote(battle, "left").json() == shown  # sent again: nothing is added
        assert voter.vote(battle, "right").status_code == 409
        assert len(lines(votes)) == 1
        assert any("1 of 3 prompts are left out" in text for text in said)


def test_each_prompt_is_judged_once_also_over_several_runs(tmp_path: Path, files: list[str]) -> None:
    votes, prompts = tmp_path / "votes.jsonl", []
    for vote in ("tie", "skip"):
        with serving(files, votes) as (voter, _):
            battle = voter.start()
            prompts.append(battle["prompt"])
            voter.ask(battle)
            assert ("left" in voter.vote(battle, vote).json()) is (vote == "tie")
    with serving(files, votes) as (voter, _):
        assert voter.start()["done"] is True
    assert sorted(prompts) == ["P1", "P2"]
    assert [line["winner"] for line in lines(votes)] == ["tie", "skipped"]


def test_a_prompt_on_a_page_that_was_closed_is_told_and_comes_again(tmp_path: Path, files: list[str]) -> None:
    votes = tmp_path / "votes.jsonl"
    with serving(files, votes) as (voter, _):
        closed, battle = voter.start(), voter.start()
        voter.ask(battle)
        voter.vote(battle, "tie")
        assert (voter.start()["done"], voter.start()["unvoted"]) == (True, 1)
    with serving(files, votes) as (voter, _):
        assert voter.start()["prompt"] == closed["prompt"]


def test_a_wrong_vote_is_refused_and_leaves_the_battle_as_it_was(tmp_path: Path, files: list[str]) -> None:
    wrong: list[object] = [None, 1, [], ["left"], {}, {"a": 1}, True, "left ", "l" * 10_000]
    with serving(files, tmp_path / "votes.jsonl") as (voter, _):
        battle = voter.start()
        voter.ask(battle)
        for value in wrong:
            assert voter.post(f"/battles/{battle['id']}/vote", vote=value).status_code == 400
        assert voter.vote(battle, "left").json()["votes"] == 1


def test_two_pages_vote_at_once(tmp_path: Path) -> None:
    answers = {f"P{number}": "x" for number in range(12)}
    sources = [f"{name}={write_answers(tmp_path / f'{name}.jsonl', answers)}" for name in ("one", "two")]
    votes = tmp_path / "votes.jsonl"
    with serving(sources, votes) as (voter, _), Voter(voter.url) as other, ThreadPoolExecutor(8) as pool:
        battles = [page.start() for page in (voter, other) * 6]
        for page, battle in zip((voter, other) * 6, battles, strict=True):
            page.ask(battle)
        same = [pool.submit(page.vote, battles[0], vote) for page in (voter, other) for vote in ("left", "right") * 2]
        rest = [
            pool.submit(page.vote, each, "tie") for page, each in zip((voter, other) * 6, battles[1:], strict=False)
        ]
        assert sorted({each.result().status_code for each in same}) == [200, 409]
        assert {each.result().status_code for each in rest} == {200}
    ids = [line["id"] for line in lines(votes)]
    assert Counter(ids) == Counter(battle["id"] for battle in battles), "one line for each battle"


class Slow:
    """A model that gives a part of its answer, and the rest when it may."""

    name, sampled = "slow", True
    origin: Mapping[str, str] = {}

    def __init__(self) -> None:
        self.may = asyncio.Event()

    async def stream(self, messages: Messages, settings: AskSettings) -> AsyncIterator[Piece]:
        yield Piece("a ")
        await self.may.wait()
        yield Piece("model")


@pytest.mark.parametrize("beside", ["file", "model"])
def test_the_time_of_an_answer_does_not_tell_a_file_from_a_model(beside: str) -> None:
    prompt = Prompt(("P1",))

    async def first_parts() -> tuple[int, dict[str, str]]:
        slow, other = Slow(), Slow()
        other.may.set()
        file = AnswerFile("file", Path("file.jsonl"), [Chat(prompt, ("from the file",))])
        arena = Arena([slow, file if beside == "file" else other], [prompt], AskSettings(), typed=False)
        battle = arena.start()
        assert battle is not None
        parts: list[AnswerPart] = []

        async def read() -> None:
            async for part in battle.ask("P1", AskSettings()):
                parts.append(part)

        reading = asyncio.create_task(read())
        await asyncio.sleep(0.05)
        early = len(parts)
        slow.may.set()
        await reading
        return early, texts([vars(part) for part in parts])

    early, shown = asyncio.run(first_parts())
    assert sorted(shown.values()) == sorted(["a model", "from the file" if beside == "file" else "a model"])
    assert (early == 0) is (beside == "file")


def test_votes_are_read_as_preference_pairs(tmp_path: Path, files: list[str]) -> None:
    votes = tmp_path / "votes.jsonl"
    with serving(files, votes) as (voter, _):
        for vote in ("right", "both_bad"):
            battle = voter.start()
            voter.ask(battle)
            voter.vote(battle, vote)
    chats = curate.read(votes)
    (chat,) = chats
    line = lines(votes)[0]
    assert chat.model == line["model_b"]
    texts_of = {letter: line[f"conversation_{letter}"][1]["content"] for letter in "ab"}  # type: ignore[index]
    assert chat.messages[1].content == texts_of["b"]
    assert chat.rejected_answer is not None
    assert [message.content for message in chat.rejected_answer] == [texts_of["a"]]
    assert dict(chats.left_out) == {"no_preference": 1}


def battle_of_servers(script: Callable[[int, Asked], Answer], votes: Path, act: Callable[[Voter], None]) -> list[str]:
    """Let a voter act on a page with two models of a scripted server; return what the terminal says."""
    with (
        stub_server.serving(script) as (server_url, _),
        serving([f"{server_url}/v1#{name}" for name in NAMES], votes, system="Be kind.") as (voter, said),
    ):
        act(voter)
        return said


def test_chats_go_on_over_several_turns_with_each_models_own_answers(tmp_path: Path) -> None:
    votes, asked = tmp_path / "votes.jsonl", []

    def script(_: int, request: Asked) -> Answer:
        asked.append(request.body)
        return streamed(request.body["model"][0], f"{len(request.body['messages'])}", finish="length")

    def act(voter: Voter) -> None:
        battle = voter.start()
        assert battle["prompt"] is None and battle["typed"]
        assert voter.vote(battle, "tie").status_code == 409  # there is nothing to judge yet
        first = voter.ask(battle, "Hello")
        assert sorted(texts(first).values()) == ["o2", "z2"]
        assert [part["cut"] for part in first if part.get("end")] == [True, True]
        voter.ask(battle, "More")
        assert voter.vote(battle, "both_bad").status_code == 200

    battle_of_servers(script, votes, act)
    (line,) = lines(votes)
    assert (line["turn"], line["winner"]) == (2, "tie (bothbad)")
    for letter in "ab":
        chat, name = line[f"conversation_{letter}"], str(line[f"model_{letter}"])[0]
        assert [turn["content"] for turn in chat] == ["Be kind.", "Hello", f"{name}2", "More", f"{name}4"]  # type: ignore[attr-defined]
    assert {(each["temperature"], each["max_tokens"], each["stream"]) for each in asked} == {(0.5, 64, True)}


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (stub_server.error(429, "zebra-secret is busy"), "429"),
        (stub_server.error(500, "zebra-secret"), "500"),
        (Answer(b"data: {nonsense zebra-secret\n\n"), "not JSON"),
        (Answer(b'data: {"error": {"message": "zebra-secret"}}\n\n'), "zebra-secret"),
        (Answer(b'data: {"choices": [{"delta": {"content": 5}}]}\n\n'), "not a text"),
        (Answer(b'data: ["zebra-secret"]\n\n'), "no choices"),
        (streamed("half", done=False), "cut off"),
        (streamed(""), "empty"),
        (Answer(b"x" * 100, cut=True), "RemoteProtocolError"),
    ],
    ids=["busy", "failed", "no-json", "error-event", "no-text", "no-chunk", "cut", "empty", "torn"],
)
def test_a_failed_answer_names_nobody_and_can_be_asked_again(tmp_path: Path, bad: Answer, why: str) -> None:
    state = {"bad": True}

    def script(_: int, request: Asked) -> Answer:
        return bad if state["bad"] and request.body["model"] == NAMES[0] else streamed("fine")

    def act(voter: Voter) -> None:
        battle = voter.start()
        parts = voter.ask(battle, "Hello")
        assert sorted(part["failed"] for part in parts if part.get("end")) == [False, True]
        assert voter.vote(battle, "left").status_code == 409
        assert not any(name in voter.seen for name in NAMES)
        state["bad"] = False
        assert texts(voter.ask(battle, "Hello")) == {"left": "fine", "right": "fine"}
        assert voter.vote(battle, "tie").status_code == 200

    said = battle_of_servers(script, tmp_path / "v.jsonl", act)
    assert any(why in text and text.startswith(f"{NAMES[0]}: no answer") for text in said)
    (line,) = lines(tmp_path / "v.jsonl")
    assert len(line["conversation_a"]) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "evil.test"}, 403),
        ({"Origin": "http://evil.test"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Content-Type": "text/plain"}, 403),
    ],
)
def test_only_the_page_itself_may_act(tmp_path: Path, files: list[str], headers: dict[str, str], status: int) -> None:
    with serving(files, tmp_path / "v.jsonl") as (voter, _):
        sent = {"Content-Type": "application/json", "Origin": voter.url, **headers}
        assert voter.http.post("/battles", content=b"{}", headers=sent).status_code == status


def test_a_token_is_asked_for_and_kept_in_a_cookie(tmp_path: Path, files: list[str]) -> None:
    with serving(files, tmp_path / "v.jsonl", access=Access("right-token")) as (voter, _):
        assert [voter.http.get(path).status_code for path in ("/", "/arena.js", "/?token=wrong")] == [401, 401, 401]
        assert voter.post("/battles").status_code == 401
        welcome = voter.http.get("/?token=right-token")
        assert welcome.status_code == 303 and welcome.headers["location"] == "/"
        assert {"HttpOnly", "SameSite=strict"} <= set(welcome.headers["set-cookie"].split("; "))
        assert voter.post("/battles").status_code == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a=one"], "a battle needs two"),
        (["x=one", "x=two"], "two would be named 'x'"),
        (["=one", "two"], "neither SOURCE nor NAME=SOURCE"),
        (["a=missing.jsonl", "two"], "there is no file 'missing.jsonl'"),
    ],
)
def test_wrong_contestants_are_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run.read_entries(arguments)


def test_files_of_answers_take_no_system_prompt(tmp_path: Path, files: list[str]) -> None:
    result = CliRunner().invoke(cli, ["arena", *files, "--system", "Be kind.", "--votes", str(tmp_path / "v.jsonl")])
    assert result.exit_code == 1 and "leave --system out" in result.output


def test_the_command_refuses_an_open_address_without_a_token(tmp_path: Path, files: list[str]) -> None:
    result = CliRunner().invoke(cli, ["arena", *files, "--host", "0.0.0.0", "--votes", str(tmp_path / "v.jsonl")])
    assert result.exit_code == 1 and "a token is needed: put one into CURATE_ARENA_TOKEN" in result.output


def start(arguments: list[str], log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start the command as a process; return it with the page's URL."""
    command = [sys.executable, "-m", "curate", "arena", *arguments, "--port", "0"]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "PYTHONPATH": str(ROOT)})
    until = time.monotonic() + 60
    while not (match := re.search(r"vote at (http://\S+)/;", log.read_text())):
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.1)
    return process, match[1]


@pytest.mark.slow
def test_a_killed_page_loses_no_vote_and_goes_on(tmp_path: Path, files: list[str]) -> None:
    votes, log, prompts = tmp_path / "votes.jsonl", tmp_path / "log", []
    arguments = [*files, "--votes", str(votes)]
    for ending in (signal.SIGKILL, signal.SIGINT):
        process, url = start(arguments, log)
        with Voter(url) as voter:
            battle = voter.start()
            prompts.append(battle["prompt"])
            voter.ask(battle)
            voter.vote(battle, "left")
        process.send_signal(ending)
        process.wait(60)
        with votes.open("ab") as file:
            file.write(b'{"winner": "mod' if ending == signal.SIGKILL else b"")
    assert sorted(prompts) == ["P1", "P2"] and [line["winner"] for line in lines(votes)] == ["model_a"] * 2
    said = log.read_text()
    assert "the last line was not whole, and its 15 bytes were cut" in said
    assert f"their ratings: curate arena --ratings --votes {votes}" in said


@pytest.mark.slow
def test_a_model_that_is_loaded_here_answers_as_it_was_trained(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from curate.arena.contestants import AnswerFailed
    from curate.arena.local import LocalModel
    from curate.serving.models import Limits, ServedModel
    from tests.support import served, tiny_runs

    model = LocalModel(ServedModel("tiny", served.talker(tmp_path), Limits()), "runs/tiny")
    question, answer = tiny_runs.TALK[0].content, tiny_runs.TALK[1].content

    async def ask(text: str, most: int) -> tuple[str, bool]:
        pieces = [piece async for piece in model.stream([{"role": "user", "content": text}], AskSettings(0.0, most))]
        return "".join(piece.text for piece in pieces), any(piece.cut for piece in pieces)

    try:
        assert asyncio.run(ask(question, 64)) == (answer, False)
        assert asyncio.run(ask(question, 1))[1] is True
        with pytest.raises(AnswerFailed, match="maximum context length"):
            asyncio.run(ask("word " * 2000, 64))
    finally:
        model.close()
