"""torch's private operators that multiply with packed weights: what each device wants, and whether it can be trusted.

They differ between devices and between torch's versions. So each is compared with a plain product when it is first
asked for; one that is missing or wrong is as if it did not exist, and the caller multiplies the plain way.

The saved form of int4 weights [out, in] is bytes [out / 32, in, 16]: byte i of a block holds output i in its lower and
output i + 16 in its upper half. Both sides are multiples of 64, and 32 inputs share (scale, zero): [in / 32, out, 2] in
bfloat16, w = (q - 8) · scale + zero.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

import torch

GROUP = 32  # inputs that share a scale and a zero: with 64, a tenth smaller, the divergence was twice as large
HALF = 16  # outputs in one half of the saved form's bytes
PADDED = 64  # what both sides of a weight are multiples of: every operator accepts that
TOLERANCE = 0.02  # of a product's norm; bfloat16 itself makes a tenth of it

Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
log = logging.getLogger(__name__)


class Packing(NamedTuple):
    """How a device wants int4 weights: made from the saved form, turned back into it, multiplied with rows [n, in].

    Both directions work on any 64 outputs alone, so a slice of the packed weight can be turned back.
    """

    pack: Callable[[torch.Tensor], torch.Tensor]
    unpack: Callable[[torch.Tensor], torch.Tensor]
    multiply: Product


@functools.cache
def int4_packing(device: torch.device, dtype: torch.dtype) -> Packing | None:
    """The packing that works on that device for rows of that type; None where there is none."""
    names = {"cpu": ("avx2", "avx512"), "mps": ("mps",)}.get(device.type, ())
    if device.type == "cuda" and dtype == torch.bfloat16:  # the one type that it takes
        names = ("cuda",)
    found = next((PACKINGS[name] for name in names if _works(PACKINGS[name], device, dtype)), None)
    if found is None:
        log.info("int4 weights are multiplied the plain way on %s in %s.", device, dtype)
    return found


@functools.cache
def int8_product(device: torch.device, dtype: torch.dtype) -> Product | None:
    """The product of rows [n, in] with int8 weights [out, in] and their scales [out], both multiples of 32.

    CUDA's is missing on purpose: it is slower than widening the weights.
    """
    product = {"cpu": _cpu_int8, "mps": _mps_int8}.get(device.type)
    if product is None:
        return None
    random = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (96, 64), generator=random).to(torch.int8)
    scales = torch.rand(96, generator=random).add_(0.5).bfloat16()
    plain = weight.float() * scales.float()[:, None]
    if _agrees(lambda x: product(x, weight.to(device), scales.to(device)), plain, device, dtype):
        return product
    log.info("int8 weights are multiplied the plain way on %s in %s.", device, dtype)
    return None


def int4_blocks(q: torch.Tensor) -> torch.Tensor:
    """Numbers of 4 bits [out, in] in uint8 → the saved form."""
    halves = q.view(-1, 2, HALF, q.shape[1])
    return (halves[:, 0] | halves[:, 1] << 4).transpose(1, 2).contiguous()


def int4_numbers(blocks: torch.Tensor) -> torch.Tensor:
    """The saved form → numbers of 4 bits [out, in]."""
    return torch.stack((blocks & 15, blocks >> 4), 1).transpose(2, 3).reshape(-1, blocks.shape[1])


# ── whether it works ────────────────────────────────────────────────────────────────────────


def _works(packing: Packing, device: torch.device, dtype: torch.dtype) -> bool:
    random = torch.Generator().manual_seed(0)
    q = torch.randint(0, 16, (2 * PADDED, 4 * GROUP), generator=random).to(torch.uint8)
    scales = torch.rand((4, 2 * PADDED, 2), generator=random).add_(0.5).bfloat16()
    scale, zero = scales.float().transpose(0, 1).repeat_interleave(GROUP, 1).unbind(-1)
    blocks = int4_blocks(q).to(device)
    try:
        packed = packing.pack(blocks)
        again = torch.cat([packing.unpack(half.contiguous()) for half in packed.chunk(2)])
    except (RuntimeError, AttributeError, TypeError):
        return False
    if not torch.equal(again, blocks):
        return False
    return _agrees(lambda x: packing.multiply(x, packed, scales.to(device)), (q - 8.0) * scale + zero, device, dtype)


def _agrees(
    product: Callable[[torch.Tensor], torch.Tensor], weight: torch.Tensor, device: torch.device, dtype: torch.dtype
) -> bool:
    x = torch.rand((5, weight.shape[1]), generator=torch.Generator().manual_seed(1)).sub_(0.5)
    plain = x @ weight.t()
    try:
        ours = product(x.to(device, dtype)).float().cpu()
    except (RuntimeError, AttributeError, TypeError):
        return False
    return ours.shape == plain.shape and bool((ours - plain).norm() <= TOLERANCE * plain.norm())


# ── CPU: the kernels are fast in bfloat16 alone, in the other types they go number by number ─


def _cpu_int8(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = torch.ops.aten._weight_int8pack_mm(x.bfloat16().contiguous(), weight, scales)
    return product


def _cpu_int4(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    packed = weight.view(scales.shape[1], -1)
    rows = x.bfloat16().contiguous()
    product: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, packed, GROUP, scales)
    return product


def _same(weight: torch.Tensor) -> torch.Tensor:
    return weight


def _to_avx512(blocks: torch.Tensor) -> torch.Tensor:
    """Two blocks become one, of 32 bytes: the first block in the lower halves, the second in the upper."""
    first, second = blocks.view(-1, 2, *blocks.shape[1:]).unbind(1)
    return torch.cat((first & 15 | second << 4, first >> 4 | second & 0xF0), -1)


def _from_avx512(weight: torch.Tensor) -> torch.Tensor:
    low, high = weight[..., :HALF], weight[..., HALF:]
    pair = torch.stack((low & 15 | high << 4, low >> 4 | high & 0xF0), 1)
    return pair.flatten(0, 1)


# ── MPS: as they stand, two inputs to a byte. Untested there, as CUDA's below: read in torch's sources ──


def _mps_int8(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = torch.ops.aten._weight_int8pack_mm(x.contiguous(), weight, scales.to(x.dtype))
    return product


def _in_pairs(blocks: torch.Tensor) -> torch.Tensor:
    """What the operators that pack want to be given: [out, in / 2], the first of two inputs in the upper half."""
    q = int4_numbers(blocks)
    return (q[:, ::2] << 4 | q[:, 1::2]).contiguous()


def _packed(blocks: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.aten._convert_weight_to_int4pack(_in_pairs(blocks), 4)
    return packed


def _from_mps(weight: torch.Tensor) -> torch.Tensor:
    pairs = weight.view(torch.uint8).view(8 * weight.shape[0], -1)
    return int4_blocks(torch.stack((pairs & 15, pairs >> 4), -1).flatten(1))


def _gpu_int4(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    rows = x.contiguous()
    product: torch.Tensor = torch.ops.aten._weight_int4pack_mm(rows, weight, GROUP, scales.to(x.dtype))
    return product


# ── CUDA: in the order in which the threads of a tensor core want them ───────────────────────


def _from_cuda(weight: torch.Tensor) -> torch.Tensor:
    """Of [out / 8, in / 64, 32, 2] numbers of 32 bits, each is eight inputs of one output."""
    tiles, steps = weight.shape[:2]
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=weight.device)
    q = (weight[..., None] >> shifts & 15).to(torch.uint8)
    # output in its tile, pair of inputs, which 32 inputs, which of the pair, which 8 inputs
    q = q.view(tiles, steps, 8, 4, 2, 2, 4).permute(0, 2, 1, 4, 6, 3, 5)
    return int4_blocks(q.reshape(8 * tiles, 64 * steps))


PACKINGS = {
    "avx2": Packing(_same, _same, _cpu_int4),
    "avx512": Packing(_to_avx512, _from_avx512, _cpu_int4),
    "mps": Packing(_packed, _from_mps, _gpu_int4),
    "cuda": Packing(_packed, _from_cuda, _gpu_int4),
}
