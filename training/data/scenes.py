"""Whole documents written by hand, with questions: what a page of connected sentences is like.

The folder ``scenes`` has files of documents. A line of it is one of these:

- ``===``: a new document begins; a word behind it is for the reader alone;
- a heading (``# …``), a line of a table's head (``| …`` without questions), or nothing: as it is;
- an item (``- …``, ``* …``, ``1. …``), a line of a table, or ``> …`` for any other line of its own (of an address, a
  greeting, "Key: value"): a statement that has its line for itself;
- any other text: a sentence, which joins those before it to a paragraph;
- two spaces and a question: the sentence above answers it, and nothing else in the document does;
- ``? `` and a question: the document does not answer it, though it is about such things.

Slots are those of `Maker.slot`, filled alike all through a document. ``{her}`` is a woman's whole name, ``{her.first}``
and ``{her.last}`` are parts of it, ``{him}`` is a man's.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from training.data.maker import SLOT, Maker

FOLDER = Path(__file__).with_name("scenes")
ITEM = re.compile(r"(?:[-*+] |\d+[.)] |> )")
TWO = re.compile(r"(?<!\bSt)(?<!\b[DM]r)(?<!\bMrs)(?<!\bNo)(?<!\b[A-Z])[.!?] [A-Z]")
LITERAL = {"id": "{id}"}  # in paths of an API it is no slot
PERSON = re.compile(r"(her|him)(\d?)(?:\.(first|last))?$")


@dataclass(frozen=True)
class Line:
    """A line of a document, and what it answers.

    Attributes:
        before: what stands before the statement: the mark of an item.
        text: the statement, or what there is in its place.
        alone: whether the line is not part of a paragraph.
    """

    before: str
    text: str
    alone: bool
    questions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scene:
    """A document as it was written, with its slots, and what it does not answer."""

    where: str
    lines: tuple[Line, ...]
    open: tuple[str, ...]


@functools.cache
def scenes() -> tuple[Scene, ...]:
    """All of them."""
    return tuple(scene for file in sorted(FOLDER.glob("*.txt")) for scene in read(file.name, file.read_text("utf-8")))


def read(name: str, text: str) -> list[Scene]:
    """The scenes of a file.

    Raises:
        ValueError: a line is out of place; the message says which.
    """
    found: list[Scene] = []
    lines: list[tuple[Line, list[str]]] = []
    open_: list[str] = []
    where = ""

    def close() -> None:
        if lines:
            made = tuple(Line(each.before, each.text, each.alone, tuple(asked)) for each, asked in lines)
            found.append(Scene(where, made, tuple(open_)))
        lines.clear()
        open_.clear()

    for number, line in enumerate(text.split("\n"), 1):
        at = f"{name}:{number}"
        if line.startswith("==="):
            close()
            where = at
        elif not where and line:
            raise ValueError(f"{at}: text before the first ===.")
        elif line.startswith("? "):
            open_.append(line[2:].strip())
        elif line.startswith("  "):
            if not lines or not lines[-1][0].text:
                raise ValueError(f"{at}: a question without a sentence above it.")
            lines[-1][1].append(line.strip())
        elif where:
            mark = ITEM.match(line)
            before = mark[0] if mark else ""
            alone = bool(mark) or line.startswith(("#", "|")) or not line
            lines.append((Line("" if before == "> " else before, line[len(before) :].strip(), alone), []))
    close()
    return found


def fill(maker: Maker, template: str, known: dict[str, str]) -> str:
    """Put words into the slots, the same for the same slot."""
    known |= LITERAL
    for slot in SLOT.findall(template):
        if match := PERSON.match(slot):
            who = match[1] + match[2]
            if f"{who}.first" not in known:
                known |= {f"{who}.first": maker.first(match[1] == "him"), f"{who}.last": maker.last()}
                known[who] = f"{known[f'{who}.first']} {known[f'{who}.last']}"
    return maker.fill(template, known)


def faults(scenes: Iterable[Scene]) -> list[str]:
    """What is wrong with them, in sentences."""
    found = []
    maker = Maker(1)
    for scene in scenes:
        stated = [line for line in scene.lines if line.questions]
        if len(stated) < 4:
            found.append(f"{scene.where}: only {len(stated)} sentences that are asked for.")
        slots: set[str] = set()
        for line in scene.lines:
            try:
                fill(maker, line.text, {})
            except (AttributeError, TypeError):
                found.append(f"{scene.where}: a slot that there is not: {line.text}")
            slots |= set(SLOT.findall(line.text))
            if not line.alone and TWO.search(line.text):
                found.append(f"{scene.where}: two sentences in one line? {line.text}")
        asked = [each for line in scene.lines for each in line.questions]
        for each in {each for each in asked if asked.count(each) > 1}:
            found.append(f"{scene.where}: asked of two sentences: {each}")
        for each in {each for each in asked if each in scene.open}:
            found.append(f"{scene.where}: asked, and said to be open: {each}")
        people = {match[1] + match[2] for slot in slots if (match := PERSON.match(slot))}
        for each in (*asked, *scene.open):
            for slot in SLOT.findall(each):
                match = PERSON.match(slot)
                if slot not in slots and not (match and match[1] + match[2] in people):
                    found.append(f"{scene.where}: {{{slot}}} is asked for, and not said: {each}")
    return found


def main() -> None:
    """``python -m training.data.scenes FILE …``: tell what is wrong with the files, and what they have."""
    wrong = False
    for name in sys.argv[1:]:
        made = read(name, Path(name).read_text("utf-8"))
        told = faults(made)
        wrong = wrong or bool(told)
        asked = sum(len(line.questions) for scene in made for line in scene.lines)
        count = f"{len(made)} documents, {asked} questions, {sum(len(scene.open) for scene in made)} open ones"
        sys.stdout.write("\n".join([*told, f"{name}: {count}"]) + "\n")
    sys.exit(wrong)


if __name__ == "__main__":
    main()
