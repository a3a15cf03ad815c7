"""What was read once is copied back after a restart, to the bit, or it is read again. Never a wrong answer."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cag_daemon.engine import keeping as module
from cag_daemon.engine import store
from cag_daemon.engine.engine import Engine
from cag_daemon.errors import OutOfMemory, Stopped
from cag_daemon.places import CACHES, document_folder
from tests.engine.caches import BAKERY, CHUNK, After, forge, fresh, identical, kv
from tests.models import embedded_tokenizer, loaded_random

TOKENIZER = embedded_tokenizer()
LOADED = dataclasses.replace(loaded_random(TOKENIZER), key="a model")
TEXT = BAKERY * 4


@pytest.fixture(autouse=True)
def _no_disk_is_too_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "FREE_AFTERWARDS", 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def document(tmp_path: Path) -> str:
    return str(tmp_path / "document.txt")


Start = Callable[..., Engine]


@pytest.fixture
def start(folder: Path) -> Start:
    """Another engine, as after a restart."""

    def another(loaded: Any = LOADED, most: int | None = None, **changes: Any) -> Engine:
        return Engine(dataclasses.replace(loaded, **changes) if changes else loaded, None, str(folder), most)

    return another


def read(engine: Engine, document: str, text: str = TEXT, *, saved: bool = True, name: str = "d") -> Any:
    return engine.prepare(name, f"{len(text)}", text, file=document, saved=saved)


def written(engine: Engine) -> None:
    assert engine.keeping is not None
    while engine.keeping.busy:
        engine.keeping.work()


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{CACHES}/*/*/*.safetensors"))


def test_after_a_restart_it_is_copied_and_the_same_to_the_bit(start: Start, folder: Path, document: str) -> None:
    first = start()
    reading = read(first, document)
    written(first)
    second = start()
    again = read(second, document)
    assert (again.kept, again.computed) == (reading.tokens, 0)
    assert identical(kv(second), kv(first))
    assert second.ask("d", "Why?", max_new_tokens=4) == first.ask("d", "Why?", max_new_tokens=4)
    written(second)
    assert identical(kv(second), kv(first))


def test_only_what_is_new_is_written_and_two_texts_are_kept(start: Start, folder: Path, document: str) -> None:
    engine = start()
    read(engine, document)
    written(engine)
    before = {each: each.stat().st_mtime_ns for each in segments(folder)}
    assert len(before) == -(-len(engine._caches.get("d").text.ids) // CHUNK)
    read(engine, document, TEXT + "More.")
    written(engine)
    after = {each: each.stat().st_mtime_ns for each in segments(folder)}
    assert before.items() <= after.items()
    assert len(after) <= len(before) + 2
    for number in range(4):
        read(engine, document, f"{number}. {TEXT}")
        written(engine)
    assert len(list(folder.glob(f"{CACHES}/*/*/*.json"))) == 2
    names = {name for file in folder.glob(f"{CACHES}/*/*/*.json") for name in json.loads(file.read_text())["segments"]}
    assert {each.stem for each in segments(folder)} == names


def test_after_an_edit_only_what_is_not_on_disk_is_read(start: Start, document: str) -> None:
    engine = start()
    read(engine, document)
    written(engine)
    reading = read(start(), document, TEXT + "More.")
    assert 0 < reading.computed <= 2 * CHUNK


def test_unsaved_changes_are_never_written_but_read_from_what_is_there(
    start: Start, folder: Path, document: str
) -> None:
    engine = start()
    read(engine, document, saved=False)
    written(engine)
    assert not folder.exists()
    read(engine, document)
    written(engine)
    seen = segments(folder)
    assert read(start(), document, TEXT + "Unsaved.", saved=False).computed <= 2 * CHUNK
    assert segments(folder) == seen


def test_without_a_folder_or_a_key_nothing_is_written(folder: Path, document: str, start: Start) -> None:
    for engine in (Engine(LOADED), start(key="")):
        assert engine.keeping is None
        read(engine, document)
    engine = start()
    read(engine, document)
    engine.keep(None, None)
    assert engine.keeping is None
    assert not folder.exists()


def test_nobody_else_can_read_it(start: Start, folder: Path, document: str) -> None:
    engine = start()
    read(engine, document)
    written(engine)
    for each in (folder, *folder.rglob("*")):
        mode = stat.S_IMODE(each.stat().st_mode)
        assert mode == (0o700 if each.is_dir() else 0o600) or each.name == "CACHEDIR.TAG", each
    assert (folder / "CACHEDIR.TAG").is_file()


@pytest.mark.parametrize(
    "changes", [{"key": "another"}, {"chunk": 32}], ids=["another model, or system", "another chunk"]
)
def test_another_key_is_another_cache(changes: dict[str, Any], start: Start, document: str) -> None:
    engine = start()
    read(engine, document)
    written(engine)
    assert read(start(**changes), document).kept == 0
    assert read(start(), document).computed == 0


def test_force_reads_it_all_and_writes_it_anew(start: Start, folder: Path, document: str) -> None:
    engine = start()
    read(engine, document)
    written(engine)
    forge(folder)  # why somebody would want it
    second = start()
    assert second.prepare("d", "1", TEXT, file=document, saved=True, force=True).kept == 0
    assert segments(folder) == []
    written(second)
    third = start()
    assert read(third, document).computed == 0
    assert identical(kv(third), kv(engine))


# ── damage ──────────────────────────────────────────────────────────────────────────────────


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


def rewrite(file: Path, **metadata: str) -> None:
    with safe_open(file, "pt") as opened:
        before = opened.metadata()
    save_file(load_file(file), file, before | metadata)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit": flip,
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:-9]),
    "empty": lambda file: file.write_bytes(b""),
    "noise": lambda file: file.write_bytes(os.urandom(500)),
    "gone": lambda file: file.unlink(),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "of other ids": lambda file: rewrite(file, ids="[1, 2, 3]"),
    "of a newer version": lambda file: rewrite(file, format="99"),
    "without its ids": lambda file: save_file(load_file(file), file),
    "of other shapes": lambda file: save_file(
        {"keys": torch.zeros(1, 1, 1, 1), "values": torch.zeros(1, 1, 1, 1)},
        file,
        {"ids": "[1]", "crc": "0", "format": "1"},
    ),
}


@pytest.mark.parametrize("which", [0, 2, -1])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_read_again_and_never_seen(
    damage: str, which: int, start: Start, folder: Path, document: str
) -> None:
    engine = start()
    reading = read(engine, document)
    written(engine)
    manifest = json.loads(next(folder.glob(f"{CACHES}/*/*/*.json")).read_text())
    file = next(folder.glob(f"{CACHES}/*/*")) / f"{manifest['segments'][which]}.safetensors"
    DAMAGE[damage](file)
    second = start()
    again = read(second, document)
    number = which % len(manifest["segments"])
    assert again.kept == number * CHUNK
    assert identical(kv(second), kv(engine))
    assert again.tokens == reading.tokens
    written(second)
    if damage != "a folder":
        assert read(start(), document).computed == 0


@pytest.mark.parametrize("words", ["", "{", "[]", '{"format": 99}', '{"format": 1}', '{"format": 1, "segments": null}'])
def test_a_manifest_that_is_no_use_costs_a_check(words: str, start: Start, folder: Path, document: str) -> None:
    engine = start()
    read(engine, document)
    written(engine)
    next(folder.glob(f"{CACHES}/*/*/*.json")).write_text(words)
    again = start()
    assert read(again, document).computed == 0
    assert identical(kv(again), kv(engine))
    read(again, document, TEXT + "More.")
    written(again)
    assert read(start(), document, TEXT + "More.").computed == 0


@settings(settings.get_profile("engine"), max_examples=25)
@given(
    edits=st.lists(st.tuples(st.integers(0, 300), st.sampled_from(["", "Anna. ", "It rains.\n"])), max_size=4),
    lost=st.lists(st.integers(0, 40), max_size=4),
)
def test_whatever_was_written_and_lost_the_cache_is_a_fresh_one(
    edits: list[tuple[int, str]], lost: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.mktemp("history")
    text, document = TEXT, str(base / "d.txt")
    for where, words in edits:
        engine = Engine(LOADED, None, str(base), None)
        read(engine, document, text)
        written(engine)
        for number in lost:
            files = segments(base)
            if number < len(files):
                files[number].unlink()
        text = text[:where] + words + text[where + 3 :]
    engine = Engine(LOADED, None, str(base), None)
    read(engine, document, text)
    assert identical(kv(engine), fresh(engine, text)[0])


# ── verified ────────────────────────────────────────────────────────────────────────────────


def test_what_this_machine_would_not_make_of_it_is_thrown_away(
    start: Start, folder: Path, document: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = start()
    read(engine, document)
    written(engine)
    forge(folder)
    dropped: list[str] = []
    second = Engine(LOADED, keep_in=str(folder), on_wrong=dropped.append)
    assert read(second, document).computed == 0
    with caplog.at_level(logging.WARNING):
        written(second)
    assert dropped == ["d"]
    assert not second.has("d")
    assert segments(folder) == []
    assert len([each for each in caplog.messages if "read anew" in each]) == 1
    assert read(second, document).kept == 0
    assert identical(kv(second), kv(engine))


def test_in_a_new_environment_it_is_verified_before_anybody_is_answered(
    start: Start, folder: Path, document: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start()
    read(engine, document)
    written(engine)
    forge(folder)
    monkeypatch.setattr(module, "environment", lambda device: "another kernel")
    second = start()
    assert read(second, document).kept == 0
    assert identical(kv(second), kv(engine))


def test_a_question_goes_before_verifying_and_writing(start: Start, document: str) -> None:
    engine = start()
    read(engine, document)
    written(engine)
    second = start()
    read(second, document)
    before = kv(second)
    assert second.keeping is not None
    second.keeping.work(should_stop=lambda: True)
    assert second.keeping.busy
    assert identical(kv(second), before)
    written(second)
    assert identical(kv(second), before)


# ── disks ───────────────────────────────────────────────────────────────────────────────────


def test_a_full_disk_is_said_once_and_costs_nothing_else(
    start: Start, folder: Path, document: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = store.save_file

    def full(tensors: Any, name: str, **more: Any) -> None:
        if len(segments(folder)) >= 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, name, **more)

    monkeypatch.setattr(store, "save_file", full)
    engine = start()
    for number in range(3):
        read(engine, document, f"{number} {TEXT}")
        written(engine)
    assert len([each for each in caplog.messages if "No space left" in each]) == 1
    assert not [each for each in folder.rglob("*") if each.name.startswith(".")]
    assert read(start(), document, f"0 {TEXT}").kept == 3 * CHUNK


def test_a_folder_that_nobody_can_write_to_is_no_hindrance(tmp_path: Path, document: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    engine = Engine(LOADED, None, str(tmp_path / "file"), None)
    read(engine, document)
    written(engine)
    assert engine.ask("d", "Why?", max_new_tokens=1).generated <= 1


def test_the_least_recently_used_go_when_it_is_too_much(start: Start, folder: Path, tmp_path: Path) -> None:
    engine = start()
    read(engine, str(tmp_path / "0.txt"))
    written(engine)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    engine = start(most=int(2.5 * size))
    for number in range(1, 4):
        later = time.time() + 10 * number  # a clock that stands still between two files decides nothing
        os.utime(next(folder.glob(f"{CACHES}/0.txt-*/*/*.json")), (later, later))
        read(engine, str(tmp_path / f"{number}.txt"), name=str(number))
        written(engine)
    left = {each.name.split(".")[0] for each in (folder / CACHES).iterdir() if each.is_dir()}
    assert left == {"0", "3"}


def test_what_is_too_large_by_itself_is_not_kept(start: Start, folder: Path, document: str) -> None:
    engine = start(most=1000)
    read(engine, document)
    written(engine)
    assert segments(folder) == []


def test_the_folder_is_the_documents_own(start: Start, folder: Path, document: str) -> None:
    engine = start()
    read(engine, document)
    written(engine)
    (own,) = [each for each in (folder / CACHES).iterdir() if each.is_dir()]
    assert own == document_folder(folder, Path(document))


def restarted_with_forged(folder: Path, document: str) -> tuple[Engine, list[str]]:
    """An engine that has restored what is not what it would make of the text, and whom it told of as wrong."""
    engine = Engine(LOADED, keep_in=str(folder))
    read(engine, document)
    written(engine)
    forge(folder)
    wrong: list[str] = []
    second = Engine(LOADED, keep_in=str(folder), on_wrong=wrong.append)
    assert read(second, document).computed == 0
    return second, wrong


def test_a_wrong_cache_answers_nobody_under_any_name(folder: Path, document: str) -> None:
    second, dropped = restarted_with_forged(folder, document)
    assert read(second, document + ".copy", name="e").computed == 0  # the same text: they share it
    written(second)
    assert sorted(dropped) == ["d", "e"]
    assert not second.has("d")
    assert not second.has("e")


def test_an_edit_does_not_save_a_wrong_cache_from_being_found_out(folder: Path, document: str) -> None:
    second, dropped = restarted_with_forged(folder, document)
    read(second, document, TEXT + "More.", saved=False)  # before there was time to look
    written(second)
    assert dropped == ["d"]


def test_what_an_interrupted_writing_left_behind_goes(start: Start, folder: Path, document: str) -> None:
    engine = start()
    read(engine, document)
    written(engine)
    own = next(folder.glob(f"{CACHES}/*/*"))
    old, new = own / ".0.safetensors.abc", own / ".1.safetensors.abc"
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (1, 1))
    read(engine, document, TEXT + "More.")
    written(engine)
    assert not old.exists()
    assert new.exists()  # somebody may be writing it


def test_over_several_devices_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cag_daemon.engine import model as loading
    from cag_daemon.engine.plan import Wanted, plan_for
    from tests.models import save_model

    planned = plan_for(Wanted(str(save_model(tmp_path / "m")), device="cpu"))
    model = LOADED.model
    assert loading._key(planned, model, packed=False) != ""
    assert loading._key(planned, model, packed=True) != loading._key(planned, model, packed=False)
    two = dataclasses.replace(planned, devices=[torch.device("cpu"), torch.device("cpu")])
    assert loading._key(two, model, packed=False) == ""


def test_memory_that_ends_while_restoring_leaves_the_text_before_it(
    start: Start, document: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start()
    read(engine, document)
    before = kv(engine)

    def fail(*_: Any) -> int:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(engine.keeping, "restore", fail)
    with pytest.raises(OutOfMemory, match="Memory ran out while reading"):
        read(engine, document, "Another. " + TEXT)
    assert identical(kv(engine), before)


def test_what_leaves_memory_for_another_goes_to_the_disk(start: Start, folder: Path, tmp_path: Path) -> None:
    engine = start()
    one, two, unsaved = (str(tmp_path / f"{name}.txt") for name in ("one", "two", "unsaved"))
    size = read(engine, one, name="one").bytes
    read(engine, unsaved, "Unsaved. " + TEXT, saved=False, name="unsaved")
    engine.limit(size)
    assert not engine.has("one")
    read(engine, two, "Two. " + TEXT, name="two")
    assert [each.name.split("-")[0] for each in (folder / CACHES).iterdir() if each.is_dir()] == ["one.txt"]
    assert engine.keeping is not None
    assert engine.keeping._tasks.keys() == {"two"}  # nothing else holds on to the memory
    again = read(engine, one, name="one")
    assert (again.kept, again.computed) == (again.tokens, 0)
    assert identical(kv(engine, "one"), fresh(engine, TEXT)[0])


def test_what_leaves_does_not_keep_anybody_waiting_for_long(
    start: Start, folder: Path, document: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cag_daemon.engine.engine.LEAVING_SECONDS", -1)
    engine = start()
    size = read(engine, document).bytes
    engine.limit(size // 2)
    assert not engine.has("d")
    assert segments(folder) == []
    assert engine.keeping is not None
    assert not engine.keeping.busy


def test_what_can_not_be_written_when_it_leaves_is_no_error(
    start: Start, folder: Path, document: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = start()
    read(engine, document)

    def fail(*_: Any) -> Any:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(engine.keeping, "_segment", fail)
    engine.limit(1)
    assert not engine.has("d")
    assert engine.keeping is not None
    assert not engine.keeping.busy
    assert "can't be kept on disk" in caplog.text


def test_what_nobody_may_look_at_is_not_there(start: Start, document: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", forbidden)
    assert read(start(), document).kept == 0


def test_a_reading_that_was_broken_off_leaves_with_all_it_holds(start: Start, document: str, tmp_path: Path) -> None:
    engine = start()
    size = read(engine, document).bytes
    written(engine)
    second = start()
    with pytest.raises(Stopped):
        second.prepare("d", "2", TEXT + "More. " * 40, file=document, saved=True, should_stop=After(0))
    assert second.keeping is not None
    assert second.keeping._tasks.keys() == {"d"}  # what was restored is to be verified
    second.limit(size)
    read(second, str(tmp_path / "e.txt"), "Else. " + TEXT, name="e")
    assert second.keeping._tasks.keys() == {"e"}
    assert second._caches.begun == {}


def test_a_reading_that_was_broken_off_is_verified_like_any_other(start: Start, folder: Path, document: str) -> None:
    engine, longer = start(), TEXT + "More. " * 40
    engine.prepare("d", "2", longer, file=document, saved=True)
    written(engine)
    for name in json.loads(next(folder.glob(f"{CACHES}/*/*/2.json")).read_text())["segments"][-6:]:
        next(folder.glob(f"{CACHES}/*/*/{name}.safetensors")).unlink()
    forge(folder)
    second = start()
    for _ in range(2):  # it is begun twice, and restored once
        with pytest.raises(Stopped):
            second.prepare("d", "2", longer, file=document, saved=True, should_stop=After(0))
    assert second._caches.begun.keys() == {"d"}
    written(second)
    assert second._caches.begun == {}
    assert segments(folder) == []
    read(second, document, longer)
    assert identical(kv(second), fresh(engine, longer)[0])


def test_another_limit_does_not_forget_what_is_still_to_be_done(start: Start, folder: Path, document: str) -> None:
    engine = start()
    read(engine, document)
    engine.keep(str(folder), 10**9)
    written(engine)
    assert read(start(), document).computed == 0
    forge(folder)
    wrong: list[str] = []
    second = Engine(LOADED, keep_in=str(folder), on_wrong=wrong.append)
    read(second, document)
    second.keep(str(folder), 10**9)
    written(second)
    assert wrong == ["d"]


def test_what_was_typed_first_and_saved_then_is_written(start: Start, folder: Path, document: str) -> None:
    engine = start()
    version = read(engine, document, saved=False).version
    written(engine)
    engine.saved("d", "another", document)
    engine.saved("e", version, document)
    written(engine)
    assert segments(folder) == []
    engine.saved("d", version, document)
    written(engine)
    assert read(start(), document).computed == 0
