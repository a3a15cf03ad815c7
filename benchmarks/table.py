"""What was measured, as rows with their goals, as a table, and as plots."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """A ratio, or a share, and what is wanted of it.

    Attributes:
        value: None: it was not run.
        goal: None: nothing is wanted.
        most: the goal is the most that is wanted, not the least.
        before: tokens of the document.
    """

    what: str
    before: int
    value: float | None
    goal: float | None = None
    unit: str = "×"
    most: bool = False

    @property
    def met(self) -> bool | None:
        """Whether it is what is wanted; None: nothing is, or it was not run."""
        if self.goal is None or self.value is None:
            return None
        return self.value <= self.goal if self.most else self.value >= self.goal

    @property
    def measured(self) -> str:
        """The value, in words."""
        if self.value is None:
            return "not run"
        digits = 1 if self.unit == "×" and self.value < 100 else 0
        if digits and self.value < 1:
            digits = 2
        # Never rounded over its goal.
        down = math.floor if not self.most else math.ceil
        return f"{down(self.value * 10**digits) / 10**digits:,.{digits}f} {self.unit}"

    @property
    def wanted(self) -> str:
        """The goal, in words."""
        return "" if self.goal is None else f"{'≤' if self.most else '≥'} {self.goal:g} {self.unit}"


@dataclass
class Found:
    """Seconds, by what and length of the document; the rows made of them; what else is worth a line."""

    seconds: dict[str, dict[int, float]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def took(self, what: str, length: int, seconds: float) -> float:
        """Keep a time."""
        self.seconds.setdefault(what, {})[length] = seconds
        return seconds

    def ratio(self, slow: str, quick: str, length: int) -> float | None:
        """How many times as long one took; None: one of them was not run."""
        times = self.seconds.get(slow, {}).get(length), self.seconds.get(quick, {}).get(length)
        return times[0] / times[1] if times[0] is not None and times[1] else None


def show(found: Found, how: str) -> None:
    """Print the table."""
    table = Table("", "tokens", "measured", "goal", box=None, pad_edge=False, title=how, title_justify="left")
    for row in in_order(found.rows):
        colour = {True: "green", False: "red", None: "default"}[row.met]
        goal = row.wanted + (" missed" if row.met is False else "")
        table.add_row(row.what, f"{row.before:,}", f"[{colour}]{row.measured}[/]", goal)
    console = Console(width=max(110, Console().width))
    console.print(table)
    for each in dict.fromkeys(found.notes):
        console.print(each)
    for each in dict.fromkeys(found.missing):
        console.print(f"Not run: {each}")


def in_order(rows: list[Row]) -> list[Row]:
    """What belongs together side by side, as it first came."""
    names = list(dict.fromkeys(row.what for row in rows))
    return sorted(rows, key=lambda row: names.index(row.what))


def plots(folder: Path, found: Found, how: str) -> None:
    """First tokens, and decoding, by the length of the document."""
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    for name, start, title in (
        ("first-token", "first token: ", "A question about a document: its first token"),
        ("decoding", "a token: ", "Answering: a token"),
    ):
        figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
        for what, by_length in found.seconds.items():
            label = what.removeprefix(start)
            if what.startswith(start) and not (name == "first-token" and label == "cag-daemon, quoting the document"):
                ours = label.startswith("cag-daemon")
                axes.plot(
                    list(by_length), list(by_length.values()), "o-", label=label,
                    linewidth=2.5 if ours else 1.2, zorder=3 if ours else 2,
                )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        lengths = sorted({length for by_length in found.seconds.values() for length in by_length})
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.set_xlabel("tokens of the document")
        axes.set_ylabel("seconds")
        axes.set_title(f"{title}\n", fontsize=12)
        axes.text(0.5, 1.02, how, transform=axes.transAxes, ha="center", fontsize=8, color="dimgray")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
        figure.savefig(folder / f"{name}.png", dpi=110)
        pyplot.close(figure)
