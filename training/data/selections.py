"""What people select before they ask: what they ask about, a part of the answer, the answer, or something else."""

from __future__ import annotations

import re
from collections.abc import Sequence

from training.data import lists
from training.data.maker import Maker
from training.data.questions import EMPTY

POINTING = ("it", "it", "it", "it", "this", "this", "that")
LONGEST = 5  # words of what is named again
WORD = re.compile(r"[\w`'’.-]*\w`?")
ARTICLES = lists.split("the a an my our your their his her its this that these those")
OF_ALL = ("What does this say?", "What is this?", "Explain this.", "What does this mean?")


def selected(maker: Maker, asked: str, texts: Sequence[str], at: int) -> tuple[str, str]:
    """A question, perhaps with "it" in it now, and the selection that it comes with.

    Args:
        asked: a question.
        texts: of what the document states, in its order.
        at: where the answer is.
    """
    kind = maker.random.random()
    answer = texts[at]
    if kind < 0.55:
        # Something that the question names: it stands in the answer or near it, and "it" is asked about.
        near = [answer, *texts[max(0, at - 3) : at][::-1]]
        for text in near if maker.chance(0.6) else near[1:] + near[:1]:
            if (found := named(asked, text)) is not None:
                question, phrase = found
                return question.replace("{}", _pointing(maker, phrase)), _around(maker, phrase, text)
    if kind < 0.85:
        if maker.chance(0.15):
            return maker.one(OF_ALL), answer
        if maker.chance(0.25):
            return asked, " ".join(texts[max(0, at - maker.number(0, 1)) : at + 1 + maker.number(0, 1)])
        found = named(asked, answer)
        if found is not None and maker.chance(0.5):
            return found[0].replace("{}", _pointing(maker, found[1])), answer
        return asked, answer if maker.chance(0.6) else _part(maker, answer)
    return asked, maker.one(texts)


def named(asked: str, text: str) -> tuple[str, str] | None:
    """The longest words of a question that stand in a text, too: the question with {} for them, and they themselves.

    Something must be left to ask. None if there are none.
    """
    words = list(WORD.finditer(asked))
    for many in range(min(LONGEST, len(words) - 2), 0, -1):
        for first in range(1, len(words) - many + 1):
            start, end = words[first].start(), words[first + many - 1].end()
            phrase = asked[start:end]
            edges = {words[first][0].lower(), words[first + many - 1][0].lower()}
            if edges & EMPTY or (many == 1 and len(phrase) < 4) or "{" in asked:
                continue
            where = re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text)
            if where is None:
                continue
            if first > 1 and words[first - 1][0].lower() in ARTICLES:
                start = words[first - 1].start()
            return f"{asked[:start]}{{}}{asked[end:]}", where[0]
    return None


def _pointing(maker: Maker, phrase: str) -> str:
    if phrase.endswith(("'s", "’s")):
        return maker.one(("its", "its", "his", "her", "their"))
    if phrase[0].isupper() and maker.chance(0.5):
        return maker.one(("he", "she", "they"))
    return maker.one(POINTING)


def _around(maker: Maker, phrase: str, text: str) -> str:
    """What is selected of a text where its words are meant: these, some of those beside them, or all."""
    if maker.chance(0.15):
        return text
    words, start = list(WORD.finditer(text)), text.index(phrase)
    first = next((at for at, each in enumerate(words) if each.end() > start), 0)
    last = max((at for at, each in enumerate(words) if each.start() < start + len(phrase)), default=first)
    if first and words[first - 1][0].lower() in ARTICLES and maker.chance(0.6):
        first -= 1
    if maker.chance(0.35):
        last = min(len(words) - 1, last + maker.number(1, 5))
    return text[words[first].start() : words[last].end()] if words else text


def _part(maker: Maker, text: str) -> str:
    words = list(WORD.finditer(text))
    if len(words) < 5:
        return text
    many = maker.number(3, len(words))
    first = maker.number(0, len(words) - many)
    return text[words[first].start() : words[first + many - 1].end()]
