"""Prompt texts that a critic's weights were tuned with, published by the weights' authors.

They are not shipped, since they belong to their authors. A text is known by its hash, which is
enough to plan a run and to name a critic. It is read when the model is loaded: from a file that a
setting names, or from the authors' file at a pinned commit, which is downloaded once. Files are
parsed, never run.
"""

import ast
import hashlib
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import constants

from ipo_lightning.critics.pretrained.http_errors import AskAgain, Away, network_errors
from ipo_lightning.errors import InputError
from ipo_lightning.storage.store import write_atomically
from ipo_lightning.storage.writing import CannotWrite

PROMPT = "{prompt}"
"""The place of the prompt in a text."""
CACHE = "IPO_LIGHTNING_CACHE"
"""Environment variable: the folder for downloads, see `cache_folder`."""
MOST_BYTES = 2**20  # of a file with a prompt text; the authors' scripts have some ten thousand
PATIENCE = 10.0, 60.0  # seconds for a part of an answer, and for a whole download


@dataclass(frozen=True)
class PublishedText:
    """A prompt text that weights were tuned with."""

    sha256: str
    """Of the text in UTF-8, hex."""
    url: str
    """Of the authors' file with it, at a pinned commit."""
    parts: tuple[str, ...] = ()
    """Names of the constants that are joined to make the text; none: it is one string."""
    mark: str = PROMPT
    """The place of the prompt as that file marks it."""

    @property
    def file(self) -> str:
        """The name of the authors' file."""
        return self.url.rpartition("/")[2]

    def read(self, path: str | None = None, *, loopback: bool = False) -> str:
        """The text, with `PROMPT` in the place of `mark`.

        Args:
            path: the authors' file, or a file of the text alone. None: the text is taken from the
                cache, or downloaded; with HF_HUB_OFFLINE nothing is downloaded.
            loopback: whether it may come unencrypted from 127.0.0.1.

        Raises:
            InputError: the file is missing, cannot be downloaded, or has another text.
        """
        if path is not None:
            text = self.within(given(path))
            if text is None:
                raise self.absent(path)
            return text
        kept = cache_folder() / "wordings" / f"{self.sha256}.txt"
        return self._kept(kept) or self._downloaded(kept, loopback)

    def within(self, content: str) -> str | None:
        """The text in a file's content; None where the file does not have it."""
        for text in texts(content, self.parts):
            text = text.replace(self.mark, PROMPT)
            if sha256(text) == self.sha256:
                return text
        return None

    def absent(self, path: str) -> InputError:
        """The error for a file that does not have the text."""
        return InputError(
            setting="prompt_text",
            value=path,
            expected="this file does not have the prompt text that the model was tuned with, which "
            f"is in {self.url}",
        )

    def _kept(self, file: Path) -> str | None:
        """The text from the cache; None where it is missing or damaged."""
        try:
            text = file.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError):
            return None
        return text if sha256(text) == self.sha256 else None

    def _downloaded(self, kept: Path, loopback: bool) -> str:
        """The text from the authors' file, which is then kept in the cache."""
        if constants.HF_HUB_OFFLINE:
            raise self._missing("HF_HUB_OFFLINE is set")
        try:
            with network_errors(httpx2.URL(self.url).host):
                content = downloaded(self.url, loopback)
        except (AskAgain, Away) as error:
            raise self._missing(str(error)) from error
        text = self.within(content)
        if text is None:
            raise self._missing("the file there has another text now")
        try:
            write_atomically(kept, text.encode())
        except CannotWrite as error:
            raise InputError(
                f"{kept.parent}: the prompt text cannot be written there ({error}); or set {CACHE} "
                "to a folder that can be written"
            ) from error
        return text

    def _missing(self, reason: str) -> InputError:
        return InputError(
            setting="prompt_text",
            expected="the prompt text that the model was tuned with is not shipped and cannot be "
            f"downloaded ({reason}); on a machine with a network run `curl -LO {self.url}`, and "
            f"give that file as {{setting}}={self.file}",
        )


def given(path: str) -> str:
    """The content of a file with a prompt text that a setting names.

    Raises:
        InputError: it cannot be read, is too long, or is not UTF-8.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            long = f"more than {MOST_BYTES} bytes, so no prompt text"
            raise InputError(setting="prompt_text", value=path, expected=long)
        return content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(setting="prompt_text", value=path, expected=str(error)) from error


def cache_folder() -> Path:
    """``$IPO_LIGHTNING_CACHE``, or else ``~/.cache/ipo_lightning``."""
    return Path(os.environ.get(CACHE) or "~/.cache/ipo_lightning").expanduser()


def downloaded(url: str, loopback: bool = False) -> str:
    """A file with a prompt text from the network; redirects are not followed.

    Args:
        url: https. loopback: see `PublishedText.read`.

    Raises:
        AskAgain: there is no such file, it is too long, or it takes too long.
        httpx2.HTTPError: see `network_errors`.
        ValueError: the address is not encrypted.
    """
    address = httpx2.URL(url)
    if address.scheme != "https" and not (loopback and address.host == "127.0.0.1"):
        raise ValueError(f"{url}: give https")
    part, whole = PATIENCE
    end, body = time.monotonic() + whole, bytearray()
    with httpx2.stream("GET", address, timeout=part) as response:
        if response.status_code != httpx2.codes.OK:
            raise AskAgain(f"HTTP {response.status_code}")
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > MOST_BYTES:
                raise AskAgain(f"longer than {MOST_BYTES} bytes")
            if time.monotonic() > end:
                raise AskAgain("timeout")
    return body.decode("utf-8", errors="replace")


def texts(content: str, parts: Sequence[str] = ()) -> Iterator[str]:
    """The texts that a file may mean: its content, with and without the last newline; of a Python
    file also each string, and the constants ``parts`` joined."""
    yield from (content, content.removesuffix("\n"))
    try:
        with warnings.catch_warnings():  # of strings with a stray backslash
            warnings.simplefilter("ignore")
            nodes = list(ast.walk(ast.parse(content)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    yield from map(literal, nodes)
    if parts:
        named = {
            target.id: literal(node.value)
            for node in nodes
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        yield "".join(named.get(part, "") for part in parts)


def literal(node: ast.AST) -> str:
    """The text of a string in a script; what an f-string fills in becomes ``{name}``."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.FormattedValue):
        return f"{{{ast.unparse(node.value)}}}"
    if isinstance(node, ast.JoinedStr):
        return "".join(map(literal, node.values))
    return ""


def sha256(text: str) -> str:
    """Of a text in UTF-8, hex."""
    return hashlib.sha256(text.encode()).hexdigest()
