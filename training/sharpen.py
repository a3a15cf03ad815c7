"""What is made of a trained model at its end: the layer that copies looks more sharply.

Most documents of training are short, and attention that was learned on them is too mild for long ones: beside four
thousand tokens the right one has a smaller share, and the model refuses though it has chosen the right sentence.
"""

from __future__ import annotations

import torch

from training.initialise import COPIES
from training.model import Layer, TrainingModel


@torch.no_grad()
def sharpen(model: TrainingModel, factor: float) -> None:
    """Multiply the copying layer's queries, in place."""
    layer = model.layers[COPIES]
    assert isinstance(layer, Layer)
    layer.self_attn.q_proj.weight.mul_(factor)
