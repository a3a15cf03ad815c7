"""Weights of 8 or 4 bits, widened to bfloat16 as oneDNN packs it, as machine code: a block of 64 outputs at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from cag_daemon.engine.few_bits import (
    AHEAD,
    BYTES,
    HALF_BYTES,
    PAIRS_SHARED,
    SCALES_AHEAD,
    int4_widened,
    int8_widened,
    scale_and_zero,
    table_of_four_bits,
)
from cag_daemon.engine.few_rows import PER_PAIR, VECTORS
from cag_daemon.engine.machine_code import FLOATS, I64, INTS, LANES, LINE, Code


def write_int4_widening(module: ir.Module) -> ir.Function:
    """Write ``widen(weight, scales, scales_row, to, pairs)``: one int4 block in bfloat16, as `few_rows` wants it."""
    code = Code(module, "widen", 5)
    weight, scales, scales_row, to, pairs = code.arguments
    b, table, sixteen = code.b, table_of_four_bits(), INTS([16] * LANES)
    with code.loop(0, b.sdiv(pairs, I64(PAIRS_SHARED))) as group:
        theirs = code.sum(scales, code.times(group, scales_row))
        factors = []
        for vector in range(VECTORS):
            code.prefetch(code.sum(theirs, code.times(scales_row, SCALES_AHEAD), vector * LINE))
            factors.append(scale_and_zero(code, code.sum(theirs, vector * LINE)))
        with code.loop(0, PAIRS_SHARED) as at:
            pair = code.sum(code.times(group, PAIRS_SHARED), at)
            line = code.sum(weight, code.times(pair, LINE))
            code.prefetch(code.sum(line, AHEAD))
            for vector, numbers in enumerate(int4_widened(code, code.load(BYTES, line), table)):
                scale, zero = factors[vector]
                halves = []
                for bits in (b.shl(numbers, sixteen), b.and_(numbers, INTS([-(1 << 16)] * LANES))):
                    value = code.halves(code.fma(scale, b.bitcast(bits, FLOATS), zero))
                    halves.append(b.zext(value, INTS))
                both = b.or_(halves[0], b.shl(halves[1], sixteen))
                code.store(both, code.sum(to, code.times(pair, PER_PAIR), vector * LINE))
    return code.done()


def write_int8_widening(module: ir.Module) -> ir.Function:
    """Write ``widen(weight, scales, scales_row, to, pairs)`` as `write_int4_widening`, but whole numbers: no scales."""
    code = Code(module, "widen", 5)
    weight, _, _, to, pairs = code.arguments
    inputs = code.times(pairs, 2)
    for vector in range(VECTORS):
        with code.loop(0, inputs, 2 * LANES) as at:
            places = [code.sum(weight, code.times(inputs, vector * LANES + lane), at) for lane in range(LANES)]
            rows = [int8_widened(code, code.load(HALF_BYTES, place)) for place in places]
            for number, column in enumerate(_transposed(code, rows)):
                pair = code.sum(code.times(at, PER_PAIR // 2), number * PER_PAIR, vector * LINE)
                code.store(column, code.sum(to, pair))
    return code.done()


def _transposed(code: Code, rows: list[Any]) -> list[Any]:
    """The columns of sixteen rows of sixteen int32s: rows change places with lanes, one bit of their numbers a time."""
    for bit in (1, 2, 4, 8):
        kept = [lane if not lane & bit else LANES + (lane ^ bit) for lane in range(LANES)]
        other = [lane ^ bit if not lane & bit else LANES + lane for lane in range(LANES)]
        found = list(rows)
        for one in range(LANES):
            if not one & bit:
                both = rows[one], rows[one | bit]
                found[one], found[one | bit] = (code.b.shuffle_vector(*both, INTS(each)) for each in (kept, other))
        rows = found
    return rows


WRITE_WIDENING: dict[str, Callable[[ir.Module], ir.Function]] = {
    "int4": write_int4_widening,
    "int8": write_int8_widening,
}
