"""Measure each stage of cleaning on one core, compared with the figures that the design assumed.

    python benchmarks/stages.py

MB are 10^6 bytes of the stage's input; CPU time, best of three. The last table is a run with one worker, and shows how
its time is divided among the steps.
"""

from __future__ import annotations

import gc
import gzip
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from inspect import unwrap
from pathlib import Path
from typing import TypeVar

import msgspec
import polars as pl
from common import MB, Row, copies, parse, parser, remove, save, source_rows, table, write_dump

import curate
from curate import markdown
from curate.errors import RecordError
from curate.filters import measure, mentions, refusals
from curate.filters.caps import cap
from curate.filters.minhash import signatures, words
from curate.filters.minhash.shingles import shingle
from curate.filters.personal_data import matching
from curate.filters.phrases.identity import find_sentences
from curate.filters.text.degeneration import Answer, find_repetition
from curate.filters.text.emptiness import find_emptiness
from curate.filters.text.endings import find_cut
from curate.filters.verdicts import Filters
from curate.ingest.chunker import Chunker
from curate.ingest.contents import Opener
from curate.ingest.decode import decode_records
from curate.ingest.reader import Reader
from curate.ingest.sources import open_inputs
from curate.ingest.streams import Meter
from curate.schemas import formats
from curate.tokenization.tokenizer import load_tokenizer

T = TypeVar("T")
THREADS = ("POLARS_MAX_THREADS", "RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
ONE_CORE = {**dict.fromkeys((*THREADS, "FASTOKENS_BPE_THREADS"), "1"), "TOKENIZERS_PARALLELISM": "false"}
BATCH = 500  # conversations
DESIGN = {  # per second on one core: MB, or documents for the language
    "ingest: cut at records": 681.0,
    "ingest: decode records": 424.0,
    "answers: HTML to markdown": 60.0,
    "language (documents/s)": 7000.0,
    "near duplicates (conversations/s)": 7000.0,
    "personal data and secrets": 40.0,
    "tokens: LLaMA-2": 24.0,
    "tokens: LLaMA-3": 75.0,
}


def best_of(count: int, work: Callable[[], T]) -> tuple[float, T]:
    """Return the least CPU seconds of several runs and the last result, without garbage collection, as in a worker."""
    gc.collect()
    gc.disable()
    seconds = []
    for _ in range(count):
        begin = time.process_time()
        result = work()
        seconds.append(time.process_time() - begin)
    gc.enable()
    return min(seconds), result


def _size(texts: Sequence[str]) -> float:
    return sum(len(text.encode()) for text in texts) / MB


class _Unhashed(Meter):
    """Counts blocks without hashing them: the design's figure is for cutting, and SHA-256 has its own row."""

    def update(self, block: bytes) -> bytes:
        """Count a block."""
        self.bytes += len(block)
        return block


def _cut(dump: Path) -> int:
    """Cut a dump into chunks, as the reader does; return their number."""
    (source,) = open_inputs([dump])
    reader = Reader([source])

    def fail(*damage: object) -> None:
        raise SystemExit(f"damage in {dump}: {damage}")

    (content,) = Opener(_Unhashed(), reader.limits, None, fail, fail, lambda _: None).open(source)
    blocks = (block for block in content.blocks if isinstance(block, bytes))
    return sum(1 for _ in Chunker(blocks, reader.chunk_bytes, reader.max_record_bytes, fail))


def ingest_stages(dump: Path, count: int) -> Iterator[tuple[str, float]]:
    """Yield the MB/s of cutting the dump, decoding its records, and parsing them."""
    megabytes = dump.stat().st_size / MB
    spent, _ = best_of(count, lambda: _cut(dump))
    yield "ingest: cut at records", megabytes / spent
    data = dump.read_bytes()
    spent, _ = best_of(count, lambda: hashlib.sha256(data).hexdigest())
    yield "ingest: SHA-256 of the input", megabytes / spent
    spent, _ = best_of(count, lambda: sum(1 for _ in Reader(open_inputs([dump]))))
    yield "ingest: cut, with SHA-256", megabytes / spent
    chunks = list(Reader(open_inputs([dump])))
    raws = [record.raw for chunk in chunks for record in decode_records(chunk)]
    decode = msgspec.json.Decoder().decode
    spent, _ = best_of(count, lambda records=raws: sum(1 for raw in records if decode(raw)))  # type: ignore[misc]
    yield "msgspec alone: decode records", megabytes / spent
    del raws
    spent, _ = best_of(count, lambda: sum(len(decode_records(chunk)) for chunk in chunks))
    yield "ingest: decode records", megabytes / spent
    records = [record for chunk in chunks for record in decode_records(chunk)]

    def parse_all() -> None:
        for record in records:
            try:
                formats.parse(record.value)
            except RecordError:
                continue

    spent, _ = best_of(count, parse_all)
    yield "schemas: record to messages", megabytes / spent


def text_stages(shared: Path, count: int) -> Iterator[tuple[str, float]]:
    """Yield the rates of converting answers, detecting languages, counting tokens, and writing Parquet."""
    rows = source_rows(shared)
    values = [(turn["from"], turn["value"]) for row in rows for turn in row["conversations"]]
    answers = [value for role, value in values if role == "gpt" and markdown.looks_like_html(value)]
    spent, converted = best_of(count, lambda: markdown.to_markdown(answers))
    yield "answers: HTML to markdown", _size(answers) / spent
    prompts = [value for role, value in values if role == "human"]
    texts = [*prompts, *converted]
    yield from language_stage(shared, count)
    yield from near_stage(rows, count)
    yield cap_stage(count)
    yield from score_stages(count)
    yield from contamination_stage(rows, count)
    for name, source in (("tokens: LLaMA-2", str(shared / "tokenizers/llama2")), ("tokens: LLaMA-3", "llama3")):
        tokenizer = load_tokenizer(source)
        spent, _ = best_of(count, lambda loaded=tokenizer: loaded.counts(texts))  # type: ignore[misc]
        yield name, _size(texts) / spent
        if (counter := tokenizer.word_counter) is not None:
            counter.count(texts, [0] * len(texts))  # the next pass knows all words, as in later chunks of a dump
            spent, _ = best_of(count, lambda counter=counter: counter.count(texts, [0] * len(texts)))  # type: ignore[misc]
            yield f"{name}, by words", _size(texts) / spent
    frame = pl.DataFrame({"text": texts})
    target = Path(os.devnull)
    spent, _ = best_of(count, lambda: frame.write_parquet(target, compression="zstd", row_group_size=20_000))
    yield "Parquet, zstd", _size(texts) / spent


def language_stage(shared: Path, count: int) -> Iterator[tuple[str, float]]:
    """Yield the rate of language detection on the labelled sentences, one conversation each."""
    sentences = pl.read_ndjson(shared / "data/languages.jsonl.gz")["text"]
    frame = pl.DataFrame({"prompts": [[text] for text in sentences], "answers": [[] for _ in sentences]})
    frame = frame.with_columns(pl.col("answers").cast(pl.List(pl.String)))
    spent, _ = best_of(count, lambda: measure(frame, {"language": {}}))
    yield "language (documents/s)", len(sentences) / spent


def rule_stages(shared: Path, count: int) -> Iterator[tuple[str, float]]:
    """Yield the MB/s of rules that read texts."""
    answers = pl.Series([turn["value"] for row in source_rows(shared) for turn in row["conversations"]])
    megabytes = _size(answers.to_list())
    spent, _ = best_of(count, lambda: unwrap(refusals.classify)(answers))
    yield "refusals", megabytes / spent
    spent, _ = best_of(count, lambda: [matching.find(answers, family) for family in ("privacy", "secrets")])
    yield "personal data and secrets", megabytes / spent
    spent, _ = best_of(count, lambda: unwrap(find_sentences)(answers, mentions.NAMES, mentions.MAKERS))
    yield "identity", megabytes / spent
    frame = pl.DataFrame({"prompts": answers.implode(), "answers": pl.Series([[]], dtype=pl.List(pl.String))})
    for name in ("garbled_texts", "hidden_texts"):
        spent, _ = best_of(count, lambda name=name: measure(frame, {name: {}}))  # type: ignore[misc]
        yield name, megabytes / spent
    spent, _ = best_of(count, lambda: measure(pl.DataFrame({"answers": answers.implode()}), {"template_texts": {}}))
    yield "template_texts", megabytes / spent


def near_stage(rows: Sequence[Row], count: int) -> Iterator[tuple[str, float]]:
    """Yield the rate of words, shingles and bands, in batches as in a worker."""
    texts = [words.compose("\n".join(turn["value"] for turn in row["conversations"])) for row in rows]
    parts = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    spent, _ = best_of(count, lambda: [signatures.band_hashes(shingle(part)) for part in parts])
    yield "near duplicates (conversations/s)", len(texts) / spent


def cap_stage(count: int, size: int = 200_000) -> tuple[str, float]:
    """Return the rate of limiting clusters and languages, of made-up conversations: texts do not count."""
    number = pl.int_range(size, eager=True)
    frame = pl.DataFrame({"row": number, "last": number.hash(), "source_id": number.cast(pl.String)}).with_columns(
        protected=False,
        untrained=0,
        characters=number * 7919 % 10_007,
        messages=number % 9,
        source_file=pl.lit("dump.json"),
        model=pl.lit("gpt-4"),
        cluster=(number // 5).cast(pl.String),
        language=pl.when(number % 3 == 0).then(pl.lit("ko")).otherwise(pl.lit("en")),
    )
    spent, _ = best_of(count, lambda: cap(frame, cluster=3, language=size // 10))
    return "limits for each group (conversations/s)", size / spent


def score_stages(count: int, size: int = 200_000) -> Iterator[tuple[str, float]]:
    """Yield the rates of filters on what a model has measured, which is made up here: texts do not count."""
    part = pl.int_range(size, eager=True) * 7919 % 10_007 / 10_007
    frame = pl.DataFrame({"ifd": 1.1 * part, "worst_ifd": 1.2 * part, "unsafe_probability": part}).with_columns(
        answer_ifds=pl.concat_list("ifd", "worst_ifd"), unsafe_categories=pl.lit(["Hate", "Defamation"])
    )
    for name in ("misaligned", "unsafe"):
        filters = Filters({name: {"action": "drop"}})
        spent, _ = best_of(count, lambda filters=filters: filters.apply(frame))  # type: ignore[misc]
        yield f"{name} (conversations/s)", size / spent


def contamination_stage(rows: Sequence[Row], count: int) -> Iterator[tuple[str, float]]:
    """Yield the rate of comparing conversations with the benchmarks that curate has the fingerprints of."""
    fields = ("role", "content", "reasoning", "tool_calls")
    turns = pl.List(pl.Struct({name: pl.String() for name in fields}))
    roles = {"human": "user", "gpt": "assistant"}
    messages = [
        [(roles.get(turn["from"], "system"), turn["value"], None, None) for turn in row["conversations"]]
        for row in rows
    ]
    conversations = [[dict(zip(fields, message, strict=True)) for message in each] for each in messages]
    frame = pl.DataFrame({"messages": pl.Series(conversations, dtype=turns)})
    frame = frame.with_columns(rejected_answer=pl.lit(None, dtype=turns))
    size = _size([message[1] for each in messages for message in each])
    measure(frame.head(1), {"benchmark_overlap": {}})  # reads the fingerprints
    spent, _ = best_of(count, lambda: measure(frame, {"benchmark_overlap": {}}))
    yield "contamination: overlap with benchmarks", size / spent


def answer_stages(shared: Path, count: int) -> Iterator[tuple[str, float]]:
    """Yield the rates of filters that read whole answers, on the answers of the dump in markdown."""
    with gzip.open(shared / "data/source_markdown.json.gz") as file:
        chats = [[turn["value"] for turn in row["conversations"]] for row in msgspec.json.decode(file.read())]
    pairs = [(number, chat[0], text) for number, chat in enumerate(chats) for text in chat[1::2]]
    size = _size([text for _, _, text in pairs])
    answers = [Answer(*pair) for pair in pairs]
    parts = [answers[start : start + 4_000] for start in range(0, len(answers), 4_000)]  # about a chunk each
    spent, _ = best_of(count, lambda: [find_repetition(part) for part in parts])
    yield "repetition", size / spent
    spent, _ = best_of(count, lambda: [find_cut(answer.text) for answer in answers])
    yield "truncated", size / spent
    spent, _ = best_of(count, lambda: [find_emptiness(answer.prompt, answer.text) for answer in answers])
    yield "empty_talk", size / spent
    frame = pl.DataFrame({"prompts": [chat[::2] for chat in chats], "answers": [chat[1::2] for chat in chats]})
    spent, _ = best_of(count, lambda: [measure(part, {"quality": {}}) for part in frame.iter_slices(1_000)])
    yield "quality, with prompts", _size([text for chat in chats for text in chat]) / spent


def run_steps(dump: Path, scratch: Path, shared: Path) -> dict[str, float]:
    """Clean the dump in this process; return the seconds of each step."""
    output = scratch / "stages-set"
    remove(output)
    result = curate.clean(dump, output, tokenizer=str(shared / "tokenizers/llama2"), language=["en"], workers=1)
    remove(output)
    run = result.manifest.to_dict()["run"]
    steps: dict[str, float] = dict(run["stages"])
    steps["everything else"] = run["seconds"] - sum(steps.values())
    return {**steps, "whole": run["seconds"]}


def main() -> None:
    """Measure each stage, print both tables, write the result."""
    command_line = parser(__doc__)
    command_line.add_argument("--best-of", type=int, default=3, metavar="N", help="runs of each stage (default 3)")
    options = parse(command_line)
    if not ONE_CORE.items() <= os.environ.items():  # libraries read these when loaded: restart with them
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ONE_CORE})
    dump = write_dump(options.scratch / "copies-1.json", copies(options.shared), count=len(source_rows(options.shared)))
    stages = (*ingest_stages(dump, options.best_of), *text_stages(options.shared, options.best_of))
    rules = (*rule_stages(options.shared, options.best_of), *answer_stages(options.shared, options.best_of))
    rates = dict([*stages, *rules])
    table_rows = [
        [name, rate, DESIGN.get(name), rate / DESIGN[name] if name in DESIGN else None] for name, rate in rates.items()
    ]
    print(table(["stage, one core", "MB/s", "design", "ratio"], table_rows))
    steps = run_steps(dump, options.scratch, options.shared)
    megabytes = dump.stat().st_size / MB
    print(
        "\n" + table(["one worker", "s", "MB/s"], [[name, spent, megabytes / spent] for name, spent in steps.items()])
    )
    stages = {name: {"per_s": round(rate, 1), "design": DESIGN.get(name)} for name, rate in rates.items()}
    run = {name: round(spent, 3) for name, spent in steps.items()}
    save("stages", {"best_of": options.best_of, "stages": stages, "one_worker_s": run}, options.no_save)


if __name__ == "__main__":
    main()
