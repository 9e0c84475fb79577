"""Base models are located, loaded completely, and measured without weights; failures get one clear line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file

from curate.errors import CurateError, ModelError, TokenizerError
from curate.model import files, loader, sources
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer
from tests.support import hubs, tiny_models
from tests.support.tiny_tokenizers import sentencepiece_model, tiktoken_file

SHAPE = {"vocab_size": 512, "max_position_embeddings": 256}


@pytest.fixture(autouse=True)
def cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use cache folders of the tests' own, and block the Hub."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    hubs.point(monkeypatch, hubs.NOWHERE)


def write_model(folder: Path, kind: str = "llama", *, shards: str = "5GB", **changes: Any) -> Any:
    """Write a small model with a tokenizer; return the model."""
    model = tiny_models.model(kind, **{**SHAPE, **changes})
    model.save_pretrained(folder, max_shard_size=shards)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    return model


def same(first: Any, second: Any) -> bool:
    weights, second_weights = first.state_dict(), second.state_dict()
    return weights.keys() == second_weights.keys() and all(
        torch.equal(weights[key], second_weights[key]) for key in second_weights
    )


def edit(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# ---- loading


@pytest.mark.parametrize("shards", ["5GB", "40KB"], ids=["one file", "shards"])
@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
def test_a_folder_loads_with_the_weights_that_were_saved(shards: str, tied: bool, tmp_path: Path) -> None:
    wanted = write_model(tmp_path, shards=shards, tie_word_embeddings=tied)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shards == "40KB")
    source = sources.find_model(str(tmp_path))
    model: Any = loader.load_model(source, dtype=torch.float32, device="cpu")
    assert same(model, wanted)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(model(ids).logits, wanted(ids).logits)


def test_a_tied_head_saved_twice_loads_as_one_tensor(tmp_path: Path) -> None:
    wanted = write_model(tmp_path, tie_word_embeddings=True)
    file = tmp_path / "model.safetensors"
    saved = load_file(file)
    save_file({**saved, "lm_head.weight": saved["model.embed_tokens.weight"].clone()}, file, {"format": "pt"})
    messages: list[str] = []
    model: Any = loader.load_model(
        sources.find_model(str(tmp_path)), dtype=torch.float32, device="cpu", say=messages.append
    )
    assert same(model, wanted)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not messages


def test_legacy_bin_files_load_as_data_with_a_message(tmp_path: Path) -> None:
    wanted = write_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(wanted.state_dict(), tmp_path / "pytorch_model.bin")
    messages: list[str] = []
    model = loader.load_model(sources.find_model(str(tmp_path)), dtype=torch.float32, device="cpu", say=messages.append)
    assert same(model, wanted)
    assert "legacy .bin files" in messages[0]


def test_code_in_a_legacy_file_is_not_run(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Trap(tmp_path / "sprung")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="contain code, or are damaged"):
        loader.load_model(sources.find_model(str(tmp_path)), dtype=torch.float32, device="cpu")
    assert not (tmp_path / "sprung").exists()


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_missing_weight_is_an_error_and_never_random(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    write_model(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"lack model\.norm\.weight"):
        loader.load_model(sources.find_model(str(tmp_path)), dtype=torch.float32, device="cpu")
    save_file({**tensors, "model.norm.weight": norm[:-1].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.norm\.weight of .* has shape \(31,\), its config\.json says \(32,\)"):
        loader.load_model(sources.find_model(str(tmp_path)), dtype=torch.float32, device="cpu")


def test_an_unused_weight_is_reported(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    write_model(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "model.extra.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    messages: list[str] = []
    loader.load_model(sources.find_model(str(tmp_path)), dtype=torch.float32, device="cpu", say=messages.append)
    assert messages == [f"ignoring weights of {tmp_path} that the model does not use: model.extra.weight"]


MEASURE = """
import sys, threading, torch
from pathlib import Path
from curate.model import loader, sources
torch.set_num_threads(1)
def own():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024
def grown(dtype):
    before, seen, done = own(), [0], threading.Event()
    def watch():
        while not done.wait(0.0005):
            seen.append(own())
    thread = threading.Thread(target=watch)
    thread.start()
    model = loader.load_model(source, dtype=dtype, device="cpu")
    done.set()
    thread.join()
    return max(seen) - before
source = sources.find_model(sys.argv[1])
loader.load_model(sources.find_model(sys.argv[2]), dtype=torch.float32, device="cpu")
print(grown(torch.bfloat16), grown(torch.float32))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_loading_needs_no_second_copy_of_the_weights(tmp_path: Path) -> None:
    shape = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6, "dtype": torch.bfloat16}
    write_model(tmp_path / "large", shards="30MB", **shape)
    write_model(tmp_path / "small")
    size = files.weights(tmp_path / "large").bytes  # in bf16
    assert size > 60 << 20
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "large"), str(tmp_path / "small")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    as_saved, as_fp32 = map(int, output.split())
    assert as_saved < 0.2 * size  # mapped: the file's own pages, which the system may drop
    assert as_fp32 < 2.2 * size  # allocated once, in the new type


def test_a_model_of_another_family_loads_too(tmp_path: Path) -> None:
    for kind in ("gpt2", "qwen3"):
        wanted = write_model(tmp_path / kind, kind)
        model = loader.load_model(sources.find_model(str(tmp_path / kind)), dtype=torch.float32, device="cpu")
        assert same(model, wanted)


@pytest.mark.gpu
def test_weights_are_loaded_directly_onto_the_gpu(tmp_path: Path) -> None:
    wanted = write_model(tmp_path)
    model: Any = loader.load_model(sources.find_model(str(tmp_path)), dtype=torch.bfloat16, device="cuda")
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
    assert torch.equal(model.lm_head.weight.cpu(), wanted.lm_head.weight.to(torch.bfloat16))


# ---- locating


def test_a_models_facts_are_read_without_its_weights(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}")
    source = sources.find_model(str(tmp_path))
    assert (source.config.hidden_size, source.tokenizer.info.kind) == (32, "sentencepiece")
    assert (source.chat_template, source.template) == ("{{ bos_token }}", "model")
    with pytest.raises(ModelError, match=r"has no weights: neither model.safetensors nor pytorch_model.bin"):
        loader.load_model(source, dtype=torch.float32, device="cpu")


Damage = Callable[[Path], object]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"
WRONG: list[tuple[str, Damage, str]] = [
    ("no tokenizer", lambda at: (at / "tokenizer.model").unlink(), r"has no tokenizer: .*--tokenizer FOLDER"),
    ("no config", lambda at: (at / "config.json").unlink(), "has no config.json; give a model in"),
    ("broken config", lambda at: (at / "config.json").write_text("{"), "is not valid JSON"),
    ("a list", lambda at: (at / "config.json").write_text("[]"), "is a JSON list, not an object"),
    ("pointer", lambda at: (at / "config.json").write_bytes(POINTER), "is a Git LFS pointer.*git lfs pull"),
    ("no type", lambda at: (at / "config.json").write_text("{}"), "has no model_type"),
    ("new type", lambda at: edit(at, "config.json", model_type="llama99"), r"transformers 5\S* cannot read.*llama99"),
    (
        "own code",
        lambda at: edit(at, "config.json", model_type="mine", auto_map={"AutoConfig": "mine.Config"}),
        "needs Python code from its own folder, which curate does not run",
    ),
    ("encoder", lambda at: edit(at, "config.json", model_type="t5"), "not a causal language model"),
    (
        "classifier",
        lambda at: edit(at, "config.json", architectures=["LlamaForSequenceClassification"]),
        "is LlamaForSequenceClassification, not a causal language model",
    ),
    ("small table", lambda at: edit(at, "config.json", vocab_size=100), r"has 420 tokens, but .* embeddings for 100"),
    ("pointed weights", lambda at: (at / "model.safetensors").write_bytes(POINTER), "is a Git LFS pointer"),
    ("half weights", lambda at: (at / "model.safetensors").write_bytes(half(at)), r"bytes, its header says [\d,]+"),
    (
        "noise",
        lambda at: (at / "model.safetensors").write_bytes(b"noise" * 99),
        "is damaged, or not a safetensors file",
    ),
    ("empty", lambda at: (at / "model.safetensors").write_bytes(b""), "is damaged, or not a safetensors file"),
    (
        "gguf",
        lambda at: (at / "model.safetensors").rename(at / "model.gguf"),
        "has weights as GGUF only; give that file",
    ),
    (
        "quantised",
        lambda at: edit(at, "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        r"quantised already \(gptq\); give the model they were made from",
    ),
    (
        "outside",
        lambda at: (at / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b"}}'),
        "which is not a file of its folder",
    ),
]


def half(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()[:-1000]


@pytest.mark.parametrize(("damage", "says"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_a_broken_model_gets_one_clear_line(damage: Damage, says: str, tmp_path: Path) -> None:
    write_model(tmp_path)
    damage(tmp_path)
    with pytest.raises(CurateError, match=says) as caught:
        loader.load_model(sources.find_model(str(tmp_path)), dtype=torch.float32, device="cpu")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value) or "tokenizer" in str(caught.value)


def test_a_missing_shard_is_reported(tmp_path: Path) -> None:
    write_model(tmp_path, shards="40KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    shards[1].unlink()
    with pytest.raises(ModelError, match=rf"lacks {shards[1].name} \(1 of {len(shards)} files of weights are missing"):
        files.weights(tmp_path)


def test_a_wrong_path_gets_the_nearest_name_suggested(tmp_path: Path) -> None:
    write_model(tmp_path / "llama")
    with pytest.raises(ModelError, match=r"no model at '.*lama'; did you mean 'llama'\?"):
        sources.find_model(str(tmp_path / "lama"))
    with pytest.raises(ModelError, match="give a folder in Hugging Face's format, a Hub name such as"):
        sources.find_model(str(tmp_path / "x" / "y" / "z"))
    with pytest.raises(ModelError, match="is a file; give its folder"):
        sources.find_model(str(tmp_path / "llama" / "config.json"))
    with pytest.raises(ModelError, match="no model is given"):
        sources.find_model("")


def test_an_adapter_or_run_given_as_model_gets_init_suggested(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(ModelError, match=r"is an adapter, not a model: .* type --init .* \(base: 'org/base'\)"):
        sources.find_model(str(tmp_path))
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.toml").write_text("")
    with pytest.raises(ModelError, match=r"is a run of curate, not a model: .* type --init"):
        sources.find_model(str(run))
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "params.json").write_text("{}")
    with pytest.raises(ModelError, match="is in Meta's format; convert it"):
        sources.find_model(str(tmp_path / "meta"))


# ---- the Hub


def test_a_hub_name_downloads_weights_only_when_they_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = write_model(tmp_path / "there", shards="40KB")
    (tmp_path / "there" / "pytorch_model.bin").write_bytes(b"not wanted")
    with hubs.serving({"org/open": tmp_path / "there"}) as endpoint:
        hubs.point(monkeypatch, endpoint)
        source = sources.find_model("org/open")
        assert source.folder is not None
        assert not [*source.folder.glob("*.safetensors"), *source.folder.glob("*.bin")]
        messages: list[str] = []
        model = loader.load_model(source, dtype=torch.float32, device="cpu", say=messages.append)
    assert same(model, wanted)
    assert messages == ["downloading the weights of org/open from the Hub, unless they are in its cache"]
    assert not list(source.folder.glob("*.bin"))
    hubs.point(monkeypatch, hubs.NOWHERE)
    again = loader.load_model(
        sources.find_model("org/open"), dtype=torch.float32, device="cpu"
    )  # without a network, from the cache
    assert same(again, wanted)


def test_a_hub_repository_with_bin_files_is_downloaded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = write_model(tmp_path / "there")
    (tmp_path / "there" / "model.safetensors").unlink()
    torch.save(wanted.state_dict(), tmp_path / "there" / "pytorch_model.bin")
    with hubs.serving({"org/old": tmp_path / "there"}) as endpoint:
        hubs.point(monkeypatch, endpoint)
        assert same(loader.load_model(sources.find_model("org/old"), dtype=torch.float32, device="cpu"), wanted)


def test_a_gated_an_absent_and_an_unreachable_model_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with hubs.serving({"org/gated": hubs.GATED}) as endpoint:
        hubs.point(monkeypatch, endpoint)
        with pytest.raises(ModelError, match=r"^'org/gated' is gated: ask for access at .*, .* hf auth login$"):
            sources.find_model("org/gated")
        with pytest.raises(ModelError, match="no folder 'org/none' here, and no such repository"):
            sources.find_model("org/none")
    hubs.point(monkeypatch, hubs.NOWHERE)
    with pytest.raises(
        ModelError, match=r"the Hub cannot be reached; download its config\.json, tokenizer and weights"
    ):
        sources.find_model("org/none")


# ---- tiny


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A small tokenizer of LLaMA-3's kind."""
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    file.write_bytes(tiktoken_file())
    return load_tokenizer(str(file))


def test_tiny_depends_on_its_seed_and_leaves_the_random_state_alone(llama3: Tokenizer) -> None:
    source = sources.find_model("tiny", tokenizer=llama3)
    torch.manual_seed(5)
    model: Any = loader.load_model(source, dtype=torch.float32, device="cpu", seed=1)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), drawn)
    assert same(model, loader.load_model(source, dtype=torch.float32, device="cpu", seed=1))
    assert not same(model, loader.load_model(source, dtype=torch.float32, device="cpu", seed=2))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.vocab_size == llama3.info.vocab_size
    with pytest.raises(ModelError, match="uses the tokenizer of a curated set"):
        sources.find_model("tiny")


def test_tiny_has_8_6_million_parameters_with_llama_3s_vocabulary() -> None:
    try:
        source = sources.find_model("tiny", tokenizer=load_tokenizer("llama3"))
    except TokenizerError as error:
        pytest.skip(str(error))
    assert loader.shape_from_config(source.config).parameters == 8_569_408


@pytest.mark.filterwarnings("default")  # bitsandbytes' own
def test_weights_are_loaded_in_four_bits_on_request(llama3: Tokenizer, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    source = sources.find_model("tiny", tokenizer=llama3)
    plain, four = (
        loader.load_model(source, dtype=torch.float32, device="cpu", quantise=asked) for asked in (False, True)
    )
    weight: Any = four.get_parameter("model.layers.0.mlp.up_proj.weight")
    assert (weight.dtype, weight.numel()) == (torch.uint8, 64 * 384 // 2)
    assert weight.quant_state.nested
    ids = torch.arange(3, 40)[None]
    exact = plain(ids).logits
    assert 0.001 < (four(ids).logits - exact).norm() / exact.norm() < 0.3


# ---- prompt and sizes

NAMES = [
    ("org/vicuna-7b-v1.5", "vicuna", "models named like 'vicuna-7b-v1.5'"),
    ("meta-llama/Llama-2-7b-chat-hf", "llama2", "models named like"),
    ("codellama/CodeLlama-7b-Instruct-hf", "llama2", "models named like"),
    ("chavinlo/alpaca-native", "alpaca", "models named like"),
    ("meta-llama/Llama-2-7b-hf", "vicuna", "no chat template"),
    ("codellama/CodeLlama-7b-hf", "vicuna", "no chat template"),
]


@pytest.mark.parametrize(("name", "template", "why"), NAMES, ids=[row[0] for row in NAMES])
def test_the_natural_prompt_of_released_models(name: str, template: str, why: str, llama3: Tokenizer) -> None:
    chosen, reason = sources.natural_template(name, None, None, llama3)
    assert chosen == template
    assert why in reason


def test_llama_3_instruct_needs_a_tokenizer_with_its_control_tokens(llama3: Tokenizer, tmp_path: Path) -> None:
    name = "meta-llama/Meta-Llama-3-8B-Instruct"
    assert sources.natural_template(name, None, None, llama3)[0] == "llama3"
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    assert sources.natural_template(name, None, None, load_tokenizer(str(tmp_path)))[0] == "vicuna"


def test_the_note_in_a_folder_from_curate_takes_precedence(llama3: Tokenizer) -> None:
    from curate.model.serving import Note

    note = Note("model", "org/base", "full", "alpaca")
    assert sources.natural_template("vicuna", note, "{{ x }}", llama3) == ("alpaca", "its curate.json says so")


PARAMETERS = [  # from their cards and papers
    ("7b", {}, 6_738_415_616, 6_476_005_376),
    (
        "llama 3 8b",
        {"vocab_size": 128_256, "intermediate_size": 14_336, "num_key_value_heads": 8},
        8_030_261_248,
        6_979_321_856,
    ),
    (
        "13b",
        {"hidden_size": 5120, "intermediate_size": 13_824, "num_hidden_layers": 40, "num_attention_heads": 40},
        13_015_864_320,
        12_687_769_600,
    ),
]


@pytest.mark.parametrize(("changes", "total", "matrices"), [row[1:] for row in PARAMETERS], ids=lambda row: str(row))
def test_parameter_counts_equal_those_of_model_cards(changes: dict[str, int], total: int, matrices: int) -> None:
    from transformers import LlamaConfig

    shape = loader.shape_from_config(LlamaConfig(**changes))
    assert shape.parameters == total
    assert shape.matrices == matrices
    assert shape.head == shape.embeddings == shape.vocabulary * shape.hidden
    assert sum(linear.count for linear in shape.linears) == 7 * shape.layers


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
def test_the_shape_without_weights_equals_that_of_the_model(kind: str) -> None:
    model = tiny_models.model(kind, tie_word_embeddings=kind != "llama")
    shape = loader.shape_from_config(model.config)
    assert shape == loader.shape_from_model(model)
    assert shape.tied == (kind != "llama")
    rest = shape.parameters - shape.embeddings - shape.head - shape.matrices
    assert 0 <= rest < 0.4 * shape.parameters  # norms, biases, GPT-2's table of positions
