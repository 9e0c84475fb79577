"""Ratings of answers in an export's message_feedback.json: beside the chats, and needed before them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from curate.ingest.containers.zip_members import member_head
from curate.ingest.sources import Source

FILE = "message_feedback.json"
MAX_BYTES = 64 << 20
RATINGS = {"thumbs_up": True, "thumbsUp": True, "thumbs_down": False, "thumbsDown": False}


def read_ratings(sources: Iterable[Source]) -> dict[str, bool]:
    """Return whether each rated message was rated up, by its id; a file that is damaged rates none."""
    ratings: dict[str, bool] = {}
    for source in sources:
        if source.name.rpartition("/")[2] == FILE:
            for entry in _entries(source):
                rating = RATINGS.get(str(entry.get("rating")))
                if rating is not None:
                    ratings[str(entry.get("message_id") or entry.get("id"))] = rating
    return ratings


def _entries(source: Source) -> list[dict[str, object]]:
    try:
        return msgspec.json.decode(_read(source), type=list[dict[str, object]])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []


def _read(source: Source) -> bytes:
    if source.path is None:
        return b""
    if source.member is not None and source.local is not None:
        return member_head(source.local, source.member, MAX_BYTES)
    with source.path.open("rb") as file:
        return file.read(MAX_BYTES)
