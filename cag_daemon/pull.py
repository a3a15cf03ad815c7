"""`pull MODEL`: a model from the hub, in words: what is fetched, how far it is, where it is, what comes next."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from cag_daemon import catalogue
from cag_daemon.download import Download, Show
from cag_daemon.errors import CagError, InvalidParams
from cag_daemon.refusals import explained


def pull(model: str, as_json: bool) -> int:
    """Fetch a model, say where it is and what comes next; 0.

    Args:
        model: a hub id, or an alias of the catalogue.
        as_json: what has been done as JSON on stdout, instead of words.

    Raises:
        InvalidParams: there is nothing to fetch under that name.
        ModelFailed, ModelNotFound: with one sentence: what is wrong, and the next step.
    """
    name, terminal = _hub_id(model), Console(stderr=True, highlight=False)
    download = Download(name, terminal.print)
    _run(download, terminal)
    with contextlib.suppress(AttributeError):  # a character that a pipe's encoding lacks is no reason to fail
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    folder, size = download.snapshot, download.size
    if as_json:
        done = {"model": name, "revision": download.revision, "path": str(folder), "bytes": size}
        click.echo(json.dumps(done | {"files": [each.name for each in download.files]}, ensure_ascii=False, indent=2))
        return 0
    click.echo(f"{name} is here, {decimal(size)}, whole and checked:\n{folder}")
    click.echo(f'Ask it: cag-daemon ask "…" --model {name}')
    click.echo("Or set model to it for good: cag.model in the editor, CAG_MODEL in the environment.")
    return 0


def _run(download: Download, terminal: Console) -> None:
    model = download.model
    try:
        with download.one_at_a_time():
            with terminal.status(f"Looking at {model} …"):
                download.look()
            missing = download.missing
            words = f"Fetching {model}, {decimal(missing)}" if missing else f"Checking {model}"
            with _progress(terminal, words, download.size) as show:
                download.fetch(show)
    except KeyboardInterrupt:
        terminal.print(f"Interrupted: {download.so_far()}.")
        raise
    except CagError:
        raise
    except Exception as error:
        raise explained(error, download.circumstances()) from error


def _hub_id(model: str) -> str:
    """The hub id that is meant; nothing is fetched for what is here already."""
    known = catalogue.find(model)
    if known is not None:
        return known.id
    if model == "embedded":
        raise InvalidParams("The embedded model comes along with cag-daemon: there is nothing to fetch.", "model")
    if model == "auto":
        raise InvalidParams(
            "auto is a choice among the models that are here: run `cag-daemon pull` alone to see which to fetch.",
            "model",
        )
    if Path(model).expanduser().is_dir():
        raise InvalidParams(
            f"{model} is a folder on this machine: set model to it, there is nothing to fetch.", "model"
        )
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model):
        raise InvalidParams(
            f"{model} is no model of the hub: give its id, such as mistralai/Ministral-3-3B-Instruct-2512, "
            "or one of the names that `cag-daemon pull` alone prints.",
            "model",
        )
    return model


@contextlib.contextmanager
def _progress(terminal: Console, words: str, size: int) -> Iterator[Show]:
    """One bar for all files on a terminal; elsewhere a line for each tenth."""
    if not terminal.is_terminal:
        terminal.print(f"{words} …", soft_wrap=True)
        yield _lines(terminal, size)
        return
    columns = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(compact=True))
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        *columns,
        console=terminal,
        transient=True,
        expand=True,
    ) as bar:
        task = bar.add_task("", total=size)
        yield lambda what, done: bar.update(task, description=what, completed=done)


def _lines(terminal: Console, size: int) -> Show:
    told, since, before = 0, time.monotonic(), 0

    def show(what: str, done: int) -> None:
        nonlocal told, since, before
        now = time.monotonic()
        if not what.startswith("Fetching"):
            since, before = now, done  # what is checked says nothing of how fast the network is
            return
        if done * 10 // size <= told or done == size:
            return
        told = done * 10 // size
        rate = max((done - before) / max(now - since, 1e-3), 1)
        left = f"{rate / 1e6:.1f} MB/s, about {(size - done) / rate:.0f} s left"
        terminal.print(f"{decimal(done)} of {decimal(size)}, {left}", soft_wrap=True)
        since, before = now, done

    return show
