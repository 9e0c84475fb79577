"""An HTTP server on this machine, for tests."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def running(handler: type[http.server.BaseHTTPRequestHandler], **attributes: object) -> Iterator[str]:
    """Answer requests with a handler that has these attributes, in a thread; yield the endpoint."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type(handler.__name__, (handler,), attributes))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
