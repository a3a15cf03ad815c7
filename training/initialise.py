"""A start that can already look up and copy: circuits wired into the first weights, which training then refines.

Random starts stayed at no exact answer at all for as long as was tried. The hidden state is cut into parts of its own,
see `Parts`: what a token is, what stands before it, which sentence it is in, and which sentence is asked for.

    layer 0   fetches the token before; and, into two bags, the rarer of the tokens around 4 and 10 places before, of
              which the gated part makes a name: as long as any other, and like hardly any
    layer 1   fetches that name from where the latest sentence starts; the token two places before; and whether
              "Question:" or "Selected text:" stands before, and no sentence has started since
    layer 2   words of the question find the same words in the document, or words that answer to them by what they
              mean, and fetch their sentences' names; where nothing is found, they look at the first token of all
    layer 3   adds up the names over the question; and fetches the token three places before, to where meanings were
    layer 4   looks for the sentence whose name was fetched most, and fetches that name alone
    layer 5   looks for the current token inside the sentence of that name, and gives the token behind it; and for the
              last two, and the last three, as many a word stands in a sentence twice
    layer 6   is free

Names decide how good it is. A sentence is asked for by a sum of names, so two that have something in common, or one
that is longer than others, are votes for what nobody asked for.
"""

from __future__ import annotations

import math
from itertools import islice, pairwise

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from training.batch import Encoder, id_of
from training.lexicon import SIZE, Lexicon
from training.meaning_head import MORE, NOWHERE, write_head, write_meanings
from training.model import CHOOSES, LOOKS, TrainingModel
from training.tokenizer import START, corpus
from training.wiring import ALWAYS, NORMS, ON, Head, Wiring

COPIES = 5  # the layer that copies
COUNTED = 4000  # texts in which it is counted how rare each token is
FAINT = 0.05  # how strongly bags stand in the hidden state
HATS, STEEP = 1.3, 4.0  # how narrow hats are, and how pointed, see `Start.names`
NAMED, SUMMED, CHOSEN, COPIED = 0.8, 10.0, 8.0, 2.5  # how large names are, and what is made of them and of tokens
# How much heads are drawn to where they should look, as logits.
SAME, PAIR, HALF, SUM, CHOICE, BEGIN, NONE, AWAY, COPY = 13.0, 16.0, 12.0, 14.0, 10.0, 8.0, 12.0, 20.0, 10.0
BEGINS, SURE = 2.0, 20.0  # how large the sign of what begins to ask is, and how sharply it is told; …
LATER, SOONER, RECENT = 80.0, 0.115, 1.4  # … how much it counts, how much more than a start, and what comes later
BEHIND = {0: 12.0, 1: 8.0} | dict.fromkeys(range(2, 9), 6.0)  # to the one place, by pairs of dimensions
AROUND = ((4.5, 1.4, 3.0), (10, 0.4, 2.5))  # so many places before, more or less sharply
LATEST = ((3, 5.0, 20), (4, 10.0, 40), (5, 15.0, 80), (6, 20.0, 150), (7, 20.0, 400), (8, 20.0, 1000))


class Parts:
    """Which dimensions of the hidden state hold what; the last ones hold meanings."""

    asking, rarity, refused = 1, 2, 3
    token = slice(4, 68)
    before = slice(68, 132)
    earlier = slice(132, 164)  # two places before
    sentence = slice(164, 240)  # the name of the sentence it is in; before that, one of the bags
    asked = slice(240, 316)  # the sum of names asked for; before that, the other bag, and the name made of both
    mark, begins = 316, 317  # whether the token is the mark of a sentence's start; whether it comes behind one
    spare, colon = 318, 319  # the first token's alone, as large as a code and like none; whether the token is a colon
    code, name = 64, 76
    earliest = slice(320, 320 + SIZE)  # three places before; before that, what the token means
    hidden = 320 + MORE


@torch.no_grad()
def initialise(model: TrainingModel, tokenizer: Tokenizer, lexicon: Lexicon, seed: int = 0) -> None:
    """Wire look-up and copying into a new model.

    Args:
        model: written in place.
        tokenizer: its own.
        lexicon: what its pieces mean.
        seed: of codes, and of what is left random.

    Raises:
        ValueError: the model has another shape than the wiring is for.
    """
    shape = model.shape
    if (shape.hidden, shape.head, shape.heads, shape.layers) != (Parts.hidden, 96, 3, 7) or shape.inner % 3:
        raise ValueError(
            f"The wired start is for 7 layers of 3 heads of 96, hidden {Parts.hidden}, inner of threes: not {shape}."
        )
    start = Start(model, tokenizer, lexicon, seed)
    for each in (start.fetch, start.names, start.signs, start.name, start.asks, start.look, start.add_up):
        each()
    for each in (start.recall, start.choose, start.copy):
        each()


class Start:
    """The circuits, in the order of their layers."""

    def __init__(self, model: TrainingModel, tokenizer: Tokenizer, lexicon: Lexicon, seed: int) -> None:
        self._model, self._tokenizer, self._lexicon = model, tokenizer, lexicon
        self._wiring = wiring = Wiring(model, tokenizer, seed)
        wiring.randomise()
        nothing, inst, start, begins, self._ends = (
            id_of(tokenizer, each) for each in ("<s>", "[INST]", START, "[/INST]", "</s>")
        )
        self._begins, self._nothing = begins, nothing
        encoder = Encoder(tokenizer)
        self._question, self._colon = encoder.prompt[-2:]
        self._selected = encoder.selected[-2]
        weight = model.embed_tokens.weight
        codes = wiring.random(len(weight), Parts.code)
        codes *= Parts.code**0.5 / codes.norm(dim=1, keepdim=True)
        self._codes, self._start = codes, start
        weight.zero_()
        weight[:, ALWAYS] = ON
        weight[:, Parts.rarity] = rarity(tokenizer)
        weight[:, Parts.token] = codes
        weight[start, Parts.mark] = weight[self._colon, Parts.colon] = ON
        # Where an answer begins is almost a sentence's start, where it ends is half one.
        weight[begins, Parts.token] = 0.9 * codes[start] + 0.43 * codes[begins]
        weight[self._ends, Parts.token] = 0.7 * codes[start] + 0.7 * codes[self._ends]
        # The first token of all adds nothing to a bag, and the second is in those of first sentences: names are alike.
        weight[nothing, Parts.spare] = codes.norm(dim=1).mean()  # for a norm's sake; no word looks there for it
        weight[nothing, Parts.token] = 0
        weight[nothing, Parts.rarity], weight[inst, Parts.rarity] = -1.75, 1.5
        write_meanings(model, tokenizer, lexicon)
        self._first = self._one(Parts.hidden - MORE + SIZE, NOWHERE)

    def fetch(self) -> None:
        """Layer 0: the token before, and two bags of rarer ones."""
        wiring, level = self._wiring, self._wiring.levels(0).documents
        head = wiring.head(0, 0)
        wiring.around(head, 1, BEHIND, level)
        wiring.carry(head, Parts.token, Parts.before, level)
        head.value[Parts.code, Parts.mark] = level
        head.out[Parts.begins, Parts.code] = 1.0
        for number, (places, near, middle) in enumerate(AROUND):
            head = wiring.head(0, number + 1)
            wiring.around(head, places, {1: near, 2: middle, 3: 6.0} | dict.fromkeys(range(4, 9), 8.0), level)
            wiring.prefer(head, self._one(Parts.rarity, 1), 4.0, (level, level))
            wiring.carry(head, Parts.token, (Parts.sentence, Parts.asked)[number], level, FAINT)

    def names(self) -> None:
        """The gated part of layer 0: a name of two bags.

        Three units make a hat of what they read. Hats of random sums of both bags are all together about as long for
        any bags, and have hardly anything in common for others. The last unit is always on, and takes off what all
        names share. What stands for no sentence has no name.
        """
        wiring, feed = self._wiring, self._wiring.layer(0).mlp
        level = wiring.levels(0, NORMS[1]).documents
        gate, up, down = (each.weight for each in (feed.gate_proj, feed.up_proj, feed.down_proj))
        for each in (gate, up, down):
            each.zero_()
        up[:, ALWAYS] = level / ON
        many = (len(gate) - 3) // 3
        reads = torch.zeros(many, Parts.hidden)
        for bag in (Parts.sentence, Parts.asked):
            reads[:, bag.start : bag.start + Parts.code] = wiring.random(many, Parts.code) * HATS / FAINT / 8
        shared = wiring.starts(0, NORMS[1]).mean(0)
        reads[:, ALWAYS] = (0.3 * wiring.random(many) - reads @ shared) / ON
        turned = torch.linalg.qr(wiring.random(Parts.name, many))[0] * many**-0.5
        for number, (shift, how) in enumerate(((1.0, 1.0), (0.0, -2.0), (-1.0, 1.0))):
            rows = slice(number * many, number * many + many)
            gate[rows] = STEEP * level * (reads - 100 * self._first)
            gate[rows, ALWAYS] += STEEP * level * shift / ON
            down[Parts.asked, rows] = turned * how / STEEP
        gate[-1] = level * (self._one(ALWAYS) - 8 * self._first)
        named = wiring.starts(1)[:, Parts.asked].mean(0)
        down[Parts.asked, -1] = -named / F.silu(torch.tensor(1.0))

    def signs(self) -> None:
        """Two more units of layer 0: what begins to ask, told where otherwise the first token has a number of its own.

        "A colon" and "behind that word" must be seen by one unit: added up in a head, either is half a sign.
        """
        wiring, feed = self._wiring, self._wiring.layer(0).mlp
        level = wiring.levels(0, NORMS[1]).questions
        gate, up, down = (each.weight for each in (feed.gate_proj, feed.up_proj, feed.down_proj))
        behind = self._tells(Parts.before, {self._question: 1.0, self._selected: 1.0})
        colon = self._tells(Parts.token, {self._colon: 1.0})
        begins = self._tells(Parts.token, {self._begins: 1.0}) - self._one(Parts.mark)
        # No threshold, which would be so much larger than what is read that little of it was left in 4 bits.
        for row, one, other in ((-3, behind, colon), (-2, begins, begins)):
            gate[row] = SURE * level * one
            up[row] = level * other
            down[Parts.spare, row] = BEGINS / SURE

    def name(self) -> None:
        """Layer 1: the sentence's name; the token two places before."""
        wiring, level = self._wiring, self._wiring.levels(1).documents
        head = wiring.head(1, 0)
        wiring.prefer(head, self._one(Parts.begins), 60.0, (level, level))
        for at, how, ahead in LATEST:  # as if looking ahead: what is nearer is then preferred all the way
            wiring.around(head, -ahead, {at: how}, level)
        size = float(wiring.starts(1)[:, Parts.asked].square().mean().sqrt())
        wiring.carry(head, Parts.asked, Parts.sentence, level * NAMED / size)
        head = wiring.head(1, 1)
        wiring.around(head, 1, BEHIND, level)
        wiring.carry(head, slice(Parts.before.start, Parts.before.start + 32), Parts.earlier, level)

    def asks(self) -> None:
        """Layer 1, too: whether "Question:" or "Selected text:" stands before, and no sentence has started since.

        A document may well have such lines. Of what begins to ask, ``[/INST]`` too, and of starts the latest counts.
        """
        wiring, level = self._wiring, self._wiring.levels(1).documents
        head = wiring.head(1, 2)
        spare = float(self._model.embed_tokens.weight[self._nothing, Parts.spare])
        begins = self._one(Parts.spare, BEGINS) - spare / BEGINS * self._first
        start = self._one(Parts.mark, float(self._model.embed_tokens.weight[self._start, Parts.mark]))
        wiring.prefer(head, begins + (1 - SOONER) * start, LATER, (level, level))
        for at, how, ahead in LATEST:
            wiring.around(head, -ahead, {at: RECENT * how}, level)
        head.value[0] = begins * level
        head.out[Parts.asking, 0] = 2.0

    def _tells(self, part: slice, wanted: dict[int, float]) -> Tensor:
        """The smallest direction that reads this of these tokens, in the part of a hidden state that holds tokens."""
        known = self._model.embed_tokens.weight[list(wanted), Parts.token]
        found = torch.zeros(Parts.hidden)
        read = torch.tensor(list(wanted.values()))[:, None]
        found[part] = torch.linalg.lstsq(known, read, driver="gelsd").solution[:, 0]
        return found

    def look(self) -> None:
        """Layer 2: the same word; two in a row; what answers by its meaning.

        The first two are known by what stands one place behind.
        """
        wiring, level = self._wiring, self._wiring.levels(LOOKS)
        levels, nowhere = (level.questions, level.documents), (level.questions, level.first)
        head = wiring.head(LOOKS, 0)
        wiring.match(head, (Parts.token, Parts.before), SAME, levels)
        rare = float(F.softplus(self._lexicon.rare))  # of n same words each has 1 / (n + rare)
        wiring.prefer(head, self._first, SAME + math.log(rare), nowhere)
        self._only_questions(head, nowhere)
        wiring.carry(head, Parts.sentence, Parts.asked, level.documents)
        head = wiring.head(LOOKS, 1)
        token, before, earlier = (
            slice(each.start, each.start + 32) for each in (Parts.token, Parts.before, Parts.earlier)
        )
        wiring.match(head, (token, before), PAIR / 2, levels)
        wiring.match(head, (before, earlier), PAIR / 2, levels)
        wiring.prefer(head, self._first, HALF, nowhere)
        self._only_questions(head, nowhere)
        wiring.carry(head, Parts.sentence, Parts.asked, level.documents, 0.5)
        write_head(self._model, self._lexicon, level)

    def add_up(self) -> None:
        """Layer 3: names, over the question."""
        wiring, level = self._wiring, self._wiring.levels(3)
        head = wiring.head(3, 0)
        # Nothing for a question's words, and less for all else: what is more than nothing depends on how large a token
        # is. The colon before them, which a list is full of, asks nothing.
        asking = self._one(Parts.asking, 1.85) - self._one(ALWAYS) - self._one(Parts.colon)
        wiring.prefer(head, asking, SUM, (level.answers, level.answers))
        wiring.prefer(head, self._first, SUM * level.answers / level.first - 3, (level.answers, level.first))
        wiring.carry(head, Parts.asked, Parts.asked, level.answers, SUMMED)

    def recall(self) -> None:
        """Layer 3, too: the token three places before, where meanings are needed no longer."""
        wiring, level = self._wiring, self._wiring.levels(3).documents
        head = wiring.head(3, 1)
        # Tokens are not as large as each other here: so what is nearest is preferred by more than they differ, and the
        # first of all, which is smallest, and its key therefore largest, is kept out.
        wiring.around(head, 1, {0: 30.0, 1: 16.0, 2: 6.0, 3: 4.0} | dict.fromkeys(range(4, 9), 3.0), level)
        wiring.prefer(head, self._first, -60.0, (level, level))
        wiring.carry(head, Parts.earlier, Parts.earliest, level)

    def choose(self) -> None:
        """Layer 4: the sentence that was named most; or none."""
        wiring, level = self._wiring, self._wiring.levels(CHOOSES)
        levels = (level.answers, level.documents)
        head = wiring.head(CHOOSES, 0)
        wiring.match(head, (Parts.asked, Parts.sentence), CHOICE, levels, (NAMED, NAMED))
        wiring.prefer(head, self._one(Parts.begins) - self._one(ALWAYS), BEGIN, levels)
        none = BEGIN * level.documents / level.first + NONE
        wiring.prefer(head, self._first, none, (level.answers, level.first))
        wiring.carry(head, Parts.sentence, Parts.asked, level.documents, CHOSEN)
        head.value[Parts.name] = self._first * level.first
        head.out[Parts.refused, Parts.name] = 4.0

    def copy(self) -> None:
        """Layer 5: what comes behind the current token, the current two, and three, in the sentence of that name."""
        wiring, level = self._wiring, self._wiring.levels(COPIES)
        levels, sizes = (level.answers, level.documents), (CHOSEN * NAMED, NAMED)
        names = (Parts.asked, Parts.sentence)
        head = wiring.head(COPIES, 0)
        wiring.match(head, _starts(Parts.token, Parts.before, 32), COPY, levels)
        wiring.match(head, _starts(*names, 44), COPY, levels, sizes)
        self._give(head, level.documents)
        head = wiring.head(COPIES, 1)
        wiring.match(head, _ends(Parts.token, Parts.before, 17), 0.8 * COPY, levels)
        wiring.match(head, _starts(Parts.before, Parts.earlier, 17), 0.5 * COPY, levels)
        wiring.match(head, _ends(*names, 44), COPY, levels, sizes)
        self._give(head, level.documents)
        head = wiring.head(COPIES, 2)
        for mine, theirs in pairwise((Parts.token, Parts.before, Parts.earlier, Parts.earliest)):
            wiring.match(head, _starts(mine, theirs, 20), 0.7 * COPY, levels)
        wiring.match(head, _starts(*names, 18), 0.7 * COPY, levels, sizes)
        self._give(head, level.documents)
        norm = self._model.norm.weight
        norm.zero_()
        norm[Parts.token] = norm[Parts.refused] = 0.3

    def _give(self, head: Head, level: float) -> None:
        """A head gives the token that it looks at; where the next sentence would start, the answer ends."""
        self._wiring.carry(head, Parts.token, Parts.token, level, COPIED)
        start = self._codes[self._start]
        ends = 1.3 * self._model.embed_tokens.weight[self._ends, Parts.token] - start
        head.out[Parts.token, : Parts.code] += COPIED * torch.outer(ends, start / Parts.code)

    def _only_questions(self, head: Head, levels: tuple[float, float]) -> None:
        """All but a question's and an answer's tokens look at the first one: what they fetch would only make noise."""
        asks = self._one(ALWAYS) - self._one(Parts.asking, 1.85)
        self._wiring.meet(head, asks, self._first, AWAY, levels)

    def _one(self, place: int, size: float = ON) -> Tensor:
        """What reads one dimension of a hidden state: 1 where it is as large as this."""
        found = torch.zeros(Parts.hidden)
        found[place] = 1 / size
        return found

    def _code(self, part: slice, token: int) -> Tensor:
        """What reads how much a part of a hidden state is a token's code: 1 where it is it."""
        found = torch.zeros(Parts.hidden)
        found[part] = self._codes[token] / Parts.code
        return found


def _starts(mine: slice, theirs: slice, many: int) -> tuple[slice, slice]:
    return slice(mine.start, mine.start + many), slice(theirs.start, theirs.start + many)


def _ends(mine: slice, theirs: slice, many: int) -> tuple[slice, slice]:
    return slice(mine.stop - many, mine.stop), slice(theirs.stop - many, theirs.stop)


def rarity(tokenizer: Tokenizer) -> Tensor:
    """How rare each token is in the generator's texts, from -1.75 to 1.5, [vocabulary]: half of a logarithm."""
    counts = torch.ones(tokenizer.get_vocab_size())
    for text in islice(corpus(documents=400), COUNTED):
        ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)
        counts.index_add_(0, ids, torch.ones(len(ids)))
    return ((counts.sum() / counts).log().clamp(3, 9.5) - 6.5) / 2
