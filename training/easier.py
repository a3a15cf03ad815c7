"""Which of the generator's questions are asked while a model is trained."""

from __future__ import annotations

import random
from dataclasses import replace

from training.data.document import Example
from training.data.questions import Question
from training.lookup import Lookup
from training.natural import plain


def easier(made: Example, hard: float, seed: int) -> Example:
    """An example with only such a part of the questions that a plain lookup does not answer; with one, at least.

    People ask in a document's words more often than the generator does, and who is asked in others too often learns to
    say that it is not there.
    """
    if hard >= 1:
        return made
    lookup, chance = Lookup(made.text), random.Random(seed)

    def found(question: Question) -> bool:
        answer, wanted = plain(lookup.answer(question.text.rpartition("Question: ")[2])), plain(question.answer)
        return answer in wanted or wanted in answer

    kept = tuple(each for each in made.questions if each.refused or found(each) or chance.random() < hard)
    return replace(made, questions=kept or made.questions[:1])
