"""The chunked loss equals plain cross-entropy in value and gradient, for any chunk size, head and number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from curate.errors import RecipeError
from curate.model.attention import selection
from curate.model.attention.selection import ChosenKernel
from curate.train.objectives import loss
from tests.support import ranks, tiny_models

SDPA = ChosenKernel("sdpa", "for a test")


def _problem(rows: int, length: int, hidden: int, vocabulary: int, supervised: float) -> tuple[Any, ...]:
    source = torch.Generator().manual_seed(rows * 1000 + length)
    states = torch.randn(rows, length, hidden, generator=source)
    weight = torch.randn(vocabulary, hidden, generator=source) * 0.2
    bias = torch.randn(vocabulary, generator=source)
    targets = torch.randint(0, vocabulary, (rows, length), generator=source)
    targets[torch.rand(rows, length, generator=source) >= supervised] = -100
    return states, weight, bias, targets


def _plain(states: Any, weight: Any, bias: Any, targets: Any, scale: float = 1.0, softcap: float | None = None) -> Any:
    logits = nn.functional.linear(states.float(), weight.float(), None if bias is None else bias.float()) * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100)


def _gradients(value: Any, *inputs: Any) -> list[Any]:
    return list(torch.autograd.grad(value * 0.37, inputs))


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 37),
    st.integers(1, 9),
    st.integers(2, 61),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(1, 50),
    st.booleans(),
    st.sampled_from([(1.0, None), (0.25, None), (1.0, 3.0), (2.0, 5.0)]),
)
def test_the_chunked_loss_and_its_gradients_equal_plain_cross_entropy(
    rows: int,
    length: int,
    hidden: int,
    vocabulary: int,
    supervised: float,
    chunk: int,
    with_bias: bool,
    shape: tuple[float, float | None],
) -> None:
    torch.set_num_threads(1)
    states, weight, bias, targets = _problem(rows, length, hidden, vocabulary, supervised)
    inputs = [states.requires_grad_(), weight.requires_grad_(), *([bias.requires_grad_()] if with_bias else [])]
    bias = bias if with_bias else None
    scale, softcap = shape
    ours = loss.supervised_loss(states, weight, targets, bias=bias, chunk=chunk, softcap=softcap, scale=scale)
    theirs = _plain(states, weight, bias, targets, scale, softcap)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
    for gradient, expected in zip(_gradients(ours, *inputs), _gradients(theirs, *inputs), strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)


def test_without_supervised_tokens_loss_and_gradients_are_zero() -> None:
    states, weight, _, targets = _problem(2, 8, 4, 11, 0.0)
    value = loss.supervised_loss(states.requires_grad_(), weight.requires_grad_(), targets)
    value.backward()
    assert value.item() == 0.0
    assert not states.grad.any()
    assert not weight.grad.any()


def test_both_loss_kernels_give_the_same_result() -> None:
    source = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(9, 33, generator=source) * 4, torch.randint(0, 33, (9,), generator=source)
    for shape in ((1.0, None), (0.5, 4.0)):
        plain = loss.loss_and_gradient(logits.clone(), targets, torch.float32, *shape)
        in_place = loss.loss_and_gradient_in_place(logits.clone(), targets, torch.float32, *shape)
        torch.testing.assert_close(plain, in_place)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_stays_near_fp32_with_the_heads_gradient_summed_in_fp32(dtype: Any) -> None:
    states, weight, _, targets = _problem(2, 400, 16, 50, 1.0)
    states, weight = states.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
    ours = loss.supervised_loss(states, weight, targets, chunk=8)
    wanted = _gradients(_plain(states, weight, None, targets), states, weight)
    assert ours.dtype == torch.float32
    for gradient, exact in zip(_gradients(ours, states, weight), wanted, strict=True):
        error = (gradient.float() - exact.float()).norm() / exact.float().norm()
        assert error < (0.01 if dtype == torch.bfloat16 else 0.002)


def test_fp16_keeps_small_gradients() -> None:
    states, weight = torch.zeros(1, 1, 4).half().requires_grad_(), torch.zeros(40_000, 4).half().requires_grad_()
    value = loss.supervised_loss(states + 1.0, weight, torch.tensor([[7]]))
    (slope,) = torch.autograd.grad(value, (weight,))
    assert slope[0, 0].item() == pytest.approx(1 / 40_000, rel=0.01)


def test_logits_of_at_most_one_chunk_exist_at_a_time() -> None:
    sizes: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            sizes.extend(
                tensor.numel() for tensor in (out if isinstance(out, tuple) else (out,)) if hasattr(tensor, "numel")
            )
            return out

    states, weight, _, targets = _problem(1, 512, 4, 1000, 1.0)
    watch: Any = Watch
    with watch():
        loss.supervised_loss(states.requires_grad_(), weight.requires_grad_(), targets, chunk=32).backward()
    assert max(sizes) == 32 * 1000


def test_a_frozen_head_gets_no_gradient_and_costs_none() -> None:
    states, weight, _, targets = _problem(1, 16, 4, 11, 1.0)
    value = loss.supervised_loss(states.requires_grad_(), weight, targets)
    node: Any = value.grad_fn
    assert node.saved_tensors[1] is None
    value.backward()
    assert weight.grad is None


def test_evaluation_without_gradients_keeps_nothing() -> None:
    states, weight, _, targets = _problem(1, 16, 4, 11, 1.0)
    with torch.no_grad():
        value = loss.supervised_loss(states.requires_grad_(), weight.requires_grad_(), targets, chunk=3)
    torch.testing.assert_close(value, _plain(states, weight, None, targets).detach())


# ---- with a model


def _loss_and_gradients(model: Any, batch: tiny_models.Rows, **more: Any) -> tuple[float, dict[str, Any]]:
    module = loss.CausalLoss(model, **more)
    value = module(batch, selection.install_kernel(model, SDPA))
    value.backward()
    return value.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_packed_and_separate_examples_have_the_same_loss_and_gradients(tied: bool) -> None:
    parts = tiny_models.documents([17, 9, 23, 31])
    model = tiny_models.model(tie_word_embeddings=tied)
    value, gradients = _loss_and_gradients(model, tiny_models.rows([parts[:2], parts[2:]], 60), chunk=7)
    plain = tiny_models.model(tie_word_embeddings=tied)
    wanted = tiny_models.plain_loss(plain, parts)
    wanted.backward()
    assert value == pytest.approx(wanted.item(), rel=1e-5)
    assert len(gradients) == len(list(plain.parameters()))
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize(("kind", "changes"), [("granite", {"logits_scaling": 4.0}), ("cohere", {"logit_scale": 0.3})])
def test_the_logit_scale_of_the_model_is_used(kind: str, changes: dict[str, Any]) -> None:
    parts = tiny_models.documents([17, 9])
    model = tiny_models.model(kind, **changes)
    with torch.no_grad():
        wanted = tiny_models.plain_loss(model, parts).item()
    assert _loss_and_gradients(model, tiny_models.rows([parts], 32))[0] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # what peft asks transformers
def test_an_adapter_on_the_head_itself_is_trained_too() -> None:
    import peft

    config = peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    parts = tiny_models.documents([17, 9, 23])
    model: Any = peft.get_peft_model(tiny_models.model(tie_word_embeddings=False), config)
    value, gradients = _loss_and_gradients(model, tiny_models.rows([parts], 60), chunk=7)
    model.zero_grad()
    with selection.plain_attention(model):
        wanted = tiny_models.plain_loss(model, parts)
    wanted.backward()
    assert value == pytest.approx(wanted.item(), rel=1e-5)
    assert any("lm_head" in name for name in gradients)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=2e-5, rtol=1e-3)


def test_the_check_refuses_a_model_with_an_unknown_loss() -> None:
    model = tiny_models.model("gemma2", head_dim=8, final_logit_softcapping=0.1)
    prepared = selection.install_kernel(model, SDPA)
    loss.check_packed_logits(loss.CausalLoss(model), prepared)
    module = loss.CausalLoss(model)
    module.softcap = None  # as if the configuration's key for the cap were unknown
    with pytest.raises(RecipeError, match="cannot read packed rows"):
        loss.check_packed_logits(module, prepared)


def test_the_check_refuses_a_model_that_carries_a_state_from_document_to_document() -> None:
    model: Any = tiny_models.model("mamba", state_size=4, intermediate_size=64, expand=2, num_heads=None)
    with pytest.raises(RecipeError):
        loss.check_packed_logits(loss.CausalLoss(model), selection.install_kernel(model, SDPA))


# ---- the whole step

LENGTHS = [40, 3, 17, 29, 8, 33, 12, 22]


def _step(accumulate: int, first: int = 0, every: int = 1, *, wrap: Any = None) -> tuple[float, dict[str, Any]]:
    """One global step of 4 rows in micro-batches, of which this rank takes every `every`-th, starting at `first`."""
    parts = tiny_models.documents(LENGTHS)
    packed = [parts[at : at + 2] for at in range(0, 8, 2)]
    size = len(packed) // accumulate
    batches = [tiny_models.rows(packed[at : at + size], 64) for at in range(0, len(packed), size)][first::every]
    model = tiny_models.model()
    prepared = selection.install_kernel(model, SDPA)
    module = loss.CausalLoss(model)
    called = wrap(module) if wrap else module
    factor, tokens = loss.step_factor(batch.supervised for batch in batches)
    total = 0.0
    for batch in batches:
        value = called(batch, prepared) * factor
        value.backward()
        total += value.item()
    assert tokens == sum(int(trained[1:].sum()) for _, trained in parts)
    return total, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_a_step_does_not_depend_on_its_micro_batches(accumulate: int) -> None:
    parts = tiny_models.documents(LENGTHS)
    plain = tiny_models.model()
    wanted = tiny_models.plain_loss(plain, parts) / sum(int(trained[1:].sum()) for _, trained in parts)
    wanted.backward()
    value, gradients = _step(accumulate)
    assert value == pytest.approx(wanted.item(), rel=1e-5)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-3)


def _two_ranks(rank: int, folder: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    mesh = init_device_mesh("cpu", (2,))

    def wrap(module: Any) -> Any:
        for layer in module.model.model.layers:
            fully_shard(layer, mesh=mesh)
        return fully_shard(module, mesh=mesh)

    copied = _step(4, rank, 2, wrap=DistributedDataParallel)
    value, gradients = _step(4, rank, 2, wrap=wrap)
    sharded = value, {name: slope.full_tensor() for name, slope in gradients.items()}
    torch.save({"ddp": copied, "fsdp2": sharded}, Path(folder) / f"{rank}.pt")


@pytest.mark.slow
def test_two_ranks_make_the_same_step_as_one(tmp_path: Path) -> None:
    value, gradients = _step(1)
    ranks.spawn(_two_ranks, 2, str(tmp_path))
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for wrapper in ("ddp", "fsdp2"):
        (first_value, slopes), (second_value, second_slopes) = results[0][wrapper], results[1][wrapper]
        assert (first_value + second_value) / 2 == pytest.approx(value, rel=1e-5)
        for name, wanted in gradients.items():
            torch.testing.assert_close(slopes[name], wanted, atol=1e-6, rtol=1e-3)
            torch.testing.assert_close(second_slopes[name], slopes[name], atol=0, rtol=0)


def test_a_step_without_a_supervised_token_changes_nothing() -> None:
    ids = torch.zeros(1, 4, dtype=torch.int64)
    empty = tiny_models.Rows(ids, ids - 100, ids, ids.int(), 0)
    assert loss.step_factor([empty.supervised]) == (0.0, 0)


# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_the_loss_on_a_gpu_equals_plain_cross_entropy(dtype: Any) -> None:
    states, weight, _, targets = (part.cuda() for part in _problem(2, 333, 64, 1001, 0.4))
    states, weight = states.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
    count = int((targets >= 0).sum())
    ours = loss.supervised_loss(states, weight, targets, chunk=100, count=count)
    wanted = _plain(states, weight, None, targets)
    assert ours.item() == pytest.approx(wanted.item(), rel=1e-3)
    for gradient, exact in zip(_gradients(ours, states, weight), _gradients(wanted, states, weight), strict=True):
        assert (gradient.float() - exact.float()).norm() / exact.float().norm() < 0.02


@pytest.mark.gpu
def test_the_loss_on_a_gpu_uses_no_more_memory_than_predicted() -> None:
    tokens, vocabulary, hidden = 8192, 32_000, 512
    states = torch.randn(1, tokens, hidden, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(vocabulary, hidden, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(0, vocabulary, (1, tokens), device="cuda")
    loss.supervised_loss(states[:, :64], weight, targets[:, :64]).backward()  # compiles
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss.supervised_loss(states, weight, targets, chunk=512, count=tokens).backward()
    predicted = loss.workspace_bytes(tokens, vocabulary, hidden, trained=True, itemsize=2, chunk=512)
    assert torch.cuda.max_memory_allocated() - before <= predicted * 1.1 + (32 << 20)
