"""4-bit matrices on a CPU: any shape holds, infers, trains, chats and merges, whatever the processor can do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")
bnb = pytest.importorskip("bitsandbytes")

from torch import nn

from curate.model import loader, sources
from curate.train import export
from curate.train.export import Origin, ResultInfo
from tests.support import tiny_runs

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")  # bitsandbytes' own
COLUMNS = (40, 48, 64, 80, 96, 112, 200, 224)
IDS = torch.arange(3, 40)[None]


@pytest.fixture(params=[False, True], ids=["plain", "avx512_bf16"])
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Let bitsandbytes take its branch with or without AVX512-BF16, whatever this processor has."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: request.param, raising=False)
    yield request.param


def written(folder: Path, columns: int, dtype: Any = torch.float32, **changes: Any) -> tuple[Any, sources.ModelSource]:
    """Return a model whose last matrices have so many columns, and where it is to be loaded from."""
    plain = tiny_runs.base(intermediate_size=columns, **changes).to(dtype)
    how = export.serving_for(tiny_runs.tiny_renderer(folder / "tokenizer"))
    lies = export.write_model(folder / "base", plain, ResultInfo(how, Origin("tiny", None, "none"), 512))
    return plain, sources.find_model(str(lies))


def quantised(source: sources.ModelSource, dtype: Any = torch.float32, *, inference: bool = False) -> Any:
    return loader.load_model(source, dtype=dtype, device="cpu", quantise=True, inference=inference)


def matrices(model: nn.Module) -> dict[str, Any]:
    return {name: part for name, part in model.named_modules() if isinstance(part, bnb.nn.Linear4bit)}


@pytest.mark.parametrize("columns", COLUMNS)
def test_a_matrix_of_any_shape_holds_and_multiplies_what_was_quantised(
    columns: int, instructions: bool, tmp_path: Path
) -> None:
    plain, source = written(tmp_path, columns, hidden_size=columns)
    held = quantised(source)
    assert bool(matrices(held)) == (columns % 32 != 16)  # no blocks of 16 in bitsandbytes: plain layers
    for name, layer in held.model.layers.named_modules():
        if isinstance(layer, nn.Linear):
            found, wanted = values(layer), plain.get_parameter(f"model.layers.{name}.weight")
            assert 0.05 < (found - wanted).norm() / wanted.norm() < 0.12, f"{name}: 4 bits round by about 9%"
            x = torch.randn(3, columns)
            torch.testing.assert_close(layer.eval()(x), nn.functional.linear(x, found), rtol=1e-4, atol=1e-4)


def values(layer: nn.Linear) -> Any:
    """What a layer multiplies by: bitsandbytes' own dequantisation, with which it computes."""
    if not isinstance(layer, bnb.nn.Linear4bit):
        return layer.weight
    return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


@pytest.mark.parametrize("columns", [64, 96])
def test_a_forward_in_eval_mode_changes_no_gradient_of_training(
    columns: int, instructions: bool, tmp_path: Path
) -> None:
    held = quantised(written(tmp_path, columns)[1])
    before = gradient(held)
    with torch.no_grad():
        held.eval()(IDS)
    assert torch.equal(gradient(held), before)


def gradient(model: Any) -> Any:
    """The gradient at the embedded tokens, through every matrix of the layers."""
    embedded = model.get_input_embeddings()(IDS).detach().requires_grad_()
    model.train()(inputs_embeds=embedded).logits.square().mean().backward()
    return embedded.grad


def test_only_bf16_inference_repacks_and_only_what_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True, raising=False)
    for dtype in (torch.bfloat16, torch.float32):
        source = written(tmp_path / str(dtype), 96, dtype)[1]
        assert repacked(quantised(source, dtype)) == set()
        fit = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"}  # down_proj has 96 columns
        assert repacked(quantised(source, dtype, inference=True)) == (fit if dtype == torch.bfloat16 else set())


def repacked(model: Any) -> set[str]:
    """The layers, by their last names, that bitsandbytes may repack at the next forward."""
    return {name.rpartition(".")[2] for name, one in matrices(model).items() if one.support_avx512bf16_for_cpu}


def test_repacked_matrices_infer_as_the_others_do(tmp_path: Path) -> None:
    source = written(tmp_path, 96, torch.bfloat16)[1]
    with torch.no_grad():
        wanted, found = (
            quantised(source, torch.bfloat16, inference=fast)(IDS).logits.float() for fast in (False, True)
        )
    assert (found - wanted).norm() < 0.05 * wanted.norm()
