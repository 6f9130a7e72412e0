"""A stand-in for a model hub, on this machine: as much of one as an upload of small files asks."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from huggingface_hub import close_session, constants


class Hub(ThreadingHTTPServer):
    """The server, and what it was asked: path, headers and body of each request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.status = 200

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

    do_GET = do_POST

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
