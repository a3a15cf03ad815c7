"""The models that are known, what they need, and which is chosen for whom."""

from __future__ import annotations

import pytest

from cag_daemon.advice import READ_SECONDS, TOKENS_A_SECOND, Machine, advise, read_seconds, row, tokens_a_second
from cag_daemon.catalogue import (
    HEAD_BYTES,
    KNOWN,
    QUANTIZATIONS,
    WEIGHT_BYTES,
    Known,
    find,
    kv_bytes,
    memory_bytes,
    weight_bytes,
)

TOKENS = 10_000
# What their pages say, in billions: of the text decoder, without the part that sees.
BILLIONS = {
    "ministral-3b": 3.4,
    "ministral-8b": 8.5,
    "ministral-14b": 13.5,
    "mistral-small": 23.6,
    "mistral-nemo": 12.2,
    "mistral-7b": 7.25,
    "ministral-8b-2410": 8.0,
}
GB = 10**9
# Memory a model may take, operations and bytes a second, as such machines have them; and what suits them.
MACHINES = {
    "a CPU laptop with 16 GB": (Machine("cpu", "", int(9.6 * GB), 0.4e12, 35e9), "ministral-3b", "int8"),
    "a CPU laptop with 8 GB": (Machine("cpu", "", int(4.8 * GB), 0.3e12, 25e9), "ministral-3b", "int4"),
    "a GPU with 8 GB": (Machine("cuda", "", int(7.4 * GB), 25e12, 250e9), "ministral-3b", "int8"),
    "a GPU with 24 GB": (Machine("cuda", "", int(23.5 * GB), 120e12, 800e9), "ministral-14b", "int8"),
    "a GPU with 80 GB": (Machine("cuda", "", 79 * GB, 500e12, 2500e9), "mistral-small", "none"),
    "Apple silicon with 16 GB": (Machine("mps", "", int(10.7 * GB), 3e12, 90e9), "ministral-3b", "none"),
    "Apple silicon with 64 GB": (Machine("mps", "", 48 * GB, 10e12, 350e9), "mistral-small", "int8"),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_there_is_a_sensible_first_choice_for(machine: str) -> None:
    what, alias, quantization = MACHINES[machine]
    advice = advise(what, TOKENS)
    assert advice.first is not None
    assert (advice.first.model.alias, advice.first.quantization) == (alias, quantization)
    assert advice.first.memory <= what.memory
    assert not advice.first.model.gated
    assert advice.first.model.license == "Apache 2.0"
    assert advice.first.pleasant
    assert advice.why


@pytest.mark.parametrize("machine", MACHINES)
def test_each_model_has_one_row_held_as_it_fits(machine: str) -> None:
    what = MACHINES[machine][0]
    advice = advise(what, TOKENS)
    assert [each.model for each in advice.rows] == [each for each in KNOWN if each.listed]
    assert advice.first in advice.rows
    for each in advice.rows:
        better = QUANTIZATIONS[: QUANTIZATIONS.index(each.quantization)]
        if each is not advice.first:
            assert not any(row(each.model, other, what, TOKENS).fits for other in better)


def test_a_slow_machine_gets_what_reads_fastest_and_is_told_to_wait() -> None:
    advice = advise(Machine("cpu", "", 24 * GB, 5e9, 5e9), TOKENS)
    assert advice.first is not None
    assert advice.first.model.alias == "ministral-3b"
    assert advice.first.quantization == "int8"
    assert "you will wait" in advice.why


def test_where_nothing_fits_there_is_no_first_choice() -> None:
    advice = advise(Machine("cpu", "", 2 * GB, 1e12, 5e10), TOKENS)
    assert advice.first is None
    assert "nothing fits" in advice.why
    assert not any(each.fits for each in advice.rows)


def test_a_document_beyond_the_context_does_not_fit() -> None:
    machine = Machine("cuda", "", 10**12, 1e15, 1e13)
    fits = {each.model.alias: each.fits for each in advise(machine, 50_000).rows}
    assert fits["mistral-7b"] is False
    assert fits["ministral-3b"] is True


def test_shapes_give_the_parameters_that_the_pages_name() -> None:
    for alias, billions in BILLIONS.items():
        known = find(alias)
        assert known is not None
        assert known.parameters / 1e9 == pytest.approx(billions, rel=0.02)
    assert set(BILLIONS) == {each.alias for each in KNOWN if each.listed}


def test_what_is_downloaded_is_what_is_stored() -> None:
    """Two bytes a number; in FP8 one, but for the embeddings; and with Ministral 3 a part that sees, of 0.4 billion."""
    for each in KNOWN:
        sees = 0.85e9 if each.alias.startswith(("ministral-3b", "ministral-14b", "mistral-small")) else 0
        sees = 0.85e9 if each.alias in ("ministral-8b", "ministral-8b-bf16") else sees
        layers = each.layer_weights * (1 if each.stored == "FP8" else 2)
        tables = each.table * 2 * (1 if each.tied else 2)
        assert each.download == pytest.approx(layers + tables + sees, rel=0.02), each.alias


def test_a_token_of_mistral_7b_takes_128_kibibytes() -> None:
    known = find("mistral-7b")
    assert known is not None
    assert kv_bytes(known) == 128 * 1024


@pytest.mark.parametrize("known", KNOWN, ids=lambda each: each.alias)
def test_rounding_takes_less_and_answers_faster(known: Known) -> None:
    sizes = [weight_bytes(known, each) for each in QUANTIZATIONS]
    speeds = [tokens_a_second(known, each, TOKENS, 1e11) for each in QUANTIZATIONS]
    assert sizes == sorted(sizes, reverse=True)
    assert speeds == sorted(speeds)
    assert sizes[0] == known.parameters * 2
    assert memory_bytes(known, "int4", 2 * TOKENS) > memory_bytes(known, "int4", TOKENS)
    assert read_seconds(known, 2 * TOKENS, 1e12) > 2 * read_seconds(known, TOKENS, 1e12)


def test_names_are_found_in_any_case_and_each_names_one() -> None:
    names = [name for each in KNOWN for name in (each.alias, each.id.lower())]
    assert len(names) == len(set(names))
    assert find("MINISTRAL-3B") is find("mistralai/ministral-3-3b-instruct-2512") is KNOWN[0]
    assert find("nonsense") is None


def test_pleasant_is_what_nobody_waits_long_for() -> None:
    known = KNOWN[0]
    flops = read_seconds(known, TOKENS, 1) / READ_SECONDS
    bandwidth = TOKENS_A_SECOND / tokens_a_second(known, "none", TOKENS, 1)
    assert row(known, "none", Machine("cpu", "", 10**11, flops * 1.01, bandwidth * 1.01), TOKENS).pleasant
    assert not row(known, "none", Machine("cpu", "", 10**11, flops * 0.99, bandwidth * 1.01), TOKENS).pleasant
    assert not row(known, "none", Machine("cpu", "", 10**11, flops * 1.01, bandwidth * 0.99), TOKENS).pleasant


def test_a_rounded_weight_takes_what_the_engine_says() -> None:
    from cag_daemon.engine.quantize import LM_HEAD, quantized_bytes

    for quantization in ("int8", "int4"):
        size = quantized_bytes(8192, 8192, quantization) / 8192**2
        assert WEIGHT_BYTES[quantization] == pytest.approx(size, rel=0.001)
        assert HEAD_BYTES[quantization] == WEIGHT_BYTES[LM_HEAD]
