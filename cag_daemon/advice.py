"""Which of the known models suit a machine, how each would have to be held, and which to try there first.

Times are estimates: they come from how fast a machine multiplies and reads memory, and say nothing about what else it
does.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.filesize import decimal

from cag_daemon.catalogue import (
    HALF,
    HEAD_BYTES,
    KNOWN,
    QUANTIZATIONS,
    WEIGHT_BYTES,
    Known,
    Quantization,
    kv_bytes,
    memory_bytes,
)

# What a person waits for without going away for good.
READ_SECONDS = 300
TOKENS_A_SECOND = 5


@dataclass(frozen=True)
class Machine:
    """What a machine has for a model.

    Attributes:
        device: ``cpu``, ``cuda`` or ``mps``.
        name: of the processor or the GPU.
        memory: bytes that a model and its cache may take there.
        flops: operations a second of a matrix product in the type that would be used.
        bandwidth: bytes of weights a second that one token passes through.
    """

    device: str
    name: str
    memory: int
    flops: float
    bandwidth: float


@dataclass(frozen=True)
class Row:
    """A model, held in one way, on one machine, with a document of so many tokens.

    Attributes:
        model, quantization: what, and how its weights are held.
        memory: bytes it needs with that document.
        fits: whether the machine has that memory, and the model sees that many tokens.
        read_seconds: for the document, the first time.
        tokens_a_second: of an answer about it.
    """

    model: Known
    quantization: Quantization
    memory: int
    fits: bool
    read_seconds: float
    tokens_a_second: float

    @property
    def pleasant(self) -> bool:
        """It fits, and nobody waits long."""
        return self.fits and self.read_seconds <= READ_SECONDS and self.tokens_a_second >= TOKENS_A_SECOND


@dataclass(frozen=True)
class Advice:
    """What to try first on a machine.

    Attributes:
        rows: one for each model, held as it fits; the first choice among them.
        first: None where nothing fits.
        why: in one sentence.
    """

    rows: list[Row]
    first: Row | None
    why: str


def read_seconds(model: Known, tokens: int, flops: float) -> float:
    """About how long it takes to read a document: two operations a weight and token, and attention, which is causal."""
    attention = 2 * tokens**2 * model.heads * model.head_dim * model.layers
    return (2 * model.layer_weights * tokens + attention) / flops


def tokens_a_second(model: Known, quantization: Quantization, tokens: int, bandwidth: float) -> float:
    """About how fast an answer comes: each token passes through all weights and the whole cache once."""
    head = model.table * (HALF if model.tied else HEAD_BYTES[quantization])
    return bandwidth / (model.layer_weights * WEIGHT_BYTES[quantization] + head + kv_bytes(model) * tokens)


def row(model: Known, quantization: Quantization, machine: Machine, tokens: int) -> Row:
    """What to expect of a model on a machine."""
    memory = memory_bytes(model, quantization, tokens)
    return Row(
        model,
        quantization,
        memory,
        memory <= machine.memory and tokens < model.context,
        read_seconds(model, tokens, machine.flops),
        tokens_a_second(model, quantization, tokens, machine.bandwidth),
    )


def advise(machine: Machine, tokens: int) -> Advice:
    """Which models fit on a machine, how each would have to be held, and which to try first.

    The first choice is the largest that is free to use, fits, and answers pleasantly, rounded as little as possible:
    int4 only where nothing else does. Where none is pleasant it is the one that reads fastest.
    """
    variants = {
        model: [row(model, quantization, machine, tokens) for quantization in QUANTIZATIONS]
        for model in KNOWN
        if model.listed
    }
    candidates = [each for rows in variants.values() for each in rows if each.fits and each.model.first]

    def merit(each: Row) -> tuple[bool, int, int]:
        return each.quantization != "int4", each.model.parameters, -QUANTIZATIONS.index(each.quantization)

    pleasant = [each for each in candidates if each.pleasant]
    if pleasant:
        first = max(pleasant, key=merit)
        why = f"the largest that fits into {decimal(machine.memory)} and does not make you wait"
    elif candidates:
        first = min(candidates, key=lambda each: (each.read_seconds, -merit(each)[0], -each.tokens_a_second))
        why = "it reads fastest here, though you will wait: a shorter document or a GPU would help"
    else:
        smallest = min((rows[-1] for rows in variants.values()), key=lambda each: each.memory)
        why = (
            f"nothing fits: even {smallest.model.alias} in int4 takes {decimal(smallest.memory)} "
            f"with {tokens:,} tokens, and there are {decimal(machine.memory)}"
        )
        return Advice([rows[-1] for rows in variants.values()], None, why)
    shown = []
    for model, rows in variants.items():
        shown.append(first if model == first.model else next((each for each in rows if each.fits), rows[-1]))
    return Advice(shown, first, why)
