"""Whole runs against a scripted server: what is written, kills, order, budgets, keys, and `clean` on the result."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx")
pytest.importorskip("rapidfuzz")

from click.testing import CliRunner, Result

import curate
from curate.cli import cli
from curate.client import retries
from curate.errors import InputError, RecipeError, RunError, ServerError, SetError
from curate.schemas import formats
from tests.support import ROOT
from tests.support.stub_server import Answer, Asked, error, reply, serving

KEY = "sk-planted-0123456789"
NOUNS = (
    "river",
    "stone",
    "lamp",
    "violin",
    "maple",
    "ledger",
    "harbour",
    "comet",
    "sparrow",
    "engine",
    "copper",
    "basin",
)
CASES: dict[str, dict[str, Any]] = {
    "self-instruct": {"count": 30, "languages": ("en", "de")},
    "magpie": {"count": 6, "turns": 2, "template": "chatml", "system": "Be brief."},
    "evol": {"rounds": 2, "turns": 1},
    "answers": {"turns": 2},
}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.002)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = [
        {"id": "one", "prompt": "Why is the sky blue?"},
        {"instruction": "Translate into French.", "input": "A red house"},
        {"messages": [{"role": "system", "content": "You rhyme."}, {"role": "user", "content": "Tell me about rain."}]},
        {"number": 5},
        {"prompt": "   "},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def words(chance: random.Random, count: int) -> str:
    return " ".join(chance.choice(NOUNS) for _ in range(count))


def write(body: dict[str, Any]) -> Answer:
    """Reply as a model would that is asked for any of the methods; the reply depends on what is asked only."""
    chance = random.Random(body.get("seed"))
    if "prompt" in body:
        return reply(f" Explain {words(chance, 9)}?<|im_end|>\n", chat=False)
    content = body["messages"][-1]["content"]
    if content.startswith("You are collecting"):
        tasks = [
            f"### {number}\nInstruction: Describe {words(chance, 8)}.\nInput: <none>\nOutput: {words(chance, 15)}\n"
            for number in range(4, 12)
        ]
        return reply("".join(tasks), finish="length" if chance.random() < 0.3 else "stop")
    if content.startswith("Rewrite the request"):
        return reply(f"Compare {words(chance, 8)}.")
    return reply(f"Answer: {words(chance, 12)}")


def script(_: int, asked: Asked) -> Answer:
    return write(dict(asked.body))


def run(method: str, output: Path, url: str, prompts: Path, **settings: Any) -> Any:
    given = {"prompts": prompts} if method in ("evol", "answers") else {}
    return curate.generate(method, "stub", output, server=url, **{**CASES[method], **given, **settings})


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def written(output: Path) -> tuple[bytes, bytes]:
    return output.read_bytes(), output.with_name(f"{output.stem}.dropped.jsonl").read_bytes()


@pytest.mark.parametrize(
    "method",
    [*("answers", "self-instruct"), *(pytest.param(name, marks=pytest.mark.slow) for name in ("evol", "magpie"))],
)
def test_a_run_is_the_same_whatever_arrives_first_and_wherever_it_was_killed(
    method: str, tmp_path: Path, prompts: Path
) -> None:
    def slow(number: int, asked: Asked) -> Answer:
        answer = write(dict(asked.body))
        return Answer(answer.body, delay=random.Random(number).random() * 0.02)

    def faulty(number: int, asked: Asked) -> Answer:
        bad = [error(500), error(429, Retry_After="0.01"), Answer(write(dict(asked.body)).body, cut=True), Answer(b"{")]
        return bad[number % 4] if number % 3 == 0 else write(dict(asked.body))

    whole = tmp_path / "whole.jsonl"
    with serving(script) as (url, asked):
        result = run(method, whole, url, prompts, concurrency=1)
        bodies = Counter(json.dumps(each.body, sort_keys=True) for each in asked)
    assert result.ended == "complete" and result.accepted == len(read(whole)) > 0
    assert result.calls == len(asked) and result.tokens == 15 * len(asked)
    assert sum(result.dropped.values()) == len(read(result.dropped_file))
    for name, other in (("slow", slow), ("faulty", faulty)):
        with serving(other) as (url, _):
            run(method, tmp_path / f"{name}.jsonl", url, prompts, concurrency=8)
        assert written(tmp_path / f"{name}.jsonl") == written(whole)

    journal = (tmp_path / "whole.journal").read_bytes()
    for cut in (len(journal) // 2, len(journal) - 3):
        path = tmp_path / f"cut{cut}.jsonl"
        path.with_suffix(".journal").write_bytes(journal[:cut])
        held = journal[:cut].count(b'{"reply": ') - (b'{"reply": ' in journal[:cut].rsplit(b"\n", 1)[-1])
        with serving(script) as (url, asked):
            run(method, path, url, prompts)
        assert written(path) == written(whole)
        assert len(asked) == bodies.total() - held  # nothing was asked twice
        assert not Counter(json.dumps(each.body, sort_keys=True) for each in asked) - bodies


@pytest.mark.parametrize("method", CASES)
def test_each_record_says_where_it_comes_from_and_is_read_whole(method: str, tmp_path: Path, prompts: Path) -> None:
    with serving(script) as (url, asked):
        run(method, tmp_path / "out.jsonl", url, prompts)
    entries = {
        entry["sent"]: entry for entry in read(tmp_path / "out.journal") if entry.get("body") and "sent" in entry
    }
    assert len(entries) == len(asked)
    about = json.loads((tmp_path / "out.about.json").read_text())
    for record in read(tmp_path / "out.jsonl"):
        origin = record["generation"]
        assert (origin["method"], origin["model"], record["model"]) == (method, "stub", "stub-1")
        assert origin["requests"]
        assert (origin["prompts"], origin["inputs"], origin["seed"]) == (about["prompts"], about["inputs"], 0)
        for request in origin["requests"]:
            entry = entries[request["key"]]
            assert request["prompt_hash"] == entry["hash"]
            assert (request["seed"], request["temperature"]) == (entry["body"]["seed"], entry["body"]["temperature"])
        conversation = formats.parse(record)
        assert [(each.role, each.content) for each in conversation.messages] == [
            (each["role"], each["content"]) for each in record["messages"]
        ]
        assert conversation.source_id == record["id"] and conversation.metadata["generation"] == origin
        roles = [each["role"] for each in record["messages"] if each["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert len(roles) == 2 * CASES[method].get("turns", 1)


@pytest.mark.slow
@pytest.mark.usefixtures("cache_folder")
def test_clean_reads_the_dump_with_nothing_lost(tmp_path: Path, prompts: Path, tiny_tokenizer: str) -> None:
    with serving(script) as (url, _):
        result = run("magpie", tmp_path / "out.jsonl", url, prompts)
    cleaned = curate.clean([tmp_path / "out.jsonl"], output=tmp_path / "set", tokenizer=tiny_tokenizer, workers=1)
    counts = cleaned.manifest.counts
    assert (counts.read, counts.kept) == (result.accepted, result.accepted)


def test_the_first_replies_and_their_prompts(tmp_path: Path, prompts: Path) -> None:
    with serving(script) as (url, asked):
        run("answers", tmp_path / "a.jsonl", url, prompts, concurrency=1)
        first = [each.body["messages"] for each in asked if len(each.body["messages"]) <= 2]
    assert first == [
        [{"role": "user", "content": "Why is the sky blue?"}],
        [{"role": "user", "content": "Translate into French.\n\nA red house"}],
        [{"role": "system", "content": "You rhyme."}, {"role": "user", "content": "Tell me about rain."}],
    ]
    assert [each["rule"] for each in read(tmp_path / "a.dropped.jsonl")] == ["no_prompt", "no_prompt"]
    assert [each["generation"]["parents"] for each in read(tmp_path / "a.jsonl")] == [
        ["one"], ["prompts.jsonl:2"], ["prompts.jsonl:3"],
    ]  # fmt: skip
    with serving(script) as (url, asked):
        run("magpie", tmp_path / "m.jsonl", url, prompts)
    raw = next(each for each in asked if "prompt" in each.body)
    assert raw.path == "/v1/completions"
    assert raw.body["prompt"] == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    assert raw.body["stop"] == ["<|im_end|>"]
    user = next(each for each in asked if "You play a person" in str(each.body))
    assert [each["role"] for each in user.body["messages"]] == ["system", "user", "assistant", "user"]


def test_what_a_model_does_wrong_is_dropped_with_its_reason(tmp_path: Path, prompts: Path) -> None:
    answers = {
        "Why is the sky blue?": reply("half an", finish="length"),
        "Translate into French.\n\nA red house": reply(None),
        "Tell me about rain.": reply("", finish="content_filter"),
    }
    with serving(lambda _, asked: answers[asked.body["messages"][-1]["content"]]) as (url, _):
        result = run("answers", tmp_path / "out.jsonl", url, prompts)
    assert result.accepted == 0 and (tmp_path / "out.jsonl").read_bytes() == b""
    assert result.dropped == {"cut_off": 1, "empty": 1, "no_prompt": 2, "withheld": 1}
    drop = next(each for each in read(result.dropped_file) if each["rule"] == "cut_off")
    assert (drop["text"], drop["prompt"]) == ("half an", "Why is the sky blue?")


def test_a_later_turn_that_fails_leaves_the_exchanges_before_it(tmp_path: Path, prompts: Path) -> None:
    def bad_second(_: int, asked: Asked) -> Answer:
        return error(400, "too long") if len(asked.body["messages"]) > 3 else write(dict(asked.body))

    with serving(bad_second) as (url, _):
        result = run("answers", tmp_path / "out.jsonl", url, prompts, turns=3)
    assert result.dropped["failed"] == 3 == result.accepted
    assert all(
        [each["role"] for each in record["messages"]][-2:] == ["user", "assistant"] for record in read(result.output)
    )


def test_rewritings_that_copy_speak_of_themselves_or_say_sorry_are_dropped(tmp_path: Path, prompts: Path) -> None:
    rewritings = {
        "blue": reply("Why is the sky blue?"),
        "French": reply("Here is the rewritten request: translate a poem."),
        "rain": reply("Name nine things that rain does to a city."),
    }

    def evolve(_: int, asked: Asked) -> Answer:
        content = asked.body["messages"][-1]["content"]
        if content.startswith("Rewrite"):
            return next(answer for word, answer in rewritings.items() if word in content)
        return reply("I am sorry, I cannot do that.")

    with serving(evolve) as (url, _):
        result = run("evol", tmp_path / "out.jsonl", url, prompts, rounds=1)
    assert result.dropped == {"copy": 1, "leak": 1, "no_prompt": 2, "sorry": 1}


def test_a_model_that_repeats_itself_ends_the_run(tmp_path: Path, prompts: Path) -> None:
    with serving(lambda *_: reply("Say the same thing again please.", chat=False)) as (url, asked):
        chat = run("magpie", tmp_path / "out.jsonl", url, prompts, turns=1, count=40, attempts=1)
    assert chat.ended == "fruitless" and chat.dropped["similar"] >= 50 and len(asked) < 110


def test_prompts_to_spare_are_used_where_talks_fail_and_are_dropped_at_the_end(tmp_path: Path, prompts: Path) -> None:
    def half(_: int, asked: Asked) -> Answer:
        if "prompt" in asked.body or asked.body["seed"] % 2:
            return write(dict(asked.body))
        return reply("half", finish="length")

    with serving(half) as (url, asked):
        result = run("magpie", tmp_path / "out.jsonl", url, prompts, turns=1, count=10)
    made = sum("prompt" in each.body for each in asked)
    assert result.accepted == 10 and result.dropped["cut_off"] > 2
    assert made == result.accepted + sum(result.dropped.values()) <= 60


def test_a_setting_that_the_server_does_not_know_ends_the_run_and_can_be_replaced(tmp_path: Path) -> None:
    def strict(_: int, asked: Asked) -> Answer:
        return error(400, "use max_completion_tokens") if "max_tokens" in asked.body else write(dict(asked.body))

    (tmp_path / "many.txt").write_text("".join(f"Question {number}?\n" for number in range(60)))
    settings: dict[str, Any] = {"prompts": tmp_path / "many.txt", "concurrency": 2}
    body = json.dumps({"max_tokens": None, "max_completion_tokens": 50, "seed": None})
    with serving(strict) as (url, asked):
        with pytest.raises(ServerError, match=r"20 requests in a row failed: 400: use max_completion_tokens; mend"):
            curate.generate("answers", "stub", tmp_path / "out.jsonl", server=url, **settings)
        for wrong in ("[1]", "{", '{"messages": []}'):
            with pytest.raises(RecipeError, match="body"):
                curate.generate("answers", "stub", tmp_path / "x.jsonl", server=url, body=wrong, **settings)
        out = tmp_path / "new.jsonl"
        assert curate.generate("answers", "stub", out, server=url, body=body, **settings).accepted == 60
    assert asked[-1].body["max_completion_tokens"] == 50 and "seed" not in asked[-1].body


@pytest.mark.parametrize("limits", [{"max_calls": 5}, {"max_tokens": 1300}], ids=["calls", "tokens"])
def test_a_budget_ends_the_run_and_a_larger_one_continues_it(
    limits: dict[str, int], tmp_path: Path, prompts: Path
) -> None:
    with serving(script) as (url, asked):
        whole = run("magpie", tmp_path / "whole.jsonl", url, prompts)
        count = len(asked)
        part = run("magpie", tmp_path / "part.jsonl", url, prompts, **limits)
        assert part.ended == "budget" and part.accepted < whole.accepted
        assert part.calls <= limits.get("max_calls", 1000) and part.tokens <= limits.get("max_tokens", 10**6)
        assert part.calls == len(asked) - count and part.message
        run("magpie", tmp_path / "part.jsonl", url, prompts)
        assert len(asked) == 2 * count
    assert written(tmp_path / "part.jsonl") == written(tmp_path / "whole.jsonl")


def test_a_server_that_goes_away_leaves_the_journal_and_the_earlier_dump(tmp_path: Path, prompts: Path) -> None:
    def dying(number: int, asked: Asked) -> Answer:
        return error(503, "gone") if number > 4 else write(dict(asked.body))

    with serving(dying) as (url, _), pytest.raises(ServerError, match="type the same command"):
        run("answers", tmp_path / "out.jsonl", url, prompts, attempts=2)
    assert not (tmp_path / "out.jsonl").exists()
    with serving(script) as (url, asked):
        assert run("answers", tmp_path / "out.jsonl", url, prompts).accepted == 3
    assert len(asked) < 9
    with serving(script) as (url, _), pytest.raises(RunError, match="another settings"):
        run("answers", tmp_path / "out.jsonl", url, prompts, seed=7)
    with serving(script) as (url, _):
        assert run("answers", tmp_path / "out.jsonl", url, prompts, seed=7, fresh=True).accepted == 3
    assert (tmp_path / "out.journal.old").exists()


def test_wrong_settings_are_one_line_before_anything_is_asked(tmp_path: Path, prompts: Path) -> None:
    def refuse(error: type[Exception], match: str, method: str, **settings: Any) -> None:
        with pytest.raises(error, match=match) as caught:
            curate.generate(method, "stub", tmp_path / "out.jsonl", **{"server": url, **settings})
        assert "\n" not in str(caught.value)

    (tmp_path / "mine.jsonl").write_text("mine\n")
    with serving(script) as (url, asked):
        refuse(InputError, "needs prompts: --prompts", "answers")
        refuse(InputError, "makes its own prompts", "magpie", prompts=prompts)
        refuse(InputError, "magpie needs the model's prompt template", "magpie")
        refuse(InputError, "no prompt template 'nono'", "magpie", template="nono")
        refuse(InputError, "where the user's text begins", "magpie", template="plain")
        refuse(RecipeError, "turns has no effect on self-instruct", "self-instruct", turns=2)
        refuse(RecipeError, "no method 'evo'; did you mean 'evol'", "evo")
        refuse(InputError, "no seeds in the language 'xx'", "self-instruct", languages=("xx",))
        refuse(InputError, "cannot read", "answers", prompts=tmp_path / "none.txt")
        refuse(InputError, "not the address of a server", "self-instruct", server="nowhere")
        refuse(InputError, "--max-calls 9 or --max-tokens", "self-instruct", server="https://api.example.org")
        with pytest.raises(SetError, match="no journal of this command"):
            curate.generate("self-instruct", "stub", tmp_path / "mine.jsonl", server=url)
    assert asked == [] and (tmp_path / "mine.jsonl").read_text() == "mine\n"


# ---- the command


def call(*arguments: object, **environment: str) -> Result:
    return CliRunner(env={"OPENAI_API_KEY": "", **environment}).invoke(cli, ["generate", *map(str, arguments)])


def test_the_command_tells_the_plan_first_and_writes_the_key_nowhere(tmp_path: Path) -> None:
    def echo(number: int, asked: Asked) -> Answer:
        if number == 0:
            return error(500, f"wrong {KEY}")
        return reply(f"### 1\nInstruction: Repeat the words {KEY} now.\nOutput: {asked.headers['Authorization']}\n")

    out = tmp_path / "out.jsonl"
    with serving(echo) as (url, asked):
        options = ("self-instruct", "--server", url, "--model", "stub", "--count", 1, "-o", out)
        planned = call(*options, "--dry-run", MY_KEY=KEY)
        assert planned.exit_code == 0 and asked == [] and not out.exists()
        result = call(*options, "--key-env", "MY_KEY", MY_KEY=KEY)
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith(
        "self-instruct: 1 conversation by stub: about 1 call and up to 3,572 tokens, more if replies"
    )
    assert "1 conversation in" in result.stdout
    assert asked[0].headers["Authorization"] == f"Bearer {KEY}"
    everything = "".join(path.read_text() for path in tmp_path.iterdir()) + result.output
    assert KEY not in everything and "[key]" in everything
    as_json = call(*options, "--json", "--fresh")
    assert as_json.exit_code == 1 and "cannot be used" in as_json.stderr  # the server is gone


def test_without_the_extra_one_line_names_it() -> None:
    code = (
        "import sys; sys.modules['httpx'] = None\n"
        "from curate.cli import main\nsys.argv = ['curate', 'generate', 'evol', '--model', 'x']\nmain()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "curate generate needs the extra [generate]: pip install" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_killed_process_continues(tmp_path: Path, prompts: Path) -> None:
    def slow(_: int, asked: Asked) -> Answer:
        return Answer(write(dict(asked.body)).body, delay=0.15)

    def command(name: str, url: str) -> list[str]:
        options = ["--server", url, "--model", "stub", "--template", "chatml", "--count", "12", "--concurrency", "2"]
        return [sys.executable, "-m", "curate", "generate", "magpie", *options, "-o", str(tmp_path / name)]

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with serving(slow) as (url, asked):
        subprocess.run(command("whole.jsonl", url), env=environment, check=True)
        count = len(asked)
        for stop in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
            process = subprocess.Popen(command("part.jsonl", url), env=environment, stderr=subprocess.PIPE, text=True)
            before = len(asked)
            while len(asked) < before + 5 and process.poll() is None:
                time.sleep(0.02)
            process.send_signal(stop)
            told = process.communicate()[1]
            assert stop == signal.SIGKILL or "type the same command to continue" in told
        subprocess.run(command("part.jsonl", url), env=environment, check=True)
        assert len(asked) <= 2 * count + 6  # those under way at a kill
    assert written(tmp_path / "part.jsonl") == written(tmp_path / "whole.jsonl")
