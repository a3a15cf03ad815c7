"""`cag-daemon clean`: what is ours is listed, and deleted when the user says so; nothing else is touched."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest
from filelock import FileLock
from huggingface_hub import constants, hf_hub_download, scan_cache_dir

from cag_daemon import brought as notes
from cag_daemon import clean as room
from cag_daemon import download as fetching
from cag_daemon import places
from cag_daemon.brought import brought, brought_of
from cag_daemon.clean import clean
from cag_daemon.config import Settings
from cag_daemon.errors import InvalidParams
from cag_daemon.places import TAG, make_cache_folder
from tests.client import ROOT, Client
from tests.hub import Hub, serve
from tests.test_cli import cag_daemon
from tests.test_places import WEIGHTS, locked, write
from tests.test_pull import LOADED, MODEL, Machine, Repository, close_session, pull

README = "README.md"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home in which all of our folders are."""
    for name in ("cache", "state", "log", "runtime"):
        function = "default_cache" if name == "cache" else f"{name}_folder"
        monkeypatch.setattr(places, function, lambda name=name: tmp_path / "home" / name)
    monkeypatch.setattr(notes, "state_folder", places.state_folder)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    return tmp_path / "home"


def kept(top: Path) -> Path:
    """A cache folder with quantised weights in it."""
    make_cache_folder(top)
    return write(top / "quantized" / WEIGHTS / "0", 3000).parent


def run(top: Path, **how: Any) -> int:
    settings = Settings(cache_directory=str(top))
    return clean(settings, **({"document": None, "models": False, "yes": False, "as_json": False} | how))


def files(top: Path) -> set[str]:
    """Everything that is there."""
    return {path.relative_to(top).as_posix() for path in top.rglob("*")}


# ── listed, asked, deleted ──────────────────────────────────────────────────────────────────


def test_where_nobody_can_be_asked_it_is_listed_and_nothing_is_deleted(tmp_path: Path) -> None:
    folder = kept(tmp_path / ".home" / "cache" / "cag-daemon")
    done = cag_daemon("clean", cwd=tmp_path, timeout=30)
    assert done.returncode == 2
    head, line, total = done.stdout.splitlines()
    assert head.split() == ["path", "what", "it", "is", "size", "last", "used"]
    assert line.split() == [
        f"~/cache/cag-daemon/quantized/{folder.name}",
        *("quantised", "weights", "3.0", "kB"),
        time.strftime("%Y-%m-%d"),
    ]
    assert total == "1 path, 3.0 kB together."
    assert done.stderr == "cag-daemon: Nothing was deleted: give --yes to delete these without being asked.\n"
    assert folder.exists()


def test_with_yes_it_is_deleted_and_so_are_the_empty_folders(tmp_path: Path, capsys: Any) -> None:
    kept(tmp_path / "set")
    kept(tmp_path / "home" / "cache")
    assert run(tmp_path / "set", yes=True) == 0
    assert capsys.readouterr().out.endswith("2 paths, 6.0 kB together.\nDeleted 2 paths, 6.0 kB.\n")
    assert files(tmp_path) == {"home"}
    assert run(tmp_path / "set", yes=True) == 0
    assert capsys.readouterr().out == "Nothing of cag-daemon is kept on this machine.\n"


@pytest.mark.parametrize(
    ("typed", "code", "said"),
    [("y\n", 0, "Deleted 1 path"), ("\n", 0, "Nothing was deleted."), (None, 130, "")],
    ids=["y", "enter", "interrupted"],
)
def test_on_a_terminal_it_asks(typed: str | None, code: int, said: str, tmp_path: Path) -> None:
    pty = pytest.importorskip("pty", reason="no terminals to pretend to be on this system")
    folder = kept(tmp_path / "cache" / "cag-daemon")
    master, slave = pty.openpty()
    process = Popen(
        [sys.executable, "-m", "cag_daemon", "clean"],
        **{
            "cwd": ROOT,
            "env": Client.environment(tmp_path, {}),
            "stdin": slave,
            "stdout": PIPE,
            "stderr": PIPE,
        },
    )
    os.close(slave)
    assert process.stdout is not None
    seen = b""
    while b"Delete these? [y/N]" not in seen:
        more = os.read(process.stdout.fileno(), 1000)
        assert more, process.communicate()
        seen += more
    if typed is None:
        time.sleep(0.5)  # from the words to the waiting
        process.send_signal(signal.SIGINT)
    else:
        os.write(master, typed.encode())
    out, err = process.communicate(timeout=20)
    os.close(master)
    assert process.returncode == code
    assert said in out.decode()
    assert b"Traceback" not in err
    assert folder.exists() == (typed != "y\n")


def test_as_json_it_is_listed_and_only_with_yes_deleted(tmp_path: Path, capsys: Any) -> None:
    folder = kept(tmp_path / "set")
    young = write(tmp_path / "set" / "quantized" / f".{WEIGHTS}.x" / "0", 5).parent
    assert run(tmp_path / "set", as_json=True) == 0
    listed = json.loads(capsys.readouterr().out)
    (entry,) = listed["paths"]
    assert set(entry) == {"path", "what", "bytes", "lastUsed"}
    assert (entry["path"], entry["bytes"], listed["bytes"]) == (str(folder), 3000, 3000)
    assert [each["path"] for each in listed["left"]] == [str(young)]
    assert listed["left"][0]["why"]
    assert "deleted" not in listed
    assert folder.exists()
    assert run(tmp_path / "set", as_json=True, yes=True) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["deleted"], done["failed"]) == ([str(folder)], [])
    assert (folder.exists(), young.exists()) == (False, True)


def test_what_is_being_written_is_left_and_said(tmp_path: Path, capsys: Any) -> None:
    young = write(tmp_path / "set" / "quantized" / f".{WEIGHTS}.x" / "0").parent
    assert run(tmp_path / "set", yes=True) == 0
    out = capsys.readouterr().out
    assert "stays: written to within the last hour" in out
    assert out.endswith("There is nothing else to delete.\n")
    assert young.exists()


def test_in_a_folder_with_other_things_only_ours_goes(tmp_path: Path) -> None:
    folder = kept(tmp_path / "set")
    (tmp_path / "set" / TAG).write_text("another one's")
    write(tmp_path / "set" / "thesis.txt")
    write(tmp_path / "set" / "quantized" / "mine" / "0")
    before = files(tmp_path / "set")
    assert run(tmp_path / "set", yes=True) == 0
    name = f"quantized/{folder.name}"
    assert before - files(tmp_path / "set") == {name, f"{name}/0"}


def test_links_are_deleted_and_not_followed(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside" / "0", 10**6).parent
    folder = kept(tmp_path / "set")
    (folder / "file").symlink_to(outside / "0")
    (folder / "folder").symlink_to(outside)
    (folder.parent / WEIGHTS.replace("4-", "8-")).symlink_to(outside)
    assert sum(each.size for each in places.found(tmp_path / "set")) < 10**5, "what they lead to counts, too"
    assert run(tmp_path / "set", yes=True) == 0
    assert not (tmp_path / "set").exists()
    assert files(outside) == {"0"}


def test_a_cache_directory_that_is_a_link_is_emptied(tmp_path: Path) -> None:
    kept(tmp_path / "big disk")
    (tmp_path / "set").symlink_to(tmp_path / "big disk")
    assert run(tmp_path / "set", yes=True) == 0
    assert "quantized" not in files(tmp_path / "big disk")
    assert (tmp_path / "set").is_symlink()


def test_what_cannot_be_deleted_is_said_and_the_rest_goes(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = kept(tmp_path / "set")
    second = write(first.with_name(f"z{first.name}") / "0").parent
    rmtree = room.shutil.rmtree

    def refuse(path: Path, **how: Any) -> None:
        if path == first:
            raise PermissionError(13, "Permission denied", str(path / "0"))
        rmtree(path, **how)

    monkeypatch.setattr(room.shutil, "rmtree", refuse)
    assert run(tmp_path / "set", yes=True) == 1
    out, err = capsys.readouterr()
    assert out.endswith("Deleted 1 path, 10 bytes.\n")
    assert err == f"cag-daemon: {first / '0'} could not be deleted: Permission denied.\n"
    assert (first.exists(), second.exists()) == (True, False)
    assert run(tmp_path / "set", yes=True, as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["failed"] == [{"path": str(first / "0"), "why": "Permission denied"}]


def test_of_a_document_only_what_is_kept_of_it(tmp_path: Path, capsys: Any) -> None:
    document = str(tmp_path / "a.txt")
    other = kept(tmp_path / "set")
    assert run(tmp_path / "set", document=document, yes=True) == 0
    assert capsys.readouterr().out == f"Nothing is kept of {document}.\n"
    folder = write(places.document_folder(tmp_path / "set", Path(document)) / "0").parent
    assert run(tmp_path / "set", document=document, yes=True) == 0
    assert (folder.exists(), other.exists()) == (False, True)


def test_models_belong_to_no_document(tmp_path: Path) -> None:
    with pytest.raises(InvalidParams, match="--models"):
        run(tmp_path, document="a.txt", models=True)


@pytest.mark.skipif(sys.platform == "win32", reason="no locks of this kind here")
def test_a_running_front_keeps_its_socket_and_a_dead_one_does_not(home: Path, capsys: Any) -> None:
    running, dead = home / "runtime" / f"{'a' * 12}.sock.lock", home / "runtime" / f"{'b' * 12}.sock.lock"
    write(dead)
    with locked(write(running)) as process:
        assert run(home / "cache", yes=True) == 0
        assert "stays: a daemon is running" in capsys.readouterr().out
        assert (running.exists(), dead.exists()) == (True, False)
        process.communicate(b"\n")
    assert run(home / "cache", yes=True) == 0
    assert files(home) == set()


# ── what pull brought ───────────────────────────────────────────────────────────────────────


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve(Hub({MODEL: Repository({**LOADED, README: b"Read me."})})) as served:
        yield served
    close_session()


@pytest.fixture
def machine(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A home with an empty hub cache, for `pull` in this process."""
    machine = Machine(tmp_path, hub)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(machine.cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return machine


def fetched_by_another(hub: Hub, machine: Machine, *names: str) -> None:
    for name in names:
        hf_hub_download(MODEL, name, endpoint=hub.url, cache_dir=machine.cache)


def test_models_are_named_and_stay_unless_asked_for(machine: Machine, home: Path, capsys: Any) -> None:
    pull(MODEL, as_json=False)
    before = files(machine.cache)
    capsys.readouterr()
    assert run(home / "cache", yes=True) == 0
    nothing, others = capsys.readouterr().out.splitlines()
    assert nothing == "Nothing of cag-daemon is kept on this machine."
    assert others.startswith("Not counting 1 model that pull fetched, ")
    assert others.endswith("--models adds them.")
    assert files(machine.cache) == before


def test_all_that_pull_brought_goes_and_nothing_of_it_stays(machine: Machine, home: Path, capsys: Any) -> None:
    pull(MODEL, as_json=False)
    write(machine.cache / "models--other--Model" / "blobs" / "0")
    capsys.readouterr()
    assert run(home / "cache", models=True, as_json=True, yes=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["bytes"] == sum(map(len, LOADED.values()))
    assert said["deleted"] == [str(machine.cache / "models--mistralai--Small")]
    left = {TAG, ".locks", "models--other--Model", "models--other--Model/blobs", "models--other--Model/blobs/0"}
    assert files(machine.cache) == left
    assert not home.joinpath("state").exists()


def test_what_was_there_before_the_pull_stays(machine: Machine, hub: Hub, home: Path) -> None:
    fetched_by_another(hub, machine, "config.json", "tokenizer.json", README)
    before = files(machine.cache)
    pull(MODEL, as_json=False)
    assert run(home / "cache", models=True, yes=True) == 0
    assert {name for name in files(machine.cache) if ".lock" not in name} >= {n for n in before if ".lock" not in n}
    assert {path.name for path in machine.pulled().iterdir()} == {"config.json", "tokenizer.json", README}
    assert not scan_cache_dir(machine.cache).warnings


def test_a_blob_that_another_revision_needs_stays(machine: Machine, hub: Hub, home: Path) -> None:
    pull(MODEL, as_json=False)
    hub.models[MODEL] = Repository(LOADED, sha="f" * 40)
    fetched_by_another(hub, machine, "tokenizer.json")
    assert run(home / "cache", models=True, yes=True) == 0
    (path,) = machine.pulled().iterdir()
    assert path.read_bytes() == LOADED["tokenizer.json"]
    (repository,) = scan_cache_dir(machine.cache).repos
    assert repository.nb_files == 1


def test_a_branch_does_not_point_at_what_is_gone(machine: Machine, hub: Hub, home: Path) -> None:
    hub.models[MODEL] = Repository(LOADED, sha="f" * 40)
    fetched_by_another(hub, machine, "tokenizer.json")
    hub.models[MODEL] = Repository(LOADED)
    pull(MODEL, as_json=False)
    assert run(home / "cache", models=True, yes=True) == 0
    assert [path.parent.name for path in machine.cache.glob("*/snapshots/*/*")] == ["f" * 40]
    assert not scan_cache_dir(machine.cache).warnings


def test_what_another_tool_fetched_again_is_not_ours(machine: Machine, hub: Hub, home: Path, capsys: Any) -> None:
    pull(MODEL, as_json=False)
    (blob,) = (path.resolve() for path in machine.pulled().glob("config.json"))
    blob.unlink()
    time.sleep(0.02)
    blob.write_bytes(LOADED["config.json"])
    assert run(home / "cache", models=True, yes=True) == 0
    assert {path.name for path in machine.cache.glob("*/blobs/*")} == {blob.name}


def test_without_symbolic_links_too(machine: Machine, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    pull(MODEL, as_json=False)
    assert run(home / "cache", models=True, yes=True) == 0
    assert not list(machine.cache.glob("models--*"))


def test_an_interrupted_pull_is_known_too(machine: Machine, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fetching._Counted, "tell", stop)  # called when a piece has been written
    with pytest.raises(KeyboardInterrupt):
        pull(MODEL, as_json=False)
    assert list(machine.cache.glob("*/blobs/*.incomplete"))
    assert run(home / "cache", models=True, yes=True) == 0
    assert not list(machine.cache.glob("models--*"))


def test_a_file_that_was_only_going_to_be_fetched_is_not_ours(tmp_path: Path) -> None:
    note = brought_of(tmp_path, "models--a--b", "a/b")
    blobs = [tmp_path / "models--a--b" / "blobs" / name for name in ("1", "1.incomplete")]
    with note.fetching("1", *blobs):
        (killed_here,) = brought()
    for blob in blobs:
        write(blob)
    assert killed_here.paths() == [blobs[1]]  # the whole file is another tool's


def test_what_is_being_fetched_is_left_and_said(machine: Machine, home: Path, capsys: Any) -> None:
    pull(MODEL, as_json=False)
    before = files(machine.cache)
    with FileLock(machine.cache / ".locks" / "models--mistralai--Small" / "cag-daemon-pull.lock"):
        assert run(home / "cache", models=True, yes=True) == 1
    assert "cag-daemon pull is fetching it now" in capsys.readouterr().err
    assert files(machine.cache) == before


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"models--a--b/blobs/../../../thesis": None}},
        {"files": {"models--a--b/../thesis": None}},
        {"folder": "../models--a--b"},
        {"revisions": [".."], "files": "x"},
        {"files": {"models--a--b/snapshots/1/..": None}},
    ],
)
def test_a_note_that_leads_elsewhere_counts_for_nothing(change: dict[str, Any], tmp_path: Path) -> None:
    note = brought_of(tmp_path, "models--a--b", "a/b")
    with note.fetching("1", tmp_path / "models--a--b" / "blobs" / "1"):
        write(tmp_path / "models--a--b" / "blobs" / "1")
    assert len(brought()) == 1
    note.note.write_text(json.dumps(json.loads(note.note.read_text()) | change))
    assert brought() == []


def test_a_home_that_cannot_be_written_to_keeps_no_pull_from_its_work(machine: Machine, home: Path) -> None:
    home.mkdir()
    (home / "state").write_text("a file")
    assert pull(MODEL, as_json=False) == 0
    assert machine.pulled().is_dir()
