"""Sentences of everyday shapes that belong to no family, with the questions that follow from their grammar."""

from __future__ import annotations

import functools
import re
import sysconfig
from pathlib import Path

from training.data import lists, words
from training.data.facts import Fact, sentence
from training.data.maker import Maker, plural

# Verbs with others of much the same meaning, which a question may use in their place.
VERBS = """
repair fix mend|build construct erect|buy purchase acquire|sell|write author pen|paint colour|find discover|lose mislay
break smash|clean wash scrub|carry transport haul|bring fetch deliver|keep store hold|hide conceal|show display present
make produce create|choose select pick|start begin launch|stop halt end|help assist support|teach instruct|lead head run
destroy wreck ruin|protect guard shield|change alter modify|check inspect examine|watch observe|cook prepare|grow raise
throw toss hurl|close shut|open unlock|visit see call_on|explain describe|invent devise|steal take rob|save rescue
use employ|need require|own possess have|like love enjoy|hate dislike|fear dread|receive get|send mail post|give donate
replace exchange swap|remove delete erase|connect link join|cover wrap|measure gauge|move shift|cut slice|collect gather
order request|pay settle|print publish|copy duplicate|train coach|design plan|manage direct|sign|read study|record note
feed nourish|burn scorch|fill stuff|lift raise hoist|push shove|pull drag tow|count tally|plant sow|sharpen whet|weigh
"""
IRREGULAR = dict(
    pair.split(":")
    for pair in lists.split(
        "build:built buy:bought sell:sold write:wrote find:found lose:lost break:broke bring:brought keep:kept "
        "hide:hid make:made choose:chose begin:began teach:taught lead:led run:ran grow:grew throw:threw shut:shut "
        "see:saw steal:stole take:took have:had get:got send:sent give:gave cut:cut pay:paid read:read feed:fed "
        "hold:held show:showed swap:swapped stop:stopped rob:robbed plan:planned drag:dragged scrub:scrubbed "
        "whet:whetted pen:penned wrap:wrapped"
    )
)
WHERE = ("in {place}", "in {spot}", "{inplace}", "at {the shop}", "near {place}")
WHEN = ("in {year}", "on {date}", "at {time}", "every {day}", "in {month}", "last {day}", "after {dur}")
WHY = ("because {reason}", "since {reason}")
HOW = ("with a {thing}", "by hand", "with {material}", "with the help of {name}")
LONG = ("for {dur}", "until {time}", "for at least {dur}")
TAILS = {"where": WHERE, "when": WHEN, "why": WHY, "how": HOW, "long": LONG, "": ("",)}
WORD = {"where": "Where", "when": "When", "why": "Why", "how": "How", "long": "How long"}
BEFORE = lists.phrases("before")
AFTER = lists.phrases("after")
TRIPLE = re.compile(r'"""(.{30,}?)"""', re.DOTALL)
LOWERED = re.compile("(The|A|An|He|She|It|They|We|You|To|If|When|In|About|Tickets|There|Every|Broken|Only|All) ")


@functools.cache
def meanings() -> tuple[tuple[str, ...], ...]:
    """Groups of verbs that may stand for one another."""
    groups = (part for line in VERBS.strip().splitlines() for part in line.split("|"))
    return tuple(tuple(verb for verb in group.split() if "_" not in verb) for group in groups)


def past(verb: str) -> str:
    """What was done."""
    if verb in IRREGULAR:
        return IRREGULAR[verb]
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return f"{verb[:-1]}ied"
    return f"{verb}d" if verb.endswith("e") else f"{verb}ed"


def third(verb: str) -> str:
    """What somebody does."""
    return "has" if verb == "have" else plural(verb)


def action(maker: Maker) -> Fact:
    """Somebody does something to something, somewhere, somewhen, for a reason."""
    rare = words.verbs()
    group: tuple[str, ...] = maker.one(meanings()) if maker.chance(0.75) or not rare else (maker.one(rare),)
    verb = maker.one(group)
    other = maker.one(group) if maker.chance(0.5) else verb
    kind = maker.one(("where", "when", "why", "how", "long", "", ""))
    who = maker.one((maker.name(), maker.first(), f"the {maker.one(lists.JOBS)}", f"the {maker.thing()}"))
    what = maker.one((f"the {maker.thing()}", f"the {plural(maker.noun())}", f"a {maker.thing()}"))
    tail = maker.fill(maker.one(TAILS[kind]), {})
    known = what.replace("a ", "the ", 1) if what.startswith("a ") else what
    done = maker.chance(0.65)
    said = f"{who} {past(verb) if done else third(verb)} {what} {tail}".rstrip()
    do, does = ("did", past(other)) if done else ("does", third(other))
    asked = [
        f"What {do} {who} {other}?",
        f"Who {does} {known}?" if not who.startswith("the ") else f"What {does} {known}?",
    ]
    if kind:
        asked += [f"{WORD[kind]} {do} {who} {other} {known}?"] * 2
    if maker.chance(0.35) and kind:
        # the same, said of the thing
        is_, participle = ("were" if known.endswith("s") else "was"), _participle(verb)
        said = f"{known} {is_} {participle} {tail}"
        asked = [f"{WORD[kind]} {is_} {known} {_participle(other)}?", f"What happened to {known}?"]
    return Fact(sentence(said) + ".", [sentence(each) for each in asked])


def _participle(verb: str) -> str:
    odd = {
        "write": "written", "break": "broken", "hide": "hidden", "choose": "chosen", "begin": "begun", "run": "run",
        "grow": "grown", "throw": "thrown", "see": "seen", "steal": "stolen", "take": "taken", "give": "given",
        "show": "shown", "get": "got",
    }  # fmt: skip
    return odd.get(verb) or past(verb)


def decorate(maker: Maker, text: str, before: float = 0.12, after: float = 0.2) -> str:
    """Put something before or behind a sentence, as people do."""
    if maker.chance(before) and LOWERED.match(text):
        text = f"{maker.fill(maker.one(BEFORE), {})} {text[0].lower()}{text[1:]}"
    if maker.chance(after) and text.endswith(".") and " because " not in text:
        more = maker.fill(maker.one(AFTER), {})
        text = f"{text[:-1]}{'' if more.startswith(',') else ' '}{more}."
    return text


@functools.cache
def docstrings() -> tuple[str, ...]:
    """Sentences of the standard library's own docstrings, in an order that is always the same."""
    found: dict[str, None] = {}
    root = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(root.rglob("*.py")):
        if not {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(file.parts):
            for match in TRIPLE.finditer(file.read_text("utf-8", errors="replace")):
                found |= dict.fromkeys(_good(match[1]))
    return tuple(found)


def _good(docstring: str) -> list[str]:
    """The whole sentences of prose in a docstring."""
    paragraphs = (part for part in re.split(r"\n\s*\n", docstring) if ">>>" not in part and "::" not in part)
    each = (part for text in paragraphs for part in re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(text.split())))
    prose = re.compile(r"[A-Z].{24,218}[.!?]")
    return [s for s in each if prose.fullmatch(s) and sum(c.isalpha() or c == " " for c in s) > 0.85 * len(s)]
