"""A cache layer that writes in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from cag_daemon.engine import kv_cache
from cag_daemon.engine.cag import clean_up, generate_step, prefill
from cag_daemon.engine.kv_cache import InPlaceCache, InPlaceLayer, bytes_per_token
from cag_daemon.engine.passes import cache_argument
from tests.models import mistral_config, random_mistral


def states(tokens: int, heads: int = 2, dim: int = 8, **kind: Any) -> torch.Tensor:
    return torch.randn(1, heads, tokens, dim, **kind)


def pointers(cache: InPlaceCache) -> list[int]:
    return [b.data_ptr() for layer in cache.layers for b in (layer.key_buffer, layer.value_buffer)]


class Storages(TorchDispatchMode):
    """Every storage that an operation gives out."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.seen.add(result.untyped_storage().data_ptr())
        return result


def test_update_returns_all_that_is_cached() -> None:
    layer, keys, values = InPlaceLayer(), states(5), states(5)
    layer.update(keys[:, :, :3], values[:, :, :3])
    seen = layer.update(keys[:, :, 3:], values[:, :, 3:])
    assert torch.equal(seen[0], keys)
    assert torch.equal(seen[1], values)
    assert torch.equal(layer.keys, keys)
    assert layer.get_seq_length() == 5


def test_a_step_allocates_nothing() -> None:
    layer = InPlaceLayer(256)
    layer.update(states(100), states(100))
    key, value = states(1), states(1)
    own = {t.untyped_storage().data_ptr() for t in (layer.key_buffer, layer.value_buffer, key, value)}
    with Storages() as storages:
        layer.update(key, value)
    assert storages.seen <= own


def test_no_step_moves_the_prefix() -> None:
    model = random_mistral()
    cache = InPlaceCache(model.config, capacity=100)
    prefill(model, torch.arange(40)[None], cache, chunk_size=16)
    before = pointers(cache)
    for _ in range(2):
        list(generate_step(model, torch.tensor([[7, 8, 9]]), cache, max_new_tokens=20))
        clean_up(cache, 40)
    assert pointers(cache) == before


def test_decoding_reserves_once() -> None:
    model = random_mistral()
    cache = InPlaceCache(model.config)
    prefill(model, torch.arange(60)[None], cache)
    seen = set()
    for _ in generate_step(model, torch.tensor([[7]]), cache, max_new_tokens=100):
        seen.add(tuple(pointers(cache)))
    assert len(seen) == 1
    assert cache.get_seq_length() == 160


def test_capacity_doubles_when_nobody_reserved() -> None:
    layer = InPlaceLayer()
    layer.update(states(64), states(64))
    key = layer.keys.clone()
    layer.update(states(1), states(1))
    assert layer.capacity == 128
    assert torch.equal(layer.keys[:, :, :64], key)


def test_reserve_keeps_what_is_cached_and_never_shrinks() -> None:
    cache = InPlaceCache(mistral_config())
    for index in range(3):
        cache.update(states(10), states(10), index)
    kept = [layer.keys.clone() for layer in cache.layers]
    cache.reserve(1000)
    cache.reserve(10)
    assert cache.capacity == 1024
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, kept, strict=True))


def test_crop_takes_minus_the_surplus() -> None:
    layer = InPlaceLayer()
    layer.update(states(10), states(10))
    kept, address = layer.keys[:, :, :7].clone(), layer.key_buffer.data_ptr()
    layer.crop(0)
    layer.crop(-3)
    assert layer.get_seq_length() == 7
    assert torch.equal(layer.keys, kept)
    assert layer.key_buffer.data_ptr() == address
    with pytest.raises(ValueError, match="minus the number"):
        layer.crop(3)
    layer.crop(-100)
    assert layer.get_seq_length() == 0


def test_what_lies_behind_the_length_is_finite() -> None:
    layer = InPlaceLayer(512)
    layer.update(states(1), states(1))
    layer.reserve(2048)
    assert layer.key_buffer.isfinite().all()
    assert layer.value_buffer.isfinite().all()


def test_bytes_are_those_of_the_buffers() -> None:
    config = mistral_config()
    cache = InPlaceCache(config, capacity=128)
    assert cache.bytes == 0
    for index in range(3):
        cache.update(states(1), states(1), index)
    assert cache.bytes == 128 * bytes_per_token(config, torch.float32)
    assert bytes_per_token(config, torch.bfloat16) == 2 * 3 * 2 * 8 * 2


def test_reset_forgets_and_keeps_the_buffers() -> None:
    cache = InPlaceCache(mistral_config())
    for index in range(3):
        cache.update(states(9), states(9), index)
    before = pointers(cache)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert pointers(cache) == before


@pytest.mark.parametrize("other", [states(1, heads=4), states(1, dtype=torch.bfloat16), torch.randn(2, 2, 1, 8)])
def test_another_models_states_are_refused(other: torch.Tensor) -> None:
    layer = InPlaceLayer()
    layer.update(states(3), states(3))
    with pytest.raises(ValueError, match="another model"):
        layer.update(other, other)


def test_beams_and_batches_are_refused() -> None:
    cache = InPlaceCache(mistral_config())
    for call in (cache.reorder_cache, cache.batch_repeat_interleave, cache.batch_select_indices):
        with pytest.raises(NotImplementedError, match="one sequence"):
            call(torch.tensor([0]))


def test_no_graph_and_no_inference_tensor_stays_in_the_cache() -> None:
    layer = InPlaceLayer()
    with torch.inference_mode():
        layer.update(states(3), states(3))
    layer.update(states(3, requires_grad=True), states(3, requires_grad=True))
    assert not layer.key_buffer.requires_grad
    assert not layer.key_buffer.is_inference()


@pytest.mark.parametrize("window", [None, 5])
def test_masks_are_those_of_a_plain_cache(window: int | None) -> None:
    model = random_mistral(sliding_window=window)
    ours, plain = InPlaceCache(model.config), DynamicCache()
    assert not any(ours.is_sliding)
    for ids in (torch.arange(11)[None], torch.tensor([[3]]), torch.arange(4)[None]):
        a = model(ids, **{cache_argument(model): ours}).logits
        b = model(ids, **{cache_argument(model): plain}).logits
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("failing", [1, 2])
def test_where_there_is_no_memory_for_room_there_is_no_room(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = InPlaceLayer()
    made = states(60)
    layer.update(made, made)
    calls = 0

    def buffer(*args: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise RuntimeError("not enough memory")
        return plain(*args)

    plain = kv_cache._buffer
    monkeypatch.setattr(kv_cache, "_buffer", buffer)
    with pytest.raises(RuntimeError):
        layer.reserve(500)
    assert layer.capacity == 64
    layer.update(made, made)  # it is tried again
    assert torch.equal(layer.keys, torch.cat([made, made], 2))
    assert torch.equal(layer.values, torch.cat([made, made], 2))
