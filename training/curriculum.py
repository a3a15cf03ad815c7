"""How large the documents of a step are."""

from __future__ import annotations

import random
from dataclasses import dataclass

from training.batch import Size

SENTENCE, QUESTION = 25, 42  # tokens, about


@dataclass(frozen=True)
class Curriculum:
    """Documents grow with the run, and some are long.

    Attributes:
        tokens: of a step, about.
        first, last: sentences of a document at the start, and from half of the run on.
        short: how many steps have shorter documents than it is their turn for.
        long, longest: how many steps have longer ones, and up to how many sentences.
        refused: how many questions have no answer, in the first half of the run and then.
        hard: how many are kept of those that a plain lookup does not answer.
    """

    tokens: int = 2500
    first: int = 18
    last: int = 45
    short: float = 0.4
    long: float = 0.3
    longest: int = 170
    refused: tuple[float, float] = (0.12, 0.08)
    hard: float = 0.35

    def size(self, seed: int, progress: float) -> Size:
        """The size of the step with this seed, at this part of the run."""
        random_ = random.Random(seed)
        most = round(self.first + (self.last - self.first) * min(1.0, 2 * progress))
        kind = random_.random()
        sentences = most
        if kind < self.short:
            sentences = random_.randint(min(4, most), most)
        elif kind > 1 - self.long and most >= 12:
            sentences = random_.randint(most, max(most, self.longest))
        questions = max(4, min(36, sentences * 7 // 10))
        documents = max(1, round(self.tokens / (sentences * SENTENCE + questions * QUESTION)))
        asked = round(questions / (0.5 + 0.5 * self.hard))  # about half of what is asked is hard
        return Size(documents, sentences, asked, self.refused[progress > 0.5], self.hard)
