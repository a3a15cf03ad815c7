"""An editor that starts a daemon, brings it to some state, says who is there, and waits to be killed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.client import Client


def main() -> None:
    order = json.loads(sys.argv[1])
    client = Client(Path(order["cwd"]), flags=order["flags"])
    client.initialize([Path(order["folder"])], process_id=os.getpid())
    if order["state"] == "reading":
        client.ask("What?")
        client.wait_status(lambda status: status["documents"] and status["documents"][0].get("read", 0) > 0)
    elif order["state"] == "answering":
        client.ask("What?", id="x", maxNewTokens=4096)
        client.wait_notification("cag/partial")
    else:
        client.wait_status(order["state"])
    print(json.dumps([client.process.pid, *client.worker_pids()]), flush=True)  # noqa: T201
    sys.stdin.read()


if __name__ == "__main__":
    main()
