"""What a model has to beat: the sentence that shares the most word stems with the question."""

from __future__ import annotations

import math
import re
from collections import Counter

from training.natural import REFUSAL, sentences

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
# Words that every English text is full of, and those that questions are asked with.
STOP_WORDS = (
    "a an the this that these those it its is are was were be been being am do does did done has have had having "
    "i you he she we they me him her us them my your his our their mine yours hers ours theirs one "
    "who whom whose what which when where why how and or but if then than so as at by for from in into of off on onto "
    "out over to up with without about after before not no nor can could may might must shall should will would "
    "there here many much more most some any all each every other s t"
)
STOP = frozenset(STOP_WORDS.split())
ENDINGS = ("ations", "ation", "ings", "ing", "ers", "er", "ed", "es", "s", "ly", "e")


def stem(word: str) -> str:
    """A word without its ending, roughly: ``listens`` and ``listening`` are one, and so are ``copy`` and ``copies``."""
    word = re.sub(r"['’]s?$", "", word.lower())
    if word.endswith(("ies", "ied")) and len(word) > 4:
        return word[:-3] + "y"
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    # stopped, stopping: stop
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiouls" else word


def stems(text: str) -> set[str]:
    """The stems of a text's words that mean something."""
    return {stem(word) for word in WORD.findall(text) if word.lower() not in STOP}


class Lookup:
    """Answers from one document by shared stems, a rare one counting more than a common one.

    Args:
        text: the document.
    """

    def __init__(self, text: str) -> None:
        self._sentences = sentences(text)
        self._stems = [stems(sentence) for sentence in self._sentences]
        held_by = Counter(each for found in self._stems for each in found)
        self._weight = {each: math.log(1 + len(self._stems) / count) for each, count in held_by.items()}

    def answer(self, question: str, selection: str | None = None) -> str:
        """The first of the sentences that share the most; where none shares anything, the refusal."""
        asked = stems(question) | stems(selection or "")
        scores = [sum(self._weight[each] for each in sorted(asked & found)) for found in self._stems]
        best = max(scores, default=0)
        return self._sentences[scores.index(best)] if best else REFUSAL
