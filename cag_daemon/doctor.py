"""What is installed, which model would be used and why, and whether everything is there to work offline."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any, Literal

import psutil
from rich.console import Console
from rich.table import Table

from cag_daemon import __version__, text
from cag_daemon.config import Settings
from cag_daemon.errors import CagError

PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "pygls", "lsprotocol", "watchdog", "pydantic")

Verdict = Literal["ok", "note", "problem"]


def examine(as_json: bool, settings: Settings) -> int:
    """Print the findings; 1 where something would keep a question from being answered, else 0."""
    with Console(stderr=True).status("Looking …"):
        findings = list(_findings(settings))
    failed = any(finding["verdict"] == "problem" for finding in findings)
    if as_json:
        print(json.dumps({"ok": not failed, "findings": findings}, ensure_ascii=False, indent=2))
        return int(failed)
    table = Table(box=None, show_header=False, pad_edge=False)
    colours = {"ok": "green", "note": "yellow", "problem": "red"}
    for finding in findings:
        mark = f"[{colours[finding['verdict']]}]{finding['verdict']}[/]"
        table.add_row(mark, finding["what"], finding["found"])
    Console(highlight=False).print(table)
    print("Something is missing: see above." if failed else "Everything is there to answer offline.")
    return int(failed)


def _finding(verdict: Verdict, what: str, found: str, **more: Any) -> dict[str, Any]:
    return {"verdict": verdict, "what": what, "found": found} | more


def _findings(settings: Settings) -> list[dict[str, Any]]:
    return [
        _finding("ok", "cag-daemon", f"{__version__} on Python {platform.python_version()}", python=sys.executable),
        *_packages(),
        _machine(settings),
        _devices(),
        _model(settings),
        _document(settings),
        _finding("ok", "network", "never used: nothing here asks for anything outside this machine"),
    ]


def _packages() -> list[dict[str, Any]]:
    found = []
    for name in PACKAGES:
        try:
            found.append(_finding("ok", name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append(_finding("problem", name, f"not installed; run: pip install {name}"))
    return found


def _machine(settings: Settings) -> dict[str, Any]:
    memory = psutil.virtual_memory()
    found = (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores ({settings.threads} for the model), "
        f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB memory free"
    )
    return _finding("ok", "machine", found, threads=settings.threads, bytesFree=memory.available)


def _devices() -> dict[str, Any]:
    from cag_daemon.engine.devices import devices

    try:
        return _finding("ok", "device", "; ".join(devices()))
    except ImportError as error:
        return _finding("problem", "device", f"torch cannot be imported: {error}")


def _model(settings: Settings) -> dict[str, Any]:
    from cag_daemon.engine.plan import Wanted, plan_for

    try:
        folder = plan_for(Wanted(settings.model, settings.device, settings.dtype)).folder
    except CagError as error:
        return _finding("problem", "model", error.message)
    return _finding("ok", "model", f"{folder.name}: {folder.why}", name=folder.name, path=str(folder.path))


def _document(settings: Settings) -> dict[str, Any]:
    path = Path(settings.document).expanduser().absolute()
    try:
        found = text.read(path)
    except CagError as error:
        return _finding("note", "document", error.message)
    if found.blank:
        return _finding("note", "document", f"{path} is empty")
    return _finding("ok", "document", f"{path}, {len(found.normalised):,} characters", version=found.version)
