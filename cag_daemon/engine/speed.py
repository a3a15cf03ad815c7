"""How fast this machine is with a model's two kinds of work, found out in about a second.

Reading a document is matrix products of many rows; answering is one row through weights that come from memory.
"""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SECONDS = 0.25  # of each measurement, about
SMALLEST, LARGEST = 256, 8192  # sides of a matrix
BYTES_ON_CPU, BYTES_ON_GPU = 2**26, 2**28  # of what is read from memory: more than any cache holds


@dataclass(frozen=True)
class Speed:
    """What a device does.

    Attributes:
        device: ``cpu``, ``cuda:0`` or ``mps``.
        name: of the processor or the GPU.
        dtype: in which it was measured, and a model would be held.
        memory: bytes that can be allocated there now; None on a CPU, where that is the machine's business.
        flops: operations a second of a matrix product.
        bandwidth: bytes of weights a second that one row passes through.
    """

    device: str
    name: str
    dtype: str
    memory: int | None
    flops: float
    bandwidth: float


def measure(device: str = "auto", threads: int | None = None, seconds: float = SECONDS) -> Speed:
    """Measure a device.

    Args:
        device: ``auto`` (cuda, else mps, else cpu), or one of them; one that is not there is taken for ``auto``.
        threads: of the CPU; None: torch's choice.
        seconds: for each of the two measurements, about; a very slow machine takes longer.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    place = _place(device)
    dtype = _dtype(place)
    with torch.inference_mode():
        flops = _matrix_rate(place, dtype, seconds)
        bandwidth = _bandwidth(place, dtype, seconds)
    return Speed(
        str(place), _name(place), str(dtype).removeprefix("torch."), _memory(place), flops=flops, bandwidth=bandwidth
    )


def _matrix_rate(place: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """Grow the matrices until they take a while: some processors take a thousand times as long as others."""
    import torch

    side = SMALLEST
    while True:
        square = torch.ones(side, side, dtype=dtype, device=place)
        took = _fastest(partial(torch.nn.functional.linear, square, square), place, seconds / 2)
        if side >= LARGEST or took * 8 > seconds / 2:
            return float(2 * side**3 / took)
        side *= 2


def _bandwidth(place: torch.device, dtype: torch.dtype, seconds: float) -> float:
    import torch

    size, wide = (BYTES_ON_CPU if place.type == "cpu" else BYTES_ON_GPU), 4096
    weights = torch.ones(size // dtype.itemsize // wide, wide, dtype=dtype, device=place)
    row = torch.ones(1, wide, dtype=dtype, device=place)
    return weights.nbytes / _fastest(partial(torch.nn.functional.linear, row, weights), place, seconds)


def _fastest(work: Callable[[], object], place: torch.device, seconds: float) -> float:
    """Seconds of the fastest of several runs, the first of which warms up; whatever else runs here slows the others."""
    import torch

    def once() -> float:
        start = time.perf_counter()
        work()
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        elif place.type == "mps":
            torch.mps.synchronize()
        return max(time.perf_counter() - start, 1e-7)

    spent = took = once()
    if took > seconds:
        return took
    took = once()
    while (spent := spent + took) < seconds:
        took = min(took, once())
    return took


def _place(device: str) -> torch.device:
    import torch

    kind = device.partition(":")[0]
    if torch.cuda.is_available() and kind in ("auto", "cuda"):
        place = torch.device("cuda:0" if device in ("auto", "cuda") else device)
        return place if (place.index or 0) < torch.cuda.device_count() else torch.device("cuda:0")
    if torch.backends.mps.is_available() and kind in ("auto", "mps"):
        return torch.device("mps")
    return torch.device("cpu")


def _dtype(place: torch.device) -> torch.dtype:
    """What weights are held in where nothing else is set: bfloat16 but where a GPU lacks it."""
    import torch

    if place.type == "cuda" and torch.cuda.get_device_capability(place)[0] < 8:
        return torch.float16
    try:
        torch.ones(2, dtype=torch.bfloat16, device=place).sum()
    except (RuntimeError, TypeError):
        return torch.float16
    return torch.bfloat16


def _memory(place: torch.device) -> int | None:
    import torch

    if place.type == "cuda":
        return int(torch.cuda.mem_get_info(place)[0])
    if place.type == "mps":
        return int(torch.mps.recommended_max_memory())
    return None


def _name(place: torch.device) -> str:
    import torch

    if place.type == "cuda":
        return torch.cuda.get_device_name(place)
    if place.type == "mps":
        return "Apple GPU"
    try:
        named = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    except OSError:
        named = None
    return named[1] if named else platform.processor() or platform.machine()
