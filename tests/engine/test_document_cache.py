"""Which texts are cached, within a memory budget, and how little is moved to have one or another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cag_daemon.engine.document_cache import DocumentCache, DocumentCaches, KnownText, TextCache, common_length
from cag_daemon.engine.kv_cache import InPlaceCache
from tests.models import mistral_config

CHUNK = 4
CONFIG = mistral_config(num_hidden_layers=2)
ENGINE = settings(settings.get_profile("engine"), max_examples=150)
IDS = st.lists(st.integers(0, 2), max_size=30)


def states(ids: list[int], start: int) -> torch.Tensor:
    """What stands for keys: of each token, a number that only it and those before it give."""
    rows = [float(hash(tuple(ids[: index + 1])) % 1000003) for index in range(start, len(ids))]
    return torch.tensor(rows, dtype=torch.float64)[None, None, :, None].expand(1, 2, len(rows), 8)


def read(cache: TextCache, ids: list[int], kept: int) -> None:
    for layer in cache.buffer.layers:
        layer.update(states(ids, kept), -states(ids, kept))
    cache.read(ids[kept:])


def check(cache: TextCache) -> None:
    for layer in cache.buffer.layers:
        assert layer.get_seq_length() == len(cache.ids)
        if cache.ids:
            assert torch.equal(layer.keys, states(cache.ids, 0))
            assert torch.equal(layer.values, -states(cache.ids, 0))


@ENGINE
@given(
    st.lists(
        st.tuples(
            st.integers(0, 11), st.integers(0, 30), IDS, st.integers(0, 30), st.sampled_from([True, True, False])
        ),
        max_size=12,
    )
)
def test_the_buffer_holds_what_it_says_whatever_was_read_and_broken_off(steps: list[Any]) -> None:
    cache, texts = TextCache(InPlaceCache(CONFIG), CHUNK), [[]]
    for base, common, end, cut, keep in steps:
        ids = texts[base % len(texts)][:common] + end[: base + 1]
        known, best = cache.known(ids), max(common_length(each, ids) for each in (cache.ids, *texts))
        kept = cache.turn_to(ids, keep=keep)
        check(cache)
        assert kept == known
        assert cache.ids == ids[:kept]
        assert kept == len(ids) or kept % CHUNK == 0
        if all(step[-1] for step in steps):
            assert kept >= min(best - best % CHUNK, len(ids) - len(ids) % CHUNK)
        part = ids if cut >= len(ids) else ids[: max(kept, cut - cut % CHUNK)]
        read(cache, part, kept)
        check(cache)
        texts.append(part)
        cache.forget(most=4)


@ENGINE
@given(IDS, IDS, IDS)
def test_another_cache_gets_what_they_have_in_common(one: list[int], two: list[int], wanted: list[int]) -> None:
    cache, other = (TextCache(InPlaceCache(CONFIG), CHUNK) for _ in range(2))
    for ids in (one, two):
        read(cache, ids, cache.turn_to(ids))
    known = cache.known(wanted)
    assert other.copy_from(cache, wanted) == known
    assert other.ids == wanted[:known]
    check(other)
    check(cache)


@given(IDS, IDS)
def test_common_length(one: list[int], other: list[int]) -> None:
    length = common_length(one, other)
    assert one[:length] == other[:length]
    assert len(one) == length or len(other) == length or one[length] != other[length]


# ── the budget ──

SIZE = 2 * 2 * 2 * 64 * 8 * 8  # two layers, keys and values, two heads, 64 tokens, 8 wide, 8 bytes


def cached(first: int) -> DocumentCache:
    cache, ids = TextCache(InPlaceCache(CONFIG), CHUNK), [first, 1, 1, 1, 1, 1]
    read(cache, ids, 0)
    assert cache.bytes == SIZE
    return DocumentCache(KnownText("v", ids, None), cache)  # type: ignore[arg-type]


@pytest.fixture
def three() -> tuple[DocumentCaches, list[str]]:
    dropped: list[str] = []
    caches = DocumentCaches(10 * SIZE, on_dropped=dropped.append)
    for number, name in enumerate("abc"):
        caches.put(name, cached(number))
    return caches, dropped


Three = tuple[DocumentCaches, list[str]]


def test_the_least_recently_used_leaves_first(three: Three) -> None:
    caches, dropped = three
    caches.budget = 3 * SIZE
    caches.get("a")
    caches.make_room(SIZE)
    assert dropped == ["b"]
    assert [name for name in "abc" if name in caches] == ["a", "c"]


def test_no_more_leave_than_must(three: Three) -> None:
    caches, dropped = three
    caches.budget = 3 * SIZE
    caches.make_room(0)
    assert dropped == []
    caches.make_room(SIZE + 1)
    assert dropped == ["a", "b"]


def test_the_document_itself_stays_and_is_not_counted(three: Three) -> None:
    caches, dropped = three
    caches.budget = 3 * SIZE
    caches.make_room(SIZE, "a")
    assert dropped == []
    caches.make_room(3 * SIZE, "a")
    assert dropped == ["b", "c"]
    assert "a" in caches


def test_what_nobody_asks_about_leaves_before_what_somebody_does(three: Three) -> None:
    caches, dropped = three
    caches.begun["d"] = cached(9).cache
    entry = caches.get("a")
    assert entry is not None
    newer = [0, 1, 1, 1, 2, 2, 2]
    read(entry.cache, newer, entry.cache.turn_to(newer))
    caches.put("a", DocumentCache(KnownText("w", newer, None), entry.cache))  # type: ignore[arg-type]
    assert entry.cache.ends_bytes > 0
    caches.budget = 3 * SIZE
    caches.make_room(0)
    assert dropped == []
    assert caches.begun == {}
    assert entry.cache.ends_bytes == 0


def test_what_answers_is_never_dropped_as_an_end(three: Three) -> None:
    caches, _ = three
    entry = caches.get("a")
    assert entry is not None
    newer = [0, 1, 1, 1, 2, 2, 2]
    read(entry.cache, newer, entry.cache.turn_to(newer))  # it is being read: questions are answered from the other
    caches.budget = 0
    caches.make_room(0, "a")
    assert entry.cache.turn_to(entry.text.ids) == len(entry.text.ids)


def test_what_is_forgotten_is_not_reported(three: Three) -> None:
    caches, dropped = three
    caches.forget("a")
    caches.forget("nobody")
    assert caches.get("a") is None
    assert dropped == []


def test_documents_of_one_text_count_once(three: Three) -> None:
    caches, _ = three
    entry = caches.get("a")
    assert entry is not None
    caches.put("d", DocumentCache(entry.text, entry.cache))
    assert len(caches.all()) == 3
    assert caches.with_text(entry.text.ids) is entry.cache
    assert caches.with_text([7]) is None
