"""A local Hub that serves folders as repositories, some of them gated."""

from __future__ import annotations

import base64
import http.server
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import local_server

NOWHERE = "http://127.0.0.1:1"
GATED = None
_COMMIT = "0123456789012345678901234567890123456789"


@contextmanager
def serving(repositories: Mapping[str, Path | None]) -> Iterator[str]:
    """Serve folders under `org/name`; yield the endpoint. A repository that is `GATED` asks for access."""
    with local_server.running(_Hub, folders=repositories) as endpoint:
        yield endpoint


def point(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Make huggingface_hub use this endpoint."""
    constants = "huggingface_hub.constants"
    monkeypatch.setattr(f"{constants}.ENDPOINT", endpoint)
    monkeypatch.setattr(
        f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )


@contextmanager
def receiving(folder: Path) -> Iterator[str]:
    """Accept data sets into folders below this one, as the Hub does; yield the endpoint."""
    with local_server.running(_Receiver, folder=folder) as endpoint:
        yield endpoint


class _Receiver(http.server.BaseHTTPRequestHandler):
    folder: Path

    def do_GET(self) -> None:
        repository = self.folder / "/".join(self.path.partition("?")[0].split("/")[3:5])
        if not repository.is_dir():
            self._answer(404, {"error": "no such data set"})
            return
        paths = [path for path in repository.rglob("*") if path.is_file()]
        names = {str(path.relative_to(repository)): path.stat().st_size for path in paths}
        tree = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in names.items()]
        info = {"id": repository.name, "sha": _COMMIT, "private": True, "siblings": []}
        self._answer(200, tree if "/tree/" in self.path else info)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/api/repos/create"):
            self._create(json.loads(body))
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif "/commit/" in self.path:
            self._commit([json.loads(line) for line in body.splitlines()])
        else:  # a check of the card's settings
            self._answer(200, {"warnings": [], "errors": []})

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] == "closed":
            self._answer(401, {"error": "Invalid username or password."})
            return
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / f"{wanted['name']}.created.json").write_text(json.dumps(wanted))
        self._answer(200, {"url": f"http://{self.headers['Host']}/datasets/{name}", "name": name})

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        repository = self.folder / "/".join(self.path.split("/")[3:5])
        for line in lines:
            path = repository / line["value"].get("path", "")
            if line["key"] == "file":
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(line["value"]["content"]))
            elif line["key"] == "deletedFile":
                path.unlink()
        url = f"https://huggingface.co/datasets/me/x/commit/{_COMMIT}"
        self._answer(200, {"success": True, "commitOid": _COMMIT, "commitUrl": url})

    def _answer(self, status: int, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class _Hub(http.server.BaseHTTPRequestHandler):
    folders: Mapping[str, Path | None]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        listing = parts[:2] == ["api", "models"]
        parts = parts[2:] if listing else parts
        name = "/".join(parts[:2])
        folder = self.folders.get(name)
        if name not in self.folders:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif listing:
            self._list(name, folder, "tree" in parts)
        elif folder is None:
            self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
        elif (folder / parts[-1]).is_file():
            file = folder / parts[-1]
            self._answer(200, file.read_bytes(), {"X-Repo-Commit": _COMMIT, "ETag": f'"{file.name}"'})
        else:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _list(self, name: str, folder: Path | None, tree: bool) -> None:
        names = ["config.json", "tokenizer.model"] if folder is None else sorted(path.name for path in folder.iterdir())
        sizes = {file_name: (folder / file_name).stat().st_size if folder else 3 for file_name in names}
        entries: Any = [
            {"type": "file", "path": file_name, "size": size, "oid": "0" * 40} for file_name, size in sizes.items()
        ]
        repository = {"id": name, "sha": _COMMIT, "siblings": [{"rfilename": file_name} for file_name in names]}
        self._answer(200, json.dumps(entries if tree else repository).encode())

    def _answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
