"""What a run begins with: an earlier result to train on from, or the weights of another run's checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from curate.errors import ModelError, RunError
from curate.model import artifact, files
from curate.model.artifact import Result
from curate.train import config as configs
from curate.train.config import TrainConfig
from curate.train.run import records

Say = Callable[[str], None]
METHOD = Literal["lora", "dora", "qlora", "ia3"]  # that an adapter's own settings may name


@dataclass(frozen=True)
class Initial:
    """What `--init` names: a `result`, a checkpoint whose `weights` are taken over, or neither."""

    name: str = ""
    result: Result | None = None
    weights: Path | None = None

    @property
    def adapter(self) -> Path | None:
        """The folder of the adapter that is trained on, if it is one."""
        return self.result.folder if self.result is not None and self.result.base is not None else None

    @property
    def base(self) -> str:
        """The model that this stands on, empty where it says nothing of one."""
        return "" if self.result is None else self.result.base or str(self.result.folder)

    @property
    def template(self) -> str | None:
        """The template of curate's that it was trained with."""
        return self.result.note.template if self.result is not None and self.result.note is not None else None

    def __str__(self) -> str:
        return str(self.result) if self.weights is None else f"checkpoint {str(self.weights)!r}"


NOTHING = Initial()


def find(config: TrainConfig, say: Say, asked: frozenset[str] = frozenset()) -> tuple[TrainConfig, Initial]:
    """Find what a run begins with, and fit the configuration to it: an adapter or a checkpoint brings its own method.

    `asked` names the settings of the method that were given for this run: they are refused where they differ.
    Raises ModelError for what is none, RunError where it cannot be trained on as asked.
    """
    name = config.model.init
    if not name:
        return config, NOTHING
    path = Path(name).expanduser()
    if files.kind(path) == "checkpoint":
        return _checkpoint(config, path, say, asked)
    found = Initial(name, artifact.find(name))
    return (_as_adapter(config, found, asked) if found.adapter is not None else config), found


def _as_adapter(config: TrainConfig, found: Initial, asked: frozenset[str]) -> TrainConfig:
    wanted = config.method.kind
    if wanted == "full" and "kind" in asked:
        raise RunError(
            f"--init {found.name} is an adapter, and method full trains none: merge it first "
            f"(curate merge {found.name} OUT), or give --method lora"
        )
    method = found.result.method if found.result is not None else ""
    kind = next((one for one in get_args(METHOD) if one == method), "lora" if wanted == "full" else wanted)
    if "kind" in asked and wanted != kind:
        raise RunError(f"--init {found.name} is an adapter of method {kind} and goes on as one; leave --method out")
    if others := sorted(asked - {"kind"}):
        raise RunError(f"--init {found.name} is an adapter with a {others[0]} of its own; leave method.{others[0]} out")
    return replace(config, method=replace(config.method, kind=kind))


def _checkpoint(config: TrainConfig, path: Path, say: Say, asked: frozenset[str]) -> tuple[TrainConfig, Initial]:
    """Begin with a checkpoint's weights: base, tokenizer and method are those of the run that it is of."""
    run = path.resolve().parent.parent
    if not (run / records.CONFIG).is_file():
        raise ModelError(f"the checkpoint {str(path)!r} is alone: {records.CONFIG} of its run is not in {str(run)!r}")
    before = configs.load(str(run / records.CONFIG))
    for key in sorted(asked):
        if (own := getattr(before.method, key)) != getattr(config.method, key):
            raise RunError(f"{str(path)!r} is of a run with method.{key} = {own!r} and goes on so; leave yours out")
    _, under = find(before, say)
    say(f"method {before.method.kind}, as in the run of {path}")
    model = replace(
        config.model,
        name=config.model.name or before.model.name,
        tokenizer=config.model.tokenizer or before.model.tokenizer,
    )
    return replace(config, model=model, method=before.method), Initial(str(path), under.result, path)
