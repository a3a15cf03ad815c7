"""Where the words of an answer stand in the text: exact spans, found by comparing, never by asking the model.

Both sides are cut into tokens (words, numbers, runs of white space, single signs), and each token becomes one character
of a string. Finding a span that begins and ends between words is then finding a substring, which takes linear time
however often a text repeats itself.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate, pairwise

from cag_daemon.text import Text

MIN_CHARACTERS = 12

# Scripts that put no spaces between words, as the names of their characters begin.
_UNSPACED = (
    *("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "BOPOMOFO", "YI ", "TANGUT"),
    *("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "TAI ", "NEW TAI", "JAVANESE", "BALINESE"),
)
# Of kinds of characters: a word or a number ("don't" and "1,234.5" are one); white space; a sign. Marks go with what
# they stand on.
_TOKEN = re.compile(r"[wd][wdm]*(?:(?:'(?=[wd])|(?<=d)\.(?=d))[wdm]+)*|s+|[u'.o]m*|m+")


@dataclass(frozen=True)
class Citation:
    """A span of an answer in UTF-16 code units, and where it first stands, in offsets of ``text.normalised``."""

    answer_start: int
    answer_end: int
    start: int
    end: int


def find(answer: str, text: Text) -> list[Citation]:
    """The spans of an answer that stand in a text: from left to right always the longest, none overlapping another.

    A span has at least `MIN_CHARACTERS` characters, where a run of white space counts as one and equals any other. It
    begins and ends between words on both sides; in a script without spaces, anywhere.
    """
    words, places = _tokens(answer)
    page_words, page_places = _tokens(text.normalised)
    codes = {word: chr(code) for code, word in enumerate(dict.fromkeys(words), 1)}
    line = "".join(codes[word] for word in words)
    page = "".join(codes.get(word, "\0") for word in page_words)
    limits = _limits(line, page)
    sizes = [0, *accumulate(map(len, words))]
    citations = []
    start = seen = units = 0
    while start < len(words):
        end = bisect_left(sizes, sizes[start] + MIN_CHARACTERS)
        if end <= len(words) and words[end - 1] == " ":
            end += 1
        place = page.find(line[start:end]) if words[start] != " " and end <= limits[start] else -1
        if place < 0:
            start += 1
            continue
        place, end = _extend(line, page, start, end, limits[start], place)
        if words[end - 1] == " ":
            end -= 1
        before = units + _units(answer[seen : places[start]])
        units = before + _units(answer[places[start] : places[end]])
        citations.append(Citation(before, units, page_places[place], page_places[place + end - start]))
        start, seen = end, places[end]
    return citations


def _extend(line: str, page: str, start: int, end: int, limit: int, place: int) -> tuple[int, int]:
    """The first place of the longest match that begins at start, and its end; ``line[start:end]`` stands at place."""
    step = 1
    while step:
        further = min(end + step, limit)
        # What is longer stands nowhere before.
        found = page.find(line[start:further], place) if further > end else -1
        if found < 0:
            step //= 2
        else:
            place, end, step = found, further, step * 2
    return place, end


def _limits(line: str, page: str) -> list[int]:
    """For each place in line, an end that no match from there can pass: up to it all threes in a row are the page's.

    It spares nearly all searches that would find nothing.
    """
    threes = [line[at : at + 3] for at in range(len(line) - 2)]
    known = set(threes).intersection(map("".join, zip(page, page[1:], page[2:], strict=False)))
    limits = [len(line)] * len(line)
    for at in reversed(range(len(threes))):
        limits[at] = limits[at + 1] if threes[at] in known else at + 2
    return limits


def _tokens(text: str) -> tuple[list[str], list[int]]:
    """The tokens, white space as one space, and where each begins; at last, where the text ends."""
    kinds = text.translate({ord(character): _kind(character) for character in set(text)})
    places = [*(match.start() for match in _TOKEN.finditer(kinds)), len(text)]
    return [" " if kinds[start] == "s" else text[start:end] for start, end in pairwise(places)], places


def _kind(character: str) -> str:
    """White *s*pace, *d*igit, *m*ark, *u*nspaced, *w*ord; what can join: ``'`` words, ``.`` digits; *o*ther."""
    if character.isspace():
        return "s"
    if character.isdecimal():
        return "d"
    if unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf"):
        return "m"
    if character.isalnum() or character == "_":
        return "u" if unicodedata.name(character, "").startswith(_UNSPACED) else "w"
    return {"'": "'", "’": "'", ".": ".", ",": ".", ":": "."}.get(character, "o")


def _units(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2
