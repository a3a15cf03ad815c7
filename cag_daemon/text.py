"""A document's text: reading, normalising, its version, and positions.

Two ways to count meet here. *Offsets* count code points of the normalised text, what the model reads. *Positions* are
LSP's: a line and a UTF-16 character of the original, what the editor shows; lines end at ``\\n``, ``\\r\\n`` and
``\\r`` and nowhere else. A file's byte order mark belongs to neither, since editors hide it.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import os
import re
import stat
import time
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cag_daemon.errors import DocumentNotFound, DocumentUnreadable

MAX_BYTES = 64 * 2**20
BOM = "\ufeff"

Stamp = tuple[int, int, int, int, int]

_LINE_END = re.compile(r"[\r\n]")
_LINE_END_BYTES = re.compile(rb"\r\n|\r|\n")
_ASTRAL = re.compile("[\U00010000-\U0010ffff]")
_CHUNK = 2**20
# The coarsest clock of a common file system (FAT).
_TICK_NS = 2 * 10**9
# Not on Windows; O_BINARY only there.
_OPEN_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"))


def normalise(original: str) -> str:
    """The text that is hashed and read by the model: no leading BOM, LF for CRLF, U+FFFD for a lone surrogate."""
    text = original.removeprefix(BOM).replace("\r\n", "\n")
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def version_of(normalised: str) -> str:
    """The first 12 hex digits of the SHA-256 of a normalised text in UTF-8."""
    return hashlib.sha256(normalised.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Text:
    """One version of a document: the original, what the model reads of it, and the way back."""

    original: str
    normalised: str
    version: str

    @classmethod
    def of(cls, original: str) -> Text:
        """The text of an editor's buffer."""
        normalised = normalise(original)
        return cls(original, normalised, version_of(normalised))

    @classmethod
    def of_file(cls, decoded: str) -> Text:
        """The text of a file, whose byte order mark no editor shows."""
        normalised = normalise(decoded)
        return cls(decoded.removeprefix(BOM), normalised, version_of(normalised))

    @property
    def blank(self) -> bool:
        """Nothing but white space."""
        return not self.normalised or self.normalised.isspace()

    def position(self, offset: int) -> tuple[int, int]:
        """Line and UTF-16 character, in the original, of an offset in ``normalised`` (clamped to the text)."""
        offset = min(max(offset, 0), len(self.normalised))
        line = bisect_right(self._line_starts, offset) - 1
        start = self._line_starts[line]
        character = offset - start + bisect_left(self._astral, offset) - bisect_left(self._astral, start)
        return line, character + (line == 0 and self._hides_bom)

    def range(self, start: int, end: int) -> dict[str, dict[str, int]]:
        """The LSP Range of ``normalised[start:end]``."""
        return {
            name: dict(zip(("line", "character"), self.position(offset), strict=True))
            for name, offset in (("start", start), ("end", end))
        }

    def slice(self, range: Mapping[str, Any]) -> str:
        """The original's text in an LSP Range, clamped as `Buffer.apply` does. ValueError: that is no Range."""
        return self._buffer.slice(range)

    @cached_property
    def _hides_bom(self) -> bool:
        marks = (len(text) - len(text.lstrip(BOM)) for text in (self.original, self.normalised))
        return next(marks) > next(marks)

    # In `normalised` every \r once stood alone, so \r and \n each end a line, even side by side (from \r\r\n).
    @cached_property
    def _line_starts(self) -> list[int]:
        return [0, *(match.end() for match in _LINE_END.finditer(self.normalised))]

    @cached_property
    def _astral(self) -> list[int]:
        return [] if self.normalised.isascii() else [match.start() for match in _ASTRAL.finditer(self.normalised)]

    @cached_property
    def _buffer(self) -> Buffer:
        return Buffer(self.original)


class Buffer:
    """An open document in an editor, changed as LSP says. A change costs as much as the lines it touches.

    Args:
        text: what the editor opened.
    """

    def __init__(self, text: str) -> None:
        self._text: str | None
        self._lines: list[str]
        self.apply(None, text)

    @property
    def text(self) -> str:
        """The whole text as the editor has it."""
        if self._text is None:
            self._text = "".join(self._lines)
        return self._text

    def apply(self, change_range: Mapping[str, Any] | None, new_text: str) -> None:
        """Replace an LSP Range by a text; None: replace everything.

        A character beyond its line's end means that end, a line beyond the last the text's end, a negative number 0,
        the middle of a surrogate pair the place before it; a reversed range is turned round.

        Raises:
            ValueError: the range is no Range; nothing was changed.
        """
        if change_range is None:
            self._text = _join_surrogates(new_text)
            self._lines = _split_lines(self._text)
            return
        (first, start), (last, end) = self._ends(change_range)
        piece = self._lines[first][:start] + new_text + self._lines[last][end:]
        # A \n put behind the \r of the line above ends that line with it.
        if piece.startswith("\n") and first and self._lines[first - 1].endswith("\r"):
            first -= 1
            piece = self._lines[first] + piece
        lines = _split_lines(_join_surrogates(piece))
        if last + 1 < len(self._lines):
            lines.pop()
        self._lines[first : last + 1] = lines
        self._text = None

    def slice(self, range: Mapping[str, Any]) -> str:
        """The text in an LSP Range, clamped as in `apply`. ValueError: that is no Range."""
        (first, start), (last, end) = self._ends(range)
        if first == last:
            return self._lines[first][start:end]
        return "".join([self._lines[first][start:], *self._lines[first + 1 : last], self._lines[last][:end]])

    def _ends(self, range: Mapping[str, Any]) -> list[tuple[int, int]]:
        """Both ends in order, as line and index into it."""
        try:
            ends = [(range[name]["line"], range[name]["character"]) for name in ("start", "end")]
        except (KeyError, TypeError):
            ends = []
        if not ends or any(type(number) is not int for end in ends for number in end):
            raise ValueError(f"Not an LSP range: {range!r}.")
        return sorted(self._index(*end) for end in ends)

    def _index(self, line: int, character: int) -> tuple[int, int]:
        if line < 0:
            line = 0
        elif line >= len(self._lines):
            line, character = len(self._lines) - 1, len(self._lines[-1]) * 2
        content = self._lines[line].rstrip("\r\n")
        character = max(character, 0)
        if content.isascii():
            return line, min(character, len(content))
        units = content[:character].encode("utf-16-le", "surrogatepass")[: 2 * character]
        index = len(units.decode("utf-16-le", "surrogatepass"))
        # A pair that was cut in two has left its high half at the end.
        if index and content[index - 1] > "\uffff" and 0xD8 <= units[-1] <= 0xDB:
            index -= 1
        return line, index


def read(path: Path) -> Text:
    """The text of a file; an empty one is a `Text` too.

    Never waits for a pipe, a socket or a device. The file's byte order mark is not part of the original.

    Raises:
        DocumentNotFound: there is no such file.
        DocumentUnreadable: no regular file, not ours to read, too large, with a NUL byte, or not UTF-8.
    """
    try:
        # Before opening, since opening alone can already do something to a device.
        _check_kind(path, path.stat())
        descriptor = os.open(path, _OPEN_FLAGS)
        try:
            _check_kind(path, os.fstat(descriptor))
            data = _read_all(path, descriptor)
        finally:
            os.close(descriptor)
    # ValueError: a NUL or a lone surrogate in the name, which no file can have.
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise DocumentNotFound(f"There is no file {path}; create it, or choose another document.") from error
    except PermissionError as error:
        raise DocumentUnreadable(f"{path} may not be read; change its permissions, or choose another document.") from (
            error
        )
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DocumentUnreadable(f"{path} could not be read ({reason}); choose another document.") from error
    return Text.of_file(_decode(path, data))


def stamp(path: Path) -> Stamp | None:
    """What differs when a file's content does (links are followed), for the price of a stat; None: there is no file."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def settled(stamp: Stamp | None) -> bool:
    """Whether an equal stamp later on proves equal content.

    A file that was written a moment ago can be written again within the same tick of its file system's clock: same
    size, same times, other content. Such a file is read again rather than trusted.
    """
    return stamp is None or time.time_ns() - max(stamp[3:]) > _TICK_NS


def _check_kind(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise DocumentUnreadable(f"{path} is a folder; choose a text file in it.")
    if not stat.S_ISREG(status.st_mode):
        raise DocumentUnreadable(f"{path} is a pipe, a socket or a device; choose a regular file.")
    if status.st_size > MAX_BYTES:
        raise _too_large(path, status.st_size)


def _too_large(path: Path, size: int) -> DocumentUnreadable:
    return DocumentUnreadable(
        f"{path} has {size:,} bytes, more than the {MAX_BYTES:,} that are read; choose a smaller document."
    )


def _read_all(path: Path, descriptor: int) -> bytes:
    # Neither the size of a file that grows nor that of one in /proc says how much there is to read.
    data = bytearray()
    while chunk := os.read(descriptor, _CHUNK):
        data += chunk
        if len(data) > MAX_BYTES:
            raise _too_large(path, len(data))
    return bytes(data)


def _decode(path: Path, data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DocumentUnreadable(f"{path} looks like UTF-16 by its first two bytes; save it as UTF-8.")
    nul = data.find(0)
    if nul >= 0:
        where = f"at offset {nul} (line {_line_number(data, nul)})"
        raise DocumentUnreadable(f"{path} has a NUL byte {where}, so it is no text; choose a text file in UTF-8.")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        where = f"at offset {error.start} (line {_line_number(data, error.start)})"
        raise DocumentUnreadable(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} {where}; save it as UTF-8."
        ) from error


def _line_number(data: bytes, offset: int) -> int:
    return 1 + len(_LINE_END_BYTES.findall(data, 0, offset))


def _split_lines(text: str) -> list[str]:
    """Lines with their ends; the last one has none, and is empty where the text is or ends with a line end."""
    lines = list(io.StringIO(text, newline=""))
    if not lines or lines[-1].endswith(("\r", "\n")):
        lines.append("")
    return lines


def _join_surrogates(text: str) -> str:
    """Two halves that have come to stand together are one character."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
