"""A local Hub that serves folders as data sets, as the datasets library streams them."""

from __future__ import annotations

import http.server
import json
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support import local_server

_COMMIT = "0123456789012345678901234567890123456789"


@contextmanager
def serving(repositories: Mapping[str, Path | None]) -> Iterator[str]:
    """Serve folders under `org/name`; yield the endpoint. A data set that is None asks for access."""
    with local_server.running(_DataHub, folders=repositories) as endpoint:
        yield endpoint


class _DataHub(http.server.BaseHTTPRequestHandler):
    folders: Mapping[str, Path | None]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urllib.parse.unquote(self.path.partition("?")[0]).strip("/").split("/")
        name, parts = "/".join(parts[parts.index("datasets") + 1 :][:2]), parts[parts.index("datasets") + 3 :]
        folder = self.folders.get(name)
        if name not in self.folders:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif folder is None:
            self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
        elif parts[:1] == ["tree"]:
            self._list(folder, folder.joinpath(*parts[2:]))
        elif parts[:1] == ["resolve"]:
            self._send_file(folder.joinpath(*parts[2:]))
        else:
            self._json({"id": name, "sha": _COMMIT, "private": False, "tags": [], "siblings": _siblings(folder)})

    def do_POST(self) -> None:
        """Answer with what is known of paths."""
        form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        name = "/".join(self.path.split("/")[3:5])
        folder = self.folders[name]
        assert folder is not None
        self._json([_entry(folder, folder / path) for path in form.get("paths", []) if (folder / path).exists()])

    def _list(self, root: Path, folder: Path) -> None:
        if folder.is_dir():
            self._json([_entry(root, path) for path in sorted(folder.iterdir())])
        else:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _send_file(self, file: Path) -> None:
        if not file.is_file():
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        data = file.read_bytes()
        headers = {"ETag": f'"{file.name}"', "X-Repo-Commit": _COMMIT, "Accept-Ranges": "bytes"}
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last) + 1 if last else None]
            stop = int(first) + len(part) - 1
            self._answer(206, part, headers | {"Content-Range": f"bytes {first}-{stop}/{len(data)}"})
        else:
            self._answer(200, data, headers)

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _siblings(folder: Path) -> list[dict[str, str]]:
    return [{"rfilename": path.relative_to(folder).as_posix()} for path in folder.rglob("*") if path.is_file()]


def _entry(root: Path, path: Path) -> dict[str, object]:
    kind = "directory" if path.is_dir() else "file"
    size = {} if path.is_dir() else {"size": path.stat().st_size}
    return {"type": kind, "path": path.relative_to(root).as_posix(), "oid": "0" * 40, **size}
