"""Random but seeded choices: the words, names, numbers and phrases that fill a template."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import TypeVar

from training.data import lists, words

T = TypeVar("T")
SLOT = re.compile(r"\{([^{}]+)\}")
STARTS = lists.split("b c d f g h j k l m n p r s t v w z br ch cl dr fl gr kr pl sh sk st th tr qu sn")
VOWELS = lists.split("a e i o u a e i o ai ea ee ou ia io oa y ei")
ENDS = ["", "", "", *lists.split("n r s l m t k x nd rt sk ck ng v z ss lm")]
SUFFIXES = ["", *lists.split(".log .yaml .toml .json .conf .py .txt .db .sh .md .csv")]
HANDLING = lists.split("clean repair sell paint move check measure replace open close wash copy hide fetch")
ACCENTED = {
    "a": "áàâäåã",
    "e": "éèêë",
    "i": "íïî",
    "o": "óöôøőõ",
    "u": "úüûű",
    "c": "çčć",
    "n": "ñń",
    "s": "šś",
    "z": "žż",
}
NO_S = ("s", "x", "z", "ch", "sh")


class Maker:
    """One document's source of chance.

    Args:
        seed: the same seed, the same choices.
        held_out: use the words that are kept for measuring, where invented or from WordNet, and only those.
    """

    def __init__(self, seed: int, held_out: bool = False) -> None:
        self.random = random.Random(seed)
        self._held_out = held_out

    def one(self, of: Sequence[T]) -> T:
        """One of them."""
        return of[int(self.random.random() * len(of))]

    def chance(self, of: float) -> bool:
        """True so often, of 1."""
        return self.random.random() < of

    def number(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return self.random.randint(low, high)

    # ── words ───────────────────────────────────────────────────────────────────────────────

    def invented(self, low: int = 2, high: int = 3) -> str:
        """A word that there is not, of so many syllables."""
        word = ""
        for _ in range(30):
            syllables = range(self.number(low, high))
            word = "".join(self.one(STARTS) + self.one(VOWELS) + self.one(ENDS) for _ in syllables)
            if 3 <= len(word) <= 11 and words.held_out(word) == self._held_out:
                break
        return word

    def proper(self, low: int = 2, high: int = 3) -> str:
        """An invented name. Some have letters of other alphabets' making: those are read and copied byte by byte."""
        word = self.invented(low, high).capitalize()
        if self.chance(0.1):
            at = self.number(0, len(word) - 1)
            word = word[:at] + self.one(ACCENTED.get(word[at], (word[at],))) + word[at + 1 :]
        return word

    def noun(self, kind: str = "artifact", own: Sequence[str] = lists.THINGS, often: float = 0.6) -> str:
        """A noun of ours, or a rarer one of WordNet's."""
        known = words.nouns(kind)
        if not known or self.chance(often):
            return self.one(own) if known or self.chance(0.8) else self.invented()
        for _ in range(30):
            word = self.one(known)
            if words.held_out(word) == self._held_out:
                return word
        return self.one(own)

    def thing(self) -> str:
        """A thing, now and then with an adjective or in two words."""
        kind = self.random.random()
        noun = self.noun()
        if kind < 0.25:
            return f"{self.one(lists.ADJECTIVES)} {noun}"
        if kind < 0.35:
            return f"{self.noun(often=0.9)} {noun}"
        if kind < 0.4:
            return f"{self.one(lists.MATERIALS)} {noun}"
        return f"{noun} {self.number(2, 40)}" if kind > 0.96 else noun

    def first(self, he: bool | None = None) -> str:
        """A first name."""
        if self.chance(0.25):
            return self.proper(1, 3)
        he = self.chance(0.5) if he is None else he
        return self.one(lists.FIRST_HE if he else lists.FIRST_SHE)

    def last(self) -> str:
        """A family name."""
        word = self.proper() if self.chance(0.7) else self.noun("artifact").capitalize()
        return word + (f"-{self.invented(1, 2).capitalize()}" if self.chance(0.03) else "")

    def place(self) -> str:
        """A town or the like."""
        if self.chance(0.5):
            return self.one(lists.PLACES)
        return (self.one(("Lake ", "Fort ", "Port ", "New ", "Saint ")) if self.chance(0.15) else "") + (self.proper())

    def name(self) -> str:
        """A person's whole name."""
        return f"{self.first()} {self.last()}"

    def code_word(self) -> str:
        """A word as in identifiers."""
        kind = self.random.random()
        if kind < 0.6:
            return self.one(lists.CODE_THINGS)
        return self.one(lists.SERVICES) if kind < 0.8 else self.noun() if kind < 0.9 else self.invented(1, 2)

    def identifier(self) -> str:
        """A name as programs have them."""
        a, b, verb = self.code_word(), self.code_word(), self.one(lists.CODE_VERBS)
        shapes = [
            *(f"{verb}_{a}", f"{verb}{a.capitalize()}", f"{a}_{b}", f"{a}.{verb}", f"{a}-{b}", f"{verb}_{a}_{b}"),
            *(f"{verb}_{a}()", f"{a.capitalize()}{b.capitalize()}", f"{a}.{b}"),
        ]
        return self.one(shapes)

    def path(self) -> str:
        """A file or a folder."""
        parts = "/".join(self.code_word() for _ in range(self.number(1, 2)))
        before = self.one(("/var/log/", "/etc/", "/opt/", "/srv/", "~/", "src/", "docs/", "./", "/data/", "", "."))
        return before + parts + self.one(SUFFIXES)

    def sum_of_money(self) -> str:
        """As it is written or spoken."""
        amount = self.one((str(self.number(2, 99)), f"{self.number(100, 9999)}", self.one(lists.SMALL)))
        written = f"{self.one('$€£')}{self.number(2, 9999)}"
        return self.one((written, f"{amount} {self.one(('euros', 'dollars', 'pounds', 'crowns', 'francs'))}"))

    def reason(self) -> str:
        """A clause that gives one."""
        thing, other = self.thing(), self.thing()
        return self.one(
            (
                f"the {thing} was too {self.one(lists.ADJECTIVES)}",
                f"there was no {thing}",
                f"the {thing} had to be repaired",
                f"nobody wanted to pay for the {thing}",
                f"{self.first()} had lost the {thing}",
                f"the {thing} does not fit into the {other}",
                f"it needs less {self.one(lists.MATERIALS)}",
                f"the {thing} keeps the {other} {self.one(lists.ADJECTIVES)}",
                f"too many {plural(self.noun())} were sold",
                f"{self.name()} fell ill",
            )
        )

    # ── templates ───────────────────────────────────────────────────────────────────────────

    def fill(self, template: str, known: dict[str, str]) -> str:
        """Put words into the slots; those that are in ``known`` already stay, new ones are added to it."""

        def word(match: re.Match[str]) -> str:
            slot = match[1]
            if slot not in known:
                known[slot] = self.slot(slot)
            return known[slot]

        return SLOT.sub(word, template)

    def slot(self, name: str) -> str:
        """Something for a slot; ``thing2`` is another ``thing``."""
        if name in LISTED:
            return self.one(LISTED[name])
        kind = name.rstrip("23456789")
        if kind in LISTED:
            return self.one(LISTED[kind])
        made: str = getattr(self, f"_{kind.replace(' ', '_')}")()
        return made

    def _place(self) -> str:
        return self.place()

    def _name(self) -> str:
        return self.name()

    def _first(self) -> str:
        return self.first()

    _petname = _first

    def _last(self) -> str:
        return self.last()

    def _thing(self) -> str:
        return self.thing()

    def _things(self) -> str:
        return plural(self.noun()) if self.chance(0.6) else f"{self.one(lists.ADJECTIVES)} {plural(self.noun())}"

    def _food(self) -> str:
        return self.noun("food", lists.FOODS, 0.85)

    def _foods(self) -> str:
        return self.one(lists.FOODS_MANY)

    def _animals(self) -> str:
        return self.one(lists.ANIMALS) if self.chance(0.8) else plural(self.noun("animal", lists.PETS, 0.3))

    def _plants(self) -> str:
        return self.one(lists.PLANTS) if self.chance(0.8) else plural(self.noun("plant", lists.PETS, 0.1))

    def _word(self) -> str:
        return self.invented(1, 3)

    def _org(self) -> str:
        kind = self.random.random()
        if kind < 0.6:
            return f"{self.invented().capitalize()} {self.one(lists.ORG_KINDS)}"
        return self.invented().capitalize() if kind < 0.8 else f"the firm {self.last()}"

    def _title(self) -> str:
        return self.one(("The ", "A ", "")) + f"{self.one(lists.ADJECTIVES).capitalize()} {self.one(lists.TITLES)}"

    def _award(self) -> str:
        before = self.one(lists.AWARDS) if self.chance(0.6) else self.invented().capitalize()
        return f"{before} {self.one(lists.PRIZES)}"

    def _year(self) -> str:
        return str(self.number(1650, 2030) if self.chance(0.3) else self.number(1900, 2030))

    def _date(self) -> str:
        day, month, year = self.number(1, 28), self.one(lists.MONTHS), self._year()
        return self.one((f"{day} {month}", f"{month} {day}", f"{day} {month} {year}", f"{month} {day}, {year}"))

    def _time(self) -> str:
        hour, minute = self.number(0, 23), self.one(("00", "15", "30", "45", f"{self.number(0, 59):02}"))
        spoken = self.one(("half past ", "a quarter past ", "a quarter to ", "")) + self.one(lists.SMALL[:11])
        some = (f"{hour:02}:{minute}", f"{hour % 12 + 1} am", f"{hour % 12 + 1} pm", spoken, f"{hour:02}:{minute} UTC")
        return self.one((*some, *some, "noon", "midnight", "sunrise"))

    def _dur(self) -> str:
        many = str(self.number(2, 90)) if self.chance(0.5) else self.one(lists.SMALL)
        return f"{many} {self.one(('seconds', 'minutes', 'hours', 'days', 'weeks', 'months', 'years'))}"

    def _num(self) -> str:
        kind = self.random.random()
        return str(self.number(2, 99) if kind < 0.4 else self.number(100, 9999)) if kind < 0.8 else self._small()

    def _small(self) -> str:
        return self.one(lists.SMALL) if self.chance(0.6) else str(self.number(2, 20))

    def _age(self) -> str:
        return str(self.number(5, 99)) if self.chance(0.6) else self.one(("twenty", "thirty-one", "forty", "sixty-two"))

    def _port(self) -> str:
        return str(self.number(80, 65000))

    def _version(self) -> str:
        return ".".join(str(self.number(0, 20)) for _ in range(self.number(2, 3)))

    def _money(self) -> str:
        return self.sum_of_money()

    def _temp(self) -> str:
        return str(self.number(2, 250)) if self.chance(0.8) else self.one(lists.SMALL)

    def _length(self) -> str:
        return f"{self._num()} {self.one(('metres', 'kilometres', 'miles', 'feet', 'centimetres', 'inches'))}"

    def _weight(self) -> str:
        return f"{self._num()} {self.one(('kilograms', 'grams', 'tonnes', 'pounds'))}"

    def _size(self) -> str:
        return f"{self.number(1, 999)} {self.one(('MB', 'GB', 'KB', 'megabytes', 'gigabytes'))}"

    def _email(self) -> str:
        return f"{self.code_word()}@{self.invented(1, 2)}.{self.one(('com', 'org', 'net', 'dev', 'example'))}"

    def _phone(self) -> str:
        return self.one((str(self.number(100, 9999)), f"{self.number(100, 999)} {self.number(1000, 99999)}"))

    def _url(self) -> str:
        host = f"{self.code_word()}.{self.invented(1, 2)}.{self.one(('org', 'dev', 'internal', 'example'))}"
        return self.one(("https://", "")) + host + self.one(("", f"/{self.code_word()}"))

    def _env(self) -> str:
        return f"{self.code_word()}_{self.code_word()}".upper()

    def _flag(self) -> str:
        return self.one((f"--{self.code_word()}", f"--{self.one(lists.CODE_VERBS)}-{self.code_word()}", "--dry-run"))

    def _command(self) -> str:
        tool = self.one(lists.TOOLS).lower() if self.chance(0.6) else self.invented(1, 2)
        return self.one(
            (f"{tool} {self.code_word()}", f"{tool} {self._flag()}", f"{tool} install {self.invented(1, 2)}")
        )

    def _field(self) -> str:
        return self.one((f"{self.code_word()}_{self.code_word()}", self.code_word(), f"max_{self.code_word()}"))

    _state = _field

    def _header(self) -> str:
        return (
            f"{self.one(('X-', '', ''))}{self.code_word().capitalize()}-{self.one(('Key', 'Id', 'Token', 'Version'))}"
        )

    def _host(self) -> str:
        return f"{self.one(('api', 'sandbox', self.code_word()))}.{self.invented(1, 2)}.example"

    def _code(self) -> str:
        return str(self.number(200, 599))

    def _quoted(self) -> str:
        return f"{self.code_word()} is {self.one(lists.ADJECTIVES)}"

    def _channel(self) -> str:
        return f"#{self.code_word()}" + (f"-{self.code_word()}" if self.chance(0.5) else "")

    def _ident(self) -> str:
        return self.identifier()

    def _path(self) -> str:
        return self.path()

    def _service(self) -> str:
        before = self.one(lists.SERVICES) if self.chance(0.8) else self.code_word()
        return f"{before} {self.one(lists.SERVICE_KINDS)}"

    def _event(self) -> str:
        before = self.one(("summer", "autumn", "winter", "spring", "annual", "school", self.noun(), self.noun()))
        return f"{before} {self.one(lists.EVENT_KINDS)}"

    def _inplace(self) -> str:
        before = self.one(("behind", "beside", "under", "next to", "near", "on top of", "in front of"))
        return f"{before} {self.one(lists.PIECES)}" if self.chance(0.6) else f"in {self._spot()}"

    def _spot(self) -> str:
        return self.one(lists.SPOTS) if self.chance(0.8) else f"the {self.noun()} room"

    def _reason(self) -> str:
        return self.reason()

    def _topic(self) -> str:
        return self.one(lists.TOPICS) if self.chance(0.6) else f"{self.one(lists.ADJECTIVES)} {plural(self.noun())}"

    def _do(self) -> str:
        if self.chance(0.5):
            return self.one(lists.TASKS)
        verb = self.one(HANDLING)
        return f"{verb} the {self.thing()}"


LISTED: dict[str, Sequence[str]] = {
    "job": lists.JOBS,
    "subject": lists.SUBJECTS,
    "hobby": lists.HOBBIES,
    "instrument": lists.INSTRUMENTS,
    "pet": lists.PETS,
    "lang": lists.LANGUAGES,
    "plang": lists.CODE_LANGUAGES,
    "db": lists.DATABASES,
    "tool": lists.TOOLS,
    "license": lists.LICENSES,
    "colour": lists.COLOURS,
    "material": lists.MATERIALS,
    "month": lists.MONTHS,
    "day": lists.DAYS,
    "relative": lists.RELATIVES,
    "kin": lists.KIN,
    "parent": lists.PARENTS,
    "skill": lists.SKILLS,
    "vehicle": lists.VEHICLES,
    "power": lists.POWERS,
    "the shop": lists.SHOPS,
    "adj": lists.ADJECTIVES,
    "team": lists.TEAMS,
    "dish": lists.DISHES,
    "unit": lists.UNITS,
    "error": lists.ERRORS,
}


def plural(noun: str) -> str:
    """More than one of it, by the plain rules."""
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(NO_S) else f"{noun}s"
