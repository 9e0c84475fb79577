"""A base has one fingerprint in all forms it is stored in; another model of the same shape has another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file

from curate.errors import ModelError
from curate.model.fingerprint import Fingerprint, difference, fingerprint, weights_hash
from curate.tokenization.tokenizer import load_tokenizer
from tests.support import tiny_models
from tests.support.tiny_tokenizers import folder, sentencepiece_model


def hash_of(model: Any, path: Path, shard: str = "5GB", tied: bool = False) -> str:
    model.save_pretrained(path, max_shard_size=shard)
    return weights_hash(path, tied=tied)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    tiny_models.model().bfloat16().save_pretrained(path)
    return path


def test_the_same_weights_in_any_form_are_the_same_base(base: Path, tmp_path: Path) -> None:
    expected = weights_hash(base, tied=False)
    bf16 = tiny_models.model().bfloat16()
    assert hash_of(tiny_models.model().bfloat16().float(), tmp_path / "fp32") == expected
    assert hash_of(tiny_models.model(), tmp_path / "exact") == expected  # before it was rounded to bf16
    assert hash_of(bf16, tmp_path / "shards", shard="20KB") == expected
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for name, format_ in (("zip", True), ("old", False)):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "pytorch_model.bin"
        buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}  # of transformers' early versions
        torch.save({**bf16.state_dict(), **buffers}, file, _use_new_zipfile_serialization=format_)
        assert weights_hash(tmp_path / name, tied=False) == expected


def test_a_tied_head_counts_neither_stored_nor_left_out(tmp_path: Path) -> None:
    model = tiny_models.model(tie_word_embeddings=True)
    expected = hash_of(model, tmp_path / "a", tied=True)
    weights = load_file(tmp_path / "a" / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "a" / "model.safetensors")
    assert weights_hash(tmp_path / "a", tied=True) == expected


@pytest.mark.parametrize("change", ["another seed", "one norm", "the last embedding", "one row"])
def test_a_model_of_the_same_shape_is_another_base(base: Path, tmp_path: Path, change: str) -> None:
    model = tiny_models.model(seed=int(change == "another seed"))
    with torch.no_grad():
        if change == "one norm":
            model.model.norm.weight[3] += 0.25
        elif change == "the last embedding":  # as for a token that is added
            model.model.embed_tokens.weight[-1] += 0.25
        elif change == "one row":
            model.model.layers[1].self_attn.k_proj.weight[0] *= -1
    assert hash_of(model, tmp_path / "other") != weights_hash(base, tied=False)


def test_forms_of_one_vocabulary_have_one_hash(tmp_path: Path) -> None:
    original = load_tokenizer(str(folder(tmp_path / "a", tokenizer_model=sentencepiece_model())))
    again = load_tokenizer(str(folder(tmp_path / "b", tokenizer_json=original.tokenizer_json())))
    document = json.loads(original.tokenizer_json())
    document["added_tokens"].append(
        {**document["added_tokens"][-1], "id": original.info.vocab_size, "content": "<|im_end|>"}
    )
    other = load_tokenizer(str(folder(tmp_path / "c", tokenizer_json=json.dumps(document))))
    assert original.vocabulary_hash == again.vocabulary_hash != other.vocabulary_hash


def test_the_difference_is_told_in_words(base: Path, tmp_path: Path) -> None:
    config = tiny_models.model().config
    found = fingerprint(base, config, None)
    assert found.architecture == "llama"
    assert found.sizes["hidden_size"] == 32
    assert difference(found, found) == ""
    assert "of type llama, not qwen2" in difference(replace(found, architecture="qwen2"), found)
    assert "hidden_size is 32, not 4,096" in difference(replace(found, sizes={"hidden_size": 4096}), found)
    assert "other tokens" in difference(replace(found, vocabulary="a"), replace(found, vocabulary="b"))
    assert "other weights" in difference(replace(found, weights="a"), found)
    assert difference(Fingerprint("llama"), found) == "", "what is unknown is not compared"
    empty = fingerprint(tmp_path, config, None)  # a model whose weights are not downloaded yet
    assert (empty.weights, difference(found, empty)) == ("", "")


LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"rope_theta": 500_000.0}, "rope.rope_theta is 500000.0, not 10000.0"),
        (
            {"rope_scaling": {**LLAMA_3, "original_max_position_embeddings": 64}},
            "rope.rope_type is llama3, not default",
        ),
        ({"rms_norm_eps": 1e-3}, "rms_norm_eps is 0.001"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu, not silu"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"head_dim": 4}, "head_dim is 4"),
    ],
)
def test_the_same_weights_with_other_settings_are_another_base(
    tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    usual = fingerprint(tmp_path, tiny_models.model().config, None)
    values = {**tiny_models.model().config.to_dict(), **changed}
    values = {key: value for key, value in values.items() if key != "rope_parameters" or "rope" not in str(changed)}
    other = fingerprint(tmp_path, transformers.LlamaConfig(**values), None)
    assert named in difference(usual, other)
    assert difference(replace(usual, settings={}), other) == "", "of an earlier version, which records none"


def test_defaults_are_the_same_written_out_left_out_and_under_older_names(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2}
    default = {"rope_type": "default", "rope_theta": 10_000}
    forms: list[dict[str, Any]] = [
        {},
        {"rope_theta": 10_000, "head_dim": 8, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
        {"rope_parameters": default, "head_dim": None, "rms_norm_eps": 1e-6},
        transformers.LlamaConfig(**sizes).to_dict(),
    ]
    prints = [fingerprint(tmp_path, transformers.LlamaConfig(**{**sizes, **form}), None) for form in forms]
    linear = [{"rope_scaling": {key: "linear", "factor": 2.0}, "rope_theta": 1e4} for key in ("type", "rope_type")]
    scaled = [fingerprint(tmp_path, transformers.LlamaConfig(**sizes, **form), None) for form in linear]
    written = [json.loads(json.dumps(found.settings)) for found in (*prints, *scaled)]
    assert written[:4] == [written[0]] * 4
    assert written[4] == written[5] != written[0]


def test_damaged_weights_are_an_error_of_curates(base: Path, tmp_path: Path) -> None:
    data = (base / "model.safetensors").read_bytes()
    for name, content in (("model.safetensors", data[:-1]), ("pytorch_model.bin", b"cos\nsystem\n(S'true'\ntR.")):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(content)
        with pytest.raises(ModelError, match=r"bytes, its header says|contains code"):
            weights_hash(tmp_path / name, tied=False)
