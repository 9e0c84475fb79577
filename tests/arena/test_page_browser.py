"""The page of blind votes in a real Chromium: hostile answers stay text, keys vote, names come after the vote."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.arena.arenas import HOSTILE, serving, streamed, write_answers
from tests.support import browser, stub_server

pytestmark = pytest.mark.slow


def wait_for(chromium: browser.Browser, condition: str) -> None:
    until = time.monotonic() + 30
    while not chromium.run(condition):
        assert time.monotonic() < until, f"{condition}: {text(chromium)}"
        time.sleep(0.05)


def text(chromium: browser.Browser) -> str:
    return str(chromium.run("document.body.innerText"))


def picture(chromium: browser.Browser, name: str) -> None:
    """Take a screenshot where someone wants to look at it."""
    if folder := os.environ.get("CURATE_SCREENS"):
        chromium.picture(Path(folder) / f"arena_{name}.png")


@pytest.mark.parametrize("width", [1280, 380])
def test_hostile_answers_stay_text_and_keys_vote(tmp_path: Path, chromium: browser.Browser, width: int) -> None:
    markdown = "# Heading\n\n- one\n- **two**\n\n```python\nprint('x')\n```\n\n" + "A sentence of some length. " * 12
    one = write_answers(tmp_path / "one.jsonl", {HOSTILE: HOSTILE, "Second": markdown})
    two = write_answers(tmp_path / "two.jsonl", {HOSTILE: HOSTILE + "!", "Second": "short"})
    sources = [f"<b>zebra</b>{'n' * 90}={one}", f"okapi={two}"]
    with serving(sources, tmp_path / "v.jsonl") as (voter, _):
        chromium.open(voter.url, width=width)
        wait_for(chromium, "!document.querySelector('[data-vote=left]').disabled")
        picture(chromium, f"hostile_{width}")
        assert "zebra" not in chromium.run("document.documentElement.outerHTML")
        assert "okapi" not in chromium.run("document.documentElement.outerHTML")
        assert chromium.run("document.title") == "Blind votes · curate arena"
        assert (
            chromium.run("document.querySelectorAll('main img, main iframe, main script, main a, main b').length") == 0
        )
        assert chromium.run("document.documentElement.scrollWidth") <= width
        assert "\\u202egnp.exe" in text(chromium) and "\u202e" not in text(chromium)
        chromium.press("1")
        wait_for(chromium, "document.getElementById('result').textContent.includes('okapi')")
        assert "<b>zebra</b>" in text(chromium)
        picture(chromium, f"voted_{width}")
        assert chromium.run("document.querySelectorAll('.left.won').length") == 1
        assert chromium.run("document.documentElement.scrollWidth") <= width
        chromium.press("n")
        wait_for(
            chromium,
            "document.body.innerText.includes('Second') && !document.querySelector('[data-vote=tie]').disabled",
        )
        picture(chromium, f"markdown_{width}")
        chromium.press("=")
        wait_for(chromium, "!document.getElementById('next').hidden")
        chromium.press("n")
        wait_for(chromium, "document.body.innerText.includes('All prompts have a vote')")
        events = chromium.events_of("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        assert [event["params"] for event in events] == []
        sent = [event["params"]["request"]["url"] for event in chromium.events_of("Network.requestWillBeSent")]
        assert all(each.startswith(voter.url) for each in sent)
    assert (tmp_path / "v.jsonl").read_text().count('"winner": "model_a"') == 1


def test_typed_prompts_are_answered_over_several_turns(tmp_path: Path, chromium: browser.Browser) -> None:
    replies = iter([stub_server.error(503), *[streamed("Hi ", "there")] * 9])
    with (
        stub_server.serving(lambda *_: next(replies)) as (url, _),
        serving([f"a={url}/v1#m", f"b={url}/v1#m"], tmp_path / "v.jsonl") as (voter, _),
    ):
        chromium.open(voter.url)
        wait_for(chromium, "document.activeElement.id === 'prompt'")
        for turn in ("Hello = 1", "And more"):
            chromium.call("Input.insertText", text=turn)
            chromium.press("Enter")
            if turn == "Hello = 1":
                wait_for(chromium, "!document.getElementById('again').hidden")
                picture(chromium, "failed")
                chromium.run("document.getElementById('again').click()")
            wait_for(
                chromium, "!document.getElementById('ask').hidden && document.getElementById('prompt').value === ''"
            )
            chromium.run("document.getElementById('prompt').focus()")
        chromium.run("document.activeElement.blur()")
        picture(chromium, "typed")
        assert text(chromium).count("Hi there") == 4
        chromium.press("b")
        wait_for(chromium, "document.getElementById('result').textContent.startsWith('Left: ')")
    assert '"winner": "tie (bothbad)"' in (tmp_path / "v.jsonl").read_text()
