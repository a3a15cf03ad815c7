"""The Lua types of the Neovim plugin, by a language server for Lua, against Neovim's own."""

from __future__ import annotations

import json
import os
import subprocess
from typing import IO, Any

from tests.editors.found import need
from tests.editors.neovim.drive import PLUGIN, neovim


class LuaServer:
    """EmmyLua's language server over its stdio."""

    def __init__(self, runtime: str) -> None:
        self.process = subprocess.Popen(
            [str(need("emmylua/emmylua_ls"))],
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL},
            env=os.environ | {"VIMRUNTIME": runtime},
        )
        self._number = 0

    def send(self, message: dict[str, Any]) -> None:
        body = json.dumps({"jsonrpc": "2.0"} | message).encode()
        stdin: IO[bytes] = self.process.stdin  # type: ignore[assignment]
        stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        stdin.flush()

    def receive(self) -> dict[str, Any]:
        stdout: IO[bytes] = self.process.stdout  # type: ignore[assignment]
        length = 0
        while (line := stdout.readline()) != b"\r\n":
            assert line, "the server has ended"
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return json.loads(stdout.read(length))

    def request(self, method: str, params: Any) -> Any:
        self._number += 1
        self.send({"id": self._number, "method": method, "params": params})
        while True:
            message = self.receive()
            if "method" in message and "id" in message:  # it asks us for settings, and to show progress
                items = (message.get("params") or {}).get("items")
                self.send({"id": message["id"], "result": [None] * len(items) if items else None})
            elif message.get("id") == self._number:
                return message["result"]


def test_the_types_are_right() -> None:
    command = [str(neovim("0.12")), "--headless", "-u", "NONE", "-i", "NONE", "-l", "/dev/stdin"]
    runtime = subprocess.run(command, input=b"io.stdout:write(vim.env.VIMRUNTIME)", capture_output=True, check=True)
    server = LuaServer(runtime.stdout.decode())
    try:
        folder = {"uri": PLUGIN.as_uri(), "name": PLUGIN.name}
        can = {"textDocument": {"diagnostic": {}}, "workspace": {"configuration": True}}
        params = {"processId": os.getpid(), "rootUri": PLUGIN.as_uri(), "workspaceFolders": [folder]}
        server.request("initialize", params | {"capabilities": can})
        server.send({"method": "initialized", "params": {}})
        files = sorted((PLUGIN / "lua").rglob("*.lua"))
        assert len(files) > 15
        found = []
        for file in files:
            item = {"uri": file.as_uri(), "languageId": "lua", "version": 1, "text": file.read_text("utf-8")}
            server.send({"method": "textDocument/didOpen", "params": {"textDocument": item}})
        for file in files:
            report = server.request("textDocument/diagnostic", {"textDocument": {"uri": file.as_uri()}})
            for each in report.get("items", []):
                found.append(f"{file.name}:{each['range']['start']['line'] + 1} {each['code']}: {each['message']}")
        assert found == []
    finally:
        server.process.kill()
        server.process.wait()
        for stream in (server.process.stdin, server.process.stdout):
            stream.close()  # type: ignore[union-attr]
