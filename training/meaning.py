"""Which of a tokenizer's pieces have to do with each other in meaning: WordNet's knowledge (Debian's ``wordnet``).

A piece is most of a word, its ending cut off; ``stopp`` and ``carri`` are words, too. Two are relatives if they are of
one synset, or of two that point to each other; the more so the more often both words are meant so. Nothing of WordNet
is written anywhere but into weights, as angles between vectors.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Sequence

from training.data.words import WORDNET

PIECE = re.compile(" ([a-z]{2,})")
PARTS = {"n": "noun", "v": "verb", "a": "adj", "s": "adj", "r": "adv"}
BY_TYPE = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}  # of a sense's key (senseidx(5WN))
# How much a pointer's target has of its source's meaning (wninput(5WN)): what is derived, similar, more general …
POINTERS = {"+": 0.9, "\\": 0.8, "<": 0.8, "&": 0.6, "$": 0.6, "@": 0.5, "^": 0.5, "*": 0.3, ">": 0.3, "!": 0.25}
BACK = 0.8  # of a relation in its other direction
SELDOM = 0.08  # senses that a word has less often than this are left out
UNCOUNTED = 0.7  # what the first of a word's senses counts for where none has been counted; the second half of it …


@functools.cache
def synsets() -> dict[str, tuple[tuple[str, str], ...]]:
    """What each synset, by part of speech and offset, points to, and by which symbol; none without WordNet."""
    found = {}
    for part in dict.fromkeys(PARTS.values()):
        file = WORDNET / f"data.{part}"
        if not file.exists():
            return {}
        for line in file.read_text("latin-1").splitlines():
            if line.startswith(" "):
                continue
            fields = line.partition(" | ")[0].split()
            at = 4 + 2 * int(fields[3], 16)
            end = at + 1 + 4 * int(fields[at])
            columns = (fields[at + 1 + column : end : 4] for column in range(3))
            pointers = ((symbol, PARTS[kind] + offset) for symbol, offset, kind in zip(*columns, strict=True))
            found[part + fields[0]] = tuple(pointers)
    return found


@functools.cache
def senses() -> dict[str, dict[str, float]]:
    """The synsets of each word, irregular forms too, and how often it is meant so, of 1; empty without WordNet."""
    if not synsets():
        return {}
    counted: dict[tuple[str, str, str], float] = {}
    for line in (WORDNET / "cntlist.rev").read_text("latin-1").splitlines():
        key, number, many = line.split()
        word, _, kind = key.partition("%")
        counted[word, BY_TYPE[kind[0]], number] = float(many)
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for part in dict.fromkeys(PARTS.values()):
        for line in (WORDNET / f"index.{part}").read_text("latin-1").splitlines():
            if line.startswith(" "):
                continue
            word, _, _, pointers, *rest = line.split()
            for place, offset in enumerate(rest[int(pointers) + 2 :], 1):
                found[word][part + offset] = counted.get((word, part, str(place)), 0.0) + UNCOUNTED / place
    for part in dict.fromkeys(PARTS.values()):
        for line in (WORDNET / f"{part}.exc").read_text("latin-1").splitlines():
            odd, *bases = line.split()
            for base in bases:
                for at, often in found.get(base, {}).items():
                    if at.startswith(part):
                        found[odd][at] = found[odd].get(at, 0.0) + often
    wholes = {word: sum(each.values()) for word, each in found.items()}
    return {word: {at: often / wholes[word] for at, often in each.items()} for word, each in found.items() if each}


def words_of(piece: str) -> list[str]:
    """The words that a piece may stand for, the likeliest first: itself, or with an ending that was cut off."""
    match = PIECE.fullmatch(piece)
    if not match:
        return []
    word = match[1]
    found = [word, f"{word}e", f"{word}y"]
    if len(word) > 3 and word[-1] == word[-2]:
        found.append(word[:-1])  # stopp(ed)
    if word.endswith("i"):
        found.append(f"{word[:-1]}y")  # carri(ed)
    return [*found, f"{word}s"]


def relatives(pieces: Sequence[str]) -> list[dict[int, float]]:
    """For each piece its relatives among the others, by place, and how near they are, of 1."""
    known = senses()
    meant = [next((known[word] for word in words_of(piece) if word in known), {}) for piece in pieces]
    holders: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for place, each in enumerate(meant):
        for at, often in each.items():
            if often >= SELDOM:
                holders[at].append((place, often))
    found: list[dict[int, float]] = [{} for _ in pieces]

    def near(one: int, other: int, how: float) -> None:
        if one != other:
            found[one][other] = max(found[one].get(other, 0.0), how)

    for place, each in enumerate(meant):
        for at, often in each.items():
            if often < SELDOM:
                continue
            targets = [(1.0, at), *((POINTERS[sign], to) for sign, to in synsets()[at] if sign in POINTERS)]
            for share, target in targets:
                for other, others in holders.get(target, ()):
                    near(place, other, share * (often * others) ** 0.5)
    by_piece = {piece: place for place, piece in enumerate(pieces)}
    for piece, place in by_piece.items():
        for word in words_of(piece)[1:]:
            if f" {word}" in by_piece:
                near(place, by_piece[f" {word}"], 1.0)
    for place, akin in enumerate(list(map(dict, found))):
        for other, how in akin.items():
            near(other, place, BACK * how)
    return found
