"""Enough of the hub's API for its own client: metadata, revisions, files in ranges, faults on demand."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40


@dataclass
class Hub:
    """Repositories by name, each with its files; ``cut``: bytes after which the next files break off."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    cut: int | None = None
    served: list[tuple[str, str]] = field(default_factory=list)
    """Path and range of every GET of a file."""
    patience: int | None = None
    """Files that are answered at all before everything is 503."""
    sent: int = 0
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: Any) -> None:
        return

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._info("/".join(parts[2:4]), with_body)
        elif len(parts) > 4 and parts[2] == "resolve":
            self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), with_body)
        else:
            self._plain(404, b"{}")

    def _info(self, name: str, with_body: bool) -> None:
        if (files := self._files(name)) is None:
            return
        siblings = [_described(file, data) for file, data in files.items()]
        body = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "private": False}
        self._plain(200, json.dumps(body).encode())

    def _files(self, name: str) -> dict[str, bytes] | None:
        if name in self.hub.gated:
            self._plain(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
            return None
        if name not in self.hub.repositories:
            self._plain(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "not found"})
            return None
        return self.hub.repositories[name]

    def _file(self, name: str, revision: str, file: str, with_body: bool) -> None:
        if (files := self._files(name)) is None:
            return
        data = files.get(file)
        if data is None:
            self._plain(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        if self.hub.patience is not None and file.endswith(".safetensors"):
            self.hub.patience -= 1
            if self.hub.patience < 0:
                self._plain(503, b"{}")
                return
        wanted = self.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if not with_body:
            return
        self.hub.served.append((file, wanted))
        body = data[start:]
        if self.hub.cut is not None and len(body) > self.hub.cut:
            self.wfile.write(body[: self.hub.cut])
            self.hub.sent += self.hub.cut
            self.wfile.flush()
            self.connection.shutdown(2)
            self.close_connection = True
            return
        self.wfile.write(body)
        self.hub.sent += len(body)

    def _plain(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _described(file: str, data: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    found: dict[str, Any] = {"rfilename": file, "size": len(data), "blobId": blob}
    if len(data) > 1000:
        sha256 = hashlib.sha256(data).hexdigest()
        found["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
    return found


@contextmanager
def running() -> Iterator[Hub]:
    """A hub on a free port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, name="hub")
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
