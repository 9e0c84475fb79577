"""Clean a dump with each engine: in one go, as shares of a plan one after the other, and with Ray if it is there.

    python benchmarks/engines.py --megabytes 44 --shares 4

CPU seconds and memory are those of all processes, Ray's own among them.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from common import MB, copies, ours, parse, parser, remove, save, table, write_dump
from kills import digest
from tracked import Tracked


def run(*commands: list[str]) -> dict[str, float]:
    """Run commands one after the other; return their CPU and wall seconds, and the highest peak of memory."""
    runs = [(tracked := Tracked(command, memory=True), tracked.wait()) for command in commands]
    if failed := [command for command, (each, _) in zip(commands, runs, strict=True) if each.process.returncode]:
        sys.exit(f"failed: {' '.join(failed[0])}")
    return {
        "cpu_s": round(sum(each.cpu for each, _ in runs), 2),
        "wall_s": round(sum(wall for _, wall in runs), 2),
        "peak_mib": round(max(each.peak_mib for each, _ in runs), 1),
    }


def shares(command: list[str], plan: Path, count: int) -> list[list[str]]:
    """Return the commands of a plan, of its shares, and of the gathering."""
    follow = [*command[:4], "--plan", str(plan), "--quiet"]
    parts = [[*follow, "--part", f"{share}/{count}"] for share in range(1, count + 1)]
    return [[*command, "--plan", str(plan)], *parts, [*follow, "--gather"]]


def main() -> None:
    """Clean with each engine, compare the bytes, print a table, write the result."""
    command_line = parser(__doc__)
    command_line.add_argument("--megabytes", type=float, default=44, metavar="MB", help="size of the dump")
    command_line.add_argument("--shares", type=int, default=4)
    options = parse(command_line)
    name = f"resume-{options.megabytes:g}.json"  # the dump of resume.py
    dump = write_dump(options.scratch / name, copies(options.shared), megabytes=options.megabytes)
    output, plan = options.scratch / "engines-set", options.scratch / "engines-plan.json"
    command = ours(dump, output, options.shared)
    engines = {"local": [command], f"{options.shares} shares of a plan": shares(command, plan, options.shares)}
    if importlib.util.find_spec("ray"):
        engines["ray"] = [[*command, "--engine", "ray"]]
    results: dict[str, dict[str, object]] = {}
    for engine, commands in engines.items():
        remove(output)
        results[engine] = {**run(*commands), "sha256": digest(output)}
    remove(output)
    same = len({result["sha256"] for result in results.values()}) == 1
    keys = ("cpu_s", "wall_s", "peak_mib")
    print(
        table(
            ["engine", "CPU s", "wall s", "peak MiB"],
            [[name, *(of[key] for key in keys)] for name, of in results.items()],
        )
    )
    print(f"same bytes: {same}")
    save("engines", {"mb": round(dump.stat().st_size / MB, 1), "same_bytes": same, "engines": results}, options.no_save)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
