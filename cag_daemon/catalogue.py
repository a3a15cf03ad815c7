"""Mistral's models that cag-daemon knows, as data, and what each takes.

Sizes of files and shapes are those of the model pages and of ``config.json``, as known in November 2025.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Quantization = Literal["none", "int8", "int4"]
QUANTIZATIONS: tuple[Quantization, ...] = ("none", "int8", "int4")

# Bytes a weight of a linear layer takes; int4 has a scale and a zero point for each 32 of them.
WEIGHT_BYTES: dict[str, float] = {"none": 2, "int8": 1, "int4": 0.5 + 4 / 32}
# The output layer is never held in fewer than 8 bits.
HEAD_BYTES: dict[str, float] = {"none": 2, "int8": 1, "int4": 1}
HALF = 2  # bytes of a bfloat16 or float16: embeddings, keys and values
OVERHEAD = 1_000_000_000  # the libraries, and what a chunk of the document needs while it is read


@dataclass(frozen=True)
class Known:
    """A model on the hub.

    Attributes:
        id, alias: on the hub, and what `pull` accepts for it.
        gated: whether its terms must be accepted on its page first.
        license: in a word.
        download: bytes of what is fetched; the vision part travels along where there is one, and is not loaded.
        stored: how the weights are stored there, ``BF16`` or ``FP8``.
        layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary, context: of the text decoder.
        tied: whether the embeddings are the output layer, too.
        transformers: the first version that loads it.
        remark: one line.
        first: whether it may be the first choice of a machine.
        listed: whether it has a row of its own.
    """

    id: str
    alias: str
    gated: bool
    license: str
    download: int
    stored: str
    layers: int
    hidden: int
    intermediate: int
    context: int
    vocabulary: int = 131072
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    tied: bool = False
    transformers: str = "4.43"
    remark: str = ""
    first: bool = False
    listed: bool = True

    @property
    def layer_weights(self) -> int:
        """Numbers in the linear layers, without embeddings and output layer."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def table(self) -> int:
        """Numbers in the embeddings; the output layer has as many."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Numbers in the text decoder."""
        return self.layer_weights + self.table * (1 if self.tied else 2)


_MINISTRAL_3 = (
    Known(
        id="mistralai/Ministral-3-3B-Instruct-2512",
        alias="ministral-3b",
        gated=False,
        license="Apache 2.0",
        download=4_670_000_000,
        stored="FP8",
        layers=26,
        hidden=3072,
        intermediate=9216,
        context=262144,
        tied=True,
        transformers="5.0",
        remark="for laptops; context of 256k tokens",
        first=True,
    ),
    Known(
        id="mistralai/Ministral-3-8B-Instruct-2512",
        alias="ministral-8b",
        gated=False,
        license="Apache 2.0",
        download=10_400_000_000,
        stored="FP8",
        layers=34,
        hidden=4096,
        intermediate=14336,
        context=262144,
        transformers="5.0",
        remark="for a good GPU; context of 256k tokens",
        first=True,
    ),
    Known(
        id="mistralai/Ministral-3-14B-Instruct-2512",
        alias="ministral-14b",
        gated=False,
        license="Apache 2.0",
        download=15_700_000_000,
        stored="FP8",
        layers=40,
        hidden=5120,
        intermediate=16384,
        context=262144,
        transformers="5.0",
        remark="near Mistral Small at half its size",
        first=True,
    ),
)
# The same weights as they were before FP8: twice the download, the same memory here.
_UNROUNDED = tuple(
    replace(
        each,
        id=f"{each.id}-BF16",
        alias=f"{each.alias}-bf16",
        stored="BF16",
        download=2 * each.parameters + 850_000_000,
        first=False,
        listed=False,
        remark="as above, not rounded to FP8",
    )
    for each in _MINISTRAL_3
)
KNOWN: tuple[Known, ...] = (
    *_MINISTRAL_3,
    Known(
        id="mistralai/Mistral-Small-3.2-24B-Instruct-2506",
        alias="mistral-small",
        gated=False,
        license="Apache 2.0",
        download=48_000_000_000,
        stored="BF16",
        layers=40,
        hidden=5120,
        intermediate=32768,
        context=131072,
        transformers="4.50",
        remark="the largest here, for a big GPU",
        first=True,
    ),
    Known(
        id="mistralai/Mistral-Nemo-Instruct-2407",
        alias="mistral-nemo",
        gated=False,
        license="Apache 2.0",
        download=24_500_000_000,
        stored="BF16",
        layers=40,
        hidden=5120,
        intermediate=14336,
        context=131072,
        remark="Ministral 3 14B is newer, and less to fetch",
    ),
    Known(
        id="mistralai/Mistral-7B-Instruct-v0.3",
        alias="mistral-7b",
        gated=True,
        license="Apache 2.0",
        download=14_500_000_000,
        stored="BF16",
        layers=32,
        hidden=4096,
        intermediate=14336,
        context=32768,
        vocabulary=32768,
        transformers="4.42",
        remark="the classic; accept its terms on its page",
    ),
    Known(
        id="mistralai/Ministral-8B-Instruct-2410",
        alias="ministral-8b-2410",
        gated=True,
        license="research only",
        download=16_000_000_000,
        stored="BF16",
        layers=36,
        hidden=4096,
        intermediate=12288,
        context=32768,
        transformers="4.46",
        remark="for research only; Ministral 3 8B is newer",
    ),
    *_UNROUNDED,
)


def find(name: str) -> Known | None:
    """The model of that alias or hub id, in any case of letters."""
    return next((each for each in KNOWN if name.lower() in (each.alias, each.id.lower())), None)


def weight_bytes(model: Known, quantization: Quantization) -> int:
    """Bytes of the weights in memory: the embeddings stay as they are, and with them an output layer that is one."""
    head = 0 if model.tied else model.table * HEAD_BYTES[quantization]
    return int(model.layer_weights * WEIGHT_BYTES[quantization] + head + model.table * HALF)


def kv_bytes(model: Known) -> int:
    """Bytes of keys and values that one token leaves in the cache."""
    return 2 * model.layers * model.kv_heads * model.head_dim * HALF


def memory_bytes(model: Known, quantization: Quantization, tokens: int) -> int:
    """About how much memory the model takes with a document of so many tokens."""
    return weight_bytes(model, quantization) + kv_bytes(model) * tokens + OVERHEAD
