"""How much of a damaged dump `curate clean` keeps, and whether it keeps anything altered.

    python benchmarks/damage.py --corruptions 60

The same conversations are stored in containers of 20 parts each (members, frames, row groups). Each copy is damaged
in one place at random: a bit flipped, bytes overwritten, zeroed, deleted or inserted. A kept conversation that is
not equal to one of the undamaged dump counts as altered.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl
import zstandard
from common import parse, parser, remove, save, table

import curate
from curate.errors import CurateError, NothingKept

PARTS = 20
WORDS = "the model reads a long text and answers with care because every word of it may matter to whoever asks".split()  # noqa: SIM905
RECIPE = """
name = "damage"
[filters]
exact_duplicates = false
"""
Line = bytes
Container = Callable[[Sequence[Line]], bytes]


@dataclass(frozen=True)
class Outcome:
    """Shares of the conversations of the undamaged dump, over all corruptions of one container."""

    whole: list[float]  # kept, and equal
    altered: int  # corruptions after which an altered conversation was kept
    failed: int  # corruptions after which the run ended with an error
    crashed: int  # of these, with one that is not curate's own


def conversations(count: int, seed: int) -> list[dict[str, object]]:
    """Return chats of two to six messages, of 100 to 2,000 characters each."""
    draw = random.Random(seed)
    chats = []
    for number in range(count):
        turns = [
            {"from": ("human", "gpt")[place % 2], "value": " ".join(draw.choices(WORDS, k=draw.randint(20, 400)))}
            for place in range(2 * draw.randint(1, 3))
        ]
        # The keys come in different orders, as in dumps that were joined from several sources.
        pairs = [("id", f"chat{number}"), ("conversations", turns)]
        chats.append(dict(pairs if number % 3 else pairs[::-1]))
    return chats


def parts(lines: Sequence[Line]) -> list[bytes]:
    """Return the lines in PARTS texts of about the same number of lines."""
    return [b"".join(lines[len(lines) * n // PARTS : len(lines) * (n + 1) // PARTS]) for n in range(PARTS)]


def zipped(method: int) -> Container:
    """Return a container: a zip of PARTS members."""

    def pack(lines: Sequence[Line]) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            for number, part in enumerate(parts(lines)):
                archive.writestr(f"part-{number:02}.jsonl", part)
        return file.getvalue()

    return pack


def tarred(lines: Sequence[Line]) -> bytes:
    """Return a container: a tar of PARTS members."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number, part in enumerate(parts(lines)):
            member = tarfile.TarInfo(f"part-{number:02}.jsonl")
            member.size = len(part)
            archive.addfile(member, io.BytesIO(part))
    return file.getvalue()


def joined(compress: Callable[[bytes], bytes]) -> Container:
    """Return a container: PARTS compressed members or frames, one after the other."""
    return lambda lines: b"".join(map(compress, parts(lines)))


def parquet(compression: str) -> Container:
    """Return a container: a Parquet file of PARTS row groups."""

    def pack(lines: Sequence[Line]) -> bytes:
        rows = [json.loads(line) for line in lines]
        frame = pl.DataFrame({key: [row[key] for row in rows] for key in ("id", "conversations")})
        file = io.BytesIO()
        frame.write_parquet(file, compression=compression, row_group_size=-(-len(rows) // PARTS))  # type: ignore[arg-type]
        return file.getvalue()

    return pack


def array(indent: int | None) -> Container:
    """Return a container: one JSON array."""
    return lambda lines: json.dumps([json.loads(line) for line in lines], indent=indent).encode()


CONTAINERS: dict[str, tuple[str, Container]] = {
    "JSON array": (".json", array(None)),
    "JSON array, indented": (".json", array(1)),
    "JSON lines": (".jsonl", b"".join),
    "JSON lines after a line '['": (".jsonl", lambda lines: b"[\n" + b"".join(lines)),
    "gzip, 1 member": (".jsonl.gz", lambda lines: gzip.compress(b"".join(lines))),
    "gzip, 20 members": (".jsonl.gz", joined(gzip.compress)),
    "zstd, 1 frame": (
        ".jsonl.zst",
        lambda lines: zstandard.ZstdCompressor(write_checksum=True).compress(b"".join(lines)),
    ),
    "zstd, 20 frames": (".jsonl.zst", joined(zstandard.ZstdCompressor(write_checksum=True).compress)),
    "bzip2, 1 stream": (".jsonl.bz2", lambda lines: bz2.compress(b"".join(lines))),
    "bzip2, 20 streams": (".jsonl.bz2", joined(bz2.compress)),
    "xz, 1 stream": (".jsonl.xz", lambda lines: lzma.compress(b"".join(lines))),
    "xz, 20 streams": (".jsonl.xz", joined(lzma.compress)),
    "tar": (".tar", tarred),
    "tar in gzip, 1 member": (".tar.gz", lambda lines: gzip.compress(tarred(lines))),
    "zip, deflated": (".zip", zipped(zipfile.ZIP_DEFLATED)),
    "zip, stored": (".zip", zipped(zipfile.ZIP_STORED)),
    "zip, bzip2": (".zip", zipped(zipfile.ZIP_BZIP2)),
    "zip, LZMA": (".zip", zipped(zipfile.ZIP_LZMA)),
    "Parquet, zstd": (".parquet", parquet("zstd")),
    "Parquet, uncompressed": (".parquet", parquet("uncompressed")),
}


def corrupt(data: bytes, seed: int) -> bytes:
    """Damage one place of the data."""
    draw = random.Random(seed)
    position = draw.randrange(len(data))
    length = draw.choice((1, 16, 64, 512))
    tail = data[position + length :]
    match draw.randrange(5):
        case 0:
            return data[:position] + bytes([data[position] ^ 1 << draw.randrange(8)]) + data[position + 1 :]
        case 1:
            return (data[:position] + draw.randbytes(length) + tail)[: len(data)]
        case 2:
            return (data[:position] + bytes(length) + tail)[: len(data)]
        case 3:
            return data[:position] + tail
        case _:
            return data[:position] + draw.randbytes(length) + data[position:]


def kept(dump: Path, recipe: Path, scratch: Path) -> dict[str, str]:
    """Clean a dump; return the messages of each kept conversation by its id."""
    output = scratch / "damage-set"
    remove(output)
    try:
        curate.clean(dump, output, recipe=str(recipe), workers=1)
    except NothingKept:
        return {}
    rows = pl.read_parquet(output / "conversations.parquet", columns=["id", "messages"])
    texts = rows["messages"].list.eval(pl.element().struct.field("content")).list.join("\x00")
    return dict(zip(rows["id"], texts, strict=True))


def measure(lines: Sequence[Line], name: str, corruptions: int, recipe: Path, scratch: Path) -> Outcome:
    """Damage one container so many times, and clean each copy."""
    suffix, pack = CONTAINERS[name]
    data = pack(lines)
    dump = scratch / f"damaged{suffix}"
    dump.write_bytes(data)
    undamaged = kept(dump, recipe, scratch)
    shares: list[float] = []
    altered = failed = crashed = 0
    for seed in range(corruptions):
        dump.write_bytes(corrupt(data, seed))
        try:
            rows = kept(dump, recipe, scratch)
        except Exception as error:  # a benchmark of what goes wrong
            rows = {}
            crashed += not isinstance(error, CurateError)
            failed += 1
        whole = sum(undamaged.get(key) == text for key, text in rows.items())
        altered += whole < len(rows)
        shares.append(whole / len(undamaged))
    dump.unlink()
    return Outcome(shares, altered, failed, crashed)


def main() -> None:
    """Damage every container, print the table, write the result."""
    arguments = parser(__doc__)
    arguments.add_argument("--corruptions", type=int, default=60, metavar="N", help="damaged copies of each container")
    arguments.add_argument("--conversations", type=int, default=1000, metavar="N", help="conversations of the dump")
    arguments.add_argument("--only", default="", metavar="TEXT", help="containers whose name contains this")
    options = parse(arguments, needs_shared=False)
    recipe = options.scratch / "damage.toml"
    recipe.write_text(RECIPE)
    lines = [json.dumps(chat).encode() + b"\n" for chat in conversations(options.conversations, 0)]
    rows: list[list[object]] = []
    figures: list[dict[str, object]] = []
    for name in CONTAINERS:
        if options.only not in name:
            continue
        outcome = measure(lines, name, options.corruptions, recipe, options.scratch)
        mean = sum(outcome.whole) / len(outcome.whole)
        rows.append(
            [name, f"{mean:.3f}", f"{min(outcome.whole):.3f}", outcome.altered, outcome.failed, outcome.crashed]
        )
        figures.append({"container": name, "mean": mean, **asdict(outcome)})
    print(table(["container", "kept, mean", "kept, least", "kept altered", "failed", "crashed"], rows))
    save("damage", {"corruptions": options.corruptions, "containers": figures}, options.no_save)


if __name__ == "__main__":
    main()
