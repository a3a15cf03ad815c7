"""Engine: documents and their caches; read a text, answer a question. One thread owns it."""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cag_daemon.config import DEFAULT_SYSTEM_PROMPT
from cag_daemon.engine.answer_text import AnswerText
from cag_daemon.engine.cag import generate_step, prefill
from cag_daemon.engine.decoding import DraftCounts, end_tokens
from cag_daemon.engine.document_cache import MOST_ASIDE, DocumentCache, DocumentCaches, KnownText, TextCache
from cag_daemon.engine.drafts import Drafts
from cag_daemon.engine.fitting import Limit
from cag_daemon.engine.keeping import Keeping
from cag_daemon.engine.kv_cache import InPlaceCache, bytes_per_token
from cag_daemon.engine.memory import QUESTION_ROOM, free, out_of_memory
from cag_daemon.engine.model import LoadedModel
from cag_daemon.engine.passes import ShouldStop
from cag_daemon.engine.prompt import PromptTemplate
from cag_daemon.engine.typed import Typed
from cag_daemon.errors import ModelFailed, OutOfMemory, Postponed, QuestionTooLong

REMEMBERED = 64  # answers, to be drafts when the same is asked again
LEAVING_SECONDS = 1.0  # for writing down what leaves memory: somebody waits for the room


@dataclass(frozen=True)
class Reading:
    """A text is cached. ``kept + computed = tokens``; ``bytes``: of its cache."""

    version: str
    tokens: int
    kept: int
    computed: int
    max_tokens: int
    bytes: int
    milliseconds: int


@dataclass(frozen=True)
class Answer:
    """An answer, stripped, and of which version it is; the counts are of tokens, the end token not among them."""

    version: str
    text: str
    finish_reason: str
    cached: int
    prompt: int
    generated: int
    drafted: int = 0
    accepted: int = 0


class Engine:
    """A model and the documents it knows by heart.

    Args:
        loaded: the model.
        on_dropped: told the name of each document whose cache had to leave memory for another's; what was to be kept
            of it is on disk, as far as a second was enough for writing.
        keep_in: the cache directory; None: nothing is kept on disk.
        keep_bytes: see `SegmentStore`.
        exact: whether what is read after an edit has the bits of a fresh reading here, see `self_test`; False: after
            every edit a text is read from its beginning, and nothing is kept on disk.
        on_wrong: told the name of each document whose cache is not to be answered from, as what was on disk was not
            what it should be.
        widths: of passes to verify drafts with, see `widths.agreeing`; empty: nothing is drafted.

    Raises:
        ModelFailed: see `PromptTemplate`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        on_dropped: Callable[[str], object] | None = None,
        keep_in: str | None = None,
        keep_bytes: int | None = None,
        exact: bool = True,
        on_wrong: Callable[[str], object] = lambda document: None,
        widths: tuple[int, ...] = (),
    ) -> None:
        self.loaded = loaded
        self._exact, self._on_wrong, self._widths = exact, on_wrong, widths
        self._answers: OrderedDict[tuple[str, tuple[int, ...]], list[int]] = OrderedDict()
        self._typed = Typed(loaded, widths)
        self.keeping: Keeping | None = None
        self.keep(keep_in, keep_bytes)
        on = {each.device for each in loaded.model.parameters()} - {torch.device("meta")}
        self._half_of_free = sum(free(device) for device in on) // 2
        self._bytes_per_token = bytes_per_token(loaded.model.config, loaded.model.dtype)
        self._caches = DocumentCaches(self._half_of_free, self._leaving, on_dropped)
        self._templates: dict[str, PromptTemplate] = {}
        self._template(None)  # what is wrong with it is known now, not with the first document

    def prepare(
        self,
        document: str,
        version: str,
        text: str,
        system_prompt: str | None = None,
        max_new_tokens: int = 256,
        force: bool = False,
        characters: int = 0,
        patience: float | None = None,
        file: str | None = None,
        saved: bool = False,
        *,
        progress: Callable[[int, int, int], object] | None = None,
        should_stop: ShouldStop | None = None,
        between_chunks: Callable[[], object] | None = None,
    ) -> Reading:
        """Have this text of this document in a whole cache. Until it is whole, the previous one stays and answers.

        Args:
            document, version: names of the place and of the text.
            system_prompt: None: the model's own, or the default.
            max_new_tokens: room to leave for an answer.
            force: keep nothing of what is cached.
            characters: of the whole text, where ``text`` is only its beginning.
            patience: seconds; where the first chunks show that reading takes longer, it is not gone on with.
            file: where the document is; None: nothing of it is kept on disk.
            saved: whether the text is the file's, and not somebody's unsaved changes: only then is it written.
            progress: called with (tokens read, of how many, of at most how many).
            should_stop, between_chunks: see `cag.prefill`.

        Raises:
            DocumentTooLong: it was not begun.
            OutOfMemory, Stopped, Postponed: the previous cache is as it was.
        """
        began = time.monotonic()
        self._typed.forget()
        # 1. The ids, if they fit.
        template = self._template(system_prompt)
        held = self._caches.budget // self._bytes_per_token
        limit = Limit(self.loaded.name, self.loaded.context, held, max_new_tokens)
        ids, max_tokens = limit.fitting_ids(template, text, max(characters, len(text))), limit.tokens
        # 2. What is cached already, under this name or another; 3. the rest is read.
        text_read, kept = KnownText(version, ids, template), len(ids)
        cache = None if force else self._caches.with_text(ids)
        if cache is None:
            kept, cache = self._read(
                document,
                text_read,
                None if force else file,
                force,
                max_new_tokens,
                max_tokens,
                patience,
                progress,
                should_stop,
                between_chunks,
            )
        self._caches.put(document, DocumentCache(text_read, cache))
        if file is not None:
            if force and self.keeping is not None:
                self.keeping.drop(document, file, ids)
            self._keep(document, file, version, cache, ids, saved)
        took = round((time.monotonic() - began) * 1000)
        return Reading(version, len(ids), kept, len(ids) - kept, max_tokens, cache.bytes, took)

    def ask(
        self,
        document: str,
        question: str,
        selection: str | None = None,
        max_new_tokens: int = 256,
        version: str | None = None,
        *,
        on_first_token: Callable[[], object] | None = None,
        on_piece: Callable[[str], object] | None = None,
        should_stop: ShouldStop | None = None,
    ) -> Answer:
        """Answer from the whole cache that the document has now; afterwards that is as it was, whatever happens.

        Args:
            selection: text given to the model after the document.
            max_new_tokens: upper bound; less where the model's context ends before.
            version: of the text that is to be answered from; None: whichever is cached.
            on_first_token: called when the first token is known.
            on_piece: called with each next piece of the answer's text; joined they are the text.
            should_stop: asked before every layer.

        Raises:
            QuestionTooLong: it does not fit beside the document.
            ModelFailed: there is no cache of that document, or of another version (``notCached`` in its data).
            OutOfMemory, Stopped.
        """
        cached = self._caches.get(document)
        if cached is None or version not in (None, cached.text.version):
            raise ModelFailed(f"internal: {document} is not cached, read it first.", notCached=True)
        cache, origin = cached.cache, len(cached.text.ids)
        ids = cached.text.template.question_ids(question, selection)
        room = self.loaded.context - origin - len(ids)
        if room < 1:
            raise QuestionTooLong(
                f"The question has {len(ids)} tokens, and {max(0, room + len(ids) - 1)} fit beside the document: "
                "ask a shorter one, or select less.",
                tokens=len(ids),
                maxTokens=max(0, room + len(ids) - 1),
            )
        model, ends = self.loaded.model, end_tokens(self.loaded.model)
        text, generated, finish_reason = AnswerText(self.loaded.tokenizer, on_piece), list[int](), "length"
        most, counts, asked = min(max_new_tokens, room), DraftCounts(), (document, tuple(ids))
        drafts = None
        if self._widths:
            drafts = Drafts(cached.text.ids, ids, self._answers.get(asked, ()), most)
        reading = cache.ids  # of a newer text, it may be, which is gone on with afterwards
        if reading != cached.text.ids:
            self._typed.forget()
        read = self._typed.take(cache, ids)
        whole = cache.turn_to(cached.text.ids)
        assert whole == origin, "what answers is held whole"
        try:
            with out_of_memory("Memory ran out while answering: close other programs, or choose a smaller model."):
                for token in generate_step(
                    model,
                    torch.tensor([ids[read:]]),
                    cache.buffer,
                    max_new_tokens=most,
                    should_stop=should_stop,
                    chunk_size=self.loaded.chunk,
                    widths=self._widths,
                    drafts=drafts,
                    counts=counts,
                ):
                    if on_first_token and not generated:
                        on_first_token()
                    generated.append(token)
                    if token in ends:
                        finish_reason = "stop"
                        break
                    text.add(token)
        finally:
            cache.clean()
            cache.turn_to(reading)
        self._remember(asked, generated)
        length = len(generated) - (finish_reason == "stop")
        found = (origin, len(ids), length, counts.drafted, counts.accepted)
        return Answer(cached.text.version, text.finish(), finish_reason, *found)

    def _remember(self, asked: tuple[str, tuple[int, ...]], answer: list[int]) -> None:
        self._answers[asked] = answer
        self._answers.move_to_end(asked)
        if len(self._answers) > REMEMBERED:
            self._answers.popitem(last=False)

    def typing(self, document: str, question: str, selection: str | None, should_stop: ShouldStop) -> None:
        """Read what has been typed of a question, if the document is cached; see `Typed`."""
        cached = self._caches.get(document)
        if cached is not None and cached.cache.ids == cached.text.ids:
            with out_of_memory("Memory ran out while reading a question."):
                self._typed.read(cached.cache, cached.text.template.question_ids(question, selection), should_stop)

    def quiet(self) -> None:
        """Nobody has typed for a while: caches hold their documents, and nothing behind them."""
        self._typed.forget()

    def forget(self, document: str, write: bool = False) -> None:
        """Drop what is cached of that document.

        Args:
            write: first write down what is to be on disk, as far as a second is enough.
        """
        self._typed.forget()
        if write:
            self._leaving(document)
        self._caches.forget(document)
        if self.keeping is not None:
            self.keeping.forget(document)

    def keep(self, cache_directory: str | None, most_bytes: int | None) -> None:
        """Keep caches on disk there from now on; None: nowhere."""
        before, self.keeping = self.keeping, None
        if cache_directory is not None and self.loaded.key and self._exact:
            self.keeping = Keeping(self.loaded, cache_directory, most_bytes, self._wrong)
            if before is not None:
                self.keeping.carry_over(before)

    def saved(self, document: str, version: str, file: str) -> None:
        """What is cached of a document, if it is of that version, is what its file says now: it may be written."""
        cached = self._caches.get(document)
        if cached is not None and cached.text.version == version:
            self._keep(document, file, version, cached.cache, cached.text.ids, True)

    def _keep(self, document: str, file: str, version: str, cache: TextCache, ids: list[int], saved: bool) -> None:
        if self.keeping is not None:
            self.keeping.keep(document, file, version, cache, ids, write=saved)

    def _wrong(self) -> None:
        """What was restored is not what it should be: nothing that may have begun with it answers any more."""
        for document in self._caches.forget_all():
            self._on_wrong(document)

    def _leaving(self, document: str) -> None:
        """A document's cache makes room for another: what is to be on disk goes there, if that does not take long."""
        if self.keeping is not None:
            late = time.monotonic() + LEAVING_SECONDS
            self.keeping.finish(document, until=lambda: time.monotonic() > late)

    def limit(self, memory_bytes: int | None) -> None:
        """Set how many bytes all caches may take together; None: half of what was free after loading."""
        self._typed.forget()
        self._caches.budget = self._half_of_free if memory_bytes is None else memory_bytes
        self._caches.make_room(0)

    def has(self, document: str) -> bool:
        """Whether a question about that document can be answered now."""
        return document in self._caches

    def _template(self, system_prompt: str | None) -> PromptTemplate:
        if system_prompt is None:
            system_prompt = str(self.loaded.spec.get("systemPrompt", DEFAULT_SYSTEM_PROMPT))
        if system_prompt not in self._templates:
            self._templates[system_prompt] = PromptTemplate(self.loaded.tokenizer, system_prompt)
        return self._templates[system_prompt]

    def _read(
        self,
        document: str,
        text: KnownText,
        file: str | None,
        force: bool,
        max_new_tokens: int,
        max_tokens: int,
        patience: float | None,
        progress: Callable[[int, int, int], object] | None,
        should_stop: ShouldStop | None,
        between_chunks: Callable[[], object] | None,
    ) -> tuple[int, TextCache]:
        """Read what is not known of a text; how many tokens were kept, and the cache that holds it."""
        ids, total, before = text.ids, len(text.ids), self._caches.get(document)
        capacity = total + QUESTION_ROOM + max_new_tokens
        cache = self._cache_to_read_in(document, ids, force, capacity)
        previous = before.text.ids if before is not None and before.cache is cache else None
        kept, speed = 0, Speed(total)

        def chunk_done(done: int, of: int) -> None:
            cache.read(ids[len(cache.ids) : kept + done])
            speed.chunk_done(done)
            if patience is not None and done < of and speed.exceeds(patience):
                raise Postponed(total, max_tokens, speed.seconds / of * total)
            if progress:
                progress(kept + done, total, max_tokens)

        try:
            with out_of_memory(
                f"Memory ran out while reading the document of {total} tokens: shorten it, or close other programs."
            ):
                kept = cache.turn_to(ids)
                cache.buffer.reserve(capacity)
                if self.keeping is not None and file is not None and kept < total:
                    kept += self.keeping.restore(document, file, text.version, cache, ids)
                speed = Speed(total - kept)
                if progress:
                    progress(kept, total, max_tokens)
                if kept < total:
                    prefill(
                        self.loaded.model,
                        torch.tensor([ids[kept:]]),
                        cache.buffer,
                        chunk_size=self.loaded.chunk,
                        progress=chunk_done,
                        should_stop=should_stop,
                        between_chunks=between_chunks,
                    )
        except BaseException as error:
            self._break_off(document, cache, previous, keep=not isinstance(error, OutOfMemory))
            raise
        self._caches.begun.pop(document, None)
        cache.forget(self._caches.needed(cache), MOST_ASIDE)
        return kept, cache

    def _cache_to_read_in(self, document: str, ids: list[int], force: bool, capacity: int) -> TextCache:
        """The document's own cache, or one that was begun; else a new one, with what others know of the text."""
        before = self._caches.get(document)
        own = before.cache if before is not None and len(self._caches.needed(before.cache)) == 1 else None
        cache = None if force else own or self._caches.begun.get(document)
        # An end that is laid aside lies beside the buffer, until somebody needs its room.
        ends = max(0, len(cache.ids) - cache.known(ids)) if cache is not None else 0
        self._caches.make_room((capacity + ends) * self._bytes_per_token, document)
        if cache is not None:
            return cache
        part = self.loaded.chunk if self._exact else sys.maxsize  # a text that is not all the same is kept nothing of
        cache = TextCache(InPlaceCache(self.loaded.model.config, capacity), part)
        known = [] if force else self._caches.all()
        if known:
            cache.copy_from(max(known, key=lambda each: each.known(ids)), ids)
        return cache

    def _break_off(self, document: str, cache: TextCache, previous: list[int] | None, *, keep: bool) -> None:
        """A reading ended before its end: the text before it answers on, and what was read is kept for the next."""
        cache.clean()
        if previous is not None:
            cache.turn_to(previous, keep=keep)
            cache.forget(self._caches.needed(cache), MOST_ASIDE)
        elif keep and cache.ids:
            self._caches.begun[document] = cache
        else:
            self._caches.begun.pop(document, None)
            cache.buffer.layers.clear()  # the traceback keeps the cache alive, not what it took


class Speed:
    """How long a reading will take, by its first chunks.

    Args:
        total: tokens to be read.
    """

    def __init__(self, total: int) -> None:
        self.seconds = 0.0
        self._total = total
        self._chunks, self._done, self._last = 0, 0, time.monotonic()

    def chunk_done(self, done: int) -> None:
        """So many tokens are read."""
        now = time.monotonic()
        self._chunks += 1
        self.seconds = (now - self._last) / (done - self._done) * self._total
        self._done, self._last = done, now

    def exceeds(self, patience: float) -> bool:
        """Whether all of it takes more seconds than that.

        The first chunk takes longer than the others (libraries get ready, pages come in), and so the second decides,
        unless the matter is clear.
        """
        return (self._chunks == 1 and self.seconds > 5 * patience) or (self._chunks == 2 and self.seconds > patience)
