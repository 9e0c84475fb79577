"""Adapters are on the right layers only, have the model's type, and initially have no effect."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from curate.errors import ModelError, RecipeError
from curate.model import adapters, loader, sources
from curate.model.attention import selection
from curate.model.attention.selection import ChosenKernel
from curate.model.choices import MethodSettings
from curate.tokenization.tokenizer import load_tokenizer
from curate.train import config
from curate.train.objectives.loss import CausalLoss
from tests.support import tiny_models
from tests.support.tiny_tokenizers import tiktoken_file

SDPA = ChosenKernel("sdpa", "for a test")
PARTS = tiny_models.documents([20, 30, 14])
ROWS = tiny_models.rows([PARTS], 64)
LINEARS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def summed(model: Any) -> Any:
    """Return the summed loss of three documents in a row."""
    chosen = selection.install_kernel(model, SDPA)
    return CausalLoss(model)(ROWS, chosen)


def applied(model: Any, **settings: Any) -> tuple[Any, adapters.Trainable]:
    return adapters.apply_method(model, MethodSettings(**settings))


def layers(names: tuple[str, ...]) -> set[str]:
    """Return the layers of the model that trained parameters belong to."""
    return {part for name in names for part in name.split(".") if part.endswith(("_proj", "norm", "lm_head"))}


KINDS: list[tuple[str, dict[str, Any], set[str]]] = [
    ("full", {}, LINEARS | {"input_layernorm", "post_attention_layernorm", "norm", "lm_head"}),
    ("lora", {}, LINEARS),
    ("dora", {}, LINEARS),
    ("ia3", {}, {"k_proj", "v_proj", "down_proj"}),
    ("lora", {"targets": ("q_proj", "v_proj")}, {"q_proj", "v_proj"}),
    ("peft", {"peft": {"peft_type": "loha", "r": 4}}, LINEARS),
    ("peft", {"peft": {"peft_type": "LN_TUNING"}}, {"input_layernorm", "post_attention_layernorm", "norm"}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("kind", "settings", "where"), KINDS, ids=[f"{k}-{len(s)}-{len(w)}" for k, s, w in KINDS])
def test_a_method_trains_its_layers_and_starts_without_effect(
    kind: Any, settings: dict[str, Any], where: set[str], dtype: Any
) -> None:
    model = tiny_models.model().to(dtype)
    before = summed(model).item()
    model, trained = applied(model, kind=kind, **settings)
    if kind != "full":
        assert layers(trained.names) == where
    else:
        assert where <= layers(trained.names)
    value = summed(model.train())
    assert value.item() == pytest.approx(before, rel=1e-5 if dtype == torch.float32 else 0.02)
    value.backward()
    parameters = dict(model.named_parameters())
    assert {name for name, parameter in parameters.items() if parameter.grad is not None} == set(trained.names)
    assert any(parameters[name].grad.any() for name in trained.names)
    assert {parameters[name].dtype for name in trained.names} == {dtype}
    assert trained.count == sum(parameters[name].numel() for name in trained.names)
    assert trained.total == sum(parameter.numel() for parameter in parameters.values())


def test_all_linear_means_all_linear_layers_except_the_head() -> None:
    model, trained = applied(tiny_models.model(), rank=2)
    assert len(trained.names) == 2 * 2 * len(LINEARS)
    assert not model.get_base_model().lm_head.weight.requires_grad


def test_alpaca_lora_has_its_published_4_194_304_parameters() -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(), dtype=torch.bfloat16)
        _, trained = adapters.apply_method(model, config.load("alpaca-lora-7b").method)
    assert trained.count == 4_194_304
    assert trained.total == 6_738_415_616 + 4_194_304
    assert trained.method == "lora"


@pytest.mark.parametrize(("stabilised", "scale"), [(True, 32 / math.sqrt(16)), (False, 2.0)], ids=["rslora", "plain"])
def test_the_scale_of_lora(stabilised: bool, scale: float) -> None:
    model, _ = applied(tiny_models.model(), rank=16, alpha=32, rslora=stabilised)
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    assert layer.scaling["default"] == pytest.approx(scale)


def test_the_default_is_the_best_setting_of_pefts_comparison() -> None:
    method = config.load("default").method
    assert (method.kind, method.rank, method.alpha, method.rslora) == ("lora", 64, 32.0, True)


PEFT = ["BOFT", "LOKR", "HRA", "VERA", "OFT", "GLORA", "RANDLORA", "DELORA"]


@pytest.mark.filterwarnings("default::UserWarning:peft.tuners")  # settings that OFT and BOFT change: shown to users
@pytest.mark.parametrize("name", PEFT)
def test_any_peft_method_for_layers_trains(name: str) -> None:
    model, trained = applied(tiny_models.model(), kind="peft", peft={"peft_type": name})
    value = summed(model.train())
    value.backward()
    assert trained.method == name.lower()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("target", {"targets": ("q_prj",)}, r"method.targets: the model has no layer 'q_prj'; did you mean 'q_proj'\?"),
    ("type", {"kind": "peft", "peft": {"peft_type": "lohaa"}}, r"has no peft_type 'LOHAA'; did you mean 'LOHA'\?"),
    (
        "key",
        {"kind": "peft", "peft": {"peft_type": "LOHA", "rr": 4}},
        r"LOHA has no setting 'rr'; did you mean 'r'|known:",
    ),
    ("value", {"kind": "peft", "peft": {"peft_type": "LOHA", "r": -4}}, "peft cannot put loha into LlamaForCausalLM"),
    ("prompt", {"kind": "peft", "peft": {"peft_type": "PREFIX_TUNING"}}, "cannot be used with packed rows: it adds"),
    ("outside", {"kind": "peft", "peft": {"peft_type": "SHADOW"}}, "is outside the layers; use lora"),
]


@pytest.mark.parametrize(("settings", "says"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_unsuitable_settings_get_one_clear_line(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        applied(tiny_models.model(), **settings)
    assert "\n" not in str(caught.value)


def test_ia3_needs_names_for_unknown_architectures() -> None:
    model = tiny_models.model("olmo2")
    with pytest.raises(
        RecipeError, match=r"peft does not know the layers that ia3 trains in a 'olmo2' model; set method\.targets"
    ):
        applied(model, kind="ia3")
    _, trained = applied(model, kind="ia3", targets=("k_proj", "v_proj", "down_proj"))
    assert trained.count == 2 * (16 + 16 + 48)  # the last by its inputs


# ---- in four bits


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return the model `tiny` in four bits."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "tokenizer.model").write_bytes(tiktoken_file())
    source = sources.find_model("tiny", tokenizer=load_tokenizer(str(tmp_path / "tokenizer.model")))
    yield loader.load_model(source, dtype=torch.float32, device="cpu", quantise=True)


@pytest.mark.filterwarnings("default")  # bitsandbytes' own
def test_qlora_learns_and_its_base_stays_in_four_bits(tiny: Any) -> None:
    shape = loader.shape_from_config(tiny.config)
    torch.manual_seed(0)
    model, trained = applied(tiny, kind="qlora", rank=4)
    assert trained.total == shape.parameters + trained.count
    frozen = {name: parameter.clone() for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert sum(parameter.dtype == torch.uint8 for parameter in frozen.values()) == 7 * 4
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.005)
    losses = []
    for _ in range(8):
        value = summed(model.train())
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    assert losses[-1] < losses[0] - 5  # the head is frozen, and small
    assert all(torch.equal(dict(model.named_parameters())[name], parameter) for name, parameter in frozen.items())


@pytest.mark.gpu
def test_qlora_trains_on_the_gpu_in_bf16(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(tiktoken_file())
    source = sources.find_model("tiny", tokenizer=load_tokenizer(str(tmp_path / "tokenizer.model")))
    model: Any = loader.load_model(source, dtype=torch.bfloat16, device="cuda", quantise=True)
    model, _ = applied(model, kind="qlora", rank=4)
    chosen = selection.install_kernel(model, SDPA)
    CausalLoss(model.train())(ROWS.to("cuda"), chosen).backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all()
        for parameter in model.parameters()
        if parameter.requires_grad
    )


# ---- trained further


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_a_saved_adapter_is_trained_further(kind: Any, tmp_path: Path) -> None:
    model, trained = applied(tiny_models.model(), kind=kind, rank=4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model.save_pretrained(tmp_path)
    again: Any
    again, same = adapters.resume_adapter(tiny_models.model(), tmp_path)
    assert same == trained
    torch.testing.assert_close(summed(again), summed(model))
    summed(again.train()).backward()
    assert all(parameter.grad is not None for parameter in again.parameters() if parameter.requires_grad)


def test_an_adapter_without_weights_or_of_another_model_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model, _ = applied(tiny_models.model(), rank=4)
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="does not fit the model"):
        adapters.resume_adapter(tiny_models.model(hidden_size=64), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    missing = min(weights)
    save_file({name: weight for name, weight in weights.items() if name != missing}, file)
    with pytest.raises(ModelError, match="does not fit the model: Found missing adapter keys"):
        adapters.resume_adapter(tiny_models.model(), tmp_path)
    save_file({}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="has no weights; give an adapter that was saved with them"):
        adapters.resume_adapter(tiny_models.model(), tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(ModelError, match="is damaged"):
        adapters.resume_adapter(tiny_models.model(), tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
        adapters.resume_adapter(tiny_models.model(), tmp_path)
