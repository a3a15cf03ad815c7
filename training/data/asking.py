"""What is asked of a document: questions that one of its sentences answers, and such that it does not answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from training.data.facts import Fact
from training.data.layout import APOLOGIES, CHAIR, FROM, PRESENT, SUBJECT, TO, Block
from training.data.maker import Maker
from training.data.questions import REFUSAL, Question, by_words, put, roughen, stems, unanswerable
from training.data.selections import selected
from training.data.written import Page

SELECTED = 0.1  # come with a selection
OF_ITS_FORM = frozenset(PRESENT + APOLOGIES + CHAIR + TO + FROM + SUBJECT)  # clear whatever else is said
LONGEST = 330  # characters of an answer
WORDS = 0.18  # of the questions are a few words of the sentence; in written documents half as many
OPEN = 0.7  # of what written documents don't answer was written, too


def ask(maker: Maker, blocks: list[Block], many: int, refused: float) -> list[Question]:
    """At most so many questions about made-up blocks, about such a part of them without an answer."""
    facts = [fact for block in blocks for fact in block.facts]
    owned = [stems(fact.text) | stems(fact.about) for fact in facts]
    answers = Counter(asked.lower() for fact in facts for asked in {each.lower() for each in fact.questions})
    subjects = [block.subject for block in blocks if block.subject is not None]
    used: set[object] = {fact.family for fact in facts if fact.family}
    named = {each.name for each in subjects}

    def nothing() -> str | None:
        return unanswerable(maker, [fact.text for fact in facts], subjects, used)

    def about(at: int) -> str | None:
        fact = facts[at]
        if fact.text in named:
            return None
        others = [each for other, each in enumerate(owned) if other != at]
        if not fact.questions or maker.chance(WORDS):
            return by_words(maker, fact.text, others)
        asked = maker.one(fact.questions)
        return asked if answers[asked.lower()] == 1 and _clear(asked, owned[at], others) else None

    return _collected(maker, facts, many, refused, nothing, about)


def ask_written(maker: Maker, pages: list[Page], many: int, refused: float) -> list[Question]:
    """As `ask`; but whoever wrote a page knew which of its sentences answers, so that only other pages may mislead."""
    facts = [fact for page in pages for fact in page.facts]
    of = [page for page in pages for _ in page.facts]
    owned = [stems(fact.text) for fact in facts]

    def elsewhere(at: int) -> list[frozenset[str]]:
        return [each for page, each in zip(of, owned, strict=True) if page is not of[at]]

    def nothing() -> str | None:
        at = maker.number(0, len(facts) - 1)
        asked = _open(maker, of[at], elsewhere(at)) if maker.chance(OPEN) else None
        return asked or unanswerable(maker, [each.text for each in facts], [], set())

    def about(at: int) -> str | None:
        if maker.chance(WORDS / 2):
            return by_words(maker, facts[at].text, [each for other, each in enumerate(owned) if other != at])
        asked = maker.one(facts[at].questions)
        return asked if _clear(asked, owned[at], elsewhere(at)) else None

    return _collected(maker, facts, many, refused, nothing, about)


def _collected(
    maker: Maker,
    facts: list[Fact],
    many: int,
    refused: float,
    nothing: Callable[[], str | None],
    about: Callable[[int], str | None],
) -> list[Question]:
    """Different questions, as far as they are found: one that has no answer, or one about the fact at some place."""
    copies = Counter(fact.text for fact in facts)
    found: list[Question] = []
    seen: set[str] = set()
    for _ in range(many * 5):
        if len(found) == many:
            break
        if maker.chance(refused):
            asked = nothing()
            if asked and asked not in seen:
                seen.add(asked)
                selection = maker.one(facts).text if maker.chance(SELECTED) else None
                found.append(Question(put(roughen(maker, asked), selection), REFUSAL, True))
            continue
        at = maker.number(0, len(facts) - 1) if maker.chance(0.9) else 0
        fact = facts[at]
        if fact.empty or copies[fact.text] > 1 or len(fact.text) > LONGEST:
            continue
        asked = about(at)
        if asked and asked not in seen:
            seen.add(asked)
            texts = [each.text for each in facts]
            asked, selection = selected(maker, asked, texts, at) if maker.chance(SELECTED) else (asked, None)
            found.append(Question(put(roughen(maker, asked), selection), fact.text))
    return found


def _open(maker: Maker, page: Page, elsewhere: list[frozenset[str]]) -> str | None:
    """What the page does not say, and the other pages hardly do."""
    if not page.open:
        return None
    asked = maker.one(page.open)
    wanted = stems(asked)
    return asked if wanted and not any(len(wanted & each) * 2 > len(wanted) for each in elsewhere) else None


def _clear(asked: str, mine: frozenset[str], others: list[frozenset[str]]) -> bool:
    """Whether a question points to its sentence: no other sentence has many more of its words."""
    if asked in OF_ITS_FORM:
        return True
    wanted = stems(asked)
    shared = len(wanted & mine)
    most = max((len(wanted & other) for other in others), default=0)
    if not shared:
        return not most  # a paraphrase, and nothing that misleads
    return most <= shared + 1 and (most <= shared or len(wanted) > shared)
