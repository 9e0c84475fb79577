"""Load what curate writes with other projects' own loaders, each in an environment of its own.

    python scripts/check_loaders.py ~/.cache/curate-loaders            # all of them
    python scripts/check_loaders.py ~/.cache/curate-loaders trl axolotl

The folder keeps the environments, 1 to 1.5 GB each; the first run installs them. This is not part of `make check`.
Each loader gets the set of the example dump, and prints how many conversations it loaded and the text that it trains
on in the first one. Two are not checked: unsloth needs a GPU to be imported, and loads with `datasets` as TRL does;
torchtune 0.6.1, the last release, does not import with the torch of the other checks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TORCH = "torch==2.13.0"

TOKENIZER = """
import json, sys
from pathlib import Path
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

def make_tokenizer(stop="<|im_end|>"):
    names = ["<s>", stop, "<|im_start|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=stop, pad_token=stop, bos_token="<s>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\\n{% if m['role'] == 'assistant' %}{% generation %}"
        "{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}\\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\\n{% endif %}"
    )
    return tokenizer

def report(count, ids, labels, tokenizer):
    trained = tokenizer.decode([i for i, label in zip(ids, labels) if label != -100])
    print(json.dumps({"count": count, "trained": trained}))
"""


@dataclass(frozen=True)
class Loader:
    """A project, what to install, the file to load, and the Python that loads it (from `sys.argv[1]`)."""

    name: str
    install: tuple[tuple[str, ...], ...]  # arguments of pip
    convert: tuple[str, ...]  # the target's name and arguments of curate convert
    code: str


LOADERS = (
    Loader(
        "fastchat",
        (
            (TORCH, "numpy", "transformers==4.46.3", "accelerate", "sentencepiece", "protobuf"),
            ("--no-deps", "fschat==0.2.36"),
        ),
        ("train.json", "--to", "vicuna"),
        """
        from types import SimpleNamespace
        from fastchat.train.train import make_supervised_data_module

        tokenizer = make_tokenizer("</s>")
        tokenizer.model_max_length, tokenizer.legacy = 8192, True
        args = SimpleNamespace(data_path=sys.argv[1], eval_data_path=None, lazy_preprocess=True)
        data = make_supervised_data_module(tokenizer=tokenizer, data_args=args)["train_dataset"]
        item = data[0]
        report(len(data), item["input_ids"].tolist(), item["input_ids"].tolist(), tokenizer)
        """,
    ),
    Loader(
        "trl",
        ((TORCH, "trl"),),
        ("train.jsonl", "--to", "trl"),
        """
        from datasets import load_dataset
        from transformers import LlamaConfig, LlamaForCausalLM
        from trl import SFTConfig, SFTTrainer

        tokenizer = make_tokenizer()
        data = load_dataset("json", data_files=sys.argv[1], split="train")
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8,
                                             num_hidden_layers=1, num_attention_heads=1))
        args = SFTConfig(output_dir="out", assistant_only_loss=True, max_length=None, report_to=[], use_cpu=True,
                         bf16=False)
        trainer = SFTTrainer(model, args, train_dataset=data, processing_class=tokenizer)
        row = trainer.train_dataset[0]
        batch = trainer.data_collator([row])
        report(len(trainer.train_dataset), batch["input_ids"][0].tolist(), batch["labels"][0].tolist(), tokenizer)
        """,
    ),
    Loader(
        "axolotl",
        (
            (TORCH, "transformers", "datasets", "accelerate", "peft", "addict", "fire", "pyyaml", "colorama"),
            ("--no-deps", "axolotl", "axolotl-contribs-lgpl", "axolotl-contribs-mit"),
        ),
        ("train.jsonl", "--to", "openai", "--config-for", "axolotl"),
        """
        import yaml
        from axolotl.prompt_strategies.chat_template import load
        from axolotl.utils.dict import DictDefault
        from datasets import load_dataset

        (entry,) = yaml.safe_load(Path(sys.argv[1]).with_name("train.axolotl.yaml").read_text())["datasets"]
        tokenizer = make_tokenizer()
        data = load_dataset(entry["ds_type"], data_files=entry["path"], split="train")
        settings = DictDefault(train_on_inputs=False, sequence_len=8192, chat_template="tokenizer_default")
        strategy = load(tokenizer, settings, DictDefault(entry))
        rows = [strategy.tokenize_prompt(row) for row in data]
        report(len(rows), rows[0]["input_ids"], rows[0]["labels"], tokenizer)
        """,
    ),
    Loader(
        "llama-factory",
        (
            (TORCH, "transformers>=4.51,<5", "datasets", "accelerate", "peft==0.18.1", "trl<=0.24.0", "omegaconf"),
            ("--no-deps", "llamafactory", "av", "cffi", "soundfile"),
        ),
        ("train.jsonl", "--to", "openai", "--config-for", "llama-factory"),
        """
        import importlib.machinery, types
        sound = types.ModuleType("torchaudio")  # its release does not load with this torch, and texts need none
        sound.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
        sys.modules["torchaudio"] = sound

        from llamafactory.data.converter import align_dataset
        from llamafactory.data.parser import get_dataset_list
        from llamafactory.hparams import DataArguments
        from datasets import load_dataset
        from transformers import Seq2SeqTrainingArguments

        folder = str(Path(sys.argv[1]).parent)
        (attributes,) = get_dataset_list(["train"], folder)
        data = load_dataset("json", data_files=str(Path(folder) / attributes.dataset_name), split="train")
        rows = align_dataset(data, attributes, DataArguments(dataset="train", dataset_dir=folder),
                             Seq2SeqTrainingArguments(output_dir="out", use_cpu=True))
        answers = [m["content"] for m in [*rows[0]["_prompt"], *rows[0]["_response"]] if m["role"] == "assistant"]
        print(json.dumps({"count": len(rows), "trained": "".join(answers)}))
        """,
    ),
)


def main(arguments: list[str]) -> int:
    """Check the loaders that are named, or all; return 1 if one fails."""
    if not arguments or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    cache, chosen = Path(arguments[0]), arguments[1:] or [loader.name for loader in LOADERS]
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _curate("clean", ROOT / "examples/sharegpt_dump.json", "-o", folder / "curated", "--eval", "0")
        for loader in LOADERS:
            if loader.name in chosen:
                failed += not _check(loader, cache / loader.name, folder)
    return 1 if failed else 0


def _check(loader: Loader, environment: Path, folder: Path) -> bool:
    """Convert the set, load it in the loader's environment, and print the result; return whether all is there."""
    work = folder / loader.name
    work.mkdir()
    target, *settings = loader.convert
    _curate("convert", folder / "curated", work / target, *settings)
    expected, answer = _expect(work / target)
    try:
        python = _install(loader, environment)
        code = TOKENIZER + textwrap.dedent(loader.code)
        run = subprocess.run(
            [python, "-c", code, work / target], capture_output=True, text=True, cwd=work, env=_offline(), check=True
        )
        loaded: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    except (subprocess.CalledProcessError, ValueError, IndexError) as error:
        lines = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        print(f"{loader.name}: FAILED: {lines[-1] if lines else error}")
        return False
    good = loaded["count"] == expected and answer in loaded["trained"]
    print(f"{loader.name}: {'ok' if good else 'DIFFERS'}: {loaded['count']} of {expected} conversations")
    return good


def _expect(file: Path) -> tuple[int, str]:
    """Return how many records a file has, and the first answer of the first one."""
    text = file.read_text("utf-8")
    rows = json.loads(text) if file.suffix == ".json" else [json.loads(line) for line in text.split("\n") if line]
    turns = rows[0].get("messages") or rows[0]["conversations"]
    return len(rows), next(str(turn.get("content") or turn.get("value")) for turn in turns if _is_answer(turn))


def _is_answer(turn: dict[str, Any]) -> bool:
    return (turn.get("role") or turn.get("from")) in ("assistant", "gpt")


def _install(loader: Loader, environment: Path) -> Path:
    """Return the environment's interpreter; install the environment first if it is not complete."""
    python, done = environment / "bin/python", environment / ".complete"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        for packages in loader.install:
            command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
            subprocess.run(command, check=True, capture_output=True, text=True)
        done.touch()
    return python


def _offline() -> dict[str, str]:
    """Return this environment without curate's path, for a process that downloads nothing."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return {
        **kept,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "DISABLE_VERSION_CHECK": "1",
        "DO_NOT_TRACK": "1",
    }


def _curate(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "curate", *map(str, arguments)], cwd=ROOT, check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
