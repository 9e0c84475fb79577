"""Measure near duplicates on one core: speed and recall of curate's MinHash, beside datasketch and rensa.

    python benchmarks/near_duplicates.py --peers-python .peers/bin/python

The texts are the conversations of the real dump, each with an edited copy (words replaced, removed, added). Pairs with
a Jaccard figure of 0.8 or more, by Python's sets of words, are the truth. The peers run in an environment of their own
(`pip install datasketch rensa numpy`), each with 20 bands of 5 rows on the hashed shingles of curate; without one, only
curate is measured. CPU seconds, best of three.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import parse, parser, save, source_rows, table
from stages import best_of

from curate.filters.minhash import signatures, words
from curate.filters.minhash.shingles import Shingles, jaccard, shingle

PART = 500  # conversations that are shingled at once, as in a worker
THRESHOLD = 0.8
LETTER = re.compile("[\u2e80-\u9fff\uac00-\ud7ff]")
PEERS = """
import sys, time
import numpy as np
values, sizes = np.load(sys.argv[1]), np.load(sys.argv[2])
ends = np.concatenate([[0], np.cumsum(sizes)])
sets = [values[a:b] for a, b in zip(ends[:-1], ends[1:])]
start = time.process_time()
if sys.argv[3] == "rensa":
    from rensa import RMinHash
    rows = RMinHash.digest_matrix_from_flat_token_hashes(values.astype(np.uint64), ends.astype(np.uint64), 100, 42)
    signatures = np.array(rows.to_rows(), np.uint64)
else:
    from datasketch import MinHash
    signatures = np.array([m.hashvalues for m in MinHash.generator(
        [list(own) for own in sets], num_perm=100, seed=1, hashfunc=int)], np.uint64)
print(time.process_time() - start)
np.save(sys.argv[4], signatures)
"""


def edited(text: str, rng: random.Random) -> str:
    """Return a copy with up to one word in 25 replaced, removed or added."""
    own = text.split(" ")
    for _ in range(rng.randint(1, max(1, len(own) // 25))):
        place = rng.randrange(len(own))
        own[place : place + rng.randrange(2)] = [] if rng.random() < 0.3 else [f"edit{rng.randrange(10**6)}"]
    return " ".join(own)


def exact(first: str, second: str) -> float:
    """Return the Jaccard figure of two texts by Python's sets of five words."""
    sets = []
    for text in (first, second):
        own = re.findall(r"\w+", LETTER.sub(lambda letter: f" {letter[0]} ", text.lower()))
        sets.append({tuple(own[place : place + 5]) for place in range(max(1, len(own) - 4))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def band_recall(rows: np.ndarray[Any, Any], alike: np.ndarray[Any, Any]) -> float:
    """Return the share of the alike pairs (rows 2n and 2n + 1) that agree in all rows of a band."""
    banded = rows.reshape(len(rows), signatures.ROWS, signatures.BANDS)
    shared = (banded[::2] == banded[1::2]).all(axis=1).any(axis=1)
    return float(shared[alike].mean())


def shingle_parts(texts: Sequence[str]) -> list[Shingles]:
    """Return the sets of the texts, in parts as the workers make them."""
    composed = [words.compose(text) for text in texts]
    return [shingle(composed[start : start + PART]) for start in range(0, len(composed), PART)]


def run_peer(python: str, name: str, scratch: Path) -> tuple[float, np.ndarray[Any, Any]]:
    """Return the CPU seconds of a peer's signatures, and these."""
    files = [str(scratch / f"near-{part}.npy") for part in ("values", "sizes")]
    target = str(scratch / f"near-{name}.npy")
    done = subprocess.run([python, "-c", PEERS, *files, name, target], capture_output=True, text=True, check=True)
    return float(done.stdout), np.load(target)


def main() -> None:
    """Measure, print a table, write the result."""
    command_line = parser(__doc__)
    command_line.add_argument("--peers-python", help="the interpreter of an environment with datasketch and rensa")
    options = parse(command_line)
    rng = random.Random(1)
    texts = ["\n".join(turn["value"] for turn in row["conversations"]) for row in source_rows(options.shared)]
    pairs = [(text, edited(text, rng)) for text in texts]
    both = [text for pair in pairs for text in pair]
    alike = np.array([exact(*pair) >= THRESHOLD for pair in pairs])
    words.count_words(["the tables"])
    spent, parts = best_of(3, lambda: shingle_parts(both))
    rates: dict[str, dict[str, float]] = {"curate: words and shingles": {"per_s": len(both) / spent}}
    banded, bands = best_of(3, lambda: np.concatenate([signatures.band_hashes(part) for part in parts]))
    shared = (bands[::2] == bands[1::2]).any(axis=1)
    rates["curate: bands"] = {"per_s": len(both) / banded, "recall": float(shared[alike].mean())}
    rates["curate: both"] = {"per_s": len(both) / (spent + banded), "recall": float(shared[alike].mean())}
    values = [own for part in parts for own in np.split(part.values, np.cumsum(part.sizes)[:-1])]
    compared, _ = best_of(3, lambda: [jaccard(values[at], values[at + 1]) for at in range(0, len(values), 2)])
    rates["curate: exact figures (pairs)"] = {"per_s": len(pairs) / compared}
    np.save(options.scratch / "near-values.npy", np.concatenate(values))
    np.save(options.scratch / "near-sizes.npy", np.array([len(own) for own in values]))
    for name in ("rensa", "datasketch") if options.peers_python else ():
        seconds, rows = run_peer(options.peers_python, name, options.scratch)
        rates[f"{name}: signatures"] = {"per_s": len(both) / seconds, "recall": band_recall(rows, alike)}
    lines = [[name, figures["per_s"], figures.get("recall")] for name, figures in rates.items()]
    print(f"{len(pairs):,} pairs, {alike.sum():,} with a figure of {THRESHOLD} or more\n")
    print(table(["one core", "conversations/s", "recall"], lines))
    rounded = {name: {key: round(value, 5) for key, value in figures.items()} for name, figures in rates.items()}
    save("near_duplicates", {"pairs": len(pairs), "alike": int(alike.sum()), "rates": rounded}, options.no_save)


if __name__ == "__main__":
    sys.exit(main())
