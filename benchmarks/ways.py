"""The ways to get an answer about a document that are measured beside each other, on one model's weights.

Each reads a document, says how long the first token of a question takes, and decodes on from there. Ids go in and come
out: nobody is slowed down by a tokenizer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from transformers import DynamicCache

from cag_daemon.engine import decoding
from cag_daemon.engine.attention import install
from cag_daemon.engine.cag import clean_up, generate_step, prefill
from cag_daemon.engine.decoding import DraftCounts
from cag_daemon.engine.drafts import Drafts
from cag_daemon.engine.kv_cache import InPlaceCache
from cag_daemon.engine.passes import answering, forward

Ids = Sequence[int]


@dataclass(frozen=True)
class Answered:
    """What a question took, in seconds; ``rest``: of the tokens after the first one."""

    first: float
    rest: float
    tokens: list[int]
    accepted: int = 0

    @property
    def a_token(self) -> float:
        """Seconds for each token after the first."""
        return self.rest / max(1, len(self.tokens) - 1)


def timed(steps: Callable[[], Iterator[int]]) -> Answered:
    """Take the tokens of an answer, with a clock."""
    began = time.perf_counter()
    tokens = []
    first = 0.0
    for token in steps():
        first = first or time.perf_counter() - began
        tokens.append(token)
    return Answered(first, time.perf_counter() - began - first, tokens)


class Ours:
    """The product's path: a cache in place, the document read once, drafts that are verified.

    Args:
        model: as the product holds it, its linear layers packed; the other ways have the plain one.
        chunk: tokens that are read at a time.
        widths: see `widths.agreeing`.
    """

    name = "cag-daemon"

    def __init__(self, model: Any, chunk: int, widths: tuple[int, ...]) -> None:
        install(model)
        self.model, self.chunk, self.widths = model, chunk, widths
        self._document: list[int] = []

    def read(self, document: Ids) -> float:
        """Seconds to read a document, from nothing."""
        self.cache = InPlaceCache(self.model.config, len(document) + 512)
        self._document = list(document)
        began = time.perf_counter()
        prefill(self.model, torch.tensor([self._document]), self.cache, chunk_size=self.chunk)
        int(self.cache.layers[-1].values[0, 0, -1, 0] > 0)  # a GPU is waited for
        return time.perf_counter() - began

    def ask(self, question: Ids, many: int, *, drafted: bool = True, told: Ids = ()) -> Answered:
        """Answer from the cache, and leave it as it was.

        Args:
            told: what the model is made to say, after computing all that it computes anyway: random weights quote
                nobody.
        """
        origin, counts = self.cache.get_seq_length(), DraftCounts()
        start = origin + len(question)

        def say(module: Any, input_ids: torch.Tensor, cache: Any, *others: Any, **kept: Any) -> Any:
            first = cache.get_seq_length() + input_ids.shape[1] - kept.get("logits_to_keep", 0) + 1 - start
            output = answering(module, input_ids, cache, *others, **kept)
            if getattr(output, "logits", None) is not None:
                for row in range(output.logits.shape[1]):
                    if 0 <= first + row < len(told):
                        output.logits[0, row, told[first + row]] = torch.inf
            return output

        def steps() -> Iterator[int]:
            drafts = Drafts(self._document, question, (), many) if drafted and self.widths else None
            return generate_step(
                self.model,
                torch.tensor([list(question)]),
                self.cache,
                max_new_tokens=many,
                chunk_size=self.chunk,
                widths=self.widths,
                drafts=drafts,
                counts=counts,
            )

        with patch.object(decoding, "answering", say):
            found = timed(steps)
        clean_up(self.cache, origin)
        return Answered(found.first, found.rest, found.tokens, counts.accepted)


class Tutorial:
    """The loop that tutorials show: a `DynamicCache`, cropped after each question, one token a pass."""

    name = "the tutorial's loop"

    def __init__(self, model: Any) -> None:
        self.model = model

    def fill(self, cache: InPlaceCache) -> None:
        """Take over what was read, so that it need not be read again."""
        self.cache = DynamicCache()
        for number, layer in enumerate(cache.layers):
            self.cache.update(layer.keys.clone(), layer.values.clone(), number)

    def ask(self, question: Ids, many: int) -> Answered:
        """Answer from the cache, and crop it."""
        origin = self.cache.get_seq_length()

        def steps() -> Iterator[int]:
            ids = torch.tensor([list(question)], device=self.model.device)
            for _ in range(many):
                ids = forward(self.model, ids, self.cache, None).logits[:, -1:].argmax(-1)
                yield int(ids)

        found = timed(steps)
        self.cache.crop(origin - self.cache.get_seq_length())
        return found


class InThePrompt:
    """transformers' ``generate``, with the document in the prompt each time."""

    name = "transformers, document in the prompt"

    def __init__(self, model: Any) -> None:
        self.model = model

    def ask(self, document: Ids, question: Ids) -> float:
        """Seconds to the first token."""
        began = time.perf_counter()
        ids = torch.tensor([[*document, *question]], device=self.model.device)
        with torch.no_grad():
            int(self.model.generate(ids, max_new_tokens=1, min_new_tokens=1, do_sample=False, pad_token_id=0)[0, -1])
        return time.perf_counter() - began


class LlamaCpp:
    """llama.cpp through llama-cpp-python, on the same weights in bfloat16, its cache kept for the next question."""

    name = "llama.cpp"

    def __init__(self, file: str, context: int, threads: int) -> None:
        from llama_cpp import Llama

        self.llama = Llama(
            model_path=file,
            n_ctx=context,
            n_threads=threads,
            n_threads_batch=threads,
            n_batch=512,
            n_gpu_layers=0,
            logits_all=False,
            verbose=False,
        )

    def read(self, document: Ids) -> float:
        """Seconds to read a document, from nothing."""
        self.llama.reset()
        self.llama._ctx.kv_cache_clear()
        began = time.perf_counter()
        self.llama.eval(list(document))
        self._length = self.llama.n_tokens
        return time.perf_counter() - began

    def ask(self, question: Ids, many: int) -> Answered:
        """Answer behind the document, whose cache it keeps."""

        def steps() -> Iterator[int]:
            ids = list(question)
            for _ in range(many):
                self.llama.eval(ids)
                ids = [self._best()]
                yield ids[0]

        found = timed(steps)
        self.llama._ctx.kv_cache_seq_rm(-1, self._length, -1)
        self.llama.n_tokens = self._length
        return found

    def _best(self) -> int:
        import numpy

        logits = self.llama._ctx.get_logits_ith(-1)
        return int(numpy.ctypeslib.as_array(logits, (self.llama.n_vocab(),)).argmax())


class Retrieval:
    """BM25: the three pieces of a document that share most with the question are put into the prompt."""

    name = "BM25, three pieces in the prompt"
    PIECE, PIECES = 100, 3  # tokens, and how many of them

    def __init__(self, ours: Ours) -> None:
        self.ours = ours

    def ask(self, document: Ids, question: Ids) -> float:
        """Seconds to the first token, the index being there already."""
        from rank_bm25 import BM25Okapi

        pieces = [list(document[at : at + self.PIECE]) for at in range(0, len(document), self.PIECE)]
        index = BM25Okapi(pieces)
        began = time.perf_counter()
        scores = index.get_scores(list(question))
        best = sorted(sorted(range(len(pieces)), key=lambda at: -scores[at])[: self.PIECES])
        model, chunk = self.ours.model, self.ours.chunk
        cache = InPlaceCache(model.config, (self.PIECES + 1) * self.PIECE + len(question))
        ids = torch.tensor([[token for at in best for token in pieces[at]] + list(question)])
        next(iter(generate_step(model, ids, cache, max_new_tokens=1, chunk_size=chunk)))
        return time.perf_counter() - began
