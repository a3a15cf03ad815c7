"""Products of few rows with a packed bfloat16 weight, as machine code: at the speed of memory.

oneDNN's packed weights lie in blocks of 64 outputs, in each block input by input, in pairs: [out / 64, in / 2, 64, 2].
So each output has a lane of a vector register for itself, two inputs are multiplied and added at a time, and nothing is
added across lanes. What a row gets is the same, to the bit, however many rows and threads there are: each of its
outputs is one chain of sums from the first input to the last. Up to four rows are computed while a weight is in a
register; more go in groups of four through pieces of a block that stay in the nearest cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from cag_daemon.engine.machine_code import F32, FLOATS, I32, I64, INTS, LANES, LINE, PAIRS, Code

BLOCK = 64  # outputs
VECTORS = BLOCK // LANES
GROUP = 4  # rows: with four vectors of outputs, and what they are made from, they fill the registers
PIECE = 64  # pairs of inputs, 16 KiB of weights: the half of a nearest cache
AHEAD = 64 * BLOCK * 4  # bytes: so far ahead weights are sent for
MOST_ROWS = 16  # of a pass; more are oneDNN's business
MOST_OUTPUTS = 256  # computed together: a head, or a block of two products
SUMS = 4 * MOST_OUTPUTS  # bytes of a row of sums
PER_PAIR = 4 * BLOCK  # bytes of weights


def write_product(module: ir.Module, *, dot: bool) -> ir.Function:
    """Write ``product(weight, x, x_row, sums, rows, pairs)``: one block's outputs of some rows.

    Its arguments are the addresses of a block, of inputs in bfloat16 whose rows are ``x_row`` bytes apart, and of the
    float32 sums, whose rows are `SUMS` bytes apart; how many rows; half as many as there are inputs.

    Args:
        dot: the processor multiplies and adds pairs of bfloat16 by itself.
    """
    tiles = [_tile(module, rows, dot) for rows in range(1, GROUP + 1)]
    code = Code(module, "product", 6)
    weight, x, x_row, sums, rows, pairs = code.arguments
    b = code.b
    with code.loop(0, rows) as row:
        for vector in range(VECTORS):
            code.store(FLOATS([0.0] * LANES), code.sum(sums, code.times(row, SUMS), vector * LINE))
    # Few rows go through a block at once, more of them piece by piece.
    piece = b.select(b.icmp_signed("<=", rows, I64(GROUP)), pairs, I64(PIECE))
    with code.loop(0, b.sdiv(code.sum(pairs, piece, -1), piece)) as number:
        first = b.mul(number, piece)
        many = code.least(b.sub(pairs, first), piece)

        def where(row: Any) -> Sequence[Any]:
            return [
                code.sum(weight, code.times(first, PER_PAIR)),
                code.sum(x, code.times(row, x_row), code.times(first, 4)),
                x_row,
                code.sum(sums, code.times(row, SUMS)),
                many,
                # The groups send for what comes next in turns.
                code.times(b.and_(row, I64(GROUP)), 2 * LINE // GROUP),
            ]

        in_groups_of_rows(code, rows, tiles, where)
    return code.done()


def in_groups_of_rows(
    code: Code, rows: Any, tiles: Sequence[ir.Function], where: Callable[[Any], Sequence[Any]]
) -> None:
    """Have all rows computed, a group at a time.

    Args:
        tiles: a function for 1, 2, … `GROUP` rows.
        where: what such a function is called with, from a row on.
    """
    b = code.b
    with code.loop(0, rows, GROUP) as row:
        arguments = where(row)
        after = b.append_basic_block()
        switch = b.switch(b.sub(rows, row), full := b.append_basic_block())
        for few, tile in enumerate(tiles, 1):
            case = full if few == GROUP else b.append_basic_block()
            if few < GROUP:
                switch.add_case(I64(few), case)
            b.position_at_end(case)
            b.call(tile, arguments)
            b.branch(after)
        b.position_at_end(after)


def _tile(module: ir.Module, rows: int, dot: bool) -> ir.Function:
    """Some pairs of inputs of so many rows, added to the sums of a block."""
    code = Code(module, f"tile_{rows}", 6)
    weight, x, x_row, sums, pairs, ahead = code.arguments
    inputs = [code.sum(x, code.times(x_row, row)) for row in range(rows)]
    places = [[code.sum(sums, row * SUMS + vector * LINE) for vector in range(VECTORS)] for row in range(rows)]
    before = [[code.load(FLOATS, place) for place in row] for row in places]
    with code.adding(before, pairs) as (at, held):
        here = code.sum(weight, code.times(at, PER_PAIR))
        weights = [code.load(INTS, code.sum(here, vector * LINE)) for vector in range(VECTORS)]
        for line in range(2):
            code.prefetch(code.sum(here, ahead, AHEAD + line * LINE))
        for row in range(rows):
            pair = code.load(I32, code.sum(inputs[row], code.times(at, 4)))
            for vector in range(VECTORS):
                held[row][vector] = dotted(code, held[row][vector], weights[vector], pair, dot)
    for row in range(rows):
        for vector in range(VECTORS):
            code.store(held[row][vector], places[row][vector])
    return code.done()


def dotted(code: Code, sums: Any, weights: Any, pair: Any, dot: bool) -> Any:
    """Pairs of inputs by pairs of weights, added to the sums.

    Args:
        weights: 16 pairs of bfloat16 numbers, as int32s.
        pair: as many, or one for all.
        dot: in one instruction.
    """
    b = code.b
    alone = pair.type == I32
    if dot:
        both = (b.bitcast(each, PAIRS) for each in (weights, code.spread(pair) if alone else pair))
        return code.intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, sums, *both)
    # By float32 numbers: a bfloat16 is the upper half of one.
    sixteen, upper = INTS([16] * LANES), INTS([-(1 << 16)] * LANES)
    ours_sixteen, ours_upper, kind = (I32(16), I32(-(1 << 16)), F32) if alone else (sixteen, upper, FLOATS)
    for ours, theirs in (
        (b.shl(pair, ours_sixteen), b.shl(weights, sixteen)),
        (b.and_(pair, ours_upper), b.and_(weights, upper)),
    ):
        x = b.bitcast(ours, kind)
        sums = code.fma(code.spread(x) if alone else x, b.bitcast(theirs, FLOATS), sums)
    return sums
