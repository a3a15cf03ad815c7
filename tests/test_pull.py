"""`cag-daemon pull`: against a hub of our own on loopback, and what all other commands do without any network."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from subprocess import DEVNULL, PIPE, CompletedProcess, Popen
from typing import Any

import psutil
import pytest
from huggingface_hub import constants, snapshot_download
from huggingface_hub.utils import close_session

from cag_daemon import brought, catalogue, choice, places
from cag_daemon.config import Settings
from cag_daemon.download import BLOCK
from cag_daemon.engine.speed import Speed
from cag_daemon.errors import CagError, DocumentNotFound, InvalidParams
from cag_daemon.pull import pull
from tests.client import ROOT, Client
from tests.hub import GOOD, NOT_ACCEPTED, WITHOUT_GATED, Hub, Repository, serve

EMBEDDED = ROOT / "cag_daemon" / "embedded"
MODEL, GATED, SHARDED = "mistralai/Small", "mistralai/Gated", "mistralai/Sharded"
# What a real repository holds beside what is loaded; two of them are the same weights once more.
BESIDE = {
    name: name.encode() * 9
    for name in (
        "consolidated.safetensors",
        "pytorch_model.bin",
        "model.pt",
        "README.md",
        "params.json",
        ".gitattributes",
    )
}
LOADED = {
    path.name: path.read_bytes()
    for path in EMBEDDED.iterdir()
    if path.suffix in (".json", ".jinja", ".safetensors") and path.name != "cag.json"
}
WEIGHTS = LOADED["model.safetensors"]
LITTLE = {name: data for name, data in LOADED.items() if name != "model.safetensors"}


def tensors(*names: str, size: int = 1 << 12) -> bytes:
    """A safetensors file of zeros."""
    entries = {
        name: {"dtype": "BF16", "shape": [size // 2], "data_offsets": [number * size, (number + 1) * size]}
        for number, name in enumerate(names)
    }
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size * len(names))


def sharded() -> dict[str, bytes]:
    """Two files of weights, an index that names them, and one that it does not name."""
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    index = {"weight_map": {"model.embed_tokens.weight": first, "model.norm.weight": second}}
    return LITTLE | {
        "model.safetensors.index.json": json.dumps(index).encode(),
        first: tensors("model.embed_tokens.weight", size=1 << 20),
        second: tensors("model.norm.weight"),
        "model-00001-of-00003.safetensors": tensors("model.norm.weight"),
    }


@pytest.fixture
def hub() -> Iterator[Hub]:
    models = {
        MODEL: Repository(LOADED | BESIDE),
        GATED: Repository(LITTLE | {"model.safetensors": tensors("model.norm.weight")}, gated=True),
        SHARDED: Repository(sharded() | BESIDE),
    }
    with serve(Hub(models)) as served:
        yield served
    close_session()


class Machine:
    """A user's home with an empty hub cache, and processes in it that know that hub."""

    def __init__(self, home: Path, hub: Hub) -> None:
        self.home, self.cache = home, home / "huggingface" / "hub"
        self._hub = hub

    def env(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        places = {"HF_HOME": str(self.cache.parent), "HF_ENDPOINT": self._hub.url}
        return Client.environment(self.home, places | dict(more or {}))

    def start(self, *arguments: str, **options: Any) -> Popen[str]:
        command = [sys.executable, "-m", "cag_daemon", *arguments]
        options = {"stdout": PIPE, "stderr": PIPE, "text": True, "env": self.env()} | options
        return Popen(command, cwd=self.home, stdin=DEVNULL, **options)

    def run(self, *arguments: str, env: Mapping[str, str] | None = None) -> CompletedProcess[str]:
        process = self.start(*arguments, env=self.env(env))
        out, err = process.communicate(timeout=100)
        return CompletedProcess(arguments, process.returncode, out, err)

    def pulled(self, model: str = MODEL) -> Path:
        """The folder that a loader finds, without the network."""
        return Path(snapshot_download(model, cache_dir=self.cache, local_files_only=True))

    def partial(self) -> int:
        """Bytes of files that are not whole yet."""
        size = 0
        for path in self.cache.glob("*/blobs/*.incomplete"):
            with contextlib.suppress(FileNotFoundError):  # it is whole meanwhile, and has another name
                size += path.stat().st_size
        return size


@pytest.fixture
def machine(tmp_path: Path, hub: Hub) -> Machine:
    return Machine(tmp_path, hub)


@pytest.fixture
def inside(machine: Machine, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The same for `pull` in this process, which takes less time than one of its own."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(machine.cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(machine.home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(places, "state_folder", lambda: machine.home / "state")
    monkeypatch.setattr(brought, "state_folder", lambda: machine.home / "state")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    return machine


def refusal(model: str) -> str:
    """The one sentence with which a pull in this process fails."""
    with pytest.raises(CagError) as caught:
        pull(model, as_json=False)
    message = caught.value.message
    assert message.endswith(".")
    assert "\n" not in message
    return message


# ── what is fetched ─────────────────────────────────────────────────────────────────────────


def test_pull_fetches_what_is_loaded_and_nothing_else_and_says_what_comes_next(machine: Machine, hub: Hub) -> None:
    done = machine.run("pull", MODEL)
    assert done.returncode == 0, done.stderr
    folder = machine.pulled()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == LOADED
    assert hub.fetched() == set(LOADED)
    lines = done.stdout.splitlines()
    assert str(folder) in lines
    assert f'Ask it: cag-daemon ask "…" --model {MODEL}' in lines
    assert "CAG_MODEL" in lines[-1]
    assert machine.partial() == 0


def test_what_is_here_is_checked_and_not_fetched_again(inside: Machine, hub: Hub, capsys: Any) -> None:
    pull(MODEL, as_json=False)
    hub.seen.clear()
    capsys.readouterr()
    assert pull(MODEL, as_json=True) == 0
    assert hub.fetched() == set()
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "model": MODEL,
        "revision": hub.models[MODEL].sha,
        "path": str(inside.pulled()),
        "bytes": sum(map(len, LOADED.values())),
        "files": json.loads(out)["files"],
    }
    assert set(json.loads(out)["files"]) == set(LOADED)
    assert err == f"Checking {MODEL} …\n"


def test_what_another_tool_has_begun_is_used_and_made_whole(machine: Machine, hub: Hub) -> None:
    code = f"from huggingface_hub import snapshot_download as fetch; fetch({MODEL!r}, allow_patterns=['*.json'])"
    subprocess.run([sys.executable, "-c", code], env=machine.env(), check=True, capture_output=True)
    assert list(machine.cache.glob("*/trees/*.json"))
    hub.seen.clear()
    assert machine.run("pull", MODEL).returncode == 0
    assert hub.fetched() == {"model.safetensors", "chat_template.jinja"}
    assert {path.name for path in machine.pulled().iterdir()} >= set(LOADED)


def test_of_several_files_of_weights_those_that_the_index_names(inside: Machine, hub: Hub) -> None:
    pull(SHARDED, as_json=False)
    found = {path.name for path in inside.pulled(SHARDED).iterdir()}
    assert found == set(sharded()) - {"model-00001-of-00003.safetensors"}
    assert "model-00001-of-00003.safetensors" not in hub.fetched()


def test_a_new_revision_takes_over_only_when_it_is_whole(inside: Machine, hub: Hub) -> None:
    pull(MODEL, as_json=False)
    before = inside.pulled()
    hub.models[MODEL] = Repository({**LOADED, "model.safetensors": tensors("model.norm.weight")}, sha="f" * 40)
    hub.damaged = {"model.safetensors"}
    refusal(MODEL)
    assert inside.pulled() == before
    hub.damaged = set()
    hub.seen.clear()
    pull(MODEL, as_json=False)
    assert inside.pulled().name == "f" * 40
    assert hub.sent("tokenizer.json") == 0, "what has not changed is not fetched again"


def test_without_symbolic_links_nothing_lies_there_twice(
    inside: Machine, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    pull(MODEL, as_json=False)
    assert {path.name for path in inside.pulled().iterdir() if not path.is_symlink()} == set(LOADED)
    assert not list(inside.cache.glob("*/blobs/*"))
    hub.seen.clear()
    pull(MODEL, as_json=False)
    assert hub.fetched() == set()


def test_a_token_does_not_follow_to_another_host(inside: Machine, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", GOOD)
    pull(GATED, as_json=False)
    tokens = {(each.host, each.token) for each in hub.seen}
    assert tokens == {("127.0.0.1", GOOD), ("localhost", None)}


def test_the_stored_login_is_used(inside: Machine, hub: Hub) -> None:
    (inside.home / "token").write_text(GOOD)
    pull(GATED, as_json=False)
    assert {each.token for each in hub.seen} == {GOOD, None}


def test_a_name_of_the_table_stands_for_its_model(inside: Machine) -> None:
    known = catalogue.KNOWN[0]
    assert known.id in refusal(known.alias)
    assert known.id in refusal(known.id.lower())


# ── interrupted, and gone on with ───────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL] if hasattr(signal, "SIGKILL") else [signal.SIGINT])
def test_an_interrupted_pull_goes_on_where_it_was(how: signal.Signals, machine: Machine, hub: Hub) -> None:
    hub.slow = 0.02
    process = machine.start("pull", MODEL)
    deadline = time.monotonic() + 60
    while machine.partial() < BLOCK:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(how)
    out, err = process.communicate(timeout=20)
    assert out == ""
    assert "Traceback" not in err
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "the same command goes on from there" in " ".join(err.split())
    with pytest.raises(OSError):
        machine.pulled()
    here = machine.partial()
    assert BLOCK <= here < len(WEIGHTS)

    while not any(each.path.startswith("/cdn/") and each.path.endswith("model.safetensors") for each in hub.seen):
        time.sleep(0.02)  # until the hub, too, has noticed
    hub.slow = 0
    hub.seen.clear()
    assert machine.run("pull", MODEL).returncode == 0
    assert hub.sent("model.safetensors") == len(WEIGHTS) - here
    assert f"bytes={here}-" in {each.range for each in hub.seen}
    assert (machine.pulled() / "model.safetensors").read_bytes() == WEIGHTS


def test_a_lost_connection_is_taken_up_again_by_itself(inside: Machine, hub: Hub) -> None:
    hub.cut_after = len(WEIGHTS) * 2 // 3
    pull(MODEL, as_json=False)
    # What was under way when it was lost comes again.
    assert len(WEIGHTS) <= hub.sent("model.safetensors") < len(WEIGHTS) + BLOCK
    assert (inside.pulled() / "model.safetensors").read_bytes() == WEIGHTS


def test_a_server_that_cannot_go_on_in_the_middle_sends_it_all_again(inside: Machine, hub: Hub) -> None:
    hub.cut_after, hub.ignores_range = len(WEIGHTS) * 2 // 3, True

    def whole_from_now_on(*_: Any) -> None:
        hub.cut_after = None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.sleep", whole_from_now_on)  # what is done between two attempts
        pull(MODEL, as_json=False)
    assert (inside.pulled() / "model.safetensors").read_bytes() == WEIGHTS


def test_two_at_once_are_one_too_many(inside: Machine, hub: Hub) -> None:
    hub.slow = 0.05
    other = inside.start("pull", MODEL)
    try:
        deadline = time.monotonic() + 60
        while not inside.partial():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert "another cag-daemon" in refusal(MODEL)
    finally:
        other.kill()
        other.communicate()


# ── checked ─────────────────────────────────────────────────────────────────────────────────


def test_what_arrives_damaged_is_named_and_removed(inside: Machine, hub: Hub) -> None:
    hub.damaged = {"model.safetensors"}
    message = refusal(MODEL)
    assert message.startswith(f"model.safetensors of {MODEL} arrived damaged")
    assert "run the command again" in message
    assert not list(inside.cache.glob("*/blobs/*.incomplete"))
    with pytest.raises(OSError):
        inside.pulled()
    hub.damaged = set()
    pull(MODEL, as_json=False)
    assert (inside.pulled() / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_what_was_damaged_here_is_fetched_again(name: str, inside: Machine, hub: Hub, capsys: Any) -> None:
    pull(MODEL, as_json=False)
    blob = (inside.pulled() / name).resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    hub.seen.clear()
    pull(MODEL, as_json=False)
    assert hub.fetched() == {name}
    assert (inside.pulled() / name).read_bytes() == LOADED[name]
    assert f"{name} was damaged: it is fetched again." in capsys.readouterr().err


def test_the_disk_is_looked_at_first_and_only_for_what_is_missing(inside: Machine, hub: Hub) -> None:
    hub.models[MODEL] = Repository(LOADED, claimed={"model.safetensors": 10**16})
    message = refusal(MODEL)
    assert "needs 10.0 PB more" in message
    assert str(inside.cache) in message
    assert "HF_HOME" in message
    assert "model.safetensors" not in hub.fetched()

    hub.models[MODEL] = Repository(LOADED)
    pull(MODEL, as_json=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cag_daemon.download.SPARE", 10**18)
        assert pull(MODEL, as_json=False) == 0


def test_a_disk_that_fills_up_is_told(inside: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cag_daemon.download._Counted.write", full)
    assert "does not fit on the disk of" in refusal(MODEL)


# ── what is not fetched ─────────────────────────────────────────────────────────────────────


def config(**changes: Any) -> dict[str, bytes]:
    return LOADED | {"config.json": json.dumps(json.loads(LOADED["config.json"]) | changes).encode()}


def without(files: Mapping[str, bytes], *names: str) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name not in names}


REFUSED: dict[str, tuple[dict[str, bytes], str]] = {
    "wants its own code run": (config(auto_map={"AutoModel": "evil.Model"}), "code of its own"),
    "is no Mistral": (config(model_type="llama"), "'llama'"),
    "is quantised in a way that is not read": (config(quantization_config={"quant_method": "gptq"}), "gptq"),
    "is an adapter": ({"adapter_config.json": b"{}", "adapter_model.safetensors": b""}, "adapter (LoRA)"),
    "is GGUF": ({"model-Q4.gguf": b"GGUF", "config.json": b"{}"}, "GGUF"),
    "is pickled": (LITTLE | {"pytorch_model.bin": b""}, "pickled"),
    "is in Mistral's own format": ({"consolidated.safetensors": b"", "params.json": b"{}"}, "Mistral's own format"),
    "has no tokenizer": (without(LOADED, "tokenizer.json"), "no tokenizer"),
    "has no configuration": (without(LOADED, "config.json"), "no config.json"),
    "is a data set": ({"README.md": b"", "train.csv": b""}, "no model.safetensors"),
    "lacks a file that its index names": (
        without(sharded(), "model-00002-of-00002.safetensors"),
        "model-00002-of-00002",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_before_anything_large_is_fetched_is_what(what: str, inside: Machine, hub: Hub) -> None:
    files, words = REFUSED[what]
    hub.models["someone/Else"] = Repository(files)
    message = refusal("someone/Else")
    assert words in message
    assert "someone/Else" in message
    assert not {name for name in hub.fetched() if name.endswith((".safetensors", ".bin", ".gguf"))}


@pytest.mark.parametrize("name", ["auto", "embedded", "nonsense", "a/b/c", "https://huggingface.co/a/b", ""])
def test_names_of_no_model_of_the_hub_are_wrong_usage(name: str, inside: Machine, hub: Hub) -> None:
    with pytest.raises(InvalidParams):
        pull(name, as_json=False)
    assert hub.seen == []


def test_a_folder_is_here_already(inside: Machine, hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(InvalidParams, match="folder"):
        pull(str(tmp_path), as_json=False)
    assert hub.seen == []


# ── what the hub and the network answer instead ─────────────────────────────────────────────


GATES = {
    None: ("you are not logged in", "hf auth login", "HF_TOKEN"),
    NOT_ACCEPTED: ("you have not accepted its terms",),
    WITHOUT_GATED: ("Your token may not read gated models", "/settings/tokens"),
    "hf_nonsense": ("does not accept the token in HF_TOKEN", "/settings/tokens"),
}


@pytest.mark.parametrize("token", GATES)
def test_a_gated_model_with_the_token(
    token: str | None, inside: Machine, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    message = refusal(GATED)
    for words in (*GATES[token], f"{hub.url}/{GATED}"):
        assert words in message
    assert not [words for each, other in GATES.items() if each != token for words in other[:1] if words in message]


def test_a_stored_token_that_is_no_good_is_told_apart(inside: Machine) -> None:
    (inside.home / "token").write_text("hf_old")
    assert "does not accept the token stored by `hf auth login`" in refusal(MODEL)


@pytest.mark.parametrize("token", [None, GOOD])
def test_a_model_that_does_not_exist(token: str | None, inside: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    message = refusal("mistralai/Nowhere")
    assert message.startswith("There is no model mistralai/Nowhere on the hub")
    assert ("hf auth login" in message) == (token is None)


@pytest.mark.parametrize(
    ("status", "words"), [(503, "has trouble (HTTP 503)"), (429, "fewer requests"), (451, "refuses (HTTP 451)")]
)
def test_a_hub_that_answers(status: int, words: str, inside: Machine, hub: Hub) -> None:
    hub.status = status
    assert words in refusal(MODEL)


def test_a_login_page_of_a_network_is_not_taken_for_the_hub(inside: Machine, hub: Hub) -> None:
    hub.page = b"<html>Welcome to our hotel</html>"
    assert "is not a model hub" in refusal(MODEL)


def test_a_network_that_is_not_there(inside: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    message = refusal(MODEL)
    assert "can't be reached" in message
    assert "HTTPS_PROXY" in message
    assert "nothing has been fetched yet" in message


def test_a_proxy_that_is_not_there(inside: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    close_session()
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    message = refusal(MODEL)
    assert "proxy" in message.lower()
    close_session()


def test_offline_as_the_user_wished(inside: Machine, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "while HF_HUB_OFFLINE is set" in refusal(MODEL)
    assert hub.seen == []


def test_a_cache_that_is_not_ours_to_write(inside: Machine) -> None:
    inside.cache.parent.mkdir(parents=True)
    inside.cache.write_text("a file where the folder should be")
    assert "HF_HOME" in refusal(MODEL)


def test_a_failure_is_one_sentence_and_1(machine: Machine) -> None:
    done = machine.run("pull", GATED)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("cag-daemon: mistralai/Gated is gated")


# ── what is seen ────────────────────────────────────────────────────────────────────────────


def test_where_there_is_no_terminal_a_line_stands_for_each_tenth(inside: Machine, capsys: Any) -> None:
    pull(MODEL, as_json=False)
    first, *lines = capsys.readouterr().err.splitlines()
    size = f"{sum(map(len, LOADED.values())) / 1e6:.1f} MB"
    assert first == f"Fetching {MODEL}, {size} …"
    assert len(lines) <= 10
    assert all(f" of {size}, " in line and "left" in line for line in lines)


def test_on_a_terminal_one_bar_shows_speed_and_time_left(machine: Machine, hub: Hub) -> None:
    pty = pytest.importorskip("pty", reason="no terminals to pretend to be on this system")
    hub.slow = 0.01
    master, slave = pty.openpty()
    process = machine.start("pull", MODEL, stderr=slave, env=machine.env({"TERM": "xterm", "COLUMNS": "80"}))
    os.close(slave)
    shown = bytearray()
    try:
        while piece := os.read(master, 4096):
            shown += piece
    except OSError:  # how Linux says that nobody holds the other end any more
        pass
    os.close(master)
    assert process.wait(20) == 0
    process.communicate()
    for words in ("Looking at", "Fetching", "of 6", "MB/s", "0:00:0" if b"0:00:0" in shown else "00:0"):
        assert words in shown.decode(), shown.decode()


# ── alone ───────────────────────────────────────────────────────────────────────────────────


# Cuts the network in every process that has it on its path, and writes down which these were and whether they tried.
GUARD = """
import os, pathlib, socket, sys
log = pathlib.Path({log!r})
def note(what):
    with log.open("a") as stream:
        print(what, os.getpid(), *sys.argv, file=stream)
def refuse(*arguments, **_):
    note(f"tried {{arguments[-1:]}}")
    raise OSError("the network is cut")
def to_files_only(real):  # a unix socket is a file
    return lambda self, *given: (real if self.family == socket.AF_UNIX else refuse)(self, *given)
socket.socket.connect, socket.socket.connect_ex = map(to_files_only, (socket.socket.connect, socket.socket.connect_ex))
socket.socket.sendto = socket.getaddrinfo = refuse
note("guarded")
"""


class Guard:
    """Processes without a network."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._log = folder / "log"
        (folder / "sitecustomize.py").write_text(GUARD.format(log=str(self._log)))
        self.env = {"PYTHONPATH": str(folder)}

    def lines(self, what: str) -> list[str]:
        return [line for line in self._log.read_text().splitlines() if line.startswith(what)]


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    return Guard(tmp_path / "guard")


def test_the_guard_holds_and_pull_needs_what_it_cuts(machine: Machine, guard: Guard, hub: Hub) -> None:
    done = machine.run("pull", MODEL, env=guard.env)
    assert done.returncode == 1
    assert "can't be reached" in done.stderr
    assert guard.lines("tried")
    assert hub.seen == []


def test_alone_it_prints_a_table_of_this_machine_without_any_network(machine: Machine, guard: Guard) -> None:
    done = machine.run("pull", env=guard.env | {"COLUMNS": "80"})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("This machine: ")
    for known in catalogue.KNOWN:
        assert (f"{known.alias} " in done.stdout) == known.listed
    assert "10,000 tokens: there is no document.txt here" in done.stdout
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 80
    assert "cag-daemon pull ministral-" in done.stdout or "No first choice" in done.stdout
    assert guard.lines("guarded")
    assert not guard.lines("tried")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Sets what a machine is found to be, and makes it the one that `pull` alone is asked on."""
    monkeypatch.chdir(tmp_path)

    def found(device: str, memory: int | None, flops: float, bandwidth: float) -> None:
        speed = Speed(device, "Some GPU", "bfloat16", memory, flops, bandwidth)
        monkeypatch.setattr("cag_daemon.engine.speed.measure", lambda *_: speed)

    found("cuda:0", 23_500_000_000, 100e12, 800e9)
    return found


def test_alone_with_json_for_the_document_that_is_here(measured: Any, capsys: Any) -> None:
    Path("notes.txt").write_text("word " * 8000)
    assert choice.show(True, Settings(document="notes.txt")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["documentTokens"] == 10_000
    assert found["machine"]["flops"] == 100e12
    assert {each["alias"] for each in found["models"]} == {each.alias for each in catalogue.KNOWN if each.listed}
    assert found["first"] in found["models"]
    assert found["first"]["alias"] == "ministral-14b"


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_its_terminal(width: int, measured: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert choice.show(False, Settings()) == 0
    out = capsys.readouterr().out
    *lines, command = out.splitlines()
    assert all(len(line) <= width for line in lines)
    assert command == '  cag-daemon ask "…" --model mistralai/Ministral-3-14B-Instruct-2512 --quantization int8'
    (marked,) = [line for line in lines if line.startswith("→  ")]
    assert marked.split()[1:3] == ["ministral-14b", "no"]
    assert ("near Mistral Small" in out) == (width == 120)


def test_where_nothing_fits_that_is_said_and_what_to_do(measured: Any, capsys: Any) -> None:
    measured("cuda:0", 2_000_000_000, 5e12, 100e9)
    assert choice.show(False, Settings()) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "No first choice: nothing fits: even ministral-3b in int4 takes" in out
    assert "shorter document" in out


def test_what_is_not_free_just_now_is_told(measured: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = psutil.virtual_memory()._replace(total=int(16e9), available=int(2e9))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    measured("cpu", None, 0.5e12, 40e9)
    assert choice.show(False, Settings()) == 0
    assert "2.0 GB are free now: close other programs first." in " ".join(capsys.readouterr().out.split())


def test_alone_with_a_document_that_is_not_there(measured: Any) -> None:
    with pytest.raises(DocumentNotFound, match=r"nowhere\.txt"):
        choice.show(False, Settings(document="nowhere.txt"))


def test_doctor_runs_without_any_network(machine: Machine, guard: Guard) -> None:
    assert machine.run("doctor", env=guard.env).returncode == 0
    assert not guard.lines("tried")


# Shorter ones of the same kind stand in tests/test_cli.py; here the worker is seen to be cut off, too.
@pytest.mark.exhaustive
def test_the_daemon_and_its_worker_answer_without_any_network(tmp_path: Path, guard: Guard) -> None:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (workspace / "document.txt").write_text("The lathe is in the cellar.\n")
    client = Client(workspace, env=guard.env)
    try:
        client.initialize([workspace])
        assert client.answer("Where is the lathe?")
        client.stop()
    finally:
        client.kill()
    assert len({line.split()[1] for line in guard.lines("guarded")}) >= 2, "the worker was not guarded, too"
    assert not guard.lines("tried")


@pytest.mark.exhaustive
def test_what_was_fetched_answers_without_any_network(machine: Machine, guard: Guard) -> None:
    assert machine.run("pull", MODEL).returncode == 0
    (machine.home / "document.txt").write_text("The lathe is in the cellar.\n")
    asked = machine.run("ask", "Where is the lathe?", "--model", MODEL, env=guard.env)
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.strip()
    assert not guard.lines("tried")
