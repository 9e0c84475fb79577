"""Training configurations: reading, clear errors, presets, and the round trip through TOML."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import RecipeError
from curate.model.choices import MethodSettings
from curate.train import config
from curate.train.config import TrainConfig, load, override


def written(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def test_the_default_preset_equals_the_dataclass_defaults_and_names_every_setting() -> None:
    values = tomllib.loads(config.PRESETS.source("default"))
    for name, kind in config.SECTIONS.items():
        assert getattr(load(), name) == kind()
        assert list(values[name]) == [item.name for item in dataclasses.fields(kind) if item.name != "peft"]


@pytest.mark.parametrize("name", ["vicuna-7b", "vicuna-13b"])
def test_vicuna_has_its_published_settings(name: str) -> None:
    vicuna = load(name)
    assert (vicuna.method.kind, vicuna.learning_rate, vicuna.optimizer.schedule) == ("full", 2e-5, "cosine")
    assert (vicuna.optimizer.warmup, vicuna.optimizer.weight_decay, vicuna.model.dtype) == (0.03, 0.0, "bf16")
    assert (vicuna.train.global_batch, vicuna.train.epochs, vicuna.data.max_tokens) == (128, 3.0, 2048)
    assert (vicuna.train.checkpointing, vicuna.data.loss, vicuna.data.template) == ("full", "all", "vicuna")


def test_alpaca_has_its_published_settings() -> None:
    alpaca, lora = load("alpaca-7b"), load("alpaca-lora-7b")
    assert (alpaca.learning_rate, alpaca.train.global_batch, alpaca.data.max_tokens) == (2e-5, 128, 512)
    assert (lora.method.rank, lora.method.alpha, lora.method.dropout, lora.method.rslora) == (8, 16.0, 0.05, False)
    assert (lora.method.targets, lora.learning_rate, lora.train.global_batch) == (("q_proj", "v_proj"), 3e-4, 128)


def test_each_method_has_its_own_default_learning_rate() -> None:
    rates = {kind: override(load(), {"method": {"kind": kind}}).learning_rate for kind in ("full", "lora", "ia3")}
    assert rates == {"full": 2e-5, "lora": 2e-4, "ia3": 5e-3}
    assert override(load(), {"optimizer": {"learning_rate": 1e-4}}).learning_rate == 1e-4


def test_presets_are_listed_with_the_default_first_and_all_load() -> None:
    assert next(iter(config.PRESETS.summaries())) == "default"
    assert {"vicuna-7b", "vicuna-13b", "alpaca-7b", "alpaca-lora-7b"} < set(config.PRESETS.summaries())
    assert [load(name).name for name in config.PRESETS.summaries()] == list(config.PRESETS.summaries())


@pytest.mark.parametrize("name", config.PRESETS.summaries())
def test_a_preset_round_trips_through_toml(name: str, tmp_path: Path) -> None:
    first = load(name)
    assert load(written(tmp_path, first.to_toml())) == first
    assert load(first) == first


def test_flags_override_the_preset_and_omitted_flags_change_nothing() -> None:
    vicuna = load("vicuna-7b")
    changed = override(vicuna, {"train": {"epochs": 1, "seed": None}, "model": {"name": "tiny"}})
    assert (changed.train.epochs, changed.model.name) == (1.0, "tiny")
    assert dataclasses.replace(changed, train=vicuna.train, model=vicuna.model) == vicuna
    assert override(vicuna, {"train": {"epochs": None}}) == vicuna


WRONG = {
    "unknown section": ("[trian]\nepochs = 1", "unknown section 'trian'; did you mean 'train'?"),
    "unknown key": ("[train]\nepoch = 1", "unknown setting 'train.epoch'; did you mean 'epochs'?"),
    "wrong type": ("[train]\nglobal_batch = '128'", "train.global_batch = '128' must be a whole number"),
    "too small": ("[train]\nglobal_batch = 0", "train.global_batch = 0 must be at least 1"),
    "not a number": ("[optimizer]\nlearning_rate = nan", "optimizer.learning_rate = nan must be a finite number"),
    "too large": ("[method]\ndropout = 1.0", "method.dropout = 1.0 must be less than 1"),
    "unknown method": ("[method]\nkind = 'lorra'", "did you mean 'lora'?"),
    "unknown logger": ("[train]\nlog = ['tensorbord']", "did you mean 'tensorboard'?"),
    "unknown template": ("[data]\ntemplate = 'vicunna'", "unknown data.template 'vicunna'; did you mean 'vicuna'?"),
    "unknown loss": ("[data]\nloss = 'first'", "data.loss = 'first' must be 'all', 'last' or"),
    "unknown role": ("[data]\nloss = 'roles:asistant'", "unknown role 'asistant'; did you mean 'assistant'?"),
    "no length": ("[train]\nepochs = 0", "train nothing"),
    "rows too short": ("[data]\nmax_tokens = 512\nrow_tokens = 256", "data.row_tokens = 256 must be at least"),
    "no targets": ("[method]\ntargets = []", "trains nothing"),
    "peft without a type": ("[method]\nkind = 'peft'", "needs method.peft with a peft_type"),
    "peft for nothing": ("[method]\npeft = { peft_type = 'LOHA' }", "method.peft is for method.kind = 'peft'"),
    "peft is no table": ("[method]\npeft = 3", "method.peft = 3 must be a table"),
    "not TOML": ("[train", "not valid TOML"),
}


@pytest.mark.parametrize(("text", "problem"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_preset_is_refused_in_one_line_with_its_file(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(written(tmp_path, text))
    message = str(caught.value)
    assert problem in message
    assert "mine.toml" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("flags", "settings", "problem"),
    [
        ({"beta": 0.1}, (), "objective.beta = 0.1 changes nothing with objective.kind = 'sft'"),  # the default, typed
        ({"beta": 0.5, "objective": "sft"}, (), "give --objective dpo|'dpo'"),
        ({}, ("objective.sft_weight=0.2",), "objective.sft_weight = 0.2"),
        ({}, ("objective.length_normalised=true",), "objective.length_normalised = True"),
        ({"method": "full", "rank": 64}, (), "method.rank = 64 changes nothing with method.kind = 'full'"),
        ({"method": "ia3"}, ("method.alpha=32.0",), "give --method lora"),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(
    flags: dict[str, object], settings: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(RecipeError, match=problem):
        config.override(config.load(), config.changes(flags, settings))
    dpo = config.override(config.load("dpo"), config.changes({"beta": 0.5, "rank": 8}))
    assert (dpo.objective.beta, dpo.method.rank) == (0.5, 8)


@pytest.mark.parametrize(
    ("name", "problem"),
    [("vicuna-7", "did you mean 'vicuna-7b'"), ("nowhere.toml", "cannot read"), (".", "cannot read")],
)
def test_a_missing_preset_gets_one_clear_line(name: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        load(name)


def test_a_resumed_run_may_change_only_settings_without_effect_on_the_loss() -> None:
    old = load("vicuna-7b")
    same = override(old, {"checkpoint": {"keep": 5}, "eval": {"steps": 3}, "train": {"log": ["wandb"]}})
    assert config.differences(old, same) == []
    changed = override(old, {"optimizer": {"learning_rate": 1e-4}, "train": {"seed": 7}})
    assert config.differences(old, changed) == [
        "optimizer.learning_rate was 2e-05, is 0.0001",
        "train.seed was 0, is 7",
    ]


def test_the_default_name_of_a_run_combines_model_and_method() -> None:
    assert config.run_name(load("vicuna-7b")) == "Llama-2-7b-hf-full"
    assert config.run_name(override(load(), {"model": {"name": "models/my model/"}})) == "my-model-lora"


def test_presets_are_read_without_torch() -> None:
    code = "import sys, curate.train.config as c; c.load('vicuna-7b'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@st.composite
def configs(draw: st.DrawFn) -> TrainConfig:
    """Generate any valid configuration."""
    sections: dict[str, Any] = {
        "model": config.ModelSettings(*draw(st.tuples(texts, texts, texts))),
        "method": MethodSettings(
            kind="peft",
            rank=draw(st.integers(1, 2**40)),
            targets=tuple(draw(st.lists(texts, min_size=1, max_size=2))),
            peft={"peft_type": "LOHA", **draw(st.dictionaries(texts, st.integers() | texts | st.booleans()))},
        ),
        "optimizer": config.OptimizerSettings(learning_rate=draw(st.floats(0, 1))),
        "train": config.TrainSettings(epochs=draw(st.floats(1, 1e9)), log=("wandb",)),
        "eval": config.EvalSettings(prompts=tuple(draw(st.lists(texts, max_size=2)))),
    }
    return TrainConfig(name=draw(texts), summary=draw(texts), **sections)


@given(configs())
def test_any_configuration_round_trips_through_toml_and_plain_values(generated: TrainConfig) -> None:
    assert config.from_dict(tomllib.loads(generated.to_toml())) == generated
    assert config.from_dict(generated.to_dict()) == generated
