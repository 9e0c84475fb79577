"""The frame of every page: head, content security policy, styles, scripts and the data for charts.

A page is one file that loads nothing: it includes Apache ECharts, and its policy allows only its two scripts, by hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from curate.display.html import byte_size, escape

MAX_BYTES = 1_900_000  # bytes of a page; sample conversations beyond this are left out


def bytes_left(body: str) -> int:
    """Return how many more bytes a page with this body may take."""
    return MAX_BYTES - byte_size(body) - sum(byte_size(code) for code, _ in _scripts())


def document(title: str, body: str, data: Mapping[str, Any], command: str = "curate stats") -> str:
    """Return a page written by `command`; `body` is HTML, `data` the data that page.js charts."""
    scripts = _scripts()
    hashes = " ".join(f"'sha256-{digest}'" for _, digest in scripts)
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    plain = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    for sign in "<>&":  # so that no text can end the <script> element
        plain = plain.replace(sign, f"\\u{ord(sign):04x}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)} · {command}</title>\n'
        f"<style>{_asset('page.css')}</style><noscript><style>.chart{{display:none}}</style></noscript></head>\n"
        f"<body>\n{body}\n"
        f'<script type="application/json" id="chart-data">{plain}</script>\n'
        + "\n".join(f"<script>{code}</script>" for code, _ in scripts)
        + "\n</body></html>\n"
    )


@cache
def _asset(name: str) -> str:
    return Path(str(files("curate.display") / name)).read_text("utf-8")


@cache
def _scripts() -> tuple[tuple[str, str], ...]:
    """Return each script with its SHA-256 in base64, as the policy names it."""
    scripts = []
    for name in ("vendor/echarts.js", "page.js"):
        code = _asset(name)
        scripts.append((code, base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()))
    return tuple(scripts)
