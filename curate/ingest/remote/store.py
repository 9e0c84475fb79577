"""Where an address is read: a store of obstore, which repeats requests that fail, and the path in it.

Credentials come from the environment: AWS_* and GOOGLE_* as obstore reads them, and HF_TOKEN or `hf auth login`.
"""

from __future__ import annotations

import functools
import os
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from curate._version import __version__
from curate.errors import MissingExtra
from curate.ingest.remote.address import HF, show

RETRIES: dict[str, Any] = {"max_retries": 5, "retry_timeout": timedelta(seconds=45)}
CLIENT = {"allow_http": True, "connect_timeout": "20s", "timeout": "120s", "user_agent": f"curate/{__version__}"}
AWS = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
GOOGLE = ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_KEY")


@functools.lru_cache(maxsize=64)
def open_store(url: str) -> tuple[Any, str]:
    """Return the store of an address, and the path in it; raises MissingExtra."""
    try:
        from obstore.store import HTTPStore, from_url
    except ImportError:
        raise MissingExtra(f"reading {show(url)!r}", "remote") from None
    parts = urlsplit(url)
    if parts.scheme in ("s3", "gs"):
        is_anonymous = not any(map(os.environ.get, AWS if parts.scheme == "s3" else GOOGLE))
        settings: dict[str, Any] = {"skip_signature": True} if is_anonymous else {}
        bucket = f"{parts.scheme}://{parts.netloc}"
        return from_url(bucket, client_options=CLIENT, retry_config=RETRIES, **settings), parts.path.lstrip("/")
    client: dict[str, Any] = dict(CLIENT)
    if parts.scheme == "hf":
        url, headers = _resolve_hf(url)
        client["default_headers"] = headers
    return HTTPStore.from_url(url, client_options=client, retry_config=RETRIES), ""


def _resolve_hf(url: str) -> tuple[str, dict[str, str]]:
    """Return the web address of a file of the Hub, and the headers to ask for it."""
    try:
        from huggingface_hub import get_token, hf_hub_url
    except ImportError:
        raise MissingExtra(f"reading {show(url)!r}", "remote") from None
    match = HF.fullmatch(url)
    assert match is not None
    kind, name, revision, file = match.groups()
    repo_type = kind.rstrip("s/") if kind else "model"
    token = get_token()
    return hf_hub_url(name, file, repo_type=repo_type, revision=revision), (
        {"authorization": f"Bearer {token}"} if token else {}
    )
