"""Linear layers whose weights are held in 8 or 4 bits: a half and a third of the bytes that a token reads.

``int8``: a weight [out, in] as int8 with one scale for each output: w ≈ q · scale.
``int4``: groups of 32 inputs share a scale and a zero: w ≈ (q - 8) · scale + zero. Bytes [out / 32, in, 16], where byte
i of a block holds output i in its lower and output i + 16 in its upper half; both sides are padded to multiples of 64.

These are the saved forms, the same on every device. Few rows go through narrow passes (`narrow_pass`), or through
torch's own operators, which read the packed weights; they are private, so each is compared with the plain way when it
is first wanted, and left alone where it is missing or wrong. Many rows, where those operators are slow, and every row
where they are missing, multiply with weights that are widened a block at a time, on some CPUs by code of our own.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import linear, pad

from cag_daemon.engine.packed_operators import (
    GROUP,
    HALF,
    PACKINGS,
    PADDED,
    Packing,
    int4_blocks,
    int4_packing,
    int8_product,
)
from cag_daemon.engine.widening import widening

KINDS = ("int8", "int4")
LM_HEAD = "int8"  # whatever the others are: in 4 bits it takes 1 % less of a 7B model, and the divergence grows
SHRINK = (1.0, 0.95, 0.9)  # of a group's range: clipping its ends a little makes the rest finer
# Rows from which on widening the weights is faster than the operator that reads them packed (CPU: measured; the GPUs'
# are from what others have measured).
FEW_ROWS = {
    "cpu": {"int8": 16, "int4": 32},
    "mps": {"int8": 8, "int4": 8},
    "cuda": {"int4": 64},
}
AS_FEW = {"int8": 8, "int4": 16}  # rows up to which torch's operators are quicker than widening by code of our own
WIDENED = {"cpu": 1 << 20, "cuda": 1 << 26, "mps": 1 << 26}  # weights at a time: a CPU's should stay in its cache


class QuantizedLinear(torch.nn.Module):
    """A linear layer without bias, its weight [out, in] in ``int8`` or ``int4``.

    Its state is the saved form whatever the device; on the device the weights may lie in another order.
    """

    weight: torch.Tensor
    scales: torch.Tensor

    def __init__(self, in_features: int, out_features: int, kind: str, dtype: torch.dtype, device: torch.device):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"The kind {kind!r} is not known: int8 or int4.")
        self.in_features, self.out_features, self.kind, self.dtype = in_features, out_features, kind, dtype
        self.bias = None
        self._packing: Packing | None = None
        for name, shape, stored in _buffers(out_features, in_features, kind):
            self.register_buffer(name, torch.empty(shape, dtype=stored, device=device))

    @classmethod
    def of(cls, weight: torch.Tensor, kind: str, dtype: torch.dtype, device: torch.device) -> QuantizedLinear:
        """Quantise a weight [out, in] of any float type, a few rows at a time; the result lives on ``device``."""
        layer = cls(weight.shape[1], weight.shape[0], kind, dtype, device)
        step = max(1, (1 << 20) // max(weight.shape[1], 1) // PADDED) * PADDED
        for start in range(0, weight.shape[0], step):
            rows = weight[start : start + step].detach().to(device, torch.float32)
            if kind == "int8":
                layer.weight[start : start + step], layer.scales[start : start + step] = _to_int8(rows)
            else:
                rows = pad(rows, (0, -rows.shape[1] % PADDED, 0, -rows.shape[0] % PADDED))
                packed, scales = _to_int4(rows)
                layer.weight[start // (2 * HALF) : start // (2 * HALF) + len(packed)] = packed
                layer.scales[:, start : start + len(rows)] = scales
        layer._pack()
        return layer

    @classmethod
    def empty(
        cls, in_features: int, out_features: int, kind: str, dtype: torch.dtype, device: torch.device
    ) -> QuantizedLinear:
        """A layer that `load_state_dict` will fill."""
        return cls(in_features, out_features, kind, dtype, device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product with x [..., in], in x's type."""
        rows = x.reshape(-1, self.in_features)
        if (widened := self._widened(rows)) is not None:
            y = widened
        elif self.kind == "int8":
            y = _int8_product(rows, self.weight, self.scales)
        else:
            padded = pad(rows, (0, -self.in_features % PADDED)) if self.in_features % PADDED else rows
            y = _int4_product(padded, self.weight, self.scales, self._packing)[:, : self.out_features]
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def _widened(self, rows: torch.Tensor) -> torch.Tensor | None:
        """The product of many rows, where the weight is widened by code of our own."""
        if len(rows) <= AS_FEW[self.kind] or rows.dtype != torch.bfloat16 or self.blocks_at is None:
            return None
        multiply = widening(self.kind)
        return None if multiply is None else multiply(rows.contiguous(), self.weight, self.scales)

    @property
    def blocks_at(self) -> tuple[int, int] | None:
        """Where the weights and their scales are, if they lie as `few_bits` multiplies with them."""
        whole = not (self.in_features % PADDED or self.out_features % PADDED) and self.scales.dtype == torch.bfloat16
        right = self.kind == "int8" or self._packing == PACKINGS["avx512"]
        there = self.weight.device.type == "cpu" and self.weight.is_contiguous() and self.scales.is_contiguous()
        if not (whole and right and there):
            return None
        return self.weight.data_ptr(), self.scales.data_ptr()

    def holds(self, weight: torch.Tensor, scales: torch.Tensor) -> bool:
        """Whether these are still its weights."""
        return self._buffers["weight"] is weight and self._buffers["scales"] is scales

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}, kind={self.kind}"

    def _pack(self) -> None:
        if self.kind == "int4" and self._packing is None and self.weight.device.type != "meta":
            self._packing = int4_packing(self.weight.device, self.dtype)
            if self._packing is not None:
                self.weight = self._packing.pack(self.weight)

    def _unpack(self) -> None:
        if self._packing is not None:
            self.weight, self._packing = self._packing.unpack(self.weight), None

    def _apply(self, fn: Any, recurse: bool = True) -> QuantizedLinear:
        # To another device in the saved form; the numbers keep their types, whatever the model is cast to.
        self._unpack()
        stored = {name: buffer.dtype for name, buffer in self.named_buffers()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, kind in stored.items():
            setattr(self, name, getattr(self, name).to(kind))
        self._pack()
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._packing is not None:
            destination[prefix + "weight"] = self._packing.unpack(self.weight)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._unpack()
        super()._load_from_state_dict(*args, **kwargs)
        self._pack()


def quantized_bytes(out_features: int, in_features: int, kind: str) -> int:
    """What the buffers of such a layer take."""
    buffers = _buffers(out_features, in_features, kind)
    return sum(torch.Size(shape).numel() * stored.itemsize for _, shape, stored in buffers)


def quantize_module(module: torch.nn.Module, kind: str, dtype: torch.dtype, device: torch.device) -> None:
    """Replace every linear layer inside, one at a time; an ``lm_head`` is never held in fewer than 8 bits.

    Embeddings and norms stay; so do layers with a bias, which a Mistral's decoder does not have.
    """
    places = [
        (parent, name)
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(child, torch.nn.Linear) and child.bias is None
    ]
    for parent, name in places:
        weight = getattr(parent, name).weight
        setattr(parent, name, QuantizedLinear.of(weight, LM_HEAD if name == "lm_head" else kind, dtype, device))


def _buffers(out_features: int, in_features: int, kind: str) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    if kind == "int8":
        return [("weight", (out_features, in_features), torch.int8), ("scales", (out_features,), torch.bfloat16)]
    outs, ins = (-(-each // PADDED) * PADDED for each in (out_features, in_features))
    packed = ("weight", (outs // (2 * HALF), ins, HALF), torch.uint8)
    return [packed, ("scales", (ins // GROUP, outs, 2), torch.bfloat16)]


# ── from floats ─────────────────────────────────────────────────────────────────────────────


def _to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of float32 → int8 and scales. A scale is what bfloat16 can hold, so that all ways use the same number."""
    scales = (weight.abs().amax(1) / 127).clamp(min=1e-12).bfloat16()
    return (weight / scales.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8), scales


def _to_int4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of float32, padded → bytes and (scale, zero); of several ranges a group takes the one that errs least."""
    groups = weight.view(len(weight), -1, GROUP)
    low, high = groups.aminmax(dim=-1, keepdim=True)
    best: tuple[torch.Tensor, ...] | None = None
    for shrink in SHRINK:
        step = (high - low) * (shrink / 15)
        zero = ((high + low + step) / 2).bfloat16().float()
        scale = step.clamp(min=1e-12).bfloat16().float()
        q = ((groups - zero) / scale).round_().clamp_(-8, 7)
        error = torch.addcmul(zero, q, scale).sub_(groups).square_().sum(-1, keepdim=True)
        if best is None:
            best = error, scale, zero, q
        else:
            better = error < best[0]
            found = (error, scale, zero, q)
            best = tuple(torch.where(better, new, old) for new, old in zip(found, best, strict=True))
    assert best is not None
    _, scale, zero, q = best
    scales = torch.cat((scale, zero), -1).transpose(0, 1).bfloat16()
    return int4_blocks((q + 8).to(torch.uint8).view(weight.shape)), scales


# ── products ────────────────────────────────────────────────────────────────────────────────


def _int8_product(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    fits = not (weight.shape[0] % 32 or weight.shape[1] % 32)  # on others the CPU's reads beyond the end
    if fits and _few(x, "int8") and (multiply := int8_product(x.device, x.dtype)):
        return multiply(x, weight, scales)
    wide = _widened_type(x)
    x, pieces = x.to(wide), []
    for part in _parts(len(weight), weight.shape[1], 1, x.device):
        if wide == torch.float16:  # unscaled, the sums would be too large for it
            pieces.append(linear(x, (weight[part] * scales[part, None].float()).to(wide)))
        else:
            pieces.append(linear(x, weight[part].to(wide)).mul_(scales[part]))
    return torch.cat(pieces, 1) if len(pieces) > 1 else pieces[0]


def _int4_product(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, packing: Packing | None) -> torch.Tensor:
    """x [n, padded in] → [n, padded out]."""
    if packing is not None and _few(x, "int4"):
        return packing.multiply(x, weight, scales)
    outs, wide = scales.shape[1], _widened_type(x)
    x, pieces = x.to(wide), []
    # What all of a group's weights have in common is added once for the group.
    sums = x.view(len(x), -1, GROUP).sum(-1)
    for part in _parts(outs, x.shape[1], PADDED, x.device):
        ratio = outs // len(weight)  # outputs in one row of blocks, in whatever order the device has them
        blocks = weight[part.start // ratio : part.stop // ratio]
        blocks = packing.unpack(blocks) if packing is not None else blocks
        pieces.append(_widened_int4_product(x, sums, blocks, scales[:, part]))
    return torch.cat(pieces, 1) if len(pieces) > 1 else pieces[0]


def _widened_int4_product(
    x: torch.Tensor, sums: torch.Tensor, blocks: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    count, ins, half = blocks.shape
    if x.device.type == "cpu":  # 16 bytes are moved as one number
        columns = blocks.view(torch.complex128)[..., 0].t().contiguous().view(torch.uint8)
    else:
        columns = blocks.transpose(0, 1).reshape(ins, count * half)
    scale, zero = scales.to(x.dtype).view(-1, count, 2, half, 2).permute(4, 2, 0, 1, 3).flatten(3)
    pieces = []
    for number, column in enumerate((columns & 15, columns >> 4)):
        wide = column.to(x.dtype).view(-1, GROUP, count * half)
        product = x @ wide.mul_(scale[number, :, None]).view(ins, -1)
        pieces.append(product.addmm_(sums, zero[number] - 8 * scale[number]).view(len(x), count, half))
    return torch.stack(pieces, 2).view(len(x), -1)


def _few(x: torch.Tensor, kind: str) -> bool:
    return len(x) <= FEW_ROWS.get(x.device.type, {}).get(kind, 0)


def _parts(outs: int, ins: int, step: int, device: torch.device) -> Iterator[slice]:
    step = max(1, WIDENED.get(device.type, 1 << 24) // ins // step) * step
    yield from (slice(start, min(start + step, outs)) for start in range(0, outs, step))


def _widened_type(x: torch.Tensor) -> torch.dtype:
    """What many rows are multiplied in: a CPU that has no products of bfloat16 is many times faster in float32."""
    if x.device.type != "cpu" or (x.dtype == torch.bfloat16 and _cpu_multiplies_bfloat16()):
        return x.dtype
    return torch.float32


@functools.cache
def _cpu_multiplies_bfloat16() -> bool:
    cpu = torch.cpu
    return any(getattr(cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
