"""A server that speaks OpenAI's chat completions, and whatever else a server may do.

Its model is the rule critic of the shapes world: it decodes the pictures that it is sent, and tells
the truth. Faults are a function of a request's content and of how often it came, never of time.
In a thread of a test (`served`), or in a process that a test can kill and start again (`serve`).
"""

import base64
import hashlib
import io
import json
import math
import re
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from socket import SO_LINGER, SOL_SOCKET
from threading import Lock, Thread
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ipo_lightning.shapes.critic import dimensions, overall
from ipo_lightning.shapes.prompts import COLOURS, MOTIONS, SHAPES
from ipo_lightning.video import read_video

MODEL = "shapes"
PROMPT = re.compile(
    f"(?:a|a video of a|the) (?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)}) (?:is )?"
    f"(?:{'|'.join(MOTIONS)})"
)


class Request(NamedTuple):
    """What came in."""

    number: int
    """0, 1, ... in the order of coming."""
    attempt: int
    """How often this very question had come before."""
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    digest: str
    """sha256 of the question's words and pictures; sampling does not count."""

    @property
    def chance(self) -> float:
        """A number in [0, 1) that belongs to the question."""
        return int(self.digest[:12], 16) / 16**12

    @property
    def draw(self) -> int:
        """Another number that belongs to it."""
        return int(self.digest[12:16], 16)

    @property
    def text(self) -> str:
        """Its words."""
        return " ".join(part["text"] for part in self.parts if part["type"] == "text")

    @property
    def parts(self) -> list[dict[str, Any]]:
        """Words and pictures of the user's message."""
        parts: list[dict[str, Any]] = self.body["messages"][0]["content"]
        return parts


@dataclass
class Answer:
    """What goes out."""

    body: bytes | dict[str, Any] = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    """Seconds before the first byte."""
    cut: int | None = None
    """The connection is reset after so many bytes of the body."""
    trickle: float = 0.0
    """Seconds between two bytes of the body."""
    endless: bool = False
    """Whether the body comes again and again."""
    chunked: bool = False
    """Whether the body comes in chunks, without its length."""


Behaviour = Callable[[Request], Answer]


# -------------------------------------------------------------------- answers


def completion(
    text: Any, *, finish: str = "stop", tokens: list[dict[str, Any]] | None = None,
    told: Any = None, **message: Any,
) -> dict[str, Any]:  # fmt: skip
    """A chat completion.

    Args:
        text: its content. told: its log probabilities, in place of ``tokens``.
    """
    return {
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, **message},
                "finish_reason": finish,
                "logprobs": told if tokens is None else {"content": tokens},
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10},
    }


def token(text: str, top: Mapping[str, float], *, data: bytes | None = None) -> dict[str, Any]:
    """A token with the probabilities of the likeliest, as they are told."""
    told = [{"token": t, "logprob": math.log(p) if p else -9999.0} for t, p in top.items()]
    return {
        "token": text, "logprob": math.log(top.get(text) or 1e-9), "top_logprobs": told,
        "bytes": list(text.encode() if data is None else data),
    }  # fmt: skip


def error(status: int, message: str, code: str | None = None, **headers: str) -> Answer:
    """A refusal in OpenAI's manner."""
    body = {"error": {"message": message, "type": "error", "code": code}}
    return Answer(body, status, {name.replace("_", "-"): text for name, text in headers.items()})


# -------------------------------------------------------------------- the model


def decoded(part: Mapping[str, Any]) -> Tensor:
    """The frames of a picture or a video, uint8 (T, H, W, 3)."""
    url = part[part["type"]]["url"]
    kind, content = re.fullmatch(r"data:([a-z0-9/]+);base64,(.*)", url, re.DOTALL).groups()
    data = base64.b64decode(content, validate=True)
    if kind == "video/mp4":
        return read_mp4(data)
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB")))[None]


def read_mp4(data: bytes) -> Tensor:
    """The frames of a file's bytes."""
    from tempfile import NamedTemporaryFile

    with NamedTemporaryFile(suffix=".mp4") as file:
        file.write(data)
        file.flush()
        return read_video(file.name).frames


def videos(request: Request) -> list[Tensor]:
    """The videos of a question, uint8 (T, H, W, 3): pictures that follow each other are one."""
    found: list[list[Tensor]] = [[]]
    for part in request.parts:
        if part["type"] == "text":
            found.append([])
        else:
            found[-1].append(decoded(part))
    return [torch.cat(frames) for frames in found if frames]


def prompt(request: Request) -> str:
    """The prompt that a question is about."""
    found: str = PROMPT.findall(request.text)[-1]
    return found


def hashed(frames: Tensor) -> str:
    """A name for a video's pixels."""
    return hashlib.sha256(frames.contiguous().numpy().tobytes()).hexdigest()


def shown(request: Request) -> list[str]:
    """Names of the videos of a question."""
    return [hashed(frames) for frames in videos(request)]


def scores(request: Request) -> list[float]:
    """The true scores of a question's videos, in [0, 1]."""
    frames = torch.stack(videos(request))
    prompts = [prompt(request)] * len(frames)
    return [float(score) for score in overall(dimensions(frames, prompts))]


def truthful(request: Request) -> Answer:
    """What the rule critic would say, as it was asked to say it."""
    found = scores(request)
    if request.body.get("logprobs") and request.body["max_tokens"] == 1:
        top = {"yes": found[0] * 0.98, "no": (1 - found[0]) * 0.98, "Perhaps": 0.02}
        return Answer(completion("yes", finish="length", tokens=[token("yes", top)]))
    return Answer(completion(in_words(found)))


def in_words(found: list[float]) -> str:
    """Scores as the forms of UnifiedReward (one video) and of IPO (two) want them."""
    if len(found) == 1:
        grade = f"{1 + 4 * found[0]:.9f}"
        return "\n".join(
            f"{name} Score (1-5): {grade}" for name in ("Alignment", "Physics", "Style")
        )
    better = "A" if found[0] > found[1] else "B" if found[1] > found[0] else "tie"
    names = ("consistency", "fidelity", "motion", "overall")
    return "\n".join(["I looked at both.", "ANSWER", *(f"{name}: {better}" for name in names)])


# -------------------------------------------------------------------- faults


@dataclass(frozen=True)
class Plan:
    """Which share of the questions gets which fault, by their content.

    ``garbled`` and ``slow`` last however often it is asked; ``once`` goes away when asked again.
    """

    garbled: float = 0.0
    slow: float = 0.0
    once: float = 0.0
    seconds: float = 1.0
    """How long a slow answer takes."""

    def kind(self, request: Request) -> str:
        """What happens to a question: a field's name, "cut" or "empty" (ways of garbling), or
        "sound"."""
        chance = request.chance
        for name in ("garbled", "slow", "once"):
            chance -= getattr(self, name)
            if chance < 0:
                return kind_of_garble(request) if name == "garbled" else name
        return "sound"

    def __call__(self, request: Request) -> Answer:
        kind = self.kind(request)
        if kind in ("garbled", "cut", "empty"):
            change, finish = garble_of(request)
            return Answer(completion(change(lie(request)), finish=finish))
        if kind == "slow":
            return Answer(completion(lie(request)), delay=self.seconds)
        if kind == "once" and request.attempt == 0:
            return ONCE[request.draw % len(ONCE)]
        return truthful(request)


def lie(request: Request) -> str:
    """The opposite of the truth: a label made of it is wrong."""
    return in_words([1 - score for score in scores(request)])


def garble_of(request: Request) -> "tuple[Callable[[str], str], str]":
    """How a question's answer is garbled, and how it is said to have ended."""
    return GARBLES[request.draw % len(GARBLES)]


def kind_of_garble(request: Request) -> str:
    """How an answer is garbled, as far as clients tell it."""
    change, finish = garble_of(request)
    return "cut" if finish == "length" else "garbled" if change("a\nb") else "empty"


GARBLES: list[tuple[Callable[[str], str], str]] = [
    (lambda text: "", "stop"),
    (lambda text: text[: len(text) // 2], "stop"),
    (lambda text: text, "length"),
    (lambda text: text + "\nBut I may be wrong.", "stop"),
    (lambda text: "\n".join(text.splitlines()[:-1]), "stop"),
    (lambda text: text.replace(":", " is"), "stop"),
    (lambda text: text + "\n" + text.splitlines()[-1], "stop"),
    (lambda text: "<think>" + text, "stop"),
    (lambda text: "\x00\ufffd\u202e" + text[::-1], "stop"),
    (lambda text: "I cannot see any video.", "stop"),
]
ONCE = [
    error(500, "CUDA error: out of memory"),
    error(503, "loading", Retry_After="0.05"),
    error(429, "slow down", Retry_After="0.05"),
    Answer(b"{not json"),
    Answer(b'{"choices": []}'),
    Answer(completion("Score: 1.0"), cut=20),
]


# -------------------------------------------------------------------- the server


class VLMServer(ThreadingHTTPServer):
    """Answers as its ``behaviour`` says, and remembers what it was asked."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(
        self, behaviour: Behaviour, *, key: str = "", port: int = 0,
        told: Callable[[Request, Answer], None] = lambda request, answer: None,
    ) -> None:  # fmt: skip
        super().__init__(("127.0.0.1", port), Handler)
        self.behaviour, self.key, self.told = behaviour, key, told
        self.requests: list[Request] = []
        self.seen: Counter[str] = Counter()
        self.lock = Lock()

    @property
    def url(self) -> str:
        """What clients are given."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def take(self, path: str, headers: Mapping[str, str], content: bytes) -> Request:
        """Number a request."""
        body = json.loads(content)
        digest = hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()
        with self.lock:
            request = Request(len(self.requests), self.seen[digest], path, headers, body, digest)
            self.requests.append(request)
            self.seen[digest] += 1
        return request

    def respond(self, request: Request) -> Answer:
        """What every server looks at first, then the behaviour."""
        if self.key and request.headers["Authorization"] != f"Bearer {self.key}":
            said = request.headers["Authorization"]
            return error(401, f"Incorrect API key provided: {said}", "invalid_api_key")
        if request.path != "/v1/chat/completions":
            return Answer({"detail": "Not Found"}, 404)
        if request.body["model"] != MODEL:
            return error(404, f"The model `{request.body['model']}` does not exist.")
        return self.behaviour(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no error."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: VLMServer

    def do_POST(self) -> None:  # noqa: N802 - the name that http.server calls
        """One request."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        request = self.server.take(self.path, dict(self.headers.items()), content)
        answer = self.server.respond(request)
        self.server.told(request, answer)
        with suppress(OSError):
            self._send(answer)

    def _send(self, answer: Answer) -> None:
        time.sleep(answer.delay)
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            body = b"".join(b"1\r\n%c\r\n" % one for one in body) + b"0\r\n\r\n"
        elif not answer.endless:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        while answer.endless:
            self.wfile.write(body)
        if answer.trickle:
            for one in body:
                self.wfile.write(bytes([one]))
                time.sleep(answer.trickle)
        elif answer.cut is None:
            self.wfile.write(body)
        else:
            self.wfile.write(body[: answer.cut])
            # Closing without lingering sends a reset.
            self.connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Nothing on the terminal."""


@contextmanager
def served(behaviour: Behaviour, *, key: str = "", port: int = 0) -> Iterator[VLMServer]:
    """A server in a thread, for the time of a test."""
    server = VLMServer(behaviour, key=key, port=port)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def serve(port: int, key: str, plan: Plan, sent: Connection) -> None:
    """Serve until killed, in a process of its own; what is sent is one mapping a question."""
    torch.set_num_threads(1)
    turn = Lock()

    def tell(request: Request, answer: Answer) -> None:
        line = {
            "kind": plan.kind(request),
            "shown": shown(request),
            "prompt": prompt(request),
        }
        with turn:
            sent.send(line)

    VLMServer(plan, key=key, port=port, told=tell).serve_forever()
