"""4-bit matrices on a CPU: any shape loads, infers, trains, chats and merges, with any instruction set."""

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
from curate.train.results import export
from curate.train.results.export import Origin, ResultInfo
from tests.support import tiny_runs

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")  # bitsandbytes' own
COLUMNS = (40, 48, 64, 80, 96, 112, 200, 224)
IDS = torch.arange(3, 40)[None]


@pytest.fixture(params=[False, True], ids=["plain", "avx512_bf16"])
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Make bitsandbytes take its branch with or without AVX512-BF16, on any processor."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: request.param, raising=False)
    yield request.param


def written(folder: Path, columns: int, dtype: Any = torch.float32, **changes: Any) -> tuple[Any, sources.ModelSource]:
    """Return a model whose last matrices have this many columns, and the source to load it from."""
    plain = tiny_runs.base(intermediate_size=columns, **changes).to(dtype)
    serving = export.serving_for(tiny_runs.tiny_renderer(folder / "tokenizer"))
    base_folder = export.write_model(folder / "base", plain, ResultInfo(serving, Origin("tiny", None, "none"), 512))
    return plain, sources.find_model(str(base_folder))


def quantised(source: sources.ModelSource, dtype: Any = torch.float32, *, inference: bool = False) -> Any:
    return loader.load_model(source, dtype=dtype, device="cpu", quantise=True, inference=inference)


def matrices(model: nn.Module) -> dict[str, Any]:
    return {name: part for name, part in model.named_modules() if isinstance(part, bnb.nn.Linear4bit)}


@pytest.mark.parametrize("columns", COLUMNS)
def test_a_matrix_of_any_shape_multiplies_correctly(columns: int, instructions: bool, tmp_path: Path) -> None:
    plain, source = written(tmp_path, columns, hidden_size=columns)
    model = quantised(source)
    assert bool(matrices(model)) == (columns % 32 != 16)  # no blocks of 16 in bitsandbytes: plain layers
    for name, layer in model.model.layers.named_modules():
        if isinstance(layer, nn.Linear):
            dequantised, exact = values(layer), plain.get_parameter(f"model.layers.{name}.weight")
            assert 0.05 < (dequantised - exact).norm() / exact.norm() < 0.12, f"{name}: 4 bits round by about 9%"
            x = torch.randn(3, columns)
            torch.testing.assert_close(layer.eval()(x), nn.functional.linear(x, dequantised), rtol=1e-4, atol=1e-4)


def values(layer: nn.Linear) -> Any:
    """Return the matrix of a layer, dequantised by bitsandbytes as in its forward."""
    if not isinstance(layer, bnb.nn.Linear4bit):
        return layer.weight
    return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


@pytest.mark.parametrize("columns", [64, 96])
def test_a_forward_pass_in_eval_mode_changes_no_later_gradient(
    columns: int, instructions: bool, tmp_path: Path
) -> None:
    model = quantised(written(tmp_path, columns)[1])
    before = gradient(model)
    with torch.no_grad():
        model.eval()(IDS)
    assert torch.equal(gradient(model), before)


def gradient(model: Any) -> Any:
    """Return the gradient at the embedded tokens, through every matrix of the layers."""
    embedded = model.get_input_embeddings()(IDS).detach().requires_grad_()
    model.train()(inputs_embeds=embedded).logits.square().mean().backward()
    return embedded.grad


def test_only_bf16_inference_repacks_and_only_suitable_matrices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True, raising=False)
    for dtype in (torch.bfloat16, torch.float32):
        source = written(tmp_path / str(dtype), 96, dtype)[1]
        assert repacked(quantised(source, dtype)) == set()
        fit = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"}  # down_proj has 96 columns
        assert repacked(quantised(source, dtype, inference=True)) == (fit if dtype == torch.bfloat16 else set())


def repacked(model: Any) -> set[str]:
    """Return the last names of the layers that bitsandbytes may repack at the next forward."""
    return {name.rpartition(".")[2] for name, layer in matrices(model).items() if layer.support_avx512bf16_for_cpu}


def test_repacked_matrices_give_nearly_the_same_logits(tmp_path: Path) -> None:
    source = written(tmp_path, 96, torch.bfloat16)[1]
    with torch.no_grad():
        plain_logits, repacked_logits = (
            quantised(source, torch.bfloat16, inference=fast)(IDS).logits.float() for fast in (False, True)
        )
    assert (repacked_logits - plain_logits).norm() < 0.05 * plain_logits.norm()
