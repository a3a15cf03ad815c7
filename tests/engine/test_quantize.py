"""Weights in 8 and 4 bits: close to what they were, the same bits each time, the same saved form everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cag_daemon.engine import packed_operators, quantize
from cag_daemon.engine.packed_operators import PACKINGS, int4_blocks, int4_numbers, int4_packing, int8_product
from cag_daemon.engine.quantize import KINDS, QuantizedLinear, quantize_module, quantized_bytes
from tests.models import random_mistral

CPU = torch.device("cpu")
SHAPES = [(32, 32), (48, 32), (320, 320), (3, 5), (96, 100), (1, 64), (192, 1024)]
ALLOWED = {"int8": 0.02, "int4": 0.16}  # of a product's norm


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer(out_features: int, in_features: int, kind: str) -> QuantizedLinear:
    return QuantizedLinear.of(normal(out_features, in_features) * 0.02, kind, torch.float32, CPU)


def off(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.float() - theirs).norm() / theirs.norm())


@pytest.fixture
def without_operators(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a torch that has none of them."""

    def missing(*_: object) -> torch.Tensor:
        raise AttributeError("no such operator")

    for name in ("_weight_int8pack_mm", "_weight_int4pack_mm_for_cpu"):
        monkeypatch.setattr(torch.ops.aten, name, missing, raising=False)
    forget()
    yield
    forget()


def forget() -> None:
    int4_packing.cache_clear()
    int8_product.cache_clear()


@pytest.mark.parametrize("rows", [1, 4, 16, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_is_close_to_the_full_ones(shape: tuple[int, int], kind: str, dtype: torch.dtype, rows: int) -> None:
    x = normal(2, rows, shape[1], seed=1).to(dtype)[:1]
    y = layer(*shape, kind)(x)
    assert y.dtype == dtype
    assert y.shape == (1, rows, shape[0])
    assert y.isfinite().all()
    full = x.float() @ (normal(*shape) * 0.02).t()
    assert (y.float() - full).norm() <= ALLOWED[kind] * normal(*shape).norm() * 0.02 * x.float().norm() / shape[
        1
    ] ** 0.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(320, 320), (96, 100), (192, 1024)])
def test_few_rows_and_many_rows_are_multiplied_with_the_same_weights(shape: tuple[int, int], kind: str) -> None:
    module, x = layer(*shape, kind), normal(40, shape[1], seed=1)
    assert off(module(x[:3]), module(x)[:3]) < 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("without_operators")
def test_where_an_operator_is_missing_the_plain_way_answers(shape: tuple[int, int], kind: str) -> None:
    assert int4_packing(CPU, torch.float32) is None
    assert int8_product(CPU, torch.float32) is None
    x = normal(1, shape[1], seed=1)
    plain = layer(*shape, kind)
    wide = plain(x)
    assert torch.equal(wide, plain(x))
    forget()
    assert (plain(x) - wide).norm() == 0  # asked again, still without


@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_way_gives_the_operators_numbers(kind: str, request: pytest.FixtureRequest) -> None:
    x = normal(4, 320, seed=1)
    ours = layer(320, 320, kind)(x)
    request.getfixturevalue("without_operators")
    assert off(layer(320, 320, kind)(x), ours) < 0.01


def test_an_operator_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    forget()
    right = torch.ops.aten._weight_int8pack_mm
    monkeypatch.setattr(torch.ops.aten, "_weight_int8pack_mm", lambda *args: right(*args) * 1.1, raising=False)
    assert int8_product(CPU, torch.float32) is None
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize("name", ["avx2", "avx512"])
def test_a_packing_can_be_undone(name: str) -> None:
    packing = PACKINGS[name]
    blocks = int4_blocks(torch.randint(0, 16, (192, 128)).to(torch.uint8))
    packed = packing.pack(blocks)
    assert torch.equal(packing.unpack(packed), blocks)
    assert torch.equal(packing.unpack(packed[len(packed) // 3 : 2 * len(packed) // 3]), blocks[2:4])


def test_the_packing_of_avx512_is_as_torch_describes_it() -> None:
    """64 outputs to a row: output i in the lower half of byte i, output i + 32 in its upper half."""
    q = torch.randint(0, 16, (128, 64)).to(torch.uint8)
    halves = q.view(2, 2, 32, 64)
    expected = (halves[:, 0] | halves[:, 1] << 4).transpose(1, 2)
    assert torch.equal(PACKINGS["avx512"].pack(int4_blocks(q)), expected)


def test_the_packing_of_cuda_is_read_as_torch_writes_it() -> None:
    """Emulated from aten/src/ATen/native/cuda/int4mm.cu: what each thread puts into its numbers."""
    q = torch.randint(0, 16, (16, 128), dtype=torch.int64)
    pairs = q[:, ::2] << 4 | q[:, 1::2]
    packed = torch.zeros(2, 2, 32, 2, dtype=torch.int64)
    for tile in range(2):
        for step in range(2):
            for thread in range(32):
                for inner in (0, 2):
                    base = (step * 4 + inner) * 8 + thread % 4
                    v = [int(pairs[tile * 8 + thread // 4, base + 4 * each]) for each in range(4)]
                    high = sum((each >> 4) << 4 * place for place, each in enumerate(v))
                    low = sum((each & 15) << 4 * place for place, each in enumerate(v))
                    packed[tile, step, thread, inner // 2] = high | low << 16
    signed = torch.where(packed >= 1 << 31, packed - (1 << 32), packed).to(torch.int32)
    whole = torch.cat((signed, signed))  # the saved form has blocks of 32 outputs
    assert torch.equal(int4_numbers(PACKINGS["cuda"].unpack(whole)), torch.cat((q, q)).to(torch.uint8))


def test_the_packing_of_mps_is_read_as_torch_writes_it() -> None:
    """From its Quantized.metal: in order, the first of two inputs in the lower half."""
    q = torch.randint(0, 16, (32, 64)).to(torch.uint8)
    packed = (q[:, ::2] | q[:, 1::2] << 4).contiguous().view(torch.int32).view(4, 1, 32, 2)
    assert torch.equal(int4_numbers(PACKINGS["mps"].unpack(packed)), q)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_bytes_are_known_beforehand(shape: tuple[int, int], kind: str) -> None:
    assert quantized_bytes(*shape, kind) == sum(each.nbytes for each in layer(*shape, kind).buffers())


def test_a_large_layer_takes_a_half_and_a_third_of_sixteen_bits() -> None:
    assert quantized_bytes(4096, 14336, "int8") < 0.51 * 2 * 4096 * 14336
    assert quantized_bytes(4096, 14336, "int4") < 0.3126 * 2 * 4096 * 14336


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packing", [None, "avx512"])
def test_what_is_saved_comes_back_bit_for_bit(
    tmp_path: Path, kind: str, packing: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = layer(320, 96, kind).state_dict()
    if packing is not None:  # the order on the device is not the saved one
        monkeypatch.setattr(quantize, "int4_packing", lambda *_: PACKINGS[packing])
    module, path = layer(320, 96, kind), tmp_path / "layer.safetensors"
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, saved[name])
    save_file(module.state_dict(), path)
    for assign in (False, True):
        again = QuantizedLinear.empty(96, 320, kind, torch.float32, CPU)
        again.load_state_dict(load_file(path), assign=assign)
        for one, other in zip(again.buffers(), module.buffers(), strict=True):
            assert torch.equal(one, other)
        x = normal(40, 96)
        assert torch.equal(again(x), module(x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_cast_of_the_model_leaves_the_numbers_as_they_are(kind: str) -> None:
    module, x = layer(64, 64, kind), normal(2, 64)
    before = module(x)
    assert torch.equal(module.to(torch.float16)(x), before)
    assert {each.dtype for each in module.buffers()} <= {torch.int8, torch.uint8, torch.bfloat16}


@pytest.mark.parametrize("rows", [1, 8, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_rows_give_the_same_bits(kind: str, dtype: torch.dtype, rows: int) -> None:
    x = normal(rows, 1024, seed=1).to(dtype)
    one, other = layer(192, 1024, kind), layer(192, 1024, kind)
    assert torch.equal(one(x), one(x))
    assert torch.equal(one(x), other(x.clone()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_what_the_other_rows_are(kind: str) -> None:
    module = layer(192, 1024, kind)
    for rows in (4, 16, 40):
        x, other = normal(rows, 1024, seed=1), normal(rows, 1024, seed=2) * 100
        other[1] = x[1]
        assert torch.equal(module(x)[1], module(other)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_large_activations_of_float16_do_not_overflow(kind: str) -> None:
    x = torch.full((40, 320), 200.0, dtype=torch.float16)
    assert layer(64, 320, kind)(x).isfinite().all()


def test_zeros_and_equal_weights_are_held_exactly() -> None:
    for kind in KINDS:
        zeros = QuantizedLinear.of(torch.zeros(64, 64), kind, torch.float32, CPU)
        assert not zeros(normal(2, 64)).any()
        equal = QuantizedLinear.of(torch.full((64, 64), 0.5), kind, torch.float32, CPU)
        assert off(equal(torch.ones(40, 64)), torch.full((40, 64), 32.0)) < 0.01


def test_the_search_for_a_range_errs_less_than_none(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.eye(256)
    weight = normal(128, 256)
    searched = off(QuantizedLinear.of(weight, "int4", torch.float32, CPU)(x), weight.t())
    monkeypatch.setattr(quantize, "SHRINK", (1.0,))
    assert searched < off(QuantizedLinear.of(weight, "int4", torch.float32, CPU)(x), weight.t())


@pytest.mark.parametrize("kind", KINDS)
def test_every_linear_layer_of_a_model_is_replaced(kind: str) -> None:
    model = random_mistral()
    ids = torch.arange(1, 41)[None]
    full = model(input_ids=ids).logits
    quantize_module(model, kind, torch.float32, CPU)
    assert not [each for each in model.modules() if isinstance(each, torch.nn.Linear)]
    assert {each.kind for each in model.model.modules() if isinstance(each, QuantizedLinear)} == {kind}
    assert model.lm_head.kind == "int8"
    assert isinstance(model.get_input_embeddings(), torch.nn.Embedding)
    assert off(model(input_ids=ids).logits, full) < {"int8": 0.1, "int4": 0.9}[kind]


def test_a_layer_with_a_bias_stays() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64, bias=False))
    quantize_module(model, "int8", torch.float32, CPU)
    assert isinstance(model[0], torch.nn.Linear)
    assert isinstance(model[1], QuantizedLinear)


def test_one_layer_is_freed_before_the_next_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64, bias=False) for _ in range(3)))
    alive = [weakref.ref(each) for each in model]
    counts, of = [], QuantizedLinear.of

    def counted(*args: object) -> QuantizedLinear:
        counts.append(sum(each() is not None for each in alive))
        return of(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(QuantizedLinear, "of", counted)
    quantize_module(model, "int4", torch.float32, CPU)
    assert counts == [3, 2, 1]


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="'int2' is not known"):
        QuantizedLinear.empty(64, 64, "int2", torch.float32, CPU)


def test_a_device_without_an_operator_has_no_packing() -> None:
    assert int4_packing(torch.device("cuda"), torch.float32) is None
    assert int8_product(torch.device("cuda"), torch.bfloat16) is None
    assert not packed_operators._works(PACKINGS["mps"], CPU, torch.float32)
