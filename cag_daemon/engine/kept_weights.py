"""Quantised weights on disk: quantising takes minutes, reading what came of it seconds.

A folder ``<cache directory>/quantized/<model>-<kind>-<fingerprint>`` holds a safetensors file for each decoder layer
and for each weight beside them, and last a ``manifest.json`` with their sizes and checksums. Without it, or with
another fingerprint, a folder is none: the weights are quantised again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from cag_daemon.engine.folder import ModelFolder, Weight
from cag_daemon.errors import one_line
from cag_daemon.places import make_cache_folder

log = logging.getLogger(__name__)

FORMAT = 1  # another one when what is written, or how it is made, changes
FREE_AFTERWARDS = 2e9  # bytes of the disk that stay free


def kept_folder(
    cache_directory: str, folder: ModelFolder, weights: Mapping[str, Weight], kind: str, dtype: torch.dtype
) -> Path:
    """Where that model's quantised weights are kept: its files, their sizes and times are in the name."""
    sources = sorted({weight.file.resolve() for weight in weights.values()})
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sources]
    config = (folder.path / "config.json").read_text("utf-8")
    key = json.dumps([FORMAT, kind, str(dtype), config, stats])
    name = re.sub(r"[^\w.-]+", "--", folder.name)[:80]
    fingerprint = hashlib.sha256(key.encode()).hexdigest()[:16]
    return Path(cache_directory).expanduser() / "quantized" / f"{name}-{kind}-{fingerprint}"


def kept_layers(folder: Path) -> list[Path] | None:
    """The files of a folder, whole and unharmed; None: there is none of that kind."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        files = [folder / name for name in manifest["files"]]
        if all(_sums(file) == tuple(manifest["files"][file.name]) for file in files):
            os.utime(folder / "manifest.json")  # used now
            return files
        log.warning("The quantised weights in %s are damaged, and are made anew.", folder)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("The quantised weights in %s can't be read (%s), and are made anew.", folder, one_line(error))
    return None


def tensors_of(file: Path) -> dict[str, torch.Tensor]:
    """What one of them holds."""
    return dict(load_file(file))


class Keeper:
    """Writes a folder, a file after the other; what goes wrong costs the copy and nothing else.

    Args:
        folder: see `kept_folder`.
        size: bytes that it will take.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        self._files: dict[str, tuple[int, int]] = {}
        self._temporary: Path | None = None
        try:
            for cache in (folder.parent.parent, folder.parent):
                make_cache_folder(cache)
            if shutil.disk_usage(folder.parent).free < size + FREE_AFTERWARDS:
                log.warning("The disk has no room to keep quantised weights of %.1f GB.", size / 1e9)
            else:
                self._temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        except OSError as error:
            self._give_up(error)

    def add(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write the next file."""
        if self._temporary is None:
            return
        file = self._temporary / f"{len(self._files):04}.safetensors"
        try:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, file)
            file.chmod(0o600)
            self._files[file.name] = _sums(file)
        except Exception as error:  # safetensors has a type of its own for a full disk
            self._give_up(error)

    def finish(self) -> None:
        """All is written: the folder is one from now on."""
        if self._temporary is None:
            return
        try:
            manifest = self._temporary / "manifest.json"
            manifest.write_text(json.dumps({"format": FORMAT, "files": self._files}))
            manifest.chmod(0o600)
            for file in self._temporary.iterdir():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
            shutil.rmtree(self._folder, ignore_errors=True)
            self._temporary.rename(self._folder)
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Remove what was not finished."""
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _give_up(self, error: Exception) -> None:
        log.warning("Quantised weights could not be kept in %s (%s).", self._folder, one_line(error))
        self.close()
        self._temporary = None


def _sums(file: Path) -> tuple[int, int]:
    """Size and checksum, at the speed of memory."""
    crc = 0
    with file.open("rb") as opened:
        while block := opened.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return file.stat().st_size, crc
