"""From tokens to text while they still come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class AnswerText:
    """The text of an answer that is still growing, in pieces that no later token can change.

    Only what two successive decodings agree on is given out: a character may take several tokens.

    Args:
        on_piece: called with each piece; joined they are what `finish` returns.
    """

    def __init__(self, tokenizer: Any, on_piece: Callable[[str], object] | None = None) -> None:
        self._tokenizer = tokenizer
        self._on_piece = on_piece
        self._tokens: list[int] = []
        self._decoded = ""
        self._given = ""

    def add(self, token: int) -> None:
        """Take the next token."""
        self._tokens.append(token)
        before, self._decoded = self._decoded, self._decode()
        self._give(_common_prefix(before, self._decoded).rstrip("\ufffd"))

    def finish(self) -> str:
        """The whole text, stripped."""
        self._give(self._decoded)
        return self._given

    def _decode(self) -> str:
        text = self._tokenizer.decode(self._tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def _give(self, text: str) -> None:
        piece = text.strip()[len(self._given) :]
        if piece and self._on_piece:
            self._on_piece(piece)
        self._given += piece


def _common_prefix(one: str, other: str) -> str:
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]
