"""Find what a run starts from (`--init`): a model or adapter of an earlier run, or the weights of a checkpoint."""

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
    """What a run starts from: a model, an adapter, a checkpoint's weights, or only the base model."""

    name: str = ""  # as given to --init
    result: Artifact | None = None  # a model or adapter; for a checkpoint, what its run started from
    weights: Path | None = None  # a checkpoint

    @property
    def adapter(self) -> Path | None:
        """The folder of the adapter to continue training, None for anything else."""
        return self.result.folder if self.result is not None and self.result.base is not None else None

    @property
    def base(self) -> str:
        """The base model by name or folder, empty if `--init` determines none."""
        return "" if self.result is None else self.result.base or str(self.result.folder)

    @property
    def template(self) -> str | None:
        """The built-in template that it was trained with, None if unknown."""
        return self.result.note.template if self.result is not None and self.result.note is not None else None

    def __str__(self) -> str:
        return str(self.result) if self.weights is None else f"checkpoint {str(self.weights)!r}"


FROM_SCRATCH = Initial()


def find(config: TrainConfig, say: Say, explicit: frozenset[str] = frozenset()) -> tuple[TrainConfig, Initial]:
    """Find what a run starts from; return it, and the configuration with its method if it determines one.

    `explicit` has the keys of `method` that were set for this run, not by a preset: a preset's method is replaced,
    but a different explicit setting raises RunError. Raises ModelError if `--init` is no model, adapter or checkpoint.
    """
    name = config.model.init
    if not name:
        return config, FROM_SCRATCH
    path = Path(name).expanduser()
    if files.kind(path) == "checkpoint":
        return _with_checkpoint(config, path, say, explicit)
    init = Initial(name, artifact.find_artifact(name))
    return (_with_adapter(config, init, explicit) if init.adapter is not None else config), init


def _with_adapter(config: TrainConfig, init: Initial, explicit: frozenset[str]) -> TrainConfig:
    """Return the configuration with the adapter's method; rank, alpha and targets are read from the adapter itself.

    Raises RunError for an explicit setting of the method that differs from the adapter's.
    """
    requested = config.method.kind
    if requested == "full" and "kind" in explicit:
        raise RunError(
            f"--init {init.name} is an adapter, and method full trains none: merge it first "
            f"(curate merge {init.name} OUT), or give --method lora"
        )
    method = init.result.method if init.result is not None else ""
    # Methods such as `peft`, and adapters of other programs, do not name one of curate's methods.
    matches = (kind for kind, traits in METHODS.items() if traits.named_by_adapter and kind == method)
    kind = next(matches, "lora" if requested == "full" else requested)
    if "kind" in explicit and requested != kind:
        raise RunError(f"--init {init.name} is an adapter of method {kind}, which cannot change; leave --method out")
    if fixed := sorted(explicit - {"kind"}):
        raise RunError(f"--init {init.name} is an adapter with its own {fixed[0]}; leave method.{fixed[0]} out")
    return replace(config, method=replace(config.method, kind=kind))


def _with_checkpoint(
    config: TrainConfig, path: Path, say: Say, explicit: frozenset[str]
) -> tuple[TrainConfig, Initial]:
    """Start from a checkpoint's weights: base, tokenizer and method are those of its run.

    A checkpoint has only the trained parameters, so the run's config.toml must be there for the rest. Raises ModelError
    if it is not, RunError for an explicit setting of another method.
    """
    run = path.resolve().parent.parent  # RUN/checkpoints/step-000120
    if not (run / records.CONFIG).is_file():
        raise ModelError(f"the checkpoint {str(path)!r} is alone: {records.CONFIG} of its run is not in {str(run)!r}")
    before = configs.load(str(run / records.CONFIG))
    for key in sorted(explicit):
        if (own := getattr(before.method, key)) != getattr(config.method, key):
            raise RunError(
                f"{str(path)!r} is from a run with method.{key} = {own!r}, which cannot change; leave method.{key} out"
            )
    _, start = find(before, say)  # what that run started from: the checkpoint's weights are loaded into it
    say(f"method {before.method.kind}, as in the run of {path}")
    model = replace(
        config.model,
        name=config.model.name or before.model.name,
        tokenizer=config.model.tokenizer or before.model.tokenizer,
    )
    return replace(config, model=model, method=before.method), Initial(str(path), start.result, path)
