"""A language server that answers `initialize` and nothing else: daemons that a client must not get on with.

usage: fake_daemon.py older|newer|poorer|broken|hung
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

SAYS: dict[str, dict[str, Any]] = {
    "older": {},
    "newer": {"experimental": {"cag": {"protocolVersion": 99, "features": []}}},
    "poorer": {"experimental": {"cag": {"protocolVersion": 1, "features": ["ask", "status"]}}},
}


def main(kind: str) -> None:
    if kind == "broken":
        sys.exit("it was broken")
    while kind == "hung":
        time.sleep(1)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while header := source.readline():
        length = int(header.removeprefix(b"Content-Length:"))
        while source.readline().strip():
            pass
        request = json.loads(source.read(length))
        if request.get("method") == "exit":
            return
        if "id" in request:
            result = {"capabilities": SAYS[kind]} if request["method"] == "initialize" else None
            body = json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}).encode()
            sink.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            sink.flush()


if __name__ == "__main__":
    main(sys.argv[1])
