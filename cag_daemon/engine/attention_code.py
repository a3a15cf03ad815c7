"""Attention of few rows to a long cache, as machine code: each row's bits are its own, whatever stands beside it.

The cache is attended to in spans of 256 keys from the first on, and spans are what threads share. A span's keys and
values are brought into the blocks that `few_rows` multiplies with, once for all rows and all query heads that share
them; its part of the softmax is kept with its maximum and its sum, and the parts of a row are put together in order.
Keys that a row does not see have weights of exactly 0, and so whether there are any changes nothing.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from cag_daemon.engine.few_rows import BLOCK, PER_PAIR, SUMS
from cag_daemon.engine.machine_code import F32, FLOATS, I32, I64, INTS, LANES, LINE, Code, exponential

SPAN = 256  # keys: a row of sums
HALF = 2  # bytes of a bfloat16
SHORTS = ir.VectorType(ir.IntType(16), 2 * LANES)
LEAST = -1e30  # below every score


def span_bytes(head_size: int, rows: int) -> int:
    """What a thread needs for a span: its keys and values in blocks, scores and sums of so many rows."""
    return 2 * SPAN * head_size * HALF + 2 * rows * SUMS


def part_bytes(head_size: int) -> int:
    """What a row's part of a span takes: its sums, then the maximum and the sum of weights."""
    return 4 * head_size + LINE


def write_span(module: ir.Module, product: ir.Function) -> ir.Function:
    """Write ``span(query, keys, values, scales, parts, own, rows, group, head_size, first, start, spans)``.

    Its arguments are the addresses of queries [group, rows, head size], of the span's first key and value, of a float32
    factor for each row, of the parts of rows in this span, which are ``spans`` parts apart, and of room for the thread;
    then numbers, of which ``first`` is the position of the span's first key and ``start`` that of the first row.
    """
    code = Code(module, "span", 12)
    b = code.b
    query, keys, values, scales, parts, own, rows, group, size, first, start, spans = code.arguments
    key_bytes, pairs = code.times(size, HALF), b.ashr(size, I64(1))
    many = code.times(rows, group)
    blocks = code.least(b.sdiv(code.sum(start, rows, b.sub(I64(BLOCK - 1), first)), I64(BLOCK)), SPAN // BLOCK)
    packed_keys, packed_values = own, code.sum(own, code.times(key_bytes, SPAN))
    scores = code.sum(packed_values, code.times(key_bytes, SPAN))
    sums = code.sum(scores, code.times(many, SUMS))
    with code.loop(0, blocks) as block:
        packed = code.sum(packed_keys, code.times(block, pairs, PER_PAIR))
        with code.loop(0, BLOCK, LANES) as at:
            source = code.sum(keys, code.times(code.sum(code.times(block, BLOCK), at), key_bytes))
            with code.loop(0, pairs, LANES) as pair:
                places = [code.sum(source, code.times(key_bytes, key), code.times(pair, 4)) for key in range(LANES)]
                turned = _transposed(code, [code.load(INTS, place) for place in places])
                for place, vector in enumerate(turned):
                    code.store(vector, code.sum(packed, code.times(code.sum(pair, place), PER_PAIR), code.times(at, 4)))
        b.call(product, [packed, query, key_bytes, code.sum(scores, code.times(block, BLOCK * 4)), many, pairs])
    with code.loop(0, many) as row:
        here = code.sum(scores, code.times(row, SUMS))
        place = b.srem(row, rows)
        scale = code.spread(code.load(F32, code.sum(scales, code.times(place, 4))))
        seen = b.sub(code.sum(start, place, 1), first)
        part = code.sum(parts, code.times(row, spans, part_of(code, size)), code.times(size, 4))
        _weigh(code, here, code.times(blocks, BLOCK), scale, seen, part)
    value_pairs = code.times(blocks, BLOCK // 2)
    with code.loop(0, size, BLOCK) as at:
        packed = code.sum(packed_values, code.times(at, value_pairs, PER_PAIR // BLOCK))
        with code.loop(0, value_pairs) as pair:
            source = code.sum(values, code.times(pair, key_bytes, 2), code.times(at, HALF))
            to = code.sum(packed, code.times(pair, PER_PAIR))
            for part in range(2):
                one, other = (
                    code.load(SHORTS, code.sum(source, code.times(key_bytes, each), part * LINE)) for each in range(2)
                )
                for half in range(2):
                    order = [each // 2 + half * LANES + each % 2 * 2 * LANES for each in range(2 * LANES)]
                    mixed = b.shuffle_vector(one, other, ir.VectorType(I32, 2 * LANES)(order))
                    code.store(mixed, code.sum(to, (2 * part + half) * LINE))
        b.call(product, [packed, scores, I64(SUMS), code.sum(sums, code.times(at, 4)), many, value_pairs])
    with code.loop(0, many) as row:
        part = code.sum(parts, code.times(row, spans, part_of(code, size)))
        here = code.sum(sums, code.times(row, SUMS))
        with code.loop(0, code.times(size, 4), LINE) as at:
            code.store(code.load(FLOATS, code.sum(here, at)), code.sum(part, at))
    return code.done()


def part_of(code: Code, size: Any) -> Any:
    """`part_bytes`, computed."""
    return code.sum(code.times(size, 4), LINE)


def _weigh(code: Code, scores: Any, keys: Any, scale: Any, seen: Any, part: Any) -> None:
    """Make weights of a row's scores, in their place and in bfloat16; their maximum and sum are its part's."""
    b = code.b
    number = INTS(list(range(LANES)))

    def hidden(at: Any) -> Any:
        return b.icmp_signed(">=", b.add(number, code.spread(b.trunc(at, I32))), code.spread(b.trunc(seen, I32)))

    def score(at: Any) -> Any:
        scaled = b.fmul(code.load(FLOATS, code.sum(scores, code.times(at, 4))), scale)
        return b.select(hidden(at), code.all(LEAST), scaled)

    b.store(code.all(LEAST), code.kept)
    with code.loop(0, keys, LANES) as at:
        most = b.load(code.kept, typ=FLOATS)
        b.store(code.intrinsic("llvm.maxnum.v16f32", FLOATS, most, score(at)), code.kept)
    most = code.fold(b.load(code.kept, typ=FLOATS), lambda x, y: code.intrinsic_like("llvm.maxnum", x, y))
    code.store(most, part)
    b.store(code.all(0.0), code.kept)
    with code.loop(0, keys, LANES) as at:
        weight = b.select(hidden(at), code.all(0.0), exponential(code, b.fsub(score(at), code.spread(most))))
        b.store(b.fadd(b.load(code.kept, typ=FLOATS), weight), code.kept)
        code.store_narrow(weight, code.sum(scores, code.times(at, HALF)))
    code.store(code.add_up(b.load(code.kept, typ=FLOATS)), code.sum(part, 4))


def write_whole(module: ir.Module) -> ir.Function:
    """Write ``whole(parts, to, head_size, spans)``: one row's parts, put together in bfloat16."""
    code = Code(module, "whole", 4)
    b = code.b
    parts, to, size, spans = code.arguments
    step = part_of(code, size)

    def told(span: Any, place: int) -> Any:
        return code.spread(code.load(F32, code.sum(parts, code.times(span, step), code.times(size, 4), place)))

    def share(span: Any) -> Any:
        return exponential(code, b.fsub(told(span, 0), b.load(most, typ=FLOATS)))

    most, total = code.kept, b.alloca(FLOATS)
    b.store(code.all(LEAST), most)
    b.store(code.all(0.0), total)
    with code.loop(0, spans) as span:
        b.store(code.intrinsic("llvm.maxnum.v16f32", FLOATS, b.load(most, typ=FLOATS), told(span, 0)), most)
    with code.loop(0, spans) as span:
        b.store(b.fadd(b.load(total, typ=FLOATS), b.fmul(share(span), told(span, 4))), total)
    sums = b.alloca(FLOATS)
    with code.loop(0, size, LANES) as at:
        b.store(code.all(0.0), sums)
        with code.loop(0, spans) as span:
            part = code.load(FLOATS, code.sum(parts, code.times(span, step), code.times(at, 4)))
            b.store(b.fadd(b.load(sums, typ=FLOATS), b.fmul(share(span), part)), sums)
        value = b.fdiv(b.load(sums, typ=FLOATS), b.load(total, typ=FLOATS))
        code.store_narrow(value, code.sum(to, code.times(at, HALF)))
    return code.done()


def _transposed(code: Code, rows: list[Any]) -> list[Any]:
    """Sixteen vectors of sixteen numbers, with rows and columns changed."""
    step = 1
    while step < LANES:
        for one in range(LANES):
            if not one & step:
                pair = rows[one], rows[one + step]
                low = [at if not at & step else LANES + at - step for at in range(LANES)]
                high = [at + step if not at & step else LANES + at for at in range(LANES)]
                rows[one], rows[one + step] = (code.b.shuffle_vector(*pair, INTS(each)) for each in (low, high))
        step *= 2
    return rows
