"""Products of few rows by tiles (Intel's AMX): sixteen rows cost what one does.

A tile is sixteen rows of 64 bytes. One holds 32 inputs of up to sixteen rows, as they lie; one holds as many inputs of
sixteen outputs, in pairs, which is how they lie in the blocks of `few_rows`; one instruction multiplies them and adds
the sums to a third. What a row gets does not depend on those beside it: each sum is one chain from the first input to
the last.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from llvmlite import ir

from cag_daemon.engine.compiling import features
from cag_daemon.engine.few_rows import AHEAD, PER_PAIR
from cag_daemon.engine.few_rows import SUMS as SUMS_ROW
from cag_daemon.engine.machine_code import I64, LINE, POINTER, Code

ROWS = 16  # of a tile
STEP = 16  # pairs of inputs in one
SUMS, INPUTS, WEIGHTS = (0, 1, 2, 3), 4, (5, 6, 7)  # which of the eight tiles holds what
COLUMNS, LINES = 16, 48  # where in a configuration the tiles' bytes of a row are, and how many rows they have
I8, I16 = ir.IntType(8), ir.IntType(16)
ARCH_PRCTL, REQUEST, TILE_DATA = 158, 0x1023, 18  # Linux: a process asks once (arch/x86/xstate.rst)


@functools.cache
def has_tiles() -> bool:
    """Whether this processor has them, and the system lets us use them."""
    if not {"amx-tile", "amx-bf16"} <= features():
        return False
    return bool(ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST, TILE_DATA) == 0)


def write_tiled_product(module: ir.Module) -> ir.Function:
    """Write what `few_rows.write_product` writes, for multiples of 32 inputs, which is all that there are."""
    code = Code(module, "tiled_product", 6)
    weight, x, x_row, sums, rows, pairs = code.arguments
    b = code.b

    def call(what: str, *values: Any) -> None:
        code.intrinsic(f"llvm.x86.{what}", ir.VoidType(), *values)

    def at(address: Any) -> Any:
        return b.inttoptr(address, POINTER)

    config = b.ptrtoint(b.alloca(ir.ArrayType(I8, LINE)), I64)
    b.store(ir.Constant(ir.ArrayType(I8, LINE), [1] + [0] * (LINE - 1)), at(config), align=1)  # 1: there is no other
    for tile in (*SUMS, INPUTS, *WEIGHTS):
        b.store(I16(LINE), at(code.sum(config, COLUMNS + 2 * tile)), align=1)
    with code.loop(0, rows, ROWS) as row:
        many = b.trunc(code.least(b.sub(rows, row), ROWS), I8)
        for tile in (*SUMS, INPUTS, *WEIGHTS):
            b.store(I8(ROWS) if tile in WEIGHTS else many, at(code.sum(config, LINES + tile)), align=1)
        call("ldtilecfg", at(config))  # which makes all tiles 0
        inputs = code.sum(x, code.times(row, x_row))
        with code.loop(0, pairs, STEP) as pair:
            call("tileloadd64", I8(INPUTS), at(code.sum(inputs, code.times(pair, 4))), x_row)
            here = code.sum(weight, code.times(pair, PER_PAIR))
            for line in range(0, STEP * PER_PAIR, LINE):
                code.prefetch(code.sum(here, AHEAD + line))
            for tile in SUMS:
                held = WEIGHTS[tile % len(WEIGHTS)]
                call("tileloadd64", I8(held), at(code.sum(here, tile * LINE)), I64(PER_PAIR))
                call("tdpbf16ps", I8(tile), I8(INPUTS), I8(held))
        to = code.sum(sums, code.times(row, SUMS_ROW))
        for tile in SUMS:
            call("tilestored64", I8(tile), at(code.sum(to, tile * LINE)), I64(SUMS_ROW))
    call("tilerelease")
    return code.done()
