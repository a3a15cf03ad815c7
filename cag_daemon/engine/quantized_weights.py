"""A model's weights, quantised while they are loaded: from what is kept on disk, else layer by layer, and then kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cag_daemon.engine import weights as stored
from cag_daemon.engine.folder import scale_block
from cag_daemon.engine.kept_weights import Keeper, kept_folder, kept_layers, tensors_of
from cag_daemon.engine.plan import Plan
from cag_daemon.engine.quantize import LM_HEAD, QuantizedLinear


def fill_quantized(model: Any, plan: Plan, cache_directory: str | None, progress: Callable[[float], None]) -> None:
    """Put every weight in its place, those of linear layers in few bits.

    Args:
        model: see `weights.empty_decoder`.
        cache_directory: where they are kept; None: nowhere.
        progress: called with which part of all is done.
    """
    folder = None
    if cache_directory:
        folder = kept_folder(cache_directory, plan.folder, plan.weights, plan.quantization, plan.dtype)
    files = kept_layers(folder) if folder else None
    if files:
        for number, file in enumerate(files, 1):
            _fill_from(file, model, plan)
            progress(number / len(files))
        return
    keeper = Keeper(folder, plan.needs.weights) if folder else None
    try:
        _quantize(model, plan, keeper, progress)
    finally:
        if keeper:
            keeper.close()


def _fill_from(file: Path, model: Any, plan: Plan) -> None:
    """What was kept of one layer, into its place."""
    tensors = tensors_of(file)
    for name in {key.rpartition(".")[0] for key in tensors}:
        weight, scales = tensors[f"{name}.weight"], tensors.get(f"{name}.scales")
        if scales is None:
            stored.set_parameter(model, f"{name}.weight", weight.to(plan.devices[0]))
            continue
        linear = model.get_submodule(name)
        layer = QuantizedLinear.empty(
            linear.in_features, linear.out_features, _kind(name, plan), plan.dtype, plan.devices[0]
        )
        layer.load_state_dict({"weight": weight, "scales": scales})
        stored.set_module(model, name, layer)


def _quantize(model: Any, plan: Plan, keeper: Keeper | None, progress: Callable[[float], None]) -> None:
    done: dict[str, torch.Tensor] = {}  # of one layer

    def place(key: str, tensor: torch.Tensor) -> None:
        name, device = key.removesuffix(".weight"), plan.devices[0]
        if isinstance(model.get_submodule(name), torch.nn.Linear):
            layer = QuantizedLinear.of(tensor, _kind(name, plan), plan.dtype, device)
            stored.set_module(model, name, layer)
            done.update({f"{name}.{buffer}": value for buffer, value in layer.state_dict().items()} if keeper else {})
        else:
            value = tensor.to(device)
            stored.set_parameter(model, key, value)
            done.update({key: value} if keeper else {})

    for part in stored.fill(model, plan.weights, plan.dtype, place, scale_block(plan.folder)):
        if keeper:
            keeper.add(done)
        done.clear()
        progress(part)
    if keeper:
        keeper.finish()


def _kind(name: str, plan: Plan) -> str:
    return LM_HEAD if name == "lm_head" else plan.quantization
