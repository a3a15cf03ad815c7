"""Natural documents of our own, with questions that the embedded model answers rightly.

Every pair and every change was tried on the embedded checkpoint; what it answers wrongly is not here.
"""

# ruff: noqa: E501 (one line is one paragraph)

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """An edit that changes an answer: ``old`` becomes ``new``, and ``question`` is then answered with ``expected``."""

    old: str
    new: str
    question: str
    before: str
    expected: str


@dataclass(frozen=True)
class Document:
    name: str
    text: str
    pairs: tuple[tuple[str, str], ...]
    changes: tuple[Change, ...] = ()

    def changed(self, change: Change) -> str:
        assert change.old in self.text
        return self.text.replace(change.old, change.new)


LIGHTHOUSE = Document(
    "lighthouse",
    """\
The lighthouse of Skarvik stands on a granite rock two miles north of the harbour. It was built in 1887 by the engineer Henrike Dahl. The lamp burns rapeseed oil and can be seen from eighteen nautical miles away. The keeper, Anselm Rook, climbs 212 steps every evening to wind the clockwork.

Fresh water is delivered by a supply boat called Petrel. The fog horn sounds three times a minute when visibility falls below half a mile. A storm in 1931 broke the eastern window of the gallery. The broken glass was replaced by a shipyard in Bergen. Visitors may enter the tower on the first Saturday of each month.

The logbook is kept in an oak chest beside the stove. Anselm writes his weather notes with a green pencil. His daughter Sunniva breeds carrier pigeons on the lower terrace. The nearest doctor lives in the village of Ostermund.
""",
    (
        ("Where does the lighthouse of Skarvik stand?", "granite rock"),
        ("How many steps does the keeper climb?", "212"),
        ("What is the supply boat called?", "Petrel"),
        ("When does the fog horn sound?", "three times a minute"),
        ("What did the storm in 1931 break?", "eastern window"),
        ("Who replaced the broken glass?", "shipyard in Bergen"),
        ("When may visitors enter the tower?", "first Saturday"),
        ("Where is the logbook kept?", "oak chest"),
        ("What does Anselm write his weather notes with?", "green pencil"),
        ("What does Sunniva breed?", "carrier pigeons"),
        ("Where does the nearest doctor live?", "Ostermund"),
        ("What does the lamp burn?", "rapeseed oil"),
    ),
    (
        Change("an oak chest", "a tin bucket", "Where is the logbook kept?", "oak chest", "tin bucket"),
        Change("called Petrel", "called Heron", "What is the supply boat called?", "Petrel", "Heron"),
        Change(
            "first Saturday", "last Tuesday", "When may visitors enter the tower?", "first Saturday", "last Tuesday"
        ),
        Change(
            "green pencil", "silver pen", "What does Anselm write his weather notes with?", "green pencil", "silver pen"
        ),
        Change("Ostermund", "Falkenau", "Where does the nearest doctor live?", "Ostermund", "Falkenau"),
    ),
)

# Wrapped by hand, as notes are: a sentence goes over the end of a line.
GREENHOUSE = Document(
    "greenhouse",
    """\
# Greenhouse handbook

The heating system is switched on when the temperature drops below eleven
degrees. Watering starts at 05:40 and lasts for a quarter of an hour. The
orchids stand on the upper shelf because they need more light. Tomato
seedlings are moved outside in the second week of May.

The main valve is hidden behind the potting bench. Fertiliser is stored in a
locked cupboard near the entrance. Compost is delivered every Thursday by
the firm Lindqvist. The gardener in charge is Beatrix Amundsen.

Broken panes must be reported to the caretaker. The caretaker can be reached
on extension 417. The roof vents open automatically when the humidity
exceeds ninety percent. Ladybirds are released in June to control the
aphids.
""",
    (
        ("When does watering start?", "05:40"),
        ("Why do the orchids stand on the upper shelf?", "more light"),
        ("Where is the main valve hidden?", "potting bench"),
        ("Where is the fertiliser stored?", "locked cupboard"),
        ("Who is the gardener in charge?", "Beatrix Amundsen"),
        ("How can the caretaker be reached?", "417"),
        ("When do the roof vents open?", "ninety percent"),
        ("Who delivers the compost?", "Lindqvist"),
        ("When are ladybirds released?", "June"),
        ("When are the tomato seedlings moved outside?", "second week of May"),
    ),
    (
        Change("extension 417", "extension 852", "How can the caretaker be reached?", "417", "852"),
        Change("potting bench", "rain barrel", "Where is the main valve hidden?", "potting bench", "rain barrel"),
        Change("05:40", "19:15", "When does watering start?", "05:40", "19:15"),
    ),
)

BOOKSHOP = Document(
    "bookshop",
    """\
The Crooked Shelf is a second-hand bookshop in the old town of Varmland. The shop belongs to Ludmila Okafor, who used to be a ship's cook. It opens at noon and closes when the church bell rings seven. Travel books are on the ground floor, next to the globe. Children's books are in the attic, under the skylight. A parrot named Figaro greets every customer in Latin. The most expensive volume is an atlas from 1702 with hand-coloured maps. Rare books are kept in a fireproof safe. The password of the guest network is written on the back of the till. Parcels are collected by a courier on Wednesday afternoons. The reading group meets in the kitchen on the third Friday of the month. Ludmila repairs torn pages with Japanese paper and wheat paste.
""",
    (
        ("Who does the shop belong to?", "Ludmila Okafor"),
        ("Where are the travel books?", "ground floor"),
        ("Where are the children's books?", "attic"),
        ("What is the most expensive volume?", "atlas"),
        ("Where are rare books kept?", "fireproof safe"),
        ("When are parcels collected?", "Wednesday"),
        ("Where does the reading group meet?", "kitchen"),
        ("How does Ludmila repair torn pages?", "Japanese paper"),
        ("Where is the password of the guest network written?", "back of the till"),
    ),
    (
        Change("fireproof safe", "velvet box", "Where are rare books kept?", "fireproof safe", "velvet box"),
        Change("Wednesday afternoons", "Monday mornings", "When are parcels collected?", "Wednesday", "Monday"),
    ),
)

# Multi-byte and astral characters before and inside the facts: positions in UTF-16 differ from characters and bytes.
CAFE = Document(
    "cafe",
    """\
🎼 The Café Müller in Zürich serves breakfast until eleven. 😀😀 The piano was tuned by Zoë Brandt last winter.

🥐 Croissants are baked in a brick oven by Jérôme. The cellar holds four hundred bottles of cider. Concerts take place on the veranda every second Sunday. The head waiter speaks Danish and Korean. The cat 🐈 sleeps in a copper kettle beside the door.
""",
    (
        ("Where does the cat sleep?", "copper kettle"),
        ("Where do concerts take place?", "veranda"),
        ("What does the cellar hold?", "four hundred bottles"),
        ("What does the head waiter speak?", "Danish and Korean"),
    ),
    (Change("copper kettle", "wicker basket", "Where does the cat sleep?", "copper kettle", "wicker basket"),),
)

DOCUMENTS = (LIGHTHOUSE, GREENHOUSE, BOOKSHOP, CAFE)
