"""The files next to the weights: a prompt served by transformers has the ids of training, and answers stop."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig

from curate.errors import InputError
from curate.model import serving
from curate.model.serving import Note
from curate.rendering.factory import make_renderer
from curate.schemas import prompts
from curate.schemas.conversation import Message
from curate.tokenization.checks import DIFFICULT_TEXTS
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer
from tests.support.tiny_tokenizers import folder, sentencepiece_model, tiktoken_file

TALK = [
    Message("user", "a  b   c\n\ndef f():\n    return 1"),
    Message("assistant", "안녕 — 2 < 3"),
    Message("user", "?"),
    Message("assistant", "```py\nx = 1\n```"),
]
ROLES = {"human": "user", "gpt": "assistant"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    root = tmp_path_factory.mktemp("tokenizers")
    paths = {
        "sentencepiece": folder(root / "s", tokenizer_model=sentencepiece_model()),
        "tiktoken": folder(root / "t", tokenizer_model=tiktoken_file()),
    }
    return {name: load_tokenizer(str(path)) for name, path in paths.items()}


def note(template: str | None = "vicuna", kind: str = "model") -> Note:
    return Note(kind=kind, base="org/base", method="full", template=template, stop=("</s>",))


def written(root: Path, tokenizer: Tokenizer, template: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    serving.write_files(root, serving.from_template(tokenizer, template), note(template), positions=2048)
    (root / "config.json").write_text('{"model_type": "llama"}')
    return root


def trained_ids(tokenizer: Tokenizer, template: str, messages: list[Message], *, prompt: bool = False) -> list[int]:
    """Return the ids of a rendering, with the text between two control tokens tokenised in one call."""
    fitted = prompts.fit(prompts.get(template), tokenizer.control_ids)
    ids: list[int] = []
    text = ""
    for segment in [*(prompts.generation_prompt if prompt else prompts.render)(fitted, messages), None]:
        if segment is not None and segment.control is None:
            text += segment.text
            continue
        ids += tokenizer.ids([text])[0] if text else []
        text = ""
        ids += [tokenizer.control_ids[str(segment.control)]] if segment else []
    return ids


def served_ids(tokenizer: Any, messages: list[Message], *, prompt: bool = False) -> list[int]:
    plain = [{"role": message.role, "content": message.content} for message in messages]
    encoded = tokenizer.apply_chat_template(plain, tokenize=True, add_generation_prompt=prompt, return_dict=True)
    return list(encoded["input_ids"])


CASES = [("sentencepiece", name) for name in prompts.TEMPLATES if name != "llama3"]
CASES += [("tiktoken", name) for name in prompts.TEMPLATES]


def test_transformers_renders_the_template_with_tools_as_in_training(
    tiny: dict[str, Tokenizer], tmp_path: Path
) -> None:
    tokenizer = tiny["tiktoken"]
    served = AutoTokenizer.from_pretrained(str(written(tmp_path, tokenizer, "llama3.1")))
    definitions = [{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}]
    encoded = served.apply_chat_template([{"role": "user", "content": "?"}], tools=definitions, return_dict=True)
    renderer = make_renderer("llama3.1", tokenizer)
    [rendered] = renderer.render([[Message("user", "?", tools=json.dumps(definitions))]])
    assert encoded["input_ids"] == rendered.ids.tolist()
    read = serving.read_serving(tmp_path)
    assert (read.template, read.stops[0], read.fitted) == ("llama3.1", "<|eot_id|>", None)


@pytest.mark.parametrize(("kind", "template"), CASES)
def test_transformers_renders_the_ids_of_training(
    tiny: dict[str, Tokenizer], tmp_path: Path, kind: str, template: str
) -> None:
    served = AutoTokenizer.from_pretrained(str(written(tmp_path, tiny[kind], template)))
    assert served_ids(served, TALK) == trained_ids(tiny[kind], template, TALK)
    assert served_ids(served, TALK[:3], prompt=True) == trained_ids(tiny[kind], template, TALK[:3], prompt=True)


@pytest.mark.parametrize("kind", ["sentencepiece", "tiktoken"])
def test_transformers_reads_the_exact_tokenizer(tiny: dict[str, Tokenizer], tmp_path: Path, kind: str) -> None:
    served = AutoTokenizer.from_pretrained(str(written(tmp_path, tiny[kind], "vicuna")))
    for text in filter(None, DIFFICULT_TEXTS):
        ids = served(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ids == tiny[kind].ids([text])[0], text


@pytest.mark.slow
@pytest.mark.parametrize("template", ["vicuna", "llama2"])
def test_real_conversations_with_llama2_have_the_ids_of_training(shared: Path, tmp_path: Path, template: str) -> None:
    tokenizer = load_tokenizer(str(shared / "tokenizers" / "llama2"))
    served = AutoTokenizer.from_pretrained(str(written(tmp_path, tokenizer, template)))
    count = 0
    for messages in real(shared, 150):
        if any(name in message.content for message in messages for name in tokenizer.control_ids):
            continue  # a control string in a message is text in training only, not on a server
        count += 1
        assert served_ids(served, messages) == trained_ids(tokenizer, template, messages)
    assert count > 100


def real(shared: Path, count: int) -> list[list[Message]]:
    with gzip.open(shared / "data" / "source_markdown.json.gz") as file:
        rows = json.load(file)[:count]
    talks = [[(ROLES.get(str(turn["from"])), turn["value"].strip()) for turn in row["conversations"]] for row in rows]
    return [[Message(role, text) for role, text in talk if role in ("user", "assistant")] for talk in talks]  # type: ignore[arg-type]


def test_the_stop_token_ends_generation(tiny: dict[str, Tokenizer], tmp_path: Path) -> None:
    tokenizer = tiny["tiktoken"]
    path = written(tmp_path / "llama3", tokenizer, "llama3")
    eot, end = tokenizer.control_ids["<|eot_id|>"], tokenizer.control_ids["<|end_of_text|>"]
    assert GenerationConfig.from_pretrained(str(path)).eos_token_id == [eot, end]
    assert AutoTokenizer.from_pretrained(str(path)).eos_token == "<|eot_id|>"
    path = written(tmp_path / "vicuna", tokenizer, "vicuna")
    assert GenerationConfig.from_pretrained(str(path)).eos_token_id == end


BASE_GENERATION = {"temperature": 0.6, "top_p": 0.9, "do_sample": True, "transformers_version": "4.0"}


def test_the_generation_settings_are_the_bases_with_all_stop_tokens(tiny: dict[str, Tokenizer], tmp_path: Path) -> None:
    tokenizer = tiny["tiktoken"]
    eot, end, eom = (tokenizer.control_ids[f"<|{name}|>"] for name in ("eot_id", "end_of_text", "eom_id"))
    base = tmp_path / "base"
    base.mkdir()
    (base / "generation_config.json").write_text(
        json.dumps({**BASE_GENERATION, "eos_token_id": [end, eom, eot, 10**9, "x"], "pad_token_id": 7})
    )
    (base / "tokenizer_config.json").write_text('{"model_max_length": 131072}')
    serving.write_files(
        tmp_path, serving.from_template(tokenizer, "llama3"), note("llama3"), positions=4096, origin=base
    )
    config = GenerationConfig.from_pretrained(str(tmp_path))
    assert (config.eos_token_id, config.pad_token_id) == ([eot, end, eom], 7)
    assert (config.temperature, config.top_p, config.do_sample) == (0.6, 0.9, True)
    served = AutoTokenizer.from_pretrained(str(tmp_path))
    assert (served.eos_token_id, served.model_max_length) == (eot, 131072)
    assert serving.read_serving(tmp_path).stop_ids == (eot, end, eom), "curate chat stops there too"
    assert 'PARAMETER stop "<|eom_id|>"' in (tmp_path / serving.MODELFILE).read_text()


@pytest.mark.parametrize("length", [None, 10**30, -1, True, "512", {}], ids=str)
def test_a_base_without_a_length_has_that_of_its_positions(
    tiny: dict[str, Tokenizer], tmp_path: Path, length: object
) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": length}))
    (tmp_path / "generation_config.json").write_text('["odd"]')
    (tmp_path / "out").mkdir()
    prompt_format = serving.from_template(tiny["sentencepiece"], "vicuna")
    serving.write_files(tmp_path / "out", prompt_format, note(), positions=4096, origin=tmp_path)
    assert AutoTokenizer.from_pretrained(str(tmp_path / "out")).model_max_length == 4096


def test_the_modelfile_names_weights_template_and_stop(tiny: dict[str, Tokenizer], tmp_path: Path) -> None:
    text = (written(tmp_path, tiny["sentencepiece"], "vicuna") / serving.MODELFILE).read_text("utf-8")
    assert "\nFROM .\n" in text
    assert 'TEMPLATE """' in text
    assert 'PARAMETER stop "</s>"' in text
    adapter = serving.modelfile(serving.from_template(tiny["sentencepiece"], "vicuna"), note(kind="adapter"))
    assert "\nFROM org/base\nADAPTER .\n" in adapter


def test_a_folder_records_its_template_and_stop_tokens(tiny: dict[str, Tokenizer], tmp_path: Path) -> None:
    path = written(tmp_path, tiny["sentencepiece"], "alpaca")
    assert serving.read_note(path) == note("alpaca")
    loaded = serving.read_serving(path)
    assert (loaded.template, loaded.stops) == ("alpaca", ("</s>",))
    assert serving.read_serving(path, template="vicuna").template == "vicuna"


def test_a_foreign_model_uses_its_own_template_or_has_none(tiny: dict[str, Tokenizer], tmp_path: Path) -> None:
    path = written(tmp_path, tiny["sentencepiece"], "vicuna")
    (path / serving.NOTE).unlink()
    loaded = serving.read_serving(path)
    assert loaded.template is None
    assert loaded.stops == ("</s>",)
    (path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"has no chat template.*--template vicuna"):
        serving.read_serving(path)
