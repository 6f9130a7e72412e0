"""Calls of a server that may be slow, busy, broken or away: JSON over HTTP, several at a time.

A question ends with an answer or with a `Fault`. The run stops only where no later question could
succeed: a refused key or request (`InputError`), a server that stays away, or a budget that is used
up (`CriticGone`).
"""

import asyncio
import functools
import hashlib
import http.client
import json
import logging
import re
import ssl
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx2

from ipo_lightning.critics.pretrained.http_errors import (
    AskAgain,
    Away,
    Complaint,
    complaint,
    complaint_in,
    error_within,
    network_errors,
    retry_after,
    status_of,
    whole_body,
)
from ipo_lightning.critics.protocols import CriticGone
from ipo_lightning.critics.vlm.client import Fault
from ipo_lightning.critics.vlm.server import Server
from ipo_lightning.errors import InputError
from ipo_lightning.storage.store import canonical

T = TypeVar("T")
Read = Callable[[Mapping[str, Any]], T | Fault]
"""Gets the answer out of a response's JSON; an error of `UNREADABLE` means that it is malformed,
`AskAgain` that another attempt may bring one."""

_log = logging.getLogger(__name__)

UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading a malformed response raises."""

LONGEST_PAUSE = 60.0  # seconds between two attempts, unless the server asks for more
CONNECT_AGAIN = 0.05, 5.0  # seconds between attempts to reach a server that is away: least, most

ASK_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}
"""Statuses that mean "later": the request's own time-outs, limits, gateways (also Cloudflare's)."""
FILTERED = {"content_filter", "content_policy_violation", "data_inspection_failed"}
"""Error codes of hosts that filter what they are sent: about one question, not about all."""
TOO_LONG = re.compile(r"context[ _](?:length|window)|maximum model length", re.IGNORECASE)
"""In a refusal: this question is longer than the model reads; others may not be."""
OUT_OF_CREDIT = {"insufficient_quota", "billing_hard_limit_reached"}
ADVICE = {
    401: "check the key",
    402: "the account has no credit left",
    403: "check the key, and what it may do",
    404: "check model and base_url, which mostly ends with /v1",
    405: "check base_url, which mostly ends with /v1",
    413: "show fewer or smaller frames (viewing), or let the server take larger requests",
}
OTHER_ADVICE = "one of the settings is not for this server (video, viewing, top_logprobs, extra)"


def ask(
    server: Server, path: str, payloads: Sequence[Mapping[str, Any]], read: Read[T]
) -> list[T | Fault]:
    """Send questions to a server, several at a time.

    Args:
        path: after ``base_url``: ``/chat/completions``.
        payloads: plain JSON.
        read: gets an answer out of a response.

    Returns:
        One answer a payload, in order; a fault where there is none.

    Raises:
        InputError: the server refuses the key, the model or the kind of request.
        CriticGone: it has been away for longer than ``patience``, or the budget is used up.
    """
    server.grant(len(payloads))
    return _run(_ask_all(server, server.base_url + path, payloads, read))


async def _ask_all(
    server: Server, url: str, payloads: Sequence[Mapping[str, Any]], read: Read[T]
) -> list[T | Fault]:
    free = asyncio.Semaphore(server.concurrency)
    async with _client(server) as client:
        call = _Call(server, client, url, read, _Absence(server))

        async def one(payload: Mapping[str, Any]) -> T | Fault:
            async with free:  # bytes are made late: they hold all the videos
                return await call.ask(canonical(payload))

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(payload)) for payload in payloads]
        except ExceptionGroup as several:  # the first ended the call, and the others with it
            raise several.exceptions[0] from several.exceptions[0].__cause__
    return [task.result() for task in tasks]


def _client(server: Server) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        timeout=httpx2.Timeout(None, connect=server.connect_timeout),
        limits=httpx2.Limits(max_connections=server.concurrency),
        follow_redirects=False,
        trust_env=not server.local,  # proxies; this machine needs none
        verify=_certificates(not server.local),
    )


@functools.cache
def _certificates(trust_env: bool) -> ssl.SSLContext:
    """The authorities that are trusted, as httpx2 has them: reading them takes 20 ms."""
    return httpx2.create_ssl_context(trust_env=trust_env)


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also where a loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1, "server") as pool:
        return pool.submit(asyncio.run, work).result()


class _Absence:
    """The time for which a server has been away, of all requests of a call."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.since: float | None = None
        """On the monotonic clock; None: the server is there."""

    def over(self) -> None:
        """The server has answered."""
        self.since = None

    async def wait(self, away: Away) -> None:
        """Wait before the next attempt to connect.

        Raises:
            CriticGone: the server has been away for longer than ``patience``.
        """
        now, patience = time.monotonic(), self.server.patience
        if self.since is None:
            self.since = now
            _log.warning("%s; waiting for it, up to %g s", away, patience)
        gone = now - self.since
        if gone >= patience:
            raise CriticGone(f"{away}, for {patience:g} s now (patience): start the server again")
        await asyncio.sleep(min(max(gone / 4, CONNECT_AGAIN[0]), CONNECT_AGAIN[1], patience - gone))


@dataclass(frozen=True)
class _Call(Generic[T]):
    """The requests of one call: what they share, and what is done about each response."""

    server: Server
    client: httpx2.AsyncClient
    url: str
    read: Read[T]
    absence: _Absence

    async def ask(self, content: bytes) -> T | Fault:
        """Send a question until it has an answer, or retrying is of no use."""
        spent = self.server.spent
        repetitions = 0
        spent.requests += 1
        while True:
            try:
                answer = await self._attempt(content)
                break
            except Away as away:
                await self.absence.wait(away)
            except AskAgain as failure:
                if repetitions == self.server.retries or not self.server.affords(1):
                    answer = Fault(failure.reason, transient=True)
                    break
                spent.retries[failure.reason] += 1
                spent.requests += 1
                spent.granted += 1
                await asyncio.sleep(pause_before(self.server, failure, content, repetitions))
                repetitions += 1
        if isinstance(answer, Fault):
            spent.faults[answer.reason] += 1
        else:
            spent.answers += 1
        return answer

    async def _attempt(self, content: bytes) -> T | Fault:
        started, key = time.monotonic(), self.server.key
        try:
            with network_errors(self.server.base_url):
                async with (
                    asyncio.timeout(self.server.timeout),
                    self.client.stream(
                        "POST", self.url, content=content, headers=key.headers()
                    ) as response,
                ):
                    body = key.removed_from(await whole_body(response))
        finally:
            self.server.spent.seconds += time.monotonic() - started
        self.absence.over()
        if response.is_success:
            return self._answer(response, body)
        reason = self.server.key.cleaned(response.reason_phrase)
        return self._refused(response, response.status_code, reason, complaint_in(body))

    def _answer(self, response: httpx2.Response, body: bytes) -> T | Fault:
        """The answer in a response that claims success, which may tell of an error nevertheless."""
        try:
            answered = json.loads(body)
            error = error_within(answered)
            if error is None:
                self._count(answered.get("usage"))
                return self.read(answered)
        except InputError:
            raise
        except UNREADABLE as unread:
            raise AskAgain("malformed response") from unread
        said = complaint(error)
        status = status_of(said)
        if not status:
            _log.warning("%s: %s", self.server.base_url, self.server.key.cleaned(str(error)))
            raise AskAgain("error of unknown kind", _wait(response, said))
        return self._refused(response, status, http.client.responses.get(status, ""), said)

    def _count(self, usage: Any) -> None:
        """Add the tokens that a server has counted; one that counts oddly has not."""
        told = usage if isinstance(usage, Mapping) else {}
        for name in ("prompt_tokens", "completion_tokens"):
            tokens = told.get(name)
            if isinstance(tokens, int | float) and 0 <= tokens < 2**53:
                setattr(self.server.spent, name, getattr(self.server.spent, name) + int(tokens))

    def _refused(
        self, response: httpx2.Response, status: int, reason: str, error: Complaint
    ) -> Fault:
        """The fault that a response without an answer means.

        Args:
            status: that of the response, or that of an error within it. reason: the status's name.

        Raises:
            AskAgain: a later attempt may succeed.
            CriticGone: the account has no credit left.
            InputError: the server would refuse every question.
        """
        key, codes = self.server.key, set(error.codes)
        said = f"{self.server.base_url}: {status} {reason}".rstrip()
        said += f" ({key.cleaned(error.message)})" if error.message else ""
        if codes & OUT_OF_CREDIT or status == 402:
            raise CriticGone(f"{said}; {ADVICE[402]}")
        if status in ASK_AGAIN:
            short = {408: "timeout", 429: "too many requests"}.get(status, f"HTTP {status}")
            raise AskAgain(short, _wait(response, error))
        if codes & FILTERED:
            return Fault("filtered")
        if status in (400, 422) and TOO_LONG.search(f"{error.codes} {error.message}"):
            # Transient: the context length is a setting of the server, not in the identity.
            return Fault("longer than the model's context", transient=True)
        if response.has_redirect_location:
            raise InputError(
                f"{said}: it redirects to {key.cleaned(response.headers['Location'])}, where "
                "nothing was sent; give that address as base_url if you trust it"
            )
        raise InputError(f"{said}: {self._advice(status)}")

    def _advice(self, status: int) -> str:
        """What to do where the server would refuse every question."""
        advice, key = ADVICE.get(status, OTHER_ADVICE), self.server.key
        if status in (401, 403) and key.variable:
            name = f"${key.variable}"
            advice += f" in {name}" if key.value() else f": {name} is not set"
        return advice


def _wait(response: httpx2.Response, said: Complaint) -> float:
    """Seconds that a response asks to wait, in its headers or in its error."""
    in_milliseconds = retry_after(response.headers.get("retry-after-ms")) / 1000
    return max(retry_after(response.headers.get("Retry-After")), in_milliseconds, said.wait)


def pause_before(server: Server, failure: AskAgain, content: bytes, repetitions: int) -> float:
    """Seconds between a failed attempt and the next.

    Args:
        content: the request. repetitions: how often it was sent again already.

    Raises:
        CriticGone: the server asks for more than ``patience``.
    """
    if failure.wait > server.patience:
        raise CriticGone(
            f"{server.base_url} asks to wait {failure.wait:.0f} s ({failure.reason}), more than "
            f"patience={server.patience:g}"
        )
    digest = hashlib.sha256(content + repetitions.to_bytes(4, "big")).digest()
    jitter = int.from_bytes(digest[:4], "big") / 2**33  # below a half
    own = min(server.backoff * 2**repetitions, LONGEST_PAUSE) * (1 - jitter)
    return max(own, failure.wait)
