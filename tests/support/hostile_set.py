"""A set in which every text tries to run on a page, to close its element, or to hide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from curate.dataset import columns, curated_set
from tests.support.small_set import EDIT, MANIFEST, kept, lost, write_set

ATTACKS = (
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 2</script>",
    "</style></title></textarea></pre></code></details><img src=x onerror='window.hacked = 3'>",
    "<!-- <script> --!> <svg onload=window.hacked=4> <![CDATA[ ]]>",
    "[press](javascript:window.hacked=5) <javascript:window.hacked=5> [x](data:text/html,<script>window.hacked=5)",
    "![see](https://example.invalid/pixel.png) <iframe src='https://example.invalid'></iframe> https://example.invalid/",
    "\" autofocus onfocus=\"window.hacked=6\" ' onmouseover='window.hacked=6' x=`y`",
    "before\u2028after\u2029end \u202eevil \x00\x1b[31m \x9b \ufeff",
    "lone \ud83d half \udc00",
    '```html" onclick="window.hacked=7\n<script>window.hacked = 7</script>\n</code></pre><script>window.hacked=7\n```',
    "```python\n'''</script><script>window.hacked = 8</script>'''\n```",
    "{{constructor.constructor('window.hacked=9')()}} ${window.hacked=9} <%= 9 %> &lt;script&gt;window.hacked=9",
    "<base href='https://example.invalid/'><meta http-equiv=refresh content='0;url=https://example.invalid'>",
    "<form action=https://example.invalid><button formaction=javascript:window.hacked=10>go</button></form>",
    '<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=window.hacked=11&gt;">',
    "| a | b |\n|---|---|\n| <script>window.hacked=12</script> | [a](vbscript:x) |",
    "\\<script>window.hacked=13\\</script> <scr<script>ipt>window.hacked=13</scr</script>ipt>",
)
ALL = "\n\n".join(ATTACKS)
PLAIN = ALL.encode("utf-16", "surrogatepass").decode(
    "utf-16", "replace"
)  # without lone surrogates, which a set cannot hold
NAME = ATTACKS[1] + ATTACKS[2] + ATTACKS[6]


def messages(*contents: str) -> list[dict[str, Any]]:
    """Return a conversation of these texts, with a system message that is hostile too."""
    roles = ("user", "assistant", "tool")
    row = {"name": NAME, "tool_calls": None, "train": True, "stop": True}
    hostile: list[dict[str, Any]] = [{**row, "role": "system", "content": PLAIN}]
    for at, text in enumerate(contents):
        calls = NAME if roles[at % 3] == "assistant" else None
        hostile.append({**row, "role": roles[at % 3], "content": text, "tool_calls": calls})
    return hostile


def record(*texts: str) -> bytes:
    """Return the original of a record."""
    turns = [{"from": ("human", "gpt")[at % 2], "value": text} for at, text in enumerate(texts)]
    return json.dumps({"id": NAME, "conversations": turns}).encode()


def write_hostile(folder: Path) -> Path:
    """Write the set."""
    edit = {**EDIT, "before": PLAIN, "after": PLAIN}
    common = {"source_id": NAME, "source_file": NAME, "model": NAME, "language": NAME, "cluster": NAME}
    rows = [
        kept(at, f"{at}{NAME}", messages=messages(text, text, text), characters=100, **common)
        for at, text in enumerate([*ATTACKS[:8], *ATTACKS[9:]])
    ]
    mended = messages(f"hello {PLAIN}", f"{PLAIN} hello")
    rows.append(kept(90, NAME, messages=mended, edits=[edit], edit_names=[NAME], characters=200, **common))
    records = (record(ALL, ALL), record(f"<p>{ALL}</p>", f"<div><p>{ALL}</p></div>"), ALL.encode("utf-8", "replace"))
    common_loss = {"source_id": NAME, "source_file": NAME, "reason": PLAIN, "evidence": PLAIN, "twin": NAME}
    losses = [lost(100 + at, f"{at}{NAME}", record=raw, **common_loss) for at, raw in enumerate(records)]
    counts = {
        **MANIFEST["counts"],
        "rules": {f"{at}{NAME}": {"first": 1, "alone": 1} for at in range(3)},
        "edits": {NAME: 1},
        "roles": {NAME: 3},
    }
    manifest = {
        **MANIFEST,
        "inputs": [{**MANIFEST["inputs"][0], "name": NAME}],
        "recipe": {"name": NAME},
        "tokenizer": {**MANIFEST["tokenizer"], "name": NAME},
        "template": NAME,
        "counts": counts,
    }
    write_set(folder, rows, losses, manifest)
    originals = [{"source_file": NAME, "source_index": 90, "record": record(f"hello {ALL} !", f"{ALL} <b>hello</b>")}]
    pl.DataFrame(originals, schema=dict(columns.ORIGINAL)).write_parquet(folder / curated_set.ORIGINALS)
    return folder
