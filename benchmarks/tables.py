"""Measure how fast tables are read on one core, from the file to decoded records.

    python benchmarks/tables.py

The same conversations of the real dump as JSON lines, Parquet, Arrow and CSV. MB are 10^6 bytes of their JSON lines,
whatever the size of the file; CPU time, best of three.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl
from common import MB, Row, parse, parser, save, source_rows, table
from stages import ONE_CORE, best_of

from curate.ingest.decode import decode_records
from curate.ingest.reader import Reader
from curate.ingest.sources import open_inputs

FILES = ("tables.jsonl", "tables.parquet", "tables.arrow", "tables.csv", "tables-turns.csv")


def write_tables(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Write the conversations as a file of each kind."""
    paths = [folder / name for name in FILES]
    lines, parquet, arrow, whole, turns = paths
    chats = [{"id": row["id"], "conversations": [_turn(turn) for turn in row["conversations"]]} for row in rows]
    frame = pl.DataFrame(chats)
    frame.write_ndjson(lines)
    frame.write_parquet(parquet, compression="zstd")
    frame.write_ipc_stream(arrow, compression="lz4")
    texts = [json.dumps(chat["conversations"], ensure_ascii=False) for chat in chats]
    frame.select("id", conversations=pl.Series(texts)).write_csv(whole)
    by_turn = frame.explode("conversations").unnest("conversations").rename({"id": "conversation_id"})
    by_turn.write_csv(turns)
    return paths


def _turn(turn: Row) -> Row:
    return {"from": str(turn["from"]), "value": str(turn["value"])}


def count_records(path: Path) -> int:
    """Read a file to its end and decode its records; return their number."""
    return sum(len(decode_records(chunk)) for chunk in Reader(open_inputs([path])))


def main() -> None:
    """Measure each kind, print the table, write the result."""
    options = parse(parser(__doc__))
    if not ONE_CORE.items() <= os.environ.items():  # libraries read these when loaded: restart with them
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ONE_CORE})
    rows = source_rows(options.shared)
    paths = write_tables(options.scratch, rows)
    megabytes = paths[0].stat().st_size / MB
    rates = {}
    for path in paths:
        spent, count = best_of(3, lambda path=path: count_records(path))  # type: ignore[misc]
        rates[path.name] = {"records": count, "file_mb": round(path.stat().st_size / MB, 1), "mb_s": megabytes / spent}
        path.unlink()
    print(table(["file", "records", "MB on disk", "MB/s"], [[name, *rate.values()] for name, rate in rates.items()]))
    rounded = {name: {**rate, "mb_s": round(rate["mb_s"], 1)} for name, rate in rates.items()}
    save("tables", {"json_mb": round(megabytes, 1), "files": rounded}, options.no_save)


if __name__ == "__main__":
    main()
