"""Attention over packed rows: with every kernel each document attends to itself only, and the choice has a reason."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from curate.errors import RecipeError
from curate.model.attention import kernels, masks, selection
from curate.model.attention.selection import ChosenKernel
from curate.model.choices import ATTENTION, AttentionName
from tests.support import tiny_models

SDPA = ChosenKernel("sdpa", "for a test")
LENGTHS = st.lists(st.integers(1, 150), min_size=1, max_size=6)


def _numbers(lengths: list[int], padding: int) -> Any:
    row = [number for number, length in enumerate(lengths) for _ in range(length)]
    return torch.tensor([row + [-1] * padding], dtype=torch.int32)


# ---- the masks


def test_a_token_attends_to_its_own_document_up_to_itself() -> None:
    mask = masks.dense(_numbers([2, 3], 1))[0, 0].int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_a_window_limits_how_far_back_a_token_attends() -> None:
    mask = masks.dense(_numbers([4], 0), 2)[0, 0].int().tolist()
    assert mask == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]


@settings(max_examples=30, deadline=None)
@given(LENGTHS, st.integers(0, 200), st.sampled_from([None, 1, 7, 128, 200, 260]))
def test_the_block_mask_covers_all_visible_keys_and_marks_only_full_blocks_as_full(
    lengths: list[int], padding: int, window: int | None
) -> None:
    documents = _numbers(lengths, padding)
    visible = masks.dense(documents, window)[0, 0]
    short = -len(visible) % masks.BLOCK
    cells = torch.nn.functional.pad(visible, (0, short, 0, short)).unfold(0, masks.BLOCK, masks.BLOCK)
    cells = cells.unfold(1, masks.BLOCK, masks.BLOCK).flatten(2)
    block_mask: Any = masks.blocks(documents, window)
    visited = block_mask.to_dense()[0, 0].bool()  # partial and whole blocks
    assert not (cells.any(-1) & ~visited).any()
    full = torch.zeros_like(visited)
    for query, count in enumerate(block_mask.full_kv_num_blocks[0, 0].tolist()):
        full[query, block_mask.full_kv_indices[0, 0, query, :count].long()] = True
    real = cells.all(-1)
    real[-1 if short else len(real) :] |= full[-1 if short else len(real) :]  # the last block is cut at the row's end
    assert not (full & ~real).any()


def test_the_block_mask_skips_blocks_between_documents() -> None:
    block_mask = masks.blocks(_numbers([128] * 8, 0))
    assert block_mask.to_dense()[0, 0].tolist() == torch.eye(8, dtype=torch.int32).tolist()


def test_lengths_split_rows_into_documents_and_padding() -> None:
    documents = torch.cat([_numbers([2, 3], 1), _numbers([6], 0)])
    lengths = masks.lengths(documents)
    assert lengths.cu_seqlens.tolist()[:5] == [0, 2, 5, 6, 12]
    assert set(lengths.cu_seqlens.tolist()[4:]) == {12}
    assert len(lengths.cu_seqlens) == 64
    assert lengths.max_seqlen == 6


# ---- equal results


def _states(rows: int, length: int, *, device: str = "cpu", dtype: Any = None) -> list[Any]:
    torch.manual_seed(0)
    return [
        torch.randn(rows, heads, length, 16, device=device, dtype=dtype).requires_grad_(device != "cpu")
        for heads in (4, 2, 2)
    ]


def _run(name: AttentionName, states: list[Any], documents: Any, window: int | None = None) -> Any:
    kernel = kernels.KERNELS[name]
    packed = {window or 0: kernel.mask(documents, window)}
    return kernel.attend(torch.nn.Module(), *states, None, scaling=0.25, sliding_window=window, packed=packed)[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # the compiler's own
def test_compiled_flex_equals_sdpa_on_a_cpu_and_compiles_once() -> None:
    torch.set_num_threads(1)
    torch._dynamo.reset()
    counted = torch._dynamo.utils.counters
    counted.clear()
    for lengths in ([100, 60, 90], [3, 200, 47], [250]):
        documents = torch.cat([_numbers(lengths, 6), _numbers([128, 128], 0)])
        states = _states(2, 256)
        with torch.no_grad():
            outputs, expected = _run("flex", states, documents), _run("sdpa", states, documents)
        torch.testing.assert_close(outputs, expected, atol=2e-6, rtol=1e-5)
    assert counted["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("window", [None, 60])
def test_uncompiled_flex_equals_sdpa(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention import flex_attention as flex

    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(
        kernels, "_compiled_flex", lambda: flex.flex_attention
    )  # eager evaluation of the mask, token by token
    documents = torch.cat([_numbers([100, 60, 90], 6), _numbers([1, 255], 0)])
    states = _states(2, 256)
    with torch.no_grad():
        outputs, expected = _run("flex", states, documents, window), _run("sdpa", states, documents, window)
    torch.testing.assert_close(outputs, expected, atol=2e-6, rtol=1e-5)


def test_a_softcap_is_applied_as_in_the_model() -> None:
    model = tiny_models.model("gemma2", head_dim=8, sliding_window=5, attn_logit_softcapping=2.0)
    prepared = selection.install_kernel(model, SDPA)
    parts = tiny_models.documents([17, 9])
    batch = tiny_models.rows([parts], 32)
    with torch.no_grad():
        states = model.model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, **selection.mask_kwargs(prepared, batch)
        ).last_hidden_state
        with selection.plain_attention(model):
            wanted = model.model(input_ids=parts[1][0][None]).last_hidden_state
    assert prepared.windows == (5,)
    torch.testing.assert_close(states[:, 17:26], wanted, atol=2e-5, rtol=1e-4)


KINDS = ["llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "olmo2", "granite", "gpt_neox"]


@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_have_the_states_of_separate_documents(kind: str) -> None:
    model = tiny_models.model(kind)
    prepared = selection.install_kernel(model, SDPA)
    parts = tiny_models.documents([17, 9, 23])
    batch = tiny_models.rows([parts], 64)
    with torch.no_grad():
        states = model.base_model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, **selection.mask_kwargs(prepared, batch)
        ).last_hidden_state[0]
        with selection.plain_attention(model):
            alone = [model.base_model(input_ids=ids[None]).last_hidden_state[0] for ids, _ in parts]
    torch.testing.assert_close(states[:49], torch.cat(alone), atol=2e-5, rtol=1e-4)


def test_a_packed_row_without_its_mask_is_an_error() -> None:
    model = tiny_models.model()
    selection.install_kernel(model, SDPA)
    with pytest.raises(RecipeError, match="without a mask"):
        model(input_ids=torch.ones(1, 4, dtype=torch.int64))
    with selection.plain_attention(model):
        model(input_ids=torch.ones(1, 4, dtype=torch.int64))


@pytest.mark.parametrize("kind", ["falcon", "bloom"])
def test_a_model_whose_attention_cannot_be_replaced_is_refused(kind: str) -> None:
    with pytest.raises(RecipeError, match="cannot be replaced"):
        selection.install_kernel(tiny_models.model(kind), SDPA)


# ---- the choice


def test_a_cpu_uses_sdpa_with_a_reason() -> None:
    kernel = selection.choose_kernel("cpu", torch.float32)
    assert kernel.name == "sdpa"
    assert "cpu" in kernel.reason


@pytest.mark.parametrize("wanted", ["flex", "flash", "varlen"])
def test_a_gpu_kernel_is_refused_on_a_cpu(wanted: str) -> None:
    with pytest.raises(RecipeError, match=f"'{wanted}' needs a CUDA device"):
        selection.choose_kernel("cpu", torch.float32, wanted)


def test_an_unknown_kernel_gets_the_nearest_name_suggested() -> None:
    with pytest.raises(RecipeError, match="did you mean 'flex'"):
        selection.choose_kernel("cpu", torch.float32, "flexx")


@pytest.mark.parametrize(
    ("capability", "flash", "dtype", "order"),
    [
        ((9, 0), None, "bfloat16", ["flex", "varlen"]),
        ((9, 0), 2, "bfloat16", ["flex", "varlen"]),
        ((9, 0), 3, "bfloat16", ["flash", "flex", "varlen"]),
        ((10, 0), 4, "bfloat16", ["flash", "flex", "varlen"]),
        ((8, 6), 2, "bfloat16", ["flash", "flex", "varlen"]),
        ((8, 6), 4, "bfloat16", ["flex", "varlen"]),
        ((9, 0), 3, "float32", ["flex"]),
        ((7, 5), None, "float16", []),
    ],
    ids=["hopper", "hopper fa2", "hopper fa3", "blackwell fa4", "ampere fa2", "ampere fa4", "fp32", "turing"],
)
def test_kernels_are_tried_fastest_first(
    capability: tuple[int, int], flash: int | None, dtype: str, order: list[str]
) -> None:
    assert [name for name, _ in selection.ranked_kernels(capability, flash, getattr(torch, dtype))] == order


def test_a_kernel_that_fails_its_trial_gives_the_reason_in_one_line() -> None:
    failure = selection.try_kernel("varlen", torch.device("cpu"), torch.float32, selection.Heads(4, 2, 16))
    assert failure is not None
    assert "\n" not in failure


# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["flex", "varlen", "flash"])
@pytest.mark.parametrize("window", [None, 60])
def test_every_kernel_equals_sdpa_on_a_gpu(name: AttentionName, window: int | None) -> None:
    failure = selection.try_kernel(name, torch.device("cuda"), torch.bfloat16, selection.Heads(4, 2, 16))
    if failure is not None:
        pytest.skip(f"{name} cannot run here: {failure}")
    documents = torch.cat([_numbers([100, 60, 90], 6), _numbers([1, 255], 0)]).cuda()
    half, exact = _states(2, 256, device="cuda", dtype=torch.bfloat16), _states(2, 256, device="cuda")
    exact = [state.detach().float().requires_grad_() for state in half]
    outer = torch.randn(2, 256, 4, 16, device="cuda")
    outputs = _run(name, half, documents, window), _run("sdpa", exact, documents, window)
    torch.testing.assert_close(outputs[0].float(), outputs[1], atol=2e-2, rtol=2e-2)
    for output in outputs:
        (output.float() * outer).sum().backward()
    for state, exact_state in zip(half, exact, strict=True):
        torch.testing.assert_close(state.grad.float(), exact_state.grad, atol=6e-2, rtol=6e-2)


@pytest.mark.gpu
def test_a_gpu_gets_a_kernel_with_a_reason() -> None:
    kernel = selection.choose_kernel("cuda", torch.bfloat16)
    assert kernel.reason
    assert dataclasses.asdict(kernel)["name"] in ATTENTION
