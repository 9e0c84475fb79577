"""The records of a training run whose names, answers and settings are attacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from curate.results import files as results
from curate.results.files import Arena, Estimate, Judge
from curate.train.run import records
from tests.support.evaluations import evaluation, task

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(2)> \"' \x1b[31m \u202eevil $\\frac{$ &lt;"


def slices(loss: float) -> dict[str, Any]:
    def measured(name: str) -> dict[str, Any]:
        return {"name": name, "loss": loss, "tokens": 1200, "conversations": 3}

    return {
        "overall": measured("all"),
        "by_exchanges": [measured("1"), measured("2-3")],
        "by_language": [measured("en"), measured(HOSTILE)],
        "by_length": [measured("0-512")],
    }


def write_run(folder: Path) -> Path:
    """Write the records of a run of 40 steps into a new folder."""
    folder.mkdir()
    steps = [
        {
            "step": n,
            "loss": 3.0 / n,
            "lr": 2e-5,
            "tokens": 2048,
            "seconds": 0.5,
            "tokens_per_s": 4096.0 + n,
            "mfu": 0.0,
            "gib": 1.25,
        }
        for n in range(1, 41)
    ]
    records.append(folder / records.METRICS, steps)
    evals = [("base", 0, 3.5), ("tuned", 20, 1.0), ("tuned", 40, 0.5)]
    records.append(folder / records.EVAL, [{"step": n, "which": which, **slices(loss)} for which, n, loss in evals])
    asked = [{"role": "user", "content": HOSTILE}]
    samples = [
        {"step": 0, "which": "base", "name": "fixed", "messages": asked, "answer": "ehh", "stopped": False},
        {"step": 20, "which": "tuned", "name": "fixed", "messages": asked, "answer": "half way", "stopped": True},
        {"step": 40, "which": "tuned", "name": "fixed", "messages": asked, "answer": HOSTILE, "stopped": True},
    ]
    records.append(folder / records.SAMPLES, samples)
    records.append(
        folder / records.MASKED, [{"name": HOSTILE, "runs": [["USER: hi ASSISTANT:", False], [HOSTILE, True]]}]
    )
    records.append(folder / records.LEFT_OUT, [{"name": HOSTILE, "reason": HOSTILE}])
    (folder / records.CONFIG).write_text(f'name = "{HOSTILE}"', "utf-8")
    (folder / records.PLAN).write_text(json.dumps({"steps": 40, "peak_gib": 1.2, "reasons": [HOSTILE]}), "utf-8")
    facts = {"base": HOSTILE, "method": "lora", "data": {HOSTILE: HOSTILE, "conversations": 12345}}
    (folder / records.FACTS).write_text(json.dumps(facts), "utf-8")
    write_results(folder / results.FOLDER)
    return folder


def write_results(folder: Path) -> None:
    """Write one result of each kind, and one that cannot be read."""
    estimates = (Estimate(HOSTILE, 7.5, 7.125, 7.875, 80), Estimate("maths", 5.0, None, 6.0, 10))
    groups = {HOSTILE: {HOSTILE: ["owls", HOSTILE], "owls": ["owls"]}}
    measured = evaluation([task("owls", 0.5, 0.25, unmatched=3), task(HOSTILE, 0.75, 0.125)], groups, batch=HOSTILE)
    judge = Judge(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, estimates=estimates, failed=2)
    results.write(folder, "a", measured)
    results.write(folder, "a", judge)
    results.write(folder, "a", Arena(HOSTILE, 1234, True, estimates))
    (folder / "judge-b.json").write_text("{")
