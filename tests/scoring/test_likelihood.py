"""Perplexity and IFD equal a loop over single sequences; what is killed resumes; `refilter` acts on the signal."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import curate
from curate.analysis.recorded import read_recorded
from curate.errors import RecipeError, SetError
from curate.model.artifact import find_artifact, load_artifact
from curate.pipeline.recipe import Recipe
from curate.pipeline.run import CleanResult
from curate.rendering.factory import make_renderer
from curate.schemas.conversation import Message
from curate.scoring.journal import Journal
from curate.scoring.score import ScoreProgress
from curate.tokenization.tokenizer import load_tokenizer
from curate.train.results import export
from curate.train.results.export import Origin, ResultInfo
from tests.scoring.conftest import COUNT, WINDOW, recipe
from tests.support.tiny_runs import base


@pytest.fixture(scope="module")
def model(data: Path) -> Path:
    tokenizer = load_tokenizer(str(data.parent / "tokenizer"))
    renderer = make_renderer("plain", tokenizer)
    network = base(vocab_size=tokenizer.info.vocab_size)
    info = ResultInfo(export.serving_for(renderer), Origin("tiny", None, "none"), 512)
    return export.write_model(data.parent / "model", network, info)


@pytest.fixture(scope="module")
def scored(data: Path, model: Path) -> pl.DataFrame:
    result = curate.score(data, str(model), data.parent / "scored", device="cpu")
    assert result.warnings == []
    return pl.read_parquet(result.output / "conversations.parquet")


def alone(network: Any, ids: list[int]) -> list[float]:
    """Return the loss of each token but the first, of one unpadded sequence."""
    with torch.no_grad():
        logits = network(input_ids=torch.tensor([ids])).logits[0, :-1].double()
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
    return [float(loss) for loss in losses]


def expected(network: Any, tokenizer: Any, messages: list[Message]) -> tuple[list[float], list[float]]:
    """Return perplexity and IFD of each answer, by hand."""
    rendered = make_renderer("plain", tokenizer).render([messages])[0]
    ids, mask = rendered.ids.tolist(), rendered.loss_mask.tolist()
    losses = [0.0, *alone(network, ids)]
    perplexities, ifds = [], []
    starts = [i for i in range(len(ids)) if mask[i] and not mask[i - 1]]
    for start in starts:
        stop = next((i for i in range(start, len(ids)) if not mask[i]), len(ids))
        given = float(np.mean(losses[start:stop]))
        by_itself = float(np.mean(alone(network, [tokenizer.info.bos_id, *ids[start:stop]])))
        perplexities.append(math.exp(given))
        ifds.append(math.exp(given) / math.exp(by_itself))
    return perplexities, ifds


def test_scores_equal_a_loop_over_single_sequences(data: Path, model: Path, scored: pl.DataFrame) -> None:
    network = load_artifact(find_artifact(str(model)), device=torch.device("cpu"), dtype="fp32")
    tokenizer = load_tokenizer(str(model))
    chats = scored.group_by("source_index", maintain_order=True)
    pieces = [rows.rows(named=True) for _, rows in chats]
    assert (len(pieces), max(map(len, pieces))) == (COUNT, 3)
    for rows in pieces:
        by_piece = [expected(network, tokenizer, [Message(**each) for each in row["messages"]]) for row in rows]
        perplexities, ifds = ([value for piece in by_piece for value in piece[kind]] for kind in (0, 1))
        for row in rows:  # each piece has the values of its conversation
            assert row["answer_perplexities"] == pytest.approx(perplexities, rel=1e-5)
            assert row["answer_ifds"] == pytest.approx(ifds, rel=1e-5)
            assert row["worst_ifd"] == pytest.approx(max(ifds), rel=1e-5)
            assert min(ifds) * (1 - 1e-5) <= row["ifd"] <= max(ifds) * (1 + 1e-5)
            if len(ifds) == 1:
                assert (row["perplexity"], row["ifd"]) == pytest.approx((perplexities[0], ifds[0]), rel=1e-5)


def test_scores_do_not_depend_on_the_token_budget(data: Path, model: Path, scored: pl.DataFrame) -> None:
    result = curate.score(data, str(model), data.parent / "other", device="cpu", batch_tokens=1)
    other = pl.read_parquet(result.output / "conversations.parquet")
    for name in ("perplexity", "ifd"):
        assert other[name].to_list() == pytest.approx(scored[name].to_list(), rel=1e-5)


# ---- interrupted runs


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def journal_of(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.likelihood.journal"


def stop_after(rows: int) -> Any:
    def progress(state: ScoreProgress) -> None:
        if state.rows >= rows:
            raise KeyboardInterrupt

    return progress


def test_a_stopped_run_resumes_to_the_same_bytes(data: Path, model: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"device": "cpu", "batch_tokens": 8}
    whole = curate.score(data, str(model), tmp_path / "whole" / "set", **options).output
    target = tmp_path / "stopped" / "set"
    with pytest.raises(KeyboardInterrupt):
        curate.score(data, str(model), target, progress=stop_after(8), **options)
    journal = journal_of(target)
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) > 4 and not target.exists()
    journal.write_bytes(b"".join(lines)[:-20])
    states: list[ScoreProgress] = []
    curate.score(data, str(model), target, progress=states.append, **options)
    assert contents(target) == contents(whole)
    assert not journal.exists()
    assert sum(state.tokens == 0 for state in states) == len(lines) - 2


@pytest.mark.parametrize("damage", ["cut", "changed", "other"])
def test_a_journal_is_read_up_to_the_first_line_that_is_not_whole(tmp_path: Path, damage: str) -> None:
    path, header, results = tmp_path / "journal", {"set": "a"}, [[0.1, 1e-17, 3], None]
    with Journal(path, header) as journal:
        for number in range(4):
            assert journal.take(f"unit {number}") is None
            journal.append(f"unit {number}", results)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    if damage == "cut":
        lines = [*lines[:3], lines[3][:30]]
    elif damage == "changed":
        lines[3] = lines[3].replace(b"0.1", b"0.2")
    path.write_bytes(b"".join(lines))
    with Journal(path, header) as journal:
        assert [journal.take(f"unit {number}") for number in range(2)] == [results, results]
        assert journal.take("another" if damage == "other" else "unit 2") is None
        journal.append("unit 2", results)
        assert journal.take("unit 3") is None
        journal.append("unit 3", results)
    assert path.read_bytes() == whole
    with Journal(path, {"set": "b"}) as journal:
        assert journal.replaced and journal.take("unit 0") is None


def test_a_journal_of_other_settings_is_not_used(data: Path, model: Path, tmp_path: Path, scored: pl.DataFrame) -> None:
    target = tmp_path / "set"
    with pytest.raises(KeyboardInterrupt):
        curate.score(data, str(model), target, device="cpu", batch_tokens=8, max_tokens=90, progress=stop_after(4))
    said: list[str] = []
    curate.score(data, str(model), target, device="cpu", say=said.append)
    assert "an interrupted run measured with other settings; it is begun again" in said
    assert pl.read_parquet(target / "conversations.parquet")["ifd"].equals(scored["ifd"])


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bytes(data: Path, model: Path, tmp_path: Path) -> None:
    whole = curate.score(data, str(model), tmp_path / "whole" / "set", device="cpu", batch_tokens=1).output
    target = tmp_path / "killed" / "set"
    line = ["score", str(data), "--model", str(model), "--device", "cpu", "--batch-tokens", "1", "-o", str(target)]
    process = subprocess.Popen([sys.executable, "-m", "curate", *line])
    journal = journal_of(target)
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 3):
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert journal.exists() and not target.exists()
    states: list[ScoreProgress] = []
    curate.score(data, str(model), target, device="cpu", batch_tokens=1, progress=states.append)
    assert states[-1].resumed > 0
    assert contents(target) == contents(whole)


# ---- the set


def test_the_set_itself_gets_the_columns_and_keeps_everything_else(
    data: Path, model: Path, tmp_path: Path, scored: pl.DataFrame
) -> None:
    folder = tmp_path / "set"
    shutil.copytree(data, folder)
    (folder / "notes.txt").write_text("mine")
    before = pl.read_parquet(folder / "conversations.parquet")
    result = curate.score(folder, str(model), device="cpu")
    after = pl.read_parquet(folder / "conversations.parquet")
    assert after.select(before.columns).equals(before)
    assert after.equals(scored)
    assert (folder / "notes.txt").read_text() == "mine"
    manifest = curate.open_set(folder).manifest
    shown = read_recorded(folder, manifest)
    assert shown and "perplexity" in shown.header.scores[0]
    assert manifest == result.manifest
    [facts] = manifest.models
    assert (facts.signal, facts.architecture, facts.template, facts.window) == ("likelihood", "llama", "plain", WINDOW)
    assert len(facts.weights) == 64 and manifest.sets == []
    again = curate.score(folder, str(model), device="cpu")
    assert pl.read_parquet(again.output / "conversations.parquet").equals(scored)
    high = float(scored["worst_ifd"].median())  # type: ignore[arg-type]
    selected = curate.show(set_path=folder, where=f"worst_ifd > {high}")
    assert len(selected) == (scored["worst_ifd"] > high).sum() > 0
    [line] = curate.stats(folder).header.scores
    assert re.fullmatch(r"likelihood by .*; median perplexity [\d,]+; median IFD [\d.]+; \d+ above 1", line)


def test_a_copy_names_the_set_and_another_set_is_not_replaced(data: Path, scored: pl.DataFrame, model: Path) -> None:
    copy = curate.open_set(data.parent / "scored")
    assert [(use.use, use.path) for use in copy.manifest.sets] == [("score", str(data))]
    with pytest.raises(SetError, match="not made from"):
        curate.score(copy.path, str(model), data, device="cpu")


def test_refilter_acts_on_the_signal(data: Path, model: Path, tmp_path: Path, scored: pl.DataFrame) -> None:
    limit = float(scored["ifd"].median())  # type: ignore[arg-type]
    source, names = data.parent / "scored", scored.columns[-5:]
    result = refiltered(source, tmp_path / "strict", recipe(data, {"misaligned": {"action": "drop", "max_ifd": limit}}))
    kept = pl.read_parquet(tmp_path / "strict" / "conversations.parquet")
    left = scored.filter(pl.col("ifd") <= limit)
    assert kept.select("id", *names).equals(left.select("id", *names))  # those that are cleaned again have theirs too
    assert result.manifest.counts.rules["misaligned"].first == COUNT - result.manifest.counts.kept > 0
    assert result.manifest.models == curate.open_set(source).manifest.models
    flagged = refiltered(source, tmp_path / "flagged", recipe(data, {"misaligned": True}))
    assert flagged.manifest.counts.kept == COUNT and flagged.warnings == []
    back = refiltered(tmp_path / "strict", tmp_path / "back", recipe(data, {}))
    assert back.manifest.counts.kept == COUNT and back.warnings == []
    assert pl.read_parquet(tmp_path / "back" / "conversations.parquet").select(names).equals(scored.select(names))
    more = refiltered(source, tmp_path / "more", recipe(data, {"exact_duplicates": False}))
    assert more.manifest.counts.kept == COUNT + 1
    command = f"curate score {tmp_path / 'more'} --model MODEL"
    assert more.warnings == [
        f"1 conversation of {str(tmp_path / 'more')!r} lack the signal 'likelihood'; measure it: {command}"
    ]


def refiltered(source: Path, target: Path, wanted: Recipe) -> CleanResult:
    return curate.refilter(source, target, recipe=wanted, workers=1)


def test_combined_sets_keep_the_scores_of_one_model_only(data: Path, model: Path, tmp_path: Path) -> None:
    source = data.parent / "scored"
    both = curate.combine(source, source, tmp_path / "both", workers=1)
    assert both.manifest.models == curate.open_set(source).manifest.models
    assert "ifd" in pl.read_parquet_schema(both.output / "conversations.parquet")
    mixed = curate.combine(source, data, tmp_path / "mixed", workers=1)
    assert mixed.manifest.models == []
    assert "ifd" not in pl.read_parquet_schema(mixed.output / "conversations.parquet")
    assert any("the signal 'likelihood' is left out" in text for text in mixed.warnings)


# ---- what cannot be


def test_a_filter_on_scores_is_refused_where_there_are_none(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"measure it: curate score {data} --model MODEL"):
        curate.refilter(data, tmp_path / "out", recipe=recipe(data, {"misaligned": True}))
    (tmp_path / "dump.json").write_text("[]")
    with pytest.raises(RecipeError, match="clean without it, then curate score SET --model MODEL and curate refilter"):
        curate.clean(tmp_path / "dump.json", tmp_path / "out", recipe=recipe(data, {"misaligned": True}))
