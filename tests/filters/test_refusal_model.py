"""A classifier of transformers gives each answer's probability of a refusal, the same in any batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import curate
from curate.errors import RecipeError
from curate.filters import classifiers, measure
from curate.pipeline import recipe

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "i", "cannot", "yes", "no", "sorry", "help", "fine", "ask")
TURN = pl.Struct({"role": pl.String(), "content": pl.String()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Save a BERT of one small layer with random weights, and a tokenizer of twelve words."""
    path = tmp_path_factory.mktemp("classifier")
    (path / "vocab.txt").write_text("\n".join(WORDS), "utf-8")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    labels = {"id2label": {0: "Non-refusal", 1: "Refusal"}, "label2id": {"Non-refusal": 0, "Refusal": 1}}
    torch.manual_seed(1)
    config = transformers.BertConfig(vocab_size=len(WORDS), initializer_range=1.0, **shape, **labels)
    transformers.BertForSequenceClassification(config).save_pretrained(path)
    transformers.BertTokenizerFast(vocab=str(path / "vocab.txt")).save_pretrained(path)
    return str(path)


def frame(*chats: tuple[str, ...]) -> pl.DataFrame:
    turns = [
        [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
        for texts in chats
    ]
    return pl.DataFrame({"messages": pl.Series(turns, dtype=pl.List(TURN))})


def probability(folder: str, text: str) -> float:
    """Return the probability that the model itself gives a text on its own."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        value: float = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0, 1].item()
    return value


def test_each_answer_has_the_probability_that_it_has_alone(folder: str) -> None:
    chats = frame(("ask", "sorry i cannot help", "ask", "yes"), ("ask", "fine " * 30), ("help",))
    settings: dict[str, Any] = {"model": folder, "template": "{prompt} {answer}", "batch_size": 2}
    measured = measure(chats, {"refusal_model": settings})
    first, second, third = measured["refusal_probabilities"].to_list()
    assert first == pytest.approx(
        [probability(folder, "ask sorry i cannot help"), probability(folder, "ask yes")], abs=1e-5
    )
    assert second == pytest.approx([probability(folder, "ask " + "fine " * 30)], abs=1e-5)
    assert third == []
    assert measured["refusal_probability"].to_list() == [max(first), max(second), None]
    assert len({round(value, 4) for value in (*first, *second)}) == 3  # the weights tell the texts apart


def test_a_recipe_that_names_the_signal_gives_the_set_its_columns(folder: str, tmp_path: Path) -> None:
    chats = [["ask me", "sorry i cannot help you"], ["ask again", "yes that is fine"]]
    records = [
        {"messages": [{"role": r, "content": t} for r, t in zip(("user", "assistant"), c, strict=True)]} for c in chats
    ]
    (tmp_path / "dump.jsonl").write_text("\n".join(map(json.dumps, records)), "utf-8")
    chosen = recipe.from_dict({"signals": {"refusal_model": {"model": folder}}})
    result = curate.clean(tmp_path / "dump.jsonl", tmp_path / "set", recipe=chosen)
    measured = pl.read_parquet(result.output / "conversations.parquet")["refusal_probability"]
    assert measured.to_list() == pytest.approx([probability(folder, texts[1]) for texts in chats], abs=1e-5)


def test_the_label_of_refusals_is_the_one_that_is_not_negated() -> None:
    assert classifiers.choose_label({0: "Non-refusal", 1: "Refusal"}, "", "refus") == 1
    assert classifiers.choose_label({0: "REFUSAL", 1: "NOT_REFUSAL"}, "", "refus") == 0
    assert classifiers.choose_label({0: "LABEL_0", 1: "LABEL_1"}, "LABEL_1", "refus") == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "model is missing; give a classifier's name on the Hub or its folder"),
        ({"model": "no/such/folder"}, "the classifier 'no/such/folder' cannot be loaded"),
        ({"template": "{prompt}"}, "template = '{prompt}' must have {answer}"),
        ({"batch_size": 0}, "batch_size and max_tokens must be 1 or more"),
        ({"label": "Refusals"}, "the classifier has no label 'Refusals'; did you mean 'Refusal'?"),
    ],
)
def test_a_wrong_setting_is_named(folder: str, settings: dict[str, object], message: str) -> None:
    chosen = {"model": folder, **settings} if settings else {}
    with pytest.raises(RecipeError) as error:
        measure(frame(("ask", "yes")), {"refusal_model": chosen})
    assert message in str(error.value)
