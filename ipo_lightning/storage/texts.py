"""Text files of others, decoded whole; and what makes two spellings of one line the same."""

import os
import stat
import unicodedata
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from pathlib import Path

from ipo_lightning.errors import InputError

LARGEST = 2**28
"""Bytes of a text that is read: a list of 250,000 prompts takes a tenth of it."""
MOST_ROWS = 2**23
"""Lines of a text, and rows and values of a table: small ones take a hundred bytes each."""
UTF_8 = "save it as UTF-8 (iconv -f cp1252 -t utf-8, or Excel's 'CSV UTF-8')"
INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200e\u200f\u2060\ufeff"))
"""Characters of no width that copying leaves behind; joiners of emoji and scripts are none."""


class NotUtf8(InputError):
    """Bytes that are no UTF-8."""

    def __init__(self, path: Path, line: int, reason: str) -> None:
        self.detail = f"line {line} is not UTF-8 ({reason}); {UTF_8}"
        super().__init__(f"{path} cannot be read: {self.detail}")


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark; its line ends are as they are.

    Raises:
        InputError: it is no regular file, cannot be read, is too large or no UTF-8.
    """
    check_regular(path)
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise InputError(
                f"{path} cannot be read: {size / 2**20:.0f} MiB of text, of which {LARGEST >> 20} "
                "are read; split it, or write it as parquet"
            )
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if content.count(b"\n") + content.count(b"\r") > 2 * MOST_ROWS:
        raise InputError(f"{path} cannot be read: more than {MOST_ROWS:,} lines; split it")
    return _decoded(path, content)


def check_regular(path: Path) -> None:
    """Refuse folders, and what may have no end: pipes and devices.

    Raises:
        InputError: the path leads to no regular file.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the latter: a NUL in its name
        raise InputError(f"{path} cannot be read: there is no such file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{path} cannot be read: it is a folder; give a file in it")
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} cannot be read: it is a pipe or a device; give a file")


def _decoded(path: Path, content: bytes) -> str:
    """Text of two bytes a letter may pass for UTF-8 that means nothing: it has NULs."""
    if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) or b"\0" in content[:64]:
        raise InputError(f"{path} cannot be read: UTF-16, or no text at all; save it as UTF-8")
    if b"\0" in content:
        line = content[: content.index(b"\0")].count(b"\n") + 1
        raise InputError(f"{path} cannot be read: line {line} has a NUL byte: it is damaged, or no "
                         "text")  # fmt: skip
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise NotUtf8(path, line, error.reason) from error


def one_line(text: str) -> str:
    """A text as one line: composed (NFC), its white space one blank each, nothing invisible.

    A text that is so already stays as it is. Two that differ in these alone are one prompt: as two
    they could be trained on and held out.
    """
    composed = unicodedata.normalize("NFC", text.translate(INVISIBLE))
    return " ".join(composed.split())
