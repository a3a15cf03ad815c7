"""Packed layers compute what plain ones do, to the bit but for AMX, and hold the weights once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear

from cag_daemon.engine import linear as module
from cag_daemon.engine.devices import cpu_features
from cag_daemon.engine.kv_cache import InPlaceCache
from cag_daemon.engine.linear import PackedLinear, pack_linears, packs
from cag_daemon.engine.passes import forward
from tests.models import random_mistral

ENGINE = settings.get_profile("engine")
here = pytest.mark.skipif(not packs(), reason="torch has no operators for packed weights on this machine")


@here
@settings(ENGINE)
@given(st.integers(1, 130), st.integers(1, 300), st.integers(1, 300), st.integers(0, 99))
def test_a_packed_product_is_the_plain_one(rows: int, wide: int, out: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn((out, wide), generator=random).bfloat16()
    x = torch.randn((1, rows, wide), generator=random).bfloat16()
    torch.testing.assert_close(PackedLinear(weight)(x), linear(x, weight), rtol=0.02, atol=0.05)


@here
@settings(ENGINE)
@given(rows=st.sampled_from([2, 4, 8, 16, 128]), shape=st.sampled_from([(64, 32), (320, 896), (896, 320), (256, 2048)]))
def test_at_the_shapes_of_models_it_is_so_to_the_bit(rows: int, shape: tuple[int, int]) -> None:
    random = torch.Generator().manual_seed(rows)
    weight = torch.randn(shape, generator=random).bfloat16()
    x = torch.randn((1, rows, shape[1]), generator=random).bfloat16()
    ours, plain = PackedLinear(weight)(x), linear(x, weight)
    if "amx_bf16" in cpu_features():  # with tiles, oneDNN adds up in another order for another layout
        torch.testing.assert_close(ours, plain, rtol=0.02, atol=0.1)
    else:
        assert torch.equal(ours, plain)


@here
@pytest.mark.parametrize("tied", [True, False])
def test_a_packed_model_answers_as_before_and_holds_no_weight_twice(tied: bool) -> None:
    model = random_mistral(tie_word_embeddings=tied).bfloat16()
    ids = torch.randint(3, 64, (1, 40), generator=torch.Generator().manual_seed(0))
    before = forward(model, ids, InPlaceCache(model.config), None).logits
    weights = {name: parameter for name, parameter in model.named_parameters() if "proj" in name}
    assert pack_linears(model)
    assert torch.equal(forward(model, ids, InPlaceCache(model.config), None).logits, before)
    left = dict(model.named_parameters())
    assert not left.keys() & weights.keys()
    assert ("lm_head.weight" in left) == (isinstance(model.lm_head, torch.nn.Linear) and not tied)
    assert isinstance(model.lm_head, torch.nn.Linear) == tied  # what is tied must stay for the embeddings
    assert {each.dtype for each in left.values()} == {torch.bfloat16}
    assert not pack_linears(model)


def test_float32_stays_as_it_is() -> None:
    model = random_mistral()
    assert not pack_linears(model)
    assert isinstance(model.lm_head, torch.nn.Linear)


@pytest.mark.parametrize("what", ["missing", "wrong"])
def test_without_the_operators_or_with_wrong_ones_layers_stay(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> torch.Tensor:
        raise AttributeError("no such operator")

    if what == "missing":
        monkeypatch.setattr(module, "pack_weight", missing)
    else:
        monkeypatch.setattr(module, "multiply_packed", lambda x, packed: x.new_zeros(*x.shape[:-1], 160))
        monkeypatch.setattr(module, "pack_weight", lambda weight: weight)
    packs.cache_clear()
    try:
        assert not pack_linears(random_mistral().bfloat16())
    finally:
        packs.cache_clear()
