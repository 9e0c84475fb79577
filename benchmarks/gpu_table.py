"""The goals of training on a GPU, and the table of what was measured, from the result of `benchmarks/finetune.py`.

Imports only the standard library, so that the documentation can be generated anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
FULL, LORA = 0.55, 0.48  # strict MFU on an H200
PREDICTED = 0.10  # of the measured peak memory
Row = dict[str, Any]


def goals(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return each goal, and what was found: `met`, `missed` with the figure, or `not measured`."""
    by_name = {row["name"]: row for row in rows if "error" not in row}

    def figure(name: str, key: str) -> float | None:
        value = by_name.get(name, {}).get(key)
        return None if value is None else float(value)

    found = [
        (f"full fine-tune of 7B: MFU at least {FULL:.0%}", _at_least(figure("7B full 1k", "mfu"), FULL)),
        (f"LoRA of 7B: MFU at least {LORA:.0%}", _at_least(figure("7B LoRA 1k", "mfu"), LORA)),
        ("LoRA of 7B within 22 GiB", _at_most(figure("7B LoRA real in 22 GiB", "peak_gib"), 22.0)),
        ("QLoRA of 7B within 14 GiB", _at_most(figure("7B QLoRA real in 14 GiB", "peak_gib"), 14.0)),
        (f"predicted peak memory within {PREDICTED:.0%} of the measured, in every row", _predictions(by_name)),
    ]
    return [{"goal": goal, "found": result} for goal, result in found]


def _at_least(value: float | None, goal: float) -> str:
    if value is None:
        return "not measured"
    return f"{'met' if value >= goal else 'missed'}: {value:.1%}"


def _at_most(value: float | None, goal: float) -> str:
    if value is None:
        return "not measured"
    return f"{'met' if value <= goal else 'missed'}: {value:.1f} GiB"


def _predictions(by_name: dict[str, Row]) -> str:
    errors = {
        name: row["planned_peak_gib"] / row["peak_gib"] - 1
        for name, row in by_name.items()
        if row.get("planned_peak_gib") and row.get("peak_gib")
    }
    if not errors:
        return "not measured"
    worst = max(errors, key=lambda name: abs(errors[name]))
    result = "met" if abs(errors[worst]) <= PREDICTED else "missed"
    return f"{result}: at most {errors[worst]:+.0%} ({worst}; {len(errors)} rows)"


def markdown(results: Path = RESULTS) -> str:
    """Return what was measured on GPUs, as text and tables for the documentation."""
    measured = [json.loads(path.read_text()) for path in sorted(results.glob("finetune_*.json"))]
    tables = [_section(result) for result in measured if "goals" in result]
    return "\n\n".join(tables) or (
        "**No figure here has been measured on a GPU yet.** Memory is computed by formulas that are tested against\n"
        "measured bytes on a CPU, within a tenth. On a machine with a CUDA GPU, `make bench-gpu` measures speed, MFU\n"
        "and memory within ten minutes, and compares them with transformers' Trainer and TRL\n"
        "([benchmarks](../benchmarks/README.md))."
    )


def _section(result: dict[str, Any]) -> str:
    rows = [row for row in result["rows"] if "tokens_per_s" in row]
    cells = [
        (
            row["name"],
            f"{row['tokens_per_s']:,.0f}",
            _percent(row.get("mfu")),
            row["peak_gib"],
            row.get("planned_peak_gib", ""),
        )
        for row in rows
    ]
    return "\n".join(
        [
            f"Measured on {result['device']} with {result['dtype']}, torch {result['machine']['packages']['torch']}:",
            "",
            _table(("row", "tokens/s", "MFU", "peak GiB", "planned GiB"), cells),
            "",
            _table(("goal", "found"), [(goal["goal"], goal["found"]) for goal in result["goals"]]),
        ]
    )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)
