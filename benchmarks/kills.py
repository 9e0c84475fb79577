"""Kill `curate clean` at random moments, its parent or one of its workers, and let the next run go on each time.

    python benchmarks/kills.py --kills 100 --megabytes 20

After each kill: is a process alive two seconds later, and is there a set that is not whole? A run that is not killed in
time, and the last one, must give the bytes of a run in one go: so no record is lost.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from common import MB, ROOT, _processes, copies, ours, parse, parser, remove, save, write_dump

TABLES = ("conversations.parquet", "rejected.parquet", "originals.parquet")
SECONDS = 2.0  # after which no process may be alive


def digest(output: Path) -> str:
    """Return the hash of a set's tables."""
    return hashlib.sha256(b"".join((output / name).read_bytes() for name in TABLES)).hexdigest()


def living(session: int) -> list[int]:
    """Return the processes of a session that are no zombies."""
    alive = []
    for process in _processes(session):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0]
        except OSError:
            continue
        if state != "Z":
            alive.append(process)
    return alive


def kill(run: subprocess.Popen[bytes]) -> tuple[str, bool]:
    """Kill the parent or a worker of a run; return which, and whether a process is alive two seconds after the run."""
    workers = [process for process in living(run.pid) if process != run.pid]
    who = random.choice(("parent", "worker")) if workers else "parent"
    with suppress(ProcessLookupError):  # it has just ended
        os.kill(random.choice(workers) if who == "worker" else run.pid, signal.SIGKILL)
    run.wait()
    deadline = time.monotonic() + SECONDS
    while living(run.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return who, bool(living(run.pid))


def main() -> None:
    """Kill runs, print what was found, write the result."""
    command_line = parser(__doc__)
    command_line.add_argument("--kills", type=int, default=100)
    command_line.add_argument("--megabytes", type=float, default=20, metavar="MB", help="size of the dump")
    command_line.add_argument("--seed", type=int, default=7)
    options = parse(command_line)
    random.seed(options.seed)
    name = f"kills-{options.megabytes:g}.json"
    dump = write_dump(options.scratch / name, copies(options.shared), megabytes=options.megabytes)
    whole, output = options.scratch / "kills-whole", options.scratch / "kills-set"
    remove(whole)
    remove(output)
    began = time.monotonic()
    subprocess.run(ours(dump, whole, options.shared), cwd=ROOT, check=True)
    lasts, expected = time.monotonic() - began, digest(whole)
    killed = {"parent": 0, "worker": 0}
    left = corrupt = completed = 0
    while sum(killed.values()) < options.kills:
        run = subprocess.Popen(
            ours(dump, output, options.shared), cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(random.uniform(0.1, 1.0) * lasts)
        if run.poll() is None:
            who, is_left = kill(run)
            killed[who] += 1
            left += is_left
        if output.exists():
            completed += 1
            corrupt += digest(output) != expected
            remove(output)
        print(f"  {sum(killed.values())} kills: {left} left processes, {completed} sets, {corrupt} corrupt", flush=True)
    subprocess.run(ours(dump, output, options.shared), cwd=ROOT, check=True)
    same = digest(output) == expected
    found = {"kills": killed, "left_processes": left, "sets": completed + 1, "corrupt_sets": corrupt + (not same)}
    print(found)
    for folder in (whole, output):
        remove(folder)
    save("kills", {"mb": round(dump.stat().st_size / MB, 1), **found}, options.no_save)
    sys.exit(0 if same and not (corrupt or left) else 1)


if __name__ == "__main__":
    main()
