"""Addresses of inputs elsewhere: `https://…`, `s3://bucket/key`, `gs://bucket/key`, `hf://datasets/owner/name/file`."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from curate.errors import InputError

SCHEME = re.compile(r"(https?|s3|gs|hf)://", re.IGNORECASE)
HF = re.compile(r"hf://((?:datasets|spaces)/)?([\w.-]+/[\w.-]+)(?:@([^/]+))?/(.+)")


def is_remote(argument: str | Path) -> bool:
    """Return whether an argument is the address of a file elsewhere."""
    return SCHEME.match(str(argument)) is not None


def show(url: str) -> str:
    """Return an address without what may be secret: a password, and the query, which may be a signature."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def name_of(url: str) -> str:
    """Return the name of the file at an address."""
    parts = urlsplit(url)
    path = unquote(parts.path) if parts.scheme.startswith("http") else parts.path
    return path.rpartition("/")[2] or parts.netloc.rpartition("@")[2]


def folder_of(url: str) -> str:
    """Return the place around the file, as an absolute path."""
    parts = urlsplit(url)
    return f"/{parts.netloc.rpartition('@')[2]}{parts.path.rpartition('/')[0]}"


def check(url: str) -> None:
    """Raise InputError for an address with a password, and for one that names no file."""
    parts, shown = urlsplit(url), show(url)
    if "@" in parts.netloc and parts.scheme != "hf":
        raise InputError(
            f"input {shown!r} was given with a password; leave it out: credentials are read from the environment"
        )
    if parts.scheme == "hf" and HF.fullmatch(url) is None:
        raise InputError(f"input {shown!r} is no file of the Hub; write it as hf://datasets/owner/name/file.jsonl")
    if parts.path.endswith("/") or not parts.path.strip("/"):
        raise InputError(f"input {shown!r} is no file; give the address of each file")
