"""From the files of a model into its place in memory: one weight at a time, so that no more than one is held twice.

transformers' own loading keeps whole files mapped, loads the vision tower of a model that can see, and quantises by
libraries of its own; what is stored in eight-bit floats it can dequantise only all at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open

from cag_daemon.engine.folder import FP8, Weight
from cag_daemon.engine.memory import trim
from cag_daemon.errors import ModelFailed

SCALES = ("weight_scale_inv", "weight_scale")
UNUSED = (*SCALES, "activation_scale", "input_scale", "k_scale", "v_scale")

# What becomes of a weight: (its name, the tensor in the type wanted, on the CPU) → put in its place.
Place = Callable[[str, torch.Tensor], None]


def empty_decoder(path: Path, dtype: torch.dtype) -> Any:
    """The text decoder of a model folder, its weights on the meta device: shapes and no memory.

    Raises:
        ModelFailed: transformers does not understand its configuration.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    decoder = config.get_text_config(decoder=True)
    tied = bool(decoder.tie_word_embeddings or config.tie_word_embeddings)
    # What the files say about the type and the quantisation of their weights is not how they will be held.
    for each in (config, decoder):
        if hasattr(each, "quantization_config"):
            del each.quantization_config
    decoder.tie_word_embeddings = tied
    # Buffers are computed, not stored: only parameters are left out.
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(decoder, dtype=dtype, trust_remote_code=False)
    if (path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
    return model.eval().requires_grad_(False)


def check_names(model: Any, weights: Mapping[str, Weight], name: str) -> None:
    """Check that the files hold exactly what the model is made of, in the right shapes.

    Raises:
        ModelFailed: with the first names of what is missing, unexpected or of another shape.
    """
    wanted = dict(model.named_parameters())  # without what is tied to another
    stored = {key: weight for key, weight in weights.items() if not key.endswith(UNUSED)}
    if model.config.tie_word_embeddings:
        stored.pop("lm_head.weight", None)
        wanted.pop("lm_head.weight", None)
    wrong = {
        "missing": wanted.keys() - stored.keys(),
        "unexpected": stored.keys() - wanted.keys(),
        "of another shape": {key for key in wanted.keys() & stored.keys() if wanted[key].shape != stored[key].shape},
    }
    for what, names in wrong.items():
        if names:
            listed = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
            raise ModelFailed(
                f"The weights of the model {name} don't fit its config.json ({what}: {listed}): download it again."
            )


def fill(
    model: Any, weights: Mapping[str, Weight], dtype: torch.dtype, place: Place, block: tuple[int, int] | None = None
) -> Iterator[float]:
    """Put every weight in its place, layer by layer; after each layer, which part of all is done.

    Args:
        model: see `empty_decoder`; `check_names` has been content with it.
        dtype: of the weights in memory.
        place: what is done with each.
        block: rows and columns that share a scale, where weights are stored in eight-bit floats by blocks.
    """
    wanted = {key for key, _ in model.named_parameters()}
    total, done = sum(weights[key].numel for key in wanted & weights.keys()), 0
    for _, names in itertools.groupby(sorted(wanted & weights.keys(), key=_layer), key=_layer):
        for key in names:
            place(key, _read(key, weights, dtype, block))
            done += weights[key].numel
            trim()
        yield done / total


def set_parameter(model: Any, name: str, value: torch.Tensor) -> None:
    """Have a tensor as that parameter of the model."""
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, torch.nn.Parameter(value, requires_grad=False))


def set_module(model: Any, name: str, value: torch.nn.Module) -> None:
    """Have another module in that place of the model."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, value)


def dequantized(
    stored: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, block: tuple[int, int] | None = None
) -> torch.Tensor:
    """A weight [out, in] that is stored in eight-bit floats.

    Args:
        scale: of the whole, of each row, or of each block: [], [1], [out, 1] or [blocks, blocks].
        block: rows and columns of one, the last ones may be smaller; None: as many as fit evenly.
    """
    factors = scale.to(torch.float32)
    if factors.numel() == 1:
        return (stored.to(torch.float32) * factors.reshape(())).to(dtype)
    factors = factors.reshape(factors.shape[0], -1)
    if block is None or factors.shape[1] == 1:
        block = (-(-stored.shape[0] // factors.shape[0]), -(-stored.shape[1] // factors.shape[1]))
    spread = factors.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return (stored.to(torch.float32) * spread[: stored.shape[0], : stored.shape[1]]).to(dtype)


def _layer(name: str) -> tuple[int, str]:
    """What is read together: a decoder layer, or one of the weights around them."""
    parts = name.split(".")
    return (int(parts[2]), "") if name.startswith("model.layers.") else (-1, name)


def _read(key: str, weights: Mapping[str, Weight], dtype: torch.dtype, block: tuple[int, int] | None) -> torch.Tensor:
    """A tensor in the type wanted, in memory of its own: its file is let go of, with the pages that have come in."""
    weight = weights[key]
    with safe_open(weight.file, framework="pt", device="cpu") as opened:
        stored = opened.get_tensor(weight.name)
        if weight.dtype == FP8:
            return dequantized(stored, _scale(key, weights), dtype, block)
        return stored.to(dtype, copy=True)  # type: ignore[no-any-return]


def _scale(key: str, weights: Mapping[str, Weight]) -> torch.Tensor:
    base = key.removesuffix("weight")
    for name in SCALES:
        if (scale := weights.get(base + name)) is not None:
            with safe_open(scale.file, framework="pt", device="cpu") as opened:
                return opened.get_tensor(scale.name).clone()  # type: ignore[no-any-return]
    raise ModelFailed(f"{weights[key].file} has {weights[key].name} in eight-bit floats, without the scale of it.")
