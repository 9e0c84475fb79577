"""A curated set's manifest: how the set was made and what it contains. Read without opening the tables."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from curate import files
from curate.errors import SetError
from curate.settings import decode_json

FORMAT = 1  # of the folder; raised when a reader of the old one would misread the new one
CONVERSATIONS, REJECTED, ORIGINALS = "conversations.parquet", "rejected.parquet", "originals.parquet"
MANIFEST, REPORT = "manifest.json", "report.html"
FILES = (CONVERSATIONS, REJECTED, ORIGINALS, MANIFEST, REPORT)


@dataclass(frozen=True)
class InputFile:
    """One input; `bytes` on disk, `sha256` is None if it was not read to its end."""

    name: str
    bytes: int
    sha256: str | None


@dataclass(frozen=True)
class UnreadFile:
    """A file, folder or member of an archive beside the inputs that was not read, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class TokenizerFacts:
    """The tokenizer that counted the tokens; `hash` is the SHA-256 of its vocabulary file."""

    name: str
    kind: str
    hash: str
    vocab_size: int | None = None
    bos_id: int | None = None
    eos_id: int | None = None
    bos_token: str | None = None
    eos_token: str | None = None
    library: str | None = None


@dataclass(frozen=True)
class RuleCount:
    """Records that a rule was the first to reject, and those it would reject if no other were on that can be off.

    `alone` is None where the set was made from another one, which does not say it.
    """

    first: int
    alone: int | None


@dataclass(frozen=True)
class SetUse:
    """A set that another was made from: its path, the SHA-256 of its manifest, and what was asked.

    `use` is refilter, combine or against; `asked` has the options of the command.
    """

    path: str
    sha256: str
    use: str
    recipe: str
    kept: int
    asked: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> str:
        """Return the set and what was asked, on one line."""
        asked = "".join(f", --{name} {value}" for name, value in self.asked.items())
        return f"{self.use} {self.path} ({self.kept:,} conversations, recipe {self.recipe}{asked})"


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The model that measured a signal of a set, and how.

    `weights` and `vocabulary` are hashes (`curate.model.fingerprint`), `adapter` the SHA-256 of an adapter's weights,
    empty without one. `unscored` counts the answers that have no score, by the reason.
    """

    signal: str
    model: str  # as the user named it
    architecture: str
    weights: str
    vocabulary: str = ""
    adapter: str = ""
    template: str
    window: int  # tokens
    dtype: str
    unscored: dict[str, int] = field(default_factory=dict)

    def is_alike(self, other: ModelFacts) -> bool:
        """Return whether the scores of two sets can be compared: the same weights read the same text."""
        ours, theirs = (asdict(facts) | {"model": "", "unscored": {}} for facts in (self, other))
        return ours == theirs

    def describe(self) -> str:
        """Return signal and model on one line."""
        adapter = f", adapter {self.adapter[:8]}" if self.adapter else ""
        return f"{self.signal} by {self.model} ({self.weights[:8]}{adapter}, {self.template}, {self.dtype})"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The numbers of a set; read = kept + rejected.

    Records: `read`, `kept`, `rejected`, `eval` (held out), `rules`; where the branches of a record are conversations of
    their own, each counts as one, and `branches` are those beyond a record's first. Exchanges lost from kept records:
    `rejected_exchanges`, by rule `exchanges`. Tokens are summed over all pieces. `edits` counts repairs by rule,
    `roles` messages by role (None in a set of an earlier version), `turn_keys` the keys in their `extra`.
    """

    read: int
    kept: int
    rejected: int
    rejected_exchanges: int
    pieces: int
    branches: int = 0
    eval: int = 0
    tokens: int
    answer_tokens: int = 0
    rules: dict[str, RuleCount]
    exchanges: dict[str, int] = field(default_factory=dict)
    edits: dict[str, int]
    roles: dict[str, int] | None = None
    turn_keys: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Measures:
    """What was measured of a set's tables, and the SHA-256 of each table that it was read from.

    `values` are those of `curate.analysis.stats.Measures`, as JSON.
    """

    tables: dict[str, str]
    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """When, where and how fast a set was made: the only part that differs between two equal runs.

    `stages` are seconds summed over the workers; `file` names the one file that was converted from the set;
    `tables` has the bytes and the time of change (ns) of each table: one that has both is not read to know it again.
    """

    seconds: float
    mb_per_s: float
    workers: int
    stages: dict[str, float] = field(default_factory=dict)
    host: str = ""
    started: str = ""
    paths: list[str] = field(default_factory=list)
    file: str | None = None
    tables: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """How a set was made and what it contains. `manifest["counts"]` reads it as the plain values of the file."""

    version: str
    versions: dict[str, str] = field(default_factory=dict)
    inputs: list[InputFile]
    unread: list[UnreadFile] = field(default_factory=list)
    recipe: dict[str, Any]  # every setting, by section
    tokenizer: TokenizerFacts
    template: str
    window: int  # maximum number of tokens in a piece
    counts: Counts
    warnings: list[str] = field(default_factory=list)
    sets: list[SetUse] = field(default_factory=list)  # that it was made from, the first one first
    sources: dict[str, str] = field(default_factory=dict)  # digests of code and files, by the signal that used them
    models: list[ModelFacts] = field(default_factory=list)  # that measured signals, by signal
    measures: Measures | None = None
    run: RunFacts | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.recipe.get("name"), str):
            raise ValueError("`recipe.name` must be text")
        if not isinstance(self.recipe.get("tokens", {}), dict):
            raise ValueError("`recipe.tokens` must be a table")

    @property
    def recipe_name(self) -> str:
        return str(self.recipe["name"])

    def own_tokenizer(self) -> str:
        """Return the name or folder that the set's tokenizer was loaded by."""
        return str(self.recipe.get("tokens", {}).get("tokenizer") or self.tokenizer.name)

    def to_dict(self) -> dict[str, Any]:
        """Return the plain JSON values of the file, without the format's number."""
        return asdict(self)

    def __getitem__(self, key: str) -> Any:
        return self.to_dict()[key]


def is_set(folder: Path) -> bool:
    """Return whether a folder has a manifest that curate wrote, in any version."""
    return _format(_load(folder)) is not None


def is_dump(path: str | Path) -> bool:
    """Return whether a path is read as a dump: a file, standard input (`-`), or a folder without a set's files."""
    folder = Path(path)
    if str(path) == "-" or folder.is_file():
        return True
    return (
        folder.is_dir()
        and any(folder.iterdir())
        and not any((folder / name).exists() for name in FILES if name != REPORT)
    )


def not_a_set(path: Path) -> SetError:
    """Return the error for an input in place of a set, with the command that makes a set of it."""
    command = f"curate clean {shlex.quote(str(path))}"
    if path.exists():  # else standard input
        target = path.with_suffix("") if path.is_file() and path.suffix else path.with_name(f"{path.name}-curated")
        command += f" -o {shlex.quote(str(target))}"
    return SetError(f"{str(path)!r} is not a curated set (a folder with {MANIFEST}); make one: {command}")


def read(path: str | Path) -> tuple[Path, Manifest]:
    """Return a set's folder and manifest; raises SetError that says what is wrong with it and what to type."""
    folder = Path(path)
    if not folder.exists():
        raise SetError(f"no curated set at {str(path)!r}; make one: curate clean DUMP -o {path}")
    if not folder.is_dir():
        raise not_a_set(folder)
    files.refuse_bytes(folder)
    values = _load(folder)
    version = _format(values)
    if version is None:
        raise SetError(f"{str(path)!r} is not a curated set: it has no readable {MANIFEST} written by curate")
    if version != FORMAT:
        raise SetError(f"{str(path)!r} has set format {version!r}, this version reads {FORMAT}; run curate clean again")
    for name in (CONVERSATIONS, REJECTED):
        if not (folder / name).is_file():
            raise SetError(f"{str(path)!r} is incomplete: {name} is missing; run curate clean again")
    try:
        return folder, decode(values)
    except ValueError as error:
        raise SetError(
            f"the manifest of {str(path)!r} is damaged or of another version ({error}); run curate clean again"
        ) from error


def parse(data: bytes, shown: str) -> Manifest:
    """Return the manifest in a file's bytes; raises SetError that names the set as `shown`."""
    try:
        values = json.loads(data)
        if _format(values) != FORMAT:
            raise ValueError(f"its format is {_format(values)!r}, this version reads {FORMAT}")
        return decode(values)
    except (ValueError, RecursionError) as error:
        raise SetError(f"the manifest of {shown!r} is damaged or of another version ({error})") from None


def write(folder: Path, manifest: Manifest) -> None:
    """Write the manifest: sorted keys, readable, UTF-8."""
    values = {"curate_set": FORMAT, **manifest.to_dict()}
    text = json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False)
    # A file name that is not UTF-8 is decoded to lone surrogates, which are written as JSON escapes.
    (folder / MANIFEST).write_text(text + "\n", "utf-8", errors="backslashreplace")


def _load(folder: Path) -> object:
    """Return the manifest's JSON value, or None if it cannot be read. The standard library accepts lone surrogates."""
    if not (folder / MANIFEST).is_file():  # opening a pipe would wait for a writer
        return None
    try:
        return json.loads((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _format(values: object) -> object:
    """Return the format number in a manifest; None if curate did not write it."""
    return (values.get("curate_set") or None) if isinstance(values, dict) else None


def decode(values: object) -> Manifest:
    """Check the values of a manifest and return it; unknown keys are ignored. Raises ValueError that names the key."""
    return decode_json(Manifest, values)
