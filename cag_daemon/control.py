"""`status`, `unload` and `stop`: the front that serves this user's editors, seen and told from outside."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import click
import psutil
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from cag_daemon import runtime
from cag_daemon.errors import CagError

STOPS_WITHIN = 5.0  # seconds
NOT_RUNNING = "No daemon is running; an editor starts it."


def status(as_json: bool) -> int:
    """Print what runs, for whom and what it takes; 0 also where nothing runs.

    Raises:
        CagError: it can't be found out.
    """
    found = running()
    if as_json:
        _print_json({"running": False} if found is None else {"running": True, **found})
    elif found is None:
        click.echo(NOT_RUNNING)
    else:
        _show(found)
    return 0


def unload(as_json: bool) -> int:
    """Have the models leave memory, and say how much that was.

    Raises:
        CagError: it can't be done.
    """
    result = _ask_front("unload")
    if as_json:
        _print_json({"running": False} if result is None else {"running": True, **result})
    elif result is None:
        click.echo("No daemon is running: there is nothing to free.")
    elif not result["freed"]:
        click.echo("There was nothing to free: no model is in memory.")
    else:
        click.echo(f"Freed {decimal(result['freed'])}: the next question brings the model back.")
    return 0


def stop(as_json: bool) -> int:
    """End the front and its workers, and wait until it is gone; 1 where it is not.

    Raises:
        CagError: it can't be done.
    """
    before = running()
    # By its start, not its number alone: that may be another's a moment later.
    process = None if before is None else _process(before["pid"])
    result = None if before is None else _ask_front("stop")
    if before is None or result is None:
        if as_json:
            _print_json({"running": False})
        else:
            click.echo("No daemon is running: there is nothing to stop.")
        return 0
    gone = process is None or _gone(process)
    if as_json:
        _print_json({"running": not gone, **result})
    elif gone:
        click.echo(_stopped(result["pid"], len(before["clients"])))
    if not gone:
        words = f"process {result['pid']} was told to stop and has not ended in {STOPS_WITHIN:.0f} s; look into"
        click.echo(f"cag-daemon: {words} {before['log']}, or end it with: kill -9 {result['pid']}.", err=True)
    return int(not gone)


def running() -> dict[str, Any] | None:
    """What the front of this installation says of itself; None: none runs.

    Raises:
        CagError: one runs and does not answer, or its folder can't be trusted.
    """
    return _ask_front("status")


def _ask_front(purpose: str) -> dict[str, Any] | None:
    if not runtime.shareable():
        return None  # each editor has a process of its own, and there is nobody to ask
    try:
        connection = runtime.connect()
    except (runtime.RuntimeUnusable, OSError) as error:
        raise CagError(str(error)) from error
    if connection is None:
        return None
    with connection:
        line = runtime.greet(connection, runtime.hello(purpose))
    if line is None:
        words = f"A daemon listens at {runtime.socket_path()} and does not answer; try again, or end its process."
        raise CagError(f"{words} Its log: {runtime.log_file()}.")
    if "refused" in line:
        raise CagError(str(line["refused"]))
    return cast("dict[str, Any]", line["result"])


# ── the end ─────────────────────────────────────────────────────────────────────────────────


def _process(pid: int) -> psutil.Process | None:
    with suppress(psutil.Error):
        return psutil.Process(pid)
    return None


def _gone(process: psutil.Process) -> bool:
    deadline = time.monotonic() + STOPS_WITHIN
    while _lives(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _stopped(pid: int, editors: int) -> str:
    said = f"Stopped (process {pid})"
    if editors == 0:
        return f"{said}."
    verb, its = ("starts", "its") if editors == 1 else ("start", "their")
    return f"{said}; {_count(editors, 'editor')} {verb} it again with {its} next question."


# ── words ───────────────────────────────────────────────────────────────────────────────────


def _show(found: Mapping[str, Any]) -> None:
    with suppress(AttributeError):  # a character that a pipe's encoding lacks is no reason to fail
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 10_000  # for programs, a line each
    click.echo(
        f"cag-daemon {found['version']} is running: process {found['pid']}, {_since(found['started'])}, "
        f"{decimal(found['memory'])} without the models."
    )
    click.echo()
    if found["clients"]:
        lines = [row for each in found["clients"] for row in _client(each)]
        console.print(_table(("editor", "state", "document", "tokens"), lines))
    else:
        click.echo("No editor is connected: it ends soon.")
    click.echo()
    if found["models"]:
        names = ("model", "on", "state", "memory", "editors", "leaves memory")
        console.print(_table(names, [_model(each) for each in found["models"]]))
    else:
        click.echo("No model is in memory.")
    click.echo()
    click.echo(f"Log: {_short(Path(found['log']))}")


def _table(names: Iterable[str], lines: Iterable[Iterable[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, overflow="fold", justify="right" if name in ("memory", "editors") else "left")
    for line in lines:
        table.add_row(*(Text(_plain(each)) for each in line))
    return table


def _client(client: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """A line for each of its documents, the client named in the first."""
    name = client["name"] + (f" ({client['pid']})" if "pid" in client else "")
    state = client.get("short") or client["state"]
    # The short words repeat the tokens of a single document, which have a column here.
    heads = [(name, state.partition(" ")[0] if state.startswith(("ready", "reading")) else state)]
    heads += [("", "")] * (len(client["documents"]) - 1)
    gone = client["state"] == "unloaded"
    documents = [(_document(each), _tokens(each, gone)) for each in client["documents"]] or [("", "")]
    return [(*head, *document) for head, document in zip(heads, documents, strict=True)]


def _document(document: Mapping[str, Any]) -> str:
    uri = document["uri"]
    name = _short(_path(uri)) if uri.startswith("file:///") else uri
    return f"{name} (unsaved)" if document["source"] == "buffer" else name


def _path(uri: str) -> Path:
    # Not by the room that does so for editors: it knows LSP, and that takes half a second to import.
    raw = re.sub(
        rb"%([0-9a-fA-F]{2})", lambda match: bytes.fromhex(match[1].decode()), os.fsencode(uri[len("file://") :])
    )
    return Path(os.fsdecode(raw))


def _tokens(document: Mapping[str, Any], gone: bool) -> str:
    if document["state"] == "reading" and "read" in document:
        return f"{document['read']:,} of {document['tokens']:,} read"
    if document["state"] in ("failed", "missing"):
        return str(document.get("message", document["state"]))
    if "tokens" not in document:
        return "not in memory" if gone else "not read yet"
    most = f" (of {document['maxTokens']:,} possible)" if "maxTokens" in document else ""
    changed = ", text changed" if document["state"] == "waiting" else ""
    return f"{document['tokens']:,}{most}{changed}"


def _model(model: Mapping[str, Any]) -> tuple[str, ...]:
    held = model.get("quantization", "none")
    how = model.get("dtype", "") if held == "none" else held
    where = ", ".join(filter(None, [model.get("device", ""), how]))
    state = "not in memory" if model["state"] == "stopped" else model["state"]
    if "message" in model:
        state += f": {model['message']}"
    memory = decimal(model["memory"]) if "memory" in model else ""
    leaves = f"in {_duration(model['unloadsInSeconds'])}" if "unloadsInSeconds" in model else ""
    return model["name"], where, state, memory, str(model["clients"]), leaves


def _since(started: float) -> str:
    when = datetime.fromtimestamp(started)
    day = "" if when.date() == datetime.now().date() else f"{when:%Y-%m-%d} "
    return f"since {day}{when:%H:%M} ({_duration(time.time() - started)})"


def _duration(seconds: float) -> str:
    """In the unit that people think in."""
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{round(seconds / 3600)} h" if seconds < 48 * 3600 else f"{round(seconds / 86400)} days"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def _plain(words: str) -> str:
    """One line that no terminal takes for a command: names come from other programs."""
    return "".join(each if each.isprintable() else "�" for each in words)


def _short(path: Path) -> str:
    home = Path.home()
    return str(Path("~") / path.relative_to(home)) if path.is_relative_to(home) else str(path)


def _print_json(said: Mapping[str, Any]) -> None:
    # Escaped: a path may hold bytes that are no text in any encoding.
    click.echo(json.dumps(said, indent=2))
