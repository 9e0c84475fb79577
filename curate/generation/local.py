"""Serve a local model within this process, for the length of a run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from curate.errors import CurateError, MissingExtra
from curate.model.files import OnMessage
from curate.model.serving import Serving


@dataclass(frozen=True)
class Local:
    """A served model: the URL, its name there, and its prompt format."""

    url: str
    name: str
    serving: Serving


@contextmanager
def serving(model: str, *, rows: int, new_tokens: int, dtype: str, device: str, say: OnMessage) -> Iterator[Local]:
    """Load a model and serve it on a free port of this machine; `rows` are answered together.

    Raises CurateError where the model cannot be loaded, MissingExtra without the packages that this needs.
    """
    try:
        from curate.serving import models as served_models
        from curate.serving import server
        from curate.serving.access import Access
        from curate.serving.app import make_app
        from curate.serving.models import Limits
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        raise MissingExtra(
            "a local model", "serve" if missing in ("starlette", "uvicorn", "h11") else "train"
        ) from error
    limits = Limits(rows, waiting=512, new_tokens=new_tokens)
    name = served_models.default_name(model)
    loaded = served_models.load({name: model}, limits, template=None, base=None, say=say, dtype=dtype, device=device)
    bound, ready = server.bind("127.0.0.1", 0), threading.Event()
    running = server.make_server(make_app(loaded, Access(), lambda line: None), ready.set)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        if not ready.wait(60):
            raise CurateError("the local model's server did not start within 60 seconds")
        yield Local(server.url(bound), name, loaded[name].opened.serving)
    finally:
        running.should_exit = running.force_exit = True
        thread.join(30)
        bound.close()
        for each in loaded.values():
            each.worker.stop()
