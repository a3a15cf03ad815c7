"""Pages made of scenes: some of their lines, with words in their slots, and what the page then does not say."""

from __future__ import annotations

from dataclasses import dataclass, field

from training.data.facts import Fact
from training.data.maker import Maker
from training.data.scenes import Line, Scene, fill, scenes

LEFT_OUT = (0.0, 0.0, 0.1, 0.25)  # of the lines; what they would have answered is then not said


@dataclass
class Page:
    """A page's text, what it states, and questions about such things that it does not answer."""

    text: str
    facts: list[Fact]
    open: list[str] = field(default_factory=list)


def pages(maker: Maker, sentences: int) -> list[Page]:
    """Pages of different scenes, of about so many statements together."""
    every = scenes()
    chosen = maker.random.sample(range(len(every)), min(len(every), 1 + sentences // 4))
    found: list[Page] = []
    room = sentences
    for at in chosen:
        if room <= 0 or (found and room < 3):
            break
        page = _page(maker, every[at], room)
        found.append(page)
        room -= len(page.facts)
    return found


def _page(maker: Maker, scene: Scene, room: int) -> Page:
    known: dict[str, str] = {}
    lines, without = _some(maker, scene, room)
    page = Page(_laid(maker, lines, known), [])
    for line in lines:
        if line.text and (line.questions or not line.alone):
            asked = [fill(maker, each, known) for each in line.questions]
            page.facts.append(Fact(fill(maker, line.text, known), asked, empty=not asked))
    page.open = [fill(maker, each, known) for each in (*scene.open, *without)]
    return page


def _some(maker: Maker, scene: Scene, room: int) -> tuple[list[Line], list[str]]:
    """The lines that stay, in their order, and the questions of those that don't."""
    stated = [at for at, line in enumerate(scene.lines) if line.questions]
    kept = set(range(len(scene.lines)))
    if len(stated) > room:  # a stretch of it
        first = maker.number(0, len(stated) - room)
        low = 0 if first == 0 else stated[first]
        high = stated[first + room] if first + room < len(stated) else len(scene.lines)
        kept = set(range(low, high))
    share = maker.one(LEFT_OUT)
    kept -= {at for at in stated[1:] if maker.chance(share)}
    if not kept & set(stated):
        kept.add(maker.one(stated))
    without = [asked for at in stated if at not in kept for asked in scene.lines[at].questions]
    return [scene.lines[at] for at in sorted(kept)], without


def _laid(maker: Maker, lines: list[Line], known: dict[str, str]) -> str:
    """As they stand on the page: sentences go on in one paragraph, all else has a line of its own."""
    text = ""
    before: Line | None = None
    for line in lines:
        said = line.before + fill(maker, line.text, known)
        if before is None or not text:
            text = said
        elif before.alone or line.alone:
            text += f"\n{said}"
        else:
            text += f" {said}"
        before = line
    return text.strip("\n")
