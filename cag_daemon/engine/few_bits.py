"""Products of few rows with weights of 8 or 4 bits, as machine code: the same for every number of rows, as `few_rows`.

The weights stay as `quantize` keeps them, and are widened in registers, where it costs less than they take to come
from memory. Whole numbers of 8 bits are exact in bfloat16, so nothing is lost by it; scales are float32's business.

int4: [out / 64, in, 32] bytes, of which byte i holds output i in its lower and i + 32 in its upper half: two inputs
are one load, and each output is a lane. (scale, zero) of 32 inputs are [in / 32, out, 2].
int8: [out, in], so that an output's inputs lie side by side: the lanes are added up at its end.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llvmlite import ir

from cag_daemon.engine.few_rows import BLOCK, GROUP, SUMS, VECTORS, dotted, in_groups_of_rows
from cag_daemon.engine.machine_code import F32, FLOATS, I32, I64, INTS, LANES, LINE, Code

SHARED = 32  # inputs that share a scale and a zero
PAIRS_SHARED = SHARED // 2
PIECE = 8  # times so many inputs of a block, 8 KiB, go through all rows before the next
AHEAD = 8192  # bytes: so far ahead int4 weights are sent for
SCALES_AHEAD = 8  # groups of inputs
TOGETHER = 4  # int8 outputs that are computed together
STEP = 64  # inputs of int8
BYTES, WORDS = ir.VectorType(ir.IntType(8), LINE), ir.VectorType(ir.IntType(16), 2 * LANES)
HALF_BYTES = ir.VectorType(ir.IntType(8), LINE // 2)
ARGUMENTS = 8
SCALES = 4  # bytes of int4's scale and zero


class Block(NamedTuple):
    """How far it is from one block of outputs to the next, in bytes: of weights, for each input, and of scales."""

    weights: int
    scales: int


BLOCKS = {"int4": Block(BLOCK // 2, BLOCK * SCALES), "int8": Block(BLOCK, BLOCK * 2)}


def write_int4(module: ir.Module, *, dot: bool) -> ir.Function:
    """Write ``int4(weight, scales, scales_row, x, x_row, sums, rows, pairs)``: one block's outputs of some rows.

    As `few_rows.write_product`, but for the addresses of the block's first scales, and the bytes from those of one
    group of inputs to the next.
    """
    tiles = [_int4_tile(module, rows, dot) for rows in range(1, GROUP + 1)]
    code = Code(module, "int4", ARGUMENTS)
    weight, scales, scales_row, x, x_row, sums, rows, pairs = code.arguments
    b = code.b
    with code.loop(0, rows) as row:
        for vector in range(VECTORS):
            code.store(FLOATS([0.0] * LANES), code.sum(sums, code.times(row, SUMS), vector * LINE))
    groups = b.sdiv(pairs, I64(PAIRS_SHARED))
    piece = b.select(b.icmp_signed("<=", rows, I64(GROUP)), groups, I64(PIECE))
    with code.loop(0, b.sdiv(code.sum(groups, piece, -1), piece)) as number:
        first = b.mul(number, piece)
        many = code.least(b.sub(groups, first), piece)
        here = code.sum(weight, code.times(first, SHARED * LINE // 2))
        theirs = code.sum(scales, code.times(first, scales_row))
        inputs = code.sum(x, code.times(first, 2 * SHARED))

        def where(row: Any) -> Sequence[Any]:
            of_row = code.sum(inputs, code.times(row, x_row))
            return [here, theirs, scales_row, of_row, x_row, code.sum(sums, code.times(row, SUMS)), many]

        in_groups_of_rows(code, rows, tiles, where)
    return code.done()


def _int4_tile(module: ir.Module, rows: int, dot: bool) -> ir.Function:
    """Some groups of inputs of so many rows, added to the sums of a block."""
    code = Code(module, f"int4_{rows}", 7)
    weight, scales, scales_row, x, x_row, sums, groups = code.arguments
    b = code.b
    table = table_of_four_bits()
    ones = b.bitcast(WORDS([_bfloat16(1)] * 2 * LANES), INTS)
    inputs = [code.sum(x, code.times(x_row, row)) for row in range(rows)]
    with code.loop(0, groups) as group:
        of_group = code.sum(weight, code.times(group, SHARED * LINE // 2))
        pairs_of = [code.sum(each, code.times(group, 2 * SHARED)) for each in inputs]
        theirs = code.sum(scales, code.times(group, scales_row))
        for vector in range(VECTORS):
            code.prefetch(code.sum(theirs, code.times(scales_row, SCALES_AHEAD), vector * LINE))
        # What the inputs of a group come to, which a zero is multiplied with.
        totals = [dotted(code, code.all(0.0), ones, code.load(INTS, each), dot) for each in pairs_of]
        totals = [code.spread(code.add_up(each)) for each in totals]
        nothing = [[code.all(0.0)] * VECTORS for _ in inputs]
        with code.adding(nothing, PAIRS_SHARED) as (at, found):
            line = code.sum(of_group, code.times(at, LINE))
            code.prefetch(code.sum(line, AHEAD))
            weights = int4_widened(code, code.load(BYTES, line), table)
            for row in range(rows):
                pair = code.load(I32, code.sum(pairs_of[row], code.times(at, 4)))
                for vector in range(VECTORS):
                    found[row][vector] = dotted(code, found[row][vector], weights[vector], pair, dot)
        for vector in range(VECTORS):
            scale, zero = scale_and_zero(code, code.sum(theirs, vector * LINE))
            for row in range(rows):
                place = code.sum(sums, row * SUMS + vector * LINE)
                value = code.fma(scale, found[row][vector], code.load(FLOATS, place))
                code.store(code.fma(zero, totals[row], value), place)
    return code.done()


def int4_widened(code: Code, raw: Any, table: Any) -> list[Any]:
    """Two inputs' 64 outputs of 4 bits → four vectors of pairs, as int32s: outputs 0 to 15, 16 to 31, …"""
    b = code.b
    lower: list[Any] = []
    upper: list[Any] = []
    for first in (0, LANES):
        # Each word has the first or the second input's byte; whatever is above its five lowest bits is not looked at.
        order = [byte for lane in range(first, first + LANES) for byte in (lane, lane, lane + 32, lane + 32)]
        words = b.bitcast(b.shuffle_vector(raw, raw, ir.Constant(ir.VectorType(I32, LINE), order)), WORDS)
        for to, each in ((lower, words), (upper, b.lshr(words, WORDS([4] * 2 * LANES)))):
            found = code.intrinsic("llvm.x86.avx512.permvar.hi.512", WORDS, table, each)
            to.append(b.bitcast(found, INTS))
    return [*lower, *upper]


def table_of_four_bits() -> ir.Constant:
    """Numbers from -8 to 7 in bfloat16, twice: the fifth bit of what is looked up is a neighbour's."""
    return ir.Constant(WORDS, [ir.Constant(ir.IntType(16), _bfloat16(q - 8)) for q in range(16)] * 2)


def scale_and_zero(code: Code, address: Any) -> tuple[Any, Any]:
    """Those of 16 outputs, as float32."""
    b = code.b
    both = code.load(INTS, address)
    scale = b.shl(both, INTS([16] * LANES))
    return b.bitcast(scale, FLOATS), b.bitcast(b.and_(both, INTS([-(1 << 16)] * LANES)), FLOATS)


def write_int8(module: ir.Module, *, dot: bool) -> ir.Function:
    """Write ``int8(weight, scales, scales_row, x, x_row, sums, rows, pairs)``, as `write_int4`.

    ``scales`` has the block's scales, one after the other; ``scales_row`` is not looked at.
    """
    tiles = [_int8_tile(module, rows, dot) for rows in range(1, GROUP + 1)]
    code = Code(module, "int8", ARGUMENTS)
    weight, scales, _, x, x_row, sums, rows, pairs = code.arguments
    inputs = code.times(pairs, 2)
    with code.loop(0, BLOCK, TOGETHER) as output:
        here = code.sum(weight, code.times(output, inputs))
        theirs = code.sum(scales, code.times(output, 2))

        def where(row: Any) -> Sequence[Any]:
            to = code.sum(sums, code.times(row, SUMS), code.times(output, 4))
            return [here, theirs, code.sum(x, code.times(row, x_row)), x_row, to, inputs]

        in_groups_of_rows(code, rows, tiles, where)
    return code.done()


def _int8_tile(module: ir.Module, rows: int, dot: bool) -> ir.Function:
    """A few outputs of so many rows: all their inputs."""
    code = Code(module, f"int8_{rows}", 6)
    weight, scales, x, x_row, sums, inputs = code.arguments
    b = code.b
    weights = [code.sum(weight, code.times(inputs, output)) for output in range(TOGETHER)]
    of_rows = [code.sum(x, code.times(x_row, row)) for row in range(rows)]
    with code.adding([[code.all(0.0)] * TOGETHER for _ in of_rows], inputs, STEP) as (at, found):
        for output, place in enumerate(weights):
            here = code.sum(place, at)
            code.prefetch(code.sum(here, code.times(inputs, TOGETHER)))  # the outputs that come next
            for half in range(2):
                wide = int8_widened(code, code.load(HALF_BYTES, code.sum(here, half * STEP // 2)))
                for row, theirs in enumerate(of_rows):
                    both = code.load(INTS, code.sum(theirs, code.times(at, 2), half * STEP))
                    found[row][output] = dotted(code, found[row][output], wide, both, dot)
    for output in range(TOGETHER):
        scale = b.zext(code.load(ir.IntType(16), code.sum(scales, 2 * output)), I32)
        scale = b.bitcast(b.shl(scale, I32(16)), F32)
        for row in range(rows):
            value = b.fmul(scale, code.add_up(found[row][output]))
            code.store(value, code.sum(sums, row * SUMS + 4 * output))
    return code.done()


def int8_widened(code: Code, raw: Any) -> Any:
    """32 numbers of 8 bits → bfloat16, as 16 pairs: the upper halves of float32 numbers, whose lower halves are 0."""
    b = code.b
    words = b.bitcast(b.sext(raw, WORDS), INTS)
    first, second = b.ashr(b.shl(words, INTS([16] * LANES)), INTS([16] * LANES)), b.ashr(words, INTS([16] * LANES))
    first, second = (b.bitcast(b.sitofp(each, FLOATS), INTS) for each in (first, second))
    return b.or_(b.lshr(first, INTS([16] * LANES)), second)


def _bfloat16(number: int) -> int:
    """The bits of a small whole number."""
    return int(struct.unpack("I", struct.pack("f", float(number)))[0]) >> 16


WRITE: dict[str, Callable[..., ir.Function]] = {"int4": write_int4, "int8": write_int8}
