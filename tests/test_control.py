"""`status`, `unload` and `stop`: what they say of a front, and what they ask of it. Real processes where it matters."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cag_daemon import control, runtime
from cag_daemon.errors import CagError
from tests.client import ROOT, Client
from tests.fake_front import FakeFront, front, runtime_home

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no unix sockets here")
__all__ = ["front", "runtime_home"]  # fixtures

HOME = Path.home()
WAITING = {"state": "waiting", "source": "disk"}
STATUS: dict[str, Any] = {
    "version": "1.2.3",
    "pid": 4242,
    "started": time.time() - 720,
    "log": str(HOME / "state" / "daemon.log"),
    "socket": "/run/user/0/cag-daemon/0123456789ab.sock",
    "memory": 120_000_000,
    "clients": [
        {
            "name": "Visual Studio Code",
            "pid": 77,
            "state": "ready",
            "short": "ready · 2 documents, 14k tokens",
            "documents": [
                {"uri": (HOME / "a b" / "é.txt").as_uri(), "state": "ready", "source": "disk", "tokens": 13512}
                | {"maxTokens": 131072},
                {"uri": "file:///srv/b.txt", "state": "waiting", "source": "buffer", "tokens": 400},
            ],
        },
        {
            "name": "Neovim",
            "state": "reading",
            "short": "reading 120 of 5,000 tokens, about 20 s",
            "documents": [
                {"uri": "file:///srv/c.txt", "state": "reading", "source": "disk", "tokens": 5000, "read": 120},
            ],
        },
        {
            "name": "cag-daemon ask",
            "state": "noDocument",
            "short": "no document",
            "documents": [
                {"uri": "file:///srv/d.txt", "state": "missing", "source": "disk", "message": "/srv/d.txt is gone."}
            ],
        },
        {"name": "Helix", "state": "starting", "documents": []},
        *(
            {"name": state, "state": state, "documents": [{"uri": "file:///srv/e.txt"} | WAITING]}
            for state in ("ready", "unloaded")
        ),
    ],
    "models": [
        {"name": "mistralai/Ministral-8B", "device": "cuda", "dtype": "bfloat16", "quantization": "none"}
        | {"state": "ready", "bytes": 16_000_000_000, "memory": 1_500_000_000, "pid": 78, "clients": 3}
        | {"unloadsInSeconds": 1680},
        {"name": "embedded", "device": "cpu", "dtype": "float32", "quantization": "int8", "state": "stopped"}
        | {"clients": 1},
        {"name": "auto", "state": "failed", "message": "No memory was left.", "clients": 0},
    ],
}


def cag_daemon(*arguments: str, cwd: Path, runtime_home: Path) -> subprocess.CompletedProcess[str]:
    environment = Client.environment(cwd / ".home", {"XDG_RUNTIME_DIR": str(runtime_home)})
    command = [sys.executable, "-m", "cag_daemon", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


# ── nobody there ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("status", "No daemon is running; an editor starts it.\n"),
        ("unload", "No daemon is running: there is nothing to free.\n"),
        ("stop", "No daemon is running: there is nothing to stop.\n"),
    ],
)
def test_where_none_runs_it_is_said_and_none_is_started(
    command: str, said: str, tmp_path: Path, runtime_home: Path
) -> None:
    done = cag_daemon(command, cwd=tmp_path, runtime_home=runtime_home)
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    done = cag_daemon(command, "--json", cwd=tmp_path, runtime_home=runtime_home)
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (0, {"running": False}, "")
    assert list(runtime_home.rglob("*.sock")) == []


# ── status ──────────────────────────────────────────────────────────────────────────────────


def test_status_is_told_as_people_like_to_read_it(front: FakeFront, capsys: Any) -> None:
    front.results["status"] = STATUS | {"started": time.time() - 12 * 60 - 5}
    assert control.status(as_json=False) == 0
    out = capsys.readouterr().out
    first, _, *rest = out.splitlines()
    assert re.fullmatch(
        r"cag-daemon 1\.2\.3 is running: process 4242, since .*\d\d:\d\d \(12 min\), 120\.0 MB without the models\.",
        first,
    )
    table = [re.split(r" {2,}", line.rstrip()) for line in rest]
    assert table == [
        ["editor", "state", "document", "tokens"],
        [
            *("Visual Studio Code (77)", "ready"),
            *(str(Path("~", "a b", "é.txt")), "13,512 (of 131,072 possible)"),
        ],
        ["", "/srv/b.txt (unsaved)", "400, text changed"],
        ["Neovim", "reading", "/srv/c.txt", "120 of 5,000 read"],
        ["cag-daemon ask", "no document", "/srv/d.txt", "/srv/d.txt is gone."],
        ["Helix", "starting"],
        ["ready", "ready", "/srv/e.txt", "not read yet"],
        ["unloaded", "unloaded", "/srv/e.txt", "not in memory"],
        [""],
        ["model", "on", "state", "memory", "editors", "leaves memory"],
        ["mistralai/Ministral-8B", "cuda, bfloat16", "ready", "1.5 GB", "3", "in 28 min"],
        ["embedded", "cpu, int8", "not in memory", "1"],
        ["auto", "failed: No memory was left.", "0"],
        [""],
        [f"Log: {Path('~', 'state', 'daemon.log')}"],
    ]


def test_status_without_editors_and_models(front: FakeFront, capsys: Any) -> None:
    front.results["status"] = STATUS | {"clients": [], "models": []}
    assert control.status(as_json=False) == 0
    _, _, clients, _, models, _, _ = capsys.readouterr().out.splitlines()
    assert clients == "No editor is connected: it ends soon."
    assert models == "No model is in memory."


def test_status_as_json_is_what_the_front_says(front: FakeFront, tmp_path: Path, runtime_home: Path) -> None:
    front.results["status"] = STATUS
    done = cag_daemon("status", "--json", cwd=tmp_path, runtime_home=runtime_home)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"running": True, **STATUS}
    (hello,) = front.hellos
    assert hello["purpose"] == "status"


def test_a_name_of_another_program_commands_no_terminal(front: FakeFront, capsys: Any) -> None:
    client = {"name": "[red]\x1b]0;evil\x07\nx", "state": "ready", "documents": []}
    front.results["status"] = STATUS | {"clients": [client]}
    control.status(as_json=False)
    assert "[red]�]0;evil��x" in capsys.readouterr().out


# ── unload ──────────────────────────────────────────────────────────────────────────────────


def test_unload_says_what_it_has_freed(front: FakeFront, capsys: Any) -> None:
    front.results["unload"] = {"freed": 14_600_000_000}
    assert control.unload(as_json=False) == 0
    assert capsys.readouterr().out == "Freed 14.6 GB: the next question brings the model back.\n"
    assert control.unload(as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == {"running": True, "freed": 14_600_000_000}
    front.results["unload"] = {"freed": 0}
    assert control.unload(as_json=False) == 0
    assert capsys.readouterr().out == "There was nothing to free: no model is in memory.\n"


def test_what_the_front_refuses_is_said(front: FakeFront, tmp_path: Path, runtime_home: Path) -> None:
    front.results["unload"] = "It is ending; try again."
    done = cag_daemon("unload", cwd=tmp_path, runtime_home=runtime_home)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "cag-daemon: It is ending; try again.\n")


def test_a_folder_that_cannot_be_trusted_is_said(
    runtime_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runtime_home.joinpath("cag-daemon").mkdir()
    runtime_home.joinpath("cag-daemon").chmod(0o777)
    with pytest.raises(CagError, match=str(runtime_home / "cag-daemon")):
        control.status(as_json=False)
    done = cag_daemon("status", cwd=tmp_path, runtime_home=runtime_home)
    assert (done.returncode, done.stdout) == (1, "")
    assert str(runtime_home / "cag-daemon") in done.stderr
    assert "Traceback" not in done.stderr


# ── stop ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("editors", "said"),
    [
        (0, "."),
        (1, "; 1 editor starts it again with its next question."),
        (2, "; 2 editors start it again with their next question."),
    ],
)
def test_stop_returns_when_the_process_is_gone(front: FakeFront, editors: int, said: str, capsys: Any) -> None:
    code = "import signal, time; signal.signal(15, lambda *_: (time.sleep(0.5), exit())); print(); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-uc", code], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        began = time.monotonic()

        def stop() -> dict[str, int]:
            process.terminate()
            return {"pid": process.pid}

        front.results |= {
            "status": STATUS | {"pid": process.pid, "clients": STATUS["clients"][:editors]},
            "stop": stop,
        }
        assert control.stop(as_json=False) == 0
        assert time.monotonic() - began > 0.4
        assert process.poll() is not None
    assert capsys.readouterr() == (f"Stopped (process {process.pid}){said}\n", "")


def test_stop_says_that_the_process_does_not_end(
    front: FakeFront, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "STOPS_WITHIN", 0.2)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], cwd=ROOT) as process:
        front.results |= {"status": STATUS | {"pid": process.pid}, "stop": {"pid": process.pid}}
        assert control.stop(as_json=False) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"cag-daemon: process {process.pid} was told to stop and has not ended")
        assert err.endswith(f"kill -9 {process.pid}.\n")
        assert control.stop(as_json=True) == 1
        assert json.loads(capsys.readouterr().out) == {"running": True, "pid": process.pid}
        process.kill()


@pytest.mark.parametrize("silence", [0.0, 60.0], ids=["closes", "hangs"])
def test_a_front_that_does_not_answer_is_not_taken_for_none(
    silence: float, front: FakeFront, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime.greet, "__defaults__", (0.3,))
    ended = threading.Event()

    def nothing() -> None:
        ended.wait(silence)
        raise BrokenPipeError

    front.results["status"] = nothing
    with pytest.raises(CagError, match=f"listens at {runtime.socket_path()} and does not answer"):
        control.status(as_json=False)
    ended.set()
