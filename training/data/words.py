"""Vocabulary from what Debian packages, and the held-out part of it.

WordNet (package ``wordnet``) gives nouns that are things, foods, animals and plants first of all, and is not needed:
without it documents have the words of `lists` and invented ones. Nothing of it is written anywhere.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

WORDNET = Path("/usr/share/wordnet")
PLAIN = re.compile("[a-z]{3,11}")
# WordNet's own numbers for what a noun is about (lexnames(5WN)).
KINDS = {"animal": 5, "artifact": 6, "food": 13, "plant": 20, "act": 4, "cognition": 9, "phenomenon": 19}


def held_out(word: str) -> bool:
    """Whether a word is kept for measuring: one in eight, whatever the run."""
    number = 7
    for character in word.lower():
        number = (number * 31 + ord(character)) & 0xFFFFFFFF
    return (number >> 3) % 8 == 0


@functools.cache
def nouns(kind: str) -> tuple[str, ...]:
    """Nouns whose first meaning is of this kind, in WordNet's order; none where it isn't installed."""
    index, data = WORDNET / "index.noun", WORDNET / "data.noun"
    if not index.exists() or not data.exists():
        return ()
    meant = {}
    for line in data.read_text("latin-1").splitlines():
        if not line.startswith(" "):
            offset, number, _ = line.split(" ", 2)
            meant[offset] = int(number)
    found = []
    for line in index.read_text("latin-1").splitlines():
        if line.startswith(" "):
            continue
        word, _, senses, pointers, *rest = line.split()
        first = rest[int(pointers) + 2]
        if PLAIN.fullmatch(word) and int(senses) <= 6 and meant.get(first) == KINDS[kind]:
            found.append(word)
    return tuple(found)


@functools.cache
def verbs() -> tuple[str, ...]:
    """Plain verbs of WordNet; none where it isn't installed."""
    index = WORDNET / "index.verb"
    if not index.exists():
        return ()
    words = (line.split(" ", 1)[0] for line in index.read_text("latin-1").splitlines() if not line.startswith(" "))
    return tuple(word for word in words if PLAIN.fullmatch(word))


@functools.cache
def definitions() -> tuple[str, ...]:
    """What WordNet says of its words, with examples: English of all fields; none where it isn't installed."""
    found = []
    for part in ("noun", "verb", "adj", "adv"):
        file = WORDNET / f"data.{part}"
        for line in file.read_text("latin-1").splitlines() if file.exists() else ():
            if not line.startswith(" "):
                found.append(line.partition(" | ")[2].strip().replace('"', ""))
    return tuple(found)
