"""A start that can already look up and copy: circuits wired into the first weights, which training then refines.

Random starts stayed at no exact answer at all for as long as was tried; this one has half of them right in a minute.
The hidden state is cut into parts of its own: what a token is, what the tokens before it are, which sentence it is in,
and which sentence is asked for.

    layer 0   fetches the tokens 1, 2 and 3 places before
    layer 1   looks at the latest mark of a sentence: the tokens before the mark are the sentence's name
    layer 2   words of the question find the same words in the document, and fetch their sentences' names
    layer 3   adds up the names over the question
    layers 4, 5   look for the current token inside the sentence of that name, and give the token behind it
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.batch import id_of
from training.model import Attention, TrainingModel
from training.tokenizer import START

CODE = 80  # dimensions of a token's own code
SHARPNESS = {"words": 2.0, "names": 3.0, "copy": 2.5, "late": 1.5, "fetched": 2.0}  # found by trying
NOISE = 0.15  # what is left of the random weights in what writes


@dataclass(frozen=True)
class Parts:
    """Rows of the identity that read or write one part of the hidden state, [dimensions, hidden]."""

    token: tuple[Tensor, Tensor]  # what the token is, in two halves
    before: tuple[Tensor, Tensor]  # and the one before it
    earlier: tuple[Tensor, Tensor]  # those two and three places before
    sentence: tuple[Tensor, Tensor]  # the name of the sentence it is in
    asked: tuple[Tensor, Tensor]  # the name of the sentence that is asked for

    @classmethod
    def of(cls, hidden: int) -> Parts:
        """For a hidden state of at least 320."""
        rows = torch.eye(hidden)

        def two(start: int, first: int, second: int) -> tuple[Tensor, Tensor]:
            return rows[start : start + first], rows[start + first : start + first + second]

        return cls(two(1, 40, 40), two(81, 40, 40), two(161, 32, 31), two(224, 24, 24), two(272, 24, 24))


class Wiring:
    """Writes circuits into a model's heads."""

    def __init__(self, model: TrainingModel, seed: int) -> None:
        shape = model.shape
        if shape.hidden < 320 or shape.head != 64 or shape.heads != 4 or shape.layers < 5:
            raise ValueError("The wired start is for hidden ≥ 320 and at least 5 layers of 4 heads of 64.")
        self._model = model
        self._random = torch.Generator().manual_seed(seed)
        self._half = shape.head // 2
        turns = 1.0 / (shape.theta ** (torch.arange(0, shape.head, 2).float() / shape.head))
        self._turns = turns
        # Pairs of dimensions that turn fast tell positions; the others are free of them, and for matching.
        self._fast = int((turns > 3.5e-4).sum())
        self._free = [*range(self._fast, self._half), *range(self._half + self._fast, shape.head)]

    def randomise(self) -> None:
        """Random weights, small where they write."""
        for layer in self._model.layers:
            for name, weight in layer.named_parameters():
                if weight.ndim == 2:
                    size = (
                        NOISE if "o_proj" in name or "down" in name else 0.5 if name[10:].startswith(("q", "k")) else 1
                    )
                    weight.copy_(torch.randn(weight.shape, generator=self._random) * weight.shape[1] ** -0.5 * size)

    def embed(self, start: int, begins: int, ends: int) -> Tensor:
        """Random codes for all tokens; where the answer begins is almost a sentence's start, where it ends is half one.

        Returns:
            the code of a sentence's start, [hidden], of length 1.
        """
        weight = self._model.embed_tokens.weight
        codes = torch.randn((len(weight), CODE), generator=self._random)
        codes *= CODE**0.5 / codes.norm(dim=1, keepdim=True)
        weight.zero_()
        weight[:, 0] = 2.0  # always on: what heads use that look at places, not at tokens
        weight[:, 1 : 1 + CODE] = codes
        weight[begins, 1 : 1 + CODE] = 0.9 * codes[start] + 0.43 * codes[begins]
        weight[ends, 1 : 1 + CODE] = 0.7 * codes[start] + 0.7 * codes[ends]
        found = torch.zeros(weight.shape[1])
        found[1 : 1 + CODE] = codes[start] / codes[start].norm()
        return found

    def carry(self, layer: int, head: int, read: Tensor, write: Tensor, strength: float) -> None:
        """A head takes this part from where it looks, and adds it to that part."""
        _, _, value, out = self._head(layer, head)
        many = min(len(read), len(write))
        value.mul_(0.3)
        out.mul_(0.3)
        value[:many] = read[:many]
        out[:, :many] = write[:many].T * strength

    def look_back(self, layer: int, head: int, places: int, gap: float = 4.0, level: float = 3.9) -> None:
        """A head looks at the token so many places before."""
        query, key = self._quiet(layer, head)
        fast = self._turns[: self._fast]
        size = math.sqrt(gap * 8 / float((1 - torch.cos(fast)).sum())) / level
        query[: self._fast, 0] = size
        key[: self._fast, 0] = size * torch.cos(fast * places)
        key[self._half : self._half + self._fast, 0] = size * torch.sin(fast * places)

    def look_late(self, layer: int, head: int, slow: float, fast: float, strength: float, level: float) -> None:
        """A head prefers what is not far behind: dimensions that turn between so slow and so fast."""
        query, key, _, _ = self._head(layer, head)
        for at, turn in enumerate(self._turns.tolist()):
            if slow <= turn <= fast:
                query[at, 0] = key[at, 0] = math.sqrt(8 * strength) / level

    def look_at(self, layer: int, head: int, code: Tensor) -> None:
        """A head looks at one kind of token."""
        query, key = self._quiet(layer, head)
        query[self._free, 0] = 1.2
        key[self._free] += code * 0.1

    def look_for(
        self, layer: int, head: int, mine: Sequence[Tensor], theirs: Sequence[Tensor], strength: float
    ) -> None:
        """A head looks where those parts are what these parts are here."""
        query, key = self._quiet(layer, head)
        asked, found = torch.cat(list(mine)), torch.cat(list(theirs))
        query[self._free[: len(asked)]] = asked * strength
        key[self._free[: len(found)]] = found * strength

    def _quiet(self, layer: int, head: int) -> tuple[Tensor, Tensor]:
        query, key, _, _ = self._head(layer, head)
        return query.mul_(0.2), key.mul_(0.2)

    def _head(self, layer: int, head: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The rows of queries, keys and values, and the columns of the output, of one head."""
        attention = self._model.layers[layer].self_attn
        assert isinstance(attention, Attention)
        rows = slice(64 * head, 64 * head + 64)
        query, key, value = (getattr(attention, f"{name}_proj").weight[rows] for name in "qkv")
        return query, key, value, attention.o_proj.weight[:, rows]


@torch.no_grad()
def initialise(model: TrainingModel, tokenizer: Tokenizer, seed: int = 0) -> None:
    """Wire look-up and copying into a new model."""
    parts, wiring = Parts.of(model.shape.hidden), Wiring(model, seed)
    words, copy = SHARPNESS["words"], SHARPNESS["copy"]
    wiring.randomise()
    start = wiring.embed(*(id_of(tokenizer, each) for each in (START, "[/INST]", "</s>")))
    model.norm.weight.fill_(0.12)
    # Layer 0: the tokens before.
    written = (parts.before[0], parts.before[1], parts.earlier[0], parts.earlier[1])
    for head, (places, half) in enumerate(((1, 0), (1, 1), (2, 0), (3, 1))):
        wiring.look_back(0, head, places)
        wiring.carry(0, head, parts.token[half], written[head], 0.5)
    # Layer 1: the name of the sentence, in two halves.
    for head in (0, 1):
        wiring.look_at(1, head, start)
        wiring.look_late(1, head, 0.003, 0.12, 3.0, 2.4)
        wiring.carry(1, head, parts.earlier[head][:24], parts.sentence[head], 0.84)
    # Layer 2: the same word; then the same two words in a row. They stand one place behind what they are known by.
    pairs = [(parts.token[half][:20], parts.before[0][:20]) for half in (0, 1)]
    behind = [(parts.before[half][:20], parts.earlier[0][:20]) for half in (0, 1)]
    for head in (0, 1):
        wiring.look_for(2, head, [parts.token[head]], [parts.before[head]], words)
        wiring.look_for(2, head + 2, pairs[head], behind[head], words)
        for each in (head, head + 2):
            wiring.carry(2, each, parts.sentence[head], parts.asked[head], SHARPNESS["fetched"] / 2)
    # Layer 3: names, over the question.
    for head in (0, 1):
        wiring._quiet(3, head)
        wiring.look_late(3, head, 0.01, 0.12, SHARPNESS["late"], 1.8)
        wiring.carry(3, head, parts.asked[head], parts.asked[head], SHARPNESS["names"])
    # Layers 4 and 5: what comes behind the current token, in the sentence of that name.
    for head in (0, 1):
        mine, theirs = [parts.token[head][:16], parts.asked[head]], [parts.before[head][:16], parts.sentence[head]]
        wiring.look_for(4, head, mine, theirs, copy)
        wiring.look_for(4, head + 2, pairs[head], behind[head], copy)
        for each in (head, head + 2):
            wiring.carry(4, each, parts.token[head], parts.token[head], 2.0)
    if model.shape.layers > 5:
        for head in (0, 1):
            mine = [parts.token[0][:10], parts.before[0][:8], parts.asked[head][:22]]
            theirs = [parts.before[0][:10], parts.earlier[0][:8], parts.sentence[head][:22]]
            wiring.look_for(5, head, mine, theirs, copy * 1.1)
            mine = [parts.token[head][:16], parts.asked[1 - head]]
            theirs = [parts.before[head][:16], parts.sentence[1 - head]]
            wiring.look_for(5, head + 2, mine, theirs, copy * 1.1)
            for each in (head, head + 2):
                wiring.carry(5, each, parts.token[head], parts.token[head], 2.5)
