"""What travels over the pipe between front and worker: small frozen dataclasses, as length-prefixed JSON.

A frame is four bytes of length (big-endian) and that many bytes of JSON, ``{"type": <class name>, …fields}``.
Every piece of work has a ``job`` number chosen by the front; what the worker says of it carries the same number.
For each ``Load``, ``Prepare`` and ``Ask`` exactly one of ``Loaded`` / ``Prepared`` / ``Answered``, ``Failed`` or
``Halted`` comes back; for a ``Prepare`` with ``patience`` it may be ``Postponed``.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass, field, fields
from typing import Any, BinaryIO

HEADER = struct.Struct(">I")
DEVICE_FAILED = 75  # exit code of a worker whose device gave up: what was on it is lost


@dataclass(frozen=True)
class Message:
    """Anything that travels over the pipe."""


# ── front → worker ──────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Load(Message):
    """Load a model. The first message; there is one model in a worker's life.

    ``characters``: of the longest document there is; ``memory_bytes``: see `Limit`; ``cache_directory`` None: nothing
    is kept on disk.
    """

    job: int
    model: str
    device: str
    dtype: str
    threads: int
    quantization: str = "none"
    characters: int = 0
    max_new_tokens: int = 256
    memory_bytes: int | None = None
    cache_directory: str | None = None
    cache_bytes: int | None = None


@dataclass(frozen=True)
class Prepare(Message):
    """Have this text of this document in a whole cache.

    ``document`` is a name for the place (a URI), ``version`` for the text. ``characters``: of the whole text, where
    ``text`` is only the beginning of one that no model can hold; 0: it is whole. ``system_prompt`` None: the model's
    own, or the default. ``force``: keep nothing of what is cached. ``patience``: nobody waits for it, and so it is not
    gone on with if it turns out to take more seconds than that. ``file``: where it is; ``saved``: the text is that
    file's, and may be kept on disk.
    """

    job: int
    document: str
    version: str
    text: str
    system_prompt: str | None
    max_new_tokens: int
    force: bool = False
    characters: int = 0
    patience: float | None = None
    file: str | None = None
    saved: bool = False


@dataclass(frozen=True)
class Ask(Message):
    """Answer a question from the whole cache that the document has now; ``Answered`` says of which version that was.

    ``version``: it must be of that one, else the job fails as if nothing were cached; None: whichever it is.
    """

    job: int
    document: str
    question: str
    selection: str | None
    max_new_tokens: int
    version: str | None = None


@dataclass(frozen=True)
class Typing(Message):
    """Somebody types a question about that document, so far: read it meanwhile, if there is nothing else to do.

    It has no end, and may be left undone.
    """

    document: str
    question: str
    selection: str | None


@dataclass(frozen=True)
class Cancel(Message):
    """Stop that job, begun or not. It ends with ``Halted``, if it had not ended before."""

    job: int


@dataclass(frozen=True)
class Forget(Message):
    """Nobody will ask about that document any more: its caches leave memory; ``write``: for the disk, if they may."""

    document: str
    write: bool = False


@dataclass(frozen=True)
class Saved(Message):
    """What a document's cache was made of is what the file says now: it may be kept on disk."""

    document: str
    version: str
    file: str


@dataclass(frozen=True)
class Limit(Message):
    """How many bytes all document caches may take together; None: half of what was free after loading."""

    memory_bytes: int | None


@dataclass(frozen=True)
class Keep(Message):
    """Where caches are kept on disk from now on, None: nowhere; and how many bytes they may take there."""

    cache_directory: str | None
    cache_bytes: int | None


# ── worker → front ──────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Loading(Message):
    """The model is loaded to about so many hundredths."""

    job: int
    percent: int


@dataclass(frozen=True)
class Loaded(Message):
    """The model is there.

    Attributes:
        name: as the user knows it.
        why: why this model, in half a sentence.
        device, dtype, quantization: where and how it is held.
        parameters, bytes: its size.
        chunk: tokens that are read at a time.
        context: tokens the model can see at once.
        reads: tokens of a document up to which its answers are good; None: nobody has measured it.
    """

    job: int
    name: str
    why: str
    device: str
    dtype: str
    quantization: str
    parameters: int
    bytes: int
    chunk: int
    context: int
    reads: int | None = None


@dataclass(frozen=True)
class Reading(Message):
    """So many tokens of the document are read."""

    job: int
    done: int
    total: int
    max_tokens: int


@dataclass(frozen=True)
class Prepared(Message):
    """The document's whole cache now holds ``version``. ``kept + computed = tokens``; ``bytes``: of its cache."""

    job: int
    version: str
    tokens: int
    kept: int
    computed: int
    max_tokens: int
    bytes: int
    milliseconds: int


@dataclass(frozen=True)
class Postponed(Message):
    """Reading that document would take more than the patience for it: ``seconds`` in all, for ``tokens``."""

    job: int
    tokens: int
    max_tokens: int
    seconds: float


@dataclass(frozen=True)
class Began(Message):
    """The worker has turned to that question."""

    job: int


@dataclass(frozen=True)
class FirstToken(Message):
    """The first token of that answer is known."""

    job: int


@dataclass(frozen=True)
class Piece(Message):
    """The next piece of an answer's text."""

    job: int
    text: str


@dataclass(frozen=True)
class Answered(Message):
    """An answer is whole: ``text`` is all pieces joined. The counts are of tokens."""

    job: int
    version: str
    text: str
    finish_reason: str
    cached: int
    prompt: int
    generated: int
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class Failed(Message):
    """A job failed: the fields of an ``errors.RequestFailed``."""

    job: int
    reason: str
    message: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Halted(Message):
    """A job was cancelled and has ended."""

    job: int


@dataclass(frozen=True)
class Dropped(Message):
    """That document's cache had to leave memory: to make room for another, or because it was ``wrong``."""

    document: str
    wrong: bool = False


KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in Message.__subclasses__()}


def encode(message: Message) -> bytes:
    """The message as a frame."""
    body = json.dumps({"type": type(message).__name__} | asdict(message)).encode("ascii")
    return HEADER.pack(len(body)) + body


def decode(body: bytes) -> Message:
    """The message in a frame's body; keys that this version does not know are left out."""
    values = json.loads(body)
    kind = KINDS[values.pop("type")]
    known = {each.name for each in fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in known})


def read(stream: BinaryIO) -> Message | None:
    """The next message of a blocking stream; None at its end, also in the middle of a frame."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (length,) = HEADER.unpack(header)
    body = stream.read(length)
    return decode(body) if len(body) == length else None
