"""Whether a text fits: how many tokens a document may have, and from which line on it has too many."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass

from cag_daemon.engine.memory import QUESTION_ROOM
from cag_daemon.engine.prompt import PromptTemplate
from cag_daemon.errors import DocumentTooLong

LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class Limit:
    """How many tokens a document may have, the template around it included.

    Attributes:
        model: its name.
        context: tokens that the model can see at once.
        memory: tokens that the memory for caches holds.
        max_new_tokens: room to leave for an answer.
    """

    model: str
    context: int
    memory: int
    max_new_tokens: int

    @property
    def tokens(self) -> int:
        """What is left beside an answer and a question."""
        return max(0, min(self.context, self.memory) - self.max_new_tokens - QUESTION_ROOM)

    def fitting_ids(self, template: PromptTemplate, text: str, characters: int) -> list[int]:
        """The ids of a document.

        Args:
            characters: of the whole text, where ``text`` is only its beginning.

        Raises:
            DocumentTooLong: with how long it is, and the line on which the model stops seeing it.
        """
        # A text of many megabytes is not encoded to the end to learn that it is too long.
        part = text[: 8 * self.tokens + 4096]
        ids = template.document_ids(part)
        while len(part) < len(text) and len(ids) <= self.tokens + 64:
            part = text[: 4 * len(part)]
            ids = template.document_ids(part)
        if len(ids) <= self.tokens and len(part) == characters:
            return ids
        tokens = max(self.tokens + 1, len(ids) * characters // len(part))
        ends = [match.end() for match in LINE_END.finditer(part)]
        line = bisect_right(ends, self.tokens, key=lambda end: len(template.document_ids(part[:end])))
        raise DocumentTooLong(
            self._words(f"{'about ' if len(part) < characters else ''}{tokens}"),
            tokens=tokens,
            maxTokens=self.tokens,
            line=line,
        )

    def _words(self, tokens: str) -> str:
        if self.memory < self.context:
            limit, remedy = f"memory allows {self.memory}", "raise memoryMaxGigabytes"
        else:
            limit, remedy = f"the model {self.model} can see {self.context}", "choose a larger model"
        if self.tokens == 0:
            return (
                f"There is no room for a document: {limit} tokens, and an answer of {self.max_new_tokens} with its "
                f"question takes them all; lower maxNewTokens, or {remedy}."
            )
        return (
            f"The document has {tokens} tokens, and at most {self.tokens} fit ({limit}, "
            f"an answer and a question included): shorten it, or {remedy}."
        )
