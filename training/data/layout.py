"""How facts become a page: prose, notes in Markdown, a manual, questions and answers, minutes, a letter."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

from training.data import lists
from training.data.facts import Fact, Subject, sentence
from training.data.maker import Maker, plural

STYLES = ("prose",) * 8 + ("notes",) * 4 + ("manual",) * 4 + ("answers",) * 3 + ("minutes", "letter") * 2
HEADINGS = lists.phrases("headings")
LEADS = lists.phrases("leads")
HELLOS = lists.phrases("hellos")
OPENINGS = lists.phrases("openings")
CLOSINGS = lists.phrases("closings")
BYES = lists.phrases("byes")
ASIDES = lists.phrases("asides")

# What is asked about the lines that only minutes and letters have.
PRESENT = ("Who was present?", "Who attended the meeting?", "Who took part in the meeting?", "Who was there?")
APOLOGIES = ("Who sent apologies?", "Who was absent?", "Who could not come to the meeting?", "Who was missing?")
CHAIR = ("Who was in the chair?", "Who chaired the meeting?", "Who led the meeting?", "Who is the chair?")
TO = ("Who is the letter to?", "Whom is the letter addressed to?", "To whom was the letter written?")
SUBJECT = ("What is the subject of the mail?", "What is the subject of the letter?", "What is the subject?")
FROM = ("Who signed the letter?", "Who wrote the letter?", "Who is the letter from?", "Who sent the letter?")


@dataclass
class Block:
    """Facts that belong together, and what they are about."""

    subject: Subject | None
    facts: list[Fact]
    listed: bool = False


def page(maker: Maker, blocks: list[Block]) -> str:
    """The document; every fact stands in it as it is, but for line breaks in place of spaces."""
    style = maker.one(STYLES)
    if any(block.listed for block in blocks) and style in ("prose", "letter"):
        style = "manual"
    made: str = {
        "prose": _prose,
        "notes": _notes,
        "manual": _manual,
        "answers": _answers,
        "minutes": _minutes,
        "letter": _letter,
    }[style](maker, blocks)
    made = re.sub(r"\n{3,}", "\n\n", made).strip("\n")
    if maker.chance(0.2):
        made = wrap(made, maker.number(60, 90))
    return made + ("\n" if maker.chance(0.5) else "")


def wrap(text: str, width: int) -> str:
    """Break long lines of prose. No line may begin with what would look like an item of a list."""
    lines = []
    for line in text.split("\n"):
        if len(line) <= width or re.match(r"[-*+#>|\d]", line):
            lines.append(line)
            continue
        glued = re.sub(r" (?=[-*+#>|\d])", "\0", line)
        broken = textwrap.wrap(glued, width, break_long_words=False, break_on_hyphens=False)
        # A short line that is followed by a capital would be taken for a line of its own.
        safe = broken[:1]
        for part in broken[1:]:
            if len(safe[-1]) < 41 or safe[-1][-1] in ".!?:" or not part[0].isalnum():
                safe[-1] += f" {part}"
            else:
                safe.append(part)
        lines += [part.replace("\0", " ") for part in safe]
    return "\n".join(lines)


def _prose(maker: Maker, blocks: list[Block]) -> str:
    between = maker.one((" ", "\n\n", "\n\n", "\n\n", "\n"))
    return between.join(_paragraph(maker, block.facts) for block in blocks)


def _paragraph(maker: Maker, facts: list[Fact]) -> str:
    said = [fact.text for fact in facts]
    if maker.chance(0.04):
        said.append(maker.one(ASIDES))
    return " ".join(said)


def _heading(maker: Maker, block: Block, marks: str) -> str:
    kind = maker.random.random()
    title = maker.one(HEADINGS)
    if block.subject is not None and (kind < 0.55 or block.listed):
        title = sentence(block.subject.name)
    elif kind < 0.75:
        title = sentence(maker.one((plural(maker.noun()), maker.thing())))
    return f"{marks} {title}" if marks else title


def _notes(maker: Maker, blocks: list[Block]) -> str:
    parts = [_title(maker)] if maker.chance(0.7) else []
    marks = maker.one(("##", "##", "#", "###"))
    bulleted = maker.chance(0.3)
    for block in blocks:
        if maker.chance(0.5) or block.listed:
            parts.append(_heading(maker, block, marks))
        parts.append(_list(maker, block.facts) if bulleted or block.listed else _paragraph(maker, block.facts))
    return "\n\n".join(parts)


def _title(maker: Maker) -> str:
    about = maker.one(
        (sentence(maker.thing()), sentence(plural(maker.noun())), maker.place(), maker.invented().capitalize())
    )
    after = maker.one(
        ("", " handbook", " notes", " guide", " manual", ": how it works", " report", " manual for beginners")
    )
    return f"# {about}{after}"


def _list(maker: Maker, facts: list[Fact], numbered: bool | None = None) -> str:
    numbered = maker.chance(0.25) if numbered is None else numbered
    mark = maker.one(("-", "-", "-", "*", "+", "•"))
    bare = maker.chance(0.1)  # no full stops
    lines = []
    for number, fact in enumerate(facts, 1):
        if bare and fact.text.endswith("."):
            fact.text = fact.text[:-1]
        lines.append(f"{number}. {fact.text}" if numbered else f"{mark} {fact.text}")
    return "\n".join(lines)


def _manual(maker: Maker, blocks: list[Block]) -> str:
    parts = [_title(maker)]
    for block in blocks:
        parts.append(_heading(maker, block, maker.one(("##", "##", "###"))))
        cut = maker.number(0, len(block.facts)) if not block.listed else 0
        if maker.chance(0.5):
            cut = len(block.facts) if not block.listed else 0
        if cut:
            parts.append(_paragraph(maker, block.facts[:cut]))
        if block.facts[cut:]:
            lead = [maker.one(LEADS)] if maker.chance(0.25) else []
            parts.append("\n".join([*lead, *([""] if lead else []), _list(maker, block.facts[cut:])]))
    return "\n\n".join(parts)


def _answers(maker: Maker, blocks: list[Block]) -> str:
    parts = [maker.one(("# Frequently asked questions", "# FAQ", "Questions and answers", "# Questions"))]
    shape = maker.one(("### {q}\n{a}", "**{q}**\n{a}", "Q: ", "Question: ", "{q}\n\n{a}", "## {q}\n\n{a}", "- {q} {a}"))
    for block in blocks:
        for fact in block.facts:
            if not fact.questions:
                parts.append(fact.text)
                continue
            if shape.endswith(": "):
                fact.text = f"{'A' if shape == 'Q: ' else 'Answer'}: {fact.text}"
                parts.append(f"{shape}{maker.one(fact.questions)}\n{fact.text}")
            else:
                parts.append(shape.replace("{q}", maker.one(fact.questions)).replace("{a}", fact.text))
    return "\n\n".join(parts)


def _minutes(maker: Maker, blocks: list[Block]) -> str:
    people = [maker.name() for _ in range(maker.number(3, 6))]
    lines = [Fact(f"{maker.one(('Present', 'In attendance', 'Attendees'))}: {', '.join(people[2:])}", list(PRESENT))]
    if maker.chance(0.5):
        lines.append(Fact(f"Apologies: {people[0]}", list(APOLOGIES)))
    if maker.chance(0.4):
        lines.append(Fact(f"{maker.one(('Chair', 'In the chair'))}: {people[1]}", list(CHAIR)))
    first = maker.one(("# Minutes", "Minutes of the {team} meeting", "# Meeting of {date}", "# Minutes of {date}"))
    parts = [maker.fill(first, {}), maker.one(("\n", "\n\n")).join(line.text for line in lines)]
    for number, block in enumerate(blocks, 1):
        title = maker.one(HEADINGS) if maker.chance(0.5) else sentence(maker.thing())
        parts.append(maker.one((f"{number}. {title}", f"## {title}", f"**{title}**", f"Item {number}: {title}")))
        parts.append(_list(maker, block.facts) if maker.chance(0.4) else _paragraph(maker, block.facts))
    blocks.append(Block(None, lines))  # they are asked about, too
    return "\n\n".join(parts)


def _letter(maker: Maker, blocks: list[Block]) -> str:
    to, by = maker.first(), maker.name() if maker.chance(0.5) else maker.first()
    greeting = maker.fill(maker.one(HELLOS), {"first": to if maker.chance(0.6) else maker.name()})
    parts = [greeting, *(_paragraph(maker, block.facts) for block in blocks)]
    if maker.chance(0.7):
        parts[1] = f"{maker.one(OPENINGS)} {parts[1]}"
    if maker.chance(0.6):
        parts.append(maker.one(CLOSINGS))
    if maker.chance(0.3):
        parts.insert(0, f"{maker.place()}, {maker.slot('date')}")
    parts.append(f"{maker.one(BYES)}\n{by}")
    if maker.chance(0.1):
        parts.append(f"P.S. {maker.one(ASIDES)}")
    said = [Fact(greeting, list(TO)), Fact(by, list(FROM))]
    if maker.chance(0.3):  # a mail; its head says the same again, so only the head is asked about
        about = maker.one(
            (sentence(maker.slot("event")), sentence(maker.slot("topic")), sentence(maker.slot("things")))
        )
        said = [Fact(f"From: {by}", list(FROM)), Fact(f"To: {to}", list(TO)), Fact(f"Subject: {about}", list(SUBJECT))]
        parts.insert(0, "\n".join(line.text for line in said))
    blocks.append(Block(None, said))
    return "\n\n".join(parts)
