"""A decoder layer of Mistral for few rows, but for its attention, as machine code.

What follows one layer's attention and what comes before the next one's is one call: torch's threads go through its
works together, and share the pieces of each, which are blocks of outputs. All that is small is done where its
numbers are still at hand: norms by each thread for itself, residuals, rotations and SiLU on the sums of a product.
Numbers are rounded to bfloat16 wherever torch rounds them.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Any

from llvmlite import ir

from cag_daemon.engine.few_rows import BLOCK, MOST_ROWS, PER_PAIR, SUMS, write_product
from cag_daemon.engine.machine_code import F32, FLOATS, I32, I64, INTS, LANES, LINE, Code

HALF = 2  # bytes of a bfloat16
VECTOR = LANES * HALF  # bytes
OF_SUMS = MOST_ROWS * SUMS  # bytes of a thread's sums; its normed rows follow
COUNTERS = 12  # lines: two for each work, see `Code.pieces`, and one for the threads


class Call(IntEnum):
    """What a call is given, each an i64: sizes, and addresses of tensors in bfloat16 (0: there is none)."""

    COUNTERS = 0  # zeros
    ROWS = 1
    HIDDEN = 2  # [rows, hidden size]: the residual stream
    HIDDEN_SIZE = 3
    INTERMEDIATE_SIZE = 4
    HEAD_SIZE = 5
    HEADS = 6
    SHARED_HEADS = 7  # of keys, and of values
    EPSILON = 8  # of norms, a float32's bits
    OWN = 9  # room for each thread
    OWN_BYTES = 10
    MIDDLE = 11  # [rows, intermediate size]
    ATTENDED = 12  # [rows, heads · head size]
    QUERIES = 13  # [heads, width, head size]
    WIDTH = 14
    COSINES = 15  # [rows, head size]
    SINES = 16
    KEYS = 17  # where the first new row goes, of [heads, capacity, head size]
    VALUES = 18
    HEAD_BYTES = 19  # of keys of one head, up to those of the next
    AFTER = 20  # the `Weights` of the layer whose attention was last
    BEFORE = 21  # the `Weights` of the layer whose attention is next
    NORM = 22  # the last one
    OUTPUT = 23  # the packed weight that logits are made with
    OUTPUT_BLOCKS = 24
    LOGITS = 25  # [rows, 64 · blocks], of the rows from this one on:
    FIRST_LOGITS = 26


class Weights(IntEnum):
    """A layer's weights, each an address."""

    INPUT_NORM = 0
    QUERY = 1
    KEY = 2
    VALUE = 3
    OUTPUT = 4
    NORM = 5
    GATE = 6
    UP = 7
    DOWN = 8


def layer_module(*, dot: bool) -> ir.Module:
    """The module with the function ``layer``, whose argument is the address of a `Call`."""
    module = ir.Module("layer")
    write = _Layer(module, write_product(module, dot=dot), _norm(module))
    write.all()
    return module


def own_bytes(hidden_size: int) -> int:
    """What a thread needs for itself."""
    return OF_SUMS + MOST_ROWS * hidden_size * HALF + 4096


class _Layer:
    """The function ``layer``, while it is written."""

    def __init__(self, module: ir.Module, product: ir.Function, norm: ir.Function) -> None:
        self.code = code = Code(module, "layer", 1, inside=False)
        self.b, self.product, self.norm = code.b, product, norm
        (call,) = code.arguments
        given = {each: code.number(call, each) for each in Call}
        self.given = given
        self.works = code.sum(given[Call.COUNTERS], LINE)
        number = code.take(given[Call.COUNTERS])
        self.sums = code.sum(given[Call.OWN], code.times(number, given[Call.OWN_BYTES]))
        self.normed = code.sum(self.sums, OF_SUMS)
        self.row_bytes = code.times(given[Call.HIDDEN_SIZE], HALF)

    def all(self) -> None:
        """What is wanted of all that may be."""
        given, b = self.given, self.b
        for wanted, write in (
            (Call.AFTER, self.after_attention),
            (Call.BEFORE, self.before_attention),
            (Call.OUTPUT, self.logits),
        ):
            with b.if_then(b.icmp_signed("!=", given[wanted], I64(0))):
                write()
        self.code.done()

    def multiply(self, weight: Any, block: Any, x: Any, inputs: Any, to: int = 0, rows: Any = None) -> None:
        """A block's outputs of all rows, into the sums from ``to`` on."""
        code = self.code
        pairs = self.b.ashr(inputs, I64(1))
        where = code.sum(weight, code.times(block, pairs, PER_PAIR))
        rows = self.given[Call.ROWS] if rows is None else rows
        self.b.call(self.product, [where, x, code.times(inputs, HALF), code.sum(self.sums, 4 * to), rows, pairs])

    def normalise(self, weight: Any, hidden: Any = None, rows: Any = None) -> None:
        """The normed residual stream, for this thread."""
        given = self.given
        hidden, rows = (hidden, rows) if rows is not None else (given[Call.HIDDEN], given[Call.ROWS])
        self.b.call(self.norm, [hidden, weight, self.normed, rows, given[Call.HIDDEN_SIZE], given[Call.EPSILON]])

    def add_to_hidden(self, block: Any) -> None:
        """The sums of a block, added to the residual stream."""
        code = self.code
        with code.loop(0, self.given[Call.ROWS]) as row:
            to = code.sum(self.given[Call.HIDDEN], code.times(row, self.row_bytes), code.times(block, BLOCK * HALF))
            for at in range(0, BLOCK, LANES):
                place = code.sum(to, at * HALF)
                code.store_narrow(self.b.fadd(code.wide(place), self.summed(row, at)), place)

    def summed(self, row: Any, at: Any) -> Any:
        """Sixteen of a row's sums, rounded."""
        code = self.code
        return code.rounded(code.load(FLOATS, code.sum(self.sums, code.times(row, SUMS), code.times(at, 4))))

    def after_attention(self) -> None:
        """Its output product, and the feed-forward network."""
        code, given = self.code, self.given
        weights = {each: code.number(given[Call.AFTER], each) for each in Weights}
        blocks = self.b.sdiv(given[Call.HIDDEN_SIZE], I64(BLOCK))
        middle = given[Call.INTERMEDIATE_SIZE]
        with code.pieces(self.works, 0, blocks) as block:
            attended = code.times(given[Call.HEADS], given[Call.HEAD_SIZE])
            self.multiply(weights[Weights.OUTPUT], block, given[Call.ATTENDED], attended)
            self.add_to_hidden(block)
        self.normalise(weights[Weights.NORM])
        with code.pieces(self.works, 1, self.b.sdiv(middle, I64(BLOCK))) as block:
            for weight, to in ((Weights.GATE, 0), (Weights.UP, BLOCK)):
                self.multiply(weights[weight], block, self.normed, given[Call.HIDDEN_SIZE], to)
            with code.loop(0, given[Call.ROWS]) as row:
                to_row = code.sum(given[Call.MIDDLE], code.times(row, middle, HALF), code.times(block, BLOCK * HALF))
                for at in range(0, BLOCK, LANES):
                    gated = code.rounded(silu(code, self.summed(row, at)))
                    code.store_narrow(self.b.fmul(gated, self.summed(row, BLOCK + at)), code.sum(to_row, at * HALF))
        with code.pieces(self.works, 2, blocks) as block:
            self.multiply(weights[Weights.DOWN], block, given[Call.MIDDLE], middle)
            self.add_to_hidden(block)

    def before_attention(self) -> None:
        """Queries, keys and values, a head at a time; the first two rotated."""
        code, given, b = self.code, self.given, self.b
        weights = {each: code.number(given[Call.BEFORE], each) for each in Weights}
        heads, shared, size = given[Call.HEADS], given[Call.SHARED_HEADS], given[Call.HEAD_SIZE]
        head_row = code.times(size, HALF)
        self.normalise(weights[Weights.INPUT_NORM])
        with code.pieces(self.works, 3, code.sum(heads, shared, shared)) as piece:
            is_query = b.icmp_signed("<", piece, heads)
            turned = b.icmp_signed("<", piece, code.sum(heads, shared))

            def one_of(query: Any, key: Any, value: Any) -> Any:
                return b.select(is_query, query, b.select(turned, key, value))

            head = b.sub(piece, one_of(I64(0), heads, code.sum(heads, shared)))
            weight = one_of(weights[Weights.QUERY], weights[Weights.KEY], weights[Weights.VALUE])
            of_head = b.select(is_query, code.times(given[Call.WIDTH], head_row), given[Call.HEAD_BYTES])
            start = one_of(given[Call.QUERIES], given[Call.KEYS], given[Call.VALUES])
            to = code.sum(start, code.times(head, of_head))
            blocks = b.sdiv(size, I64(BLOCK))
            sums = self.sums
            with code.loop(0, blocks) as block:
                self.sums = code.sum(sums, code.times(block, BLOCK * 4))
                self.multiply(weight, code.sum(code.times(head, blocks), block), self.normed, given[Call.HIDDEN_SIZE])
            self.sums = sums
            with code.loop(0, given[Call.ROWS]) as row:
                to_row = code.sum(to, code.times(row, head_row))
                with b.if_else(turned) as (rotated, plain):
                    with rotated:
                        self.rotate(row, to_row)
                    with plain, code.loop(0, size, LANES) as at:
                        code.store_narrow(self.summed(row, at), code.sum(to_row, code.times(at, HALF)))

    def rotate(self, row: Any, to: Any) -> None:
        """A head's sums, rotated by the row's position."""
        code, b, size = self.code, self.b, self.given[Call.HEAD_SIZE]
        half = b.ashr(size, I64(1))
        of_row = code.times(row, size, HALF)
        with code.loop(0, half, LANES) as at:
            places = [at, code.sum(at, half)]
            one, other = (self.summed(row, place) for place in places)
            for mine, turned, place in ((one, b.fneg(other), places[0]), (other, one, places[1])):
                offset = code.times(place, HALF)
                cosine, sine = (
                    code.wide(code.sum(self.given[each], of_row, offset)) for each in (Call.COSINES, Call.SINES)
                )
                products = (code.rounded(b.fmul(x, y)) for x, y in ((mine, cosine), (turned, sine)))
                code.store_narrow(b.fadd(*products), code.sum(to, offset))

    def logits(self) -> None:
        """The last norm, and the output layer."""
        code, given = self.code, self.given
        first, blocks = given[Call.FIRST_LOGITS], given[Call.OUTPUT_BLOCKS]
        rows = self.b.sub(given[Call.ROWS], first)
        self.normalise(given[Call.NORM], code.sum(given[Call.HIDDEN], code.times(first, self.row_bytes)), rows)
        with code.pieces(self.works, 4, blocks) as block:
            self.multiply(given[Call.OUTPUT], block, self.normed, given[Call.HIDDEN_SIZE], rows=rows)
            with code.loop(0, rows) as row:
                to = code.sum(given[Call.LOGITS], code.times(code.sum(code.times(row, blocks), block), BLOCK * HALF))
                for at in range(0, BLOCK, LANES):
                    code.store_narrow(self.summed(row, at), code.sum(to, at * HALF))


def _norm(module: ir.Module) -> ir.Function:
    """Write ``norm(x, weight, to, rows, size, epsilon)``: RMS norms of rows, as transformers computes them."""
    code = Code(module, "norm", 6)
    x, weight, to, rows, size, epsilon = code.arguments
    b = code.b
    bytes_ = code.times(size, HALF)
    squares = b.alloca(FLOATS)
    with code.loop(0, rows) as row:
        start = code.times(row, bytes_)
        b.store(FLOATS([0.0] * LANES), squares)
        with code.loop(0, bytes_, VECTOR) as at:
            value = code.wide(code.sum(x, start, at))
            b.store(b.fadd(b.load(squares, typ=FLOATS), b.fmul(value, value)), squares)
        mean = b.fdiv(code.add_up(b.load(squares, typ=FLOATS)), b.sitofp(size, F32))
        length = code.intrinsic("llvm.sqrt.f32", F32, b.fadd(mean, b.bitcast(b.trunc(epsilon, I32), F32)))
        scale = code.spread(b.fdiv(F32(1.0), length))
        with code.loop(0, bytes_, VECTOR) as at:
            normed = code.rounded(b.fmul(code.wide(code.sum(x, start, at)), scale))
            code.store_narrow(b.fmul(normed, code.wide(code.sum(weight, at))), code.sum(to, start, at))
    return code.done()


def silu(code: Code, x: Any) -> Any:
    """x / (1 + exp(-x)), of sixteen numbers."""
    b = code.b

    def all_(value: float) -> Any:
        return FLOATS([value] * LANES)

    def fma(x: Any, y: Any, z: Any) -> Any:
        return code.intrinsic("llvm.fma.v16f32", FLOATS, x, y, z)

    # exp(y) is 2 to a whole number times a series at what is left, which is at most half of log 2.
    y = code.intrinsic("llvm.minnum.v16f32", FLOATS, b.fneg(x), all_(87.0))
    y = code.intrinsic("llvm.maxnum.v16f32", FLOATS, y, all_(-87.0))
    whole = code.intrinsic("llvm.rint.v16f32", FLOATS, b.fmul(y, all_(1.4426950216293335)))
    left = fma(whole, all_(-1.428606765330187e-06), fma(whole, all_(-0.693145751953125), y))
    series = all_(1.0)
    for place in (6, 5, 4, 3, 2, 1):
        series = fma(series, b.fmul(left, all_(_single(1.0 / place))), all_(1.0))
    power = b.shl(b.add(b.fptosi(whole, INTS), INTS([127] * LANES)), INTS([23] * LANES))
    return b.fdiv(x, b.fadd(all_(1.0), b.fmul(series, b.bitcast(power, FLOATS))))


def _single(value: float) -> float:
    """The nearest float32: LLVM takes no other for one."""
    return float(struct.unpack("f", struct.pack("f", value))[0])
