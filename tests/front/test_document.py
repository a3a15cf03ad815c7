"""What a document's text is: the buffer while that has unsaved changes, else the file."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from cag_daemon.errors import DocumentEmpty, DocumentNotFound, DocumentUnreadable
from cag_daemon.front.document import SAVING_SECONDS, Document, Held, OpenFile, file_key
from cag_daemon.text import Buffer


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "document.txt"
    file.write_text("On disk.")
    return file


def look(document: Document, *open_files: tuple[Path, OpenFile]) -> bool:
    return asyncio.run(document.look({file_key(path): file for path, file in open_files}))


def known(document: Document) -> str | None:
    return document.known.normalised if document.known is not None else None


def test_the_disk_is_the_text_when_nothing_is_open(path):
    document = Document(path)
    assert look(document)
    assert (known(document), document.source, document.sequence) == ("On disk.", "disk", 1)


def test_looking_again_at_the_same_text_is_no_news(path):
    document = Document(path)
    look(document)
    assert not look(document)
    os.utime(path)
    assert not look(document)
    assert document.sequence == 1


def test_a_text_of_the_same_size_written_at_once_afterwards_is_seen(path):
    document = Document(path)
    look(document)
    for text in ("In disk.", "Up disk.", "By disk."):
        path.write_text(text)
        look(document)
        assert known(document) == text


def test_unsaved_changes_win_over_the_disk(path):
    document, file = Document(path), OpenFile(Buffer("On disk."))
    look(document, (path, file))
    assert (file.dirty, document.source) == (False, "disk")
    file.buffer.apply(None, "In the editor.")
    file.changes, file.dirty = 1, True
    assert look(document, (path, file))
    assert (known(document), document.source) == ("In the editor.", "buffer")
    path.write_text("Changed below the editor.")
    look(document, (path, file))
    assert known(document) == "In the editor."


def test_a_clean_buffer_does_not_win_over_a_file_that_changed(path):
    document, file = Document(path), OpenFile(Buffer("On disk."))
    look(document, (path, file))
    path.write_text("Checked out.")
    assert look(document, (path, file))
    assert (known(document), document.source) == ("Checked out.", "disk")


def test_a_buffer_that_was_clean_when_it_was_opened_does_not_win_even_if_nobody_looked_meanwhile(path):
    document = Document(path)
    look(document)
    file = OpenFile(Buffer("On disk."))
    path.write_text("Checked out.")
    look(document, (path, file))
    assert known(document) == "Checked out."


def test_a_buffer_opened_with_unsaved_changes_wins(path):
    document, file = Document(path), OpenFile(Buffer("Restored by the editor."))
    look(document, (path, file))
    assert (known(document), document.source) == ("Restored by the editor.", "buffer")


def test_a_buffer_that_came_to_equal_the_disk_is_clean_again(path):
    document, file = Document(path), OpenFile(Buffer("Changed."), dirty=True)
    look(document, (path, file))
    file.buffer.apply(None, "On disk.")
    file.changes += 1
    look(document, (path, file))
    assert (file.dirty, document.source) == (False, "disk")


def test_an_unsaved_new_file_is_a_text(tmp_path):
    document = Document(tmp_path / "new.txt")
    look(document, (document.path, OpenFile(Buffer("Not on disk yet."))))
    assert (known(document), document.source) == ("Not on disk yet.", "buffer")


def test_a_file_that_is_missing_for_less_than_a_second_was_never_gone(path):
    document = Document(path)
    look(document)

    async def save_slowly() -> None:
        path.unlink()
        looking = asyncio.ensure_future(document.look({}))
        await asyncio.sleep(0.2)
        path.write_text("Saved.")
        await looking

    asyncio.run(save_slowly())
    assert (known(document), document.error) == ("Saved.", None)


def test_a_file_that_stays_away_is_missing(path):
    document = Document(path)
    look(document)
    path.unlink()
    began = time.monotonic()
    assert look(document)
    assert time.monotonic() - began >= SAVING_SECONDS
    assert isinstance(document.error, DocumentNotFound)
    assert document.known is None


def test_what_was_never_there_is_missing_at_once(tmp_path):
    document = Document(tmp_path / "nothing.txt")
    look(document)
    assert isinstance(document.error, DocumentNotFound)


@pytest.mark.parametrize("text", ["", " \n\t\n"])
def test_white_space_is_an_empty_document(path, text):
    path.write_text(text)
    document = Document(path)
    look(document)
    assert isinstance(document.error, DocumentEmpty)


def test_a_folder_in_its_place_is_unreadable_and_a_file_put_back_is_read(path):
    document = Document(path)
    look(document)
    path.unlink()
    path.mkdir()
    look(document)
    assert isinstance(document.error, DocumentUnreadable)
    path.rmdir()
    path.write_text("Back.")
    look(document)
    assert known(document) == "Back."


def test_only_the_last_few_texts_are_kept_for_citations(path):
    document = Document(path)
    versions = []
    for number in range(5):
        path.write_text(f"Text {number}.")
        look(document)
        assert document.text is not None
        document.remember(document.text)
        versions.append(document.text.version)
    assert [document.recall(version) is not None for version in versions] == [False, False, True, True, True]


def test_a_nul_in_the_editor_is_no_text_either(path):
    document = Document(path)
    look(document, (path, OpenFile(Buffer("No\0text."), dirty=True)))
    assert isinstance(document.error, DocumentUnreadable)


def test_the_text_that_is_held_is_kept_for_citations_however_many_readings_were_overtaken(path):
    document = Document(path)
    look(document)
    held = document.text
    assert held is not None
    document.remember(held)
    document.held = Held(held, 1, None, tokens=3, computed=3, limit=100, bytes=0, saved=True)
    for number in range(5):
        path.write_text(f"Overtaken {number}.")
        look(document)
        assert document.text is not None
        document.remember(document.text)
    assert document.recall(held.version) is held
