"""Errors of HTTP and of the network below it, as messages that say what to do."""

import json
import math
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, TypeVar

import httpx2

from ipo_lightning.errors import InputError

T = TypeVar("T")

MOST_BYTES = 64 * 2**20  # of a response; long reasoning with log probabilities takes some MiB
LONGEST_MESSAGE = 200  # characters of a server's own words in a message of ours


class AskAgain(Exception):
    """This attempt failed; another may succeed."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait
        """``wait``: seconds that the server asks for."""


class Away(Exception):
    """The server cannot be reached."""


@contextmanager
def network_errors(base_url: str) -> Iterator[None]:
    """Turn network errors into messages that say what to do.

    Raises:
        InputError: the server's certificate cannot be trusted.
        Away: the server cannot be reached.
        AskAgain: a time-out, a proxy that fails, or a lost connection.
    """
    try:
        yield
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
        certificate = _cause(error, ssl.SSLCertVerificationError)
        if certificate is not None:
            raise InputError(
                f"{base_url}: its certificate cannot be trusted ({certificate.verify_message}); "
                "SSL_CERT_FILE names a file of further certificate authorities"
            ) from error
        raise Away(f"{base_url} cannot be reached ({_short(error)})") from error
    except (TimeoutError, httpx2.TimeoutException) as error:
        raise AskAgain("timeout") from error
    except httpx2.ProxyError as error:
        raise AskAgain("proxy") from error
    except (httpx2.TransportError, httpx2.DecodingError) as error:
        raise AskAgain("connection lost") from error


def _cause(error: BaseException, kind: type[T]) -> T | None:
    """The first error of this kind in the chain of causes; None: there is none."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, kind):
        found = found.__cause__ or found.__context__
    return found


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:LONGEST_MESSAGE] if lines else type(error).__name__


async def whole_body(response: httpx2.Response) -> bytes:
    """A response's bytes, decompressed.

    Raises:
        AskAgain: it is longer than `MOST_BYTES`.
    """
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MOST_BYTES:
            raise AskAgain("endless response")
    return bytes(body)


class Complaint(NamedTuple):
    """An error as a server tells it: as OpenAI, vLLM, OpenRouter, Google or FastAPI do."""

    codes: tuple[str, ...] = ()
    """Its code, status and type, lower case, as far as it has them."""
    message: str = ""
    wait: float = 0.0
    """Seconds after which it says that another attempt may succeed."""


MEANINGS = (
    (402, r"insufficient(quota|credit|balance|fund)|(no|outof)credit|billing|payment"),
    (429, r"ratelimit|toomanyrequests|resourceexhausted|throttl|quota"),
    (401, r"apikey|authenticat|unauthori"),
    (403, r"permission|forbidden|denied"),
    (404, r"notfound|notexist"),
    (408, r"timeout|timedout|deadline"),
    (413, r"toolarge"),
    (503, r"overload|unavailable|loading|capacity|tryagain"),
    (500, r"servererror|internal|apierror|upstream|provider"),
    (400, r"badrequest|invalid|contextlength|unsupported|contentfilter|contentpolicy"),
)
"""HTTP status -> the codes, types and messages of servers that mean it, without signs between
letters; the first that fits counts."""


def complaint_in(body: bytes) -> Complaint:
    """The error in the body of a response that was refused."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return Complaint(message=body[:1000].decode(errors="replace"))
    return complaint(said.get("error") or said if isinstance(said, dict) else said)


def complaint(error: Any) -> Complaint:
    """An error that a server tells as JSON."""
    if not isinstance(error, dict):
        return Complaint(message=str(error))
    codes = (error.get(name) for name in ("code", "status", "status_code", "type"))
    message = str(error.get("message") or error.get("detail") or error.get("msg") or "")
    more = error.get("metadata")
    raw = more.get("raw") if isinstance(more, dict) else None  # OpenRouter: the host's own words
    return Complaint(
        tuple(str(code).lower() for code in codes if isinstance(code, str | int) and code),
        f"{message}: {raw}" if raw else message,
        _retry_delay(error.get("details")),
    )


def _retry_delay(details: Any) -> float:
    """Seconds of Google's RetryInfo among an error's details, as ``{"retryDelay": "34.07s"}``."""
    for one in details if isinstance(details, list) else ():
        told = one.get("retryDelay") if isinstance(one, dict) else None
        if isinstance(told, str) and told.endswith("s"):
            return retry_after(told.removesuffix("s"))
    return 0.0


def error_within(answer: Any) -> Any:
    """The error in the JSON of a response that claims success; None: there is none.

    It stands at the top, in the first choice or in its message, or is all that there is.
    """
    if not isinstance(answer, dict):
        return None
    choice = _first(answer.get("choices"))
    for holder in (answer, choice, choice.get("message")):
        error = holder.get("error") if isinstance(holder, dict) else None
        if error:
            return error if isinstance(error, dict | str) else holder
    if choice:
        return None
    if answer.get("errors"):
        return _first(answer["errors"]) or str(answer["errors"])
    bare = answer.get("object") == "error" or answer.keys() & {"message", "detail", "msg"}
    return answer if bare else None


def _first(items: Any) -> dict[str, Any]:
    """The first of a list, where it is a mapping; else an empty one."""
    return items[0] if isinstance(items, list) and items and isinstance(items[0], dict) else {}


def status_of(error: Complaint) -> int:
    """The HTTP status that an error stands for, by its codes, else by its words; 0: unknown."""
    numbers = [int(code) for code in error.codes if re.fullmatch(r"[45][0-9]{2}", code)]
    if numbers:
        return numbers[0]
    for words in (*error.codes, error.message):
        bare = re.sub(r"[^a-z]", "", words.lower())
        for status, pattern in MEANINGS:
            if re.search(pattern, bare):
                return status
    return 0


def retry_after(header: str | None) -> float:
    """Seconds to wait by a Retry-After header, a number or a date; 0 where it is neither."""
    try:
        seconds = float(header or 0)
    except ValueError:
        try:
            until = parsedate_to_datetime(header or "")
        except (ValueError, OverflowError):
            return 0.0
        until = until if until.tzinfo else until.replace(tzinfo=UTC)  # asctime's, or "-0000"
        seconds = (until - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def checked_url(text: str) -> httpx2.URL:
    """The base address of a server.

    Raises:
        InputError: it is not an http(s) address, or has a password or a query.
    """
    try:
        url = httpx2.URL(str(text).strip())
    except httpx2.InvalidURL as error:
        wrong = f"{error}; give http(s)://HOST:PORT/v1"
        raise InputError(setting="base_url", expected=wrong) from error
    if url.userinfo or url.query or url.fragment:
        raise InputError(
            setting="base_url",
            value=f"{url.scheme}://{url.host}...",
            expected="give it without user, password, query or fragment; keys come from the "
            "environment (key_variable)",
        )
    if url.scheme not in ("http", "https") or not url.host:
        form = "give http(s)://HOST:PORT/v1"
        raise InputError(setting="base_url", value=text, expected=form)
    if url.path.rstrip("/").endswith("/completions"):
        longer = "leave out what comes after /v1"
        raise InputError(setting="base_url", value=text, expected=longer)
    return url
