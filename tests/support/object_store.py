"""Object storage for tests: the part of S3's protocol that obstore uses, with the faults that real ones have."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.local_server import running


@dataclass
class Bucket:
    """The objects by `/bucket/key`; `done` has what was put and deleted, `read` the objects whose bytes were sent."""

    objects: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    read: list[str] = field(default_factory=list)
    puts_left: int | None = None  # until writing is denied
    opaque: bool = False  # ETags are no MD5s
    alters: bool = False  # what is put is stored with a changed byte
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    endpoint: str = ""

    def store(self, name: str, data: bytes, tag: str) -> None:
        """Keep an object."""
        if self.alters:
            data, tag = data[:-1] + b"?", "of the altered bytes"
        self.objects[name] = data
        self.tags[name] = "opaque" if self.opaque else tag
        self.done.append(f"PUT {name}")


class Handler(BaseHTTPRequestHandler):
    """Answers GET, HEAD, PUT and POST, which begins and ends uploads in parts, and deletes."""

    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        name, query = unquote(url.path), parse_qs(url.query)
        if "list-type" in query:
            self._list(f"{name.rstrip('/')}/", query.get("prefix", [""])[0])
            return
        data = self.bucket.objects.get(name)
        if data is None:
            self._answer(404)
            return
        tag = f'"{self.bucket.tags.get(name, "first")}"'
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if self.command == "GET":
            self.bucket.read.append(name)
        if match and data:
            start, stop = int(match[1]), min(int(match[2]) + 1, len(data))
            self._answer(206, data[start:stop], ETag=tag, **{"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})
        else:
            self._answer(200, data, ETag=tag)

    do_HEAD = do_GET

    def _list(self, root: str, prefix: str) -> None:
        found = [name.removeprefix(root) for name in sorted(self.bucket.objects) if name.startswith(root + prefix)]
        folders = {name[: name.index("/", len(prefix)) + 1] for name in found if "/" in name[len(prefix) :]}
        when = "2026-12-01T00:00:00.000Z"
        entries = "".join(
            f"<Contents><Key>{name}</Key><Size>1</Size><LastModified>{when}</LastModified></Contents>"
            for name in found
            if "/" not in name[len(prefix) :]
        )
        entries += "".join(f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>" for name in sorted(folders))
        self._answer(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode())

    def do_PUT(self) -> None:
        url = urlsplit(self.path)
        name, query = unquote(url.path), parse_qs(url.query)
        data = self.rfile.read(int(self.headers["Content-Length"]))
        bucket, tag = self.bucket, hashlib.md5(data).hexdigest()
        if bucket.puts_left == 0:
            self._answer(403)
            return
        if bucket.puts_left is not None:
            bucket.puts_left -= 1
        if "partNumber" in query:
            bucket.parts[name, int(query["partNumber"][0])] = data
        else:
            bucket.store(name, data, tag)
        self._answer(200, ETag=f'"{tag}"')

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        name = unquote(url.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        if "delete" in url.query:
            self._delete(name.rstrip("/"), re.findall("<Key>(.*?)</Key>", body))
            return
        if "uploads" in url.query:
            self._answer(
                200, b"<InitiateMultipartUploadResult><UploadId>one</UploadId></InitiateMultipartUploadResult>"
            )
            return
        parts = [data for (own, _), data in sorted(self.bucket.parts.items()) if own == name]
        digest = hashlib.md5(b"".join(hashlib.md5(part).digest() for part in parts)).hexdigest()
        self.bucket.store(name, b"".join(parts), f"{digest}-{len(parts)}")
        result = f"<CompleteMultipartUploadResult><ETag>{digest}-{len(parts)}</ETag></CompleteMultipartUploadResult>"
        self._answer(200, result.encode())

    def _delete(self, bucket_name: str, keys: Sequence[str]) -> None:
        names = [f"{bucket_name}/{key}" for key in keys]
        self.bucket.done += [f"DELETE {name}" for name in names if self.bucket.objects.pop(name, None) is not None]
        entries = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        self._answer(200, f"<DeleteResult>{entries}</DeleteResult>".encode())

    def _answer(self, code: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Last-Modified", "Tue, 01 Dec 2026 00:00:00 GMT")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def object_store() -> Iterator[Bucket]:
    """Serve objects; the names are `/bucket/key`."""
    bucket = Bucket()
    with running(Handler, bucket=bucket) as endpoint:
        bucket.endpoint = endpoint
        yield bucket
