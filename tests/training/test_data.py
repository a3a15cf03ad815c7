"""The generator: the same for a seed, and every answer a sentence of its document, verbatim."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from training.data.document import example
from training.data.facts import KINDS, OF_ANYTHING, Family, families, state, subject
from training.data.maker import Maker
from training.data.questions import REFUSAL
from training.data.selections import named, selected

ROOT = Path(__file__).resolve().parents[2]
SEEDS = range(40)


@pytest.mark.exhaustive
def test_a_seed_makes_the_same_document_in_another_process() -> None:
    code = "from training.data.document import example; print(repr([example(seed, 12, 6) for seed in range(5)]))"
    runs = {
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    }
    assert runs == {repr([example(seed, 12, 6) for seed in range(5)]) + "\n"}


def test_seeds_differ() -> None:
    assert len({example(seed, 12, 6).text for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize("held_out", [False, True])
def test_an_answer_stands_in_the_document_or_is_the_refusal(held_out: bool) -> None:
    refused = 0
    for seed in SEEDS:
        made = example(seed, 20, 10, held_out)
        text = " ".join(made.text.split())
        for question in made.questions:
            assert question.refused == (question.answer == REFUSAL)
            assert question.refused or " ".join(question.answer.split()) in text
            refused += question.refused
    assert 0.04 < refused / (10 * len(SEEDS)) < 0.25


def test_an_answer_is_of_one_line_and_asked_for_as_the_daemon_asks() -> None:
    for seed in SEEDS:
        for question in example(seed, 20, 10).questions:
            assert "\n" not in question.answer
            assert re.match(r"(Selected text:\n.+\n\n)?Question: .+$", question.text)


def test_what_is_selected_stands_in_the_document_and_is_asked_about_in_its_place() -> None:
    pointed = 0
    for seed in range(40):
        texts = [question.answer for question in example(seed, 12, 6).questions if not question.refused]
        for at in range(len(texts)):
            asked, selection = selected(Maker(seed), "Where does the old miller live now?", texts, at)
            assert selection in " ".join(texts)
            assert asked.endswith("?") or asked == "Explain this."
    told = ["Ann is the old miller of Odense.", "He lives at 4 Mill Lane."]
    for seed in range(200):
        asked, selection = selected(Maker(seed), "Where does the old miller of Odense live?", told, 1)
        if "miller" in selection and "miller" not in asked:
            pointed += 1
            assert re.fullmatch(r"Where does (it|this|that|he|she|they) live\?", asked)
            assert selection in told[0]
    assert pointed > 60


def test_what_a_question_and_a_text_both_name_is_the_longest() -> None:
    assert named("Where does the old miller live?", "An old miller, Ann.") == ("Where does {} live?", "old miller")
    assert named("Where is it?", "It is there.") is None
    assert named("Where is Ann?", "Anna is here.") is None


def test_a_document_has_about_as_many_sentences_as_asked_for() -> None:
    for many in (5, 40, 110):
        words = len(example(1, many, 8).text.split())
        assert 5 * many < words < 30 * many


def test_nothing_is_left_unfilled() -> None:
    for seed in SEEDS:
        made = example(seed, 30, 10)
        words = made.text + "".join(each.text for each in made.questions)
        assert not re.search(r"[{}\0│]| {2}", words.replace("/{id}", ""))


def every_family() -> list[Family]:
    return [family for kind in (*KINDS, "fields") for family in families(kind)]


@pytest.mark.parametrize("family", every_family(), ids=lambda family: f"{family.kind}: {family.statements[0][:40]}")
def test_every_way_to_say_something_has_a_question_and_every_question_something_that_answers_it(family: Family) -> None:
    maker = Maker(0)
    for statement in family.statements:
        alone = Family(family.kind, (statement,), family.questions)
        of = None if family.kind in OF_ANYTHING else subject(maker, "thing" if family.kind == "fields" else family.kind)
        assert state(maker, alone, of) is not None, statement
    for question in family.questions:
        assert any(map(question.fits, family.statements)), question.template
