"""What a model can run on here, and in which type."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from cag_daemon.errors import ModelFailed

if TYPE_CHECKING:
    import torch

# Several GPUs together, and what does not fit them in the machine's memory: slow, and so only when asked.
OFFLOAD = "cuda+cpu"

# Tokens read at a time, multiples of 64. A GPU needs many to be busy. A CPU does not: one core (Zen 3, fp32) reads 113,
# 136, 145, 149 tokens a second through a layer of a 7B model in chunks of 64, 128, 256, 512, and a linear layer is the
# least that can be stopped. Without bfloat16 in its hardware it reads 25 in bfloat16, whatever the chunk: of 64 tokens
# the largest linear layer takes 0.7 s. With it (Zen 4, two cores, 0.5 billion parameters) it reads 340, 374, 397, 371
# in chunks of 64, 128, 256, 512; and after each edit half a chunk more than has changed is read, on the average.
DEFAULT_CHUNK = 512
DEFAULT_CHUNK_CPU = 128
DEFAULT_CHUNK_CPU_HALF = 64


def devices() -> list[str]:
    """What this machine can run a model on, the first choice first, in words."""
    import torch

    found = [f"cuda:{number}: {torch.cuda.get_device_name(number)}" for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps: this machine's Apple GPU")
    return [*found, "cpu"]


def device_failed(error: BaseException) -> bool:
    """Whether an error says that the device itself has given up: in that process it never comes back."""
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error) or "HIP error" in str(error)


def choose_devices(name: str) -> list[torch.device]:
    """The devices that a setting stands for, in the order in which they are filled: several where CUDA has several.

    Args:
        name: ``auto`` (cuda, else mps, else cpu), ``cpu``, ``cuda``, ``cuda:N``, ``cuda+cpu`` or ``mps``.

    Raises:
        ModelFailed: not known, or not here.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if gpus else "mps" if torch.backends.mps.is_available() else "cpu"
    match = re.fullmatch(r"(cpu|cuda|mps)(?::(\d+))?", name.removesuffix("+cpu") if name == OFFLOAD else name)
    if match is None:
        raise ModelFailed(f"The device {name!r} is not known: set device to auto, cpu, cuda, cuda:N, {OFFLOAD} or mps.")
    available = {"cpu": 1, "cuda": gpus, "mps": int(torch.backends.mps.is_available())}[match[1]]
    if int(match[2] or 0) >= available:
        advice = unused_gpu() or f"This machine has no device {name} that torch can use."
        raise ModelFailed(f"{advice.rstrip('.')}: set device to auto or cpu.")
    if match[1] != "cuda" or match[2] is not None:
        return [torch.device(name)]
    # The one with the most room first: one that holds it all is quicker than several.
    order = sorted(range(gpus), key=lambda number: -torch.cuda.mem_get_info(number)[0])
    found = [torch.device("cuda", number) for number in order]
    return [*found, torch.device("cpu")] if name == OFFLOAD else found


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type of the weights.

    Args:
        name: ``auto`` (bfloat16, or float16 where the device lacks it), ``float32``, ``bfloat16`` or ``float16``.
        device: what they are held on.

    Raises:
        ModelFailed: not known.
    """
    import torch

    if name == "auto":
        name = "bfloat16" if _has_bfloat16(device) else "float16"
    if name not in ("float32", "bfloat16", "float16"):
        raise ModelFailed(f"The dtype {name!r} is not known: set dtype to auto, float32, bfloat16 or float16.")
    kind = getattr(torch, name)
    assert isinstance(kind, torch.dtype)
    return kind


def default_chunk(device: torch.device, dtype: torch.dtype) -> int:
    """How many tokens are best read at a time on that device, in that type."""
    import torch

    if device.type != "cpu":
        return DEFAULT_CHUNK
    quick = dtype == torch.float32 or (dtype == torch.bfloat16 and _multiplies_bfloat16())
    return DEFAULT_CHUNK_CPU if quick else DEFAULT_CHUNK_CPU_HALF


def _multiplies_bfloat16() -> bool:
    """Whether this processor has products of bfloat16 in its hardware, as far as torch knows."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(cpu_features()))


def cpu_features() -> list[str]:
    """What this processor can do, in torch's words and sorted; empty where torch does not know."""
    import torch

    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return sorted(name for name, there in known.items() if there is True)


def environment(device: torch.device) -> str:
    """What may change bits though nobody would think so: the system, and the driver."""
    import torch

    parts = [platform.platform(), platform.machine()]
    if device.type == "cuda":
        parts += [str(torch.cuda.get_device_properties(device)), nvidia_name() or ""]
    return " · ".join(parts)


def unused_gpu() -> str | None:
    """What keeps torch from using a GPU that is here, with the next step; None: nothing does."""
    import torch

    if sys.platform == "darwin" or torch.cuda.is_available() or torch.backends.mps.is_available():
        return None
    name = nvidia_name()
    built: Any = torch.version.cuda or torch.version.hip
    if name and not built:
        return (
            f"There is an unused GPU here ({name}), and a torch without CUDA; "
            "run: pip install --force-reinstall torch, with the index that PyTorch's install page names for CUDA."
        )
    if name:
        return (
            f"There is an unused GPU here ({name}), and torch is made for CUDA {built}, which its driver does not run; "
            "update the driver, or install the torch that PyTorch's install page names for your CUDA."
        )
    return None


def cuda_without_driver() -> str | None:
    """The CUDA that this torch is made for, where no driver is installed that could run it; else None."""
    import torch

    built = torch.version.cuda
    return str(built) if built and not torch.cuda.is_available() and nvidia_name() is None else None


def nvidia_name() -> str | None:
    """The first NVIDIA GPU as its driver's own tool names it; None: there is no such tool, or no such GPU."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    try:
        asked = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    first = next(iter(done.stdout.splitlines()), "").strip()
    return first.replace(", ", ", driver ") or None


def _has_bfloat16(device: torch.device) -> bool:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    try:
        return bool(torch.ones(2, dtype=torch.bfloat16, device=device).sum() == 2)
    except (RuntimeError, TypeError):
        return False
