"""What is said of people, services, things …: sentences, and the questions that each of them answers.

The folder ``facts`` has a file for each kind of subject. In it two lines are a family: ways to say much the same, and
questions about it. A slot ``{place}`` is filled alike in both; a question may only be asked of a sentence that has all
its slots, and one of those behind its ``@``, where the answer is. ``{E}`` is the subject; ``{E's}``, ``{E0}`` and
``{E1}`` stand for his, he and him. ``│`` stands for the bar of a table.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from pathlib import Path

from training.data import lists
from training.data.maker import SLOT, Maker

FOLDER = Path(__file__).with_name("facts")
OF_ANYTHING = ("notes", "home", "office", "software", "story")  # their families have no subject
KINDS = ("person", "service", "organisation", "place", "thing", "recipe", "code", "api", "event", *OF_ANYTHING)
SUBJECT = frozenset({"E", "E's", "E0", "E1", "E1's"})
PRONOUNS = {True: ("he", "him", "his"), False: ("she", "her", "her")}


@dataclass(frozen=True)
class Asking:
    """A question of a family, the slots that a sentence must have to be asked it, and those of which one is enough."""

    template: str
    slots: frozenset[str]
    answers: frozenset[str] = frozenset()

    def fits(self, statement: str) -> bool:
        """Whether a statement answers it."""
        said = frozenset(SLOT.findall(statement)) | SUBJECT
        return self.slots <= said and (not self.answers or bool(self.answers & said))


@dataclass(frozen=True)
class Family:
    """Ways to say much the same, and questions about it."""

    kind: str
    statements: tuple[str, ...]
    questions: tuple[Asking, ...]


@dataclass
class Fact:
    """A sentence of a document.

    Attributes:
        text: the sentence.
        questions: that it answers.
        about: words that it is about though it does not say them, as a pronoun or a heading stands for them.
        family: where it comes from, if from one.
        empty: it answers nothing, and is not asked for.
    """

    text: str
    questions: list[str] = field(default_factory=list)
    about: str = ""
    family: Family | None = None
    empty: bool = False


@dataclass(frozen=True)
class Subject:
    """What several facts are about: its kind, its whole name, shorter names, whether it is a he."""

    kind: str
    name: str
    short: tuple[str, ...]
    he: bool = True


@functools.cache
def families(kind: str) -> tuple[Family, ...]:
    """The families of a file."""
    found = []
    for block in (FOLDER / f"{kind}.txt").read_text("utf-8").strip().split("\n\n"):
        statements, questions = block.split("\n")
        asked = []
        for each in questions.split(" | "):
            template, _, needs = each.partition(" @")
            asked.append(Asking(template.strip(), frozenset(SLOT.findall(template)), _split(needs)))
        found.append(
            Family(kind, tuple(each.strip().replace("│", "|") for each in statements.split(" | ")), tuple(asked))
        )
    return tuple(found)


def _split(needs: str) -> frozenset[str]:
    return frozenset(each.strip() for each in needs.split(",") if each)


def subject(maker: Maker, kind: str) -> Subject:
    """Somebody or something to say things about."""
    if kind == "person":
        he = maker.chance(0.5)
        first, last = maker.first(he), maker.last()
        return Subject(kind, f"{first} {last}", (first, last, f"{first} {last}"), he)
    if kind == "organisation":
        club = f"the {maker.one(lists.CLUBS)}"
        name = maker.slot("org") if maker.chance(0.6) else club if maker.chance(0.6) else f"{club} of {maker.place()}"
        return Subject(kind, name, (name,))
    if kind == "code":
        name = maker.identifier() if maker.chance(0.7) else maker.invented(1, 2)
        return Subject(kind, name, (name,))
    if kind == "api":
        name = (
            f"{maker.one(('GET', 'POST', 'PUT', 'DELETE'))} /{maker.code_word()}s{maker.one(('', '', '/{id}', '/:id'))}"
        )
        return Subject(kind, name, (name,))
    slots = {"service": "service", "place": "place", "thing": "thing", "recipe": "food", "event": "event"}
    name = maker.slot(slots[kind])
    return Subject(kind, name, (name,))


def state(maker: Maker, family: Family, of: Subject | None, pronoun: bool = False) -> Fact | None:
    """A sentence of the family about the subject, and its questions; None if there is no question to it.

    Args:
        pronoun: he, she or it may stand for the subject, as it was spoken of just before.
    """
    template = statement = maker.one(family.statements)
    known: dict[str, str] = {}
    about = ""
    if of is not None:
        about = of.name if pronoun else ""
        template, known = _spoken(maker, template, of, pronoun)
    text = sentence(maker.fill(template, known))
    said = _asked(maker, of, known)
    asked = [sentence(maker.fill(each.template, said)) for each in family.questions if each.fits(statement)]
    return Fact(text, asked, about, family) if asked else None


def _spoken(maker: Maker, template: str, of: Subject, pronoun: bool) -> tuple[str, dict[str, str]]:
    """The template, and the words for its subject."""
    he, him, his = PRONOUNS[of.he] if of.kind == "person" else ("it", "it", "its")
    name = maker.one(of.short) if pronoun or maker.chance(0.3) else of.name
    known = {"E": name, "E's": possessive(name), "E0": he, "E1": him, "E1's": his}
    if pronoun and maker.chance(0.75):
        if template.startswith("The {E} "):
            return "It" + template.removeprefix("The {E}"), known
        if template.startswith(("{E} ", "{E's} ")):
            known |= {"E": he, "E's": his}
        elif of.kind == "person" and "of {E}" not in template and "{E1's}" not in template:
            known |= {"E": him if re.search(r"\b(by|with|reach|to|who) \{E\}", template) else he, "E's": his}
            if "was {E} who" in template:
                known["E"] = he
    elif "{E's}" in template and template.count("{E") > 1 and not template.startswith("{E's}"):
        known["E's"] = his
    return template, known


def _asked(maker: Maker, of: Subject | None, known: dict[str, str]) -> dict[str, str]:
    """The words of a statement, for its questions: they name the subject."""
    if of is None:
        return known
    name = maker.one(of.short)
    his = PRONOUNS[of.he][2] if of.kind == "person" else "its"
    return known | {"E": name, "E's": possessive(name), "E1's": his}


def possessive(name: str) -> str:
    """Whose."""
    return f"{name}'s" if not name.endswith("s") else f"{name}'"


def sentence(text: str) -> str:
    """With a capital, unless it begins with code."""
    return text[:1].upper() + text[1:] if re.match(r"[a-z]+(?=[ ,'?.]|$)", text) and "_" not in text[:20] else text
