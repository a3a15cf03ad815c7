"""A question that is read while it is typed has the bits of one that is read at once, and leaves nothing behind."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cag_daemon.engine.decoding import in_chunks
from cag_daemon.engine.engine import Answer, Engine
from cag_daemon.engine.self_test import self_test
from tests.engine.caches import BAKERY, CHUNK, After, identical, kv
from tests.models import embedded_tokenizer, loaded_random

ENGINE = settings.get_profile("engine")
TOKENIZER = embedded_tokenizer()
WORDS = st.lists(
    st.sampled_from(["who", "what", "bakes", "the", "oven", "bread", "when", "rye", "of", "and", "Anna", "?"]),
    max_size=14,
)
QUESTIONS = WORDS.map(lambda words: " ".join(["Why", *words]))


def engine_of(dtype: str) -> Engine:
    loaded = loaded_random(TOKENIZER)
    loaded.model.to(getattr(torch, dtype))
    engine = Engine(loaded, widths=self_test(loaded, None).widths)
    assert engine._widths  # on every CPU that was tried
    engine.prepare("d", "1", BAKERY * 3)
    engine.prepare("e", "1", BAKERY)
    return engine


ENGINES = {dtype: engine_of(dtype) for dtype in ("float32", "bfloat16")}
PLAIN = {dtype: engine_of(dtype) for dtype in ENGINES}


def behind(engine: Engine, document: str, many: int) -> list[torch.Tensor]:
    """The bits of the last so many tokens in a document's buffer."""
    layers = engine._caches._documents[document].cache.buffer.layers
    return [t[:, :, -many:].clone() for layer in layers for t in (layer.keys, layer.values)]


def words_of(answer: Answer) -> tuple[object, ...]:
    return answer.text, answer.generated, answer.finish_reason, answer.prompt, answer.cached


@settings(ENGINE)
@given(
    dtype=st.sampled_from(sorted(ENGINES)),
    typed=st.lists(st.tuples(QUESTIONS, st.none() | st.integers(0, 60)), min_size=1, max_size=4),
    question=st.none() | QUESTIONS,
    selection=st.none() | st.just("The oven was built in 1912."),
    between=st.sampled_from([None, None, "e", "prepare", "quiet", "forget"]),
)
def test_an_answer_is_the_one_without_typing(
    dtype: str,
    typed: list[tuple[str, int | None]],
    question: str | None,
    selection: str | None,
    between: str | None,
) -> None:
    engine, plain = ENGINES[dtype], PLAIN[dtype]
    before = kv(engine)
    for words, stop in typed:
        engine.typing("d", words, selection, After(stop) if stop is not None else lambda: False)
    if between == "e":
        assert words_of(engine.ask("e", "Why?", max_new_tokens=3)) == words_of(plain.ask("e", "Why?", max_new_tokens=3))
    elif between == "prepare":
        assert engine.prepare("d", "1", BAKERY * 3).computed == 0
    elif between == "quiet":
        engine.quiet()
    elif between == "forget":
        engine.forget("nobody's")
    asked = question if question is not None else typed[-1][0]
    ours = engine.ask("d", asked, selection, max_new_tokens=5)
    assert words_of(ours) == words_of(plain.ask("d", asked, selection, max_new_tokens=5))
    assert identical(kv(engine), before)


@settings(ENGINE)
@given(dtype=st.sampled_from(sorted(ENGINES)), typed=st.lists(QUESTIONS, min_size=1, max_size=4), question=QUESTIONS)
def test_what_is_read_has_the_bits_of_a_question_read_at_once(dtype: str, typed: list[str], question: str) -> None:
    engine, plain = ENGINES[dtype], PLAIN[dtype]
    for words in [*typed, question]:
        engine.typing("d", words, None, lambda: False)
    plain.quiet()
    plain.typing("d", question, None, lambda: False)
    many = len(engine._caches._documents["d"].text.template.question_ids(question, None))
    assert identical(behind(engine, "d", many), behind(plain, "d", many))
    for each in (engine, plain):
        each.quiet()
        kv(each)  # nothing is left behind the document


def test_only_what_was_not_typed_is_read_when_it_is_asked() -> None:
    engine = ENGINES["bfloat16"]
    question = "Who bakes the rye bread?"
    ids = engine._caches._documents["d"].text.template.question_ids(question, None)
    rows: list[int] = []
    hook = engine.loaded.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        engine.typing("d", question, None, lambda: False)
        assert sum(rows) >= len(ids)
        rows.clear()
        engine.typing("d", question, None, lambda: False)
        assert rows == []
        engine.ask("d", question, max_new_tokens=1)
        if in_chunks(len(ids), CHUNK) < len(ids):
            assert rows == [min(engine._widths)]
    finally:
        hook.remove()


def test_where_nothing_agrees_or_there_is_no_room_nothing_is_read_ahead() -> None:
    loaded = loaded_random(TOKENIZER)
    engine = Engine(loaded)
    engine.prepare("d", "1", BAKERY)
    before = kv(engine)
    engine.typing("d", "Why?", None, lambda: False)
    assert identical(kv(engine), before)
    engine = ENGINES["float32"]
    engine.typing("nobody's", "Why?", None, lambda: False)
    capacity = engine._caches._documents["d"].cache.buffer.capacity
    engine.typing("d", "Why is it so? " * 200, None, lambda: False)
    assert engine._caches._documents["d"].cache.buffer.capacity == capacity
    kv(engine)
