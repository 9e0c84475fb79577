"""Where a run's numbers go besides its own files: TensorBoard and Weights & Biases, where asked for and installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from curate.errors import RunError

METRICS = ("loss", "lr", "norm", "tokens_per_s", "mfu", "gib", "epoch")


class Logger(Protocol):
    """Takes numbers by step."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Take the numbers of a step."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Writes event files into the run's folder."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        made: Any = importlib.import_module("torch.utils.tensorboard")
        self.writer = made.SummaryWriter(str(folder / "tensorboard"))

    def log(self, values: dict[str, float], step: int) -> None:
        """Take the numbers of a step."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


class WeightsAndBiases:
    """Sends to the service that `wandb login` was told; a run that is resumed goes on there too."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        wandb: Any = importlib.import_module("wandb")
        name = folder.resolve().name
        self.run = wandb.init(project="curate", name=name, id=name, resume="allow", dir=str(folder), config=config)

    def log(self, values: dict[str, float], step: int) -> None:
        """Take the numbers of a step."""
        self.run.log(values, step=step)

    def close(self) -> None:
        """Write what is left."""
        self.run.finish()


LOGGERS: dict[
    str, tuple[str, str, Callable[[Path, dict[str, Any]], Logger]]
] = {  # package, module it needs, what it is
    "tensorboard": ("tensorboard", "torch.utils.tensorboard", TensorBoard),
    "wandb": ("wandb", "wandb", WeightsAndBiases),
}


def check_installed(names: Sequence[str]) -> None:
    """Raise RunError for what is asked for and not installed, with the line to type."""
    for name in names:
        package, module, _ = LOGGERS[name]
        try:
            importlib.import_module(module)
        except ImportError:
            raise RunError(f"logging to {name} needs a package that is not installed: pip install {package}") from None


def start(names: Sequence[str], folder: Path, config: dict[str, Any]) -> list[Logger]:
    """Return what numbers go to."""
    return [LOGGERS[name][2](folder, config) for name in names]
