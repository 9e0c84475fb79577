"""What others train with, on the same device and the same conversations: transformers' Trainer and TRL's SFTTrainer.

The incumbent's recipe is FastChat's `train.py` as its README starts it: every conversation padded to the window, SDPA,
gradient checkpointing, bf16 over fp32 weights, AdamW; up to 4 rows at once, where it has 2.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks import material, training
from benchmarks.training import Bench, Row, Steps
from curate.model import device, loader
from curate.model.device import DTYPES
from curate.model.sizes import Work
from curate.train.packing import IGNORED, PackedData, batch


class _Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self, place: torch.device) -> None:
        self.place = place
        self.ends: list[float] = []

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        self.ends.append(training.now(self.place))
        if len(self.ends) == 1:
            device.reset_peak(self.place)


def trainer(bench: Bench, shape: str, documents: str, *, packed: bool = False, steps: int = 3) -> Row:
    """Train by transformers' Trainer; `packed`: on curate's rows by their position ids, nothing checkpointed.

    Weights are fp32 under bf16 autocast as published, or bf16 where those do not fit the card.
    """
    described = material.model_config(bench.toy, shape)
    data, _ = material.packed_data(bench.toy, documents, described.vocab_size)
    whole = loader.shape_from_config(described)
    rows = packed_rows(data) if packed else padded_rows(data)
    a_step = max(1, bench.tokens_a_step // data.row_tokens)
    failed: list[str] = []
    whole_states = 16 * whole.parameters < bench.found.memory  # fp32 weights, gradients and two moments
    dtypes = [torch.float32] if whole_states else []
    for dtype in dict.fromkeys([*dtypes, DTYPES[bench.found.dtype]]):
        for at_once in at_once_from(1 if packed else 4 if bench.place.type == "cuda" else 2):
            try:
                done = _run(bench, described, rows, dtype, at_once, max(1, a_step // at_once), steps, not packed)
            except RuntimeError as error:
                if not device.is_out_of_memory(error):
                    raise
                failed.append(f"{str(dtype)[6:]} weights, {at_once} rows at once: out of memory")
            else:
                found = training.figures(bench, done, whole, full=True, trained=0)
                how = {"weights": str(dtype)[6:], "micro_batch": at_once, "checkpointing": not packed, "said": failed}
                return {**found, **how, "padded_tokens_a_step": at_once * max(1, a_step // at_once) * data.row_tokens}
            training.forget(bench)
    return {"error": "; ".join(failed)}


def at_once_from(most: int) -> list[int]:
    """Return numbers of rows to try, halved until one."""
    return [most >> half for half in range(most.bit_length())]


def _run(
    bench: Bench,
    described: Any,
    rows: Sequence[Row],
    dtype: torch.dtype,
    at_once: int,
    accumulate: int,
    steps: int,
    checkpointing: bool,
) -> Steps:
    """Take steps by the Trainer, the first of them not timed."""
    model: Any = loader.random_model(described, dtype=dtype, device=bench.place)
    model.config.use_cache = False
    clock = _Clock(bench.place)
    a_step = at_once * accumulate
    used = [rows[place % len(rows)] for place in range(a_step * (steps + 1))]
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Trainer(
            model=model,
            args=_arguments(bench, folder, at_once, accumulate, steps + 1, checkpointing),
            train_dataset=Listed([row["tensors"] for row in used]),
            callbacks=[clock],
            data_collator=stacked,
        )
        made._get_train_sampler = lambda *_: None  # in the order they stand, so that the work of each step is known
        made.train()
    total = Work(0, 0, 0)
    for row in used[a_step:]:
        total = total + row["work"]
    logged = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    return Steps(steps, clock.ends[-1] - clock.ends[0], total, tuple(logged))


def _arguments(
    bench: Bench, folder: str, at_once: int, accumulate: int, steps: int, checkpointing: bool
) -> TrainingArguments:
    cuda = bench.place.type == "cuda"
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=accumulate,
        max_steps=steps,
        learning_rate=2e-5,
        weight_decay=0.0,
        lr_scheduler_type="cosine",
        logging_steps=1,
        bf16=cuda,
        tf32=True if cuda else None,
        gradient_checkpointing=checkpointing,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not cuda,
        seed=0,
    )


class Listed(torch.utils.data.Dataset[Row]):
    """Rows that are there already."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Row:
        return self.rows[place]


def stacked(rows: Sequence[Row]) -> Row:
    """Return rows as one batch."""
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def padded_rows(data: PackedData) -> list[Row]:
    """Return each conversation in a row of its own, padded to the window, as FastChat's `preprocess` leaves it."""
    found = []
    for index, (begin, end) in enumerate(zip(data.examples.offsets[:-1], data.examples.offsets[1:], strict=True)):
        ids = np.zeros(data.row_tokens, np.int64)
        labels = np.full(data.row_tokens, IGNORED, np.int64)
        size = int(end - begin)
        ids[:size] = data.examples.ids[begin:end]
        labels[:size] = np.where(data.examples.loss_mask[begin:end], ids[:size], IGNORED)
        seen = np.arange(data.row_tokens) < size
        arrays = {"input_ids": ids, "labels": labels, "attention_mask": seen.astype(np.int64)}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        one = PackedData(data.examples, [[index]], data.row_tokens)
        found.append({"tensors": tensors, "work": material.work_of(one, [0])})
    return found


def packed_rows(data: PackedData) -> list[Row]:
    """Return curate's rows as transformers takes packed ones: by their position ids, without a mask."""
    found = []
    for place, members in enumerate(data.rows):
        made = batch(data.examples, [members], data.row_tokens)
        labels = torch.full_like(made.targets, IGNORED)
        labels[:, 1:] = made.targets[:, :-1]
        positions = made.position_ids.clone()
        positions[made.documents < 0] = torch.arange(int((made.documents < 0).sum()))  # padding as one more document
        tensors = {"input_ids": made.input_ids[0], "labels": labels[0], "position_ids": positions[0]}
        found.append({"tensors": tensors, "work": material.work_of(data, [place])})
    return found


def trl(bench: Bench, shape: str, documents: str, steps: int = 3) -> Row:
    """Train by TRL's SFTTrainer with its defaults on the same conversations; ImportError where it is absent."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    described = material.model_config(bench.toy, shape)
    data, _ = material.packed_data(bench.toy, documents, described.vocab_size)
    cuda = bench.place.type == "cuda"
    at_once = 8 if cuda else 2
    accumulate = max(1, bench.tokens_a_step // data.row_tokens // at_once)
    a_step = at_once * accumulate
    rows = [data.examples.offsets[place : place + 2] for place in range(a_step * (steps + 1))]
    used = [
        {
            "input_ids": data.examples.ids[begin:end].tolist(),
            "completion_mask": data.examples.loss_mask[begin:end].astype(int).tolist(),
        }
        for begin, end in rows
    ]
    clock = _Clock(bench.place)
    model: nn.Module = loader.random_model(described, dtype=DTYPES[bench.found.dtype], device=bench.place)
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = SFTConfig(
            output_dir=folder,
            max_length=data.row_tokens,
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=accumulate,
            max_steps=steps + 1,
            learning_rate=2e-5,
            logging_steps=1,
            bf16=cuda,
            use_cpu=not cuda,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        made = SFTTrainer(
            model=model,
            args=settings,
            train_dataset=Dataset.from_list(used),
            processing_class=_Tokenizer(described.vocab_size).tokenizer,
            callbacks=[clock],
        )
        made._get_train_sampler = lambda *_: None
        made.train()
    members = list(range(a_step, a_step * (steps + 1)))
    alone = PackedData(data.examples, [[index] for index in range(len(data.examples.offsets) - 1)], data.row_tokens)
    logged = tuple(entry["loss"] for entry in made.state.log_history if "loss" in entry)
    done = Steps(steps, clock.ends[-1] - clock.ends[0], material.work_of(alone, members), logged)
    return {
        **training.figures(bench, done, loader.shape_from_config(described), full=True, trained=0),
        "weights": bench.found.dtype,
        "micro_batch": at_once,
        "checkpointing": bool(settings.gradient_checkpointing),
    }


class _Tokenizer:
    """A tokenizer for ids that are there already: TRL wants one, if only for its padding."""

    def __init__(self, vocabulary: int) -> None:
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel
        from transformers import PreTrainedTokenizerFast

        words = {f"w{number}": number for number in range(3, vocabulary)} | {"<unk>": 0, "<s>": 1, "</s>": 2}
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")),
            unk_token="<unk>",
            bos_token="<s>",
            eos_token="</s>",
            pad_token="</s>",
        )
