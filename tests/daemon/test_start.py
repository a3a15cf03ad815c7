"""The beginning: ``initialize``, and what comes before it and after the end."""

from __future__ import annotations

import re
import textwrap
import time
from pathlib import Path

import pytest

from tests.client import (
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    NOT_INITIALIZED,
    ROOT,
    Client,
)
from tests.daemon.conftest import Daemons
from tests.documents import LIGHTHOUSE


def test_initialize_says_what_this_server_can(bare: Client) -> None:
    capabilities = bare.initialized["capabilities"]
    cag = capabilities["experimental"]["cag"]
    assert cag["protocolVersion"] == 1
    assert {"ask", "citations"} <= set(cag["features"])
    assert "conversation" not in cag["features"]
    clients = ROOT / "editor-clients"
    vscode = (clients / "vscode" / "src" / "protocol.ts").read_text("utf-8")
    neovim = (clients / "neovim" / "lua" / "cag" / "protocol.lua").read_text("utf-8")
    for needs in (r"FEATURES = \[(.*?)\]", vscode), (r"FEATURES = \{(.*?)\}", neovim):
        (listed,) = re.findall(*needs, re.DOTALL)
        needed = set(re.findall(r"'(\w+)'", listed))
        assert {"ask", "status"} <= needed <= set(cag["features"])
    sync = capabilities["textDocumentSync"]
    assert sync["openClose"] is True
    assert sync["change"] == 2  # incremental
    assert sync["save"]
    assert {"cag.ask", "cag.askSelection", "cag.refresh", "cag.status"} <= set(
        capabilities["executeCommandProvider"]["commands"]
    )
    assert capabilities["codeActionProvider"]
    folders = capabilities["workspace"]["workspaceFolders"]
    assert folders["supported"] is True
    assert folders["changeNotifications"]


def test_positions_are_utf16_also_where_the_client_lists_utf8_first(bare: Client) -> None:
    assert bare.initialized["capabilities"]["positionEncoding"] == "utf-16"


def test_initialize_is_answered_before_any_model_is_loaded(daemon: Daemons) -> None:
    client = daemon()
    assert client.status()["state"] in ("starting", "loading", "reading")
    initialize = client.pendings[0]
    client.wait_status("ready")
    first = client.wait_notification("cag/documentChanged")
    assert first["document"]["uri"] == client.document.as_uri()
    loaded = next(e.at for e in client.log if not e.sent and e.message.get("method") == "cag/documentChanged")
    assert initialize.replies[0].at < loaded


def test_nothing_is_loaded_without_a_document(bare: Client) -> None:
    status = bare.wait_status("noDocument")
    assert "model" not in status
    assert "document.txt" in status["message"]
    assert bare.worker_pids() == []


def test_a_second_initialize_is_refused_and_changes_nothing(bare: Client) -> None:
    error = bare.request("initialize", {"processId": None, "rootUri": None, "capabilities": {}}).error()
    assert error["code"] == INVALID_REQUEST
    assert bare.status()["state"] == "noDocument"


def test_requests_before_initialize_are_refused_and_notifications_ignored(daemon: Daemons) -> None:
    client = daemon(None, initialize=False)
    client.notify("cag/nonsense", {"a": 1})
    client.notify(
        "textDocument/didOpen", {"textDocument": {"uri": "file:///x", "languageId": "", "version": 1, "text": ""}}
    )
    client.notify("initialized", {})
    for method in (
        "cag/ask",
        "cag/status",
        "cag/refresh",
        "textDocument/hover",
        "workspace/executeCommand",
        "shutdown",
    ):
        assert client.request(method, {}).error()["code"] == NOT_INITIALIZED, method
    client.initialize([client.folder])
    assert client.wait_status("noDocument")


def test_after_shutdown_there_is_only_exit(daemon: Daemons) -> None:
    client = daemon(None)
    client.shutdown()
    for method in ("cag/ask", "cag/status", "cag/refresh", "shutdown", "initialize", "textDocument/hover"):
        assert client.request(method, {}).error()["code"] == INVALID_REQUEST, method
    client.notify("cag/nonsense")
    client.exit()
    assert client.wait_end() == 0


@pytest.mark.parametrize("arguments", [(), ("serve",), ("--stdio",)], ids=["bare", "serve", "--stdio"])
def test_every_way_to_start_speaks_lsp_on_stdio(daemon: Daemons, arguments: tuple[str, ...]) -> None:
    client = daemon(None, arguments=arguments)
    assert client.initialized["capabilities"]["experimental"]["cag"]["protocolVersion"] == 1
    assert client.wait_status("noDocument")


def test_params_may_be_absent_null_or_empty_where_nothing_is_required(bare: Client) -> None:
    states = [
        bare.request("cag/status").result()["state"],
        bare.request("cag/status", None).result()["state"],
        bare.request("cag/status", {}).result()["state"],
        bare.request("cag/status", {"unknown": [None, {"x": 1}]}).result()["state"],
    ]
    assert states == ["noDocument"] * 4


@pytest.mark.parametrize("params", [None, {}, {"textDocument": {"uri": "file:///x"}}, [1, 2], []])
def test_an_unknown_method_is_said_to_be_unknown(bare: Client, params: object) -> None:
    for method in ("cag/nonsense", "textDocument/nonsense", "textDocument/hover", "x", ""):
        assert bare.request(method, params).error()["code"] == METHOD_NOT_FOUND, method
    assert bare.request("cag/nonsense").error()["code"] == METHOD_NOT_FOUND


def test_unknown_notifications_are_ignored(bare: Client) -> None:
    since = bare.mark()
    bare.notify("cag/nonsense")
    bare.notify("$/nonsense", {"a": None})
    bare.notify("textDocument/nonsense", [1])
    bare.notify("$/setTrace", {"value": "off"})
    bare.status()
    assert not [each for each in bare.messages(since=since) if each.get("method", "").startswith("window/showMessage")]


def test_ids_of_requests_may_be_strings_and_used_again(bare: Client) -> None:
    for _ in range(3):
        assert bare.request("cag/status", id="the same").result()["state"] == "noDocument"
        assert bare.request("cag/status", id=99_999).result()["state"] == "noDocument"
    assert bare.request("cag/status", id="99999").result()["state"] == "noDocument"
    assert bare.request("cag/status", id="").result()["state"] == "noDocument"
    assert bare.request("cag/status", id=0).result()["state"] == "noDocument"
    assert bare.request("cag/status", id=-5).result()["state"] == "noDocument"


def test_a_client_that_says_the_least_is_served(daemon: Daemons) -> None:
    client = daemon(None, initialize=False)
    result = client.request("initialize", {"capabilities": {}}).result()
    assert result["capabilities"]["positionEncoding"] == "utf-16"
    client.initialized = result
    client.notify("initialized")
    client.notify("initialized", None)
    assert client.wait_status("noDocument")


def test_the_folder_of_an_old_client_is_its_root_uri(daemon: Daemons) -> None:
    client = daemon(LIGHTHOUSE.text, initialize=False)
    params = {"processId": None, "rootUri": client.folder.as_uri(), "capabilities": {}}
    client.initialized = client.request("initialize", params).result()
    client.notify("initialized", {})
    documents = client.wait_status(lambda status: status["documents"])["documents"]
    assert [each["uri"] for each in documents] == [client.document.as_uri()]
    client.abandoned = True  # what its worker would say is not of interest here
    client.kill()


def test_only_the_protocol_is_on_stdout_though_the_worker_prints(daemon: Daemons, tmp_path: Path) -> None:
    noise = tmp_path / "noise"
    noise.mkdir()
    marker = noise / "printed"
    (noise / "sitecustomize.py").write_text(
        textwrap.dedent(f"""
            import os, sys, threading, time

            def chatter():
                while "torch" not in sys.modules:
                    time.sleep(0.01)
                while True:
                    print("a library prints")
                    sys.stdout.flush()
                    os.write(1, b"native code prints\\n")
                    os.system("echo a child prints")
                    open({str(marker)!r}, "w").close()
                    time.sleep(0.05)

            threading.Thread(target=chatter, daemon=True).start()
        """)
    )
    client = daemon(env={"PYTHONPATH": str(noise)})
    question, expected = LIGHTHOUSE.pairs[0]
    assert expected in client.answer(question, id="noisy")
    deadline = time.monotonic() + 5
    while not marker.exists() and time.monotonic() < deadline:
        assert expected in client.answer(question)
    assert marker.exists(), "the test is void: the worker has printed nothing"


def test_no_network_socket_is_opened(calm: Client) -> None:
    for process in [calm.watched, *calm.workers()]:
        assert list(process.net_connections("inet")) == []
