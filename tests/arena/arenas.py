"""A page of blind votes, served over HTTP in a thread of the test."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import httpx

from curate.arena import run
from curate.arena.app import make_app
from curate.arena.battle import Arena
from curate.arena.contestants import AnswerFile, AskSettings
from curate.arena.votes import VoteFile
from curate.report.html.conversation import render_markdown
from curate.serving import server
from curate.serving.access import Access
from tests.support.stub_server import Answer

HOSTILE = (
    '<script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">\n\n'
    "[click](javascript:document.title='owned') ![x](http://evil.test/x.png)\n\n"
    "```html\n<iframe src=javascript:alert(1)></iframe>\n```\n\u202egnp.exe \x1b[31mred "
    "</textarea></div></section><b onmouseover=alert(1)>" + "W" * 300
)


def write_answers(path: Path, answers: dict[str, str]) -> Path:
    """Write a file of answers."""
    path.write_text("".join(json.dumps({"instruction": key, "output": value}) + "\n" for key, value in answers.items()))
    return path


def streamed(*parts: str, finish: str = "stop", done: bool = True) -> Answer:
    """Return a streamed reply of a server with OpenAI's API."""
    deltas = [{"delta": {"role": "assistant", "content": ""}}, *({"delta": {"content": part}} for part in parts)]
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, **delta}]} for delta in deltas]
    chunks += [{"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}, {"choices": [], "usage": {}}]
    events = "".join(f": keep-alive\n\ndata: {json.dumps(chunk)}\n\n" for chunk in chunks)
    return Answer((events + "data: [DONE]\n\n" * done).encode(), headers={"Content-Type": "text/event-stream"})


@contextmanager
def serving(
    sources: Sequence[str], votes: Path, *, prompts: Path | None = None, access: Access | None = None, system: str = ""
) -> Iterator[tuple[Voter, list[str]]]:
    """Serve a page; yield a voter at it, and what is said on the terminal."""
    said: list[str] = []
    with ExitStack() as stack:
        bound = stack.enter_context(server.bind("127.0.0.1", 0))
        file = stack.enter_context(VoteFile(votes))
        entries = run.read_entries(sources)
        opened = run.open_contestants(entries, None, key_for_all=False, say=said.append)
        contestants = stack.enter_context(opened)
        shown = run.choose_prompts(contestants, prompts, said.append)
        typed = not any(isinstance(each, AnswerFile) for each in contestants)
        settings = AskSettings(0.5, 64, system)
        arena = Arena(contestants, shown, settings, typed=typed, past=run.past_pairings(votes), chance=random.Random(0))
        allowed = access or Access(None, ("localhost", "127.0.0.1"))
        ready = threading.Event()
        app = make_app(arena, file, allowed, render_markdown, said.append)
        running = server.make_server(app, ready.set)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        assert ready.wait(30)
        try:
            yield stack.enter_context(Voter(server.url(bound))), said
        finally:
            running.should_exit = True
            thread.join(30)


class Voter:
    """Someone at the page, who keeps all that the server has sent."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=30)
        self.seen = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def post(self, path: str, **body: Any) -> httpx.Response:
        """Send what the page sends."""
        reply = self.http.post(path, json=body)
        self.seen += f"{reply.headers}{reply.text}"
        return reply

    def start(self) -> dict[str, Any]:
        """Begin a battle."""
        return dict(self.post("/battles").json())

    def ask(self, battle: dict[str, Any], text: str = "") -> list[dict[str, Any]]:
        """Return the parts of both answers."""
        reply = self.post(f"/battles/{battle['id']}/prompts", text=text)
        assert reply.status_code == 200, reply.text
        return [json.loads(line) for line in reply.text.splitlines()]

    def vote(self, battle: dict[str, Any], vote: str) -> httpx.Response:
        """Vote."""
        return self.post(f"/battles/{battle['id']}/vote", vote=vote)


def texts(parts: list[dict[str, Any]]) -> dict[str, str]:
    """Return the text of each side."""
    return {side: "".join(part["text"] for part in parts if part.get("side") == side) for side in ("left", "right")}
