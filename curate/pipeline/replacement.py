"""What a run may replace: an earlier set of the same inputs and recipe; any other only if the user says so."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from curate._version import __version__
from curate.dataset import curated_set
from curate.dataset import manifest as manifests
from curate.dataset.curated_set import CuratedSet
from curate.dataset.manifest import Manifest
from curate.display.figures import plural
from curate.errors import SetError
from curate.ingest.kinds import HUB_PREFIX
from curate.ingest.remote.address import is_remote
from curate.ingest.sources import Source
from curate.pipeline.recipe import Recipe
from curate.pipeline.sets.changes import describe_use
from curate.settings import flatten

ADVICE = "nothing was written; give another -o, or --force to replace it"
MAX_NAMES = 3  # of inputs, settings or files, in a message


def check_replacement(folder: Path, recipe: Recipe, sources: Sequence[Source]) -> None:
    """Raise SetError, which says what would be lost, if this run would not make the set at `folder` again."""
    if not manifests.is_set(folder) or not (folder / curated_set.CONVERSATIONS).exists():
        return
    try:
        earlier = curated_set.open_set(folder).manifest
    except SetError as error:
        raise SetError(f"{error}; its conversations would be lost; {ADVICE}") from error
    check_earlier(earlier, str(folder), recipe, sources, _own_files(folder))


def check_earlier(earlier: Manifest, shown: str, recipe: Recipe, sources: Sequence[Source], more: str = "") -> None:
    """Raise SetError, which says what would be lost, if this run would not make a set of this manifest again."""
    if not earlier.counts.kept:
        return
    absent, changes = _absent_inputs(earlier, sources), _changed_settings(earlier, recipe)
    reads = list(dict.fromkeys(source.file for source in sources))
    reasons = [f"this run reads {_names(reads)}, not {_names(absent)}"] if absent else []
    reasons += [f"this run has {_names(changes)}"] if changes else []
    if reasons:
        raise SetError(f"{_describe(shown, earlier)}, would be lost: {'; '.join(reasons)}; {ADVICE}{more}")


def is_made(folder: Path, recipe: Recipe, sources: Sequence[Source], against: CuratedSet | None) -> bool:
    """Return whether a folder has the set that cleaning these sources with the recipe makes: by their SHA-256."""
    try:
        found = curated_set.open_set(folder).manifest
    except SetError:
        return False
    known = [describe_use(against, "against", {}), *against.manifest.sets] if against else []
    same = (found.version, found.recipe, found.sets) == (__version__, json.loads(json.dumps(recipe.to_dict())), known)
    hashes = {file.sha256 for file in found.inputs}
    sizes = {source.bytes for source in sources if source.path}
    return same and None not in hashes and None not in sizes and hashes == set(_hashes(sources, sizes))


def _describe(shown: str, earlier: Manifest) -> str:
    """Return what would be lost with a set."""
    inputs = _names([file.name for file in earlier.inputs])
    day = f", made on {earlier.run.started[:10]}" if earlier.run and earlier.run.started else ""
    kept = earlier.counts.kept
    conversations = f"{kept:,} {plural(kept, 'conversation')}"
    return f"the set {shown!r}, {conversations} from {inputs} with the recipe {earlier.recipe_name}{day}"


def _own_files(folder: Path) -> str:
    own = sorted(path.name for path in folder.iterdir() if path.name not in curated_set.FILES)
    return f" (your own files in it stay: {_names(own)})" if own else ""


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def _absent_inputs(earlier: Manifest, sources: Sequence[Source]) -> list[str]:
    """Return the inputs of an earlier set that this run does not read.

    An input is the same if it has the same path (its content may have changed since) or the same content.
    """
    known = {_absolute(path) for path in earlier.run.paths} if earlier.run else set()
    if known and known <= {_absolute(source.place) for source in sources}:
        return []
    present = {source.file for source in sources if not known or _absolute(source.place) in known}
    absent = [file for file in earlier.inputs if file.name not in present]
    hashes = set(_hashes(sources, {file.bytes for file in absent}))
    return [file.name for file in absent if file.sha256 not in hashes]


def _absolute(place: str) -> str:
    return place if place == "-" or place.startswith(HUB_PREFIX) or is_remote(place) else str(Path(place).resolve())


def _hashes(sources: Sequence[Source], sizes: Collection[int | None]) -> Iterator[str]:
    """Yield the SHA-256 of each file that has one of these sizes and can be read."""
    for path in {source.path for source in sources if source.path and source.bytes in sizes}:
        with contextlib.suppress(OSError), path.open("rb") as file:
            yield hashlib.file_digest(file, "sha256").hexdigest()


def _changed_settings(earlier: Manifest, recipe: Recipe) -> list[str]:
    """Return how the recipe differs from that of an earlier set; the defaults of other versions are not compared.

    To read more records than before is no change.
    """
    old, new = dict(flatten(earlier.recipe)), dict(flatten(recipe.to_dict()))
    limits = [settings.get("input.limit") or math.inf for settings in (old, new)]
    ignored = {"name", "summary", *(["input.limit"] if limits == sorted(limits) else [])}
    changed = sorted(name for name in {*old, *new} - ignored if old.get(name) != new.get(name))
    if earlier.recipe_name != recipe.name and (changed or earlier.version != __version__):
        return [f"recipe {recipe.name}"]
    if earlier.version != __version__:
        return []
    return [f"{name} {_value(new.get(name))} instead of {_value(old.get(name))}" for name in changed]


def _value(value: object) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
