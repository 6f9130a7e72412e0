"""A server with OpenAI's video endpoint whose model is a policy of this project.

Jobs are made at once; a job is told of as queued, in progress and completed. Faults are a function
of how many requests came.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

Json = dict[str, Any]
STATUSES = ("queued", "in_progress", "completed")


class VideoJobs:
    """What the server does.

    Args:
        make: gives the mp4 file of a request's fields.
        spoil: gives a status to answer a request with in place of the truth, by its number, method
            and path; 0: the truth.
    """

    def __init__(
        self,
        make: Callable[[Json], bytes],
        spoil: Callable[[int, str, str], int] = lambda number, method, path: 0,
    ) -> None:
        self.make, self.spoil, self.lock = make, spoil, Lock()
        self.requests: list[tuple[str, str]] = []
        self.fields: list[Json] = []
        """Of the videos that were asked for."""
        self.loaded: list[Json] = []
        """What was posted to ``/load``."""
        self.jobs: dict[str, dict[str, Any]] = {}

    def answer(self, method: str, path: str, kind: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of a response."""
        with self.lock:
            number = len(self.requests)
            self.requests.append((method, path))
        if status := self.spoil(number, method, path):
            return status, b'{"error": {"message": "as planned"}}'
        if path == "/load":
            self.loaded.append(json.loads(body))
            return 200, b"{}"
        if (method, path) == ("POST", "/v1/videos"):
            return self._create(fields_of(kind, body))
        name, _, rest = path.removeprefix("/v1/videos/").partition("/")
        if name not in self.jobs:
            return 404, b'{"detail": "Video not found"}'
        if method == "DELETE":
            return 200, json.dumps({"id": name, "deleted": bool(self.jobs.pop(name))}).encode()
        job = self.jobs[name]
        if rest == "content":
            return 200, job["file"]
        job["looks"] += 1
        return 200, self._told(name)

    def _create(self, fields: Json) -> tuple[int, bytes]:
        with self.lock:
            self.fields.append(fields)
            name = f"video_{len(self.fields)}"
            self.jobs[name] = {"file": self.make(fields), "looks": 0}
        return 200, self._told(name)

    def _told(self, name: str) -> bytes:
        status = STATUSES[min(self.jobs[name]["looks"], 2)]
        return json.dumps({"id": name, "object": "video", "status": status}).encode()


def fields_of(kind: str, body: bytes) -> Json:
    """The fields of a JSON or multipart request; those of forms are texts."""
    if kind == "application/json":
        return dict(json.loads(body))
    message = message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
    found: Json = {}
    for part in message.get_payload():
        name = re.search('name="([^"]+)"', part["Content-Disposition"]).group(1)
        found[name] = part.get_payload(decode=True).decode()
    return found


@contextmanager
def serving(jobs: VideoJobs) -> Iterator[str]:
    """The server in a thread; gives the address up to ``/v1``."""

    class Handler(BaseHTTPRequestHandler):
        def handle_one(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            kind = self.headers.get("Content-Type", "")
            status, body = jobs.answer(self.command, self.path, kind, self.rfile.read(length))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = handle_one

        def log_message(self, *arguments: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
