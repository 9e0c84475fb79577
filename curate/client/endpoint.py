"""The address of an OpenAI-compatible server, and the key that it gets."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from curate.errors import InputError

SHORTEST_SECRET = 8  # letters; a shorter key, such as "EMPTY", is none, and may be any word of a text
HIDDEN = "[key]"  # in place of the key, where a server repeats it
LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Endpoint:
    """A server's address, with the path under which its API lies, and the key, which is never shown."""

    url: str
    key: str | None = field(default=None, repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of each request."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine, and so charges nothing."""
        return urlsplit(self.url).hostname in LOCAL

    @property
    def sends_key_in_clear(self) -> bool:
        """Whether the key goes over a network without encryption."""
        return bool(self.key) and self.url.startswith("http:") and not self.is_local

    def hide_key(self, value: Any) -> Any:
        """Return JSON values without the key, wherever a server repeated it."""
        if not self.key or len(self.key) < SHORTEST_SECRET:
            return value
        text, key = json.dumps(value, ensure_ascii=False), json.dumps(self.key, ensure_ascii=False)[1:-1]
        return json.loads(text.replace(key, HIDDEN)) if key in text else value


def make_endpoint(url: str, key: str | None = None) -> Endpoint:
    """Return the endpoint of a URL; without a path, `/v1` is added.

    Raises InputError for what is no address of a server, and for a key within it.
    """
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known or not url.isascii() or not url.isprintable() or " " in url:
        raise InputError(f"{url!r} is not the address of a server; give one such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError("the address of the server holds a user, a key or a query; keys are read from the environment")
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise InputError("the key in the environment has blanks, or letters beyond ASCII")
    path = parts.path.rstrip("/") or "/v1"
    return Endpoint(f"{parts.scheme}://{parts.netloc}{path}", key)
