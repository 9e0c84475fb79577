"""Measure the paths of each tokenizer on real messages, and the splitter on conversations.

    python benchmarks/tokens.py [DUMP…] [--tokenizer FOLDER]… [--check]

One core, CPU seconds, best of three. `first` is the first pass over the texts by a new tokenizer; `best` is usually a
later one, since fastokens and the table of words cache their results. With your own dumps nothing is saved. `--check`
compares the ids of every distinct message with those of the reference.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before fastokens and tokenizers start their threads.
os.environ.update(FASTOKENS_BPE_THREADS="1", RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

from common import parse, parser, save

from curate.rendering.splitter import split_batch
from curate.schemas import prompts
from curate.schemas.conversation import Message, Role
from curate.tokenization import vocabulary
from curate.tokenization.tokenizer import Tokenizer, fastokens_encoder, load_tokenizer

ROLES: dict[str, Role] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
BATCH = 500  # conversations, about what a chunk of 4 MB holds


def conversations(files: list[Path]) -> Iterator[list[Message]]:
    """Yield the messages of every record that has messages."""
    for file in files:
        data = file.read_bytes()
        for record in json.loads(gzip.decompress(data) if file.suffix == ".gz" else data):
            turns = (record.get("conversations") or record.get("items")) if isinstance(record, dict) else None
            messages = [
                Message(ROLES.get(str(turn.get("from")), "system"), turn["value"].encode("utf-8", "replace").decode())
                for turn in (turns if isinstance(turns, list) else [])
                if isinstance(turn, dict) and isinstance(turn.get("value"), str)
            ]
            if messages:
                yield messages


def seconds(work: Callable[[], object], repeats: int = 3) -> list[float]:
    """Return the CPU seconds of each repeat."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return times


def measure(name: str | None, chats: list[list[Message]], check: bool) -> list[dict[str, Any]]:
    """Return one row for each path of a tokenizer, and one for the splitter in each template."""
    load_seconds = seconds(lambda: load_tokenizer(name))
    tokenizer = load_tokenizer(name)
    vocab = vocabulary.read(Path(tokenizer.info.source).read_bytes(), tokenizer.info.name)
    texts = [message.content for chat in chats for message in chat]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    rows: list[dict[str, Any]] = [{"tokenizer": tokenizer.info.name, "what": "load", "seconds": min(load_seconds)}]

    def row(label: str, times: list[float], **more: object) -> None:
        speed = {"first_mb_s": megabytes / times[0], "best_mb_s": megabytes / min(times)}
        rows.append({"tokenizer": tokenizer.info.name, "what": label, "seconds": min(times), **speed, **more})

    document = tokenizer.tokenizer_json()
    fast = fastokens_encoder(document)
    row("fastokens", seconds(lambda: fast(texts)))
    if (counter := tokenizer.word_counter) is not None:
        row("by words", seconds(lambda: counter.count(texts, [0] * len(texts))))
    row(f"reference: {vocab.kind}", seconds(lambda: [vocab.reference(text) for text in texts], 1))
    hugging_face = vocabulary.hugging_face_encoder(document)
    row("tokenizers", seconds(lambda: [hugging_face(text) for text in texts], 1))
    for template in prompts.TEMPLATES.values():
        if set(template.needs) <= set(tokenizer.control_ids):
            fresh = load_tokenizer(name)
            row(f"split, {template.name}", _split(chats, template, fresh))
    if check:
        distinct = list(dict.fromkeys(texts))
        wrong = sum(ids != vocab.reference(text) for text, ids in zip(distinct, tokenizer.ids(distinct), strict=True))
        rows.append({"tokenizer": tokenizer.info.name, "what": f"differ, of {len(distinct)}", "seconds": wrong})
    return rows


def _split(chats: list[list[Message]], template: prompts.Template, tokenizer: Tokenizer) -> list[float]:
    starts = range(0, len(chats), BATCH)
    return seconds(lambda: [split_batch(chats[i : i + BATCH], template, tokenizer, 2048) for i in starts])


def main() -> None:
    """Measure, print the table, write the result."""
    command_line = parser(__doc__)
    command_line.add_argument(
        "dump", type=Path, nargs="*", help="ShareGPT JSON, .gz or not (default: the shared dump's truth)"
    )
    command_line.add_argument(
        "--tokenizer", action="append", help="a folder (default: the shared LLaMA-2's, and llama3)"
    )
    command_line.add_argument("--check", action="store_true", help="compare every distinct message with the reference")
    options = parse(command_line)
    dumps = options.dump or [options.shared / "data/source_markdown.json.gz"]
    chats = list(conversations(dumps))
    names = options.tokenizer or [str(options.shared / "tokenizers/llama2"), "llama3"]
    rows = [row for name in names for row in measure(name, chats, options.check)]
    print(f"{len(chats)} conversations, {sum(map(len, chats))} messages; one core, CPU seconds", file=sys.stderr)
    for row in rows:
        speeds = "".join(f"  {row[key]:7.1f}" for key in ("first_mb_s", "best_mb_s") if key in row)
        print(f"{row['tokenizer']:10} {row['what']:20} {row['seconds']:8.3f}{speeds}")
    result = {"dumps": [dump.name for dump in dumps], "conversations": len(chats), "rows": rows}
    save("tokens", result, options.no_save or bool(options.dump))


if __name__ == "__main__":
    main()
