"""The predicted memory of a step, compared with the measured bytes of live tensors."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from curate.model.attention import selection
from curate.model.choices import MethodSettings
from curate.model.sizes import Linear, Shape
from curate.train.objectives.loss import CausalLoss
from curate.train.planning import memory
from curate.train.planning.memory import Setup
from curate.train.trainer import checkpoint_activations
from tests.support import tiny_models
from tests.support.live_bytes import LiveBytes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIZES = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4}


def shape_of(model: Any) -> Shape:
    config = model.config
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    size = hidden // config.num_attention_heads
    keys, embeddings = config.num_key_value_heads * size, config.vocab_size * hidden
    sides = {"q": (hidden, hidden), "k": (hidden, keys), "v": (hidden, keys), "o": (hidden, hidden)}
    sides |= {"gate": (hidden, inner), "up": (hidden, inner), "down": (inner, hidden)}
    return Shape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        embeddings=embeddings,
        head=0 if config.tie_word_embeddings else embeddings,
        linears=tuple(Linear(f"{name}_proj", *pair, layers) for name, pair in sides.items()),
        layers=layers,
        hidden=hidden,
        intermediate=inner,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_size=size,
        vocabulary=config.vocab_size,
        positions=config.max_position_embeddings,
    )


def adapted(model: Any, method: MethodSettings) -> Any:
    common: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    if method.kind == "ia3":
        inside = ["down_proj"]
        config = peft.IA3Config(target_modules=["k_proj", "v_proj", *inside], feedforward_modules=inside, **common)
    else:
        common |= {"r": method.rank, "use_dora": method.kind == "dora", "target_modules": "all-linear"}
        config = peft.LoraConfig(**common)
    return peft.get_peft_model(model, config, autocast_adapter_dtype=False)


def predicted_and_measured(
    kind: str, dtype: str, *, checkpointed: float, rows: int, row_tokens: int, accumulates: bool, **sizes: Any
) -> tuple[int, int]:
    method = MethodSettings(kind=kind, rank=8)  # type: ignore[arg-type]
    model = tiny_models.model(**{**SIZES, "vocab_size": 1000, "num_key_value_heads": 4, **sizes}).to(DTYPES[dtype])
    shape = shape_of(model)
    model = model if kind == "full" else adapted(model, method).to(DTYPES[dtype])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert memory.trained_parameters(method, shape) == sum(parameter.numel() for parameter in trained)
    chosen = selection.install_kernel(model, selection.ChosenKernel("sdpa", "for a test"))
    layers = round(checkpointed * shape.layers)
    checkpoint_activations(model, layers)
    batch = tiny_models.rows([[document] for document in tiny_models.documents([row_tokens] * rows)], row_tokens)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter) if accumulates else None
    step = CausalLoss(model.train())
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    with LiveBytes(*model.parameters(), *model.buffers(), *gradients) as live:
        step(batch, chosen).backward()
    setup = Setup(
        method=method,
        dtype=dtype,
        form="master",
        checkpointed=layers,
        compiled=False,
        attention="sdpa",
        micro_batch=rows,
        row_tokens=row_tokens,
        supervised=batch.supervised,
        accumulates=accumulates,
    )
    parts = memory.parts(setup, shape)
    del parts["optimizer states"]  # the measured step has no optimizer
    return sum(parts.values()), live.peak


@pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers 5.24 renames the call that turns checkpointing on
@pytest.mark.parametrize("checkpointed", [0.0, 0.5, 1.0], ids=["kept", "half", "checkpointed"])
@pytest.mark.parametrize(
    ("kind", "dtype", "rows", "accumulates", "sizes"),
    [
        ("full", "fp32", 1, False, {}),
        ("full", "bf16", 1, True, {"num_key_value_heads": 2}),
        ("full", "fp32", 2, False, {"vocab_size": 4000, "tie_word_embeddings": True}),
        ("full", "bf16", 1, True, {"vocab_size": 4000}),
        ("lora", "fp32", 1, True, {}),
        ("lora", "bf16", 1, False, {"vocab_size": 4000}),
        ("dora", "fp32", 1, True, {}),
        ("ia3", "bf16", 1, True, {}),
    ],
    ids=["full", "grouped keys", "tied", "large", "lora", "lora, large", "dora", "ia3"],
)
def test_the_predicted_peak_is_within_a_tenth_of_the_measured_peak(
    kind: str, dtype: str, rows: int, accumulates: bool, sizes: dict[str, Any], checkpointed: float
) -> None:
    reckoned, measured = predicted_and_measured(
        kind,
        dtype,
        checkpointed=checkpointed,
        rows=rows,
        row_tokens=256,
        accumulates=accumulates,
        **sizes,
    )
    assert abs(reckoned / measured - 1) < 0.10, f"{reckoned / 1e6:.1f} MB reckoned, {measured / 1e6:.1f} MB measured"


def llama2_7b() -> Shape:
    sides = {"q": (4096, 4096), "k": (4096, 4096), "v": (4096, 4096), "o": (4096, 4096)}
    sides |= {"gate": (4096, 11008), "up": (4096, 11008), "down": (11008, 4096)}
    linears = tuple(Linear(f"{name}_proj", *pair, 32) for name, pair in sides.items())
    table = 32000 * 4096
    return Shape(6_738_415_616, table, table, linears, 32, 4096, 11008, 32, 32, 128, 32000, 4096)


def setup_7b(kind: str, **changes: Any) -> Setup:
    values: dict[str, Any] = {
        "method": MethodSettings(kind=kind),  # type: ignore[arg-type]
        "dtype": "bf16",
        "form": "master",
        "checkpointed": 32,
        "compiled": True,
        "attention": "flex",
        "micro_batch": 1,
        "row_tokens": 2048,
        "supervised": 2048,
        "accumulates": True,
    }
    return Setup(**{**values, **changes})


def test_a_7b_model_needs_the_published_amount_of_memory() -> None:
    gib = 2**30
    full = memory.parts(setup_7b("full"), llama2_7b())
    states = full["weights"] + full["gradients"] + full["optimizer states"]
    assert states == pytest.approx(16 * 6_738_415_616)  # 16 bytes a parameter with fp32 master weights
    assert sum(memory.parts(setup_7b("qlora"), llama2_7b()).values()) < 10 * gib
    assert sum(memory.parts(setup_7b("lora"), llama2_7b()).values()) < 20 * gib
    assert sum(memory.parts(setup_7b("full", ranks=8), llama2_7b()).values()) < 20 * gib


def test_a_compiled_layer_stores_less() -> None:
    plain, compiled = (
        memory.layer_bytes(setup_7b("full", compiled=is_compiled), llama2_7b()) for is_compiled in (False, True)
    )
    assert compiled < 0.6 * plain
