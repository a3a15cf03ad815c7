"""What a layer's machine code is called with: the order of its numbers, which writer and caller must agree on."""

from __future__ import annotations

from enum import IntEnum

PLAIN = "none"  # weights in bfloat16


class Call(IntEnum):
    """What a call is given, each an i64: sizes, and addresses of tensors in bfloat16 (0: there is none)."""

    COUNTERS = 0  # zeros
    ROWS = 1
    HIDDEN = 2  # [rows, hidden size]: the residual stream
    HIDDEN_SIZE = 3
    INTERMEDIATE_SIZE = 4
    HEAD_SIZE = 5
    HEADS = 6
    SHARED_HEADS = 7  # of keys, and of values
    EPSILON = 8  # of norms, a float32's bits
    OWN = 9  # room for each thread
    OWN_BYTES = 10
    MIDDLE = 11  # [rows, intermediate size]
    ATTENDED = 12  # [rows, heads · head size]
    QUERIES = 13  # [heads, rows, head size]
    START = 14  # the position of the first row
    COSINES = 15  # [rows, head size]
    SINES = 16
    KEYS = 17  # [heads, capacity, head size]
    VALUES = 18
    HEAD_BYTES = 19  # of keys of one head, up to those of the next
    SCALES = 20  # of the scores of each row, float32
    PARTS = 21  # room for what each row makes of each span of keys
    WEIGHTS = 22  # the layer's `Weights`; 0: no layer
    NETWORK = 23  # whether its output is wanted, too, or keys and values alone
    NORM = 24  # the last one
    OUTPUT = 25  # the packed weight that logits are made with
    OUTPUT_SCALES = 26
    OUTPUT_BLOCKS = 27
    LOGITS = 28  # [rows, 64 · blocks], of the rows from this one on:
    FIRST_LOGITS = 29


class Weights(IntEnum):
    """A layer's weights, each an address; those of the scales of matrices follow, where they have scales."""

    QUERY = 0
    KEY = 1
    VALUE = 2
    OUTPUT = 3
    GATE = 4
    UP = 5
    DOWN = 6
    INPUT_NORM = 14
    NORM = 15


MATRICES = Weights.DOWN + 1
WEIGHTS = Weights.NORM + 1
