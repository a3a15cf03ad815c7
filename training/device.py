"""Where a training run is, and what is quick there."""

from __future__ import annotations

import torch

from cag_daemon.engine.devices import cpu_features


def device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def halves(where: torch.device) -> bool:
    """Whether products in bfloat16 are quicker than in float32: on GPUs, and on CPUs with tiles (Intel's AMX)."""
    return where.type == "cuda" or (where.type == "cpu" and "amx_bf16" in cpu_features())
