"""A language server that says of itself what its first argument has, and nothing else: a daemon of another version.

Its second argument is a file that gets a line for each start.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    with Path(sys.argv[2]).open("a", encoding="utf-8") as starts:
        starts.write("started\n")
    while (line := sys.stdin.buffer.readline()) != b"":
        if not line.lower().startswith(b"content-length:"):
            continue
        length = int(line.split(b":")[1])
        while sys.stdin.buffer.readline() not in (b"\r\n", b""):
            pass
        message = json.loads(sys.stdin.buffer.read(length))
        if message.get("method") == "exit":
            return
        if "id" in message:
            answer(message["id"], initialized() if message["method"] == "initialize" else None)


def initialized() -> dict[str, Any]:
    experimental = json.loads(sys.argv[1])
    return {"capabilities": {"experimental": experimental}, "serverInfo": {"name": "cag-daemon", "version": "9.8.7"}}


def answer(number: Any, result: Any) -> None:
    body = json.dumps({"jsonrpc": "2.0", "id": number, "result": result}).encode()
    sys.stdout.buffer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
    sys.stdout.buffer.flush()


main()
