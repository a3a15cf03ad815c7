"""Passes of few rows by machine code of our own, of weights in 8 and 4 bits: what the plain pass computes."""

from __future__ import annotations

import copy
import ctypes
import functools
import logging
import mmap
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cag_daemon.engine import narrow, widening
from cag_daemon.engine.cag import clean_up, generate_step, prefill
from cag_daemon.engine.drafts import Drafts
from cag_daemon.engine.kv_cache import InPlaceCache
from cag_daemon.engine.linear import pack_linears
from cag_daemon.engine.model import load_model
from cag_daemon.engine.packed_operators import GROUP, PACKINGS, int4_numbers
from cag_daemon.engine.passes import NARROW, answering, forward
from cag_daemon.engine.plan import Wanted
from cag_daemon.engine.quantize import KINDS, QuantizedLinear, quantize_module
from tests.engine.few import (
    IDS,
    SHAPE,
    assert_rows_have_the_bits_of_rows_one_by_one,
    here,
    near,
    only_here,
    rows_of,
    threads,
    ways,
)
from tests.models import random_mistral, save_model

ENGINE = settings.get_profile("engine")
CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


def quantized(kind: str, seed: int = 0, **changes: Any) -> Any:
    """A model in so many bits, its embeddings and norms in bfloat16."""
    model = random_mistral(seed, **({**SHAPE, "head_dim": 64, "vocab_size": 256} | changes)).bfloat16()
    quantize_module(model, kind, torch.bfloat16, CPU)
    return model


@functools.cache
def shared(kind: str) -> Any:
    model = quantized(kind)
    assert narrow.narrow(model)
    return model


# ── products ────────────────────────────────────────────────────────────────────────────────


@functools.cache
def product_alone(kind: str, dot: bool) -> tuple[Any, int, Any]:
    """The product as a function of its own, given what `multiplied` gives it."""
    from llvmlite import ir

    from cag_daemon.engine.compiling import Compiled, Threads
    from cag_daemon.engine.few_bits import WRITE
    from cag_daemon.engine.machine_code import Code

    module = ir.Module("product")
    product = WRITE[kind](module, dot=dot)
    code = Code(module, "run", 1, inside=False)
    given_ = [code.number(code.arguments[0], at) for at in range(12)]
    counters, weight, scales, scales_row, x, x_row, sums, rows, pairs, blocks, of_weights, of_scales = given_
    with code.pieces(counters, 0, blocks) as block:
        to = code.sum(sums, code.times(block, 16 * 1024))
        where = [code.sum(weight, code.times(block, of_weights)), code.sum(scales, code.times(block, of_scales))]
        code.b.call(product, [*where, scales_row, x, x_row, to, rows, pairs])
    code.done()
    compiled = Compiled(module)
    return compiled, compiled.address("run"), Threads()


def multiplied(x: torch.Tensor, layer: QuantizedLinear, dot: bool) -> torch.Tensor:
    """x [rows, in] times a weight, in float32."""
    from cag_daemon.engine.few_bits import BLOCKS, SCALES

    (rows, inputs), blocks, of = x.shape, layer.out_features // 64, BLOCKS[layer.kind]
    counters, sums = torch.zeros(64, dtype=torch.int64), torch.full((blocks, 16, 256), torch.nan)
    x = x.contiguous()
    assert layer.blocks_at is not None
    tensors = [counters.data_ptr(), *layer.blocks_at, SCALES * layer.out_features]
    call = (ctypes.c_int64 * 12)(
        *tensors, x.data_ptr(), 2 * inputs, sums.data_ptr(), rows, inputs // 2, blocks, inputs * of.weights, of.scales
    )
    _, address, runner = product_alone(layer.kind, dot)
    runner.run(address, ctypes.addressof(call))
    return sums[:, :rows, :64].transpose(0, 1).reshape(rows, -1)


def a_layer(kind: str, outputs: int, inputs: int, seed: int = 0) -> QuantizedLinear:
    weight = torch.randn((outputs, inputs), generator=torch.Generator().manual_seed(seed))
    return QuantizedLinear.of(weight, kind, torch.bfloat16, CPU)


def some_rows(rows: int, inputs: int, seed: int = 0) -> torch.Tensor:
    return torch.randn((rows, inputs), generator=torch.Generator().manual_seed(seed + 1000)).bfloat16()


def dequantized(layer: QuantizedLinear) -> torch.Tensor:
    """The weight that a layer stands for, in float64."""
    if layer.kind == "int8":
        return layer.weight.double() * layer.scales.double()[:, None]
    q = int4_numbers(layer.state_dict()["weight"]).double() - 8
    scale, zero = layer.scales.double().transpose(0, 1).repeat_interleave(GROUP, 1).unbind(-1)
    return q * scale + zero


@only_here
@pytest.mark.parametrize("dot", ways())
@pytest.mark.parametrize("kind", KINDS)
@settings(ENGINE)
@given(st.integers(1, 16), st.integers(1, 9), st.integers(1, 5), st.integers(0, 99))
def test_a_product_is_the_exact_one_within_the_error_of_float32(
    kind: str, dot: bool, rows: int, inputs: int, outputs: int, seed: int
) -> None:
    layer, x = a_layer(kind, 64 * outputs, 64 * inputs, seed), some_rows(rows, 64 * inputs, seed)
    weight = dequantized(layer)
    exact, most = x.double() @ weight.T, x.double().abs() @ weight.abs().T  # what rounding is relative to
    assert bool(((multiplied(x, layer, dot) - exact).abs() <= 1e-5 * most).all())


@only_here
@pytest.mark.parametrize("dot", ways())
@pytest.mark.parametrize("kind", KINDS)
@settings(ENGINE)
@given(st.integers(1, 16), st.integers(1, 3), st.sampled_from([(64, 64), (320, 1216), (192, 4864)]))
def test_the_bits_of_a_row_are_the_same_among_however_many_rows_and_threads(
    kind: str, dot: bool, rows: int, many: int, shape: tuple[int, int]
) -> None:
    layer, x = a_layer(kind, *shape, seed=rows), some_rows(16, shape[1], rows)
    with threads(2):
        wanted = multiplied(x, layer, dot)
    with threads(many):
        first = 16 - rows
        assert torch.equal(multiplied(x[first:], layer, dot), wanted[first:])


@pytest.mark.parametrize("what", ["as saved", "as AVX2 wants it", "of another size", "not in one piece"])
def test_a_weight_that_lies_otherwise_is_not_read(what: str) -> None:
    kind, outputs = ("int8", 120 if what == "of another size" else 128) if what[0] in "on" else ("int4", 128)
    layer = a_layer(kind, outputs, 64)
    if what == "as saved":
        layer._unpack()
    elif what == "as AVX2 wants it":
        layer._unpack()
        layer._packing = PACKINGS["avx2"]
    elif what == "not in one piece":
        layer.weight = layer.weight.t().contiguous().t()
    assert layer.blocks_at is None
    assert what[0] == "a" or a_layer(kind, 128, 64).blocks_at or not here()


@only_here
@pytest.mark.parametrize("kind", KINDS)
@settings(ENGINE)
@given(
    st.integers(17, 140), st.integers(1, 9), st.integers(2, 9), st.sampled_from([1 << 22, 1 << 14]), st.integers(0, 9)
)
def test_many_rows_are_multiplied_with_what_a_weight_stands_for(
    kind: str, rows: int, inputs: int, outputs: int, at_a_time: int, seed: int
) -> None:
    layer, x = a_layer(kind, 64 * outputs, 64 * inputs, seed), some_rows(rows, 64 * inputs, seed)
    exact = x.double() @ dequantized(layer).T
    widen = widening.widening(kind)
    assert widen is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(widening, "AT_A_TIME", at_a_time)
        ours = widen(x, layer.weight, layer.scales)
        assert torch.equal(layer(x), ours if ours is not None else layer(x))
    assert (layer(x).double() - exact).norm() <= 0.01 * exact.norm()
    # In one part: 64 outputs alone lie otherwise, and are left to torch.
    assert ours is not None or at_a_time == 1 << 14


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["no compiler", "another layout", "a wrong product"])
def test_where_weights_cannot_be_widened_torch_does_it(what: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = a_layer(kind, 192, 128)
    x = torch.randn(40, 128).bfloat16()
    exact = x.double() @ dequantized(layer).T
    for each in (widening.widening, widening._machine):
        each.cache_clear()
    if what == "no compiler":
        monkeypatch.setitem(sys.modules, "llvmlite", None)
        for room in ("compiling", "machine_code", "few_rows", "few_bits"):
            monkeypatch.delitem(sys.modules, f"cag_daemon.engine.{room}", raising=False)
    elif what == "another layout":
        monkeypatch.setattr(widening, "blocks_at", lambda *_: None)
    else:
        monkeypatch.setattr(widening, "multiply_packed", lambda x, room: torch.ones(len(x), 192).bfloat16())
    try:
        assert widening.widening(kind) is None
        assert (layer(x).double() - exact).norm() <= 0.01 * exact.norm()
    finally:
        for each in (widening.widening, widening._machine):
            each.cache_clear()


PAGE = 4096


def at_the_end_of_a_page(tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """The same, behind whose last byte nothing may be read; with what must be kept as long."""
    size = -(-tensor.nbytes // PAGE) * PAGE
    memory = mmap.mmap(-1, size + PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + size), PAGE, 0) == 0
    there = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=size - tensor.nbytes)
    return there.view(tensor.shape).copy_(tensor), memory


def read_to_the_end(kind: str) -> None:
    """Products with a weight, scales and rows that nothing follows; the process dies if more is read."""
    for outputs, inputs in ((64, 64), (192, 320)):
        layer = a_layer(kind, outputs, inputs)
        wanted = [layer(torch.ones(rows, inputs).bfloat16()) for rows in (1, 40)]
        kept = []
        for name in ("weight", "scales"):
            placed, memory = at_the_end_of_a_page(getattr(layer, name))
            setattr(layer, name, placed)
            kept.append(memory)
        for rows in range(1, 17):
            x, memory = at_the_end_of_a_page(torch.ones(rows, inputs).bfloat16())
            for dot in ways():
                assert near(multiplied(x, layer, dot)[:1], wanted[0].float())
            kept.append(memory)
        assert torch.equal(layer(torch.ones(40, inputs).bfloat16()), wanted[1])


@only_here
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_read_beyond_the_end(kind: str) -> None:
    code = f"import tests.engine.conftest, tests.engine.test_few_bits as own; own.read_to_the_end({kind!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# Halves of a float32's bits: around what is rounded down, half-way, up, and what is no number.
UPPER = st.integers(0, 0xFFFF) | st.sampled_from([0x7F7F, 0x7F80, 0x7FFF, 0xFFFF, 0x3F80, 0x3F81])
LOWER = st.integers(0, 0xFFFF) | st.sampled_from([0, 0x7FFF, 0x8000, 0x8001, 0xFFFF])


@only_here
@settings(ENGINE)
@given(st.lists(st.tuples(UPPER, LOWER), min_size=16, max_size=16), st.booleans())
def test_numbers_are_rounded_as_torch_does_it_on_older_processors_too(
    numbers: list[tuple[int, int]], older: bool
) -> None:
    value = torch.tensor([upper << 16 | lower for upper, lower in numbers]).to(torch.int32).view(torch.float32)
    found = torch.empty(16, dtype=torch.bfloat16)
    _, address, runner = rounding(older)
    runner.run(address, ctypes.addressof((ctypes.c_int64 * 2)(value.data_ptr(), found.data_ptr())))
    wanted = value.bfloat16()
    small = value.abs() < 2.0**-126  # which the instruction takes for 0
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found[~small & ~wanted.isnan()], wanted[~small & ~wanted.isnan()])


@functools.cache
def rounding(older: bool) -> tuple[Any, int, Any]:
    from llvmlite import ir

    from cag_daemon.engine import compiling, machine_code

    with pytest.MonkeyPatch.context() as patch:
        if older:
            patch.setattr(machine_code, "features", lambda: compiling.NEEDED)
        module = ir.Module("rounding")
        code = machine_code.Code(module, "round", 1, inside=False)
        value = code.load(machine_code.FLOATS, code.number(code.arguments[0], 0))
        code.store_narrow(value, code.number(code.arguments[0], 1))
        code.done()
        threads_ = compiling.Threads()
    compiled = compiling.Compiled(module)
    return compiled, compiled.address("round"), threads_


@only_here
@pytest.mark.parametrize("what", ["none none", "int8 int8", "int4 int8", "widen int4", "widen int8"])
def test_on_older_processors_nothing_is_called_that_is_not_there(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where LLVM has no instruction it calls a function, and the process dies if there is none of the name."""
    from llvmlite import binding, ir

    from cag_daemon.engine import compiling, machine_code
    from cag_daemon.engine.layer_code import layer_module
    from cag_daemon.engine.widening_code import WRITE_WIDENING

    monkeypatch.setattr(machine_code, "features", lambda: compiling.NEEDED)
    one, other = what.split()
    if one == "widen":
        module = ir.Module("widening")
        WRITE_WIDENING[other](module).linkage = ""
    else:
        module = layer_module(dot=False, layers=one, head=other)
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(cpu="skylake-avx512", opt=2)
    assembly = machine.emit_assembly(binding.parse_assembly(str(module)))
    assert not re.findall(r"__\w+", assembly)
    assert "zmm" in assembly


# ── passes ──────────────────────────────────────────────────────────────────────────────────


@only_here
@pytest.mark.parametrize("kind", KINDS)
@settings(ENGINE)
@given(
    shape=st.sampled_from(
        [
            {},
            {"head_dim": 128, "num_key_value_heads": 4},
            {"num_attention_heads": 6, "num_key_value_heads": 1, "hidden_size": 320},
            {"vocab_size": 200},
        ]
    ),
    start=st.integers(1, 200),
    rows=st.integers(1, 16),
    seed=st.integers(0, 3),
)
def test_a_narrow_pass_is_near_the_plain_one(
    kind: str, shape: dict[str, Any], start: int, rows: int, seed: int
) -> None:
    model = quantized(kind, seed, **shape)
    cache = InPlaceCache(model.config)
    prefill(model, IDS[:, :start], cache, chunk_size=64)
    plain = rows_of(model, cache, start, rows, rows, forward)
    assert narrow.narrow(model)
    ours = rows_of(model, cache, start, rows, rows, answering)
    assert all(near(*both, most=0.03) for both in zip(ours, plain, strict=True))


@only_here
@pytest.mark.parametrize("kind", KINDS)
@settings(ENGINE)
@given(start=st.integers(1, 200), rows=st.integers(1, 16), more=st.integers(0, 15), many=st.integers(1, 3))
def test_rows_have_the_bits_of_rows_one_by_one(kind: str, start: int, rows: int, more: int, many: int) -> None:
    assert_rows_have_the_bits_of_rows_one_by_one(shared(kind), start, rows, more, many)


@only_here
@pytest.mark.parametrize("kind", KINDS)
@settings(ENGINE)
@given(st.integers(20, 250), st.integers(1, 20), st.integers(0, 9))
def test_with_drafts_an_answer_is_the_one_without(kind: str, length: int, question: int, seed: int) -> None:
    model = shared(kind)
    few = torch.randint(3, 9, (1, length + question), generator=torch.Generator().manual_seed(seed))
    cache, answers = InPlaceCache(model.config), []
    prefill(model, few[:, :length], cache, chunk_size=64)
    for drafted in (False, True):
        drafts = Drafts(few[0, :length].tolist(), few[0, length:].tolist(), (), 20) if drafted else None
        steps = generate_step(
            model, few[:, length:], cache, max_new_tokens=20, chunk_size=64, widths=(1, 2, 4, 8, 16), drafts=drafts
        )
        answers.append(list(steps))
        clean_up(cache, length)
    assert answers[1] == answers[0]


@only_here
@pytest.mark.parametrize("what", ["of several kinds", "saved", "somebody else's"])
def test_other_weights_go_the_plain_way(what: str, caplog: pytest.LogCaptureFixture) -> None:
    model = quantized("int4")
    layer = model.get_decoder().layers[1].mlp
    if what == "of several kinds":
        layer.up_proj = a_layer("int8", 192, 128)
    elif what == "saved":
        layer.up_proj._unpack()
    else:  # those of its neighbour: what is computed is wrong, and noticed
        layer.up_proj.scales = layer.gate_proj.scales + 1
        layer.up_proj.__class__ = type("Wrong", (QuantizedLinear,), {"blocks_at": layer.gate_proj.blocks_at})
    with caplog.at_level(logging.INFO):
        assert not narrow.narrow(model)
    assert what != "of several kinds" or "not all of one kind" in caplog.text
    assert not hasattr(model.get_decoder(), NARROW)
    answering(model, IDS[:, :5], InPlaceCache(model.config), None)


@only_here
@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_were_moved_are_not_read_where_they_were(kind: str) -> None:
    model, ids = quantized(kind), IDS[:, :5]
    assert narrow.narrow(model)
    cache = InPlaceCache(model.config)
    before = answering(model, ids, cache, None).logits.clone()
    clean_up(cache, 0)
    passes = getattr(model.get_decoder(), NARROW)
    assert passes.takes(model, ids, cache)
    up = model.get_decoder().layers[1].mlp.up_proj
    up.weight = up.weight.clone()
    assert not passes.takes(model, ids, cache)
    assert near(answering(model, ids, cache, None).logits, before, most=0.03)


@only_here
def test_a_copy_has_machine_code_too() -> None:
    model = copy.deepcopy(quantized("int4"))
    assert narrow.narrow(model)


@only_here
@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_may_come_with_or_without_inference_mode(kind: str) -> None:
    widening.widening.cache_clear()
    with torch.inference_mode():
        model = quantized(kind)
        assert narrow.narrow(model)
        forward(model, IDS[:, :40], InPlaceCache(model.config), None)
    forward(model, IDS[:, :40], InPlaceCache(model.config), None)
    answering(model, IDS[:, :5], InPlaceCache(model.config), None)


@only_here
def test_no_part_is_so_small_that_it_would_lie_otherwise() -> None:
    for outputs, inputs in ((5120, 32768), (4096, 14336), (128, 1 << 20), (64, 64), (14336, 4096)):
        parts = widening._parts(outputs, inputs)
        assert sum(parts) == outputs
        assert max(parts) - min(parts) <= 64
        assert min(parts) >= min(outputs, 192)
        assert max(parts) * inputs < 2 * max(widening.AT_A_TIME, 192 * inputs)


@only_here
@pytest.mark.parametrize("kind", KINDS)
def test_it_says_what_its_weights_are(kind: str) -> None:
    """Other widths may agree: what the self-test found for one kind is not believed of another."""
    plain = random_mistral(0, **SHAPE, head_dim=64, vocab_size=256).bfloat16()
    pack_linears(plain)
    assert narrow.narrow(plain)
    found = {getattr(each.get_decoder(), NARROW).kind for each in (plain, shared("int4"), shared("int8"))}
    assert len(found) == 3


@only_here
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_quantised_while_it_is_loaded_gets_it(kind: str, tmp_path: Path) -> None:
    sizes = SHAPE | {"head_dim": 64, "num_hidden_layers": 2, "tie_word_embeddings": False}
    folder = save_model(tmp_path / "model", torch.bfloat16, **sizes)
    keys = set()
    for quantization in (kind, kind, "none"):  # the second time from what was kept
        wanted = Wanted(str(folder), "cpu", quantization=quantization, cache_directory=str(tmp_path / "cache"))
        loaded = load_model(wanted)
        passes = getattr(loaded.model.get_decoder(), NARROW)
        assert passes._kinds == (quantization, "none" if quantization == "none" else "int8")
        keys.add(loaded.key)
    assert len(keys) == 2


def test_where_weights_are_widened_otherwise_what_was_kept_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model(tmp_path / "model", torch.bfloat16, **SHAPE, head_dim=64)
    wanted = Wanted(str(folder), "cpu", quantization="int8", cache_directory=str(tmp_path / "cache"))
    before = load_model(wanted).key
    monkeypatch.setattr(widening, "widening", lambda kind: None)
    assert (load_model(wanted).key == before) == (not here())
