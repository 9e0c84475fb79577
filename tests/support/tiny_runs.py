"""The output of a training run, made in a second: a small model or adapter that knows a conversation by heart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch

from curate.model.attention import selection
from curate.rendering.factory import make_renderer
from curate.rendering.renderer import Renderer
from curate.schemas.conversation import Message
from curate.tokenization.tokenizer import load_tokenizer
from curate.train import packing
from curate.train.distributed import World
from curate.train.examples import Examples
from curate.train.objectives.loss import CausalLoss
from curate.train.results import export
from curate.train.results.export import Origin, ResultInfo
from tests.support import tiny_models
from tests.support.tiny_tokenizers import folder, sentencepiece_model

PIECES = 420
TALK = [
    Message("user", "What is the time?"),
    Message("assistant", "It is half past nine."),
    Message("user", "And the answer?"),
    Message("assistant", "Forty-two; 안녕 \N{SMILING FACE WITH OPEN MOUTH}"),
]
ALONE = World(0, 1, 0, torch.device("cpu"))


def base(**changes: Any) -> Any:
    """Return a small base, whose head has large enough weights for an adapter to give any answer."""
    shape = {"vocab_size": PIECES, "hidden_size": 64, "intermediate_size": 96, "initializer_range": 0.2}
    return tiny_models.model(**{**shape, **changes})


ADAPTERS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", use_rslora=True),
    "dora": lambda: peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", use_dora=True),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": lambda: peft.LoHaConfig(r=8, alpha=16, target_modules=["q_proj", "v_proj", "up_proj"]),
}


def learn(model: Any, renderer: Renderer, steps: int, talks: Sequence[Sequence[Message]] = (TALK,)) -> None:
    """Train on conversations until the model knows them by heart."""
    rendered = renderer.render(talks)
    data = Examples(
        np.concatenate([each.ids for each in rendered]),
        np.concatenate([each.loss_mask for each in rendered]),
        np.cumsum([0, *(len(each.ids) for each in rendered)]),
        ["talk"] * len(talks),
        ["en"] * len(talks),
        np.full(len(talks), 2, dtype="i4"),
    )
    batch = packing.pad(data, range(len(talks)))
    module = CausalLoss(model)
    kernel = selection.install_kernel(model, selection.choose_kernel("cpu", torch.float32))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps, cycle_momentum=False)
    for _ in range(steps):
        optimizer.zero_grad()
        (module(batch, kernel) / batch.supervised).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()


def tiny_renderer(root: Path) -> Renderer:
    return make_renderer("vicuna", load_tokenizer(str(folder(root, tokenizer_model=sentencepiece_model(PIECES)))))


def run(
    root: Path,
    method: str = "full",
    *,
    steps: int = 80,
    dtype: torch.dtype = torch.float32,
    change_base: Callable[[Path], None] | None = None,
) -> Path:
    """Write a run's folder with its result: model/ for `full`, else adapter/ on a base next to the run.

    `change_base` changes the files of the base, which a full fine-tune then has too.
    """
    folder_, renderer = root / "run", tiny_renderer(root / "tokenizer")
    folder_.mkdir(parents=True)
    (folder_ / "config.toml").write_text(f'name = "{method}"\n')
    serving = export.serving_for(renderer)
    model, base_folder = base().to(dtype), None
    if method != "full" or change_base:
        base_folder = export.write_model(root / "base", model, ResultInfo(serving, Origin("tiny", None, "none"), 512))
    if base_folder and change_base:
        change_base(base_folder)
    if method != "full":
        torch.manual_seed(0)
        model = peft.get_peft_model(model, ADAPTERS[method](), autocast_adapter_dtype=False)
    model.train()
    learn(model, renderer, steps)
    export.finish(
        folder_, model.eval(), ResultInfo(serving, Origin(str(base_folder or "tiny"), base_folder, method), 512), ALONE
    )
    return folder_


def other_base(root: Path) -> Path:
    """Write a base like that of `run`, with other weights; return its folder."""
    serving = export.serving_for(tiny_renderer(root / "tokenizer"))
    return export.write_model(root / "other", base(seed=1), ResultInfo(serving, Origin("tiny", None, "none"), 512))
