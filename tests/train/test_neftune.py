"""NEFTune: noise of the right size on the tokens of each document, only in training."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch.utils.checkpoint import checkpoint

from curate.model.attention import selection
from curate.model.attention.selection import ChosenKernel
from curate.train import neftune
from curate.train.objectives.loss import CausalLoss
from tests.support import tiny_models

SIZES = [20, 30, 100]
ROWS = tiny_models.rows([tiny_models.documents(SIZES), tiny_models.documents([60])], 160)


def module(**changes: Any) -> tuple[CausalLoss, ChosenKernel]:
    model = tiny_models.model(**changes)
    chosen = selection.install_kernel(model, ChosenKernel("sdpa", "for a test"))
    return CausalLoss(model), chosen


def test_noise_is_uniform_within_its_bound_and_absent_on_padding() -> None:
    torch.manual_seed(0)
    documents, size, alpha = ROWS.documents, 512, 5.0
    drawn = neftune.noise(torch.zeros(2, 160, size), documents, alpha)
    assert not drawn[documents < 0].any()
    for row, number, length in [(0, 0, 20), (0, 1, 30), (0, 2, 100), (1, 0, 60)]:
        noise = drawn[row][documents[row] == number]
        width = alpha / math.sqrt(length * size)
        assert len(noise) == length
        assert float(noise.abs().max()) == pytest.approx(width, rel=0.01)
        assert float(noise.abs().max()) <= width
        assert float(noise.abs().mean()) == pytest.approx(width / 2, rel=0.05)
        assert abs(float(noise.mean())) < width / 30


def test_a_single_document_gets_the_noise_of_the_paper() -> None:
    torch.manual_seed(3)
    ours = neftune.noise(torch.zeros(1, 60, 32), torch.zeros(1, 60, dtype=torch.int32), 5.0)
    torch.manual_seed(3)
    paper = (2 * torch.rand(1, 60, 32) - 1) * 5.0 / math.sqrt(60 * 32)
    torch.testing.assert_close(ours, paper)


def test_noise_changes_only_the_training_loss() -> None:
    causal, kernel = module()
    with torch.no_grad():
        quiet = causal.eval()(ROWS, kernel).item()
    neftune.add(causal, 5.0)
    trained = [causal.train()(ROWS, kernel).item() for _ in range(2)]
    assert trained[0] != trained[1] != quiet
    assert trained == pytest.approx([quiet] * 2, rel=0.05)
    with torch.no_grad():
        assert causal(ROWS, kernel).item() == quiet
        assert causal.eval()(ROWS, kernel).item() == quiet
        with selection.plain_attention(causal.model):
            ids = ROWS.input_ids[:1, :20]
            assert torch.equal(causal.model(ids).logits, causal.model(ids).logits)


def test_noise_is_the_same_with_activation_checkpointing() -> None:
    gradients = []
    for checkpointing in (False, True):
        causal, kernel = module(vocab_size=160)
        neftune.add(causal, 5.0)
        if checkpointing:
            model: Any = causal.model
            for layer in model.model.layers:
                layer.gradient_checkpointing = True
                layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        torch.manual_seed(7)
        causal.train()(ROWS, kernel).backward()
        gradients.append({name: parameter.grad for name, parameter in causal.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.filterwarnings("default")  # peft's use of an older name of transformers'
def test_noise_is_added_to_a_model_with_an_adapter() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_models.model(), peft.LoraConfig(r=2, target_modules="all-linear"))
    chosen = selection.install_kernel(model, ChosenKernel("sdpa", "for a test"))
    causal = CausalLoss(model).train()
    neftune.add(causal, 5.0)
    assert causal(ROWS, chosen).item() != causal(ROWS, chosen).item()
