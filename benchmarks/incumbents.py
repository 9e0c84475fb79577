"""Other trainers on the same device and the same conversations: transformers' Trainer and TRL's SFTTrainer.

The incumbent is FastChat's `train.py` as its README starts it: every conversation padded to the window, SDPA,
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
    """Records when each step ends."""

    def __init__(self, torch_device: torch.device) -> None:
        self.torch_device = torch_device
        self.ends: list[float] = []

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        self.ends.append(training.now(self.torch_device))
        if len(self.ends) == 1:
            device.reset_peak(self.torch_device)


def trainer(bench: Bench, shape: str, documents: str, *, packed: bool = False, steps: int = 3) -> Row:
    """Train with transformers' Trainer. `packed` uses curate's rows with their position ids, without checkpointing.

    Weights are fp32 with bf16 autocast, as published, or bf16 if those do not fit the GPU.
    """
    model_config = material.model_config(bench.toy, shape)
    data, _ = material.packed_data(bench.toy, documents, model_config.vocab_size)
    model_shape = loader.shape_from_config(model_config)
    rows = packed_rows(data) if packed else padded_rows(data)
    rows_per_step = max(1, bench.tokens_per_step // data.row_tokens)
    failures: list[str] = []
    fits_fp32 = 16 * model_shape.parameters < bench.info.memory  # fp32 weights, gradients and two moments
    dtypes = [torch.float32] if fits_fp32 else []
    for dtype in dict.fromkeys([*dtypes, DTYPES[bench.info.dtype]]):
        for at_once in at_once_from(1 if packed else 4 if bench.torch_device.type == "cuda" else 2):
            try:
                timed_steps = _run(
                    bench, model_config, rows, dtype, at_once, max(1, rows_per_step // at_once), steps, not packed
                )
            except RuntimeError as error:
                if not device.is_out_of_memory(error):
                    raise
                failures.append(f"{str(dtype)[6:]} weights, {at_once} rows at once: out of memory")
            else:
                figures = training.figures(bench, timed_steps, model_shape, full=True, trained=0)
                facts = {
                    "weights": str(dtype)[6:],
                    "micro_batch": at_once,
                    "checkpointing": not packed,
                    "said": failures,
                }
                return {
                    **figures,
                    **facts,
                    "padded_tokens_a_step": at_once * max(1, rows_per_step // at_once) * data.row_tokens,
                }
            training.clean_up(bench)
    return {"error": "; ".join(failures)}


def at_once_from(most: int) -> list[int]:
    """Return the numbers of rows to try: `most`, halved until 1."""
    return [most >> half for half in range(most.bit_length())]


def _run(
    bench: Bench,
    model_config: Any,
    rows: Sequence[Row],
    dtype: torch.dtype,
    at_once: int,
    accumulate: int,
    steps: int,
    checkpointing: bool,
) -> Steps:
    """Take steps with the Trainer; the first is not timed."""
    model: Any = loader.random_model(model_config, dtype=dtype, device=bench.torch_device)
    model.config.use_cache = False
    clock = _Clock(bench.torch_device)
    rows_per_step = at_once * accumulate
    used_rows = [rows[index % len(rows)] for index in range(rows_per_step * (steps + 1))]
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            model=model,
            args=_arguments(bench, folder, at_once, accumulate, steps + 1, checkpointing),
            train_dataset=RowDataset([row["tensors"] for row in used_rows]),
            callbacks=[clock],
            data_collator=stacked,
        )
        trainer._get_train_sampler = lambda *_: None  # in order, so that the work of each step is known
        trainer.train()
    total = Work(0, 0, 0)
    for row in used_rows[rows_per_step:]:
        total = total + row["work"]
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Steps(steps, clock.ends[-1] - clock.ends[0], total, tuple(logged))


def _arguments(
    bench: Bench, folder: str, at_once: int, accumulate: int, steps: int, checkpointing: bool
) -> TrainingArguments:
    cuda = bench.torch_device.type == "cuda"
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


class RowDataset(torch.utils.data.Dataset[Row]):
    """A dataset of given rows."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]


def stacked(rows: Sequence[Row]) -> Row:
    """Return rows as one batch."""
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def padded_rows(data: PackedData) -> list[Row]:
    """Return each conversation in its own row, padded to the window, as FastChat's `preprocess` does."""
    padded = []
    for index, (begin, end) in enumerate(zip(data.examples.offsets[:-1], data.examples.offsets[1:], strict=True)):
        ids = np.zeros(data.row_tokens, np.int64)
        labels = np.full(data.row_tokens, IGNORED, np.int64)
        size = int(end - begin)
        ids[:size] = data.examples.ids[begin:end]
        labels[:size] = np.where(data.examples.loss_mask[begin:end], ids[:size], IGNORED)
        is_text = np.arange(data.row_tokens) < size
        arrays = {"input_ids": ids, "labels": labels, "attention_mask": is_text.astype(np.int64)}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        single = PackedData(data.examples, [[index]], data.row_tokens)
        padded.append({"tensors": tensors, "work": material.work_of(single, [0])})
    return padded


def packed_rows(data: PackedData) -> list[Row]:
    """Return curate's rows in the form of transformers' packed rows: with position ids, without a mask."""
    packed = []
    for index, members in enumerate(data.rows):
        row_batch = batch(data.examples, [members], data.row_tokens)
        labels = torch.full_like(row_batch.targets, IGNORED)
        labels[:, 1:] = row_batch.targets[:, :-1]
        positions = row_batch.position_ids.clone()
        is_padding = row_batch.documents < 0
        positions[is_padding] = torch.arange(int(is_padding.sum()))  # padding is one more document
        tensors = {"input_ids": row_batch.input_ids[0], "labels": labels[0], "position_ids": positions[0]}
        packed.append({"tensors": tensors, "work": material.work_of(data, [index])})
    return packed


def trl(bench: Bench, shape: str, documents: str, steps: int = 3) -> Row:
    """Train with TRL's SFTTrainer and its defaults on the same conversations; raises ImportError without TRL."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model_config = material.model_config(bench.toy, shape)
    data, _ = material.packed_data(bench.toy, documents, model_config.vocab_size)
    cuda = bench.torch_device.type == "cuda"
    at_once = 8 if cuda else 2
    accumulate = max(1, bench.tokens_per_step // data.row_tokens // at_once)
    rows_per_step = at_once * accumulate
    rows = [data.examples.offsets[index : index + 2] for index in range(rows_per_step * (steps + 1))]
    used = [
        {
            "input_ids": data.examples.ids[begin:end].tolist(),
            "completion_mask": data.examples.loss_mask[begin:end].astype(int).tolist(),
        }
        for begin, end in rows
    ]
    clock = _Clock(bench.torch_device)
    model: nn.Module = loader.random_model(model_config, dtype=DTYPES[bench.info.dtype], device=bench.torch_device)
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
        trainer = SFTTrainer(
            model=model,
            args=settings,
            train_dataset=Dataset.from_list(used),
            processing_class=_Tokenizer(model_config.vocab_size).tokenizer,
            callbacks=[clock],
        )
        trainer._get_train_sampler = lambda *_: None
        trainer.train()
    members = list(range(rows_per_step, rows_per_step * (steps + 1)))
    unpacked = PackedData(data.examples, [[index] for index in range(len(data.examples.offsets) - 1)], data.row_tokens)
    logged = tuple(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    timed_steps = Steps(steps, clock.ends[-1] - clock.ends[0], material.work_of(unpacked, members), logged)
    return {
        **training.figures(bench, timed_steps, loader.shape_from_config(model_config), full=True, trained=0),
        "weights": bench.info.dtype,
        "micro_batch": at_once,
        "checkpointing": bool(settings.gradient_checkpointing),
    }


class _Tokenizer:
    """A tokenizer for texts that are already ids; TRL needs one for padding."""

    def __init__(self, vocabulary: int) -> None:
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel
        from transformers import PreTrainedTokenizerFast

        vocabulary_ids = {f"w{number}": number for number in range(3, vocabulary)} | {"<unk>": 0, "<s>": 1, "</s>": 2}
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel(vocabulary_ids, unk_token="<unk>")),
            unk_token="<unk>",
            bos_token="<s>",
            eos_token="</s>",
            pad_token="</s>",
        )
