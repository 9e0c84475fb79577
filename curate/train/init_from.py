"""What a run starts from (`--init`): a model or adapter of an earlier run, or the weights of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from curate.errors import ModelError, RunError
from curate.model import artifact, files
from curate.model.artifact import Artifact
from curate.model.choices import METHODS
from curate.train import config as configs
from curate.train.config import TrainConfig
from curate.train.run import records

Say = Callable[[str], None]


@dataclass(frozen=True)
class Initial:
    """What `--init` names: a model or adapter (`result`), a checkpoint (`weights`), or nothing."""

    name: str = ""
    result: Artifact | None = None
    weights: Path | None = None

    @property
    def adapter(self) -> Path | None:
        """The folder of the adapter to continue with, None if it is no adapter."""
        return self.result.folder if self.result is not None and self.result.base is not None else None

    @property
    def base(self) -> str:
        """The base model by name or folder, empty if none is known."""
        return "" if self.result is None else self.result.base or str(self.result.folder)

    @property
    def template(self) -> str | None:
        """The built-in template that it was trained with, None if none is known."""
        return self.result.note.template if self.result is not None and self.result.note is not None else None

    def __str__(self) -> str:
        return str(self.result) if self.weights is None else f"checkpoint {str(self.weights)!r}"


FROM_SCRATCH = Initial()


def find(config: TrainConfig, say: Say, asked: frozenset[str] = frozenset()) -> tuple[TrainConfig, Initial]:
    """Find what a run starts from; return it with the configuration changed to its method, if it has one.

    `asked` names the method settings that were given for this run; RunError refuses those that differ. Raises
    ModelError where `--init` names no model, adapter or checkpoint.
    """
    name = config.model.init
    if not name:
        return config, FROM_SCRATCH
    path = Path(name).expanduser()
    if files.kind(path) == "checkpoint":
        return _with_checkpoint(config, path, say, asked)
    init = Initial(name, artifact.find_artifact(name))
    return (_with_adapter(config, init, asked) if init.adapter is not None else config), init


def _with_adapter(config: TrainConfig, init: Initial, asked: frozenset[str]) -> TrainConfig:
    """Return the configuration with the adapter's method; its rank, alpha and targets stay in the adapter."""
    wanted = config.method.kind
    if wanted == "full" and "kind" in asked:
        raise RunError(
            f"--init {init.name} is an adapter, and method full trains none: merge it first "
            f"(curate merge {init.name} OUT), or give --method lora"
        )
    method = init.result.method if init.result is not None else ""
    named = (kind for kind, traits in METHODS.items() if traits.named_by_adapter and kind == method)
    kind = next(named, "lora" if wanted == "full" else wanted)
    if "kind" in asked and wanted != kind:
        raise RunError(f"--init {init.name} is an adapter of method {kind} and goes on as one; leave --method out")
    if others := sorted(asked - {"kind"}):
        raise RunError(f"--init {init.name} is an adapter with a {others[0]} of its own; leave method.{others[0]} out")
    return replace(config, method=replace(config.method, kind=kind))


def _with_checkpoint(config: TrainConfig, path: Path, say: Say, asked: frozenset[str]) -> tuple[TrainConfig, Initial]:
    """Start from a checkpoint's weights: base, tokenizer and method are those of its run."""
    run = path.resolve().parent.parent  # RUN/checkpoints/step-000120
    if not (run / records.CONFIG).is_file():
        raise ModelError(f"the checkpoint {str(path)!r} is alone: {records.CONFIG} of its run is not in {str(run)!r}")
    before = configs.load(str(run / records.CONFIG))
    for key in sorted(asked):
        if (own := getattr(before.method, key)) != getattr(config.method, key):
            raise RunError(f"{str(path)!r} is of a run with method.{key} = {own!r} and goes on so; leave yours out")
    _, start = find(before, say)  # what that run started from
    say(f"method {before.method.kind}, as in the run of {path}")
    model = replace(
        config.model,
        name=config.model.name or before.model.name,
        tokenizer=config.model.tokenizer or before.model.tokenizer,
    )
    return replace(config, model=model, method=before.method), Initial(str(path), start.result, path)
