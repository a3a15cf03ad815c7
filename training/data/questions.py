"""How a document is asked: in whole questions or by a few words, with a selection, and for what it does not say."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from training.data import lists
from training.data.facts import KINDS, OF_ANYTHING, Subject, families, possessive, sentence, state, subject
from training.data.maker import Maker

REFUSAL = "The document does not say."
ENDINGS = re.compile(r"(ing|ed|es|s|er|ly|e)$")
EMPTY = frozenset(
    lists.split(
        "a an the of in on at to for and or is are was were be been with by from it its this that as he she they "
        "his her their not has have had do does did which who what where when why how much many i you we can may "
        "will would should if than then so into about after before no new one all any each every other more most "
        "some such only also but use used there these those them out up over under between during while because "
        "see set get just like very too per until since s my your our must whom whose find"
    )
)
FRAMES = lists.phrases("frames")
# What the model can't do, or is not there for. {text} is something that the document has.
BEYOND = lists.phrases("beyond")
COUNTRIES = lists.split(
    "France Germany Spain Brazil Canada Australia Peru Kenya India China Norway Egypt Mexico Austria"
)
# Attributes that are asked for and seldom stated; asked only where none of their words stands in the document.
UNSTATED = lists.phrases("unstated")
GENERAL = lists.phrases("general")


@dataclass(frozen=True)
class Question:
    """What is asked, as it stands behind the document, and the answer."""

    text: str
    answer: str
    refused: bool = False


def stems(text: str) -> frozenset[str]:
    """What is left of a text's words of meaning without their endings."""
    found = re.findall(r"[A-Za-z][A-Za-z_]*|\d+", text.replace("'s", ""))
    return frozenset(stem(word) for word in found if word.lower() not in EMPTY)


def stem(word: str) -> str:
    """A word without its ending."""
    word = word.lower()
    return ENDINGS.sub("", word) if len(word) >= 5 else word


def by_words(maker: Maker, text: str, elsewhere: Iterable[frozenset[str]]) -> str | None:
    """A question of a few words of a sentence, more of them than any other sentence has; None if chance found none."""
    content = [w for w in re.findall(r"[A-Za-z][A-Za-z'_]*|\d+", text) if w.lower() not in EMPTY and len(w) > 1]
    if len(content) < 2:
        return None
    many = maker.number(1, min(4, len(content)))
    if maker.chance(0.5):
        start = maker.number(0, len(content) - many)
        picked = content[start : start + many]
    else:
        picked = [content[at] for at in sorted(maker.random.sample(range(len(content)), many))]
    wanted = frozenset(map(stem, picked))
    if any(len(wanted & other) >= len(wanted) for other in elsewhere):
        return None
    if len(picked) >= 2 and maker.chance(0.4):
        picked.insert(maker.number(1, len(picked) - 1), maker.one(lists.split("of in the and to for with on is")))
    return sentence(maker.one(FRAMES).replace("{}", " ".join(picked)))


def roughen(maker: Maker, text: str) -> str:
    """A question as it is typed: in lower case, without its mark, politely, with something before it or behind."""
    if maker.chance(0.05):
        text = text.lower()
    if maker.chance(0.05):
        text = text.rstrip("?.")
    elif maker.chance(0.03):
        text = f"{text} {maker.one(('Thanks!', 'Thanks.', 'Thank you.', 'I could not find it.', 'I need to know.'))}"
    if maker.chance(0.02):
        text = f"{maker.one(('Hello,', 'Hi!', 'I am new here.', 'I read the whole text.', 'Sorry,'))} {text}"
    if maker.chance(0.03):
        return f"{maker.one(('Please tell me:', 'Do you know:', 'I would like to know:', 'So,'))} {text}"
    return text


def put(text: str, selection: str | None = None) -> str:
    """A question as the daemon writes it behind the document."""
    return (f"Selected text:\n{selection}\n\n" if selection else "") + f"Question: {text}"


def unanswerable(maker: Maker, sentences: list[str], subjects: list[Subject], used: set[object]) -> str | None:
    """A question that the document does not answer; None if chance found none.

    Args:
        sentences: of the document.
        subjects: what it speaks of.
        used: families that it has sentences of.
    """
    kind = maker.random.random()
    if kind < 0.4:
        named = maker.one(subjects).name if subjects and maker.chance(0.7) else maker.noun()
        return maker.fill(maker.one(BEYOND), {"text": named, "country": maker.one(COUNTRIES)})
    every = [stems(each) for each in sentences]
    if kind < 0.65 and subjects:
        # Something that is not said of what the document does speak of.
        of = maker.one(subjects)
        asked = _unsaid(maker, of, used)
        rest = stems(asked) - stems(of.name) if asked else frozenset()
        return asked if rest and not any(rest & each for each in every) else None
    asked = maker.fill(maker.one(GENERAL), {"noun": maker.noun()}) if kind < 0.8 else _elsewhere(maker, used)
    wanted = stems(asked or "")
    # Hardly a word in common with any sentence: else it might be answered after all.
    return asked if wanted and not any(len(wanted & each) * 3 > len(wanted) for each in every) else None


def _unsaid(maker: Maker, of: Subject, used: set[object]) -> str | None:
    if maker.chance(0.5):
        known = {"E": of.name, "E's": possessive(of.name), "noun": maker.noun()}
        return maker.fill(maker.one(UNSTATED), known)
    family = maker.one(families(of.kind))
    fact = None if family in used else state(maker, family, of)
    return maker.one(fact.questions) if fact else None


def _elsewhere(maker: Maker, used: set[object]) -> str | None:
    kind = maker.one(KINDS)
    family = maker.one(families(kind))
    fact = None if family in used else state(maker, family, None if kind in OF_ANYTHING else subject(maker, kind))
    return maker.one(fact.questions) if fact else None
