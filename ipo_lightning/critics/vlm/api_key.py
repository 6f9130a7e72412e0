"""The API key of a server: read from the environment for each request and kept nowhere."""

import os
import re
from dataclasses import dataclass

from ipo_lightning.critics.pretrained.http_errors import LONGEST_MESSAGE
from ipo_lightning.errors import InputError

KEY_LENGTH = 8
"""Characters; a shorter key is a word ("EMPTY"), which may stand anywhere by chance."""


@dataclass(frozen=True)
class ApiKey:
    """A key that is sent to a server and appears nowhere else: not in logs, messages or answers.

    Args:
        variable: name of the environment variable that holds it; None: the server needs none.
    """

    variable: str | None

    def __post_init__(self) -> None:
        if self.variable and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.variable):
            raise InputError(  # which does not repeat it: it may be the key
                setting="key_variable",
                expected="give the NAME of an environment variable (letters, digits, _), never the "
                "key itself",
            )

    def value(self) -> str:
        """The key; "" where there is none."""
        return os.environ.get(self.variable, "").strip() if self.variable else ""

    def check(self, base_url: str, *, local: bool) -> None:
        """Refuse a key that is missing or malformed.

        Args:
            local: whether the server is this machine, which may need no key.

        Raises:
            InputError: names the variable; never says what is in it.
        """
        key = self.value()
        if not key and self.variable and not local:
            raise InputError(
                f"{base_url} needs a key: export {self.variable}=..., or give key_variable=null "
                "for a server that needs none"
            )
        if key and not re.fullmatch(r"[!-~]+", key):
            raise InputError(
                f"the key in ${self.variable} has characters that no key has (a blank, a line "
                "break, an accent?)"
            )

    def headers(self) -> dict[str, str]:
        """Those of a JSON request."""
        key = self.value()
        return {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {key}"} if key else {}
        )

    def removed_from(self, body: bytes) -> bytes:
        """A response without the key, which must not get into records and messages."""
        key = self.value().encode()
        return body.replace(key, b"[key]") if len(key) >= KEY_LENGTH else body

    def cleaned(self, message: str) -> str:
        """A server's own words on one line: no control characters, no hint of the key, cut short.

        Hosts like to repeat the first and last characters of a wrong key.
        """
        key = self.value()
        if len(key) >= KEY_LENGTH:
            message = re.sub(re.escape(key[:4]) + r"\S*", "[key]", message)
        words = " ".join(message.split())
        if len(words) > LONGEST_MESSAGE:
            words = words[:LONGEST_MESSAGE] + "..."
        return ascii(words)[1:-1]
