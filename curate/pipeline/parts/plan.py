"""The plan of a run: its inputs cut into units, each of which is cleaned by itself.

A unit is a byte range of a text, or sources that cannot be cut: archives, compressed files, tables, standard input.
These are read from their beginning, and are cleaned into as many parts as they have batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from curate import files
from curate._version import __version__
from curate.errors import InputError, error_message
from curate.ingest import kinds
from curate.ingest.ranges import text_range
from curate.ingest.ranges.text_range import RANGE_BYTES
from curate.ingest.remote.address import is_remote, show
from curate.ingest.sources import Source, open_inputs
from curate.pipeline.recipe import Recipe

FORMAT = 1
PARTS_BITS = 16  # of a part's number: its place in its unit; the bits before are the unit's
MAX_UNITS = 1 << 15
MAX_PATH = 4096  # characters
GROUP_BYTES = 64 << 20  # of small sources that are one unit


@dataclass(frozen=True)
class Unit:
    """Sources, by their places in the plan; if `stop` is given, bytes `start` to `stop` of the one source."""

    sources: tuple[int, ...]
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class InputFacts:
    """A source as it was when the plan was made."""

    name: str
    bytes: int | None


@dataclass(frozen=True)
class Plan:
    """What a run does: absolute paths, the recipe, the sources that are read, and the units to clean.

    `against`, `force` and `strict` are those of `clean`, when the parts are gathered.
    """

    inputs: tuple[str, ...]
    output: str
    recipe: dict[str, Any]
    sources: tuple[InputFacts, ...]
    units: tuple[Unit, ...]
    against: str | None = None
    force: bool = False
    strict: bool = False
    version: str = __version__
    curate_plan: int = FORMAT


def make_plan(inputs: Sequence[str | Path], output: Path, recipe: Recipe, range_bytes: int = RANGE_BYTES) -> Plan:
    """Return the plan of a run; raises InputError for inputs that only one process can read."""
    sources = [source for source in open_inputs(inputs) if not source.problem]
    if any(source.bytes is None for source in sources):
        raise InputError("standard input, pipes and the Hub are read by one process; give files or folders")
    paths = tuple(_absolute(argument) for argument in inputs)
    units = tuple(make_units(sources, recipe, range_bytes))
    return Plan(paths, str(output.absolute()), recipe.to_dict(), describe_sources(sources), units)


def _absolute(argument: str | Path) -> str:
    if not is_remote(argument):
        return str(Path(argument).absolute())
    if show(str(argument)) != str(argument):
        raise InputError(f"{show(str(argument))!r} was given with a query, which may be secret; a plan would show it")
    return str(argument)


def make_units(sources: Sequence[Source], recipe: Recipe, range_bytes: int = RANGE_BYTES) -> list[Unit]:
    """Cut the sources into units, in order. With a limit there is one: how much is read is known only when it is."""
    if recipe.input.limit:
        return [Unit(tuple(range(len(sources))))]
    total = sum(source.bytes or 0 for source in sources)
    range_bytes = max(range_bytes, total // MAX_UNITS)
    units: list[Unit] = []
    numbered = enumerate(sources)
    for _, group in groupby(numbered, key=lambda item: item[1].place):  # members of one archive stay together
        places, members = zip(*group, strict=True)
        ranges = _cut(members[0], recipe, range_bytes) if len(members) == 1 else []
        if len(ranges) > 1:
            units += [Unit(places, start, stop) for start, stop in ranges]
        elif units and units[-1].stop is None and _size(sources, (*units[-1].sources, *places)) <= GROUP_BYTES:
            units[-1] = Unit((*units[-1].sources, *places))
        else:
            units.append(Unit(places))
    return units


def _size(sources: Sequence[Source], places: Sequence[int]) -> int:
    return sum({sources[place].place: sources[place].bytes or 0 for place in places}.values())


def _cut(source: Source, recipe: Recipe, range_bytes: int) -> list[tuple[int, int]]:
    """Return the byte ranges of a source; none or one if it must be read from its beginning."""
    ranges = text_range.cut(source.bytes or 0, range_bytes)
    settings = recipe.input
    can_cut = len(ranges) > 1 and text_range.can_cut(source, settings.encoding, settings.max_record_bytes)
    return ranges if can_cut else []


def part_number(unit: int, place: int = 0) -> int:
    """Return the number of a part: the one at this place in a unit. Raises InputError if a unit has too many."""
    if place >> PARTS_BITS:
        raise InputError(f"an input that cannot be cut has over {1 << PARTS_BITS:,} parts; unpack it, or split it")
    return unit << PARTS_BITS | place


def unit_of(number: int) -> int:
    """Return the unit that a part belongs to."""
    return number >> PARTS_BITS


def describe_sources(sources: Sequence[Source]) -> tuple[InputFacts, ...]:
    """Return what identifies the sources of a plan."""
    return tuple(InputFacts(source.name, source.bytes) for source in sources)


def write_plan(path: Path, plan: Plan) -> None:
    """Write a plan as JSON."""
    files.write_text(path, msgspec.json.format(msgspec.json.encode(plan), indent=1).decode() + "\n", follow_link=True)


def read_plan(path: Path) -> Plan:
    """Read a plan; raises InputError if it is none, of another version, or does not read each source exactly once."""
    again = "make it again: curate clean DUMP -o SET --plan"
    try:
        plan = msgspec.json.decode(path.read_bytes(), type=Plan)
    except FileNotFoundError:
        raise InputError(f"no plan at {str(path)!r}; make one: curate clean DUMP -o SET --plan {path}") from None
    except (OSError, ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise InputError(f"{str(path)!r} is not a plan of curate ({error_message(error)}); {again} {path}") from None
    if (plan.curate_plan, plan.version) != (FORMAT, __version__):
        raise InputError(f"the plan {str(path)!r} is of curate {plan.version}, this is {__version__}; {again} {path}")
    if problem := _problem(plan):
        raise InputError(f"the plan {str(path)!r} is damaged: {problem}; {again} {path}")
    return plan


def _problem(plan: Plan) -> str | None:
    """Return what is wrong with a plan that has the right types."""
    paths = [*plan.inputs, plan.output, *([] if plan.against is None else [plan.against])]
    if wrong := [path for path in paths if not _is_absolute(path)]:
        return f"{wrong[0][:80]!r} is not an absolute path"
    if is_remote(plan.output) or not Path(plan.output).name:
        return f"{plan.output[:80]!r} cannot be a set"
    if not _reads_all_once(plan):
        return "its units do not read each byte of its sources exactly once"
    return None


def _is_absolute(path: str) -> bool:
    """Return whether a path is a remote address, or one from the root on that a file system can have."""
    can_be = "\0" not in path and files.is_text(path) and len(path) < MAX_PATH
    return can_be and (is_remote(path) or path.startswith("/"))


def _reads_all_once(plan: Plan) -> bool:
    """Return whether the units have the sources in order; whole, or in ranges that meet from 0 to the end."""
    place = start = 0
    for unit in plan.units:
        if unit.stop is None and start == unit.start == 0:
            is_next = unit.sources == tuple(range(place, place + len(unit.sources)))
            place += len(unit.sources)
        else:
            size = plan.sources[place].bytes if place < len(plan.sources) else None
            is_next = unit.sources == (place,) and unit.start == start < (unit.stop or 0) <= (size or 0)
            place, start = (place + 1, 0) if unit.stop == size else (place, unit.stop or 0)
        if not is_next or not unit.sources or place > len(plan.sources):
            return False
    return place == len(plan.sources) and start == 0


def open_sources(plan: Plan) -> list[Source]:
    """Return the sources of a plan; raises InputError if they are no longer what they were."""
    sources = open_inputs(plan.inputs)
    present = describe_sources([source for source in sources if not source.problem])
    if present != plan.sources:
        changed = sorted({facts.name for facts in {*present} ^ {*plan.sources}})
        raise InputError(f"the inputs have changed since the plan was made ({', '.join(changed[:3])}); make a new plan")
    usable = [source for source in sources if not source.problem]
    cut = {unit.sources[0] for unit in plan.units if unit.stop is not None}
    for source in (usable[place] for place in sorted(cut)):
        if source.path is None or source.kind != kinds.TEXT.name:
            raise InputError(f"the plan is damaged: {source.name!r} is not a text that can be cut; make a new plan")
    return sources


def share_units(plan: Plan, share: int, count: int) -> frozenset[int]:
    """Return the units of the share of this number, from 1 to `count`."""
    return frozenset(range(share - 1, len(plan.units), count))
