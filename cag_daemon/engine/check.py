"""A model put to the test on this machine: is a cached answer the uncached one, and how fast is it?"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cag_daemon.config import DEFAULT_SYSTEM_PROMPT
from cag_daemon.engine.cag import clean_up, generate_step, prefill
from cag_daemon.engine.kv_cache import InPlaceCache
from cag_daemon.engine.model import LoadedModel
from cag_daemon.engine.prompt import PromptTemplate

PAGE = """\
The ferry to the northern island leaves the old harbour at seven, at noon and at half past five. From the first
of October the noon crossing is dropped, and in strong wind the captain decides half an hour before. Tickets are sold
in the yellow kiosk beside the fish market; whoever has a season card shows it on board. Bicycles travel free of charge,
dogs need a leash, and for a car a place has to be booked the day before.

The crossing takes fifty minutes. Halfway the boat slows down for the seals that lie on the sandbank at low tide; please
do not feed them. The small café on the upper deck has coffee, soup and the island's own apple cake. In the evening it
closes ten minutes before arrival.

On the island a bus waits for every ferry. It goes to the village, to the lighthouse and back, and costs two crowns
each way. The museum in the old pilot's house is open on all days but Monday. Its collection of ship models was left to
the village by a retired boatbuilder, who had made every one of them himself. The path around the island is eleven
kilometres long, well marked, and in spring partly closed where the terns breed. Drinking water is to be had at the
school and at the lighthouse. Camping is allowed on the meadow behind the church, for three nights at most.
"""
QUESTIONS = ("How long does the crossing take?", "Who left the ship models to the village?")
TOKENS = 24  # of an answer
SECONDS = 20.0  # for reading; on a slow machine it is part of a page that is read


@dataclass(frozen=True)
class Check:
    """What was found.

    Attributes:
        same, compared: tokens of answers that are those of a fresh reading, of all that were compared.
        bits: whether the keys and values after answering are, bit for bit, those of a fresh reading.
        tokens: that were read.
        reading, decoding: tokens a second.
        first_token: milliseconds until a question's first token, on the cache.
    """

    same: int
    compared: int
    bits: bool
    tokens: int
    reading: float
    decoding: float
    first_token: float

    @property
    def passed(self) -> bool:
        """Whether the cache is as good as reading anew."""
        return self.bits and self.same == self.compared


def check_model(loaded: LoadedModel, told: Callable[[str], object] = lambda words: None) -> Check:
    """Read a page, ask, clean up, ask again; then read it anew for each question, and compare.

    Args:
        loaded: the model.
        told: called with what is being done.
    """
    template = PromptTemplate(loaded.tokenizer, str(loaded.spec.get("systemPrompt", DEFAULT_SYSTEM_PROMPT)))
    ids = template.document_ids(PAGE)
    told("Reading a page")
    cache, speed = _read(loaded, ids[: loaded.chunk])  # what a first pass costs beside reading is not counted
    count = min(len(ids), max(loaded.chunk, int(speed * SECONDS) // 64 * 64))
    cache, speed = _read(loaded, ids[:count])
    answers, times = [], []
    for question in QUESTIONS:
        told("Answering from the cache")
        answer, first, rest = _answer(loaded, template.question_ids(question), cache)
        clean_up(cache, count)
        answers.append(answer)
        times.append((first, rest, len(answer)))
    same, compared, bits = 0, 0, True
    for question, answer in zip(QUESTIONS, answers, strict=True):
        told("Reading anew, to compare")
        fresh, _ = _read(loaded, ids[:count])
        bits = bits and _equal(cache, fresh)
        other, _, _ = _answer(loaded, template.question_ids(question), fresh)
        compared += max(len(answer), len(other))
        same += sum(one == two for one, two in zip(answer, other, strict=False))
    decoded = sum(length - 1 for _, _, length in times)
    return Check(
        same=same,
        compared=compared,
        bits=bits,
        tokens=count,
        reading=speed,
        decoding=decoded / max(1e-9, sum(rest for _, rest, _ in times)),
        first_token=min(first for first, _, _ in times) * 1000,
    )


def _read(loaded: LoadedModel, ids: list[int]) -> tuple[InPlaceCache, float]:
    """A new cache of these tokens, and how many were read a second."""
    cache = InPlaceCache(loaded.model.config, len(ids) + 128)
    began = time.monotonic()
    prefill(loaded.model, torch.tensor([ids]), cache, chunk_size=loaded.chunk)
    if loaded.model.device.type == "cuda":
        torch.cuda.synchronize()
    return cache, len(ids) / (time.monotonic() - began)


def _answer(loaded: LoadedModel, ids: list[int], cache: InPlaceCache) -> tuple[list[int], float, float]:
    """The first tokens of an answer; seconds until the first, and from there to the last."""
    began = time.monotonic()
    tokens, first = [], 0.0
    steps = generate_step(loaded.model, torch.tensor([ids]), cache, max_new_tokens=TOKENS, chunk_size=loaded.chunk)
    for token in steps:
        first = first or time.monotonic() - began
        tokens.append(token)
    return tokens, first, time.monotonic() - began - first


def _equal(one: InPlaceCache, other: InPlaceCache) -> bool:
    pairs = zip(one.layers, other.layers, strict=True)
    return all(torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values) for a, b in pairs)
