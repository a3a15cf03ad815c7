"""Does it hold here that what is read after an edit has the bits of a fresh reading? Tried before it is relied on.

The bits of keys and values must depend on the tokens alone, and on the chunks they are read in: not on what the buffer
held before, on how large it is, or on what ran in between. That is so where kernels choose their ways by the shapes
they are given; no document says that they must. So two layers of the model read a text twice, once from nothing and
once as after edits and questions, and the bits are compared: once for each model, device, driver and version. Over
several devices it is the first of them that is tried, at each start.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cag_daemon.engine.cag import clean_up, generate_step, prefill
from cag_daemon.engine.devices import device_failed, environment
from cag_daemon.engine.kv_cache import InPlaceCache
from cag_daemon.engine.model import LoadedModel
from cag_daemon.engine.passes import NARROW
from cag_daemon.engine.widths import agreeing
from cag_daemon.errors import one_line
from cag_daemon.places import make_cache_folder, self_test_folder, self_test_folders

log = logging.getLogger(__name__)

FORMAT = 3
RESULT = "result.json"
LAYERS = 2  # the others have the same shapes
QUESTION, ANSWER = 7, 3  # tokens, in between


@dataclass(frozen=True)
class Result:
    """What was found.

    Attributes:
        passed: a cache that is refreshed is a fresh one, bit for bit.
        model, device, dtype, threads: where.
        time: when, in seconds since 1970.
        widths: of passes to verify drafts with, see `widths.agreeing`; empty: there are no drafts here.
    """

    passed: bool
    model: str
    device: str
    dtype: str
    threads: int
    time: float
    widths: tuple[int, ...] = ()


def self_test(loaded: LoadedModel, cache_directory: str | None) -> Result:
    """The result for this environment: the one that is kept, or a new one, which is kept then.

    Args:
        cache_directory: see `places`; None: nothing is kept, and it is tested.
    """
    file = None
    if cache_directory is not None and loaded.key:
        key = f"{FORMAT}\n{loaded.key}\n{environment(loaded.model.device)}"
        if (narrow := getattr(loaded.model.get_decoder(), NARROW, None)) is not None:
            key += f"\n{narrow.kind}"  # other widths agree, and what is kept on disk has the same bits with and without
        file = self_test_folder(cache_directory, loaded.name, key) / RESULT
        if (kept := _read(file)) is not None:
            return kept
    try:
        passed = refreshed_is_fresh(loaded)
        with _first_layers(loaded.model):
            widths = agreeing(loaded, _cache(loaded.model, 0))
    except Exception as error:  # reading and answering will say what is wrong, if anything is
        if device_failed(error):
            raise
        log.warning(
            "Refreshing could not be tested with %s (%s): after every edit the document will be read from the start.",
            loaded.name,
            one_line(error),
        )
        return Result(False, loaded.name, loaded.device, loaded.dtype, torch.get_num_threads(), time.time())
    threads = torch.get_num_threads()
    result = Result(passed, loaded.name, loaded.device, loaded.dtype, threads, time.time(), widths)
    if not result.passed:
        log.warning(
            "On this machine a cache of %s that is refreshed is not bit for bit a fresh one: after every edit the "
            "document will be read from its beginning.",
            loaded.name,
        )
    if file is not None:
        _write(file, result)
    return result


def kept_results(cache_directory: str) -> list[Result]:
    """All that is kept there, the newest first."""
    found = [_read(folder / RESULT) for folder in self_test_folders(cache_directory)]
    return sorted((each for each in found if each is not None), key=lambda each: -each.time)


def refreshed_is_fresh(loaded: LoadedModel) -> bool:
    """Whether two layers of the model give a text the same bits, whatever was read and asked before."""
    chunk, model = loaded.chunk, loaded.model
    length = min(2 * chunk + chunk // 2 + 1, loaded.context - QUESTION - ANSWER)
    vocabulary = min(len(loaded.tokenizer), int(model.config.get_text_config(decoder=True).vocab_size))
    words = torch.randint(3, vocabulary, (2, length), generator=torch.Generator().manual_seed(length))
    text, other = words[0], words[1]
    with _first_layers(model):
        fresh = _cache(model, length)
        prefill(model, text[None], fresh, chunk_size=chunk)
        # As after edits: another text with the same first chunk; a question, answered; then the text from there on.
        kept = min(chunk, length)
        used = _cache(model, 3 * length)
        prefill(model, torch.cat([text[:kept], other[kept:]])[None], used, chunk_size=chunk)
        list(generate_step(model, other[None, :QUESTION], used, max_new_tokens=ANSWER, chunk_size=chunk))
        clean_up(used, kept)
        if kept < length:
            prefill(model, text[None, kept:], used, chunk_size=chunk)
    return all(
        torch.equal(a.keys[:, :, :length], b.keys[:, :, :length])
        and torch.equal(a.values[:, :, :length], b.values[:, :, :length])
        for a, b in zip(fresh.layers, used.layers, strict=True)
    )


def _cache(model: Any, capacity: int) -> InPlaceCache:
    cache = InPlaceCache(model.config, capacity)
    del cache.layers[LAYERS:]
    return cache


@contextlib.contextmanager
def _first_layers(model: Any) -> Iterator[None]:
    decoder = model.get_decoder()
    layers = decoder.layers
    decoder.layers = layers[:LAYERS]
    try:
        yield
    finally:
        decoder.layers = layers


KINDS: dict[str, type | tuple[type, ...]] = {
    **{"passed": bool, "model": str, "device": str, "dtype": str, "threads": int},
    **{"time": (int, float), "widths": list},
}


def _read(file: Path) -> Result | None:
    try:
        values = json.loads(file.read_text("utf-8"))
        if not all(isinstance(values[name], kind) for name, kind in KINDS.items()):
            return None
        return Result(**{**values, "widths": tuple(int(each) for each in values["widths"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None  # it is tested again


def _write(file: Path, result: Result) -> None:
    """Keep it, if that is possible; else it is tested again at the next start."""
    name = None
    try:
        for folder in (file.parent.parent.parent, file.parent.parent):
            make_cache_folder(folder)
        file.parent.mkdir(mode=0o700, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as opened:
            json.dump(asdict(result), opened)
        Path(name).replace(file)
    except OSError as error:
        log.info("%s can't be written (%s).", file, one_line(error))
        if name is not None:
            with contextlib.suppress(OSError):
                Path(name).unlink(missing_ok=True)
