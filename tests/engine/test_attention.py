"""Packed attention is transformers' own, without its copies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from cag_daemon.engine.attention import FEW, NAME, attend, install
from cag_daemon.engine.cag import clean_up, prefill
from cag_daemon.engine.kv_cache import GRID, InPlaceCache
from cag_daemon.engine.passes import forward
from tests.models import random_mistral

ENGINE = settings.get_profile("engine")
GROUPS = {(4, 2): "two each", (4, 4): "none", (6, 1): "one for all"}
MODELS = {
    (heads, window, packed): random_mistral(
        num_attention_heads=heads[0], num_key_value_heads=heads[1], sliding_window=window, packed=packed
    )
    for heads in GROUPS
    for window in (None, 11)
    for packed in (True, False)
}


@settings(ENGINE)
@given(
    heads=st.sampled_from(sorted(GROUPS)),
    window=st.sampled_from([None, 11]),
    before=st.integers(0, 150),
    rows=st.sampled_from([1, 2, 4, 7, 16, 17, 40]),
    in_place=st.booleans(),
)
def test_it_is_what_transformers_computes(
    heads: tuple[int, int], window: int | None, before: int, rows: int, in_place: bool
) -> None:
    ids = torch.randint(3, 64, (1, before + rows), generator=torch.Generator().manual_seed(before * 97 + rows))
    logits = []
    for packed in (True, False):
        model = MODELS[heads, window, packed]
        cache = InPlaceCache(model.config) if in_place and packed else DynamicCache()
        if before:
            prefill(model, ids[:, :before], cache)
        logits.append(forward(model, ids[:, before:], cache, None).logits)
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


@settings(ENGINE)
@given(before=st.integers(1, 200), rows=st.integers(1, 9))
def test_what_lies_behind_the_last_token_changes_nothing(before: int, rows: int) -> None:
    model = MODELS[(4, 2), None, True]
    ids = torch.randint(3, 64, (1, before + rows), generator=torch.Generator().manual_seed(before * 97 + rows))
    found = []
    for behind in (0, 40):
        cache = InPlaceCache(model.config, before + 40)
        prefill(model, ids[:, :before], cache)
        if behind:
            prefill(model, ids.new_full((1, behind), 5), cache)
            clean_up(cache, before)
        found.append(forward(model, ids[:, before:], cache, None).logits)
    assert torch.equal(*found)


@settings(ENGINE)
@given(
    heads=st.sampled_from(sorted(GROUPS)),
    window=st.sampled_from([None, 11]),
    before=st.integers(1, 300),
    rows=st.sampled_from([2, 4, 16, 32]),
    wanted=st.integers(1, 31),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_rows_that_nobody_wants_change_no_bit_of_the_others(
    heads: tuple[int, int], window: int | None, before: int, rows: int, wanted: int, dtype: torch.dtype
) -> None:
    model = random_mistral(num_attention_heads=heads[0], num_key_value_heads=heads[1], sliding_window=window)
    model = model.to(dtype)
    wanted = min(wanted, rows)
    ids = torch.randint(3, 64, (1, before + rows), generator=torch.Generator().manual_seed(before * 97 + rows))
    found = []
    for how in ({}, {"wanted_rows": wanted}):
        cache = InPlaceCache(model.config)
        prefill(model, ids[:, :before], cache)
        logits = forward(model, ids[:, before:], cache, None, **how).logits[:, :wanted]
        found.append([logits, *(layer.keys[:, :, : before + wanted] for layer in cache.layers)])
    assert all(map(torch.equal, *found))


def test_attention_is_not_paid_for_rows_that_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    from cag_daemon.engine import attention

    model, given_ = MODELS[(4, 2), None, True], []
    real = attention.scaled_dot_product_attention

    def watched(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        given_.append(query.shape[0] * query.shape[2])
        return real(query, *args, **kwargs)

    def rows_of(wanted: int) -> set[int]:
        cache = InPlaceCache(model.config)
        prefill(model, torch.arange(3, 60)[None], cache)
        given_.clear()
        forward(model, torch.arange(3, 19)[None], cache, None, wanted_rows=wanted)
        return set(given_)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", watched)
    for agreeing, rows, wanted in (
        ((1, 2, 5), 2, 1),  # a row of each of the group's queries
        ((1, 2, 5), 10, 5),
        ((4, 8), 8, 1),
        ((4, 8), 32, 9),
        ((), 32, 1),
    ):
        monkeypatch.setattr(attention, "agreeing_rows", lambda *kind, agreeing=agreeing: agreeing)
        assert rows_of(wanted) == {rows}


@pytest.mark.parametrize("wrong", [1, 2, 5, 12])
def test_rows_that_depend_on_how_many_there_are_are_found_out(wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from cag_daemon.engine import attention

    kind = (torch.device("cpu"), torch.bfloat16, 4, 2, 8, 16)
    usual = attention.agreeing_rows(*kind, 101)
    assert len(usual) > 3  # on every CPU that was tried
    real = attention.scaled_dot_product_attention

    def differs(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return real(query, *args, **kwargs) * (1.5 if query.shape[2] == 2 * wrong else 1)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", differs)
    assert attention.agreeing_rows(*kind, 200 + wrong) == tuple(each for each in usual if each != wrong)


def test_a_pass_is_given_keys_up_to_the_grid_only_where_they_are_masked() -> None:
    for packed, wanted in ((True, GRID), (False, 5)):
        model = MODELS[(4, 2), None, packed]
        cache = InPlaceCache(model.config)
        assert cache.get_mask_sizes(5, 0) == (wanted, 0)
        prefill(model, torch.tensor([[3, 4, 5, 6, 7]]), cache)
        assert cache.layers[0].keys is not None
        assert cache.layers[0].keys.shape[-2] == 5


@pytest.mark.parametrize("rows", [1, 4, FEW, 2 * FEW])
def test_no_key_is_copied(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the product with keys is given is the cache's own memory."""
    from cag_daemon.engine import attention

    given: list[torch.Tensor] = []
    real = attention.scaled_dot_product_attention
    monkeypatch.setattr(
        attention, "scaled_dot_product_attention", lambda q, k, v, **how: given.extend((k, v)) or real(q, k, v, **how)
    )
    key, value = torch.rand(1, 2, 128, 8), torch.rand(1, 2, 128, 8)
    found, _ = attend(None, torch.rand(1, 8, rows, 8), key, value, torch.zeros(1, 1, rows, 128))
    assert found.shape == (1, rows, 8, 8)
    assert [each.data_ptr() for each in given] == [key.data_ptr(), value.data_ptr()]


def test_a_loaded_model_attends_this_way(tokenizer: Any) -> None:
    from cag_daemon.engine.model import load_model

    assert load_model("embedded").model.config._attn_implementation == NAME
    model = random_mistral(packed=False)
    assert model.config._attn_implementation == "sdpa"
    install(model)
    assert model.config._attn_implementation == NAME
