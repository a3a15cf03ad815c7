"""Products of many rows with int8 or int4 weights: some outputs at a time are widened, as oneDNN packs bfloat16.

So documents are read by the products that read them where weights are in bfloat16, and what is added is that each
weight is widened once for all rows, by machine code, into a room that stays in the processor's cache. It is compared
with the plain way when it is first asked for, and left alone where it can't be had or is wrong.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from typing import TYPE_CHECKING

import torch

from cag_daemon.engine.linear import blocks_at, multiply_packed, pack_weight
from cag_daemon.engine.packed_operators import GROUP, PACKINGS, PADDED, int4_blocks
from cag_daemon.errors import one_line

if TYPE_CHECKING:
    from cag_daemon.engine.compiling import Compiled, Threads

log = logging.getLogger(__name__)
AT_A_TIME = 1 << 22  # weights: in bfloat16 8 MB
LEAST = 3  # times 64 outputs: of fewer, oneDNN may pack them otherwise
NEAR = 0.01  # of a product's norm; bfloat16 itself makes a half of it
COUNTERS = 64
VERSION = 1  # of what is computed


class Widening:
    """The product with weights of a kind, by one thread at a time: the room is everybody's.

    Raises:
        RuntimeError, OSError, AttributeError, ImportError: there is none here.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._compiled, self._threads = _machine(kind)
        self._code = self._compiled.address("widen_all")
        self._rooms: dict[tuple[int, int], tuple[torch.Tensor, int] | None] = {}
        self._counters = (ctypes.c_int64 * COUNTERS)()

    @property
    def kind(self) -> str:
        """What of this decides about the bits of a product."""
        return f"widened {VERSION} {self._kind} {self._compiled.by}"

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor | None:
        """The product.

        Args:
            x: [n, in] in bfloat16.
            weight: [out, in] in int8, or in int4 as torch's AVX-512 operator wants it; both multiples of 64.
            scales: in bfloat16: [out]; of int4 [in / 32, out, 2].

        Returns:
            [n, out] in bfloat16; None: oneDNN packs a weight of such a shape otherwise (64 outputs, for one).
        """
        inputs = x.shape[1]
        outputs, of_output, bits = (scales.shape[1], 2, 4) if self._kind == "int4" else (len(scales), 1, 8)
        parts = _parts(outputs, inputs)
        rooms = [each for many in parts if (each := self._room(many, inputs)) is not None]
        if len(rooms) < len(parts):
            return None
        pieces, start = [], 0
        for many, (room, address) in zip(parts, rooms, strict=True):
            ctypes.memset(self._counters, 0, ctypes.sizeof(self._counters))
            call = (ctypes.c_int64 * 7)(
                ctypes.addressof(self._counters),
                weight.data_ptr() + start * inputs * bits // 8,
                scales.data_ptr() + start * of_output * scales.itemsize,
                outputs * of_output * scales.itemsize,
                address,
                inputs // 2,
                many // PADDED,
            )
            self._threads.run(self._code, ctypes.addressof(call))
            pieces.append(multiply_packed(x, room))
            start += many
        product = torch.cat(pieces, 1) if len(pieces) > 1 else pieces[0]
        return product.mul_(scales) if self._kind == "int8" else product

    def _room(self, outputs: int, inputs: int) -> tuple[torch.Tensor, int] | None:
        """A packed weight that is written anew for each product, and where it lies; None: not in such blocks."""
        if (outputs, inputs) not in self._rooms:
            # Different numbers, so that it is seen how they lie.
            weight = torch.rand((outputs, inputs), generator=torch.Generator().manual_seed(0)).bfloat16()
            room = pack_weight(weight)
            address = blocks_at(room, weight)
            self._rooms[outputs, inputs] = None if address is None else (room, address)
        return self._rooms[outputs, inputs]


def _parts(outputs: int, inputs: int) -> list[int]:
    """How many outputs are widened at a time: about as many each time, and few only of a weight that has no more."""
    blocks = outputs // PADDED
    many = max(1, min(-(-outputs * inputs // AT_A_TIME), blocks // LEAST))
    return [PADDED * (blocks * (at + 1) // many - blocks * at // many) for at in range(many)]


@functools.cache
def widening(kind: str) -> Widening | None:
    """The product with weights of that kind, if there is one here that computes what the plain way does."""
    random = torch.Generator().manual_seed(0)
    outputs, inputs = 3 * PADDED, 2 * PADDED
    x = torch.rand((40, inputs), generator=random).sub_(0.5).bfloat16()
    if kind == "int4":
        q = torch.randint(0, 16, (outputs, inputs), generator=random).to(torch.uint8)
        scales = torch.rand((inputs // GROUP, outputs, 2), generator=random).add_(0.5).bfloat16()
        scale, zero = scales.float().transpose(0, 1).repeat_interleave(GROUP, 1).unbind(-1)
        weight, plain = PACKINGS["avx512"].pack(int4_blocks(q)), x.float() @ ((q - 8.0) * scale + zero).t()
    else:
        weight = torch.randint(-127, 128, (outputs, inputs), generator=random).to(torch.int8)
        scales = torch.rand(outputs, generator=random).add_(0.5).bfloat16()
        plain = x.float() @ weight.float().t() * scales.float()
    try:
        product = Widening(kind)
        ours = product(x, weight, scales)
        if ours is None or not (ours.float() - plain).norm() <= NEAR * plain.norm():
            raise RuntimeError("the products differ, or packed weights do not lie in blocks of 64 outputs")
    except Exception as error:  # whatever it is: it goes without
        log.info("%s weights are widened by torch: %s", kind, one_line(error))
        return None
    return product


@functools.cache
def _machine(kind: str) -> tuple[Compiled, Threads]:
    from llvmlite import ir

    from cag_daemon.engine.compiling import NEEDED, Compiled, Threads, features
    from cag_daemon.engine.few_bits import BLOCKS
    from cag_daemon.engine.few_rows import PER_PAIR
    from cag_daemon.engine.machine_code import Code
    from cag_daemon.engine.widening_code import WRITE_WIDENING

    if not features() >= NEEDED:
        raise RuntimeError("this processor has no AVX-512")
    module = ir.Module("widening")
    widen, of = WRITE_WIDENING[kind](module), BLOCKS[kind]
    code = Code(module, "widen_all", 1, inside=False)
    counters, weight, scales, scales_row, to, pairs, blocks = (code.number(code.arguments[0], at) for at in range(7))
    with code.pieces(counters, 0, blocks) as block:
        where = [
            code.sum(weight, code.times(block, pairs, 2 * of.weights)),
            code.sum(scales, code.times(block, of.scales)),
            scales_row,
            code.sum(to, code.times(block, pairs, PER_PAIR)),
            pairs,
        ]
        code.b.call(widen, where)
    code.done()
    return Compiled(module), Threads()
