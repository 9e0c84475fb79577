"""Make conditions of random parts: each is one clear line, or is evaluated; no file is read, no text grows."""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl
import pytest

from curate.dataset.condition import FUNCTIONS, KEYWORDS, TYPES, parse_condition
from curate.errors import InputError
from tests.fuzz.effort import seeds
from tests.support.small_set import KEPT, LOST, write_set

pytestmark = pytest.mark.slow

COLUMNS = ("id", "model", "language", "tokens", "turns", "edit_names", "messages", "split", "metadata", "edits", "none")
NUMBERS = ("1", "0", "-1", "0.5", "1e400", "9" * 30, "9223372036854775807", "null")
VALUES = (*NUMBERS, "'x'", "''", "'(a*)*b'", "'%_%'", "'('")
SIGNS = ("=", "<", ">=", "!=", "<>", "+", "-", "*", "/", "%", "||", "and", "or", "like", "ilike", "in")
ATTACKS = (
    *("select", "from", "read_csv('/etc/passwd')", "(select 1)", "--", "/*", "*/", ";", "'", '"', "::", "[", "]", "."),
    *("\\", "E'", "$$", "`", "unnest", "exists", "values (1)", "lpad", "repeat", "\0", "\ud800", "\u2019", "(", ")"),
)


def expression(draw: random.Random, depth: int = 3) -> str:
    """Return a random expression."""
    if depth == 0 or draw.random() < 0.2:
        return draw.choice((*COLUMNS, *VALUES))
    inner = [expression(draw, depth - 1) for _ in range(3)]
    match draw.randrange(8):
        case 0:
            return f"({inner[0]})"
        case 1:
            return f"{inner[0]} between {inner[1]} and {inner[2]}"
        case 2:
            return f"case when {inner[0]} then {inner[1]} else {inner[2]} end"
        case 3:
            return f"cast({inner[0]} as {draw.choice(sorted(TYPES))})"
        case 4:
            return f"not {inner[0]} is {draw.choice(('null', 'not null', 'true'))}"
        case 5:
            return f"{inner[0]} {draw.choice(SIGNS)} {inner[1]}"
        case _:
            return f"{draw.choice(sorted(FUNCTIONS))}({', '.join(inner[: draw.randrange(1, 4)])})"


def condition(draw: random.Random) -> str:
    """Return an expression, or one with an attack or a word somewhere."""
    sql = expression(draw)
    if draw.random() < 0.7:
        sql = f"{sql} {draw.choice(SIGNS[:5])} {draw.choice(VALUES)}"
    for _ in range(draw.choice((0, 0, 1, 2))):
        at = draw.randrange(len(sql) + 1)
        sql = f"{sql[:at]}{draw.choice((*ATTACKS, *sorted(KEYWORDS)))} {sql[at:]}"
    return sql


def test_a_random_condition_is_one_line_or_is_evaluated(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_set(tmp_path / "set", KEPT, LOST)
    rows = pl.scan_parquet(folder / "conversations.parquet")
    used = 0
    for seed in seeds(1_000):
        sql = condition(random.Random(seed))
        try:
            parsed = parse_condition(sql, rows)
        except InputError as error:
            assert "\n" not in str(error), sql
            assert len(str(error)) < 1_000, sql
            continue
        assert rows.filter(parsed).collect(engine="streaming").width, sql
        used += 1
        assert "panicked" not in capfd.readouterr().err, sql
    assert used > 50
