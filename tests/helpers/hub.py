"""A stand-in for a model hub, on this machine: as much of one as an upload of small files asks, or
whoever reads a repository's files."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session, constants


class Hub(ThreadingHTTPServer):
    """The server, and what it was asked: path, headers and body of each request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.status = 200
        self.files: Path | None = None
        """A folder that every repository of the hub holds."""
        self.sent: list[str] = []
        """The files that were downloaded."""

    @property
    def address(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        """Keep what is asked, and agree."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.path, dict(self.headers), body))
        address = f"{self.server.address}/me/model"
        answer: dict[str, Any] = {"url": address}
        if "preupload" in self.path:
            modes = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for one in json.loads(body)["files"]]  # fmt: skip
            answer = {"files": modes}
        if "commit" in self.path:
            answer = {"success": True, "commitOid": "0" * 40, "commitUrl": f"{address}/commit/0"}
        content = json.dumps(answer).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        """A file of a repository; else as `do_POST`."""
        if "/resolve/" in self.path:
            self._file(body=True)
        elif self.server.files:
            self.send_error(404)
        else:
            self.do_POST()

    def do_HEAD(self) -> None:
        """What a file is."""
        self._file(body=False)

    def _file(self, body: bool) -> None:
        name = self.path.rpartition("/")[2]
        file = self.server.files / name if self.server.files else None
        there = file is not None and file.is_file()
        content = file.read_bytes() if file is not None and there else b""
        self.send_response(200 if there else 404)
        if not there:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("X-Repo-Commit", "1" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.server.sent.append(name)
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def hub_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that huggingface_hub of this process asks, with a token; no other network is used."""
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in [key for key in os.environ if key.upper().endswith("_PROXY")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    close_session()
    try:
        yield server
    finally:
        close_session()
        server.shutdown()
        server.server_close()
