"""How an answer may go on, guessed for nothing: as it went on where its last tokens stand already.

Our answers mostly quote. So what followed the longest run of the answer's last tokens, in the document, the question or
the answer so far, is proposed as a draft, and one pass verifies all of it. A draft decides how fast an answer comes,
never what it says (greedy form of speculative decoding; prompt lookup: Saxena 2023).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

LONGEST = 32  # tokens of a run that are compared; a longer one is not more convincing
AHEAD = 24  # tokens behind a place that are looked at for what the question asks: about a sentence


class Drafts:
    """Proposals for one answer.

    Args:
        document, question: the ids before the answer.
        previous: an answer to the same question, as it was before the document was edited; it is proposed first.
        room: tokens that the answer may have.
    """

    def __init__(self, document: Sequence[int], question: Sequence[int], previous: Sequence[int], room: int) -> None:
        before = [*document, *question]
        self._ids = torch.tensor([*before, *[0] * room])
        self._start = self._length = len(before)
        self._previous = list(previous)
        self._follows = bool(previous)
        self._interest = self._asked(len(document), len(before), room)

    def add(self, token: int) -> None:
        """The answer has one more token."""
        at = self._length - self._start
        self._follows = self._follows and at < len(self._previous) and self._previous[at] == token
        if self._length < len(self._ids):
            self._ids[self._length] = token
            self._length += 1

    def propose(self, most: int) -> list[int]:
        """The next tokens, at most so many; none if the last token stands nowhere else."""
        at = self._length - self._start
        if most < 1:
            return []
        if self._follows and at < len(self._previous):
            return self._previous[at : at + most]
        place = self._place()
        return [] if place is None else self._ids[place + 1 : min(place + 1 + most, self._length)].tolist()

    def _place(self) -> int | None:
        """Where the longest run ends that is also the end of all; of several the one nearest to what is asked."""
        end = self._length - 1
        places = (self._ids[:end] == self._ids[end]).nonzero()[:, 0]
        for back in range(1, min(LONGEST, end)):
            if len(places) < 2:
                break
            longer = places[places >= back]
            longer = longer[self._ids[longer - back] == self._ids[end - back]]
            if not len(longer):
                break
            places = longer
        if not len(places):
            return None
        # Of equals the last: the answer so far stands at the end.
        best = self._interest[places + 1 + AHEAD] - self._interest[places + 1]
        return int(places[len(places) - 1 - int(best.flip(0).argmax())])

    def _asked(self, document: int, before: int, room: int) -> torch.Tensor:
        """For each place, what the question's tokens weigh that stand before it; a rare token weighs more."""
        known, question = self._ids[:document], torch.tensor(sorted(set(self._ids[document:before].tolist())))
        weights = torch.zeros(before + room + AHEAD + 2)
        if len(known) and len(question):
            counts = torch.bincount(known, minlength=int(self._ids.max()) + 1).clamp(min=1)
            asked = torch.isin(known, question)
            weights[1 : document + 1] = torch.where(asked, 1 / counts[known], 0.0)
        return weights.cumsum(0)
