"""`curate arena MODEL MODEL`: open the contestants, and serve the page until a signal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from curate.arena.app import Render, Say, make_app
from curate.arena.battle import Arena, Pairing
from curate.arena.contestants import AnswerFile, AskSettings, Contestant, Server
from curate.arena.prompts import Prompt, read_answers, read_prompts
from curate.arena.votes import VoteFile, lines
from curate.client.endpoint import Endpoint, make_endpoint
from curate.dataset import manifest
from curate.errors import InputError, error_message
from curate.serving import server
from curate.serving.access import Address

OPENAI = "https://api.openai.com/"
WAITING = 256  # answers that may wait for a local model


@dataclass(frozen=True)
class Entry:
    """An argument: a name, and what answers under it."""

    name: str
    source: str
    kind: str  # server, file or model


def read_entries(arguments: Sequence[str]) -> list[Entry]:
    """Return the contestants from arguments `NAME=SOURCE` or `SOURCE`; raises InputError for fewer than two names."""
    entries = [_entry(argument) for argument in arguments]
    if len(entries) < 2:
        raise InputError("a battle needs two: curate arena MODEL MODEL; ratings of votes: curate arena --ratings")
    repeated = [name for name, count in Counter(entry.name for entry in entries).items() if count > 1]
    if repeated:
        raise InputError(f"two would be named {repeated[0]!r}; name them: FIRST={entries[0].source} SECOND=…")
    return entries


def _entry(argument: str) -> Entry:
    name, equals, source = argument.partition("=")
    if not equals or _is_url(argument) or Path(argument).exists():
        name, source = "", argument
    elif not name or not source:
        raise InputError(f"{argument!r} is neither SOURCE nor NAME=SOURCE")
    path = Path(source).expanduser()
    if _is_url(source):
        url, _, model = source.partition("#")
        return Entry(name or model or url, source, "server")
    if (path.is_file() and path.suffix != ".gguf") or manifest.is_set(path):
        return Entry(name or path.stem, source, "file")
    if path.suffix in (".json", ".jsonl", ".parquet"):
        raise InputError(f"there is no file {source!r}")
    return Entry(name or _default_name(source), source, "model")


def _default_name(source: str) -> str:
    from curate.serving.models import default_name

    return default_name(source)


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def open_server(name: str, source: str, key: str | None, *, key_for_all: bool) -> Server:
    """Return a server's model, from `URL#MODEL`, or `URL` if it has one model only; raises InputError.

    The key goes to OpenAI alone, unless `key_for_all`.
    """
    url, _, model = source.partition("#")
    endpoint = make_endpoint(url, key if key_for_all or url.startswith(OPENAI) else None)
    return Server(name, endpoint, model or _only_model(endpoint))


def _only_model(endpoint: Endpoint) -> str:
    """Return the name of the one model that a server has; raises InputError if it has others."""
    try:
        reply = httpx.get(f"{endpoint.url}/models", headers=endpoint.headers, timeout=30)
        names = [entry["id"] for entry in reply.raise_for_status().json()["data"]]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        why = endpoint.hide_key(error_message(error))
        raise InputError(f"{endpoint.url} does not list its models ({why}); name one: {endpoint.url}#MODEL") from None
    if len(names) != 1 or not isinstance(names[0], str):
        known = ", ".join(map(str, names[:5])) or "none"
        raise InputError(f"{endpoint.url} has {len(names)} models ({known}); name one: {endpoint.url}#MODEL")
    return names[0]


@contextmanager
def open_contestants(
    entries: Sequence[Entry], key: str | None, *, key_for_all: bool, say: Say, **loading: Any
) -> Iterator[list[Contestant]]:
    """Yield the contestants, in their order; the threads of local models end afterwards. Raises CurateError."""
    opened: dict[str, Contestant] = {}
    for entry in entries:
        if entry.kind == "server":
            opened[entry.name] = open_server(entry.name, entry.source, key, key_for_all=key_for_all)
        elif entry.kind == "file":
            chats, counts = read_answers(Path(entry.source))
            left = counts.describe()
            say(f"{entry.name}: {len(chats):,} answered prompts in {entry.source}{f' (left out: {left})' * bool(left)}")
            opened[entry.name] = AnswerFile(entry.name, Path(entry.source), chats)
    models = {entry.name: entry.source for entry in entries if entry.kind == "model"}
    close = []
    try:
        if models:
            from curate.arena.local import LocalModel
            from curate.serving.models import Limits, load

            for name, served in load(models, Limits(waiting=WAITING), say=say, **loading).items():
                close.append(served.worker.stop)
                opened[name] = LocalModel(served, models[name])
        yield [opened[entry.name] for entry in entries]
    finally:
        for stop in close:
            stop()


def choose_prompts(contestants: Sequence[Contestant], path: Path | None, say: Say) -> list[Prompt] | None:
    """Return the prompts of a file, or of the files of answers; None if there are neither.

    Those that not all files of answers have are left out. Raises InputError if none is left.
    """
    answered = [each for each in contestants if isinstance(each, AnswerFile)]
    if path is None and not answered:
        return None
    if path is None:
        prompts = list(dict.fromkeys(prompt for each in answered for prompt in each.prompts))
    else:
        prompts, counts = read_prompts(path)
        if left := counts.describe():
            say(f"{path}: left out: {left}")
    sets = [frozenset(each.prompts) for each in answered]
    shared = [prompt for prompt in prompts if all(prompt in each for each in sets)]
    if len(shared) < len(prompts):
        say(f"{len(prompts) - len(shared):,} of {len(prompts):,} prompts are left out: not all files answer them")
    if not shared:
        raise InputError("the files of answers have no prompt in common; give answers to the same prompts")
    return shared


def past_pairings(path: Path) -> Mapping[Pairing, int]:
    """Return how often each pair has met on each prompt, in a file of votes, which need not exist."""
    past: Counter[Pairing] = Counter()
    for _, line in lines(path) if path.exists() else ():
        if line and isinstance(line.get("model_a"), str) and isinstance(line.get("model_b"), str):
            past[frozenset((line["model_a"], line["model_b"])), str(line.get("prompt_id", ""))] += 1
    return past


def serve_arena(
    arguments: Sequence[str],
    votes: Path,
    address: Address,
    render: Render,
    say: Say,
    *,
    prompts: Path | None = None,
    settings: AskSettings = AskSettings(),  # noqa: B008
    key: str | None = None,
    key_for_all: bool = False,
    **loading: Any,
) -> None:
    """Serve the page until SIGINT or SIGTERM; `loading` are settings of `curate.chat` for local models.

    Raises CurateError with what to type.
    """
    entries, access = read_entries(arguments), address.access
    if settings.system and any(entry.kind == "file" for entry in entries):
        raise InputError("files of answers take no system prompt; leave --system out")
    with (
        server.bind(address.host, address.port) as bound,
        VoteFile(votes) as file,
        open_contestants(entries, key, key_for_all=key_for_all, say=say, **loading) as contestants,
    ):
        if file.repaired:
            say(f"{votes}: the last line was not whole, and its {file.repaired:,} bytes were cut")
        shown = choose_prompts(contestants, prompts, say)
        typed = not any(isinstance(each, AnswerFile) for each in contestants)
        arena = Arena(contestants, shown, settings, typed=typed, past=past_pairings(votes))
        page = f"{server.url(bound)}/{f'?token={quote(access.token)}' if access.token else ''}"
        _serve(make_app(arena, file, access, render, say), bound, lambda: say(f"vote at {page}; Ctrl-C stops"), say)
    say(f"votes are in {votes}; their ratings: curate arena --ratings --votes {votes}")


def _serve(app: Any, bound: Any, announce: Any, say: Say) -> None:
    try:
        server.make_server(app, announce).run(sockets=[bound])
    except KeyboardInterrupt:
        say("stopped")
