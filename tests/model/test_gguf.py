"""Models in GGUF: weights, configuration and tokenizer equal those they were converted from; damage is one line."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import CurateError, ModelError, TokenizerError
from curate.model import artifact, files, fingerprint, four_bit, loader, sources
from curate.model.gguf import config, folder, header, vocabulary
from curate.tokenization.checks import DIFFICULT_TEXTS
from curate.tokenization.tokenizer import load_tokenizer
from tests.support import gguf_files, tiny_models, tiny_tokenizers

PIECES = 420
TEMPLATE = "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
IDS = torch.tensor([[1, 5, 90, 41, 7, 200, 3, 12, 99]])
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

pytestmark = pytest.mark.usefixtures("cache_folder")


def model(kind: str = "llama", **changes: Any) -> Any:
    made = tiny_models.model(kind, vocab_size=PIECES, initializer_range=0.3, **changes)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim == 1:  # norms and biases, otherwise all ones and zeros
                parameter.add_(torch.randn_like(parameter) / 5)
            elif "embed" not in name:
                parameter.mul_(1.5)
    return made


def write(path: Path, made: Any, dtype: torch.dtype = torch.float32, **more: Any) -> Path:
    tokens = gguf_files.sentencepiece_settings(tiny_tokenizers.sentencepiece_model(PIECES))
    values = {**gguf_files.settings_of(made), **tokens, "tokenizer.chat_template": TEMPLATE, **more}
    return gguf_files.write(path, values, gguf_files.tensors_of(made, dtype))


def load(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    return loader.load_model(sources.find_model(str(path)), dtype=dtype, device="cpu")


def logits(made: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = made(input_ids=IDS).logits.float()
    return out


MODELS = {
    "llama": lambda: model(),
    "llama, tied, own head size": lambda: model(tie_word_embeddings=True, head_dim=16),
    "llama with biases": lambda: model(attention_bias=True, mlp_bias=True),
    "llama 3.1": lambda: model(head_dim=64, rope_parameters=LLAMA3_ROPE, max_position_embeddings=16_384),
    "qwen2": lambda: model("qwen2"),
    "qwen3": lambda: model("qwen3", head_dim=16),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_model_computes_what_it_computed_before_its_conversion(make: Any, tmp_path: Path) -> None:
    made = make()
    tensors = gguf_files.tensors_of(made, torch.float32)
    if made.config.rope_parameters["rope_type"] == "llama3":  # transformers keeps the frequencies, the file the factors
        plain = 500_000.0 ** -(torch.arange(0, 64, 2) / 64)
        tensors[config.ROPE_FACTORS] = plain / made.model.rotary_emb.inv_freq
    tokens = gguf_files.sentencepiece_settings(tiny_tokenizers.sentencepiece_model(PIECES))
    path = gguf_files.write(tmp_path / "m.gguf", {**gguf_files.settings_of(made), **tokens}, tensors)
    loaded = load(path)
    assert torch.equal(logits(loaded), logits(made))
    assert loaded.state_dict().keys() == made.state_dict().keys()
    assert loaded.config.tie_word_embeddings == made.config.tie_word_embeddings


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    made = model()
    loaded = load(write(tmp_path / "m.gguf", made, dtype))
    assert torch.equal(loaded.lm_head.weight, made.lm_head.weight.to(dtype).float())
    assert sources.find_model(str(tmp_path)).config.dtype == dtype


def test_everything_is_known_before_the_weights_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", model())
    source = sources.find_model(str(tmp_path))  # the folder that holds it
    assert (source.chat_template, source.template) == (TEMPLATE, "model")
    assert source.tokenizer.info.name == "m"
    assert loader.shape_from_config(source.config).parameters == sum(p.numel() for p in model().parameters())
    assert source.folder is not None
    assert files.weights(source.folder) == files.Weights((path.resolve(),), "gguf", path.stat().st_size)
    found = artifact.find_artifact(str(path))
    assert artifact.serving_of(found).stop_ids == (2,)
    heard: list[str] = []
    loader.load_model(source, dtype=torch.float32, device="cpu", say=heard.append)
    assert heard == [f"{tmp_path} is GGUF (F32); its weights become float32 in memory"]


def test_a_model_can_be_quantised_again_for_qlora(tmp_path: Path) -> None:
    made = model(hidden_size=64, intermediate_size=64)
    source = sources.find_model(str(write(tmp_path / "m.gguf", made)))
    loaded: Any = loader.load_model(source, dtype=torch.float32, device="cpu", quantise=True)
    weight, expected = loaded.model.layers[0].self_attn.q_proj.weight, made.model.layers[0].self_attn.q_proj.weight
    assert (four_bit.dequantise(weight) - expected).norm() < 0.15 * expected.norm()


def test_a_file_that_changes_is_another_model(tmp_path: Path) -> None:
    first = sources.find_model(str(write(tmp_path / "m.gguf", model()))).folder
    write(tmp_path / "m.gguf", model(tie_word_embeddings=True))
    assert first is not None
    with pytest.raises(ModelError, match=r"m.gguf' has changed; start again"):
        files.weights(first)
    assert sources.find_model(str(tmp_path / "m.gguf")).folder != first


def test_models_of_one_shape_are_told_apart_and_a_new_template_is_not_another_model(tmp_path: Path) -> None:
    def weights(name: str, made: Any, **more: Any) -> str:
        source = sources.find_model(str(write(tmp_path / f"{name}.gguf", made, **more)))
        assert source.folder is not None
        return fingerprint.fingerprint(source.folder, source.config, source.tokenizer).weights

    first, second = model(), model()
    second.lm_head.weight.data.add_(0.01)
    assert weights("a", first) == weights("b", first, **{"tokenizer.chat_template": "{{ bos_token }}"})
    assert weights("c", second) != weights("a", first) != ""


# ---- tokenizers


def test_a_sentencepiece_vocabulary_gives_the_ids_of_its_model(tmp_path: Path) -> None:
    expected = load_tokenizer(
        str(tiny_tokenizers.folder(tmp_path / "t", tokenizer_model=tiny_tokenizers.sentencepiece_model(PIECES)))
    )
    source = sources.find_model(str(write(tmp_path / "m.gguf", model())))
    assert source.tokenizer.info.kind == "sentencepiece"
    assert source.tokenizer.ids(DIFFICULT_TEXTS) == expected.ids(DIFFICULT_TEXTS)
    assert source.tokenizer.control_ids == expected.control_ids


def byte_level(pre: str) -> dict[str, Any]:
    """Return the settings of a byte-level vocabulary with some merges, a control and a symbol."""
    letters = _alphabet()
    merges = ["Ġ t", "h e", "Ġt he", "1 2", "i n", "' s", "Ċ Ċ"]
    tokens = ["<|im_start|>", "<|im_end|>", *letters, *(merge.replace(" ", "") for merge in merges), "<think>"]
    types = [3, 3, *([1] * (len(tokens) - 3)), 4]
    values = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": types, "merges": merges, "eos_token_id": 1}
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


def _alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


SPLITS = {  # what each way of splitting makes of one text
    "gpt-2": ["Ġ", "Ġthe", "Ġ", "12", "3", "'s", "Ċ", "Ċ", "x"],
    "smollm": ["Ġ", "Ġthe", "Ġ", "1", "2", "3", "'s", "Ċ", "Ċ", "x"],
    "llama-bpe": ["Ġ", "Ġthe", "Ġ", "12", "3", "'s", "ĊĊ", "x"],
    "qwen2": ["Ġ", "Ġthe", "Ġ", "1", "2", "3", "'s", "ĊĊ", "x"],
}


@pytest.mark.parametrize("pre", SPLITS)
def test_texts_are_split_into_words_as_the_file_says(pre: str, tmp_path: Path) -> None:
    made = model()
    values = {**gguf_files.settings_of(made), **byte_level(pre)}
    path = gguf_files.write(tmp_path / "m.gguf", values, gguf_files.tensors_of(made, torch.float32))
    tokenizer = sources.find_model(str(path)).tokenizer
    names = values["tokenizer.ggml.tokens"]
    assert [names[token] for token in tokenizer.ids(["  the 123's\n\nx"])[0]] == SPLITS[pre]
    assert tokenizer.control_ids["<|im_end|>"] == 1
    assert tokenizer.decode(tokenizer.ids(["<think> né"])[0]) == "<think> né"
    assert len(tokenizer.ids(["<think>"])[0]) == 1
    assert len(tokenizer.ids(["<|im_end|>"])[0]) > 1  # a control string in a text stays text


def test_a_way_of_splitting_that_is_not_known_needs_another_tokenizer(tmp_path: Path, tiny_tokenizer: str) -> None:
    made = model()
    values = {**gguf_files.settings_of(made), **byte_level("dbrx")}
    path = gguf_files.write(tmp_path / "m.gguf", values, gguf_files.tensors_of(made, torch.float32))
    with pytest.raises(TokenizerError, match=r"'dbrx' for splitting texts into words.*--tokenizer FOLDER"):
        sources.find_model(str(path))
    assert sources.find_model(str(path), tokenizer=load_tokenizer(tiny_tokenizer)).config.model_type == "llama"


# ---- files that curate cannot use


def edited(tmp_path: Path, **more: Any) -> Path:
    names = {key.replace("__", "."): value for key, value in more.items()}
    return write(tmp_path / "m.gguf", model(), **names)


REFUSED = [
    ({"general__architecture": "mamba"}, r"of the architecture 'mamba'; curate reads GGUF of llama, qwen2, qwen3"),
    ({"llama__expert_count": 8}, r"has the setting llama.expert_count = 8, which curate does not read"),
    ({"llama__logit_scale": 2.0}, r"has the setting llama.logit_scale = 2.0, which"),
    ({"llama__rope.scaling.type": "yarn"}, r"has the setting llama.rope.scaling.type = yarn"),
    ({"llama__rope.dimension_count": 4}, r"has 4 \(its heads have the size 8\) for llama.rope.dimension_count"),
    ({"llama__attention.head_count": 0}, r"has 0 for llama.attention.head_count"),
    ({"llama__attention.head_count": [4, 2]}, r"has \[4, 2\] for llama.attention.head_count"),
    ({"llama__block_count": 3}, r"lack model.layers.2"),
    ({"llama__embedding_length": 64}, r"has shape .* its config.json says"),
    ({"split.count": 3}, r"is one part of several; join them: llama-gguf-split --merge m.gguf OUT.gguf"),
    ({"general__alignment": 0}, "general.alignment is 0"),
    ({"tokenizer.ggml.model": "rwkv"}, "has the vocabulary kind 'rwkv', which"),
    ({"tokenizer.ggml.scores": [1.0]}, "420 tokens with 1 scores"),
    ({"tokenizer.ggml.tokens": [1, 2]}, "a tokenizer.ggml.tokens of another type"),
    ({"tokenizer.ggml.eos_token_id": 999}, "has no end token"),
]


@pytest.mark.parametrize(("more", "says"), REFUSED, ids=[says[:40] for _, says in REFUSED])
def test_a_model_that_curate_does_not_read_is_refused_by_name(more: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(CurateError, match=says) as caught:
        load(edited(tmp_path, **more))
    assert "\n" not in str(caught.value)


def test_a_tensor_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    made = model()
    tensors = {**gguf_files.tensors_of(made, torch.float32), "blk.0.ffn_gate_inp.weight": torch.ones(2, 2)}
    tokens = gguf_files.sentencepiece_settings(tiny_tokenizers.sentencepiece_model(PIECES))
    path = gguf_files.write(tmp_path / "m.gguf", {**gguf_files.settings_of(made), **tokens}, tensors)
    with pytest.raises(ModelError, match=r"has the tensor 'blk.0.ffn_gate_inp.weight', which llama of transformers"):
        load(path)


def test_one_of_several_files_must_be_named(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"holds 2 GGUF files; give one, such as '.*a.gguf'"):
        sources.find_model(str(tmp_path))


ABSURD = {
    "empty": (b"", "is empty"),
    "text": (b"hello", "does not begin like a GGUF file"),
    "cut": (b"GGUF\x03", "announced"),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "or big-endian"),
    "many tensors": (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "announces 1,152,921,504,606,846,976 tensors"),
    "many settings": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "settings"),
    "long name": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62), "are announced"),
    "long list": (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 8, 1 << 40), "items in a list"),
    "list of lists": (b"GGUF" + struct.pack("<IQQQ1sIIQI", 3, 0, 1, 1, b"a", 9, 9, 1, 9), "has the type 9"),
    "foreign": (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "of the architecture 'None'"),
    "dimensions": (b"GGUF" + struct.pack("<IQQQ1sI", 3, 1, 0, 1, b"a", 1 << 31), "dimensions"),
    "encoding": (b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"a", 1, 8, 77, 0), "the encoding number 77"),
    "huge tensor": (b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"a", 1, 1 << 62, 0, 0), "ends at byte"),
}


@pytest.mark.parametrize(("data", "says"), ABSURD.values(), ids=ABSURD)
def test_an_absurd_file_gets_one_line_before_anything_is_read(data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(ModelError, match=says) as caught:
        sources.find_model(str(tmp_path / "m.gguf"))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("whole") / "m.gguf", model(num_hidden_layers=1))


@settings(max_examples=60)
@given(cut=st.integers(0, 60_000), place=st.integers(0, 20_000), byte=st.integers(0, 255))
def test_damage_is_read_as_another_file_or_one_line(whole: Path, cut: int, place: int, byte: int) -> None:
    data = whole.read_bytes()
    damaged = bytearray(data[: len(data) - cut] if cut % 2 else data)
    damaged[place % len(damaged)] = byte
    path = whole.with_name("damaged.gguf")
    path.write_bytes(damaged)
    try:
        read = header.read_header(path)
        config.config_values(read)
        vocabulary.tokenizer_files(read)
    except CurateError as error:
        assert "\n" not in str(error)
    else:
        assert cut % 2 == 0 or cut == 0


def test_an_unwritable_cache_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = write(tmp_path / "m.gguf", model())
    with pytest.raises(ModelError, match=r"cannot be written to curate's cache: .*export XDG_CACHE_HOME=FOLDER"):
        folder.open_gguf(path)


# ---- quantised weights, which need the package gguf


def test_quantised_weights_are_dequantised(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    made = model()
    weights = gguf_files.tensors_of(made, torch.float32)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for key, value in {
        **gguf_files.settings_of(made),
        **gguf_files.sentencepiece_settings(tiny_tokenizers.sentencepiece_model(PIECES)),
    }.items():
        if key != "general.architecture":
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    expected = {}
    for name, weight in weights.items():
        kind = gguf.GGMLQuantizationType.Q8_0 if weight.ndim > 1 and weight.shape[-1] % 32 == 0 else None
        data = weight.numpy() if kind is None else gguf.quants.quantize(weight.numpy(), kind)
        expected[name] = weight.numpy() if kind is None else gguf.quants.dequantize(data, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    loaded = load(tmp_path / "m.gguf")
    assert torch.equal(loaded.lm_head.weight, torch.from_numpy(expected["output.weight"]))
    assert (logits(loaded) - logits(made)).norm() < 0.1 * logits(made).norm()
