"""A made-up document and questions about it: always the same for a seed, every answer a sentence of it, verbatim."""

from __future__ import annotations

import re
from dataclasses import dataclass

from training.data import lists
from training.data.asking import ask, ask_written
from training.data.facts import KINDS, OF_ANYTHING, Fact, Subject, families, sentence, state, subject
from training.data.layout import Block, page, wrap
from training.data.maker import Maker
from training.data.questions import Question
from training.data.sentences import action, decorate, docstrings
from training.data.written import Page, pages

REFUSED = 0.15  # of the questions have no answer; fewer in the end, as not every try finds one
WRITTEN = 0.7  # of the documents are made of such as were written by hand
TOPICAL = 0.35  # of the documents are about one thing all through
TOPICS = lists.phrases("topics")
OF_TOPIC = ("of", "at", "for", "with", "in", "near", "of")  # what a question says before the topic
FIELDED = ("service", "thing", "event", "organisation")  # kinds that may be described in lines of "Key: value"


@dataclass(frozen=True)
class Example:
    """A document and questions, as the daemon writes them behind it."""

    text: str
    questions: tuple[Question, ...]


def example(seed: int, sentences: int, questions: int, held_out: bool = False, refused: float = REFUSED) -> Example:
    """The document of a seed: of about so many sentences, and at most so many questions about it, at least one.

    Args:
        held_out: use the words that are kept for measuring.
        refused: about how many of the questions are tried to be such that have no answer.
    """
    for attempt in range(20):
        maker = Maker(seed + attempt * 1_000_003, held_out)
        if not held_out and maker.chance(WRITTEN):
            made = pages(maker, sentences)
            text = _joined_pages(maker, made)
            asked = ask_written(maker, made, questions, refused)
        else:
            blocks = _blocks(maker, sentences)
            text = page(maker, blocks)
            asked = ask(maker, blocks, questions, refused)
        if any(not each.refused for each in asked):
            return Example(text, tuple(asked))
    raise RuntimeError(f"No document of {sentences} sentences with a question could be made from seed {seed}.")


def _blocks(maker: Maker, sentences: int) -> list[Block]:
    if sentences >= 6 and maker.chance(TOPICAL):
        return _of_one_topic(maker, sentences)
    kinds = [maker.one(KINDS) for _ in range(maker.number(1, 4))] + [maker.one(OF_ANYTHING)]
    plain, real = 0.05 + 0.3 * maker.random.random(), 0.3 * maker.random.random() if maker.chance(0.4) else 0.0
    twins = maker.chance(0.3)
    blocks: list[Block] = []
    count = 0
    while count < sentences:
        room = min(sentences - count, maker.number(1, 6))
        kind = maker.random.random()
        if kind < real:
            block = Block(None, _from_docstrings(maker, room))
        elif kind < real + plain:
            block = Block(None, [_decorated(maker, action(maker)) for _ in range(room)])
        elif twins and maker.chance(0.15):
            block = _twins(maker, maker.one([each for each in kinds if each not in OF_ANYTHING] or ["thing"]), room)
        else:
            block = _about(maker, maker.one(kinds), room)
        if block.facts:
            blocks.append(block)
            count += len(block.facts)
    if maker.chance(0.3):
        maker.random.shuffle(blocks)
    return blocks


def _of_one_topic(maker: Maker, sentences: int) -> list[Block]:
    """A document about one thing, which is named everywhere and so tells sentences apart nowhere.

    Some sentences name it and answer nothing; most that answer say "it"; and questions name it nearly always.
    """
    kind = maker.one([each for each in KINDS if each not in (*OF_ANYTHING, "recipe", "api")])
    of = subject(maker, kind)
    the = "the " if any(way.startswith("The {E} ") for each in families(kind) for way in each.statements) else ""
    name = f"{the}{of.name}"
    left = maker.random.sample(families(kind), len(families(kind)))
    blocks: list[Block] = []
    count = 0
    while count < sentences:
        facts: list[Fact] = []
        if not blocks or maker.chance(0.35):
            facts.append(Fact(sentence(maker.fill(maker.one(TOPICS), {"E": name})), empty=True))
        for _ in range(min(sentences - count, maker.number(2, 7))):
            fact = None
            if left and maker.chance(0.6):
                fact = state(maker, left.pop(), of, pronoun=bool(facts) and maker.chance(0.8))
            facts.append(_decorated(maker, fact or _beside_topic(maker, name)))
        blocks.append(Block(of, facts))
        count += len(facts)
    return blocks


def _beside_topic(maker: Maker, name: str) -> Fact:
    """Something else that is said; who asks for it may say that it belongs to the topic, which it does not."""
    family = maker.one(families(maker.one(OF_ANYTHING)))
    fact = (state(maker, family, None) if maker.chance(0.5) else None) or action(maker)
    if maker.chance(0.4):
        fact.questions = [f"{each.rstrip('?.')} {maker.one(OF_TOPIC)} {name}?" for each in fact.questions]
        fact.about = name
    return fact


def _from_docstrings(maker: Maker, many: int) -> list[Fact]:
    every = docstrings()
    at = maker.number(0, max(0, len(every) - many))
    return [Fact(text) for text in every[at : at + many]]


def _decorated(maker: Maker, fact: Fact) -> Fact:
    fact.text = decorate(maker, fact.text)
    return fact


def _about(maker: Maker, kind: str, many: int) -> Block:
    """Several facts about one subject, or notes about anything."""
    of = None if kind in OF_ANYTHING else subject(maker, kind)
    if of is not None and kind in FIELDED and maker.chance(0.08):
        return _fielded(maker, of, many)
    chosen = maker.random.sample(families(kind), min(many, len(families(kind))))
    facts: list[Fact] = []
    pronouns = maker.chance(0.75)
    for family in chosen:
        fact = state(maker, family, of, pronoun=bool(facts) and pronouns and of is not None)
        if fact is None:
            continue
        fact = _decorated(maker, fact) if kind not in ("recipe", "code") or maker.chance(0.3) else fact
        if facts and of is not None and maker.chance(0.12) and _joined(facts[-1], fact):
            continue
        facts.append(fact)
    return Block(of, facts)


def _joined(before: Fact, fact: Fact) -> bool:
    """Make one sentence of two, if they allow it."""
    match = re.match(r"(He|She|It) ([a-z]\w* .*)", fact.text)
    if not match or not before.text.endswith(".") or len(before.text) + len(fact.text) > 200:
        return False
    if match[1] == "It" and not before.text.startswith(("The ", "It ")):
        return False
    before.text = f"{before.text[:-1]}, and {match[1].lower()} {match[2]}"
    before.questions += fact.questions
    before.about = before.about or fact.about
    return True


def _fielded(maker: Maker, of: Subject, many: int) -> Block:
    """Lines of "Key: value" under the subject's name."""
    facts = []
    for family in maker.random.sample(families("fields"), many):
        fact = state(maker, family, of)
        if fact is not None:
            fact.about = of.name
            facts.append(fact)
    return Block(of, facts, listed=True)


def _twins(maker: Maker, kind: str, many: int) -> Block:
    """The same said of several subjects, whose names may be almost equal."""
    family = maker.one(families(kind))
    facts: dict[str, Fact] = {}
    first = subject(maker, kind)
    number = maker.number(1, 90)
    close = maker.chance(0.35) and kind in ("thing", "service", "code", "event")
    for at in range(max(2, many)):
        of = subject(maker, kind)
        if close:
            name = f"{first.name} {number + at}"
            of = Subject(kind, name, (name,))
        fact = state(maker, family, of)
        if fact is not None:
            facts.setdefault(fact.text, fact)
    return Block(None, list(facts.values()))


def _joined_pages(maker: Maker, made: list[Page]) -> str:
    text = "\n\n".join(each.text for each in made)
    return (wrap(text, maker.number(60, 90)) if maker.chance(0.2) else text) + ("\n" if maker.chance(0.5) else "")
