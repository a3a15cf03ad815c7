import contextlib
import json
import os
import socket
import stat
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cag_daemon import text as text_module
from cag_daemon.errors import DocumentNotFound, DocumentUnreadable
from cag_daemon.text import Buffer, Text, normalise, read, settled, stamp, version_of

PIECES = ["a", "b ", "é", "漢", "😀", "\n", "\r", "\r\n", "\u2028", "\x0c", "\x85", "\ufeff", "\ud83d", "\ude00", ""]
texts = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
ends = st.fixed_dictionaries({"line": st.integers(-1, 8), "character": st.integers(-1, 12)})
ranges = st.fixed_dictionaries({"start": ends, "end": ends})


def span(line, character, end_line, end_character):
    return {"start": {"line": line, "character": character}, "end": {"line": end_line, "character": end_character}}


# The slow and obviously right way: a list of UTF-16 code units.


def units_of(text):
    data = text.encode("utf-16-le", "surrogatepass")
    return [int.from_bytes(data[i : i + 2], "little") for i in range(0, len(data), 2)]


def text_of(units):
    return b"".join(unit.to_bytes(2, "little") for unit in units).decode("utf-16-le", "surrogatepass")


def reference_lines(units):
    """[start, end of content) of each line."""
    lines, start, i = [], 0, 0
    while i < len(units):
        if units[i] in (10, 13):
            lines.append((start, i))
            i += 2 if units[i : i + 2] == [13, 10] else 1
            start = i
        else:
            i += 1
    return [*lines, (start, len(units))]


def reference_offset(units, position):
    lines = reference_lines(units)
    if position["line"] >= len(lines):
        return len(units)
    start, end = lines[max(position["line"], 0)]
    at = min(start + max(position["character"], 0), end)
    inside = start < at < end and 0xD800 <= units[at - 1] < 0xDC00 <= units[at] < 0xE000
    return at - inside


def reference_apply(text, change, new):
    units = units_of(text)
    start, end = sorted(reference_offset(units, change[name]) for name in ("start", "end"))
    return text_of(units[:start] + units_of(new) + units[end:])


@settings(deadline=None, max_examples=300)
@given(texts, st.lists(st.tuples(st.none() | ranges, texts), max_size=8))
def test_a_buffer_follows_an_editor(text, changes):
    buffer, expected = Buffer(text), text_of(units_of(text))
    for change, new in changes:
        buffer.apply(change, new)
        expected = text_of(units_of(new)) if change is None else reference_apply(expected, change, new)
        assert buffer.text == expected
        assert len(buffer._lines) == len(reference_lines(units_of(expected)))


@settings(deadline=None)
@given(texts, ranges)
def test_a_slice_is_what_an_edit_would_remove(text, change):
    original = text_of(units_of(text))
    units = units_of(original)
    start, end = sorted(reference_offset(units, change[name]) for name in ("start", "end"))
    assert Buffer(text).slice(change) == text_of(units[start:end])
    assert Text.of(original).slice(change) == text_of(units[start:end])


@settings(deadline=None)
@given(texts)
def test_positions_are_those_of_the_original(original):
    original = text_of(units_of(original))
    text = Text.of(original)
    units, lines = units_of(original), reference_lines(units_of(original))
    # Walk both texts side by side, one normalised character at a time.
    at = 1 if original.startswith("\ufeff") else 0
    for offset, character in enumerate([*text.normalised, ""]):
        line = max(i for i, (start, _) in enumerate(lines) if start <= at)
        assert text.position(offset) == (line, at - lines[line][0])
        if character == "\n" and units[at] == 13:
            at += 2
        else:
            at += len(units_of(character))
    assert at == len(units)


@settings(deadline=None)
@given(texts)
def test_the_range_of_everything_is_everything(original):
    text = Text.of(original)
    assert normalise("\ufeff" + text.slice(text.range(0, len(text.normalised)))) == text.normalised


@settings(deadline=None)
@given(texts)
def test_a_normalised_text_is_clean(original):
    text = normalise(original)
    assert not any(0xD800 <= ord(c) < 0xE000 for c in text)
    assert "\r\n" not in text or "\r\r\n" in original
    assert json.loads(json.dumps(text)) == text
    assert len(version_of(text)) == 12


def test_normalising_joins_what_belongs_together():
    assert normalise("\ufeffa\r\nb\rc\u2028d") == "a\nb\rc\u2028d"
    assert normalise("\ud83d\ude00") == "😀"
    assert normalise("a\ud83d b\ude00\ude00\ud83d") == "a\ufffd b\ufffd\ufffd\ufffd"
    assert version_of("a\n") == "87428fc52280"
    assert Text.of("\ufeffa\r\n").version == Text.of("a\n").version


def test_positions_by_hand():
    text = Text.of("\ufeff😀a\r\nb\rc\u2028d")
    assert [text.position(i) for i in range(9)] == [
        (0, 1),
        (0, 3),
        (0, 4),
        (1, 0),
        (1, 1),
        (2, 0),
        (2, 1),
        (2, 2),
        (2, 3),
    ]
    assert text.position(99) == (2, 3)
    assert text.position(-1) == (0, 1)
    assert text.range(1, 3) == span(0, 3, 1, 0)
    assert text.slice(span(0, 3, 1, 9)) == "a\r\nb"


def test_each_return_before_a_line_end_is_a_line():
    text = Text.of("a\r\r\nb")
    assert [text.position(i) for i in range(4)] == [(0, 0), (0, 1), (1, 0), (2, 0)]


def test_a_place_within_a_character_is_before_it():
    buffer = Buffer("é😀😀\ud83d")
    buffer.apply(span(0, 2, 0, 4), "x")
    assert buffer.text == "éx😀\ud83d"
    assert buffer.slice(span(0, 2, 0, 5)) == "😀\ud83d"
    assert buffer.slice(span(0, 2, 0, 4)) == "😀"
    assert buffer.slice(span(0, 2, 0, 3)) == ""


@pytest.mark.parametrize(("original", "blank"), [("", True), (" \r\n\t\u2028\u00a0", True), (" . ", False)])
def test_blank(original, blank):
    assert Text.of(original).blank is blank


@pytest.mark.parametrize(
    "bad", [{}, [], 1, {"start": {}, "end": {}}, span(0, "1", 0, 1), span(0, True, 0, 1), span(0.5, 0, 1, 1)]
)
def test_what_is_no_range_changes_nothing(bad):
    buffer = Buffer("abc")
    with pytest.raises(ValueError, match="Not an LSP range"):
        buffer.apply(bad, "x")
    assert buffer.text == "abc"


def test_line_ends_are_joined_and_split():
    buffer = Buffer("a\rb\nc")
    buffer.apply(span(1, 0, 1, 1), "")
    assert (buffer.text, len(buffer._lines)) == ("a\r\nc", 2)
    buffer.apply(span(0, 1, 0, 1), "\r")
    assert (buffer.text, len(buffer._lines)) == ("a\r\r\nc", 3)
    buffer.apply(span(1, 0, 2, 0), "x")
    assert (buffer.text, len(buffer._lines)) == ("a\rxc", 2)
    buffer.apply(None, "\ud83d")
    buffer.apply(span(0, 1, 0, 1), "\ude00")
    assert buffer.text == "😀"


def test_a_keystroke_in_a_large_text_is_cheap():
    buffer = Buffer("a line of an ordinary text, about as long as lines are\r\n" * 90_000)
    began = time.perf_counter()
    for i in range(1000):
        buffer.apply(span(i * 80, 7, i * 80, 7), "é" if i % 2 else "\n")
    # Measured 13 µs a keystroke; copying the text each time would take over a second.
    assert time.perf_counter() - began < 0.5
    assert len(buffer.text) > 5_000_000


def test_positions_of_a_large_text_are_cheap():
    text = Text.of("😀" * 500_000 + "\n" * 500_000)
    text.position(0)
    began = time.perf_counter()
    assert text.position(499_999) == (0, 999_998)
    for offset in range(0, 1_000_000, 1000):
        text.position(offset)
    assert time.perf_counter() - began < 0.5


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "document.txt"


def test_a_file_is_read(file):
    text = read(write(file, b"\xef\xbb\xbfa\r\n\xf0\x9f\x98\x80"))
    assert (text.original, text.normalised) == ("a\r\n😀", "a\n😀")
    assert text.position(0) == (0, 0)
    assert read(write(file, b"")).blank
    # The second mark is the file's content, as it is to an editor.
    assert read(write(file, b"\xef\xbb\xbf\xef\xbb\xbfa")).original == "\ufeffa"


def test_a_link_is_followed(file, tmp_path):
    write(file, b"a")
    (tmp_path / "link").symlink_to(file)
    assert read(tmp_path / "link").original == "a"
    assert stamp(tmp_path / "link") == stamp(file)


@pytest.mark.parametrize("name", ["missing", "no/folder/here", "dangling", "document.txt/under", "a\0b", "\ud800", ""])
def test_what_is_not_there(name, file, tmp_path, monkeypatch):
    write(file, b"a")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)
    path = Path(name) if name else tmp_path / "empty" / "name"
    with pytest.raises(DocumentNotFound, match="There is no file") as caught:
        read(path)
    assert str(path) in caught.value.message
    assert stamp(path) is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a\r\nb\rc\nd\0", "NUL byte at offset 8 (line 4)"),
        (b"a\n\n\xe9t\xe9", "not UTF-8: byte 0xe9 at offset 3 (line 3)"),
        (b"\xef\xbb\xbfa\xff", "byte 0xff at offset 4 (line 1)"),
        (b"\xed\xa0\x80", "byte 0xed at offset 0 (line 1)"),
        ("a".encode("utf-16"), "looks like UTF-16"),
        ("a".encode("utf-16-be"), "NUL byte at offset 0 (line 1)"),
    ],
)
def test_what_is_no_text(data, words, file):
    with pytest.raises(DocumentUnreadable) as caught:
        read(write(file, data))
    message = caught.value.message
    assert words in message
    assert message.startswith(str(file))
    assert message.endswith(".")


def test_a_folder_and_a_loop(tmp_path):
    with pytest.raises(DocumentUnreadable, match="is a folder"):
        read(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DocumentUnreadable, match="could not be read"):
        read(tmp_path / "loop")


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes in the file system")
def test_nothing_waits_for_a_pipe(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)
        server.bind("socket")
        for path in (tmp_path / "pipe", tmp_path / "socket", Path("/dev/zero"), Path("/dev/tty")):
            with pytest.raises(DocumentUnreadable, match="pipe, a socket or a device"):
                read(path)


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes in the file system")
def test_a_file_that_becomes_a_pipe_after_the_look(file, tmp_path, monkeypatch):
    write(file, b"a")
    status = file.stat()
    file.unlink()
    os.mkfifo(file)
    monkeypatch.setattr(Path, "stat", lambda self, **_: status)
    with pytest.raises(DocumentUnreadable, match="pipe, a socket or a device"):
        read(file)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_is_not_ours_to_read(file):
    write(file, b"a").chmod(0)
    with pytest.raises(DocumentUnreadable, match="may not be read"):
        read(file)


def test_permissions_as_the_system_reports_them(file, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    write(file, b"a")
    monkeypatch.setattr(text_module.os, "open", refuse)
    with pytest.raises(DocumentUnreadable, match="may not be read"):
        read(file)


def test_a_file_that_is_too_large(file, monkeypatch):
    with write(file, b"").open("r+b") as stream:
        stream.truncate(10**9)
    with pytest.raises(DocumentUnreadable, match="1,000,000,000 bytes"):
        read(file)
    # One that grows while it is read: its size says nothing.
    monkeypatch.setattr(text_module, "MAX_BYTES", 3)
    monkeypatch.setattr(text_module, "_check_kind", lambda path, status: None)
    with pytest.raises(DocumentUnreadable, match="more than the 3 that are read"):
        read(write(file, b"abcd"))


def test_no_descriptor_is_left_open(file):
    fds = Path("/proc/self/fd")
    if not fds.exists():
        pytest.skip("no /proc")
    before = len(list(fds.iterdir()))
    for data in (b"a", b"\0", b"\xff"):
        with contextlib.suppress(DocumentUnreadable):
            read(write(file, data))
    assert len(list(fds.iterdir())) == before


def test_a_stamp_differs_when_the_content_does(file, tmp_path):
    assert stamp(file) is None
    first = stamp(write(file, b"a"))
    assert first == stamp(file)
    assert stamp(write(file, b"ab")) != first
    os.utime(file, ns=(1, 1))
    assert stamp(file) != first
    write(tmp_path / "new", b"a").replace(file)
    assert stamp(file) != first


def test_a_file_just_written_is_not_settled(file):
    now = stamp(write(file, b"a"))
    assert not settled(now)
    assert settled(None)
    old = time.time_ns() - 3 * 10**9
    assert settled((*now[:3], old, old))
    assert not settled((*now[:3], old, time.time_ns() + 10**10))


def test_the_mode_of_a_file_is_left_alone(file):
    write(file, b"a").chmod(0o640)
    read(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_of_two_byte_order_marks_only_the_first_is_none_of_the_text(tmp_path):
    path = tmp_path / "document.txt"
    path.write_bytes("\ufeff\ufeffThe cat.".encode())
    text = read(path)
    assert text.normalised == "\ufeffThe cat."
    assert text.version == version_of("\ufeffThe cat.")
    assert text.position(1) == (0, 1)
