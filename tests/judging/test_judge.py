"""Judging through a scripted server: both orders, repeats, faults, resumed runs, and files without keys."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from curate.cli import cli
from tests.support import ROOT, stub_server
from tests.support.stub_server import Answer, Asked, reply

KEY = "sk-planted-key-0123456789"
PROMPTS = [f"Question {number}?" for number in range(6)]


def write(path: Path, text: str, prompts: list[str] = PROMPTS) -> Path:
    rows = [{"instruction": prompt, "output": f"{text} {number}"} for number, prompt in enumerate(prompts)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def prefer(good: str) -> Callable[[int, Asked], Answer]:
    """Return a judge that prefers answers with a word, and rates them 9, others 3."""

    def script(_: int, asked: Asked) -> Answer:
        text = asked.body["messages"][1]["content"]
        if "assistant A" not in text:
            return reply(f"Rating: [[{9 if good in text else 3}]]")
        first = text.index(good) < text.index("assistant B, answer")
        return reply(f"Verdict: [[{'A' if first else 'B'}]]")

    return script


def judge(tmp_path: Path, url: str, *arguments: object, code: int = 0) -> str:
    command = ["judge", *map(str, arguments), "--server", url, "--model", "stub", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli, command, env={"OPENAI_API_KEY": KEY})
    assert result.exit_code == code, result.output
    return result.output


def results(tmp_path: Path) -> dict[str, Any]:
    return dict(json.loads((tmp_path / "out/results.json").read_text()))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    base = write(tmp_path / "b.jsonl", "plain", [*PROMPTS, "of one file"])
    return f"base={base}", f"tuned={write(tmp_path / 't.jsonl', 'splendid')}"


def test_pairs_are_judged_in_both_orders_and_resumed_without_asking_twice(
    tmp_path: Path, files: tuple[str, str]
) -> None:
    with stub_server.serving(prefer("splendid")) as (url, asked):
        judge(tmp_path, url, *files, "--max-calls", 5, code=1)
        assert len(asked) == 5
        shown = judge(tmp_path, url, *files)
        assert len(asked) == 12 and len({json.dumps(each.body) for each in asked}) == 12
        first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        judge(tmp_path, url, *files)
        assert len(asked) == 12
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == first
    (pair,) = results(tmp_path)["pairs"]
    assert (pair["wins"], pair["losses"], pair["ties"], pair["flips"]) == (6, 0, 0, 0)
    assert pair["win_rate"]["mean"] == 1 and pair["win_rate"]["low"] < 1
    assert (pair["first_seat"], pair["verdicts"]) == (6, 12)
    assert "100.0 %" in shown and "share 6 prompts; 1 of one file are left out" in shown
    assert re.search(r"prompts +[0-9a-f]{16}, temperature 0", shown)
    votes = lines(tmp_path / "out/votes.jsonl")
    assert [(each["model_a"], each["winner"]) for each in votes] == [("tuned", "model_a")] * 6
    assert not any(KEY.encode() in content for content in first.values()) and KEY not in shown


def test_a_judge_that_prefers_a_seat_gives_ties(tmp_path: Path, files: tuple[str, str]) -> None:
    with stub_server.serving(lambda *_: reply("[[A]]")) as (url, _):
        shown = judge(tmp_path, url, *files)
    (pair,) = results(tmp_path)["pairs"]
    assert (pair["wins"], pair["losses"], pair["ties"], pair["flips"]) == (0, 0, 6, 6)
    assert pair["win_rate"]["mean"] == 0.5 and pair["win_rate"]["low"] < 0.5 < pair["win_rate"]["high"]
    assert "6 of 6 pairs changed with the order" in shown and "preferred in 100.0 %" in shown


def test_faults_of_the_server_are_repeated_or_counted_and_change_no_figure(
    tmp_path: Path, files: tuple[str, str]
) -> None:
    def script(number: int, asked: Asked) -> Answer:
        text = asked.body["messages"][1]["content"]
        if "Question 0" in text:
            return reply("I like both.")
        if "Question 1" in text:
            return stub_server.error(400, f"too long, {KEY}")
        if number == 3:
            return stub_server.error(429, retry_after="0.01")
        if number == 5:
            return Answer(b'{"choices": [')
        return prefer("splendid")(number, asked)

    with stub_server.serving(script) as (url, _):
        shown = judge(tmp_path, url, *files)
    (pair,) = results(tmp_path)["pairs"]
    assert pair["counts"] == {"judgements": 12, "malformed": 2, "failed": 2}
    assert (pair["wins"], pair["undecided"], pair["win_rate"]["prompts"]) == (4, 2, 4)
    assert "8 of 12, 2 without one clear verdict, 2 without a reply" in shown
    problems = [each["problem"] for each in lines(tmp_path / "out/judgements.jsonl") if "problem" in each]
    assert problems == ["malformed"] * 2 + ["failed"] * 2
    for path in (tmp_path / "out").iterdir():
        assert KEY.encode() not in path.read_bytes()
    assert KEY not in shown


def test_single_answers_are_rated_with_repeats_and_references(tmp_path: Path, files: tuple[str, str]) -> None:
    references = write(tmp_path / "r.jsonl", "the truth", PROMPTS[:2])
    with stub_server.serving(prefer("splendid")) as (url, asked):
        judge(tmp_path, url, *files, "--single", "--repeats", 2, "--references", references)
        assert sum("the truth" in each.body["messages"][1]["content"] for each in asked) == 2 * 2 * 2
        assert {(each.body["seed"], each.body["temperature"]) for each in asked} == {(0, 0.7), (1, 0.7)}
    base, tuned = results(tmp_path)["single"]
    assert (base["rating"]["mean"], tuned["rating"]["mean"]) == (3, 9)
    assert base["counts"]["judgements"] == 14 and tuned["rating"]["low"] < 9
    assert results(tmp_path)["references"] == 2
    assert not (tmp_path / "out/votes.jsonl").exists()


def test_a_single_prompt_gives_no_figure(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", "x", ["Only?"])
    with stub_server.serving(lambda *_: reply("[[5]]")) as (url, _):
        shown = judge(tmp_path, url, one)
    assert results(tmp_path)["single"][0]["rating"] is None and "–" in shown and "5.00" not in shown


def test_another_judge_does_not_continue_a_journal(tmp_path: Path, files: tuple[str, str]) -> None:
    with stub_server.serving(prefer("splendid")) as (url, asked):
        judge(tmp_path, url, *files)
        assert "another temperature" in judge(tmp_path, url, *files, "--temperature", "1", code=1)
        judge(tmp_path, url, *files, "--temperature", "1", "--fresh")
        assert len(asked) == 24
        assert "12 judgements, at most about" in judge(tmp_path, url, *files, "--dry-run")
        assert len(asked) == 24


def test_several_turns_are_judged_one_by_one(tmp_path: Path) -> None:
    chats = [
        [{"role": role, "content": f"{role} {turn} {chat}"} for turn in (1, 2) for role in ("user", "assistant")]
        for chat in range(3)
    ]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))

    def script(_: int, asked: Asked) -> Answer:
        return reply(f"[[{4 if 'answer number 1' in asked.body['messages'][1]['content'] else 8}]]")

    with stub_server.serving(script) as (url, _):
        judge(tmp_path, url, file)
    (result,) = results(tmp_path)["single"]
    assert result["rating"]["mean"] == 6 and [each["mean"] for each in result["by_turn"]] == [4, 8]


def test_a_server_elsewhere_is_not_asked_without_a_budget(tmp_path: Path, files: tuple[str, str]) -> None:
    shown = judge(tmp_path, "https://judge.example/v1", *files, code=1)
    assert "may charge for calls; allow about what is planned: --max-calls 12" in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.jsonl",), "there is no file 'missing.jsonl'"),
        (("a={one}", "a={one}"), "two files would be named 'a'"),
        (("{one}", "{two}"), "answer no prompt in common"),
        (("{one}", "--references", "{two}"), "answers none of the prompts"),
    ],
)
def test_wrong_files_are_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    one, two = write(tmp_path / "one.jsonl", "x", ["P"]), write(tmp_path / "two.jsonl", "x", ["Q"])
    shown = judge(tmp_path, "http://localhost:1", *(each.format(one=one, two=two) for each in arguments), code=1)
    assert message in shown and shown.strip().count("\n") == 0


@pytest.mark.slow
def test_a_killed_process_continues_with_the_same_result(tmp_path: Path, files: tuple[str, str]) -> None:
    def slow(number: int, asked: Asked) -> Answer:
        return Answer(prefer("splendid")(number, asked).body, delay=0.1)

    def command(url: str, out: str) -> list[str]:
        options = ["--server", url, "--model", "stub", "--concurrency", "2", "--out", str(tmp_path / out)]
        return [sys.executable, "-m", "curate", "judge", *files, *options]

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with stub_server.serving(slow) as (url, asked):
        subprocess.run(command(url, "whole"), env=environment, check=True)
        for stop in (signal.SIGKILL, signal.SIGTERM):
            process = subprocess.Popen(command(url, "part"), env=environment)
            before = len(asked)
            while len(asked) < before + 4 and process.poll() is None:
                time.sleep(0.02)
            process.send_signal(stop)
            process.wait()
        subprocess.run(command(url, "part"), env=environment, check=True)
        assert len(asked) <= 2 * 12 + 4  # those under way at a kill
    whole, part = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "part"))
    assert part["pairs"] == whole["pairs"]
