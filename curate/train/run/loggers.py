"""Log a run's metrics to TensorBoard or Weights & Biases, if `train.log` names them and they are installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from curate.errors import RunError
from curate.train.run.records import PAIR_METRICS

# Keys of `metrics.jsonl` that are logged.
METRICS = ("loss", "lr", "norm", "tokens_per_s", "mfu", "gib", "epoch", *PAIR_METRICS)


class Logger(Protocol):
    """A service that records metrics by step. Only rank 0 has one."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Record metrics of a step; called more than once for a step that is evaluated."""

    def close(self) -> None:
        """Write what is buffered, and close."""


class TensorBoard:
    """Writes event files to `tensorboard/` in the run's folder."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        tensorboard: Any = importlib.import_module("torch.utils.tensorboard")  # imported only if it is used: slow
        self.writer = tensorboard.SummaryWriter(str(folder / "tensorboard"))

    def log(self, values: dict[str, float], step: int) -> None:
        """Record metrics of a step."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is buffered, and close."""
        self.writer.close()


class WeightsAndBiases:
    """Sends metrics to the service of `wandb login`, project `curate`.

    The folder's name is the id there, so a resumed run continues the same one.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        wandb: Any = importlib.import_module("wandb")
        name = folder.resolve().name
        self.run = wandb.init(project="curate", name=name, id=name, resume="allow", dir=str(folder), config=config)

    def log(self, values: dict[str, float], step: int) -> None:
        """Record metrics of a step."""
        self.run.log(values, step=step)

    def close(self) -> None:
        """Send what is buffered, and close."""
        self.run.finish()


# By name in `train.log`: the package to install, the module that it provides, and the logger.
LOGGERS: dict[str, tuple[str, str, Callable[[Path, dict[str, Any]], Logger]]] = {
    "tensorboard": ("tensorboard", "torch.utils.tensorboard", TensorBoard),
    "wandb": ("wandb", "wandb", WeightsAndBiases),
}


def check_installed(names: Sequence[str]) -> None:
    """Raise RunError, with the command to type, if a logger's package is not installed."""
    for name in names:
        package, module, _ = LOGGERS[name]
        try:
            importlib.import_module(module)
        except ImportError:
            raise RunError(f"logging to {name} needs a package that is not installed: pip install {package}") from None


def start(names: Sequence[str], folder: Path, config: dict[str, Any]) -> list[Logger]:
    """Start the loggers of a run; `config` is its configuration, as plain values."""
    return [LOGGERS[name][2](folder, config) for name in names]
