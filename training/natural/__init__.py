"""The hand-written sets: natural documents with questions, and the words that must be in the answers.

``dev/`` is for looking at while training; ``kept_aside/`` is measured at the end, and never looked at before. A file
is a document, a line of ``=====``, and below it ``kind: prose`` or ``kind: manual`` and sections of questions:

- ``[questions]``: ``question | words of the answer``, clear enough to be asked beside other documents, too; where one
  expression is not enough to tell the answer by, ``some words & other words``;
- ``[of its own]``: clear only where this document stands alone ("Why did she move?");
- ``[paraphrases]``: questions that share few or no words with the answer;
- ``[no answer]``: questions alone, about things that the document does not say;
- ``[selections]``: ``selected text | question | words``.

``of_any_document.txt`` has what can be said to any document and has no answer in it.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FOLDER = Path(__file__).parent
REFUSAL = "The document does not say."
ANY = "of_any_document.txt"
SECTIONS = ("questions", "of its own", "paraphrases", "no answer", "selections")

Part = Literal["dev", "kept_aside"]

WRAPPED = 70  # a line that with the next one's first word had been longer is wrapped, and goes on
BLOCK = re.compile(r"\s*(#{1,6} |[-*+•] |\d+[.)] |\||>|```|\*\*[^*]+:\*\*)")
LONE = re.compile(r"\s*(#{1,6} |\||[-=]{3,}$)")
END = re.compile(r"[.!?…][\"'”’)\]*_`]*\s+")
# A full stop behind these ends no sentence.
ABBREVIATIONS = {"mr", "mrs", "ms", "dr", "prof", "st", "nr", "vol", "fig", "vs", "e.g", "i.e", "cf", "approx"}


@dataclass(frozen=True)
class Question:
    """A question with the expressions that must all be in its answer; none: the document does not say."""

    text: str
    expected: tuple[str, ...] = ()
    selection: str | None = None


@dataclass(frozen=True)
class Document:
    """A natural document, ``prose`` or ``manual``, and its questions by section."""

    name: str
    kind: str
    text: str
    asked: dict[str, tuple[Question, ...]]


def documents(part: Part) -> list[Document]:
    """The documents of a part, by name."""
    return [read(path) for path in sorted((FOLDER / part).glob("*.txt")) if path.name != ANY]


def of_any_document(part: Part) -> list[Question]:
    """Greetings, wishes for summaries, other languages, and the like."""
    lines = (FOLDER / part / ANY).read_text("utf-8").splitlines()
    return [Question(line) for line in lines if line]


def read(path: Path) -> Document:
    """One file.

    Raises:
        ValueError: it is not written as the module says.
    """
    text, bar, below = path.read_text("utf-8").partition("\n=====\n")
    head, *rest = re.split(r"^\[(.+)\]$", below, flags=re.MULTILINE)
    kind = head.strip().removeprefix("kind: ")
    asked = {name: tuple(map(_question, body.split("\n"))) for name, body in _pairs(rest)}
    if not bar or kind not in ("prose", "manual") or set(asked) != set(SECTIONS):
        raise ValueError(f"{path.name} is not a document, a line of =====, a kind and the sections {SECTIONS}")
    return Document(path.stem, kind, text.rstrip("\n"), asked)


def _pairs(pieces: list[str]) -> list[tuple[str, str]]:
    return [(name, body.strip("\n")) for name, body in zip(pieces[::2], pieces[1::2], strict=True)]


def _question(line: str) -> Question:
    *selection, text, expected = [piece.strip() for piece in line.split(" | ")] + [""] * (" | " not in line)
    return Question(text, tuple(filter(None, expected.split(" & "))), selection[0] if selection else None)


def joined(
    own: Sequence[Document], others: Sequence[Document], tokens: int, measure: Callable[[str], int]
) -> list[tuple[list[Document], str]]:
    """Texts of nearly so many tokens, of whole documents, until each of our own has been in one.

    Args:
        own: those to be asked about; beside each text stand the ones whose turn it is in it.
        others: what may fill a text up, as those of our own may that had their turn.
        measure: how many tokens a text has.

    Raises:
        ValueError: a document alone has more tokens.
    """
    order = random.Random(0)
    waiting, found = order.sample(list(own), len(own)), []
    while waiting:
        filling = [each for each in (*own, *others) if each not in waiting]
        group, room = [], 1.02 * tokens
        for each in (*waiting, *order.sample(filling, len(filling))):
            if (size := measure(each.text)) <= room:
                group.append(each)
                room -= size
        asked = [each for each in group if each in waiting]
        if not asked:
            raise ValueError(f"{waiting[0].name} alone has more than {tokens} tokens")
        waiting = [each for each in waiting if each not in asked]
        found.append((asked, "\n\n".join(each.text for each in order.sample(group, len(group)))))
    return found


def plain(text: str) -> str:
    """Every run of white space as one space, none at the ends."""
    return " ".join(text.split())


@functools.lru_cache(maxsize=8)
def sentences(text: str) -> tuple[str, ...]:
    """A document's sentences, `plain`; a heading, a list item, a row of a table and a short line end one, too."""
    found = []
    for block in _blocks(text):
        start = 0
        for end in END.finditer(block):
            if _ends(block, start, end):
                found.append(block[start : end.end()].strip())
                start = end.end()
        found.append(block[start:].strip())
    return tuple(sentence for sentence in found if sentence)


def _blocks(text: str) -> list[str]:
    """What no sentence reaches beyond: paragraphs, list items, headings, rows, lines that are not wrapped ones."""
    blocks: list[str] = []
    before = ""
    for line in text.splitlines():
        goes_on = before.strip() and not BLOCK.match(line) and not LONE.match(before)
        if line.strip() and goes_on and len(f"{before} {line.split()[0]}") > WRAPPED:
            blocks[-1] += f" {plain(line)}"
        else:
            blocks.append(plain(line))
        before = line
    return blocks


def _ends(block: str, start: int, end: re.Match[str]) -> bool:
    """Whether a sentence ends there, and not an abbreviation, a list's number or an initial."""
    word = re.split(r"[\s(\"“]", block[start : end.start()])[-1]
    following = re.match(r"\S+", block[end.end() :])
    if following is None or following[0][0].islower():
        return False
    if block[end.start()] != ".":
        return True
    if word.lower() == "no" and re.search(r"\d", following[0]):
        return False
    initial = re.fullmatch(r"(?:\w\.)*[A-Z]", word) is not None
    number = end.start() == len(word) and word.isdecimal()
    return not (initial or number or word.lower() in ABBREVIATIONS)
