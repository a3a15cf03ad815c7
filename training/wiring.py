"""How circuits are written into a model's heads, layer by layer: each measures what the ones before put out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.batch import Encoder, Size, make_batch
from training.model import Layer, TrainingModel

ON = 2.0  # what the dimension holds that is always on, and it is the first one
ALWAYS = 0
NOISE = 0.01  # what is left of random weights in what is wired, and in what writes
NORMS = ("input_layernorm", "post_attention_layernorm")  # of a layer: before its heads, and before its gated part
TURNS = 3.5e-4  # pairs of dimensions that turn faster tell positions; the others are for matching


@dataclass
class Head:
    """One head's queries, keys and values, [head, hidden], its output, [hidden, head], and how far its room is used."""

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    used: int = 0


@dataclass(frozen=True)
class Levels:
    """The root mean square of what goes into a norm: a head's numbers are as much smaller behind it.

    Attributes:
        documents, questions, answers: of their tokens, on average.
        first: of the first token of all.
    """

    documents: float
    questions: float
    answers: float
    first: float


class Wiring:
    """Writes circuits into a model's heads.

    Args:
        model: whose weights are written, in place.
        tokenizer: its own.
        seed: of random weights.
    """

    def __init__(self, model: TrainingModel, tokenizer: Tokenizer, seed: int) -> None:
        shape = model.shape
        self._model = model
        self._random = torch.Generator().manual_seed(seed)
        self.always = torch.zeros(shape.hidden)  # reads 1 of every token
        self.always[ALWAYS] = 1 / ON
        self._scale = shape.head**0.5  # attention divides by it
        self._half = shape.head // 2
        self._turns = shape.theta ** -(torch.arange(0, shape.head, 2).double() / shape.head)
        fast = int((self._turns > TURNS).sum())
        self._free = [*range(fast, self._half), *range(self._half + fast, shape.head)]
        encoder = Encoder(tokenizer)
        self._batch = make_batch(encoder, 4711, Size(2, 30, 12))
        self._begins = (self._batch.documents == encoder.start).roll(1, 1).flatten()

    def randomise(self) -> None:
        """Random weights, small where they write."""
        for layer in self._model.layers:
            for name, weight in layer.named_parameters():
                if weight.ndim == 2:
                    size = NOISE if "o_proj" in name or "down" in name else 0.5 if "q_" in name or "k_" in name else 1
                    weight.copy_(self.random(*weight.shape) * weight.shape[1] ** -0.5 * size)

    def random(self, *size: int) -> Tensor:
        """Normal numbers."""
        return torch.randn(size, generator=self._random)

    def layer(self, at: int) -> Layer:
        """One of the model's layers."""
        found = self._model.layers[at]
        assert isinstance(found, Layer)
        return found

    def seen(self, layer: int, norm: str = NORMS[0]) -> Tensor:
        """What goes into a norm for a few documents and their questions, one behind the other: [tokens, hidden]."""
        found: list[Tensor] = []
        place = getattr(self.layer(layer), norm)
        hook = place.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        self._model(*self._batch.inputs)
        hook.remove()
        return found[0]

    def starts(self, layer: int, norm: str = NORMS[0]) -> Tensor:
        """The same for the first tokens of sentences alone: [sentences, hidden]."""
        return self.seen(layer, norm)[: len(self._begins)][self._begins]

    def levels(self, layer: int, norm: str = NORMS[0]) -> Levels:
        """How large what goes into a norm is."""
        squares, batch = self.seen(layer, norm).square().mean(-1), self._batch
        documents, asked = squares[: len(self._begins)], squares[len(self._begins) :]
        told = documents.view(batch.documents.shape)[:, : int(batch.lengths.min())]
        parts = (told, asked[batch.askers], asked[batch.wanted], squares[:1])
        return Levels(*(float(each.mean().sqrt()) for each in parts))

    def head(self, layer: int, head: int) -> Head:
        """A head to be written into, what was in it nearly gone."""
        attention, wide = self.layer(layer).self_attn, self._model.shape.head
        rows = slice(wide * head, wide * head + wide)
        names = ("q_proj", "k_proj", "v_proj")
        parts = [getattr(attention, name).weight[rows] for name in names] + [attention.o_proj.weight[:, rows]]
        for each in parts:
            each.mul_(NOISE)
        return Head(*parts)

    def carry(self, head: Head, read: slice, write: slice, level: float, strength: float = 1.0) -> None:
        """A head takes this part from where it looks, and adds it to that part.

        Args:
            level: of the tokens looked at.
        """
        many = min(read.stop - read.start, write.stop - write.start)
        at = torch.arange(many)
        head.value[at, read.start + at] = level
        head.out[write.start + at, at] = strength

    def around(self, head: Head, places: float, sharp: Mapping[int, float], level: float) -> None:
        """A head looks so many places back.

        Args:
            sharp: how much it is drawn there by each pair of dimensions; the first turns fastest.
            level: of all tokens.
        """
        for at, how in sharp.items():
            size = (how * self._scale) ** 0.5 * level / ON
            turned = float(self._turns[at]) * places
            head.query[at, ALWAYS] = size
            head.key[at, ALWAYS] = size * math.cos(turned)
            head.key[self._half + at, ALWAYS] = size * math.sin(turned)

    def match(
        self,
        head: Head,
        parts: tuple[slice, slice],
        logit: float,
        levels: tuple[float, float],
        sizes: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        """A head looks where the second part is what the first is here.

        Args:
            parts: of the hidden state, of one size.
            logit: where they are the same.
            levels: of the tokens that look, and of those looked at.
            sizes: how large a number of each part is, about.
        """
        mine, theirs = parts
        many = mine.stop - mine.start
        dims, at = torch.tensor(self._free[head.used : head.used + many]), torch.arange(many)
        root = (logit * self._scale / many) ** 0.5
        head.query[dims, mine.start + at] = root * levels[0] / sizes[0]
        head.key[dims, theirs.start + at] = root * levels[1] / sizes[1]
        head.used += many

    def prefer(self, head: Head, what: Tensor, logit: float, levels: tuple[float, float]) -> None:
        """A head prefers tokens by so much for each 1 that this direction reads of them, wherever it looks from.

        Args:
            logit: below 0 it avoids them.
        """
        self.meet(head, self.always, what, logit, levels)

    def meet(self, head: Head, mine: Tensor, theirs: Tensor, logit: float, levels: tuple[float, float]) -> None:
        """Tokens of which the first direction reads 1 prefer those of which the second does, by so much."""
        at = self._free[head.used]
        root = (abs(logit) * self._scale) ** 0.5
        head.query[at] += mine * root * levels[0]
        head.key[at] += math.copysign(root, logit) * theirs * levels[1]
        head.used += 1
