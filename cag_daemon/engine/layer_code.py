"""A decoder layer of Mistral for few rows, as machine code.

A layer is one call: torch's threads go through its works together, and share the pieces of each, which are blocks of
outputs or spans of keys. All that is small is done where its numbers are still at hand: norms by each thread for
itself, residuals, rotations and SiLU on the sums of a product. Numbers are rounded to bfloat16 wherever torch rounds
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from cag_daemon.engine.attention_code import SPAN, part_bytes, part_of, span_bytes, write_span, write_whole
from cag_daemon.engine.few_bits import BLOCKS, SCALES, WRITE
from cag_daemon.engine.few_rows import BLOCK, MOST_ROWS, PER_PAIR, SUMS, write_product
from cag_daemon.engine.layer_call import MATRICES, PLAIN, Call, Weights
from cag_daemon.engine.machine_code import F32, FLOATS, I32, I64, LANES, LINE, Code, exponential
from cag_daemon.engine.tiles import write_tiled_product

HALF = 2  # bytes of a bfloat16
VECTOR = LANES * HALF  # bytes
OF_SUMS = MOST_ROWS * SUMS  # bytes of a thread's sums; its normed rows follow
COUNTERS = 15  # lines: two for each work, see `Code.pieces`, and one for the threads


@dataclass(frozen=True)
class Matrix:
    """A weight, while code is written that multiplies with it: its address, its scales', how many outputs it has."""

    weight: Any
    scales: Any
    outputs: Any


def layer_module(*, dot: bool, tiles: bool = False, layers: str = PLAIN, head: str = PLAIN) -> ir.Module:
    """The module with the function ``layer``, whose argument is the address of a `Call`.

    Args:
        dot: the processor multiplies and adds pairs of bfloat16 by itself, and does it quickly.
        tiles: it has tiles, too: what is in bfloat16 is multiplied by those.
        layers: what the matrices of layers are: `PLAIN`, or a kind of `few_bits.WRITE`.
        head: what the output layer is.
    """
    module = ir.Module("layer")
    products = {PLAIN: write_tiled_product(module) if tiles else write_product(module, dot=dot)}
    products |= {kind: WRITE[kind](module, dot=dot) for kind in {layers, head} - {PLAIN}}
    of_caches = write_span(module, products[PLAIN]), write_whole(module)
    _Layer(module, products, (layers, head), _norm(module), *of_caches).all()
    return module


def own_bytes(hidden_size: int, head_size: int, group: int) -> int:
    """What a thread needs for itself; ``group``: query heads that share keys and values."""
    return max(OF_SUMS + MOST_ROWS * hidden_size * HALF, span_bytes(head_size, group * MOST_ROWS)) + 4096


def parts_bytes(tokens: int, heads: int, head_size: int) -> int:
    """What all parts of attention take, behind so many tokens in all."""
    return -(-tokens // SPAN) * heads * MOST_ROWS * part_bytes(head_size)


class _Layer:
    """The function ``layer``, while it is written."""

    def __init__(
        self, module: ir.Module, products: dict[str, Any], kinds: tuple[str, str], norm: Any, span: Any, whole: Any
    ) -> None:
        self.code = code = Code(module, "layer", 1, inside=False)
        self.b, self.products, self.norm, self.span, self.whole = code.b, products, norm, span, whole
        self.of_layers, self.of_head = kinds
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

        def wanted(place: Call) -> Any:
            return b.if_then(b.icmp_signed("!=", given[place], I64(0)))

        with wanted(Call.WEIGHTS):
            self.weights = {each: self.code.number(given[Call.WEIGHTS], each) for each in Weights}
            hidden, middle, size = (given[each] for each in (Call.HIDDEN_SIZE, Call.INTERMEDIATE_SIZE, Call.HEAD_SIZE))
            wide, narrow = (self.code.times(given[each], size) for each in (Call.HEADS, Call.SHARED_HEADS))
            outputs = (wide, narrow, narrow, hidden, middle, middle, hidden)
            self.matrices = {
                each: Matrix(self.weights[each], self.code.number(given[Call.WEIGHTS], each + MATRICES), of)
                for each, of in zip(Weights, outputs, strict=False)
            }
            self.keys_and_values()
            with wanted(Call.NETWORK):
                self.attention()
                self.network()
        with wanted(Call.OUTPUT):
            self.logits()
        self.code.done()

    def multiply(self, matrix: Matrix, block: Any, x: Any, inputs: Any, to: int = 0, head_rows: Any = None) -> None:
        """A block's outputs of all rows, or of so many of the output layer, into the sums from ``to`` on."""
        code, b = self.code, self.b
        pairs, sums, x_row = b.ashr(inputs, I64(1)), code.sum(self.sums, 4 * to), code.times(inputs, HALF)
        kind, rows = (self.of_layers, self.given[Call.ROWS]) if head_rows is None else (self.of_head, head_rows)
        if kind == PLAIN:
            where = code.sum(matrix.weight, code.times(block, pairs, PER_PAIR))
            b.call(self.products[kind], [where, x, x_row, sums, rows, pairs])
            return
        of = BLOCKS[kind]
        where = code.sum(matrix.weight, code.times(block, inputs, of.weights))
        scales, scales_row = code.sum(matrix.scales, code.times(block, of.scales)), code.times(matrix.outputs, SCALES)
        b.call(self.products[kind], [where, scales, scales_row, x, x_row, sums, rows, pairs])

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

    def attention(self) -> None:
        """Each head's part of each span, and the parts together."""
        code, given, b = self.code, self.given, self.b
        rows, size, heads, shared = (given[each] for each in (Call.ROWS, Call.HEAD_SIZE, Call.HEADS, Call.SHARED_HEADS))
        row_bytes, group, start = code.times(size, HALF), b.sdiv(heads, shared), given[Call.START]
        spans = b.sdiv(code.sum(start, rows, SPAN - 1), I64(SPAN))
        part = part_of(code, size)
        with code.pieces(self.works, 4, code.times(shared, spans)) as piece:
            head, span = b.sdiv(piece, spans), b.srem(piece, spans)
            of_group = code.times(head, group, rows)
            offset = code.sum(code.times(head, given[Call.HEAD_BYTES]), code.times(span, row_bytes, SPAN))
            parts = code.sum(given[Call.PARTS], code.times(code.sum(code.times(of_group, spans), span), part))
            query = code.sum(given[Call.QUERIES], code.times(of_group, row_bytes))
            keys, values = (code.sum(given[each], offset) for each in (Call.KEYS, Call.VALUES))
            where = [query, keys, values, given[Call.SCALES], parts, self.sums]
            b.call(self.span, [*where, rows, group, size, code.times(span, SPAN), start, spans])
        with code.pieces(self.works, 5, code.times(heads, rows)) as piece:
            head, row = b.sdiv(piece, rows), b.srem(piece, rows)
            to = code.sum(given[Call.ATTENDED], code.times(code.sum(code.times(row, heads), head), row_bytes))
            parts = code.sum(given[Call.PARTS], code.times(piece, spans, part))
            # A row knows only the spans that it sees, not those that rows behind it do.
            b.call(self.whole, [parts, to, size, code.sum(b.sdiv(code.sum(start, row), I64(SPAN)), 1)])

    def network(self) -> None:
        """The output product of attention, and the feed-forward network."""
        code, given, weights = self.code, self.given, self.weights
        blocks = self.b.sdiv(given[Call.HIDDEN_SIZE], I64(BLOCK))
        middle = given[Call.INTERMEDIATE_SIZE]
        with code.pieces(self.works, 0, blocks) as block:
            attended = code.times(given[Call.HEADS], given[Call.HEAD_SIZE])
            self.multiply(self.matrices[Weights.OUTPUT], block, given[Call.ATTENDED], attended)
            self.add_to_hidden(block)
        self.normalise(weights[Weights.NORM])
        with code.pieces(self.works, 1, self.b.sdiv(middle, I64(BLOCK))) as block:
            for weight, to in ((Weights.GATE, 0), (Weights.UP, BLOCK)):
                self.multiply(self.matrices[weight], block, self.normed, given[Call.HIDDEN_SIZE], to)
            with code.loop(0, given[Call.ROWS]) as row:
                to_row = code.sum(given[Call.MIDDLE], code.times(row, middle, HALF), code.times(block, BLOCK * HALF))
                for at in range(0, BLOCK, LANES):
                    gated = code.rounded(silu(code, self.summed(row, at)))
                    code.store_narrow(self.b.fmul(gated, self.summed(row, BLOCK + at)), code.sum(to_row, at * HALF))
        with code.pieces(self.works, 2, blocks) as block:
            self.multiply(self.matrices[Weights.DOWN], block, given[Call.MIDDLE], middle)
            self.add_to_hidden(block)

    def keys_and_values(self) -> None:
        """Queries, keys and values, a head at a time; the first two rotated."""
        code, given, b, weights = self.code, self.given, self.b, self.weights
        heads, shared, size = given[Call.HEADS], given[Call.SHARED_HEADS], given[Call.HEAD_SIZE]
        head_row = code.times(size, HALF)
        self.normalise(weights[Weights.INPUT_NORM])
        with code.pieces(self.works, 3, code.sum(heads, shared, shared)) as piece:
            is_query = b.icmp_signed("<", piece, heads)
            turned = b.icmp_signed("<", piece, code.sum(heads, shared))

            def one_of(query: Any, key: Any, value: Any) -> Any:
                return b.select(is_query, query, b.select(turned, key, value))

            head = b.sub(piece, one_of(I64(0), heads, code.sum(heads, shared)))
            three = [self.matrices[each] for each in (Weights.QUERY, Weights.KEY, Weights.VALUE)]
            of = [[getattr(each, name) for each in three] for name in ("weight", "scales", "outputs")]
            matrix = Matrix(*(one_of(*each) for each in of))
            of_head = b.select(is_query, code.times(given[Call.ROWS], head_row), given[Call.HEAD_BYTES])
            start = one_of(given[Call.QUERIES], given[Call.KEYS], given[Call.VALUES])
            skipped = b.select(is_query, I64(0), code.times(given[Call.START], head_row))
            to = code.sum(start, skipped, code.times(head, of_head))
            blocks = b.sdiv(size, I64(BLOCK))
            sums = self.sums
            with code.loop(0, blocks) as block:
                self.sums = code.sum(sums, code.times(block, BLOCK * 4))
                self.multiply(matrix, code.sum(code.times(head, blocks), block), self.normed, given[Call.HIDDEN_SIZE])
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
        with code.pieces(self.works, 6, blocks) as block:
            matrix = Matrix(given[Call.OUTPUT], given[Call.OUTPUT_SCALES], code.times(blocks, BLOCK))
            self.multiply(matrix, block, self.normed, given[Call.HIDDEN_SIZE], head_rows=rows)
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
    return code.b.fdiv(x, code.b.fadd(code.all(1.0), exponential(code, code.b.fneg(x))))
