"""A server of vision-language models: its address, its key, how patiently it is asked, its budget.

`ipo_lightning.critics.vlm.calls` sends the requests.
"""

import warnings
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Annotated

import httpx2

from ipo_lightning.critics.pretrained.http_errors import checked_url
from ipo_lightning.critics.protocols import CriticGone
from ipo_lightning.critics.vlm.api_key import ApiKey
from ipo_lightning.settings import AtLeast, Count, NotNegative, Null, Positive, checked

Budget = Annotated[Count | None, Null("no limit")]


@dataclass
class Spent:
    """What a process has asked of a server so far."""

    requests: int = 0
    """Requests that were sent, retries among them; attempts to connect to a server that is away do
    not count."""
    granted: int = 0
    """Requests that the budget has allowed; those of a call are granted before it begins."""
    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """As the server counts them; 0 where it does not."""
    seconds: float = 0.0
    """Duration of all requests, summed; requests overlap."""
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

    Redirects are never followed, so that the key goes to no other host.
    """

    base_url: str
    """Up to and without ``/chat/completions``: ``http://localhost:8000/v1``."""
    key_variable: str | None = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; None: the server needs none."""
    concurrency: Count = 8
    """Requests under way at the same time, in one call of a critic."""
    timeout: Positive = 120.0
    """Seconds from the beginning of a request to the last byte of its answer."""
    connect_timeout: Positive = 10.0
    """Seconds to connect; after them the server counts as away."""
    retries: Annotated[int, AtLeast(0)] = 4
    """How often a request is sent again before its question counts as unanswered."""
    backoff: NotNegative = 1.0
    """Seconds before the first retry, doubled for each further one up to a minute. A part of up to
    a half is taken off, by the request's content. A server's Retry-After can make it longer."""
    patience: NotNegative = 300.0
    """Seconds that a server may be away, or ask for in Retry-After, before the run stops."""
    budget_requests: Budget = None
    """How many requests a process may send, retries among them; None: no limit."""
    budget_tokens: Budget = None
    """Tokens that a process may use, prompts and answers together, by the server's count; None: no
    limit. The last call of the critic may exceed it."""
    spent: Spent = field(default_factory=Spent, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        key = self.key
        url = checked_url(self.base_url)
        object.__setattr__(self, "base_url", str(url).rstrip("/"))
        if url.scheme == "http" and not self.local and key.value():
            warnings.warn(
                f"server.base_url={self.base_url}: the key and the videos are sent unencrypted; "
                "use https, or a tunnel to localhost",
                stacklevel=4,
            )

    @property
    def key(self) -> ApiKey:
        """The key that goes with each request."""
        return ApiKey(self.key_variable)

    @property
    def local(self) -> bool:
        """Whether the server is this machine."""
        host = httpx2.URL(self.base_url).host
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")

    def check_key(self) -> None:
        """Refuse a key that is missing or malformed, see `ApiKey.check`."""
        self.key.check(self.base_url, local=self.local)

    def affords(self, requests: int) -> bool:
        """Whether the budget allows so many requests more."""
        limit = self.budget_requests
        return limit is None or self.spent.granted + requests <= limit

    def grant(self, requests: int) -> None:
        """Count the requests of a call against the budget, before any is sent.

        Raises:
            CriticGone: the budget is too small for them, or its tokens are used up.
        """
        tokens = self.spent.prompt_tokens + self.spent.completion_tokens
        short = ""
        if not self.affords(requests):
            short = f"budget_requests={self.budget_requests} (one call of the critic: {requests})"
        elif self.budget_tokens is not None and tokens >= self.budget_tokens:
            short = f"budget_tokens={self.budget_tokens}"
        if short:
            raise CriticGone(
                f"{self.base_url}: the budget is used up, server.{short}; spent: {self.spent}; the "
                "same command starts again with the whole budget"
            )
        self.spent.granted += requests
