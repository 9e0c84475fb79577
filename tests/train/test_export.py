"""Exported models load in plain transformers and peft with equal logits, stop, and are written whole or not at all."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch import distributed as group
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import curate
from curate.errors import CheckpointError
from curate.model import serving
from curate.model.attention import selection
from curate.rendering.factory import make_renderer
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer
from curate.train import distributed
from curate.train.distributed import World
from curate.train.objectives.loss import CausalLoss
from curate.train.report import card
from curate.train.results import export
from curate.train.results.export import Origin, ResultInfo
from curate.train.run import records
from curate.train.run.records import Records
from tests.support import tiny_models, tiny_runs
from tests.support.ranks import spawn
from tests.support.tiny_tokenizers import folder, sentencepiece_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # what peft asks

ALONE = World(0, 1, 0, torch.device("cpu"))
IDS = torch.arange(3, 60)[None]
PIECES = 420


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(str(folder(tmp_path_factory.mktemp("s"), tokenizer_model=sentencepiece_model(PIECES))))


def base(**changes: Any) -> Any:
    return tiny_models.model(vocab_size=PIECES, **changes)


def making(tokenizer: Tokenizer, method: str = "full", base_folder: Path | None = None, **more: Any) -> ResultInfo:
    renderer = make_renderer("vicuna", tokenizer)
    return ResultInfo(
        export.serving_for(renderer), Origin(str(base_folder or "tiny"), base_folder, method, **more), window=512
    )


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("tied", [False, True], ids=["head of its own", "tied head"])
@pytest.mark.parametrize("shard", ["5GB", "40KB"], ids=["one file", "several files"])
def test_a_model_loads_in_plain_transformers_with_equal_logits_and_stops(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool, shard: str
) -> None:
    monkeypatch.setattr(export, "SHARD", shard)
    model = base(tie_word_embeddings=tied)
    selection.install_kernel(model, selection.choose_kernel("cpu", torch.float32))
    model.generation_config = GenerationConfig(
        temperature=0.9, do_sample=False
    )  # like LLaMA-2's, which transformers refuses to save
    exported = export.finish(tmp_path, model, making(tokenizer), ALONE)
    assert exported == tmp_path / "model"
    assert (
        len(list(exported.glob("*.safetensors"))) == 1
        if shard == "5GB"
        else (exported / "model.safetensors.index.json")
    )
    again = AutoModelForCausalLM.from_pretrained(exported)
    with selection.plain_attention(model):
        assert torch.equal(logits(again), logits(model))
    assert again.generation_config.eos_token_id == tokenizer.info.eos_id
    assert AutoTokenizer.from_pretrained(exported)("It is half past nine.").input_ids
    assert "curate" not in (exported / "config.json").read_text(), "no name that plain transformers does not know"
    assert serving.read_serving(exported).template == "vicuna"


ADAPTERS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, use_rslora=True),
    "dora": lambda: peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, use_dora=True),
    "ia3": lambda: peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False
    ),
}


@pytest.mark.parametrize("method", ADAPTERS)
def test_an_adapter_loads_in_plain_peft_with_equal_logits(tokenizer: Tokenizer, tmp_path: Path, method: str) -> None:
    lies = tmp_path / "base"
    export.write_model(lies, base(), making(tokenizer))
    model = peft.get_peft_model(base(), ADAPTERS[method]())
    exported = export.finish(tmp_path, model, making(tokenizer, method, lies), ALONE)
    assert exported == tmp_path / "adapter"
    again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(lies), str(exported))
    assert torch.equal(logits(again), logits(model))
    assert not torch.equal(logits(again), logits(base()))
    auto_loaded = peft.AutoPeftModelForCausalLM.from_pretrained(str(exported), dtype=torch.float32)
    assert torch.equal(logits(auto_loaded), logits(model)), "it knows where its base lies"
    assert model.peft_config["default"].base_model_name_or_path != str(lies), "training goes on as before"


def test_the_adapter_of_a_new_base_is_exported_with_its_base(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = peft.get_peft_model(base(), ADAPTERS["lora"]())
    exported = export.finish(tmp_path, model, making(tokenizer, "lora", create=base), ALONE)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(exported / "base")), logits(base()))
    assert torch.equal(logits(peft.AutoPeftModelForCausalLM.from_pretrained(str(exported))), logits(model))
    note = serving.read_note(exported)
    assert note is not None
    assert (note.kind, note.base, note.method) == ("adapter", "base", "lora")
    assert "FROM base\nADAPTER ." in (exported / serving.MODELFILE).read_text()


@pytest.mark.parametrize("defect", ["empty", "other numbers", "half"])
def test_an_adapter_file_that_differs_from_the_trained_weights_is_refused(tmp_path: Path, defect: str) -> None:
    model = peft.get_peft_model(base(), ADAPTERS["lora"]())
    weights = {name: tensor.contiguous() for name, tensor in peft.get_peft_model_state_dict(model).items()}
    wrong = {
        "empty": {},
        "other numbers": {name: tensor + 1 for name, tensor in weights.items()},
        "half": dict(list(weights.items())[: len(weights) // 2]),
    }
    save_file(wrong[defect], tmp_path / export.ADAPTER_WEIGHTS)
    with pytest.raises(CheckpointError, match="not the one that was trained"):
        export.check_adapter(tmp_path, model)
    save_file(weights, tmp_path / export.ADAPTER_WEIGHTS)
    export.check_adapter(tmp_path, model)


def test_a_full_disk_keeps_the_earlier_model(tokenizer: Tokenizer, tmp_path: Path) -> None:
    exported = export.write_model(tmp_path / "model", base(), making(tokenizer))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"model' was not written: .*; the checkpoints are as they were"):
            export.write_model(exported, base(seed=1), making(tokenizer))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_second_export_replaces_the_first(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for seed in (0, 1):
        exported = export.write_model(tmp_path / "model", base(seed=seed), making(tokenizer))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(exported)), logits(base(seed=1)))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def _export_sharded(rank: int, root: str, tied: bool) -> None:
    world = World(rank, group.get_world_size(), rank, torch.device("cpu"))
    module = distributed.wrap_model(CausalLoss(base(tie_word_embeddings=tied)), world, shard=True)
    output = making(load_tokenizer(root))
    export.finish(Path(root) / "run", module.model, output, world)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True], ids=["head of its own", "tied head"])
def test_a_sharded_model_is_exported_whole(tmp_path: Path, tied: bool) -> None:
    root = folder(tmp_path, tokenizer_model=sentencepiece_model(PIECES))
    (root / "run").mkdir()
    spawn(_export_sharded, 2, str(root), tied)
    exported = root / "run" / "model"
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(exported)), logits(base(tie_word_embeddings=tied)))
    assert json.loads((exported / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    with safe_open(str(exported / export.WEIGHTS), framework="pt") as file:
        assert ("lm_head.weight" in file.keys()) != tied  # noqa: SIM118 (no mapping)


# ---- in plain transformers


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_plain_transformers_generates_the_trained_answer_and_stops(tmp_path: Path, method: str) -> None:
    """The base has its own sampling, padding and stop tokens, as LLaMA-3.1 has; a LoRA result is merged."""
    end, other = 2, 9
    settings = {"temperature": 0.6, "top_p": 0.9, "do_sample": True, "pad_token_id": 5, "eos_token_id": [end, other]}

    def as_released(base_folder: Path) -> None:
        (base_folder / serving.NOTE).unlink()
        (base_folder / "generation_config.json").write_text(json.dumps(settings))
        config = json.loads((base_folder / "tokenizer_config.json").read_text())
        (base_folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 1000}))

    run = tiny_runs.run(tmp_path, method, change_base=as_released)
    result = run / "model"
    if method == "lora":
        result = curate.merge(str(run), tmp_path / "merged").folder
    model, tokenizer = AutoModelForCausalLM.from_pretrained(result), AutoTokenizer.from_pretrained(result)
    assert tokenizer.model_max_length == 1000
    assert tokenizer.eos_token_id == end
    assert model.config.eos_token_id == model.generation_config.eos_token_id == [end, other]
    assert {key: getattr(model.generation_config, key) for key in settings} == settings
    prompt, answer = (message.content for message in tiny_runs.TALK[:2])
    asked = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    generated = model.generate(**ids, do_sample=False, max_new_tokens=60)[0, ids["input_ids"].shape[1] :]
    assert generated[-1] == end and (generated != end).sum() == len(generated) - 1
    assert tokenizer.decode(generated[:-1]).strip() == answer
    sampled = model.generate(**ids, max_new_tokens=3)  # with the base's own settings
    assert sampled.shape[1] > ids["input_ids"].shape[1]


# ---- the card

HOSTILE = "</pre><script>alert(1)</script> ``` | \n# head ```` [a](javascript:x) \x1b[31m \u202e ~~~ $x$"


def a_run(text: str) -> Records:
    def measured(loss: float) -> dict[str, Any]:
        row = {"name": "all", "loss": loss, "tokens": 1200, "conversations": 3}
        return {"overall": row, "by_depth": [{**row, "name": "1"}, {**row, "name": "2"}]}

    evals = [{"step": 0, "which": "base", **measured(3.5)}, {"step": 9, "which": "tuned", **measured(0.5)}]
    asked = [{"role": "user", "content": text}]
    sample = {"step": 9, "which": "tuned", "name": "fixed", "messages": asked, "answer": text, "stopped": True}
    facts = {"data": {"set": text, "manifest_sha256": "ab" * 32, "conversations": 1234, text: 1, "split_again": None}}
    return Records(text, evals=evals, samples=[sample], facts=facts, config=f"# {text}")


def test_the_card_has_base_data_losses_settings_and_prompt(tokenizer: Tokenizer) -> None:
    output = making(tokenizer, "lora")
    text = card.text(a_run("first"), output.serving, serving.Note("adapter", "org/base", "lora", "vicuna", ("</s>",)))
    assert text.startswith('---\nbase_model: "org/base"\nlibrary_name: peft\n')
    for word in ("ab" * 32, "1,234", "| all | 3.5000 | 0.5000 | 1,200 |", "USER: Hello! ASSISTANT: Hi!</s>", "```toml"):
        assert word in text
    assert "base_model" not in card.text(a_run("x"), output.serving, output.note("model")), (
        "a folder is no name on the Hub"
    )


@given(st.sampled_from([HOSTILE, "`", "```\n\n<b>", "a|b\n"]) | st.text(max_size=60))
def test_no_text_in_the_data_breaks_the_markdown_of_the_card(hostile: str) -> None:
    html = (
        MarkdownIt("commonmark", {"html": True})
        .enable("table")
        .render(card.text(a_run(hostile), _SERVING[0], serving.Note("adapter", hostile, "lora", "vicuna")))
    )
    assert "<script" not in html
    assert "<b>" not in html
    assert "<a " not in html
    assert html.count("<h1>") == 1
    assert html.count("<h2>") >= 4


_SERVING: list[serving.Serving] = []


@pytest.fixture(scope="module", autouse=True)
def _one_serving(tokenizer: Tokenizer) -> None:
    _SERVING[:] = [serving.from_template(tokenizer, "vicuna")]


def test_the_card_is_written_next_to_the_weights_with_the_loss_over_the_run(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    records.append(tmp_path / records.METRICS, [{"step": step, "loss": 1.0 / step} for step in range(1, 41)])
    exported = export.finish(tmp_path, base(), making(tokenizer), ALONE)
    card = (exported / "README.md").read_text().partition("## Training loss\n\n")[2].partition("\n\n")[0].splitlines()
    assert card[0] == "| up to step | loss |"
    assert [line.split(" | ")[0] for line in card[2:]] == [f"| {step}" for step in range(4, 41, 4)]
    assert card[2] == "| 4 | 0.5208 |"
