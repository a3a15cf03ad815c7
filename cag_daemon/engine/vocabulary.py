"""Mistral's own tokenizer files, as the tokenizers library's: byte-level ``tekken.json``, sentencepiece's ``*.model``.

Ids are mistral-common's. Nothing of mistral-common, sentencepiece or protobuf is needed.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cag_daemon.engine.folder import read_json
from cag_daemon.errors import ModelFailed

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "▁"  # sentencepiece's

# How every tekken.json splits text into words. Some tokenizer.json on the hub were made with another's pattern.
TEKKEN_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The control tokens of a tekken.json that does not list them, in the order of their ids.
TEKKEN_CONTROL = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]"),
    *("[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)

# Kinds of piece in a sentencepiece file.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4


class Piece(NamedTuple):
    """A piece of a sentencepiece file: its text, how good it is, and its kind."""

    text: str
    score: float
    kind: int


# ── tekken.json ─────────────────────────────────────────────────────────────────────────────


def from_tekken(file: Path) -> Tokenizer:
    """The tokenizer of a ``tekken.json``.

    Raises:
        ModelFailed: it can't be read.
    """
    from tokenizers import AddedToken, Tokenizer, decoders
    from tokenizers.models import BPE

    values = read_json(file)
    config = values["config"]
    listed = values.get("special_tokens")
    names = [each["token_str"] for each in sorted(listed, key=lambda each: int(each["rank"]))] if listed else []
    control = names or list(TEKKEN_CONTROL)
    count = int(config.get("default_num_special_tokens") or len(control))
    control += [f"<SPECIAL_{id}>" for id in range(len(control), count)]
    size = int(config.get("default_vocab_size") or len(values["vocab"]) + count)
    letters = _byte_letters()
    pieces = [
        base64.b64decode(each["token_bytes"]).decode("latin-1").translate(letters)
        for each in values["vocab"][: size - count]  # the file has more than the models use
    ]
    vocabulary = {token: id for id, token in enumerate([*control, *pieces])}
    backend = Tokenizer(BPE(vocabulary, _merges(zip(pieces, range(0, -len(pieces), -1), strict=True))))
    backend.model.ignore_merges = True  # a word that is a piece is that piece
    split_as_tekken(backend, config["pattern"])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return backend


def _byte_letters() -> dict[int, int]:
    """How the tokenizers library writes each byte as one letter: itself, if it can be seen, else one past the bytes."""
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    unseen = [byte for byte in range(256) if byte not in seen]
    return {byte: 256 + number for number, byte in enumerate(unseen)}


def split_as_tekken(backend: Tokenizer, pattern: str = TEKKEN_WORDS) -> None:
    """Let a byte-level tokenizer split text into words as Mistral does."""
    from tokenizers import Regex, pre_tokenizers

    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


# ── tokenizer.model ─────────────────────────────────────────────────────────────────────────


def from_sentencepiece(file: Path) -> Tokenizer:
    """The tokenizer of a sentencepiece file. It puts a space before what starts a string, and before nothing else.

    Raises:
        ModelFailed: sentencepiece would do more with a text than it does with Mistral's files.
        ValueError: the file is damaged.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    pieces = _pieces(file)
    normal = [(piece.text, piece.score) for piece in pieces if piece.kind == NORMAL]
    vocabulary = {piece.text: id for id, piece in enumerate(pieces)}
    backend = Tokenizer(BPE(vocabulary, _merges(normal), byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    control = [piece.text for piece in pieces if piece.kind in (UNKNOWN, CONTROL)]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in control])
    # What users defined is taken whole wherever it stands in a text, and is a token like any other.
    defined = [piece.text for piece in pieces if piece.kind == USER_DEFINED]
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in defined])
    return backend


def _pieces(file: Path) -> list[Piece]:
    """What is in a sentencepiece file, which is a protobuf message: read by hand, two libraries fewer."""
    pieces, trainer, normalizer = [], {}, {}
    for number, value in _fields(file.read_bytes()):
        if number == 1:
            fields = dict(_fields(value))
            (score,) = struct.unpack("<f", fields.get(2, bytes(4)))
            pieces.append(Piece(fields[1].decode(), score, fields.get(3, NORMAL)))
        elif number == 2:
            trainer = dict(_fields(value))
        elif number == 3:
            normalizer = dict(_fields(value))
    # The numbers of model_type (2: BPE) and byte_fallback; of the map of characters, add_dummy_prefix,
    # remove_extra_whitespaces and escape_whitespaces. What is absent has its default.
    trained = (trainer.get(3, 1), trainer.get(35, 0))
    normal = (normalizer.get(2, b""), normalizer.get(3, 1), normalizer.get(4, 1), normalizer.get(5, 1))
    if trained != (2, 1) or normal != (b"", 1, 0, 1):
        raise ModelFailed(f"{file} is no sentencepiece file of Mistral's: choose a model with a tokenizer.json.")
    return pieces


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message: their numbers, and their values as int or bytes.

    Raises:
        ValueError: it is none, or cut off.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire not in (1, 2, 5):
            raise ValueError("the file is damaged")
        length, at = _varint(message, at) if wire == 2 else (8 if wire == 1 else 4, at)
        if at + length > len(message):
            raise ValueError("the file is cut off")
        at += length
        yield number, message[at - length : at]


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number, seven bits a byte and the lowest first, and where it ends."""
    value = shift = 0
    while at < len(message):
        byte = message[at]
        at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("the file is cut off")


def _merges(scored: Iterable[tuple[str, float]]) -> list[tuple[str, str]]:
    """Every two pieces that make a third, the pairs that make the best one first.

    Where pieces are equally good, sentencepiece takes the leftmost pair. Here pairs are ranked, so the one with the
    longest left piece comes first. Pieces of nothing but spaces are equally good, and grow from the left that way.
    """
    scores = dict(scored)
    ways = [
        (-score, -cut, text)
        for text, score in scores.items()
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    return [(text[:-cut], text[-cut:]) for _, cut, text in sorted(ways)]
