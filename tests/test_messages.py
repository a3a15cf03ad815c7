"""The pipe between front and worker: what is sent is what arrives."""

from __future__ import annotations

import io
import json
from dataclasses import fields
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cag_daemon import messages
from cag_daemon.messages import HEADER, KINDS, Ask, Cancel, Message, Piece, decode, encode, read

# Any code point, lone surrogates too: what is cut in half by a token, or by an editor.
TEXT = st.text(st.characters(exclude_categories=()))
JSON = st.recursive(st.none() | st.integers() | TEXT, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner))
BY_TYPE = {
    str: TEXT,
    int: st.integers(),
    bool: st.booleans(),
    float: st.floats(allow_nan=False),
    float | None: st.none() | st.floats(allow_nan=False),
    str | None: st.none() | TEXT,
    int | None: st.none() | st.integers(),
    dict[str, Any]: st.dictionaries(TEXT, JSON, max_size=3),
}


def any_of(kind: type[Message]) -> st.SearchStrategy[Message]:
    hints = get_type_hints(kind)
    return st.builds(kind, **{each.name: BY_TYPE[hints[each.name]] for each in fields(kind)})


ANY = st.one_of([any_of(kind) for kind in KINDS.values()])


def test_every_kind_is_known_by_its_name() -> None:
    drawn = [kind for kind in vars(messages).values() if isinstance(kind, type) and issubclass(kind, Message)]
    assert {kind.__name__: kind for kind in drawn if kind is not Message} == KINDS


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_a_message_arrives_as_it_was_sent(kind: type[Message]) -> None:
    @given(any_of(kind))
    def law(message: Message) -> None:
        assert read(io.BytesIO(encode(message))) == message

    law()


@given(st.lists(ANY, max_size=5))
def test_messages_arrive_in_order_and_then_the_stream_ends(sent: list[Message]) -> None:
    stream = io.BytesIO(b"".join(map(encode, sent)))
    assert [read(stream) for _ in sent] == sent
    assert read(stream) is None


@given(ANY, st.data())
def test_a_stream_that_ends_within_a_frame_has_ended(message: Message, data: st.DataObject) -> None:
    frame = encode(message)
    cut = data.draw(st.integers(0, len(frame) - 1))
    assert read(io.BytesIO(frame[:cut])) is None


def test_a_key_of_a_later_version_is_left_out() -> None:
    assert decode(json.dumps({"type": "Cancel", "job": 3, "reason": "tired"}).encode()) == Cancel(3)


def test_a_key_that_is_missing_has_its_default() -> None:
    sent = {"type": "Failed", "job": 3, "reason": "outOfMemory", "message": "Too much."}
    assert decode(json.dumps(sent).encode()) == messages.Failed(3, "outOfMemory", "Too much.", {})


def test_a_frame_is_four_bytes_of_length_and_ascii() -> None:
    frame = encode(Ask(1, "file:///d", "Où? 🐈 \ud800", None, 5))
    (length,) = HEADER.unpack(frame[:4])
    assert len(frame) == 4 + length
    assert frame[4:].isascii()
    assert json.loads(frame[4:])["question"] == "Où? 🐈 \ud800"


def test_two_halves_of_a_character_are_joined_only_by_who_joins_the_pieces() -> None:
    high, low = (read(io.BytesIO(encode(Piece(1, half)))) for half in ("\ud83d", "\ude00"))
    assert (high, low) == (Piece(1, "\ud83d"), Piece(1, "\ude00"))
