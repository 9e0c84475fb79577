"""The plan of a large set by its token counts: the same lengths as by rendering, without rendering it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import curate
from curate.dataset import arrow
from curate.rendering.choices import Choices
from curate.rendering.factory import load_set_tokenizer
from curate.train import examples
from curate.train.config import TrainConfig
from curate.train.examples import RenderSettings
from curate.train.planning import lengths
from curate.train.planning.estimate import Estimate, estimate
from tests.support.tiny_tokenizers import folder, sentencepiece_model

CONVERSATIONS = 60


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cleaned")
    records = [
        {
            "id": f"r{index}",
            "conversations": [turn(index, number, side) for number in range(1 + index % 5) for side in "hg"],
        }
        for index in range(CONVERSATIONS)
    ]
    (root / "dump.json").write_text(json.dumps(records))
    tokenizer = folder(root / "tokenizer", tokenizer_model=sentencepiece_model())
    curate.clean(root / "dump.json", root / "set", tokenizer=str(tokenizer), template="plain", max_tokens=96)
    return root / "set"


def turn(index: int, number: int, side: str) -> dict[str, str]:
    return {"from": {"h": "human", "g": "gpt"}[side], "value": f"{side} {index} says {'so ' * (index % 7)}{number}"}


def both(cleaned: Path, settings: RenderSettings, limit: int | None = None) -> tuple[Estimate, examples.TrainingData]:
    path, manifest = examples.open_set_folder(cleaned)
    tokenizer = load_set_tokenizer(manifest)
    estimated = estimate(path, manifest, tokenizer, settings, limit)
    assert estimated is not None
    return estimated, examples.load(path, tokenizer, settings, limit=limit)


@pytest.mark.parametrize("limit", [None, 1, 25], ids=["all", "one", "some"])
def test_the_sets_own_counts_are_those_of_the_rendered_examples(cleaned: Path, limit: int | None) -> None:
    estimated, rendered = both(cleaned, examples.SET_SETTINGS, limit)
    true = lengths.of_data(rendered)
    assert estimated.lengths.train.tolist() == true.train.tolist()
    assert estimated.lengths.supervised.tolist() == true.supervised.tolist()
    assert estimated.lengths.held_out.tolist() == true.held_out.tolist()
    assert "own token counts" in estimated.facts["estimated"]
    for key in ("sources", "conversations", "eval_conversations", "tokens", "supervised", "manifest_sha256"):
        assert estimated.facts[key] == rendered.facts[key], key
    assert rendered.facts["sources"] == (limit or CONVERSATIONS)
    assert rendered.facts["conversations"] > rendered.facts["sources"] or limit == 1  # pieces are counted apart


@pytest.mark.parametrize(
    "settings",
    [
        RenderSettings("chatml"),
        RenderSettings(max_tokens=48),
        RenderSettings(loss="last"),
        RenderSettings(choices=Choices(reasoning="drop")),
    ],
    ids=["template", "window", "loss", "reasoning"],
)
def test_a_sample_of_all_conversations_is_exact(cleaned: Path, settings: RenderSettings) -> None:
    estimated, rendered = both(cleaned, settings)
    assert f"an estimate: {CONVERSATIONS} of {CONVERSATIONS} conversations" in estimated.facts["estimated"]
    assert estimated.lengths.train.tolist() == rendered.train.lengths.tolist()
    assert estimated.facts["supervised"] == rendered.facts["supervised"]


def test_a_sample_stands_for_all_conversations(cleaned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curate.train.planning.estimate.SAMPLE", 20)
    estimated, rendered = both(cleaned, RenderSettings("chatml"))
    assert "20 of 60 conversations" in estimated.facts["estimated"]
    assert estimated.facts["tokens"] == pytest.approx(rendered.facts["tokens"], rel=0.1)
    assert estimated.facts["supervised"] == pytest.approx(rendered.facts["supervised"], rel=0.1)


def test_a_sample_has_whole_sources_and_the_rows_that_they_start_at(cleaned: Path) -> None:
    rows = [row for batch in arrow.read_batches(cleaned) for source in arrow.decode_batch(batch) for row in source]
    for count in (1, 7, 1_000):
        sample = arrow.sample_sources(cleaned, count)
        assert len(sample) == min(count, CONVERSATIONS)
        for start, source in sample:
            assert rows[start : start + len(source)] == source
            assert len({row.source for row in rows[start + len(source) :]} & {source[0].source}) == 0


def test_a_load_of_many_examples_is_estimated_from_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "PACKED", 2_000)
    tokens = np.random.default_rng(1).integers(5, 900, 10_000)
    many = lengths.Lengths(tokens, tokens // 2, tokens[:10])
    config = TrainConfig()
    exact, near = lengths.pack(config, many, 1024)[1], lengths.estimate_load(config, many, 1024)
    assert (near.examples, near.work, near.held_out) == (exact.examples, exact.work, exact.held_out)
    assert near.rows == pytest.approx(exact.rows, rel=0.02)
    few = lengths.Lengths(tokens[:500], tokens[:500] // 2, tokens[:0])
    assert lengths.estimate_load(config, few, 1024).rows == lengths.pack(config, few, 1024)[1].rows
