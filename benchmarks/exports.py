"""Measure reading of chat exports on one core, from bytes to conversations: ChatGPT's and Claude's.

    python benchmarks/exports.py [--megabytes 100] [--repeats 3]

The exports are generated: chats of 2 to 30 turns with regenerated answers, hidden nodes, tool calls, thoughts,
citations and metadata as in exports of 2026. CPU seconds, best of the repeats; MB are 10^6 bytes of JSON. `chunks`:
cutting the file into records. `decode`: bytes to JSON values. `read`: values to conversations. `all`: all three.
"""

from __future__ import annotations

import gc
import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common import MB, parse, parser, save, table

from curate.engine.base import gc_disabled
from curate.ingest.decode import Chunk, decode_records
from curate.ingest.reader import Reader
from curate.ingest.sources import open_inputs
from curate.schemas import formats

WORDS = (
    "the",
    "a",
    "of",
    "and",
    "한국어",
    "정렬",
    "模型",
    "answer",
    "list",
    "function",
    "`code`",
    "**bold**",
    "between",
)
Json = dict[str, object]


def text(random_: random.Random, words: int) -> str:
    """Return words in paragraphs."""
    return " ".join(random_.choice(WORDS) + ("\n\n" if random_.random() < 0.02 else "") for _ in range(words))


def node(key: str, parent: str | None, role: str, content: Json, **message: object) -> Json:
    """Return a node of ChatGPT's export with the keys that all have."""
    defaults: Json = {
        "id": key,
        "author": {"role": role, "name": message.pop("name", None), "metadata": {}},
        "create_time": 1_780_000_000.5 + len(key),
        "update_time": None,
        "content": content,
        "status": "finished_successfully",
        "end_turn": True if role == "assistant" else None,
        "weight": 1.0,
        "metadata": {
            "request_id": "9f8f0c0e-aaaa-bbbb-cccc-0123456789ab",
            "message_source": None,
            "timestamp_": "absolute",
            "turn_exchange_id": "0f9b6b3e-1111-2222-3333-444455556666",
        },
        "recipient": "all",
        "channel": None,
    }
    return {"id": key, "message": {**defaults, **message}, "parent": parent}


def chatgpt(random_: random.Random) -> Json:
    """Return one chat of ChatGPT's export."""
    nodes: list[Json] = [{"id": "root", "message": None, "parent": None}]
    ids = (f"{random_.getrandbits(128):032x}" for _ in itertools.count())
    last = "root"

    def add(role: str, content: Json, parent: str = "", **message: object) -> str:
        key = next(ids)
        nodes.append(node(key, parent or last, role, content, **message))
        return key

    last = add("system", {"content_type": "text", "parts": [""]}, weight=0.0)
    for _ in range(random_.randint(1, 15)):
        last = add("user", {"content_type": "text", "parts": [text(random_, random_.randint(5, 80))]})
        if random_.random() < 0.2:
            thoughts = [{"summary": "Thinking", "content": text(random_, 60), "chunks": [], "finished": True}]
            last = add("assistant", {"content_type": "thoughts", "thoughts": thoughts}, end_turn=False)
        if random_.random() < 0.15:
            last = add("assistant", {"content_type": "code", "language": "unknown", "text": text(random_, 40)},
                       recipient="python", end_turn=False)  # fmt: skip
            last = add("tool", {"content_type": "execution_output", "text": text(random_, 30)}, name="python")
        if random_.random() < 0.1:
            add("assistant", {"content_type": "text", "parts": [text(random_, random_.randint(20, 300))]})
        answer = text(random_, random_.randint(20, 400))
        if random_.random() < 0.1:
            answer += " \ue200cite\ue202turn0search1\ue201"
        last = add("assistant", {"content_type": "text", "parts": [answer]})
    return {"title": "A chat", "create_time": 1_780_000_000.1, "update_time": 1_780_000_009.1,
            "mapping": {str(item["id"]): item for item in nodes}, "current_node": last, "moderation_results": [],
            "plugin_ids": None, "conversation_id": next(ids), "default_model_slug": "gpt-5"}  # fmt: skip


def claude(random_: random.Random) -> Json:
    """Return one chat of Claude's export."""
    messages: list[Json] = []
    parent = "00000000-0000-4000-8000-000000000000"
    time_ = "2026-05-01T10:00:00.000000Z"
    for turn in range(random_.randint(2, 30)):
        key = f"{random_.getrandbits(128):032x}"
        body = text(random_, random_.randint(10, 300))
        blocks: list[Json] = [
            {"start_timestamp": time_, "stop_timestamp": time_, "type": "text", "text": body, "citations": []}
        ]
        if turn % 2 and random_.random() < 0.3:
            blocks.insert(0, {"type": "thinking", "thinking": text(random_, 60), "summaries": [], "cut_off": False})
        messages.append({"uuid": key, "text": body, "content": blocks, "sender": "assistant" if turn % 2 else "human",
                         "created_at": time_, "updated_at": time_, "attachments": [], "files": [],
                         "parent_message_uuid": parent})  # fmt: skip
        parent = key
    return {"uuid": f"{random_.getrandbits(128):032x}", "name": "A chat", "summary": "", "account": {"uuid": "a"},
            "created_at": time_, "updated_at": time_, "chat_messages": messages}  # fmt: skip


def write(file: Path, chat: Callable[[random.Random], Json], megabytes: int) -> None:
    """Write an export of at least this size."""
    random_ = random.Random(0)
    with file.open("w", encoding="utf-8") as out:
        out.write("[")
        for number in itertools.count():
            out.write((", " if number else "") + json.dumps(chat(random_), ensure_ascii=False))
            if out.tell() > megabytes * MB:
                break
        out.write("]")


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the fewest CPU seconds of several calls."""
    times = []
    for _ in range(repeats):
        with gc_disabled():  # as in the workers
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
        gc.collect()
    return min(times)


def chunks(file: Path) -> Iterator[Chunk]:
    """Yield the chunks of a file."""
    yield from Reader(open_inputs([file]))


def count(file: Path) -> int:
    """Read a file's conversations; return their number."""
    return sum(len(formats.parse_all(raw.value)) for chunk in chunks(file) for raw in decode_records(chunk))


def measure(file: Path, repeats: int) -> dict[str, object]:
    """Measure the steps of reading a file; return a row of figures in MB/s."""
    size = file.stat().st_size / MB
    found = list(chunks(file))
    values = [raw.value for chunk in found for raw in decode_records(chunk)]
    steps: dict[str, Callable[[], object]] = {
        "chunks": lambda: list(chunks(file)),
        "decode": lambda: [decode_records(chunk) for chunk in found],
        "read": lambda: [formats.parse_all(value) for value in values],
        "all": lambda: count(file),
    }
    rates = {name: round(size / seconds(work, repeats), 1) for name, work in steps.items()}
    return {"records": len(values), "mb": round(size, 1), "chunks_cut": len(found), **rates}


def main() -> None:
    """Print the table, write the result."""
    options = parser(__doc__)
    options.add_argument("--megabytes", type=int, default=100, help="size of each export (default 100)")
    options.add_argument("--repeats", type=int, default=3, help="runs of each step (default 3)")
    chosen = parse(options)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, chat in (("chatgpt", chatgpt), ("claude", claude)):
            file = Path(folder) / f"{name}.json"
            write(file, chat, chosen.megabytes)
            rows.append({"export": name, **measure(file, chosen.repeats)})
    print(table(list(rows[0]), [list(row.values()) for row in rows]))
    save("exports", {"repeats": chosen.repeats, "exports": rows}, chosen.no_save)


if __name__ == "__main__":
    main()
