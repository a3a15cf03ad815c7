"""The two optimisers of a run, and how fast they go: Muon for the layers' matrices, AdamW for all else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.device import halves
from training.meaning_head import kept
from training.model import TrainingModel

# What orthogonalises a matrix in five rounds (Keller Jordan, Muon, 2024): x ← a·x + (b·xxᵀ + c·(xxᵀ)²)·x
QUINTIC = (3.4445, -4.7750, 2.0315)
ROUNDS = 5


@dataclass(frozen=True)
class Rates:
    """How far a step goes. 0.005 for the matrices undoes what the start has wired, and it has to be learned again."""

    matrices: float = 0.0016
    norms: float = 6e-4
    embeddings: float = 2e-4
    warm: int = 30  # steps
    decay: float = 0.9  # of the run, its last part; exact answers come mostly then
    least: float = 0.02  # of the rate, at the very end

    def factor(self, step: int, progress: float) -> float:
        """What the rates are multiplied by, ``progress`` (0 to 1) into the run."""
        falling = min(1.0, (1 - progress) / self.decay) if self.decay else 1.0
        return min(1.0, (step + 1) / self.warm) * max(self.least, falling)


class Optimiser:
    """A step of Muon and one of AdamW on a model's gradients; what `kept` names stays as it is.

    Args:
        model: whose parameters are moved, in place.
        rates: how far.
    """

    def __init__(self, model: TrainingModel, rates: Rates) -> None:
        self.rates = rates
        trained = [each for each in model.parameters() if each.requires_grad]
        embeddings = [each for each in trained if each is model.embed_tokens.weight]
        self._matrices = [each for each in model.layers.parameters() if each.ndim == 2 and each.requires_grad]
        self._momentum = [torch.zeros_like(each) for each in self._matrices]
        norms = [each for each in trained if each.ndim == 1]
        self._adam = torch.optim.AdamW(
            [
                {"params": norms, "lr": rates.norms, "rate": rates.norms},
                {"params": embeddings, "lr": rates.embeddings, "rate": rates.embeddings},
            ],
            betas=(0.9, 0.95),
            weight_decay=0.0,
        )
        self._kept = [(each, where) for each, where in kept(model) if each.requires_grad]

    def step(self, factor: float) -> None:
        """Move every parameter by its gradient, at ``factor`` of its rate."""
        for group in self._adam.param_groups:
            group["lr"] = group["rate"] * factor
        before = [each[where].detach().clone() for each, where in self._kept]
        for each, where in self._kept:
            if each.grad is not None:
                each.grad[where] = 0  # so that the rest of a matrix gets all of its step
        self._adam.step()
        self._muon(self.rates.matrices * factor)
        with torch.no_grad():
            for (each, where), value in zip(self._kept, before, strict=True):
                each[where] = value

    @torch.no_grad()
    def _muon(self, rate: float, momentum: float = 0.95, shrink: float = 0.01) -> None:
        """Matrices of one shape go together; each lies so that it is wider than tall."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for at, matrix in enumerate(self._matrices):
            by_shape.setdefault(tuple(sorted(matrix.shape)), []).append(at)
        for places in by_shape.values():
            wide = []
            for at in places:
                gradient = self._matrices[at].grad
                assert gradient is not None
                self._momentum[at].lerp_(gradient, 1 - momentum)
                ahead = gradient.lerp(self._momentum[at], momentum)
                wide.append(ahead if ahead.shape[0] <= ahead.shape[1] else ahead.T)
            for at, update in zip(places, orthogonal(torch.stack(wide)), strict=True):
                matrix = self._matrices[at]
                turned = update if matrix.shape[0] <= matrix.shape[1] else update.T
                taller = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.mul_(1 - rate * shrink).add_(turned, alpha=-rate * taller)

    def state(self) -> dict[str, Any]:
        """What a run goes on from."""
        return {"momentum": self._momentum, "adam": self._adam.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        for mine, former in zip(self._momentum, state["momentum"], strict=True):
            mine.copy_(former)
        self._adam.load_state_dict(state["adam"])


def orthogonal(matrices: Tensor) -> Tensor:
    """About the nearest matrices with all singular values 1, of [n, rows, columns], rows ≤ columns."""
    x: Tensor = matrices.bfloat16() if halves(matrices.device) else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = QUINTIC
    for _ in range(ROUNDS):
        square = x @ x.transpose(1, 2)
        x = a * x + (b * square + c * square @ square) @ x
    return x.to(matrices.dtype)
