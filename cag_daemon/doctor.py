"""What is installed, which model would be used and why, and whether everything is there to work offline."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from cag_daemon import __version__, runtime, text
from cag_daemon.config import Settings
from cag_daemon.control import running
from cag_daemon.errors import CagError
from cag_daemon.offline import Blocked, block

if TYPE_CHECKING:
    from cag_daemon.engine.self_test import Result

PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "pygls", "lsprotocol", "watchdog", "pydantic")

Verdict = Literal["ok", "note", "problem"]


def examine(as_json: bool, settings: Settings, check: str | None = None, offline: bool = False) -> int:
    """Print the findings; 1 where something would keep a question from being answered, else 0.

    Args:
        settings: whose device, model and document are looked at.
        check: a model that is loaded and put to the test, as the setting ``model`` would name it; None: none is.
        offline: the same with no network at all; what wanted it is a problem.
    """
    daemon = _daemon()  # in a world of its own this process would not find it
    # Before the first thread, and before anything that could use it.
    blocked = block() if offline else None
    if check is not None:
        settings = settings.model_copy(update={"model": check})
    terminal = Console(stderr=True)
    with terminal.status("Looking …") as status:

        def told(words: str) -> None:
            status.update(f"{words} …")

        findings = [*_findings(settings), *daemon]
        if check is not None or offline:
            findings += _check(settings, told)
        else:
            findings += _self_tests(settings)
        findings.append(_network(blocked))
    failed = any(finding["verdict"] == "problem" for finding in findings)
    if as_json:
        print(json.dumps({"ok": not failed, "findings": findings}, ensure_ascii=False, indent=2))
        return int(failed)
    table = Table(box=None, show_header=False, pad_edge=False)
    colours = {"ok": "green", "note": "yellow", "problem": "red"}
    for finding in findings:
        mark = f"[{colours[finding['verdict']]}]{finding['verdict']}[/]"
        table.add_row(mark, finding["what"], Text(finding["found"]))
    Console(highlight=False).print(table)
    print("Something is missing: see above." if failed else "Everything is there to answer offline.")
    return int(failed)


def _finding(verdict: Verdict, what: str, found: str, **more: Any) -> dict[str, Any]:
    return {"verdict": verdict, "what": what, "found": found} | more


def _findings(settings: Settings) -> list[dict[str, Any]]:
    document = _document(settings)
    return [
        _finding("ok", "cag-daemon", f"{__version__} on Python {platform.python_version()}", python=sys.executable),
        *_packages(),
        _machine(settings),
        *_devices(),
        *_model(settings, document.get("characters", 0)),
        document,
        _cache(settings),
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
    from cag_daemon.engine.memory import free_in_machine

    free = free_in_machine()
    found = (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores ({settings.threads} for the model), "
        f"{decimal(free)} of {decimal(psutil.virtual_memory().total)} memory free"
    )
    return _finding("ok", "machine", found, threads=settings.threads, bytesFree=free)


def _devices() -> list[dict[str, Any]]:
    from cag_daemon.engine.devices import cuda_without_driver, devices, unused_gpu

    try:
        found = [_finding("ok", "device", "; ".join(devices()))]
    except ImportError as error:
        return [_finding("problem", "device", f"torch cannot be imported: {error}")]
    if (advice := unused_gpu()) is not None:
        found.append(_finding("note", "driver", advice))
    elif (built := cuda_without_driver()) is not None:
        words = (
            f"this torch is made for CUDA {built}, and there is no driver for it: it runs on the CPU. A torch without "
            "CUDA is 3 GB smaller; PyTorch's install page has it under CPU"
        )
        found.append(_finding("note", "driver", words))
    return found


def _model(settings: Settings, characters: int) -> list[dict[str, Any]]:
    from cag_daemon.engine.plan import Wanted, plan_for, what_would_fit

    wanted = Wanted.by(settings, characters)
    try:
        plan = plan_for(wanted)
    except CagError as error:
        return [_finding("problem", "model", error.message)]
    needs, held = plan.needs, plan.quantization if plan.quantization != "none" else str(plan.dtype)[len("torch.") :]
    words = (
        f"{decimal(needs.total)} needed: {decimal(needs.weights)} of weights ({held}), {decimal(needs.cache)} for a "
        f"document of about {plan.document_tokens:,} tokens, {decimal(needs.working)} to work with; "
        f"{decimal(plan.room)} free on {plan.where}"
    )
    verdict: Verdict = "problem" if plan.hopeless else "ok" if plan.fits else "note"
    if not plan.fits:
        words += f": {what_would_fit(wanted, plan)}"
    return [
        _finding(
            "ok", "model", f"{plan.folder.name}: {plan.folder.why}", name=plan.folder.name, path=str(plan.folder.path)
        ),
        _finding(verdict, "memory", words, needed=needs.total, free=plan.room),
    ]


def _check(settings: Settings, told: Callable[[str], None]) -> list[dict[str, Any]]:
    """Load the model, and see whether it answers from the cache as it would without one, and how fast."""
    from cag_daemon.engine.check import check_model
    from cag_daemon.engine.model import load_model
    from cag_daemon.engine.plan import Wanted
    from cag_daemon.engine.self_test import self_test

    wanted = Wanted.by(settings)
    began = time.monotonic()
    try:
        loaded = load_model(wanted, lambda percent: told(f"Loading the model ({settings.model}), {percent} %"))
        took = time.monotonic() - began
        found = check_model(loaded, told)
        told("Refreshing, to compare")
        refreshing = self_test(loaded, settings.kept_in)
    except CagError as error:
        return [_finding("problem", "check", error.message)]
    same = f"{found.same} of {found.compared} tokens as after reading anew, keys and values "
    same += "bit for bit the same" if found.bits else "NOT the same"
    speed = (
        f"loaded in {took:.0f} s; reads {_rate(found.reading)} tokens a second, writes {_rate(found.decoding)}; "
        f"the first one {found.first_token:.0f} ms after a question"
    )
    return [
        _finding("ok" if found.passed else "problem", "cached answers", same, same=found.same, compared=found.compared),
        *_self_test(refreshing),
        _finding("ok", "speed", speed, readTokensPerSecond=found.reading, writtenTokensPerSecond=found.decoding),
    ]


def _rate(tokens_a_second: float) -> str:
    return f"{tokens_a_second:,.0f}" if tokens_a_second >= 10 else f"{tokens_a_second:.1f}"


def _network(blocked: Blocked | None) -> dict[str, Any]:
    if blocked is None:
        return _finding("ok", "network", "used by `cag-daemon pull`, and by nothing else; --offline proves it")
    if blocked.tried:
        return _finding("problem", "network", f"wanted: {'; '.join(blocked.tried[:5])}", tried=blocked.tried)
    by = "in an empty network of its own, " if blocked.kernel else ""
    return _finding("ok", "network", f"loaded, read and answered {by}with every connection refused: none was tried")


def _cache(settings: Settings) -> dict[str, Any]:
    if settings.kept_in is None:
        return _finding("ok", "cache", "nothing is written (cacheMaxGigabytes is 0)")
    folder = Path(settings.kept_in).expanduser()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(there).free
    return _finding("ok", "cache", f"{folder}, {free / 1e9:.0f} GB of the disk free", path=str(folder), bytesFree=free)


def _daemon() -> list[dict[str, Any]]:
    """Whether a front runs for the editors, and where its log is; also after it has ended that tells why."""
    log = Path(runtime.log_file())
    try:
        found = running()
    except CagError as error:
        return [_finding("note", "daemon", error.message, running=False), _log(log)]
    if found is None:
        return [_finding("ok", "daemon", "none is running; an editor starts it", running=False), _log(log)]
    words = f"{found['version']} is running as process {found['pid']}; `cag-daemon status` tells more"
    more = {"running": True, "pid": found["pid"], "version": found["version"]}
    return [_finding("ok", "daemon", words, **more), _log(Path(found["log"]))]


def _log(path: Path) -> dict[str, Any]:
    return _finding("ok", "log", str(path) if path.exists() else f"{path}, nothing in it yet", path=str(path))


def _self_tests(settings: Settings) -> list[dict[str, Any]]:
    """What earlier starts found; the newest of each model, where and how it is held."""
    if settings.kept_in is None:
        return []
    try:
        from cag_daemon.engine.self_test import kept_results

        results = {(each.model, each.device, each.dtype): each for each in reversed(kept_results(settings.kept_in))}
    except (ImportError, OSError):
        return []  # said above
    return [finding for each in results.values() for finding in _self_test(each)]


def _self_test(result: Result) -> list[dict[str, Any]]:
    where = f"{result.model} in {result.dtype} on {result.device}, {date.fromtimestamp(result.time):%Y-%m-%d}"
    if result.passed:
        words = f"after an edit only what comes behind it is read, bit for bit as afresh ({where})"
    else:
        words = f"after an edit all is read: going on in the middle does not give the same bits here ({where})"
    if result.widths:
        drafts = f"answers are drafted, up to {max(result.widths)} tokens at a time, and are bit for bit those without"
    else:
        drafts = "an answer is written token by token: several at a time do not give the same bits here"
    return [
        _finding("ok" if result.passed else "note", "refreshing", words, passed=result.passed),
        _finding("ok" if result.widths else "note", "drafts", f"{drafts} ({where})", widths=list(result.widths)),
    ]


def _document(settings: Settings) -> dict[str, Any]:
    path = Path(settings.document).expanduser().absolute()
    try:
        found = text.read(path)
    except CagError as error:
        return _finding("note", "document", error.message)
    if found.blank:
        return _finding("note", "document", f"{path} is empty")
    words = f"{path}, {len(found.normalised):,} characters"
    return _finding("ok", "document", words, version=found.version, characters=len(found.normalised))
