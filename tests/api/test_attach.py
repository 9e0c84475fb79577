"""Votes and judgements stand on the page of the run whose model they are about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from curate.api.attach import attach_judgements, read_run
from curate.cli import cli
from curate.errors import InputError
from curate.judging.figures import Figure
from curate.judging.results import Counts, JudgeReport, PairResult, SingleResult
from curate.results import files
from curate.results.files import Arena, Estimate, Judge
from curate.train import examples
from curate.train.examples import count_generated
from curate.train.report import html
from curate.train.run.records import Records, Row
from tests.support.hostile_run import write_run
from tests.support.small_set import kept, write_set

COUNTS = Counts(20, 2, 1)
FACTS = ("judge-model", ("judge-model",), "http://localhost", "a" * 16, 2, 0.0, 9, 0, 20, 900)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = write_run(tmp_path / "run")
    for path in files.paths(folder / files.FOLDER):
        path.unlink()
    return folder


def page(run: Path) -> str:
    return (run / "report.html").read_text("utf-8")


def test_ratings_from_votes_are_attached(run: Path, tmp_path: Path) -> None:
    winners = ["model_a"] * 6 + ["model_b"] * 3
    votes = tmp_path / "votes.jsonl"
    lines = [{"winner": winner, "model_a": "tuned", "model_b": "base"} for winner in winners]
    votes.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["arena", "--ratings", "--votes", str(votes)]
    done = CliRunner().invoke(cli, [*arguments, "--run", f"tuned={run}"])
    assert done.exit_code == 0, done.output
    ((path, result),) = files.read_all(run / files.FOLDER)
    assert isinstance(result, Arena)
    assert (path.name, result.model, result.votes) == ("arena-votes.json", "tuned", 9)
    assert [each.name for each in result.estimates] == ["tuned", "base"]
    assert 'href="#arena"' in page(run)
    wrong = CliRunner().invoke(cli, [*arguments, "--run", f"tuner={run}"])
    assert "no model 'tuner' here; did you mean 'tuned'?" in wrong.output


def test_a_judges_figures_are_attached_with_their_intervals_alone(run: Path) -> None:
    single = SingleResult("tuned", Figure(7.5, 7.0, 8.0, 9), (Figure(7.5, 7.0, 8.0, 9), None), COUNTS)
    path = attach_judgements(read_run(f"tuned={run}"), JudgeReport("single", *FACTS, single=(single,)))
    result = files.read(path)
    assert isinstance(result, Judge)
    assert result.estimates == (Estimate("all", 7.5, 7.0, 8.0, 9), Estimate("turn 1", 7.5, 7.0, 8.0, 9))
    assert (result.mode, result.failed, result.repeats) == ("single", 3, 2)
    rate = Figure(0.625, 0.5, 0.75, 9)
    pair = PairResult("tuned", "base", rate, None, (rate,), 5, 3, 1, 1, 0, 9, 18, (10.0, 12.0), COUNTS)
    attach_judgements(read_run(f"tuned={run}"), JudgeReport("pair", *FACTS, pairs=(pair,)))
    text = page(run)
    assert text.count("judged by judge-model") >= 2
    assert "62.5 %" in text
    with pytest.raises(InputError, match="no model 'other'"):
        attach_judgements(read_run(f"other={run}"), JudgeReport("pair", *FACTS, pairs=(pair,)))


@pytest.mark.parametrize("text", ["tuned", "=run", "tuned=", "tuned=nowhere"])
def test_what_is_no_run_is_one_line(text: str) -> None:
    with pytest.raises(InputError, match="--run"):
        read_run(text)


def test_conversations_that_a_model_made_are_counted_where_they_are_trained_on(tmp_path: Path) -> None:
    def made(method: str, **more: object) -> str:
        return json.dumps({"generation": {"method": method, "model": "llama", **more}})

    full = {"prompts": "p" * 16, "inputs": "i" * 16, "seed": 7}
    rows = [
        kept(0, "a", metadata=made("magpie", **full)),
        kept(1, "a", piece=1, metadata=made("magpie", **full)),
        kept(2, "b", metadata=made("evol")),
        kept(3, "c", metadata=made("evol"), split="eval"),
        kept(4, "d", metadata='{"note": "generation"}'),
        kept(5, "e", metadata=made("magpie", **full)),
    ]
    folder = write_set(tmp_path / "set", rows, [])
    evol: Row = {"method": "evol", "model": "llama", "prompts": None, "inputs": None, "seed": None, "conversations": 1}
    magpie: Row = {"method": "magpie", "model": "llama", **full, "seed": "7", "conversations": 2}
    assert count_generated(folder, None) == [magpie, evol]
    assert count_generated(folder, 1) == [{**magpie, "conversations": 1}]
    shown = html.render(Records("run", facts={"data": {"generated": [magpie, evol]}}))
    assert shown.count("conversations that a model made") == 2, "the table's caption and its label"
    for cell in ("magpie", "llama", "p" * 16, "i" * 16, "7"):
        assert f">{cell}</td>" in shown


def test_only_the_most_frequent_origins_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "MOST_ORIGINS", 2)
    seeds = [0, 0, 1, 1, 2, 3]
    made = [json.dumps({"generation": {"method": "evol", "model": "m", "seed": seed}}) for seed in seeds]
    rows = [kept(number, f"c{number}", metadata=each) for number, each in enumerate(made)]
    counted = count_generated(write_set(tmp_path / "set", rows, []), None)
    assert [(row.get("seed"), row["conversations"]) for row in counted] == [("0", 2), ("1", 2), (None, 2)]
