"""Drafts decide how fast an answer comes, never what it says."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cag_daemon.engine.cag import clean_up, generate_step, prefill
from cag_daemon.engine.decoding import DraftCounts
from cag_daemon.engine.drafts import Drafts
from cag_daemon.engine.engine import REMEMBERED, Engine
from cag_daemon.engine.kv_cache import InPlaceCache
from cag_daemon.engine.model import LoadedModel, load_model
from cag_daemon.engine.self_test import Result, self_test
from cag_daemon.errors import Stopped
from tests.engine.caches import After
from tests.models import DEVICES, embedded_tokenizer, loaded_random

ENGINE = settings.get_profile("engine")
TOKENIZER = embedded_tokenizer()
FEW = st.integers(3, 8)  # tokens, so that much is repeated
CHUNK = 16


def run_before(ids: Sequence[int], place: int) -> int:
    """How many tokens up to a place are also the last ones."""
    length = 0
    while length <= place and ids[place - length] == ids[len(ids) - 1 - length]:
        length += 1
    return length


@given(st.lists(FEW, max_size=60), st.lists(FEW, min_size=1, max_size=8), st.lists(FEW, max_size=20), st.integers(1, 9))
def test_a_draft_is_what_followed_the_longest_run(
    document: list[int], question: list[int], answer: list[int], most: int
) -> None:
    drafts = Drafts(document, question, (), len(answer))
    for token in answer:
        drafts.add(token)
    ids = [*document, *question, *answer]
    runs = [run_before(ids, place) for place in range(len(ids) - 1)]
    best = [place for place, run in enumerate(runs) if run == max(runs) > 0]
    allowed = [ids[place + 1 : place + 1 + most] for place in best] or [[]]
    assert drafts.propose(most) in allowed


def test_of_several_places_it_is_the_one_that_the_question_asks_about() -> None:
    the, opens, at, six, bakery, museum = 3, 4, 5, 6, 7, 8
    document = [the, bakery, opens, at, six, *[20] * 30, the, museum, opens, at, 9, *[21] * 30, the, *range(30, 50)]
    drafts = Drafts(document, [60, museum, 61], (), 8)
    drafts.add(the)
    assert drafts.propose(4) == [museum, opens, at, 9]


def test_the_previous_answer_is_proposed_as_long_as_it_is_right() -> None:
    drafts = Drafts([3, 4, 5, 6, 7], [9], [3, 4, 8, 8, 2], 8)
    assert drafts.propose(3) == [3, 4, 8]
    drafts.add(3)
    assert drafts.propose(9) == [4, 8, 8, 2]
    drafts.add(4)
    drafts.add(5)
    assert drafts.propose(2) == [6, 7]  # it went another way: the document knows more


def test_nothing_is_proposed_where_nothing_is_known() -> None:
    assert Drafts([3, 4], [5], (), 4).propose(4) == []
    assert Drafts([], [5], (), 4).propose(4) == []
    assert Drafts([3, 5], [5], (), 4).propose(0) == []


class Guesses(Drafts):
    """Right or wrong, as it is told; beyond that, as usual."""

    truth: Sequence[int] = ()
    wrong: Sequence[int] = ()

    def propose(self, most: int) -> list[int]:
        at = self._length - self._start
        usual = super().propose(most)
        guess = [*self.truth[at : at + most]] or usual
        return [3 if at + place in self.wrong else token for place, token in enumerate(guess[:most])]


@functools.cache
def model_of(dtype: str, window: int | None, device: str = "cpu") -> tuple[LoadedModel, Result]:
    """A random model, and what the self-test says of it."""
    loaded = loaded_random(TOKENIZER, sliding_window=window)
    loaded.model.to(device, getattr(torch, dtype))
    return loaded, self_test(loaded, None)


def decoded(
    model: Any, text: list[int], question: list[int], many: int, **how: Any
) -> tuple[list[int], list[torch.Tensor]]:
    """The tokens of an answer, and the bits of all keys and values that are behind it."""
    cache = InPlaceCache(model.config)
    prefill(model, torch.tensor([text]), cache, chunk_size=CHUNK)
    tokens = list(generate_step(model, torch.tensor([question]), cache, max_new_tokens=many, chunk_size=CHUNK, **how))
    clean_up(cache, len(text) + len(question) + len(tokens) - 1)
    return tokens, [each.clone() for layer in cache.layers for each in (layer.keys, layer.values)]


@pytest.mark.parametrize("device", DEVICES)
@settings(ENGINE)
@given(
    dtype=st.sampled_from(["float32", "bfloat16"]),
    window=st.sampled_from([None, 23]),
    text=st.lists(st.integers(3, 12), min_size=1, max_size=150),
    question=st.lists(st.integers(3, 12), min_size=1, max_size=20),
    many=st.integers(1, 24),
    right=st.booleans(),
    wrong=st.sets(st.integers(0, 23), max_size=4),
)
def test_an_answer_with_drafts_is_the_one_without_bit_for_bit(
    device: str,
    dtype: str,
    window: int | None,
    text: list[int],
    question: list[int],
    many: int,
    right: bool,
    wrong: set[int],
) -> None:
    (loaded, result), counts = model_of(dtype, window, device), DraftCounts()
    assert result.widths or device != "cpu"  # on every CPU that was tried
    plain, bits = decoded(loaded.model, text, question, many, widths=result.widths)
    drafts = Guesses(text, question, (), many)
    drafts.truth, drafts.wrong = (plain if right else ()), sorted(wrong)
    ours, ours_bits = decoded(loaded.model, text, question, many, widths=result.widths, drafts=drafts, counts=counts)
    assert ours == plain
    assert all(map(torch.equal, ours_bits, bits))
    assert counts.accepted <= counts.drafted
    if right and not wrong and many > 2 and result.widths:
        assert counts.accepted == counts.drafted > 0


@pytest.mark.parametrize("device", DEVICES)
@settings(ENGINE)
@given(
    dtype=st.sampled_from(["float32", "bfloat16"]),
    text=st.lists(st.integers(3, 12), min_size=1, max_size=150),
    other=st.lists(st.integers(3, 12), min_size=1, max_size=60),
    common=st.integers(0, 150),
    question=st.lists(st.integers(3, 12), min_size=1, max_size=20),
)
def test_an_answer_after_a_history_is_the_one_without_bit_for_bit(
    device: str, dtype: str, text: list[int], other: list[int], common: int, question: list[int]
) -> None:
    loaded, result = model_of(dtype, None, device)
    assert result.passed or device != "cpu"  # on every CPU that was tried
    plain, bits = decoded(loaded.model, text, question, 9, widths=result.widths)
    # Another text was read first, and asked about; then what is common is kept, down to a chunk, and the rest is read.
    cache = InPlaceCache(loaded.model.config)
    before = [*text[:common], *other]
    prefill(loaded.model, torch.tensor([before]), cache, chunk_size=CHUNK)
    list(generate_step(loaded.model, torch.tensor([question]), cache, max_new_tokens=5, chunk_size=CHUNK))
    kept = min(common, len(text)) // CHUNK * CHUNK
    if kept == len(text):
        kept -= CHUNK
    clean_up(cache, kept)
    prefill(loaded.model, torch.tensor([text[kept:]]), cache, chunk_size=CHUNK)
    ours = list(
        generate_step(
            loaded.model, torch.tensor([question]), cache, max_new_tokens=9, chunk_size=CHUNK, widths=result.widths
        )
    )
    if result.passed:
        clean_up(cache, len(text) + len(question) + len(ours) - 1)
        assert ours == plain
        assert all(map(torch.equal, [each for layer in cache.layers for each in (layer.keys, layer.values)], bits))


def test_an_answer_that_is_stopped_leaves_whole_passes() -> None:
    loaded, result = model_of("bfloat16", None)
    text, question = list(range(3, 60)), [3, 4, 5]
    for asked in range(0, 120, 7):
        cache = InPlaceCache(loaded.model.config)
        prefill(loaded.model, torch.tensor([text]), cache, chunk_size=CHUNK)
        given: list[int] = []
        how = {"widths": result.widths, "drafts": Drafts(text, question, (), 12), "should_stop": After(asked)}
        try:
            for token in generate_step(loaded.model, torch.tensor([question]), cache, max_new_tokens=12, **how):
                given.append(token)
        except Stopped:
            lengths = {layer.get_seq_length() for layer in cache.layers}
            assert len(lengths) == 1
            assert lengths.pop() in {len(text), *(len(text) + len(question) + many for many in range(len(given) + 1))}
        clean_up(cache, len(text))


TEXT = "The bakery on Mill Street opens at six. Anna bakes the rye bread. The oven was built by Tom Reed in 1912.\n"


def test_what_quotes_the_document_takes_few_passes() -> None:
    loaded = load_model("embedded")
    engine = Engine(loaded, widths=self_test(loaded, None).widths)
    assert engine._widths  # on every CPU that was tried
    engine.prepare("d", "1", TEXT * 4)
    passes = []
    loaded.model.get_decoder().register_forward_hook(lambda *_: passes.append(1))
    plain = Engine(loaded)
    plain.prepare("d", "1", TEXT * 4)
    passes.clear()
    answer = engine.ask("d", "When does the bakery open?")
    quick, slow = len(passes), plain.ask("d", "When does the bakery open?")
    assert answer.text == slow.text
    assert (slow.drafted, slow.accepted) == (0, 0)
    assert 0 < answer.accepted <= answer.drafted
    assert answer.generated - answer.accepted < quick <= answer.generated // 2


def test_after_an_edit_the_previous_answer_is_the_first_draft() -> None:
    loaded, result = model_of("float32", None)
    engine = Engine(loaded, widths=result.widths)
    assert result.widths  # on every CPU that was tried
    engine.prepare("d", "1", "Once. " + TEXT)
    first = engine.ask("d", "Why?", max_new_tokens=20)
    again = engine.ask("d", "Why?", max_new_tokens=20)
    assert (again.text, again.generated) == (first.text, first.generated)
    assert again.accepted == again.drafted > first.accepted  # a random model's words stand nowhere else


def test_answers_are_remembered_by_document_and_question_and_not_for_ever() -> None:
    loaded, result = model_of("float32", None)
    engine = Engine(loaded, widths=result.widths)
    engine.prepare("d", "1", TEXT)
    for number in range(REMEMBERED + 3):
        engine.ask("d", f"Why {number}?", max_new_tokens=1)
    assert len(engine._answers) == REMEMBERED
    assert not any("Why 0?" in TOKENIZER.decode(ids) for _, ids in engine._answers)
