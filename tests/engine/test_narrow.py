"""Passes of few rows by machine code of our own: what torch computes, the same bits for every number of rows."""

from __future__ import annotations

import ctypes
import functools
import logging
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Ministral3Config, Ministral3ForCausalLM

from cag_daemon.engine import linear, narrow, narrow_pass
from cag_daemon.engine.attention import install
from cag_daemon.engine.cag import clean_up, generate_step, prefill
from cag_daemon.engine.drafts import Drafts
from cag_daemon.engine.kv_cache import InPlaceCache
from cag_daemon.engine.linear import PackedLinear, pack_linears
from cag_daemon.engine.model import LoadedModel
from cag_daemon.engine.passes import NARROW, answering, forward
from cag_daemon.engine.self_test import self_test
from cag_daemon.engine.widths import CANDIDATES, agreeing
from cag_daemon.errors import Stopped
from tests.engine.few import (
    IDS,
    SHAPE,
    assert_rows_have_the_bits_of_rows_one_by_one,
    here,
    mistral,
    near,
    only_here,
    rows_of,
    threads,
    ways,
)
from tests.models import embedded_tokenizer, random_mistral

ENGINE = settings.get_profile("engine")
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}


@functools.cache
def shared_mistral() -> Any:
    model = mistral()
    assert narrow.narrow(model)
    return model


# ── products ────────────────────────────────────────────────────────────────────────────────


def tiled() -> bool:
    if not here():
        return False
    from cag_daemon.engine.tiles import has_tiles

    return has_tiles()


def products() -> list[str]:
    """By which of the processor's instructions products are made, as far as it has them."""
    return ["floats", *(["pairs"] if True in ways() else []), *(["tiles"] if tiled() else [])]


@functools.cache
def product_alone(way: str) -> tuple[Any, int, Any]:
    """The product as a function of its own, given [counters, weight, x, bytes of a row, sums, rows, pairs, blocks]."""
    from llvmlite import ir

    from cag_daemon.engine.compiling import Compiled, Threads
    from cag_daemon.engine.few_rows import PER_PAIR, write_product
    from cag_daemon.engine.machine_code import Code
    from cag_daemon.engine.tiles import write_tiled_product

    module = ir.Module("product")
    product = write_tiled_product(module) if way == "tiles" else write_product(module, dot=way == "pairs")
    code = Code(module, "run", 1, inside=False)
    counters, weight, x, x_row, sums, rows, pairs, blocks = (code.number(code.arguments[0], at) for at in range(8))
    with code.pieces(counters, 0, blocks) as block:
        to = code.sum(sums, code.times(block, 16 * 1024))
        code.b.call(product, [code.sum(weight, code.times(block, pairs, PER_PAIR)), x, x_row, to, rows, pairs])
    code.done()
    compiled = Compiled(module)
    return compiled, compiled.address("run"), Threads()


def multiplied(x: torch.Tensor, layer: PackedLinear, way: str) -> torch.Tensor:
    """x [rows, in] times a packed weight, in float32."""
    (rows, inputs), blocks = x.shape, -(-layer.out_features // 64)
    counters, sums = torch.zeros(64, dtype=torch.int64), torch.full((blocks, 16, 256), torch.nan)
    x = x.contiguous()
    assert layer.blocks_at is not None
    tensors = [counters.data_ptr(), layer.blocks_at, x.data_ptr(), 2 * inputs, sums.data_ptr()]
    _, address, runner = product_alone(way)
    call = (ctypes.c_int64 * 8)(*tensors, rows, inputs // 2, blocks)
    runner.run(address, ctypes.addressof(call))
    return sums[:, :rows, :64].transpose(0, 1).reshape(rows, -1)[:, : layer.out_features]


@only_here
@pytest.mark.parametrize("way", products())
@settings(ENGINE)
@given(st.integers(1, 16), st.integers(1, 12), st.integers(1, 300), st.integers(0, 99))
def test_a_product_is_the_exact_one_within_the_error_of_float32(
    way: str, rows: int, inputs: int, outputs: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn((outputs, 32 * inputs), generator=random).bfloat16()
    x = torch.randn((rows, 32 * inputs), generator=random).bfloat16()
    exact = x.double() @ weight.double().T
    most = x.double().abs() @ weight.double().abs().T  # what rounding is relative to
    assert bool(((multiplied(x, PackedLinear(weight), way) - exact).abs() <= 1e-5 * most).all())


@only_here
@pytest.mark.parametrize("way", products())
@settings(ENGINE)
@given(st.integers(1, 16), st.integers(1, 3), st.sampled_from([(64, 32), (320, 1216), (200, 4864)]))
def test_the_bits_of_a_row_are_the_same_among_however_many_rows_and_threads(
    way: str, rows: int, many: int, shape: tuple[int, int]
) -> None:
    random = torch.Generator().manual_seed(rows)
    layer = PackedLinear(torch.randn(shape, generator=random).bfloat16())
    x = torch.randn((16, shape[1]), generator=random).bfloat16()
    with threads(2):
        wanted = multiplied(x, layer, way)
    with threads(many):
        first = random.initial_seed() % (17 - rows)
        assert torch.equal(multiplied(x[first : first + rows], layer, way), wanted[first : first + rows])


@pytest.mark.parametrize("what", ["in another order", "of another size", "nowhere", "unknown"])
def test_a_weight_that_lies_otherwise_is_not_read(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(128, 64).bfloat16()
    rows_in_order = weight.view(2, 64, 32, 2).transpose(1, 2).contiguous()
    memory = weight.contiguous() if what == "in another order" else rows_in_order

    class Operators:
        data_ptr = staticmethod(lambda packed: 0 if what == "nowhere" else memory.data_ptr())
        if what != "unknown":
            _nbytes = staticmethod(lambda packed: memory.nbytes + 64 * (what == "of another size"))

    monkeypatch.setattr(torch.ops, "mkldnn", Operators)
    assert linear.blocks_at(weight, weight) is None
    what, memory = "", rows_in_order
    monkeypatch.setattr(Operators, "_nbytes", staticmethod(lambda packed: memory.nbytes), raising=False)
    assert linear.blocks_at(weight, weight) == memory.data_ptr()


# ── passes ──────────────────────────────────────────────────────────────────────────────────


@only_here
@settings(ENGINE)
@given(
    shape=st.sampled_from(
        [
            {},
            {"head_dim": 128, "num_key_value_heads": 4},
            {"num_attention_heads": 6, "num_key_value_heads": 1, "hidden_size": 320},
            {"tie_word_embeddings": True},
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 1e4,
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
        ]
    ),
    start=st.integers(1, 200),
    rows=st.integers(1, 16),
    seed=st.integers(0, 3),
)
def test_a_narrow_pass_is_near_the_plain_one(shape: dict[str, Any], start: int, rows: int, seed: int) -> None:
    model = mistral(seed, **shape)
    cache = InPlaceCache(model.config)
    prefill(model, IDS[:, :start], cache, chunk_size=64)
    plain = rows_of(model, cache, start, rows, rows, forward)
    assert narrow.narrow(model)
    ours = rows_of(model, cache, start, rows, rows, answering)
    assert all(near(*both) for both in zip(ours, plain, strict=True))


@only_here
@pytest.mark.parametrize("seed", range(4))
def test_it_is_as_near_to_float32_as_the_plain_pass(seed: int) -> None:
    exact = random_mistral(seed, **SHAPE, head_dim=64, vocab_size=200)
    for parameter in exact.parameters():
        parameter.copy_(parameter.bfloat16())
    model = mistral(seed)
    assert narrow.narrow(model)
    found = []
    for each, way in ((exact, forward), (model, forward), (model, answering)):
        cache = InPlaceCache(each.config)
        prefill(each, IDS[:, :270], cache, chunk_size=64)
        found.append(rows_of(each, cache, 270, 16, 16, way)[0].float())
    plain, ours = ((each - found[0]).norm() for each in found[1:])
    assert ours < 1.2 * plain


@only_here
def test_ministral_3_scales_its_queries() -> None:
    config = Ministral3Config(
        **SHAPE, head_dim=64, vocab_size=200, num_hidden_layers=2, tie_word_embeddings=False,
        rope_parameters={**YARN, "llama_4_scaling_beta": 5.0},
    )  # fmt: skip
    torch.manual_seed(0)
    model = Ministral3ForCausalLM(config).eval().requires_grad_(False).bfloat16()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.normal_(0, 1.5 / parameter.shape[1] ** 0.5)
    install(model)
    pack_linears(model)
    cache = InPlaceCache(model.config)
    prefill(model, IDS[:, :200], cache, chunk_size=64)
    plain = rows_of(model, cache, 200, 5, 5, forward)
    assert narrow.narrow(model)
    assert all(near(*both) for both in zip(rows_of(model, cache, 200, 5, 5, answering), plain, strict=True))
    getattr(model.get_decoder(), NARROW)._scales = lambda positions: torch.full(positions.shape, 64**-0.5)
    assert not near(rows_of(model, cache, 200, 5, 5, answering)[0], plain[0])  # it makes a difference here


@only_here
@settings(ENGINE)
@given(start=st.integers(1, 200), rows=st.integers(1, 16), more=st.integers(0, 15), many=st.integers(1, 3))
def test_rows_have_the_bits_of_rows_one_by_one(start: int, rows: int, more: int, many: int) -> None:
    assert_rows_have_the_bits_of_rows_one_by_one(shared_mistral(), start, rows, more, many)


@only_here
def test_only_the_logits_that_are_wanted_are_made() -> None:
    model = shared_mistral()
    cache = InPlaceCache(model.config)
    prefill(model, IDS[:, :70], cache, chunk_size=64)

    def logits(**kept: Any) -> Any:
        found = answering(model, IDS[:, 70:78], cache, None, **kept).logits
        clean_up(cache, 70)
        return found

    every = logits()
    assert every.shape == (1, 8, 200)
    assert torch.equal(logits(logits_to_keep=1), every[:, -1:])
    assert torch.equal(logits(logits_to_keep=8, wanted_rows=3), every[:, :3])
    assert answering(model.get_decoder(), IDS[:, 70:78], cache, None).logits is None
    assert cache.get_seq_length() == 78


@only_here
def test_it_begins_on_an_empty_cache_and_makes_room() -> None:
    model = shared_mistral()
    caches = [InPlaceCache(model.config), InPlaceCache(model.config, 300)]
    for cache in caches:
        for at in range(0, 160, 16):
            answering(model, IDS[:, at : at + 16], cache, None)
        assert cache.get_seq_length() == 160
    for one, other in zip(*(each.layers for each in caches), strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)


@only_here
@pytest.mark.parametrize("asked", range(3))
def test_it_is_stopped_between_layers_and_leaves_nothing(asked: int) -> None:
    model = shared_mistral()
    cache = InPlaceCache(model.config)
    prefill(model, IDS[:, :70], cache, chunk_size=64)
    before = [layer.keys.clone() for layer in cache.layers]
    times: list[int] = []

    def should_stop() -> bool:
        times.append(1)
        return len(times) > asked

    with pytest.raises(Stopped):
        answering(model, IDS[:, 70:75], cache, should_stop)
    assert len(times) == asked + 1
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, before, strict=True))


@only_here
def test_documents_are_read_as_without_it() -> None:
    plain, ours = mistral(), shared_mistral()
    caches = [InPlaceCache(plain.config), InPlaceCache(ours.config)]
    for model, cache in zip((plain, ours), caches, strict=True):
        for end in (64, 70, 140, 141):  # chunks that end early are few rows, too
            prefill(model, IDS[:, cache.get_seq_length() : end], cache, chunk_size=64)
    for one, other in zip(*(each.layers for each in caches), strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)


def loaded(model: Any) -> LoadedModel:
    chunk = 64
    return LoadedModel(model, embedded_tokenizer(), "random", "", "cpu", "bfloat16", 10**9, 1, chunk, 512, key="k")


@only_here
def test_every_width_of_few_rows_agrees() -> None:
    ours = loaded(shared_mistral())
    found = agreeing(ours, InPlaceCache(ours.model.config))
    assert found
    assert max(found) <= 16  # wider ones go through torch
    assert set(found) <= set(CANDIDATES)


@only_here
@settings(ENGINE)
@given(st.integers(20, 250), st.integers(1, 20), st.integers(0, 9))
def test_with_drafts_an_answer_is_the_one_without(length: int, question: int, seed: int) -> None:
    model = shared_mistral()
    few = torch.randint(3, 9, (1, length + question), generator=torch.Generator().manual_seed(seed))
    cache, answers = InPlaceCache(model.config), []
    prefill(model, few[:, :length], cache, chunk_size=64)
    for widths, drafted in (((1, 2, 4, 8, 16), False), ((1, 2, 4, 8, 16), True), ((8, 16), True), ((4,), False)):
        drafts = Drafts(few[0, :length].tolist(), few[0, length:].tolist(), (), 20) if drafted else None
        steps = generate_step(
            model, few[:, length:], cache, max_new_tokens=20, chunk_size=64, widths=widths, drafts=drafts
        )
        tokens = list(steps)
        answers.append((tokens, [layer.values[:, :, : length + question + 19].clone() for layer in cache.layers]))
        clean_up(cache, length)
    for tokens, values in answers[1:]:
        assert tokens == answers[0][0]
        assert all(map(torch.equal, values, answers[0][1]))


# ── where there is none ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "gelu"},
        {"sliding_window": 64},
        {"head_dim": 32},
        {"intermediate_size": 96},
        {"hidden_size": 96},
    ],
    ids=str,
)
def test_other_models_go_the_plain_way(changes: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    model = mistral(**changes)
    with caplog.at_level(logging.INFO):
        assert not narrow.narrow(model)
    assert "Passes of few rows go through torch" in caplog.text
    answering(model, IDS[:, :5], InPlaceCache(model.config), None)


def test_so_do_models_with_biases_and_those_in_float32() -> None:
    model = random_mistral(**SHAPE, head_dim=64, vocab_size=200)
    assert not narrow.narrow(model)
    biased = random_mistral(**SHAPE, head_dim=64, vocab_size=200).bfloat16()
    attention = biased.get_decoder().layers[1].self_attn
    attention.k_proj = torch.nn.Linear(128, 128, bias=True).bfloat16()
    pack_linears(biased)
    assert not narrow.narrow(biased)


@pytest.mark.parametrize("what", ["no compiler", "no threads", "another layout", "a wrong product", "a listener"])
def test_what_is_missing_or_wrong_is_noticed(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mistral()
    narrow_pass._machine.cache_clear()
    if what == "no compiler":
        for name in [name for name in sys.modules if name.startswith("llvmlite")]:
            monkeypatch.setitem(sys.modules, name, None)
        for room in ("compiling", "machine_code", "few_rows", "few_bits", "layer_code"):
            monkeypatch.delitem(sys.modules, f"cag_daemon.engine.{room}", raising=False)
        monkeypatch.setitem(sys.modules, "llvmlite", None)
    elif what == "no threads":

        def missing(*_: Any) -> Any:
            raise OSError("no such library")

        monkeypatch.setattr(ctypes, "CDLL", missing)
    elif what == "another layout":
        model.get_decoder().layers[2].mlp.up_proj.blocks_at = None
    elif what == "a wrong product":
        first = model.get_decoder().layers[1].mlp
        first.up_proj.blocks_at = first.gate_proj.blocks_at
    else:
        model.get_decoder().layers[0].mlp.register_forward_hook(lambda *_: None)
    try:
        assert not narrow.narrow(model)
        assert not hasattr(model.get_decoder(), NARROW)
    finally:
        narrow_pass._machine.cache_clear()


@only_here
def test_what_the_self_test_found_without_it_is_not_believed_with_it(tmp_path: Any) -> None:
    plain, ours = loaded(mistral()), loaded(shared_mistral())
    for each in (plain, ours, plain):
        self_test(each, str(tmp_path))
    assert len(list(tmp_path.rglob("result.json"))) == 2


@pytest.mark.skipif(not tiled(), reason="there are no tiles on this machine")
def test_what_was_found_with_tiles_is_not_believed_without_and_both_are_near_the_plain_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cag_daemon.engine import tiles

    model, kinds = mistral(), []
    for there in (True, False):
        monkeypatch.setattr(tiles, "has_tiles", lambda there=there: there)
        assert narrow.narrow(model)
        kinds.append(getattr(model.get_decoder(), NARROW).kind)
    assert kinds[0] != kinds[1]


@pytest.mark.skipif(not here(), reason="there is no compiler here")
@pytest.mark.parametrize("what", ["no tiles", "forbidden"])
def test_without_tiles_or_leave_to_use_them_there_are_none(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from cag_daemon.engine import tiles

    if what == "forbidden":
        monkeypatch.setattr(tiles, "features", lambda: {"amx-tile", "amx-bf16"})
        monkeypatch.setattr(tiles, "TILE_DATA", 63)  # no such thing: the system says no
    else:
        monkeypatch.setattr(tiles, "features", lambda: {"amx-tile", "avx512f"})
    assert not tiles.has_tiles.__wrapped__()


@only_here
def test_threads_that_have_nothing_to_do_sleep() -> None:
    import time

    model = shared_mistral()
    answering(model, IDS[:, :5], InPlaceCache(model.config), None)
    time.sleep(0.2)
    began = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - began < 0.1


@only_here
def test_another_compiler_or_version_is_tried_anew(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = loaded(shared_mistral())
    self_test(ours, str(tmp_path))
    monkeypatch.setattr(narrow_pass, "VERSION", narrow_pass.VERSION + 1)
    self_test(ours, str(tmp_path))
    assert len(list(tmp_path.rglob("result.json"))) == 2


@only_here
@pytest.mark.parametrize("what", ["in float32", "of fewer layers", "of other heads", "without room for its values"])
def test_a_cache_that_is_not_what_it_should_be_is_left_to_the_plain_pass(what: str) -> None:
    model, ids = shared_mistral(), IDS[:, :5]
    passes = getattr(model.get_decoder(), NARROW)
    cache = InPlaceCache(model.config)
    forward(model, IDS[:, :40], cache, None)
    assert passes.takes(model, ids, cache)
    if what == "in float32":
        for layer in cache.layers:
            layer.key_buffer, layer.value_buffer = layer.key_buffer.float(), layer.value_buffer.float()
    elif what == "of fewer layers":
        del cache.layers[-1]
    elif what == "of other heads":
        layer = cache.layers[0]
        layer.key_buffer, layer.value_buffer = layer.key_buffer[:, :1], layer.value_buffer[:, :1]
    else:
        cache.layers[1].key_buffer = torch.cat([cache.layers[1].key_buffer] * 2, 2)
    assert not passes.takes(model, ids, cache)
    if what != "without room for its values":
        with pytest.raises((ValueError, IndexError)):
            answering(model, ids, cache, None)
