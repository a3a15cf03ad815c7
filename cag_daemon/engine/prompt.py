"""The one template: a document's prefix and a question's suffix, as token ids.

One user turn of the tokenizer's own chat template, its content being

    {document}⏎⏎ | Selected text:⏎{selection}⏎⏎Question: {question}

cut where the bar stands: what comes before is cached, what comes after is asked. Prefix and suffix together are the
ids of the whole prompt. Control tokens come from the template alone; in a document ``</s>`` and ``[INST]`` are text.

The system prompt stands where the template puts it; where it has no place for one, before the document with a blank
line between, as in mistral-common. A default that a template would put there is left out.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

from cag_daemon.errors import ModelFailed

log = logging.getLogger(__name__)

MARKER = "cagdaemoncontent"  # stands for the content while the template is rendered
SYSTEM = "cagdaemonsystem"  # and for the system prompt
ANCHORS = ("\n", "\n\n", "x\n\n")  # what a suffix may be encoded behind, to be a continuation
PROBES = ("A b c.\n\n", "two words\n\n", "é 漢\n\n")
SURROGATE = re.compile("[\ud800-\udfff]")


class PromptTemplate:
    """How a tokenizer's model wants a document and a question put to it.

    Args:
        tokenizer: of the model, with a chat template.
        system_prompt: comes before the document; may be empty.

    Raises:
        ModelFailed: no chat template, or one that a document and a question can't be put into one after the other.
    """

    def __init__(self, tokenizer: Any, system_prompt: str) -> None:
        if not tokenizer.chat_template:
            raise ModelFailed("The model's tokenizer has no chat template: choose an instruct model.")
        self._tokenizer = tokenizer
        self._control = {
            token.content: id for id, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special
        }
        rendered = _rendered_turn(tokenizer, bool(system_prompt))
        head, tail = rendered.split(MARKER)
        if self._control and set(self._encode("".join(self._control))) & set(self._control.values()):
            raise ModelFailed("The model's tokenizer can't encode its control tokens as text: choose another model.")
        self._anchor = self._continuing_anchor()
        self._start = self._encode_as_the_tokenizer_does(head, tail)
        # The system prompt comes in when text and control tokens are apart already: it is only ever text, too.
        pieces = [piece.replace(SYSTEM, system_prompt) for piece in self._split(head)]
        # Text that touches the content belongs to it, as in mistral-common; the rest is ids once and for all.
        self._head_ids = self._with_one_bos(self._ids(pieces[:-1]))
        before = f"{system_prompt}\n\n" if system_prompt and SYSTEM not in head else ""
        self._head_text = pieces[-1] + before
        self._tail_text, *pieces = self._split(tail)
        self._tail_ids = self._ids(["", *pieces])

    def document_ids(self, text: str) -> list[int]:
        """The prefix: all up to and with the document and the blank line behind it."""
        return self._head_ids + self._start(f"{self._head_text}{text}\n\n")

    def question_ids(self, question: str, selection: str | None = None) -> list[int]:
        """The suffix: what comes after the document, up to where the answer begins."""
        return self._continue(_asked(question, selection) + self._tail_text) + self._tail_ids

    def prompt_ids(self, text: str, question: str, selection: str | None = None) -> list[int]:
        """The whole prompt, encoded in one piece: what prefix and suffix must add up to."""
        content = f"{self._head_text}{text}\n\n{_asked(question, selection)}{self._tail_text}"
        return self._head_ids + self._start(content) + self._tail_ids

    def _encode(self, text: str) -> list[int]:
        """Text and nothing but text, as at the start of a string."""
        text = SURROGATE.sub("\ufffd", text)
        ids = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return list(ids)

    def _continue(self, text: str) -> list[int]:
        """Text as in the middle of a string: sentencepiece puts a space before what starts one."""
        return self._encode(self._anchor + text)[len(self._encode(self._anchor)) :]

    def _continuing_anchor(self) -> str:
        suffixes = (_asked("What is é?", None), _asked("why", "sel ected"))
        for anchor in ANCHORS:
            self._anchor = anchor
            if all(self._encode(p) + self._continue(s) == self._encode(p + s) for p in PROBES for s in suffixes):
                return anchor
        raise ModelFailed("The model's tokenizer merges a document with the question after it: choose another model.")

    def _encode_as_the_tokenizer_does(self, head: str, tail: str) -> Callable[[str], list[int]]:
        """Whether text behind a control token starts a string or continues one: tokenizers differ."""
        for encode in (self._encode, self._continue):
            self._start = encode
            *before, touching = self._split(head)
            touched, *after = self._split(tail)
            if all(
                self._ids(before) + encode(touching + probe + touched) + self._ids(["", *after])
                == self._tokenizer.encode(head + probe + tail, add_special_tokens=False, verbose=False)
                for probe in ("Some words.", "two\n\nlines")
            ):
                return encode
        log.warning("The tokenizer's own encoding of its chat template could not be reproduced to the letter.")
        return self._encode

    def _split(self, text: str) -> list[str]:
        """Text and control tokens in turns, text first and last."""
        tokens = "|".join(re.escape(token) for token in sorted(self._control, key=len, reverse=True))
        return re.split(f"({tokens})", text) if tokens else [text]

    def _ids(self, pieces: list[str]) -> list[int]:
        """The ids of what `_split` gave; control tokens are looked up, never encoded."""
        ids: list[int] = []
        for number, piece in enumerate(pieces):
            ids += [self._control[piece]] if number % 2 else self._start(piece) if piece else []
        return ids

    def _with_one_bos(self, ids: list[int]) -> list[int]:
        bos = self._tokenizer.bos_token_id
        return ids if bos is None else [bos, *(id for id in ids if id != bos)]


def _rendered_turn(tokenizer: Any, system: bool) -> str:
    """One turn as the chat template writes it, with `MARKER` for the content.

    Args:
        tokenizer: with a chat template.
        system: whether there is a system prompt; `SYSTEM` stands for it if the template has a place for one.

    Raises:
        ModelFailed: the content is not in it exactly once.
    """
    plain, with_system = _rendered(tokenizer, None), _rendered(tokenizer, SYSTEM)
    takes_system = re.fullmatch(f".*{SYSTEM}.*{MARKER}.*", with_system, re.DOTALL) is not None
    takes_system &= with_system.count(SYSTEM) == with_system.count(MARKER) == 1
    if takes_system and (system or not _is_part(plain, with_system)):
        # No system prompt is no system message, as in mistral-common. But many templates then bring a long one of
        # their own, with the date of the day: they get an empty one.
        return with_system if system else with_system.replace(SYSTEM, "")
    if plain.count(MARKER) != 1:
        raise ModelFailed("The chat template of the model's tokenizer does not repeat what it is given.")
    return plain


def _rendered(tokenizer: Any, system: str | None) -> str:
    """The turn, with a system message or without; empty if the template does not take that."""
    messages = [{"role": "user", "content": MARKER}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template may raise anything
        log.debug("The chat template does not take %d messages: %s", len(messages), error)
        return ""


def _is_part(plain: str, with_system: str) -> bool:
    """Whether the turn without a system message is the one with it, less a piece from the middle."""
    cuts = range(len(plain) + 1) if plain.count(MARKER) == 1 else ()
    return any(with_system.startswith(plain[:cut]) and with_system.endswith(plain[cut:]) for cut in cuts)


def _asked(question: str, selection: str | None) -> str:
    return (f"Selected text:\n{selection}\n\n" if selection else "") + f"Question: {question}"
