"""Documents that were written by hand to learn from: their form, and what the pages made of them say and don't."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from training.data import scenes as room
from training.data.document import example
from training.data.maker import Maker
from training.data.questions import REFUSAL
from training.data.scenes import FOLDER, faults, fill, read, scenes
from training.data.written import pages

SEEDS = range(60)
SMALL = """\
=== a mill
# The mill

{her} bought the mill in {year}.
  Who bought the mill?
  When did {her.first} buy it?
It had stood empty for {dur}.
  How long was nobody there?
It is quiet there.
- Opening hours: daily.
  When is it open?
> Miller: {him}
  Who grinds?
? What does {her.last} pay for the roof?
"""


def small(old: str = "", new: str = "") -> list[str]:
    assert old in SMALL
    return faults(read("small.txt", SMALL.replace(old, new)))


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.txt")), ids=lambda file: file.name)
def test_every_document_is_as_it_should_be(file: Path) -> None:
    made = read(file.name, file.read_text("utf-8"))
    assert made
    assert not faults(made)


def test_a_document_is_taken_apart() -> None:
    (scene,) = read("small.txt", SMALL)
    assert scene.where == "small.txt:1"
    assert scene.open == ("What does {her.last} pay for the roof?",)
    told = [(each.before, each.text, each.alone, len(each.questions)) for each in scene.lines if each.text]
    assert told == [
        ("", "# The mill", True, 0),
        ("", "{her} bought the mill in {year}.", False, 2),
        ("", "It had stood empty for {dur}.", False, 1),
        ("", "It is quiet there.", False, 0),
        ("- ", "Opening hours: daily.", True, 1),
        ("", "Miller: {him}", True, 1),
    ]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("{dur}", "{eternity}", "small.txt:1: a slot that there is not"),
        ("{year}.", "{year}. It was cheap.", "small.txt:1: two sentences in one line"),
        ("Who grinds?", "When is it open?", "small.txt:1: asked of two sentences: When is it open?"),
        ("  Who grinds?", "  What does {her.last} pay for the roof?", "small.txt:1: asked, and said to be open: What"),
        ("{her.last} pay", "{him2.last} pay", "small.txt:1: {him2.last} is asked for, and not said"),
        ("  Who grinds?\n", "", "small.txt:1: only 3 sentences"),
    ],
)
def test_what_is_wrong_with_a_document_is_told(old: str, new: str, told: str) -> None:
    assert not small()
    found = small(old, new)
    assert len(found) == 1
    assert found[0].startswith(told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("? Who?\n", "a.txt:1: text before the first ===."),
        ("===\n  Who?\n", "a.txt:2: a question without a sentence above it."),
        ("Who?\n", "a.txt:1: text before the first ===."),
    ],
)
def test_a_line_out_of_place_is_named(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        read("a.txt", text)


def test_a_slot_is_filled_alike_all_through() -> None:
    for seed in SEEDS:
        known: dict[str, str] = {}
        said = fill(Maker(seed), "{her}|{her.first}|{her.last}|{her2.first}|{her}|{place}|{place}|{id}", known).split(
            "|"
        )
        assert said[0] == f"{said[1]} {said[2]}" == said[4]
        assert said[5] == said[6]
        assert said[7] == "{id}"  # as in the paths of an API


def test_a_page_says_its_statements_and_not_what_it_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    (scene,) = read("small.txt", SMALL)
    monkeypatch.setattr("training.data.written.scenes", lambda: (scene,))
    left_out = 0
    for seed in SEEDS:
        (page,) = pages(Maker(seed), 3)
        text = " ".join(page.text.split())
        asked = {each for fact in page.facts for each in fact.questions}
        assert all(" ".join(fact.text.split()) in text for fact in page.facts)
        assert 1 <= sum(not fact.empty for fact in page.facts) <= 3
        assert any("pay for the roof?" in each for each in page.open)
        assert not asked & set(page.open)
        assert ("When is it open?" in asked) != ("When is it open?" in page.open)
        assert ("Opening hours" in text) == ("When is it open?" in asked)
        left_out += "When is it open?" in page.open
    assert 0 < left_out < len(SEEDS)


def test_pages_are_of_different_documents_and_as_long_as_asked_for() -> None:
    for seed in range(10):
        for many in (3, 30, 140):
            made = pages(Maker(seed), many)
            assert 0.5 * many <= sum(len(each.facts) for each in made) <= 2 * many + 8
            assert len({each.text for each in made}) == len(made)


def test_an_answer_of_a_written_page_is_a_line_or_a_sentence_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.data.document.WRITTEN", 1.0)
    kinds = set()
    for seed in SEEDS:
        made = example(seed, 20, 10)
        text = " ".join(made.text.split())
        for question in made.questions:
            assert question.refused == (question.answer == REFUSAL)
            assert question.refused or " ".join(question.answer.split()) in text
            assert not re.search(r"\{[^{}]+\}", f"{question.text} {text}".replace("{id}", ""))
            kinds.add(question.refused)
    assert kinds == {True, False}


def test_there_are_many_and_they_are_read_once() -> None:
    every = scenes()
    assert len(every) > 900
    assert sum(len(line.questions) for scene in every for line in scene.lines) > 30_000
    assert len({scene.where for scene in every}) == len(every)
    assert room.scenes() is every
