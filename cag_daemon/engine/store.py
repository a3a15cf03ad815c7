"""KV segments on disk: what was read once is copied back after a restart.

A document's folder holds, for each key, a folder of segments and the manifests of its newest two texts:

    <cache directory>/caches/<file>-<16 hex>/<key>/<chained hash>.safetensors
    <cache directory>/caches/<file>-<16 hex>/<key>/<version>.json

The key stands for everything but the tokens that the bits depend on. A segment is one chunk, named by the hash of the
segment before it and its own ids; it holds those ids, which are compared, and a checksum. It is written under another
name, synced and renamed, the manifest last. Anything that is wrong with one means that it is not there: what it held is
read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cag_daemon.errors import one_line
from cag_daemon.places import UNDER_WAY_SECONDS, make_cache_folder

log = logging.getLogger(__name__)

FORMAT = 1
TEXTS_KEPT = 2  # of each document, the newest
DEFAULT_BYTES = 20e9
PART_OF_DISK = 0.1
FREE_AFTERWARDS = 1e9  # bytes of the disk that stay free

# Keys and values of all layers, [layers, kv heads, tokens, head dim] each.
Segment = tuple[torch.Tensor, torch.Tensor]


class SegmentStore:
    """Segments of many documents, for one key.

    Args:
        folder: ``caches`` of the cache directory.
        key: all that the bits depend on beside the ids, in words.
        chunk: tokens of a segment; the last one of a text may have fewer.
        most_bytes: that all caches in the folder may take, whoever wrote them; None: 20 GB, or a tenth of the free
            disk.
        environment: what else may change bits, unlikely though: what was written elsewhere is verified before it is
            used.
    """

    def __init__(
        self, folder: Path, key: str, chunk: int, most_bytes: int | None = None, environment: str = ""
    ) -> None:
        self.folder, self.chunk, self.environment = folder, chunk, environment
        self.key = hashlib.sha256(f"{FORMAT}\n{chunk}\n{key}".encode()).hexdigest()
        self._most = most_bytes
        self._said = ""

    def text(self, document: Path, ids: Sequence[int]) -> StoredText:
        """A text of a document; ``document``: see `places.document_folder`."""
        return StoredText(self, document / self.key[:16], ids)

    def make(self, folder: Path) -> None:
        """Have a document's folder there."""
        if not folder.is_dir():
            for each in (self.folder.parent, self.folder):
                make_cache_folder(each)
            for each in (folder.parent, folder):
                each.mkdir(mode=0o700, exist_ok=True)

    def keep_within(self, newest: Path) -> None:
        """Delete the least recently used of what anybody keeps here, until it is not too much."""
        folders = [each for each in self.folder.glob("*/*") if each.is_dir()]
        sizes = {each: sum(file.stat().st_size for file in each.iterdir() if file.is_file()) for each in folders}
        most = self._most
        if most is None:
            most = int(min(DEFAULT_BYTES, PART_OF_DISK * (shutil.disk_usage(self.folder).free + sum(sizes.values()))))
        for folder in sorted(folders, key=_last_used):
            if sum(sizes.values()) <= most:
                return
            if folder != newest or sizes[folder] > most:
                shutil.rmtree(folder, ignore_errors=True)
                sizes.pop(folder)
                with contextlib.suppress(OSError):
                    folder.parent.rmdir()  # where it was the last one

    def say(self, error: Exception) -> None:
        """Log, once, why nothing can be written."""
        if one_line(error) != self._said:
            self._said = one_line(error)
            log.warning("Caches can't be kept in %s (%s); documents will be read anew.", self.folder, self._said)


class StoredText:
    """One text, as segments on disk.

    Args:
        store: where.
        folder: of its document, under the store's key.
        ids: of its tokens.
    """

    def __init__(self, store: SegmentStore, folder: Path, ids: Sequence[int]) -> None:
        self._store, self._folder, self._ids = store, folder, list(ids)
        parent, self._names = store.key, []
        for start in range(0, len(ids), store.chunk):
            part = ",".join(map(str, ids[start : start + store.chunk]))
            parent = hashlib.sha256(f"{parent}\n{part}".encode()).hexdigest()
            self._names.append(parent[:32])

    def load(self, start: int) -> Iterator[Segment]:
        """Its segments from one token on (a multiple of the chunk), as far as they are there and whole."""
        for number in range(start // self._store.chunk, len(self._names)):
            segment = _read(self._file(number), self._part(number))
            if segment is None:
                return
            yield segment

    def missing(self) -> list[int]:
        """Where the segments begin that are not on disk."""
        there = [os.path.isfile(self._file(at)) for at in range(len(self._names))]  # noqa: PTH113 (Path's may raise)
        return [at * self._store.chunk for at, found in enumerate(there) if not found]

    def save(self, start: int, segment: Segment) -> bool:
        """Write the segment that begins there; whether that was possible."""
        number = start // self._store.chunk
        try:
            self._store.make(self._folder)
            size = segment[0].nbytes + segment[1].nbytes
            if shutil.disk_usage(self._folder).free < size + FREE_AFTERWARDS:
                raise OSError("the disk is nearly full")
            _write(self._file(number), self._part(number), segment)
        except Exception as error:  # safetensors has types of its own
            self._store.say(error)
            return False
        return True

    def finish(self, version: str) -> None:
        """Write down that it is whole on disk, and drop what belongs to older texts, or is too much."""
        manifest = {"format": FORMAT, "segments": self._names, "environment": self._store.environment}
        try:
            _replace(self._folder / f"{version}.json", json.dumps(manifest).encode())
            self._keep_newest()
            self._store.keep_within(self._folder)
        except OSError as error:
            self._store.say(error)

    def verified(self, version: str) -> bool:
        """Whether its segments come from an environment like this one; it counts as used now."""
        file = self._folder / f"{version}.json"
        with contextlib.suppress(OSError):
            os.utime(file)
        return (_manifest(file) or {}).get("environment") == self._store.environment

    def drop(self) -> None:
        """Delete what is kept of this document: it is not what it should be."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _file(self, number: int) -> Path:
        return self._folder / f"{self._names[number]}.safetensors"

    def _part(self, number: int) -> list[int]:
        return self._ids[number * self._store.chunk : (number + 1) * self._store.chunk]

    def _keep_newest(self) -> None:
        manifests = sorted(self._folder.glob("*.json"), key=lambda file: -file.stat().st_mtime_ns)
        needed: set[str] = set()
        for file in manifests[:TEXTS_KEPT]:
            needed.update((_manifest(file) or {}).get("segments", []))
        for file in manifests[TEXTS_KEPT:]:
            file.unlink(missing_ok=True)
        for file in self._folder.glob("*.safetensors"):
            if file.stem not in needed:
                file.unlink(missing_ok=True)
        for file in self._folder.glob(".*"):  # of a writing that was broken off, unless it is going on
            if time.time() - file.stat().st_mtime > UNDER_WAY_SECONDS:
                file.unlink(missing_ok=True)


def _read(file: Path, ids: Sequence[int]) -> Segment | None:
    """A segment of exactly these ids; None: there is none, or not any more because something was wrong with it."""
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            metadata = opened.metadata() or {}
            keys, values = opened.get_tensor("keys"), opened.get_tensor("values")
        if json.loads(metadata["ids"]) != list(ids) or int(metadata["format"]) != FORMAT:
            raise ValueError("it is of another text, or version")
        if keys.shape != values.shape or keys.shape[2] != len(ids) or int(metadata["crc"]) != _sum(keys, values):
            raise ValueError("it is damaged")
    except FileNotFoundError:
        return None
    except Exception as error:  # safetensors' own, and what JSON and numbers may be
        log.warning("%s can't be used (%s); what it held is read anew.", file, one_line(error))
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
        return None
    return keys, values


def _write(file: Path, ids: list[int], segment: Segment) -> None:
    keys, values = (each.contiguous() for each in segment)
    metadata = {"format": str(FORMAT), "ids": json.dumps(ids), "crc": str(_sum(keys, values))}
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    os.close(handle)
    try:
        save_file({"keys": keys, "values": values}, name, metadata=metadata)
        with Path(name).open("rb") as written:
            os.fsync(written.fileno())
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _replace(file: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    with os.fdopen(handle, "wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())
    Path(name).replace(file)


def _sum(keys: torch.Tensor, values: torch.Tensor) -> int:
    """A checksum at the speed of memory."""
    crc = 0
    for each in (keys, values):
        crc = zlib.crc32(each.contiguous().view(torch.uint8).numpy().data, crc)
    return crc


def _manifest(file: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(values, dict) or values.get("format") != FORMAT or not isinstance(values.get("segments"), list):
        return None
    return values


def _last_used(folder: Path) -> float:
    times = [file.stat().st_mtime for file in folder.glob("*.json")]
    # What has no manifest yet is being written, or was left by somebody who died: the newest file tells.
    return max(times or [file.stat().st_mtime for file in folder.iterdir()], default=time.time())
