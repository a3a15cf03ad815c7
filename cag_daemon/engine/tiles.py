"""Products of few rows by tiles (Intel's AMX): sixteen rows cost what one does.

A tile is sixteen rows of 64 bytes. One holds 32 inputs of up to sixteen rows, as they lie; one holds as many inputs of
sixteen outputs, in pairs, which is how they lie in oneDNN's blocks; one instruction multiplies them and adds the sums
to a third. What a row gets does not depend on those beside it: each sum is one chain from the first input to the last.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from llvmlite import ir

from cag_daemon.engine.compiling import features
from cag_daemon.engine.machine_code import I64, LINE, POINTER, Code

ROWS = 16  # of a tile
STEP = 16  # pairs of inputs in one
BLOCK = 64  # outputs
SUMS, INPUTS, WEIGHTS = (0, 1, 2, 3), 4, (5, 6, 7)  # which tile holds what
AHEAD = 4 * 64 * BLOCK  # bytes: so far ahead weights are sent for
I8 = ir.IntType(8)
ARCH_PRCTL, REQUEST, TILE_DATA = 158, 0x1023, 18  # Linux: a process asks once (arch/x86/xstate.rst)


@functools.cache
def has_tiles() -> bool:
    """Whether this processor has them, and the system lets us use them."""
    if not {"amx-tile", "amx-bf16"} <= features():
        return False
    return bool(ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST, TILE_DATA) == 0)


def write_by_tiles(module: ir.Module, name: str, sums_row: int) -> ir.Function:
    """Write a function like `few_rows.write_product`'s, for so many pairs that they fill tiles.

    Args:
        name: the function's.
        sums_row: bytes from one row of sums to the next.
    """
    code = Code(module, name, 6)
    weight, x, x_row, sums, rows, pairs = code.arguments
    b = code.b
    b.position_at_start(b.block)
    config = b.alloca(ir.ArrayType(I8, LINE), name="config")
    config.align = LINE
    b.position_at_end(b.block)

    def call(what: str, *values: Any) -> None:
        code.intrinsic(f"llvm.x86.{what}", ir.VoidType(), *values)

    def at(address: Any) -> Any:
        return b.inttoptr(address, POINTER)

    where = b.ptrtoint(config, I64)
    b.store(ir.Constant(ir.ArrayType(I8, LINE), [1] + [0] * (LINE - 1)), at(where), align=1)
    for tile in range(8):
        b.store(ir.IntType(16)(LINE), at(code.sum(where, 16 + 2 * tile)), align=1)
    with code.loop(0, rows, ROWS) as row:
        many = b.trunc(code.least(b.sub(rows, row), I64(ROWS)), I8)
        for tile in range(8):
            b.store(I8(ROWS) if tile in WEIGHTS else many, at(code.sum(where, 48 + tile)), align=1)
        call("ldtilecfg", at(where))
        for tile in SUMS:
            call("tilezero", I8(tile))
        ours = code.sum(x, code.times(row, x_row))
        with code.loop(0, pairs, STEP) as pair:
            call("tileloadd64", I8(INPUTS), at(code.sum(ours, code.times(pair, 4))), x_row)
            here = code.sum(weight, code.times(pair, 4 * BLOCK))
            for line in range(STEP * 4):
                code.prefetch(code.sum(here, AHEAD + line * LINE))
            for tile in SUMS:
                of = WEIGHTS[tile % len(WEIGHTS)]
                call("tileloadd64", I8(of), at(code.sum(here, tile * LINE)), I64(4 * BLOCK))
                call("tdpbf16ps", I8(tile), I8(INPUTS), I8(of))
        to = code.sum(sums, code.times(row, sums_row))
        for tile in SUMS:
            call("tilestored64", I8(tile), at(code.sum(to, tile * LINE)), I64(sums_row))
    call("tilerelease")
    return code.done()
