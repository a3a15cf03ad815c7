"""The little that makes LLVM's intermediate code readable: loops, vectors of 16 numbers, shared pieces of work.

It is written for the processor that it is written on, see `compiling`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from cag_daemon.engine.compiling import features

LANES = 16  # numbers in a vector
LINE = 64  # bytes that are read and written together


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite does not know."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


I32, I64, F32, POINTER = ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.PointerType()
FLOATS, INTS, HALVES = (ir.VectorType(each, LANES) for each in (F32, I32, _BFloat()))
PAIRS = ir.VectorType(_BFloat(), 2 * LANES)
SHORTS = ir.VectorType(ir.IntType(16), LANES)


class Code:
    """A function while it is written. Numbers are i64, addresses too; vectors have 16 numbers.

    Args:
        module: the function's.
        name: by which it is found and called.
        arguments: how many, each an i64.
        inside: only other functions of the module call it.
    """

    def __init__(self, module: ir.Module, name: str, arguments: int, *, inside: bool = True) -> None:
        self.function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * arguments), name)
        if inside:
            self.function.linkage = "internal"
            self.function.attributes.add("noinline")
        self.arguments = list(self.function.args)
        self.b = ir.IRBuilder(self.function.append_basic_block())
        self.kept = self.b.alloca(FLOATS)  # what a loop makes of a vector

    def done(self) -> ir.Function:
        """The function, which ends here."""
        self.b.ret_void()
        return self.function

    def sum(self, first: Any, *rest: Any) -> Any:
        """A sum of numbers, written out or computed."""
        for each in rest:
            first = self.b.add(_number(first), _number(each))
        return first

    def times(self, first: Any, *rest: Any) -> Any:
        """A product of numbers."""
        for each in rest:
            first = self.b.mul(_number(first), _number(each))
        return first

    @contextmanager
    def loop(self, first: Any, end: Any, step: int = 1) -> Iterator[Any]:
        """For each number from ``first`` on that is less than ``end``."""
        b, before = self.b, self.b.block
        head, body, after = (b.append_basic_block() for _ in range(3))
        b.branch(head)
        b.position_at_end(head)
        at = b.phi(I64)
        at.add_incoming(_number(first), before)
        b.cbranch(b.icmp_signed("<", at, _number(end)), body, after)
        b.position_at_end(body)
        yield at
        at.add_incoming(self.sum(at, step), b.block)
        b.branch(head)
        b.position_at_end(after)

    @contextmanager
    def adding(self, sums: list[list[Any]], end: Any, step: int = 1) -> Iterator[tuple[Any, list[list[Any]]]]:
        """For each number from 0 on that is less than ``end``, at least once, with vectors that stay in registers.

        Args:
            sums: rows of vectors, as they are before.

        Yields:
            The number, and those rows, to be changed in place; behind the loop they are what has become of them.
        """
        b, before = self.b, self.b.block
        body, after = (b.append_basic_block() for _ in range(2))
        b.branch(body)
        b.position_at_end(body)
        at = b.phi(I64)
        at.add_incoming(I64(0), before)
        held = [[b.phi(each.type) for each in row] for row in sums]
        now = [list(row) for row in held]
        yield at, now
        for phis, firsts, lasts in zip(held, sums, now, strict=True):
            for phi, first, last in zip(phis, firsts, lasts, strict=True):
                phi.add_incoming(first, before)
                phi.add_incoming(last, b.block)
        following = self.sum(at, step)
        at.add_incoming(following, b.block)
        b.cbranch(b.icmp_signed("<", following, _number(end)), body, after)
        b.position_at_end(after)

    def load(self, kind: ir.Type, address: Any) -> Any:
        """What stands at an address."""
        # No larger alignment than there is: a short number said to be on a multiple of 4 is read with what follows it.
        align = min(4, kind.width // 8) if isinstance(kind, ir.IntType) else 4
        return self.b.load(self.b.inttoptr(address, POINTER), align=align, typ=kind)

    def store(self, value: Any, address: Any) -> None:
        """Write a value to an address."""
        self.b.store(value, self.b.inttoptr(address, POINTER), align=4)

    def number(self, address: Any, place: int = 0) -> Any:
        """The i64 of a list of them."""
        return self.load(I64, self.sum(address, 8 * place))

    def intrinsic(self, name: str, result: ir.Type, *values: Any) -> Any:
        """LLVM's own function of that name."""
        kind = ir.FunctionType(result, [each.type for each in values])
        known = self.b.module.globals.get(name) or ir.Function(self.b.module, kind, name)
        return self.b.call(known, values)

    def intrinsic_like(self, name: str, *values: Any) -> Any:
        """LLVM's own function for vectors like these."""
        return self.intrinsic(f"{name}.v{values[0].type.count}f32", values[0].type, *values)

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        """x · y + z of sixteen numbers, rounded once."""
        return self.intrinsic("llvm.fma.v16f32", FLOATS, x, y, z)

    def prefetch(self, address: Any) -> None:
        """Send for a line of memory that will be read once."""
        self.intrinsic("llvm.prefetch.p0", ir.VoidType(), self.b.inttoptr(address, POINTER), I32(0), I32(2), I32(1))

    def least(self, one: Any, other: Any) -> Any:
        """The lesser of two numbers."""
        return self.b.select(self.b.icmp_signed("<", _number(one), _number(other)), _number(one), _number(other))

    def all(self, value: float) -> Any:
        """A vector of one number that is known now."""
        return FLOATS([_single(value)] * LANES)

    def spread(self, value: Any) -> Any:
        """A vector of one number."""
        empty = ir.VectorType(value.type, LANES)(ir.Undefined)
        return self.b.shuffle_vector(self.b.insert_element(empty, value, I32(0)), empty, INTS([0] * LANES))

    def wide(self, address: Any) -> Any:
        """Sixteen bfloat16 numbers, as float32: each is the upper half of one."""
        b = self.b
        return b.bitcast(b.shl(b.zext(self.load(SHORTS, address), INTS), INTS([16] * LANES)), FLOATS)

    def halves(self, value: Any) -> Any:
        """Sixteen float32 numbers, rounded to bfloat16, as int16s."""
        b = self.b
        if "avx512bf16" in features():
            return b.bitcast(b.fptrunc(value, HALVES), SHORTS)
        # LLVM would call a function for each number, which there need not be: to the nearest, half-way to the even one.
        bits, sixteen = b.bitcast(value, INTS), INTS([16] * LANES)
        odd = b.and_(b.lshr(bits, sixteen), INTS([1] * LANES))
        rounded = b.lshr(b.add(b.add(bits, INTS([0x7FFF] * LANES)), odd), sixteen)
        none = b.fcmp_unordered("uno", value, value)
        return b.trunc(b.select(none, INTS([0x7FC0] * LANES), rounded), SHORTS)

    def rounded(self, value: Any) -> Any:
        """To bfloat16 and back, as where torch keeps what it has computed."""
        b = self.b
        return b.bitcast(b.shl(b.zext(self.halves(value), INTS), INTS([16] * LANES)), FLOATS)

    def store_narrow(self, value: Any, address: Any) -> None:
        """Write sixteen float32 numbers as bfloat16."""
        self.store(self.halves(value), address)

    def fold(self, value: Any, both: Callable[[Any, Any], Any]) -> Any:
        """One number of a vector's sixteen, always in the same order."""
        width = LANES
        while width > 1:
            width //= 2
            kind = ir.VectorType(I32, width)
            halves = (kind(list(range(each, each + width))) for each in (0, width))
            value = both(*[self.b.shuffle_vector(value, value, each) for each in halves])
        return self.b.extract_element(value, I32(0))

    def add_up(self, value: Any) -> Any:
        """The sum of a vector."""
        return self.fold(value, self.b.fadd)

    def take(self, counter: Any) -> Any:
        """The number that a counter has, which then has the next."""
        return self.b.atomic_rmw("add", self.b.inttoptr(counter, POINTER), I64(1), "acq_rel")

    @contextmanager
    def pieces(self, counters: Any, number: int, many: Any) -> Iterator[Any]:
        """For each piece of a work that threads share, until all pieces are done, by whomever.

        Args:
            counters: zeros, two lines of memory for each work.
            number: of the work.
            many: pieces.
        """
        b = self.b
        taken, finished = (self.sum(counters, (2 * number + each) * LINE) for each in (0, 1))
        head, body, after, look, again, end = (b.append_basic_block() for _ in range(6))
        b.branch(head)
        b.position_at_end(head)
        piece = self.take(taken)
        b.cbranch(b.icmp_signed("<", piece, _number(many)), body, after)
        b.position_at_end(body)
        yield piece
        self.take(finished)
        b.branch(head)
        # Others may still be at theirs. No wait is longer than a piece, but where their core has other things to do.
        b.position_at_end(after)
        b.branch(look)
        b.position_at_end(look)
        tried = b.phi(I64)
        tried.add_incoming(I64(0), after)
        count = b.load_atomic(b.inttoptr(finished, POINTER), "acquire", 8, typ=I64)
        b.cbranch(b.icmp_signed(">=", count, _number(many)), end, again)
        b.position_at_end(again)
        with b.if_then(b.icmp_signed(">", tried, I64(PATIENCE))):
            b.call(b.module.globals.get("sched_yield") or _yield(b.module), [])
        tried.add_incoming(self.sum(tried, 1), b.block)
        b.branch(look)
        b.position_at_end(end)


def exponential(code: Code, x: Any) -> Any:
    """exp(x) of sixteen numbers, x within ± 87: beyond that it is what it is there."""
    b, fma = code.b, code.fma

    # It is 2 to a whole number, times a series at what is left: at most half of log 2.
    x = code.intrinsic("llvm.maxnum.v16f32", FLOATS, x, code.all(-87.0))
    x = code.intrinsic("llvm.minnum.v16f32", FLOATS, x, code.all(87.0))
    whole = code.intrinsic("llvm.rint.v16f32", FLOATS, b.fmul(x, code.all(1.4426950216293335)))
    left = fma(whole, code.all(-1.428606765330187e-06), fma(whole, code.all(-0.693145751953125), x))
    series = code.all(1.0)
    for place in (6, 5, 4, 3, 2, 1):
        series = fma(series, b.fmul(left, code.all(1.0 / place)), code.all(1.0))
    power = b.shl(b.add(b.fptosi(whole, INTS), INTS([127] * LANES)), INTS([23] * LANES))
    return b.fmul(series, b.bitcast(power, FLOATS))


def _single(value: float) -> float:
    """The nearest float32: LLVM takes no other for one."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


PATIENCE = 2000  # looks, before others are let onto the core


def _number(value: Any) -> Any:
    return I64(value) if isinstance(value, int) else value


def _yield(module: ir.Module) -> ir.Function:
    return ir.Function(module, ir.FunctionType(I32, []), "sched_yield")
