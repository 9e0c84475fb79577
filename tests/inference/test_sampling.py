"""Sampling of tokens, and decoding of streamed text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from curate.errors import RecipeError
from curate.inference import sampling
from curate.inference.sampling import Sampling, TextDecoder
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer
from tests.support.tiny_tokenizers import folder, sentencepiece_model

LOGITS = torch.log(torch.tensor([0.05, 0.5, 0.3, 0.15]))
NONE = torch.zeros(0, dtype=torch.int64)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


def drawn(choice: Sampling, times: int = 200) -> set[int]:
    generator = torch.Generator().manual_seed(1)
    return {sampling.next_token(LOGITS, NONE, choice, generator) for _ in range(times)}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Sampling(), {1}),
        (Sampling(temperature=1.0), {0, 1, 2, 3}),
        (Sampling(temperature=1.0, top_k=2), {1, 2}),
        (Sampling(temperature=1.0, top_p=0.79), {1, 2}),
        (Sampling(temperature=1.0, top_p=0.81), {1, 2, 3}),
        (Sampling(temperature=1.0, top_p=0.01), {1}),
        (Sampling(temperature=0.01), {1}),
        (Sampling(temperature=1e-300), {1}),
        (Sampling(temperature=1.0, top_p=1e-300), {1}),
    ],
    ids=[
        "greedy",
        "all",
        "top-k",
        "top-p below the third",
        "top-p with the third",
        "top-p keeps one",
        "cold",
        "coldest",
        "least top-p",
    ],
)
def test_settings_restrict_the_possible_tokens(choice: Sampling, expected: set[int]) -> None:
    assert drawn(choice) == expected


def test_the_repetition_penalty_makes_earlier_tokens_less_likely() -> None:
    logits = torch.tensor([2.0, 1.9, -1.0])
    assert sampling.next_token(logits, torch.tensor([0]), Sampling(repetition=1.2), None) == 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 0),
        ({"frequency": 0.2}, 1),  # 2.0 - 3 * 0.2 = 1.4 is below 1.9 - 0.2 = 1.7
        ({"frequency": 0.04}, 0),  # 1.88 against 1.86
        ({"presence": 0.4}, 2),  # 1.6 and 1.5 against 1.65, which the prompt alone has
        ({"presence": -1.0}, 0),
        ({"bias": ((3, 100.0),)}, 3),
        ({"bias": ((0, -100.0), (1, -100.0))}, 2),
    ],
)
def test_penalties_and_bias_are_added_to_the_logits(settings: dict[str, Any], expected: int) -> None:
    logits, before = torch.tensor([2.0, 1.9, 1.65, -1.0]), torch.tensor([2, 2, 0, 1, 0, 0])
    assert sampling.next_token(logits, before, Sampling(**settings), None, prompt=2) == expected
    assert logits.tolist() == pytest.approx([2.0, 1.9, 1.65, -1.0])  # the log-probabilities are made from them


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -0.1), ("top_p", 0.0), ("top_p", 1.1), ("top_k", -1), ("repetition", 0.0), ("max_new_tokens", 0)],
)
def test_an_invalid_setting_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(RecipeError, match=f"{name} = {value} is not allowed"):
        Sampling(**{name: value})  # type: ignore[arg-type]


def test_cached_generation_equals_a_full_forward_pass(model: LlamaForCausalLM) -> None:
    prompt = [1, 5, 9]
    ids = list(sampling.stream_tokens(model, prompt, (), Sampling(max_new_tokens=12)))
    assert len(ids) == 12
    for index, token in enumerate(ids):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids[:index]])).logits[0, -1]
        assert token == int(logits.argmax())


def test_an_answer_ends_at_a_stop_token_or_a_full_window(model: LlamaForCausalLM) -> None:
    ids = list(sampling.stream_tokens(model, [1, 5, 9], (), Sampling(max_new_tokens=8)))
    first = ids.index(ids[3])  # generation stops at the first occurrence
    assert list(sampling.stream_tokens(model, [1, 5, 9], (ids[3],), Sampling(max_new_tokens=8))) == ids[: first + 1]
    assert len(list(sampling.stream_tokens(model, [1, 5, 9], (), Sampling(max_new_tokens=8), limit=7))) == 4


def test_a_seed_does_not_depend_on_the_global_random_state(model: LlamaForCausalLM) -> None:
    choice = Sampling(temperature=1.5, seed=3, max_new_tokens=10)
    first = list(sampling.stream_tokens(model, [1], (), choice))
    torch.rand(5)
    assert list(sampling.stream_tokens(model, [1], (), choice)) == first
    assert list(sampling.stream_tokens(model, [1], (), Sampling(temperature=1.5, seed=4, max_new_tokens=10))) != first


def test_generation_restores_training_mode(model: LlamaForCausalLM) -> None:
    model.train()
    with sampling.eval_mode(model):
        assert not model.training
        assert not torch.is_grad_enabled()
    assert model.training
    assert torch.is_grad_enabled()
    model.eval()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(str(folder(tmp_path_factory.mktemp("t") / "t", tokenizer_model=sentencepiece_model())))


@given(st.text(alphabet=st.sampled_from("ab \n é漢🙂"), max_size=20))
def test_decoded_text_is_complete_and_in_order(tokenizer: Tokenizer, text: str) -> None:
    decoder = TextDecoder(tokenizer)
    parts = [decoder.add(token) for token in tokenizer.ids([text])[0]]
    assert "".join([*parts, decoder.finish()]) == text
    assert not any(sampling.UNFINISHED in part for part in parts)


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ("й🙂".encode() + b"\xf0\x9f", "й🙂\ufffd"),  # an answer that is cut
        (b"\xff" + "й🙂".encode(), "\ufffdй🙂"),
        ("й".encode() + b"\x99" + "🙂".encode(), "й\ufffd🙂"),
        (b"\xe2\x82a", "\ufffda"),
    ],
)
def test_a_wrong_byte_costs_one_sign_and_not_those_beside_it(tokenizer: Tokenizer, data: bytes, shown: str) -> None:
    start = tokenizer.ids(["x"])[0]
    by_byte = [tokenizer.token_bytes.index(bytes([byte])) for byte in data]  # type: ignore[union-attr]
    for lead in ("", " "):
        decoder = TextDecoder(tokenizer, lead)
        parts = [decoder.add(token) for token in (*start, *by_byte)]
        assert "".join([*parts, decoder.finish()]) == "x" + shown


def test_the_lead_of_an_answer_is_removed(tokenizer: Tokenizer) -> None:
    decoder = TextDecoder(tokenizer, lead=" ")
    parts = [decoder.add(token) for token in tokenizer.ids(["  a b"])[0]]
    assert "".join([*parts, decoder.finish()]) == " a b"
