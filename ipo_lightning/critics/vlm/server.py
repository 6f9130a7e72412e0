"""JSON over HTTP with a server that is slow, busy, broken or gone at times.

A question ends with an answer or with a `Fault`. Only what no later question could escape stops the
run: a refused key or request (`InputError`), a server that stays away and a budget that is used up
(`CriticGone`).
"""

import asyncio
import hashlib
import json
import logging
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Annotated, Any, Generic, TypeVar

import httpx2

from ipo_lightning.critics.pretrained.http_errors import (
    LONGEST_MESSAGE,
    AskAgain,
    Away,
    checked_url,
    complaint,
    network_errors,
    retry_after,
    whole_body,
)
from ipo_lightning.critics.protocols import CriticGone
from ipo_lightning.critics.vlm.client import Fault
from ipo_lightning.errors import InputError
from ipo_lightning.settings import AtLeast, Count, NotNegative, Null, Positive, checked
from ipo_lightning.storage.store import canonical

T = TypeVar("T")
Read = Callable[[Mapping[str, Any]], T | Fault]
"""Gets the answer out of a response's JSON; an error of `UNREADABLE` means that it is none."""

_log = logging.getLogger(__name__)

UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading a response raises where it is not what it should be."""

Budget = Annotated[Count | None, Null("no limit")]
LONGEST_PAUSE = 60.0  # seconds between two attempts, unless the server asks for more
LOOK_AGAIN = 0.05, 5.0  # seconds between looks for a server that is gone, at first and at most
KEY_LENGTH = 8  # a shorter key is a word ("EMPTY"), which may stand anywhere by chance

ASK_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}
"""Answers that mean "later": the request's own time-outs, limits, gateways (also Cloudflare's)."""
FILTERED = ("content_filter", "content_policy_violation", "data_inspection_failed")
"""Error codes of hosts that look at what they are sent: about one question, not about all."""
TOO_LONG = re.compile(r"context[ _](?:length|window)|maximum model length", re.IGNORECASE)
"""In a refusal: this question is longer than the model reads; others may not be."""
OUT_OF_CREDIT = ("insufficient_quota", "billing_hard_limit_reached")
ADVICE = {
    401: "check the key",
    402: "the account has no credit left",
    403: "check the key, and what it may do",
    404: "check model and base_url, which mostly ends with /v1",
    405: "check base_url, which mostly ends with /v1",
    413: "show fewer or smaller frames (viewing), or let the server take larger requests",
}
OTHER_ADVICE = "one of the settings is not for this server (video, viewing, top_logprobs, extra)"


@dataclass
class Spent:
    """What a process has asked of a server so far."""

    requests: int = 0
    """All that were sent, repetitions among them; looks for a server that is gone are none."""
    granted: int = 0
    """How many the budget has let through: those of a call under way beforehand."""
    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """As the server counts them; 0 where it does not."""
    seconds: float = 0.0
    """Time under way, summed over requests, which overlap."""
    retries: Counter[str] = field(default_factory=Counter)
    """Reason -> how many requests were sent again."""
    faults: Counter[str] = field(default_factory=Counter)
    """Reason -> how many questions got no answer."""

    def __str__(self) -> str:
        text = (
            f"{self.requests} requests, {self.answers} answers, {self.prompt_tokens} + "
            f"{self.completion_tokens} tokens, {self.seconds:.1f} s under way"
        )
        for name, counts in (("retries", self.retries), ("faults", self.faults)):
            if counts:
                text += f"; {name}: {', '.join(f'{k} {v}' for k, v in sorted(counts.items()))}"
        return text


@checked
@dataclass(frozen=True)
class Server:
    """How a server is reached, and how patiently.

    The key is read from the environment for each request and kept nowhere: not in settings, logs,
    messages or answers. Redirects are never followed, so it goes to no other host.
    """

    base_url: str
    """Up to and without ``/chat/completions``: ``http://localhost:8000/v1``."""
    key_variable: str | None = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; None: the server wants none."""
    concurrency: Count = 8
    """Requests under way at the same time, in one call of a critic."""
    timeout: Positive = 120.0
    """Seconds for a request from its beginning to the last byte of its answer."""
    connect_timeout: Positive = 10.0
    """Seconds for its connection; after them the server counts as gone."""
    retries: Annotated[int, AtLeast(0)] = 4
    """How often a request is sent again before its question counts as unanswered."""
    backoff: NotNegative = 1.0
    """Seconds before the first repetition, doubled for each further one up to a minute. A part of
    up to a half is taken off, by the request's content. A server's Retry-After can make it longer.
    """
    patience: NotNegative = 300.0
    """Seconds that a server may be gone, or ask for in Retry-After, before the run stops."""
    budget_requests: Budget = None
    """How many a process may send, repetitions among them; None: no limit."""
    budget_tokens: Budget = None
    """Tokens that a process may take, prompts and answers together, by the server's count; None: no
    limit. The last call of the critic may pass it."""
    spent: Spent = field(default_factory=Spent, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.key_variable and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.key_variable):
            raise InputError(  # which does not repeat it: it may be the key
                setting="key_variable",
                expected="give the NAME of an environment variable (letters, digits, _), never the "
                "key itself",
            )
        url = checked_url(self.base_url)
        object.__setattr__(self, "base_url", str(url).rstrip("/"))
        if url.scheme == "http" and not self.local and self._key():
            warnings.warn(
                f"server.base_url={self.base_url}: the key and the videos travel readable for all "
                "between here and there; use https, or a tunnel to localhost",
                stacklevel=4,
            )

    @property
    def local(self) -> bool:
        """Whether the server is this machine."""
        host = httpx2.URL(self.base_url).host
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")

    def check_key(self) -> None:
        """Refuse a missing key, or one that cannot be one.

        Raises:
            InputError: names the variable; never says what is in it.
        """
        key = self._key()
        if not key and self.key_variable and not self.local:
            raise InputError(
                f"{self.base_url} wants a key: export {self.key_variable}=..., or give "
                "key_variable=null for a server that wants none"
            )
        if key and not re.fullmatch(r"[!-~]+", key):
            raise InputError(
                f"the key in ${self.key_variable} has characters that no key has (a blank, a line "
                "break, an accent?)"
            )

    def ask(
        self, path: str, payloads: Sequence[Mapping[str, Any]], read: Read[T]
    ) -> list[T | Fault]:
        """Put questions to the server, several at a time.

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
        self._check_budget(len(payloads))
        self.spent.granted += len(payloads)
        return _run(self._ask_all(self.base_url + path, payloads, read))

    # ---------------------------------------------------------------- attempts

    async def _ask_all(
        self, url: str, payloads: Sequence[Mapping[str, Any]], read: Read[T]
    ) -> list[T | Fault]:
        free = asyncio.Semaphore(self.concurrency)

        async def ask(payload: Mapping[str, Any]) -> T | Fault:
            async with free:  # bytes are made late: they hold all the videos
                return await self._insist(call, canonical(payload))

        async with self._client() as client:
            call = _Call(client, url, read, _Absence(self))
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(ask(one)) for one in payloads]
            except ExceptionGroup as several:  # the first ended the call, and the others with it
                raise several.exceptions[0] from several.exceptions[0].__cause__
        return [task.result() for task in tasks]

    async def _insist(self, call: "_Call[T]", content: bytes) -> T | Fault:
        """Ask until there is an answer, or no hope of one."""
        repetitions = 0
        self.spent.requests += 1
        while True:
            try:
                answer = await self._attempt(call, content)
                break
            except Away as away:
                await call.absence.wait(away)
            except AskAgain as failure:
                if repetitions == self.retries or not self._affords(1):
                    answer = Fault(failure.reason, transient=True)
                    break
                self.spent.retries[failure.reason] += 1
                self.spent.requests += 1
                self.spent.granted += 1
                await asyncio.sleep(self._pause(failure, content, repetitions))
                repetitions += 1
        if isinstance(answer, Fault):
            self.spent.faults[answer.reason] += 1
        else:
            self.spent.answers += 1
        return answer

    async def _attempt(self, call: "_Call[T]", content: bytes) -> T | Fault:
        started = time.monotonic()
        try:
            with network_errors(self.base_url):
                async with (
                    asyncio.timeout(self.timeout),
                    call.client.stream(
                        "POST", call.url, content=content, headers=self._headers()
                    ) as response,
                ):
                    body = self._without_key(await whole_body(response))
        finally:
            self.spent.seconds += time.monotonic() - started
        call.absence.over()
        if response.is_success:
            return self._answer(body, call.read)
        return self._refused(response, body)

    def _answer(self, body: bytes, read: Read[T]) -> T | Fault:
        try:
            answered = json.loads(body)
            self._count(answered.get("usage") or {})
            return read(answered)
        except InputError:
            raise
        except UNREADABLE as error:
            raise AskAgain("malformed response") from error

    def _count(self, usage: Mapping[str, Any]) -> None:
        self.spent.prompt_tokens += int(usage.get("prompt_tokens") or 0)
        self.spent.completion_tokens += int(usage.get("completion_tokens") or 0)

    def _refused(self, response: httpx2.Response, body: bytes) -> Fault:
        """What a response without an answer means: a fault of this question, or one of all."""
        status, (code, message) = response.status_code, complaint(body)
        said = f"{self.base_url}: {status} {self._cleaned(response.reason_phrase)}".rstrip()
        said += f" ({self._cleaned(message)})" if message else ""
        if code in OUT_OF_CREDIT or status == 402:
            raise CriticGone(f"{said}; {ADVICE[402]}")
        if status in ASK_AGAIN:
            reason = {408: "timeout", 429: "too many requests"}.get(status, f"HTTP {status}")
            raise AskAgain(reason, retry_after(response.headers.get("Retry-After")))
        if code in FILTERED:
            return Fault("filtered")
        if status in (400, 422) and TOO_LONG.search(f"{code} {message}"):
            # Transient: how much it reads is a setting of the server, which no identity knows.
            return Fault("longer than the model's context", transient=True)
        if response.has_redirect_location:
            raise InputError(
                f"{said}: it sends us on to {self._cleaned(response.headers['Location'])}, where "
                "nothing was sent; give that address as base_url if you trust it"
            )
        advice = ADVICE.get(status, OTHER_ADVICE)
        if status in (401, 403) and self.key_variable:
            name = f"${self.key_variable}"
            advice += f" in {name}" if self._key() else f": {name} is not set"
        raise InputError(f"{said}: {advice}")

    def _pause(self, failure: AskAgain, content: bytes, repetitions: int) -> float:
        """Seconds before the next attempt.

        Raises:
            CriticGone: the server asks for more than ``patience``.
        """
        if failure.wait > self.patience:
            raise CriticGone(
                f"{self.base_url} asks to wait {failure.wait:.0f} s ({failure.reason}), more than "
                f"patience={self.patience:g}"
            )
        digest = hashlib.sha256(content + repetitions.to_bytes(4, "big")).digest()
        jitter = int.from_bytes(digest[:4], "big") / 2**33  # below a half
        own = min(self.backoff * 2**repetitions, LONGEST_PAUSE) * (1 - jitter)
        return max(own, failure.wait)

    # ---------------------------------------------------------------- the budget

    def _affords(self, requests: int) -> bool:
        limit = self.budget_requests
        return limit is None or self.spent.granted + requests <= limit

    def _check_budget(self, requests: int) -> None:
        """Stop before a call that the budget is too small for; nothing of it is sent."""
        tokens = self.spent.prompt_tokens + self.spent.completion_tokens
        if not self._affords(requests):
            short = f"budget_requests={self.budget_requests} (one call of the critic: {requests})"
        elif self.budget_tokens is not None and tokens >= self.budget_tokens:
            short = f"budget_tokens={self.budget_tokens}"
        else:
            return
        raise CriticGone(
            f"{self.base_url}: the budget is used up, server.{short}; spent: {self.spent}; a "
            "command that is given again has it anew"
        )

    # ---------------------------------------------------------------- the key

    def _key(self) -> str:
        return os.environ.get(self.key_variable, "").strip() if self.key_variable else ""

    def _headers(self) -> dict[str, str]:
        key = self._key()
        return {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {key}"} if key else {}
        )

    def _without_key(self, body: bytes) -> bytes:
        """A response that repeats the key must not bring it into records and messages."""
        key = self._key().encode()
        return body.replace(key, b"[key]") if len(key) >= KEY_LENGTH else body

    def _cleaned(self, message: str) -> str:
        """A server's own words on one line: no control characters, no hint of the key, cut short.

        Hosts like to repeat the first and last characters of a wrong key.
        """
        key = self._key()
        if len(key) >= KEY_LENGTH:
            message = re.sub(re.escape(key[:4]) + r"\S*", "[key]", message)
        words = " ".join(message.split())
        if len(words) > LONGEST_MESSAGE:
            words = words[:LONGEST_MESSAGE] + "..."
        return ascii(words)[1:-1]

    def _client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            timeout=httpx2.Timeout(None, connect=self.connect_timeout),
            limits=httpx2.Limits(max_connections=self.concurrency),
            follow_redirects=False,
            trust_env=not self.local,  # proxies; this machine needs none
        )


class _Absence:
    """Times in which nobody listens at the server's address, of all requests of a call."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.since: float | None = None
        """On the monotonic clock; None: the server is there."""

    def over(self) -> None:
        """The server has answered."""
        self.since = None

    async def wait(self, away: Away) -> None:
        """Give the server time to come back.

        Raises:
            CriticGone: it has had enough.
        """
        now, patience = time.monotonic(), self.server.patience
        if self.since is None:
            self.since = now
            _log.warning("%s; waiting for it, up to %g s", away, patience)
        gone = now - self.since
        if gone >= patience:
            raise CriticGone(f"{away}, for {patience:g} s now (patience): start the server again")
        await asyncio.sleep(min(max(gone / 4, LOOK_AGAIN[0]), LOOK_AGAIN[1], patience - gone))


@dataclass(frozen=True)
class _Call(Generic[T]):
    """What the requests of one call share."""

    client: httpx2.AsyncClient
    url: str
    read: Read[T]
    absence: _Absence


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also where a loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1, "server") as pool:
        return pool.submit(asyncio.run, work).result()
