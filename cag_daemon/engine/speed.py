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

from cag_daemon.engine.devices import choose_devices, choose_dtype
from cag_daemon.engine.memory import free

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
        device: see `devices.choose_devices`; of several the one with the most room.
        threads: of the CPU; None: torch's choice.
        seconds: for each of the two measurements, about; a very slow machine takes longer.

    Raises:
        ModelFailed: that device is not here.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    place = choose_devices(device)[0]
    dtype = choose_dtype("auto", place)
    with torch.inference_mode():
        flops = _matrix_rate(place, dtype, seconds)
        bandwidth = _bandwidth(place, dtype, seconds)
    memory = None if place.type == "cpu" else free(place)
    return Speed(str(place), _name(place), str(dtype).removeprefix("torch."), memory, flops=flops, bandwidth=bandwidth)


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
