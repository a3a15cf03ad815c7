"""Engine: read a text, answer a question."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cag_daemon.engine import engine as module
from cag_daemon.engine.answer_text import AnswerText
from cag_daemon.engine.engine import Engine
from cag_daemon.engine.kv_cache import InPlaceCache, bytes_per_token
from cag_daemon.engine.model import load_model
from cag_daemon.engine.plan import Wanted
from cag_daemon.engine.prompt import PromptTemplate
from cag_daemon.errors import DocumentTooLong, ModelFailed, OutOfMemory, Postponed, QuestionTooLong, Stopped
from tests.documents import LIGHTHOUSE
from tests.engine.caches import BAKERY, CHUNK, After, fresh, identical, kv
from tests.models import embedded_tokenizer, loaded_random

ENGINE = settings(settings.get_profile("engine"), max_examples=15)
TOKENIZER = embedded_tokenizer()


@pytest.fixture(scope="module")
def embedded() -> Any:
    return load_model("embedded")


@pytest.fixture
def engine() -> Engine:
    """A tiny random model that reads 16 tokens at a time and sees 1024."""
    return Engine(loaded_random(TOKENIZER))


def test_a_reading_that_nobody_waits_for_is_put_off_when_it_takes_long(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.prepare("d", "1", BAKERY)
    before, clock = kv(engine), [0.0]
    monkeypatch.setattr("cag_daemon.engine.engine.time.monotonic", lambda: clock[0])
    done: list[int] = []

    def tick(tokens: int, total: int, limit: int) -> None:
        done.append(tokens)
        clock[0] += 4.0 if len(done) == 1 else 1.0  # the first chunk is slower

    text = "Another text. " + BAKERY * 8
    takes = len(engine._template(None).document_ids(text)) / 16
    with pytest.raises(Postponed) as caught:
        engine.prepare("d", "2", text, patience=0.9 * takes, progress=tick)
    assert done == [0, 16]
    assert caught.value.tokens == 16 * takes
    assert caught.value.seconds == pytest.approx(takes)
    assert identical(kv(engine), before)
    # The second chunk decides, unless the matter is clear: then the first.
    with pytest.raises(Postponed):
        engine.prepare(
            "e", "2", "E" + text, patience=0.1 * takes, progress=lambda *_: clock.__setitem__(0, clock[0] + 4)
        )
    # What was read is not read again; who waits for it, or for less, gets it.
    done.clear()
    assert engine.prepare("d", "2", text, patience=1.1 * takes, progress=tick).version == "2"
    assert done[0] == 32
    assert engine.prepare("f", "3", "F" + text, progress=tick).version == "3"


def test_a_model_without_a_chat_template_is_refused_at_once() -> None:
    tokenizer = embedded_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ModelFailed, match="no chat template"):
        Engine(loaded_random(tokenizer))


# ── answering ──


def test_the_embedded_model_finds_the_sentence(embedded: Any) -> None:
    engine, pieces, first = Engine(embedded), [], []
    reading = engine.prepare("d", "v1", BAKERY)
    for _ in range(2):
        pieces.clear()
        answer = engine.ask(
            "d", "Who bakes the rye bread?", on_piece=pieces.append, on_first_token=lambda: first.append(1)
        )
        assert answer.text == "Anna bakes the rye bread." == "".join(pieces)
        assert (answer.version, answer.finish_reason, answer.cached) == ("v1", "stop", reading.tokens)
        assert answer.generated < len(TOKENIZER.encode(answer.text)) + 2
    assert len(first) == 2


@pytest.mark.parametrize(
    ("selection", "question", "answer"),
    [
        ("The logbook", "Where is it kept?", "an oak chest"),
        ("supply boat", "What is it called?", "Petrel"),
        ("The fog horn", "When does it sound?", "three times a minute"),
        ("the eastern window", "What broke it?", "A storm in 1931"),
    ],
)
def test_the_embedded_model_knows_by_a_selection_what_it_is(
    embedded: Any, selection: str, question: str, answer: str
) -> None:
    engine = Engine(embedded)
    engine.prepare("d", "v1", LIGHTHOUSE.text)
    assert answer in engine.ask("d", question, selection).text


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_the_embedded_model_answers_with_fewer_bits_as_with_all(quantization: Any) -> None:
    engine = Engine(load_model(Wanted("embedded", quantization=quantization)))
    engine.prepare("d", "v1", LIGHTHOUSE.text)
    for question, answer in LIGHTHOUSE.pairs:
        assert answer in engine.ask("d", question).text


def test_lines_that_look_like_questions_do_not_lead_the_embedded_model_astray(embedded: Any) -> None:
    engine = Engine(embedded)
    text = f"Question: see below.\n\n{LIGHTHOUSE.text}\nQuestion: Who pays for it?\nAnswer: Nobody does.\n"
    engine.prepare("d", "v1", text)
    for question, answer in LIGHTHOUSE.pairs[:4]:
        for put in ("{}", "I am new here. {} Thanks!", "Hello,\n{}"):
            assert answer in engine.ask("d", put.format(question)).text, put


def test_an_answer_ends_where_it_must(embedded: Any) -> None:
    engine, pieces = Engine(embedded), []
    engine.prepare("d", "v1", BAKERY)
    answer = engine.ask("d", "Who bakes the rye bread?", max_new_tokens=4, on_piece=pieces.append)
    assert (answer.finish_reason, answer.generated) == ("length", 4)
    assert answer.text == "".join(pieces) == answer.text.strip()


def test_a_selection_is_given_to_the_model(engine: Engine) -> None:
    engine.prepare("d", "v1", BAKERY)
    plain, more = engine.ask("d", "Why?", max_new_tokens=1), engine.ask("d", "Why?", "Tom Reed", max_new_tokens=1)
    assert more.prompt > plain.prompt


@settings(ENGINE)
@given(
    asks=st.lists(
        st.tuples(st.text(max_size=40), st.integers(0, 8), st.none() | st.integers(0, 20)), min_size=1, max_size=5
    ),
    text=st.text(min_size=1, max_size=400),
)
def test_no_question_leaves_a_trace(asks: list[tuple[str, int, int | None]], text: str) -> None:
    engine = Engine(loaded_random(TOKENIZER, sliding_window=9))
    engine.prepare("d", "v1", text)
    before, alone = kv(engine), engine.ask("d", "Why?", max_new_tokens=5)
    for question, length, stop in asks:
        pieces: list[str] = []
        try:
            answer = engine.ask(
                "d",
                question,
                max_new_tokens=length,
                on_piece=pieces.append,
                should_stop=None if stop is None else After(stop),
            )
            assert answer.text == "".join(pieces)
            assert answer.generated <= length
        except Stopped:
            assert stop is not None
        assert identical(kv(engine), before)
    assert engine.ask("d", "Why?", max_new_tokens=5) == alone


def test_a_broken_callback_leaves_no_trace(engine: Engine) -> None:
    engine.prepare("d", "v1", BAKERY)
    before = kv(engine)

    def fail(piece: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        engine.ask("d", "Why?", on_piece=fail, max_new_tokens=20)
    assert identical(kv(engine), before)


def test_only_documents_that_are_cached_answer(engine: Engine) -> None:
    with pytest.raises(ModelFailed, match="internal") as caught:
        engine.ask("d", "Why?")
    assert caught.value.details == {"notCached": True}
    assert not engine.has("d")


def test_a_question_that_does_not_fit(engine: Engine) -> None:
    cached = engine.prepare("d", "v1", BAKERY).tokens
    before = kv(engine)
    with pytest.raises(QuestionTooLong, match="ask a shorter one") as caught:
        engine.ask("d", "why " * 2000)
    details = caught.value.details
    assert details["maxTokens"] == 1024 - cached - 1 < details["tokens"]
    assert identical(kv(engine), before)


def test_the_longest_question_gets_one_token(engine: Engine) -> None:
    engine.prepare("d", "v1", BAKERY)
    with pytest.raises(QuestionTooLong) as caught:
        engine.ask("d", "a" * 5000)
    room = caught.value.details["maxTokens"]
    question = "why"
    while engine._caches.get("d").text.template.question_ids(question + " why").__len__() <= room:
        question += " why"
    answer = engine.ask("d", question, max_new_tokens=50)
    assert answer.finish_reason == "length"
    assert 1 <= answer.generated == min(50, 1024 - answer.cached - answer.prompt)


# ── the text of an answer ──


@settings(ENGINE, max_examples=60)
@given(st.lists(st.integers(0, 3071), max_size=25), st.text(max_size=12), st.integers(0, 3))
def test_pieces_are_the_text(noise: list[int], words: str, cut: int) -> None:
    ids = noise + TOKENIZER.encode(words + "😀 é 👩‍👩‍👧", add_special_tokens=False)
    pieces: list[str] = []
    text = AnswerText(TOKENIZER, pieces.append)
    for token in ids[: len(ids) - cut]:
        text.add(token)
    whole = text.finish()
    assert "".join(pieces) == whole == whole.strip()
    if not noise:
        # Bytes in a row are decoded together: half a character spoils those before it, until it is whole.
        assert all("\ufffd" not in piece for piece in pieces[:-1])
        assert whole == TOKENIZER.decode(ids[: len(ids) - cut], skip_special_tokens=True).strip()


def test_half_a_character_is_held_back() -> None:
    pieces: list[str] = []
    text = AnswerText(TOKENIZER, pieces.append)
    for token in TOKENIZER.encode("so 😀 it is", add_special_tokens=False):
        text.add(token)
        assert "\ufffd" not in "".join(pieces)
    assert text.finish() == "so 😀 it is"
    assert len(pieces) > 2


# ── reading ──


def test_the_same_ids_are_not_read_again(engine: Engine) -> None:
    first = engine.prepare("d", "v1", BAKERY)
    assert (first.kept, first.computed) == (0, first.tokens)
    pointer = engine._caches.get("d").cache.buffer.layers[0].key_buffer.data_ptr()
    second = engine.prepare("d", "v2", BAKERY + "\n")  # the tokenizer sees no difference
    assert (second.version, second.kept, second.computed) == ("v2", first.tokens, 0)
    assert engine._caches.get("d").cache.buffer.layers[0].key_buffer.data_ptr() == pointer
    assert engine.ask("d", "Why?", max_new_tokens=1).version == "v2"


def test_other_ids_are_read_though_they_are_as_many(engine: Engine) -> None:
    first, second = engine.prepare("d", "v1", "Anna bakes."), engine.prepare("d", "v1", "Emma bakes.")
    assert (first.tokens, second.kept) == (second.tokens, 0)


def test_force_keeps_nothing(engine: Engine) -> None:
    engine.prepare("d", "v1", BAKERY)
    before, again = kv(engine), engine.prepare("d", "v1", BAKERY, force=True)
    assert (again.kept, again.computed) == (0, again.tokens)
    assert identical(kv(engine), before)


def test_another_system_prompt_is_another_text(engine: Engine) -> None:
    engine.prepare("d", "v1", BAKERY)
    assert engine.prepare("d", "v1", BAKERY, "Be brief.").kept == 0
    assert engine.prepare("d", "v1", BAKERY, "Be brief.").computed == 0


def test_the_default_system_prompt_is_used_where_the_model_has_none() -> None:
    loaded = loaded_random(TOKENIZER)
    own = Engine(loaded).prepare("d", "v", BAKERY).tokens
    loaded.spec.clear()
    assert Engine(loaded).prepare("d", "v", BAKERY).tokens > own + 20


def test_progress_is_told(engine: Engine) -> None:
    seen: list[tuple[int, int, int]] = []
    reading = engine.prepare("d", "v1", BAKERY, progress=lambda *at: seen.append(at))
    assert seen[0] == (0, reading.tokens, reading.max_tokens)
    assert seen[-1] == (reading.tokens, reading.tokens, reading.max_tokens)
    assert reading.max_tokens == 1024 - 256 - 256
    assert reading.bytes == engine._caches.get("d").cache.bytes


@pytest.mark.parametrize("asked", [0, 1, 5, 10])
def test_a_stopped_reading_leaves_the_previous_version(engine: Engine, asked: int) -> None:
    engine.prepare("d", "v1", BAKERY)
    before = kv(engine)
    with pytest.raises(Stopped):
        engine.prepare("d", "v2", BAKERY * 5, should_stop=After(asked))
    assert identical(kv(engine), before)
    assert engine.ask("d", "Why?", max_new_tokens=1).version == "v1"


def test_the_previous_version_answers_while_the_new_one_is_read(engine: Engine) -> None:
    engine.prepare("d", "v1", BAKERY)
    alone, between = engine.ask("d", "Why?", max_new_tokens=5), []
    engine.prepare(
        "d", "v2", BAKERY * 3, between_chunks=lambda: between.append(engine.ask("d", "Why?", max_new_tokens=5))
    )
    assert between
    assert all(answer == alone for answer in between)
    fresh = Engine(engine.loaded)
    fresh.prepare("d", "v2", BAKERY * 3)
    assert identical(kv(engine), kv(fresh))


def test_running_out_of_memory_leaves_the_previous_version(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.prepare("d", "v1", BAKERY)
    before, read, started = kv(engine), module.prefill, []

    def prefill(model: Any, ids: Any, cache: InPlaceCache, **kwargs: Any) -> None:
        read(model, ids[:, :20], cache)
        started.append(cache)
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(module, "prefill", prefill)
    with pytest.raises(OutOfMemory, match="Memory ran out while reading"):
        engine.prepare("d", "v2", BAKERY * 3)
    assert identical(kv(engine), before)
    assert engine._caches.get("d").cache.ends_bytes == 0
    with pytest.raises(OutOfMemory):
        engine.prepare("e", "v2", "Emma. " + BAKERY)
    assert started[1].bytes == 0


# ── refreshing ──


def common(one: list[int], other: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


WORDS = st.sampled_from(["Anna bakes. ", "Tom sold the oven. ", "It rains.\n", "42 ", "- a list\n", "", "é"])
EDITS = st.tuples(st.floats(0, 1), st.floats(0, 0.5), st.lists(WORDS, max_size=6).map("".join))


@settings(ENGINE, max_examples=40)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["one", "two", "three"]),
            st.sampled_from(["edit", "edit", "undo", "as another", "force", "ask"]),
            EDITS,
            st.none() | st.integers(0, 90),
            st.booleans(),
        ),
        min_size=2,
        max_size=9,
    )
)
def test_a_refreshed_cache_is_a_fresh_one_to_the_bit_whatever_came_before(steps: list[Any]) -> None:
    """Edits, undoing, questions in between, readings broken off, documents of the same text."""
    engine = Engine(loaded_random(TOKENIZER, sliding_window=40))
    texts = dict.fromkeys(("one", "two", "three"), BAKERY * 2)
    whole: dict[str, list[str]] = {name: [] for name in texts}
    for name, what, (where, length, words), stop, between in steps:
        start = round(where * len(texts[name]))
        if what == "edit":
            end = start + round(length * len(texts[name]))
            texts[name] = (texts[name][:start] + words + texts[name][end:])[:1500]
        elif what == "undo" and whole[name]:
            texts[name] = whole[name][round(where * (len(whole[name]) - 1))]
        elif what == "as another":
            texts[name] = texts["one"]
        if what != "ask":
            asked: list[Any] = []
            last = whole[name][-1] if whole[name] else None

            def ask(name: str = name, asked: list[Any] = asked) -> None:
                asked.append(engine.ask(name, "Why?", max_new_tokens=4))

            try:
                reading = engine.prepare(
                    name,
                    texts[name],
                    texts[name],
                    force=what == "force",
                    should_stop=None if stop is None else After(stop),
                    between_chunks=ask if between and last is not None else None,
                )
            except Stopped:
                assert stop is not None
            else:
                ids = engine._caches.get(name).text.ids
                assert (reading.tokens, reading.kept + reading.computed) == (len(ids), len(ids))
                if what == "force":
                    assert reading.kept == 0
                elif last is not None:
                    before = engine._template(None).document_ids(last)
                    shared = common(before, ids)
                    assert reading.computed <= len(ids) - (shared - shared % CHUNK)
                whole[name].append(texts[name])
            assert all(answer == fresh(engine, last)[1] for answer in asked)
        for each, versions in whole.items():
            if versions:
                assert engine.ask(each, "Why?", max_new_tokens=4) == fresh(engine, versions[-1])[1]
    for each, versions in whole.items():
        if versions:
            engine._caches.get(each).cache.turn_to(engine._caches.get(each).text.ids)
            assert identical(kv(engine, each), fresh(engine, versions[-1])[0])


def test_what_is_appended_costs_two_chunks_at_most_and_what_is_undone_nothing(engine: Engine) -> None:
    first = engine.prepare("d", "1", BAKERY * 6)
    second = engine.prepare("d", "2", BAKERY * 6 + "More.")
    assert 0 < second.computed <= 2 * CHUNK
    again = engine.prepare("d", "1", BAKERY * 6)
    assert (again.computed, again.kept) == (0, first.tokens)
    redone = engine.prepare("d", "2", BAKERY * 6 + "More.")
    assert redone.computed == 0


def test_the_same_text_under_another_name_costs_nothing_and_no_memory(engine: Engine) -> None:
    first = engine.prepare("d", "1", BAKERY * 6)
    other = engine.prepare("e", "1", BAKERY * 6)
    assert (other.computed, other.kept) == (0, first.tokens)
    assert sum(cache.bytes for cache in engine._caches.all()) == first.bytes
    # From an edit on they are two, and only what differs is read.
    assert engine.prepare("e", "2", BAKERY * 6 + "More.").computed <= 2 * CHUNK
    assert engine.ask("d", "Why?", max_new_tokens=1).version == "1"
    assert engine.ask("e", "Why?", max_new_tokens=1).version == "2"


def test_a_reading_that_was_broken_off_is_gone_on_with(engine: Engine) -> None:
    ids = len(engine._template(None).document_ids(BAKERY * 8))
    chunks: list[int] = []
    with pytest.raises(Stopped):
        engine.prepare(
            "d", "1", BAKERY * 8, progress=lambda done, *_: chunks.append(done), should_stop=lambda: len(chunks) > 4
        )
    again = engine.prepare("d", "1", BAKERY * 8)
    assert (again.kept, again.computed) == (4 * CHUNK, ids - 4 * CHUNK)
    assert identical(kv(engine), fresh(engine, BAKERY * 8)[0])


def test_a_newer_text_keeps_what_is_common_with_the_one_that_was_broken_off(engine: Engine) -> None:
    engine.prepare("d", "0", BAKERY)
    chunks: list[int] = []
    with pytest.raises(Stopped):
        engine.prepare(
            "d", "1", "New. " + BAKERY * 8, progress=lambda n, *_: chunks.append(n), should_stop=lambda: len(chunks) > 6
        )
    newer = engine.prepare("d", "2", "New. " + BAKERY * 8 + "And more.")
    assert newer.kept >= 5 * CHUNK


def test_old_ends_do_not_pile_up(engine: Engine) -> None:
    for number in range(30):
        engine.prepare("d", str(number), BAKERY * 3 + "x" * number)
    (cache,) = engine._caches.all()
    assert len(cache._asides) <= 4


# ── too long ──


@pytest.fixture
def lines() -> list[str]:
    return [f"Line {n} says that the value of item {n} is {n * n}.\n" for n in range(400)]


def too_long(engine: Engine, text: str, **kwargs: Any) -> DocumentTooLong:
    with pytest.raises(DocumentTooLong) as caught:
        engine.prepare("d", "v1", text, progress=pytest.fail, **kwargs)
    return caught.value


def test_too_long_for_the_model(engine: Engine, lines: list[str]) -> None:
    error = too_long(engine, "".join(lines[:80]))
    assert error.details["maxTokens"] == 512 < error.details["tokens"]
    assert "the model random can see 1024" in error.message
    assert "about" not in error.message
    assert str(error.details["tokens"]) in error.message
    # All lines before that one fit, it does not.
    line = error.details["line"]
    engine.prepare("d", "v1", "".join(lines[:line]))
    assert too_long(engine, "".join(lines[: line + 1])).details["line"] == line


def test_too_long_for_memory(engine: Engine, lines: list[str]) -> None:
    per_token = bytes_per_token(engine.loaded.model.config, torch.float32)
    engine.limit(700 * per_token)
    error = too_long(engine, "".join(lines[:80]))
    assert error.details["maxTokens"] == 700 - 512
    assert "memory allows 700" in error.message
    assert "memoryMaxGigabytes" in error.message


def test_a_huge_text_is_not_encoded_to_its_end(
    engine: Engine, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    longest, encode = [0], PromptTemplate.document_ids

    def document_ids(self: PromptTemplate, text: str) -> list[int]:
        longest[0] = max(longest[0], len(text))
        return encode(self, text)

    monkeypatch.setattr(PromptTemplate, "document_ids", document_ids)
    text = "".join(lines) * 100
    error = too_long(engine, text)
    assert longest[0] < len(text) / 50
    assert "about" in error.message
    exact = len(encode(engine._template(None), "".join(lines))) * 100
    assert abs(error.details["tokens"] - exact) < exact * 0.2


def test_long_lines_of_few_tokens_are_read_after_all(engine: Engine) -> None:
    assert engine.prepare("d", "v1", " " * 100_000 + "One.").tokens < 20


def test_no_room_at_all(engine: Engine) -> None:
    error = too_long(engine, BAKERY, max_new_tokens=1000)
    assert error.details["maxTokens"] == error.details["line"] == 0
    assert "lower maxNewTokens" in error.message


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_are_those_of_the_protocol(engine: Engine, end: str) -> None:
    text = "One two three four.\x0b\x0c\u2028 Five six.\n".replace("\n", end) * 200
    line = too_long(engine, text).details["line"]
    assert 20 < line < 60


# ── memory ──


@pytest.fixture
def crowded() -> tuple[Engine, list[str]]:
    dropped: list[str] = []
    engine = Engine(loaded_random(TOKENIZER), dropped.append)
    for name in "abc":
        engine.prepare(name, "v1", name + BAKERY)
    return engine, dropped


def test_other_documents_leave_when_memory_is_short(crowded: tuple[Engine, list[str]]) -> None:
    engine, dropped = crowded
    size = engine.prepare("c", "v1", "c" + BAKERY).bytes
    engine.ask("a", "Why?", max_new_tokens=1)
    engine.limit(3 * size)
    assert dropped == []
    engine.prepare("d", "v1", BAKERY)
    assert dropped == ["b"]
    engine.limit(size)
    assert dropped == ["b", "c", "a"]
    assert engine.has("d")
    engine.limit(None)
    engine.prepare("a", "v1", BAKERY)
    assert len(dropped) == 3


def test_what_is_forgotten_is_gone(crowded: tuple[Engine, list[str]]) -> None:
    engine, dropped = crowded
    engine.forget("a")
    assert not engine.has("a")
    assert dropped == []


def test_the_beginning_of_a_longer_text_is_never_taken_for_the_whole(tokenizer: Any) -> None:
    engine = Engine(loaded_random(tokenizer))
    with pytest.raises(DocumentTooLong) as caught:
        engine.prepare("a", "1", "A short beginning.", characters=9_000_000)
    assert caught.value.details["tokens"] > caught.value.details["maxTokens"]
    assert "about" in caught.value.message
    assert not engine.has("a")
