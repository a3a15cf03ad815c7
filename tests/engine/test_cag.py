"""The public core, against a forward pass over everything without a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Cache, DynamicCache

import cag_daemon
from cag_daemon.engine.cag import clean_up, generate, generate_step, get_kv_cache, prefill
from cag_daemon.engine.devices import default_chunk
from cag_daemon.engine.kv_cache import InPlaceCache
from cag_daemon.errors import Stopped
from tests.engine.caches import After
from tests.models import VOCABULARY, random_mistral

ENGINE = settings.get_profile("engine")
WINDOWS = (None, 7)
MODELS = {window: random_mistral(seed=3, sliding_window=window) for window in WINDOWS}
PLAIN = {window: random_mistral(seed=3, sliding_window=window, packed=False) for window in WINDOWS}
KINDS: dict[str, Callable[[Any], Cache]] = {"in place": InPlaceCache, "plain": lambda config: DynamicCache()}
NEAR = 1e-4  # two logits this close may change places

tokens = st.integers(3, 63)
texts = st.lists(tokens, min_size=1, max_size=50)
questions = st.lists(tokens, min_size=1, max_size=12)


def row(ids: list[int]) -> torch.Tensor:
    return torch.tensor([ids])


def snapshot(cache: Cache) -> list[torch.Tensor]:
    return [t.clone() for layer in cache.layers for t in (layer.keys, layer.values)]


def same(cache: Cache, before: list[torch.Tensor]) -> bool:
    after = snapshot(cache)
    return len(before) == len(after) and all(map(torch.equal, before, after))


def agrees_with_a_fresh_reading(model: Any, prompt: list[int], answer: list[int]) -> None:
    """Every token is the best one after all that comes before it, read without any cache."""
    with torch.no_grad():
        logits = model(row(prompt + answer), use_cache=False).logits[0, len(prompt) - 1 : -1]
    for position, (token, scores) in enumerate(zip(answer, logits, strict=True)):
        assert scores.max() - scores[token] <= NEAR, f"token {position} of {answer}"


@st.composite
def asks(draw: Any) -> tuple[list[int], int, int | None]:
    """A question, the answer's length, and after how many layers it is stopped."""
    return draw(questions), draw(st.integers(1, 6)), draw(st.none() | st.integers(0, 25))


@settings(ENGINE)
@given(
    window=st.sampled_from(WINDOWS),
    kind=st.sampled_from(sorted(KINDS)),
    packed=st.booleans(),
    text=texts,
    chunk=st.sampled_from([1, 4, 16, 64]),
    stops=st.lists(st.integers(0, 12), max_size=3),
    rounds=st.lists(asks(), min_size=1, max_size=4),
)
def test_cached_is_uncached(
    window: int | None,
    kind: str,
    packed: bool,
    text: list[int],
    chunk: int,
    stops: list[int],
    rounds: list[tuple[list[int], int, int | None]],
) -> None:
    model = (MODELS if packed else PLAIN)[window]
    # 1. The document, read with interruptions.
    cache = KINDS[kind](model.config)
    for stop in stops:
        done = cache.get_seq_length()
        if done < len(text):
            try:
                prefill(model, row(text[done:]), cache, chunk_size=chunk, should_stop=After(stop))
            except Stopped:
                assert cache.get_seq_length() % chunk == 0
                assert {layer.get_seq_length() for layer in cache.layers} <= {cache.get_seq_length()}
    if cache.get_seq_length() < len(text):
        prefill(model, row(text[cache.get_seq_length() :]), cache, chunk_size=chunk)
    # 2. It is bit for bit what an uninterrupted reading gives.
    fresh = KINDS[kind](model.config)
    prefill(model, row(text), fresh, chunk_size=chunk)
    document = snapshot(fresh)
    assert same(cache, document)
    # 3. Questions, some of them stopped in some layer: none leaves a trace.
    for question, length, stop in rounds:
        given: list[int] = []
        try:
            steps = generate_step(
                model,
                row(question),
                cache,
                max_new_tokens=length,
                chunk_size=chunk,
                should_stop=None if stop is None else After(stop),
            )
            for token in steps:
                given.append(token)
        except Stopped:
            assert stop is not None
        else:
            assert len(given) == length
        agrees_with_a_fresh_reading(model, text + question, given)
        clean_up(cache, len(text))
        assert same(cache, document)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_generate_is_transformers_generate(kind: str) -> None:
    model = MODELS[None]
    text, question = list(range(3, 40)), [5, 9, 7]
    cache = KINDS[kind](model.config)
    prefill(model, row(text), cache)
    theirs = model.generate(row(text + question), max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert generate(model, row(question), cache, 12).tolist() == theirs[:, len(text) + len(question) :].tolist()


def test_the_tutorials_flow(tokenizer: Any) -> None:
    from transformers import AutoModelForCausalLM

    from tests.models import EMBEDDED

    model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32, local_files_only=True)
    prompt = "<s>[INST] The bakery opens at six. Anna bakes the rye bread. The oven was built by Tom Reed.\n\n"
    cache = cag_daemon.get_kv_cache(model, tokenizer, prompt)
    n = cache.get_seq_length()
    for _ in range(2):
        for question, words in (("Who bakes the rye bread?", "Anna"), ("Who built the oven?", "Tom Reed")):
            cag_daemon.clean_up(cache, n)
            ids = tokenizer(f"Question: {question} [/INST]", return_tensors="pt").input_ids
            out = cag_daemon.generate(model, ids, cache, 50)
            assert words in tokenizer.decode(out[0], skip_special_tokens=True)
            assert out[0, -1] == tokenizer.eos_token_id
    cag_daemon.clean_up(cache, n)
    assert cache.get_seq_length() == n


def test_chunks_begin_at_absolute_multiples() -> None:
    model = MODELS[None]
    widths: list[int] = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        cache, progress = InPlaceCache(model.config), []
        prefill(model, row([5] * 10), cache, chunk_size=8)
        prefill(model, row([6] * 15), cache, chunk_size=8, progress=lambda *at: progress.append(at))
    finally:
        hook.remove()
    assert widths == [8, 2, 6, 8, 1]
    assert progress == [(6, 15), (14, 15), (15, 15)]


def test_reading_makes_no_logits_and_answering_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = MODELS[None], []
    hook = model.lm_head.register_forward_hook(lambda module, args, output: rows.append(output.shape[1]))
    try:
        cache = InPlaceCache(model.config)
        prefill(model, row([5] * 40), cache, chunk_size=16)
        assert rows == []
        list(generate_step(model, row([6] * 40), cache, max_new_tokens=2, chunk_size=16))
    finally:
        hook.remove()
    assert rows == [1, 1]


def test_between_chunks_the_cache_is_whole() -> None:
    model = MODELS[None]
    cache, lengths = InPlaceCache(model.config), []
    prefill(
        model,
        row([5] * 40),
        cache,
        chunk_size=16,
        between_chunks=lambda: lengths.append({layer.get_seq_length() for layer in cache.layers}),
    )
    assert lengths == [{16}, {32}]


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_pass_that_fails_leaves_no_trace(kind: str, layer: int) -> None:
    model = MODELS[None]
    cache = KINDS[kind](model.config)
    prefill(model, row([5] * 20), cache)
    before = snapshot(cache)

    def fail(*_: Any) -> None:
        raise RuntimeError("out of luck")

    hook = model.model.layers[layer].mlp.register_forward_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="out of luck"):
            prefill(model, row([6] * 5), cache)
    finally:
        hook.remove()
    assert same(cache, before)


ASKED_PER_PASS = 3 * (1 + 7)  # layers, and the linear ones in each


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("asked", [0, 1, 2, 7, 8, 13, 23, 24, 25, 40, 47, 48, 60, 71])
def test_a_reading_stopped_before_any_layer_can_go_on(kind: str, asked: int) -> None:
    model, text = MODELS[None], list(range(3, 48))
    cache, fresh = KINDS[kind](model.config), KINDS[kind](model.config)
    prefill(model, row(text), fresh, chunk_size=16)
    with pytest.raises(Stopped):
        prefill(model, row(text), cache, chunk_size=16, should_stop=After(asked))
    done = asked // ASKED_PER_PASS * 16
    assert {layer.get_seq_length() for layer in cache.layers} <= {done}
    prefill(model, row(text[done:]), cache, chunk_size=16)
    assert same(cache, snapshot(fresh))


@pytest.mark.parametrize("asked", range(8))
def test_stopping_takes_its_hooks_away(asked: int) -> None:
    model = MODELS[None]
    cache = InPlaceCache(model.config)
    with pytest.raises(Stopped):
        list(generate_step(model, row([6] * 5), cache, should_stop=After(asked)))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_should_stop_is_asked_before_every_layer_and_its_seven_linear_ones() -> None:
    calls: list[int] = []
    prefill(
        MODELS[None],
        row([5] * 32),
        InPlaceCache(MODELS[None].config),
        chunk_size=16,
        should_stop=lambda: calls.append(1),
    )
    assert len(calls) == 2 * ASKED_PER_PASS


@pytest.fixture
def ends() -> Callable[[Any, Any], Any]:
    """A model whose generation config and config name these end tokens."""
    model = random_mistral(seed=3)

    def named(generation: Any, config: Any) -> Any:
        model.generation_config.eos_token_id, model.config.eos_token_id = generation, config
        return model

    return named


@pytest.mark.parametrize("where", ["generation", "list", "config", "none"])
def test_the_end_token_is_the_last_one(ends: Any, where: str) -> None:
    model, question = ends(None, None), row([5, 9, 7])
    free = generate(model, question, InPlaceCache(model.config), 10)[0].tolist()
    end = free[4]
    model = ends(
        *{"generation": (end, 63), "list": ([60, end], None), "config": (None, end), "none": (None, None)}[where]
    )
    got = generate(model, question, InPlaceCache(model.config), 10)[0].tolist()
    assert got == (free if where == "none" else free[: free.index(end) + 1])


def test_no_new_tokens_is_an_empty_answer() -> None:
    out = generate(MODELS[None], row([5]), InPlaceCache(MODELS[None].config), 0)
    assert out.shape == (1, 0)
    assert out.dtype == torch.long


@pytest.mark.parametrize(
    "ids", [torch.zeros(1, 0, dtype=torch.long), torch.zeros(2, 3, dtype=torch.long), torch.arange(3)]
)
@pytest.mark.parametrize("call", [prefill, generate, generate_step])
def test_only_one_sequence_is_read(ids: torch.Tensor, call: Any) -> None:
    with pytest.raises(ValueError, match="input_ids"):
        call(MODELS[None], ids, InPlaceCache(MODELS[None].config))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_clean_up_wants_a_cache_that_is_long_enough(kind: str) -> None:
    cache = KINDS[kind](MODELS[None].config)
    with pytest.raises(ValueError, match="0 tokens can't be cleaned up to 1"):
        clean_up(cache, 1)
    clean_up(cache, 0)
    prefill(MODELS[None], row([5] * 4), cache)
    with pytest.raises(ValueError, match="4 tokens"):
        clean_up(cache, 5)
    with pytest.raises(ValueError, match="to -1"):
        clean_up(cache, -1)
    clean_up(cache, 0)
    assert cache.get_seq_length() == 0
    prefill(MODELS[None], row([5] * 4), cache)


def test_a_cache_made_in_inference_mode_is_good_outside() -> None:
    model = MODELS[None]
    cache = InPlaceCache(model.config)
    with torch.inference_mode():
        prefill(model, row([5] * 4), cache)
    with torch.enable_grad():
        prefill(model, row([5] * 4), cache)
        generate(model, row([6]), cache, 2)


def test_an_abandoned_answer_can_be_cleaned_up() -> None:
    model = MODELS[None]
    cache = InPlaceCache(model.config)
    prefill(model, row([5] * 4), cache)
    before = snapshot(cache)
    next(generate_step(model, row([6] * 3), cache))
    clean_up(cache, 4)
    assert same(cache, before)


def test_chunks_are_multiples_of_the_grid() -> None:
    kinds, dtypes = ("cpu", "cuda", "mps"), (torch.float32, torch.bfloat16, torch.float16)
    assert all(default_chunk(torch.device(kind), dtype) % 64 == 0 for kind in kinds for dtype in dtypes)


def test_a_cpu_reads_few_tokens_at_a_time_in_a_type_that_it_does_not_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for known, bfloat16 in (
        ({"avx512_bf16": True}, 128),
        ({"bf16": True}, 128),
        ({"avx512_bf16": False}, 64),
        ({}, 64),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known, raising=False)
        assert default_chunk(cpu, torch.bfloat16) == bfloat16
        assert default_chunk(cpu, torch.float16) == 64
        assert default_chunk(cpu, torch.float32) == 128
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)  # an older torch does not say
    assert default_chunk(cpu, torch.bfloat16) == 64


def test_get_kv_cache_reads_the_prompt_as_it_is(tokenizer: Any) -> None:
    model = random_mistral(vocab_size=VOCABULARY)
    prompt = "<s>[INST] One. Two."
    assert get_kv_cache(model, tokenizer, prompt).get_seq_length() == len(tokenizer(prompt).input_ids)
