"""`curate serve` as a function: check the address, load the models, serve them until a signal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from socket import socket
from typing import Any

from curate.errors import InputError
from curate.model.files import OnMessage
from curate.serving import models as served_models
from curate.serving import server
from curate.serving.access import Access, Address
from curate.serving.app import make_app
from curate.serving.models import Limits, ServedModel


def serve_models(
    models: Sequence[str],
    address: Address,
    *,
    rows: int = 8,
    waiting: int = 256,
    new_tokens: int = 4096,
    template: str | None = None,
    base: str | None = None,
    say: OnMessage,
    **loading: Any,
) -> None:
    """Load models and serve them until SIGINT or SIGTERM; `say` gets a line for each request.

    Raises CurateError with what to type.
    """
    named = served_models.read_names(models)
    if base is not None and len(named) > 1:
        raise InputError("--base is for one adapter; serve each by itself, or leave --base out")
    access = address.access
    with server.bind(address.host, address.port) as bound:
        limits = Limits(rows, waiting, new_tokens)
        loaded = served_models.load(named, limits, template=template, base=base, say=say, **loading)
        _serve(loaded, access, bound, say)


def _serve(loaded: Mapping[str, ServedModel], access: Access, bound: socket, say: OnMessage) -> None:
    def announce() -> None:
        for name, model in loaded.items():
            say(f"{name}: {model.opened.artifact}")
        say(f"serving at {server.url(bound)}/v1{' with a token' if access.token else ''}; Ctrl-C stops")

    try:
        server.make_server(make_app(loaded, access, say), announce).run(sockets=[bound])
    except KeyboardInterrupt:
        say("stopped")
    finally:
        for model in loaded.values():
            model.worker.stop()
