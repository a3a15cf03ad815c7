"""The document is edited: whoever does it and however, the next answer is from the new text."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.client import Client, range_of, slice16, units, version_of
from tests.daemon.conftest import Daemons
from tests.documents import CAFE, LIGHTHOUSE, Change

TEXT = LIGHTHOUSE.text
CHEST, BOAT, VISITORS, PENCIL, DOCTOR = LIGHTHOUSE.changes


@pytest.fixture
def client(quiet: Client) -> Iterator[Client]:
    """A daemon whose document is LIGHTHOUSE, on disk and nowhere else, and is read."""
    restore(quiet)
    yield quiet
    if quiet.versions.pop(quiet.document.as_uri(), None):
        quiet.close(quiet.document)


def restore(client: Client) -> None:
    if client.document.is_symlink():
        client.document.unlink()
    client.document.write_text(TEXT, encoding="utf-8", newline="")
    assert sees(client, TEXT, CHEST, old=True)


def sees(client: Client, text: str, change: Change, *, old: bool = False, source: str = "disk") -> bool:
    """That the next answer is from that text."""
    result = client.ask(change.question).result()
    assert result["document"]["version"] == version_of(text)
    assert (change.before if old else change.expected) in result["answer"]
    assert (change.expected if old else change.before) not in result["answer"]
    assert result["snapshot"] == "current"
    assert client.document_status(result["document"]["uri"])["source"] == source
    return True


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "core.autocrlf=false"]
    env = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    subprocess.run(["git", *identity, *arguments], cwd=folder, env=env, check=True, capture_output=True)


# ── how programs write files ────────────────────────────────────────────────────────────────


def in_place(path: Path, change: Change, text: str) -> None:  # VS Code, nano, echo >
    path.write_text(text, encoding="utf-8", newline="")


def by_backup(path: Path, change: Change, text: str) -> None:  # vim: the old file becomes the backup, a new one is made
    backup = path.with_name(path.name + "~")
    path.rename(backup)
    path.write_text(text, encoding="utf-8", newline="")
    backup.unlink()


def by_replacing(path: Path, change: Change, text: str) -> None:  # rsync, most "safe" savers
    fresh = path.with_name(".document.txt.swp")
    fresh.write_text(text, encoding="utf-8", newline="")
    fresh.replace(path)


def by_deleting(path: Path, change: Change, text: str) -> None:
    path.unlink()
    path.write_text(text, encoding="utf-8", newline="")


def by_sed(path: Path, change: Change, text: str) -> None:
    subprocess.run(["sed", "-i", f"s/{change.old}/{change.new}/", str(path)], check=True)


def by_vim(path: Path, change: Change, text: str) -> None:
    commands = [
        "-c",
        "set backup writebackup backupskip= backupcopy=no",
        "-c",
        f"%s/{change.old}/{change.new}/",
        "-c",
        "wq",
    ]
    subprocess.run(["vim", "-Nu", "NONE", "-es", *commands, str(path)], check=True, timeout=30)
    path.with_name(path.name + "~").unlink()


def in_place_with_old_times(path: Path, change: Change, text: str) -> None:
    """Neither the size nor the modification time tells of it (cp -p, tar, some sync tools)."""
    before = path.stat()
    text = path.read_text(encoding="utf-8").replace(change.old, change.new)
    path.write_text(text, encoding="utf-8", newline="")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


WAYS = [in_place, by_backup, by_replacing, by_deleting, by_sed, by_vim]


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def write(request: pytest.FixtureRequest) -> Callable[[Path, Change, str], None]:
    if request.param in (by_vim, by_sed) and shutil.which(request.param.__name__[3:]) is None:
        pytest.skip("not on this machine")
    return request.param


def test_the_next_answer_is_from_the_new_text_at_once(
    client: Client, write: Callable[[Path, Change, str], None]
) -> None:
    # No event can have come yet: the file itself is looked at.
    text = TEXT
    for change in (CHEST, BOAT, DOCTOR):
        text = text.replace(change.old, change.new)
        write(client.document, change, text)
        assert sees(client, text, change)
    assert sees(client, text, VISITORS, old=True)


def test_the_new_text_is_read_without_being_asked(client: Client, write: Callable[[Path, Change, str], None]) -> None:
    since = client.mark()
    text = LIGHTHOUSE.changed(PENCIL)
    write(client.document, PENCIL, text)
    version = version_of(text)
    changed = client.wait_notification(
        "cag/documentChanged", lambda params: params["document"]["version"] == version, since=since
    )
    assert changed["document"]["uri"] == client.document.as_uri()
    assert changed["tokens"]["total"] == changed["tokens"]["kept"] + changed["tokens"]["computed"] > 0
    status = client.wait_status("ready")
    assert status["documents"][0]["version"] == version
    assert sees(client, text, PENCIL)


def test_a_change_that_size_and_times_hide_is_seen(client: Client) -> None:
    change = Change("Petrel", "Curlew", BOAT.question, "Petrel", "Curlew")
    in_place_with_old_times(client.document, change, "")
    assert sees(client, LIGHTHOUSE.changed(change), change)


def test_git_checkout_there_and_back(client: Client) -> None:
    folder = client.folder
    git(folder, "init", "-q")
    try:
        git(folder, "add", "document.txt")
        git(folder, "commit", "-qm", "old")
        git(folder, "branch", "old")
        git(folder, "checkout", "-qb", "new")
        client.document.write_text(LIGHTHOUSE.changed(CHEST), encoding="utf-8", newline="")
        git(folder, "commit", "-qam", "new")
        assert sees(client, LIGHTHOUSE.changed(CHEST), CHEST)
        for _ in range(2):
            git(folder, "checkout", "-q", "old")
            assert sees(client, TEXT, CHEST, old=True)
            git(folder, "checkout", "-q", "new")
            assert sees(client, LIGHTHOUSE.changed(CHEST), CHEST)
        git(folder, "stash", "list")
    finally:
        shutil.rmtree(folder / ".git")


def test_the_same_text_written_again_is_not_an_event(client: Client) -> None:
    since = client.mark()
    by_backup(client.document, CHEST, TEXT)
    os.utime(client.document)
    client.document.write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    assert sees(client, TEXT, CHEST, old=True)
    # What came before the answer came before a later change is read.
    client.document.write_text(LIGHTHOUSE.changed(CHEST), encoding="utf-8")
    new = version_of(LIGHTHOUSE.changed(CHEST))
    client.wait_notification("cag/documentChanged", lambda params: params["document"]["version"] == new, since=since)
    versions = [each["params"]["document"]["version"] for each in client.messages("cag/documentChanged", since=since)]
    assert versions == [new]


@pytest.mark.parametrize("how", ["empty", "missing"])
def test_a_document_that_is_gone_for_a_moment_is_being_saved(client: Client, how: str) -> None:
    since = client.mark()
    text = LIGHTHOUSE.changed(CHEST)
    client.document.write_bytes(b"") if how == "empty" else client.document.unlink()
    later = threading.Timer(0.3, lambda: client.document.write_text(text, encoding="utf-8"))
    later.start()
    pending = client.ask(CHEST.question)
    assert pending.result()["document"]["version"] in (version_of(TEXT), version_of(text))
    later.join()
    assert sees(client, text, CHEST)
    told = [each["params"]["documents"][0]["state"] for each in client.messages("cag/statusChanged", since=since)]
    assert not {"missing", "failed"} & set(told)
    last = client.messages("cag/documentChanged", since=since)[-1]["params"]
    assert last["document"]["version"] == version_of(text)


# ── symbolic links, replaced folders ────────────────────────────────────────────────────────


def test_a_document_behind_a_symlink_is_followed(client: Client, tmp_path: Path) -> None:
    targets = [tmp_path / "one.txt", tmp_path / "two.txt"]
    targets[0].write_text(LIGHTHOUSE.changed(CHEST), encoding="utf-8")
    targets[1].write_text(LIGHTHOUSE.changed(BOAT), encoding="utf-8")
    client.document.unlink()
    client.document.symlink_to(targets[0])
    assert sees(client, LIGHTHOUSE.changed(CHEST), CHEST)
    assert client.ask(CHEST.question).result()["citations"][0]["location"]["uri"] == client.document.as_uri()

    changed = LIGHTHOUSE.changed(CHEST).replace(DOCTOR.old, DOCTOR.new)  # the file behind it is edited
    since = client.mark()
    targets[0].write_text(changed, encoding="utf-8")
    assert sees(client, changed, DOCTOR)

    client.document.unlink()  # it points elsewhere
    client.document.symlink_to(targets[1])
    assert sees(client, LIGHTHOUSE.changed(BOAT), BOAT)

    again = LIGHTHOUSE.changed(BOAT).replace(PENCIL.old, PENCIL.new)  # the file there is edited, and nobody asks
    by_replacing(targets[1], PENCIL, again)
    new = version_of(again)
    client.wait_notification("cag/documentChanged", lambda params: params["document"]["version"] == new, since=since)


@pytest.mark.exhaustive
def test_a_folder_that_comes_is_replaced_and_comes_back(daemon: Daemons) -> None:
    client = daemon(None, options={"document": "docs/deep/notes.txt"})
    client.wait_status("noDocument")
    docs = client.folder / "docs"
    notes = docs / "deep" / "notes.txt"

    notes.parent.mkdir(parents=True)  # neither folder was there
    notes.write_text(TEXT, encoding="utf-8")
    client.wait_status("ready")  # seen without being asked
    assert sees(client, TEXT, CHEST, old=True)

    other = client.folder / "other"  # another folder takes its place
    shutil.copytree(docs, other)
    (other / "deep" / "notes.txt").write_text(LIGHTHOUSE.changed(CHEST), encoding="utf-8")
    docs.rename(client.folder / "aside")
    other.rename(docs)
    assert sees(client, LIGHTHOUSE.changed(CHEST), CHEST)
    assert notes.read_text(encoding="utf-8") == LIGHTHOUSE.changed(CHEST)

    since = client.mark()  # the new folder is watched
    text = LIGHTHOUSE.changed(BOAT)
    by_replacing(notes, BOAT, text)
    new = version_of(text)
    client.wait_notification("cag/documentChanged", lambda params: params["document"]["version"] == new, since=since)

    git(client.folder, "init", "-q")  # a branch without the folder, and back
    git(client.folder, "commit", "-q", "--allow-empty", "-m", "without")
    git(client.folder, "branch", "without")
    git(client.folder, "checkout", "-qb", "with")
    git(client.folder, "add", "docs")
    git(client.folder, "commit", "-qm", "with")
    git(client.folder, "checkout", "-q", "without")
    assert not docs.exists()
    client.wait_status(lambda status: status["documents"][0]["state"] == "missing")
    git(client.folder, "checkout", "-q", "with")
    assert sees(client, text, BOAT)
    notes.write_text(TEXT, encoding="utf-8")
    since = client.mark()
    git(client.folder, "checkout", "-q", "--", "docs")
    assert sees(client, text, BOAT)


# ── buffers ─────────────────────────────────────────────────────────────────────────────────


def test_an_unsaved_buffer_wins_until_it_is_saved(client: Client) -> None:
    client.open(client.document, TEXT)
    buffer = LIGHTHOUSE.changed(CHEST)
    client.change(client.document, (range_of(TEXT, CHEST.old), CHEST.new))
    assert sees(client, buffer, CHEST, source="buffer")

    client.document.write_text(LIGHTHOUSE.changed(BOAT), encoding="utf-8")  # somebody else writes the file
    assert sees(client, buffer, CHEST, source="buffer")
    assert sees(client, buffer, BOAT, old=True, source="buffer")

    client.document.write_text(buffer, encoding="utf-8")  # the editor saves
    client.save(client.document)
    assert sees(client, buffer, CHEST)
    client.document.write_text(LIGHTHOUSE.changed(DOCTOR), encoding="utf-8")  # from here on the file counts again
    assert sees(client, LIGHTHOUSE.changed(DOCTOR), DOCTOR)


def test_a_buffer_that_is_closed_unsaved_gives_way_to_the_file(client: Client) -> None:
    client.open(client.document, TEXT)
    client.change(client.document, LIGHTHOUSE.changed(CHEST))
    assert sees(client, LIGHTHOUSE.changed(CHEST), CHEST, source="buffer")
    client.close(client.document)
    client.versions.clear()
    assert sees(client, TEXT, CHEST, old=True)


def test_a_clean_buffer_does_not_win_over_a_changed_file(client: Client) -> None:
    client.open(client.document, TEXT)
    assert sees(client, TEXT, CHEST, old=True)
    by_replacing(client.document, CHEST, LIGHTHOUSE.changed(CHEST))
    assert sees(client, LIGHTHOUSE.changed(CHEST), CHEST)


def test_a_buffer_that_was_saved_does_not_win_over_a_file_changed_later(client: Client) -> None:
    client.open(client.document, TEXT)
    client.change(client.document, LIGHTHOUSE.changed(BOAT))
    by_backup(client.document, BOAT, LIGHTHOUSE.changed(BOAT))
    client.save(client.document)
    assert sees(client, LIGHTHOUSE.changed(BOAT), BOAT)
    in_place(client.document, CHEST, LIGHTHOUSE.changed(CHEST))
    assert sees(client, LIGHTHOUSE.changed(CHEST), CHEST)


def test_a_buffer_that_is_opened_with_unsaved_text_wins(client: Client) -> None:
    # VS Code's hot exit: the unsaved text of the last session comes with didOpen.
    client.open(client.document, LIGHTHOUSE.changed(CHEST))
    assert sees(client, LIGHTHOUSE.changed(CHEST), CHEST, source="buffer")


def test_a_buffer_of_another_file_changes_nothing(client: Client) -> None:
    other = client.folder / "other.txt"
    client.open(other, "The logbook is kept in a kettle.")
    client.change(other, "The logbook is kept in a fridge.")
    assert sees(client, TEXT, CHEST, old=True)
    client.close(other)


def test_a_buffer_without_a_file_is_a_document_too(client: Client) -> None:
    client.open(client.document, TEXT)
    client.change(client.document, LIGHTHOUSE.changed(CHEST))
    client.document.unlink()
    assert sees(client, LIGHTHOUSE.changed(CHEST), CHEST, source="buffer")
    client.document.write_text(TEXT, encoding="utf-8")


def test_the_last_of_many_keystrokes_is_answered_from(client: Client) -> None:
    client.open(client.document, TEXT)
    text = TEXT
    for letter in "The cook is called Bruno. ":
        where = {"line": 0, "character": len(text.split("\n")[0])}
        client.change(client.document, ({"start": where, "end": where}, letter))
        line, rest = text.split("\n", 1)
        text = f"{line}{letter}\n{rest}"
    client.change(client.document, (range_of(text, CHEST.old), CHEST.new))
    assert sees(client, text.replace(CHEST.old, CHEST.new), CHEST, source="buffer")
    # Read versions that were overtaken are no harm; but each key is not a reading of its own.
    assert client.status()["queue"] == 0


class Buffer:
    """A buffer as an editor keeps it: UTF-16 code units, lines ended by \\n, \\r\\n or \\r."""

    def __init__(self, client: Client, text: str) -> None:
        self.client, self.text = client, text
        client.document.write_bytes(text.encode())
        client.open(client.document, text)

    def offset(self, line: int, character: int) -> int:
        data = units(self.text).decode("utf-16-le", "surrogatepass")
        starts, ends = [0], []
        index = 0
        while index < len(data):
            if data[index] in "\r\n":
                ends.append(index)
                index += 2 if data[index : index + 2] == "\r\n" else 1
                starts.append(index)
            else:
                index += 1
        ends.append(index)
        if line >= len(starts):
            return len(units(data)) // 2
        before = len(units(data[: starts[line]])) // 2
        return before + min(character, len(units(data[starts[line] : ends[line]])) // 2)

    def edit(self, *edits: tuple[tuple[int, int], tuple[int, int], str]) -> None:
        """Edits of one notification: each refers to the text that the one before has made."""
        changes: list[tuple[dict[str, Any], str]] = []
        for start, end, new in edits:
            places = {"start": start, "end": end}
            where = {name: {"line": line, "character": at} for name, (line, at) in places.items()}
            changes.append((where, new))
            data, first, last = units(self.text), self.offset(*start), self.offset(*end)
            fresh = data[: 2 * first] + units(new) + data[2 * last :]
            self.text = fresh.decode("utf-16-le", "surrogatepass")
        self.client.change(self.client.document, *changes)

    def check(self) -> None:
        result = self.client.ask("What?", maxNewTokens=1).result()
        assert result["document"]["version"] == version_of(self.text), repr(self.text)


def test_incremental_edits_count_in_utf16(client: Client) -> None:
    buffer = Buffer(client, "😀 The 🐈 sleeps.\nThe second 𝄞 line.\n\nThe end is näh.\n")
    buffer.edit(((0, 10), (0, 10), "old "))  # after an emoji and a half
    buffer.check()
    assert buffer.text.startswith("😀 The 🐈 old sleeps.")
    buffer.edit(((1, 11), (1, 13), "clef"), ((1, 11), (1, 11), "🎼 "))
    buffer.check()
    assert buffer.text.split("\n")[1] == "The second 🎼 clef line."
    buffer.edit(((0, 3), (2, 0), ""))  # over lines
    buffer.check()
    buffer.edit(((0, 0), (0, 2), "🎹"))
    buffer.check()
    buffer.edit(((0, 999), (0, 999), "!"), ((999, 0), (999, 5), "\nlast"))  # beyond the line, beyond the text
    buffer.check()
    buffer.edit(((0, 0), (999, 999), "The whole text is new. 🎉"))
    buffer.check()


def test_incremental_edits_in_lines_that_end_otherwise(client: Client) -> None:
    buffer = Buffer(client, "One line.\r\nTwo lines.\rThree lines.\nFour lines.\r\n\r\nSix lines.")
    buffer.edit(((1, 3), (1, 3), " full"), ((3, 0), (3, 4), "A fourth"))
    buffer.check()
    buffer.edit(((0, 99), (1, 0), " "))  # a CRLF goes
    buffer.check()
    buffer.edit(((0, 0), (0, 0), "\r\n"), ((1, 3), (1, 3), "\r"), ((2, 0), (2, 0), "\n"))
    buffer.check()


def test_incremental_edits_with_a_byte_order_mark(client: Client) -> None:
    buffer = Buffer(client, "\ufeffThe first line.\nThe second line.\n")
    buffer.edit(((0, 5), (0, 10), "1st"))
    buffer.check()
    buffer.edit(((0, 0), (0, 1), ""))  # the mark itself goes
    buffer.check()
    buffer.edit(((1, 0), (1, 0), "\ufeff"))  # in the middle of a text it is a character
    buffer.check()


def test_halves_of_characters_are_replaced_and_joined(client: Client) -> None:
    buffer = Buffer(client, "The cat  sleeps in a kettle.\n")
    buffer.edit(((0, 8), (0, 8), "\ud83d"))  # half a character: U+FFFD for the model
    buffer.check()
    assert version_of(buffer.text) == version_of("The cat \ufffd sleeps in a kettle.\n")
    buffer.edit(((0, 9), (0, 9), "\udc08"))  # and it is whole
    buffer.check()
    assert "🐈" in buffer.text
    buffer.edit(((0, 0), (0, 0), "\udc00"), ((0, 1), (0, 1), " "), ((0, 2), (0, 2), "\ud800"))
    buffer.check()
    assert slice16(buffer.text, 0, 3) == "\udc00 \ud800"


def test_what_was_asked_cancelled_and_edited_in_between_leaves_no_trace(client: Client) -> None:
    def essence() -> tuple:
        result = client.ask(CHEST.question).result()
        return result["answer"], result["citations"], result["tokens"], result["document"]

    before = essence()
    client.open(client.document, TEXT)
    for text in (LIGHTHOUSE.changed(CHEST), CAFE.text, TEXT[:200], TEXT + TEXT):
        client.change(client.document, text)
        client.ask(BOAT.question, maxNewTokens=4).result()
        pending = client.ask(DOCTOR.question)
        pending.cancel()
        pending.reply()
    client.change(client.document, TEXT)
    assert essence() == before
    client.close(client.document)
    client.versions.clear()
    assert essence() == before
    client.request("cag/refresh", {"force": True}).result()
    assert essence() == before


def test_refresh_says_what_it_kept_and_computed(client: Client) -> None:
    version = version_of(TEXT)
    kept = client.request("cag/refresh").result()
    assert (kept["document"]["version"], kept["document"]["uri"]) == (version, client.document.as_uri())
    forced = client.request("cag/refresh", {"force": True}).result()
    assert forced["tokens"]["kept"] == 0
    assert forced["tokens"]["total"] == forced["tokens"]["computed"] == client.document_status()["tokens"]
    client.document.write_text(LIGHTHOUSE.changed(CHEST), encoding="utf-8")
    fresh = client.request("cag/refresh", {"document": client.document.as_uri(), "force": False}).result()
    assert fresh["document"]["version"] == version_of(LIGHTHOUSE.changed(CHEST))
    assert fresh["tokens"]["kept"] + fresh["tokens"]["computed"] == fresh["tokens"]["total"] > 0
    assert client.document_status()["version"] == version_of(LIGHTHOUSE.changed(CHEST))


@pytest.mark.exhaustive
def test_every_way_of_writing_is_seen_by_the_next_question_with_the_watcher_switched_off(
    daemon: Daemons, tmp_path: Path
) -> None:
    blind = tmp_path / "blind"
    blind.mkdir()
    (blind / "sitecustomize.py").write_text(
        "import cag_daemon.front.watch\ncag_daemon.front.watch.Watcher.watch = lambda self, path: None\n"
    )
    client = daemon(TEXT, env={"PYTHONPATH": str(blind)})
    client.wait_status("ready")
    for way in WAYS:
        if way is by_vim and shutil.which("vim") is None:
            continue
        restore(client)
        way(client.document, CHEST, LIGHTHOUSE.changed(CHEST))
        assert sees(client, LIGHTHOUSE.changed(CHEST), CHEST), way.__name__
    # Is it off? What nobody asks about is never read.
    since = client.mark()
    in_place(client.document, BOAT, LIGHTHOUSE.changed(BOAT))
    with pytest.raises(AssertionError):
        client.wait_notification("cag/documentChanged", timeout=3, since=since)
