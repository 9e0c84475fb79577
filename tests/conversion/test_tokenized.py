"""Training data for other trainers: they can read it, and its ids and mask are those that curate trains on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from curate.conversion.convert import convert
from curate.errors import CurateError, InputError
from curate.schemas.conversation import Message
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer
from curate.train import examples
from tests.rendering.test_preparation import manifest_for, pair, row
from tests.support.small_set import write_set
from tests.support.tiny_tokenizers import folder, sentencepiece_model, tiktoken_file

pytestmark = pytest.mark.usefixtures("cache_folder")


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a tokenizer."""
    return str(folder(tmp_path_factory.mktemp("rendered") / "tik", tokenizer_model=tiktoken_file()))


@pytest.fixture(scope="module")
def tokenizer(named: str) -> Tokenizer:
    return load_tokenizer(named)


@pytest.fixture
def small(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    rows = [
        row(0, "a_0", [*pair(1), *pair(2)], piece=0),
        row(0, "a_1", pair(3), piece=1),
        row(1, "b", pair(4), split="eval"),
        row(2, "silent", [Message("user", "x"), Message("assistant", "y", train=False)]),
    ]
    return write_set(tmp_path / "set", rows, [], manifest_for(tokenizer))


def lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_a_row_holds_the_ids_and_mask_that_curate_trains_on(
    small: Path, named: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    result = convert(small, tmp_path / "out.jsonl", to="rendered", tokenizer=named)
    assert (result.read, result.written, result.left_out) == (4, 3, {"nothing_trained": 1})
    small_rows = lines(tmp_path / "out.jsonl")
    for example in small_rows:
        assert set(example) == {"input_ids", "attention_mask", "labels"}
        assert len(example["input_ids"]) == len(example["attention_mask"]) == len(example["labels"])
        assert all(label in (-100, token) for label, token in zip(example["labels"], example["input_ids"], strict=True))
    good = write_set(tmp_path / "good", [row(0, "a_0", [*pair(1), *pair(2)])], [], manifest_for(tokenizer))
    expected = examples.load(good, tokenizer).train
    assert small_rows[0]["input_ids"] == expected.ids.tolist()
    assert [label != -100 for label in small_rows[0]["labels"]] == expected.loss_mask.tolist()


def test_conversations_that_fail_the_proof_are_listed_with_their_messages(
    small: Path, named: str, tmp_path: Path
) -> None:
    result = convert(small, tmp_path / "out.parquet", to="rendered", tokenizer=named)
    assert result.left_out_file is not None
    [beside] = lines(result.left_out_file)
    assert (beside["rule"], beside["source_file"], beside["source_index"]) == ("nothing_trained", "dump.json", 2)
    assert [message["content"] for message in beside["record"]["messages"]] == ["x", "y"]


def test_parquet_and_json_hold_the_same_rows(small: Path, named: str, tmp_path: Path) -> None:
    for name in ("out.parquet", "out.jsonl", "out.json"):
        convert(small, tmp_path / name, to="rendered", tokenizer=named)
    rows = pl.read_parquet(tmp_path / "out.parquet").to_dicts()
    assert rows == lines(tmp_path / "out.jsonl") == json.loads((tmp_path / "out.json").read_text())


def test_one_split_can_be_converted(small: Path, named: str, tmp_path: Path) -> None:
    result = convert(small, tmp_path / "out.jsonl", to="rendered", tokenizer=named, split="eval")
    assert (result.read, result.written, result.not_selected, result.left_out) == (4, 1, 3, {})


def test_the_set_is_split_again_for_another_window(small: Path, named: str, tmp_path: Path) -> None:
    result = convert(small, tmp_path / "out.jsonl", to="rendered", tokenizer=named, max_tokens=500)
    assert result.written == 2
    assert result.warnings == ("split again (window 200 → 500): 4 pieces became 3, 1 of them changed",)


def test_the_tokenizer_of_the_set_is_required(small: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cleaned with the tokenizer 'tik'; name it: --tokenizer"):
        convert(small, tmp_path / "out.jsonl", to="rendered")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_the_tokenizer_of_the_set_is_found_by_its_path(tokenizer: Tokenizer, named: str, tmp_path: Path) -> None:
    manifest = {**manifest_for(tokenizer), "recipe": {"name": "vicuna", "tokens": {"tokenizer": named}}}
    curated = write_set(tmp_path / "set", [row(0, "a", pair(1))], [], manifest)
    assert convert(curated, tmp_path / "out.jsonl", to="rendered").written == 1


def test_a_dump_is_rendered_unsplit_or_split(named: str, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "the dog?"}, {"from": "gpt", "value": "It sleeps."}] * 6
    dump = tmp_path / "dump.json"
    dump.write_text(json.dumps([{"id": "a", "conversations": turns}, {"q": 1}]))
    unsplit = convert(dump, tmp_path / "out.jsonl", to="rendered", tokenizer=named, template="plain")
    assert (unsplit.read, unsplit.written, unsplit.left_out) == (2, 1, {"unknown_format": 1})
    split = convert(dump, tmp_path / "out.jsonl", to="rendered", tokenizer=named, template="plain", max_tokens=60)
    assert split.written > 1
    assert max(len(example["input_ids"]) for example in lines(tmp_path / "out.jsonl")) <= 60


def test_a_chat_template_and_a_loss_can_be_given(small: Path, named: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(
        "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>' + m.content + '<|eot_id|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>' }}{% endif %}"
    )
    convert(small, tmp_path / "out.jsonl", to="rendered", tokenizer=named, chat_template=file, loss="last")
    first = lines(tmp_path / "out.jsonl")[0]
    trained = [token for token in first["labels"] if token != -100]
    assert tokenizer.decode(trained) == "3 dog dog dog<|eot_id|>", "the pieces of a source are joined again"


def test_rendering_settings_are_refused_for_other_formats(small: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="they are for 'rendered'"):
        convert(small, tmp_path / "out.jsonl", to="openai", max_tokens=5)
    with pytest.raises(InputError, match="cannot read the chat template"):
        convert(small, tmp_path / "out.jsonl", to="rendered", chat_template=tmp_path / "none.jinja")


# ---- read by other libraries


@pytest.fixture
def rendered(small: Path, named: str, tmp_path: Path) -> Path:
    convert(small, tmp_path / "out.parquet", to="rendered", tokenizer=named)
    return tmp_path / "out.parquet"


def test_the_collators_of_transformers_and_trl_read_it(rendered: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    import datasets
    import tokenizers as library
    from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast

    sft: Any = pytest.importorskip("trl.trainer.sft_trainer", reason="TRL is not installed")
    rows = list(datasets.Dataset.from_parquet(str(rendered), cache_dir=str(tmp_path / "cache")))
    fast: Any = PreTrainedTokenizerFast(
        tokenizer_object=library.Tokenizer.from_str(tokenizer.tokenizer_json()), pad_token="<|end_of_text|>"
    )
    for batch in (DataCollatorForSeq2Seq(fast)(rows), sft.DataCollatorForLanguageModeling(pad_token_id=0)(rows)):
        longest = max(len(example["input_ids"]) for example in rows)
        assert batch["input_ids"].shape == batch["labels"].shape == (len(rows), longest)
        for index, example in enumerate(rows):
            size = len(example["labels"])
            assert batch["labels"][index, :size].tolist() == example["labels"]
            assert (batch["labels"][index, size:] == -100).all()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_trls_trainer_has_the_same_loss(rendered: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    import datasets
    import tokenizers as library
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    trl: Any = pytest.importorskip("trl", reason="TRL is not installed")
    torch.set_num_threads(1)
    rows: Any = datasets.Dataset.from_parquet(str(rendered), cache_dir=str(tmp_path / "cache"))
    fast: Any = PreTrainedTokenizerFast(
        tokenizer_object=library.Tokenizer.from_str(tokenizer.tokenizer_json()),
        pad_token="<|end_of_text|>",
        eos_token="<|end_of_text|>",
    )
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=tokenizer.info.vocab_size, **shape))
    settings: Any = trl.SFTConfig(
        output_dir=str(tmp_path / "run"), max_steps=12, learning_rate=0.05, per_device_train_batch_size=3, use_cpu=True,
        report_to="none", logging_steps=1, save_strategy="no", bf16=False, seed=0,
    )  # fmt: skip
    with torch.no_grad():  # the loss of the first step if exactly our labels count
        sums = [_loss_of(model, example) for example in rows]
    trainer: Any = trl.SFTTrainer(model=model, args=settings, train_dataset=rows, processing_class=fast)
    assert [example["labels"] for example in trainer.train_dataset] == [example["labels"] for example in rows]
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(sum(sum_ for sum_, _ in sums) / sum(count for _, count in sums), rel=1e-3)
    assert losses[-1] < losses[0] / 2


def _loss_of(model: Any, example: dict[str, Any]) -> tuple[float, int]:
    """Return the sum of the losses of a row's labels, and their number."""
    import torch

    logits = model(input_ids=torch.tensor([example["input_ids"]])).logits[0, :-1]
    labels = torch.tensor(example["labels"][1:])
    return float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum")), int((labels != -100).sum())


# ---- a folder of datasets


def test_a_folder_of_datasets_holds_both_splits(small: Path, tmp_path: Path) -> None:
    import datasets

    result = convert(small, tmp_path / "chats", to="hf")
    assert result.written == 4
    splits: Any = datasets.load_from_disk(str(tmp_path / "chats"))
    assert {name: table["id"][:] for name, table in splits.items()} == {
        "train": ["a_0", "a_1", "silent"],
        "eval": ["b"],
    }
    first = splits["train"][0]
    assert [message["content"] for message in first["messages"]] == [m.content for m in (*pair(1), *pair(2))]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chats", "set"]
    with pytest.raises(InputError, match="already exists"):
        convert(small, tmp_path / "chats", to="hf")


def test_without_datasets_the_error_says_what_to_install(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "datasets" else find_spec(name))
    with pytest.raises(CurateError, match=r"the extra \[train\]: pip install -e .*\[train\]"):
        convert(small, tmp_path / "chats", to="hf")


def test_a_sentencepiece_tokenizer_renders_too(small: Path, tmp_path: Path) -> None:
    sentencepiece = str(folder(tmp_path / "sp", tokenizer_model=sentencepiece_model()))
    result = convert(small, tmp_path / "out.jsonl", to="rendered", tokenizer=sentencepiece)
    assert result.written == 2 and "tokenizer tik → sp" in result.warnings[0]


# ---- reasoning and tools

TOOLS = [{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}]
CALL = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]
CHAT = [
    {"role": "user", "content": "Call it."},
    {"role": "assistant", "content": "", "tool_calls": CALL},
    {"role": "tool", "content": "7", "tool_call_id": "c1"},
    {"role": "assistant", "reasoning_content": "It said 7.", "content": "Seven."},
]


@pytest.fixture
def with_tools(tmp_path: Path) -> Path:
    path = tmp_path / "chats.json"
    path.write_text(
        json.dumps([{"id": "t", "messages": CHAT, "tools": TOOLS}, {"id": "p", "messages": CHAT[:1] + CHAT[3:]}])
    )
    return path


@pytest.mark.parametrize("to", ["rendered", "text"])
def test_calls_whose_definitions_the_template_hides_are_left_out_by_name(
    with_tools: Path, named: str, tmp_path: Path, to: str
) -> None:
    out = tmp_path / "out.jsonl"
    result = convert(with_tools, out, to=to, tokenizer=named, template="plain")
    assert (result.written, result.left_out) == (1, {"hidden_tools": 1})
    [left] = lines(tmp_path / "out.jsonl.left-out.jsonl")
    assert json.loads(left["record"])["tools"] if isinstance(left.get("record"), str) else left
    trained = convert(with_tools, out, to=to, tokenizer=named, template="plain", hidden_tools="train")
    assert trained.written == 2
    counted = "1 row with tools that the template does not show: --hidden-tools"
    assert [warning for warning in trained.warnings if "tools" in warning] == [counted]
    shown = convert(with_tools, out, to=to, tokenizer=named, template="llama3.1")
    assert (shown.written, shown.left_out) == (2, {})


def test_text_is_what_a_template_with_tools_writes_with_the_reasoning_that_is_chosen(
    with_tools: Path, named: str, tmp_path: Path
) -> None:
    out = tmp_path / "out.txt"
    convert(with_tools, out, to="text", tokenizer=named, template="llama3.1", reasoning="drop")
    text = out.read_text()
    assert '{"name": "f", "parameters": {"x": 1}}<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n"7"' in text
    assert "It said 7." not in text
    convert(with_tools, out, to="text", tokenizer=named, template="plain")
    assert "<think>\nIt said 7.\n</think>\n\nSeven." in out.read_text()
    with pytest.raises(InputError, match="'mask' has no effect on 'text'"):
        convert(with_tools, out, to="text", reasoning="mask")


def test_a_masked_reasoning_has_no_labels(with_tools: Path, named: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    convert(with_tools, out, to="rendered", tokenizer=named, template="llama3.1", reasoning="mask")
    trained = [tokenizer.decode([token for token in row["labels"] if token >= 0]) for row in lines(out)]
    assert trained == ['{"name": "f", "parameters": {"x": 1}}<|eot_id|>Seven.<|eot_id|>', "Seven.<|eot_id|>"]
