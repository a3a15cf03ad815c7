"""What a model and its document need in memory, and what is free: before anything is loaded."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from cag_daemon.engine.folder import Weight
from cag_daemon.errors import OutOfMemory

if TYPE_CHECKING:
    import torch

QUESTION_ROOM = 256  # tokens kept free for a question
CHARACTERS_A_TOKEN = 4  # of English prose it is 4.4, of code 3
MOST_CHARACTERS_A_TOKEN = 6
KEPT_FREE = 256e6  # bytes, of what is free: the machine has other things to do, too
WORKING = 128e6  # bytes that torch takes for threads and scratch, beside what is counted here
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Needs:
    """Bytes that a model will take.

    Attributes:
        weights: in the type, or quantisation, that they will be held in.
        cache: keys and values of the document, its question and its answer.
        working: what a pass needs beside them, and what loading holds twice for a moment.
    """

    weights: int
    cache: int
    working: int

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.cache + self.working


def estimate(
    weights: Mapping[str, Weight],
    *,
    itemsize: int,
    tokens: int,
    chunk: int,
    quantized: Callable[[str, tuple[int, ...]], int | None] = lambda name, shape: None,
) -> Needs:
    """What that model needs for a document, by the shapes of its weights.

    Args:
        weights: see `folder.weights_of`.
        itemsize: bytes of a number.
        tokens: that are cached, question and answer included.
        chunk: tokens that are read at a time.
        quantized: bytes of a weight that will be held quantised; None: as it is.
    """
    sizes: dict[str, int] = {}
    for name, weight in weights.items():
        if name.endswith(".weight"):
            held = quantized(name, weight.shape)
            sizes[name] = weight.numel * itemsize if held is None else held
    keys = [weight.shape[0] for name, weight in weights.items() if name.endswith("self_attn.k_proj.weight")]
    queries = max((each.shape[0] for name, each in weights.items() if name.endswith("q_proj.weight")), default=0)
    inner = max((each.shape[0] for name, each in weights.items() if name.endswith("gate_proj.weight")), default=0)
    hidden, vocabulary = 0, 0
    largest = max((weight.numel for weight in weights.values()), default=0) * itemsize  # held twice while it is placed
    embedding = weights.get("model.embed_tokens.weight")
    if embedding is not None and len(embedding.shape) == 2:
        vocabulary, hidden = embedding.shape
    # A pass holds, at its widest, the states of one layer; keys and values once more, repeated for every query head;
    # and the last row of logits, in float32.
    a_pass = chunk * (6 * hidden + 2 * queries + 3 * inner) * itemsize
    attention = 2 * queries * tokens * itemsize + 5 * chunk * tokens
    return Needs(
        weights=sum(sizes.values()),
        cache=2 * sum(keys) * itemsize * tokens,
        working=int(WORKING + a_pass + attention + 8 * vocabulary + largest),
    )


def about_tokens(characters: int) -> int:
    """How many tokens a text of that length has, roughly."""
    return characters // CHARACTERS_A_TOKEN


def free(device: torch.device) -> int:
    """Bytes that are free on that device for a model, the caches and all."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    machine = free_in_machine()
    if device.type == "mps":
        # Unified memory: what the driver recommends at most, and of that what other programs leave.
        recommended = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        return int(min(recommended, machine))
    return machine


def free_in_machine() -> int:
    """Bytes of the machine's memory that are free, within the limits that are set for this process."""
    return int(min([psutil.virtual_memory().available, *_cgroup_rooms()]))


def trim() -> None:
    """Give back to the system what C's allocator keeps of freed memory: glibc hoards hundreds of megabytes."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def out_of_memory(message: str) -> Iterator[None]:
    """Turn torch's and Python's several ways of saying so into `OutOfMemory` with that message."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory(message) from error
    except RuntimeError as error:  # torch.OutOfMemoryError is one; a CPU's has no type of its own
        if type(error).__name__ != "OutOfMemoryError" and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemory(message) from error


def _cgroup_rooms() -> Iterator[int]:
    """What containers and services leave us: psutil tells of the whole machine."""
    try:
        lines = OWN_CGROUP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names, base = ("memory.max", "memory.current", "inactive_file"), CGROUPS
        elif "memory" in controllers.split(","):
            names, base = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"), CGROUPS / "memory"
        else:
            continue
        place = base / path.lstrip("/")
        for folder in (place, *place.parents):
            if folder == base.parent:
                break
            if (room := _room(folder, *names)) is not None:
                yield room


def _room(folder: Path, limit: str, used: str, reclaimable: str) -> int | None:
    try:
        most = (folder / limit).read_text().strip()
        if most == "max":
            return None
        taken = int((folder / used).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, int(most) - taken + int(stat.get(reclaimable, 0)))
    except (OSError, ValueError):
        return None
