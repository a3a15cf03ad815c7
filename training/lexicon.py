"""Learn which words of a question answer to which words of a sentence, in a model of one head and nothing else.

It is the head that `grow` puts into layer 2, alone: each token of a question looks at the document's tokens, by what
both mean, and votes for their sentences; what is the same token votes anyway, as the heads for words have it. Alone it
learns a thousand questions a second, which the whole model would take an hour for. From 30 numbers a piece it learns
that "when" looks for months and "cost" for "€", and what is not in the data it has from `meaning`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from training.batch import Encoder
from training.data.document import example
from training.meaning import relatives

SIZE = 30  # numbers of a piece's meaning
RANK = 32  # of what a query and a key are compared in
NEAR = 0.25  # relatives from here on begin near each other, and may stand in for each other
SEEN = 3  # documents that a piece must be in, if it has no relatives: the others mean nothing, and look nowhere
SWAPPED = 0.15  # of the words of a question are replaced by a relative
SHRINK = 0.01  # how much large meanings cost
STEPS, TOGETHER, RATE = 6000, 4, 5e-3
SEED = 70_000_000  # of the first document
SENTENCES = (6, 12, 20, 30, 45)
APART = -1e4  # what no softmax lets through


@dataclass(frozen=True)
class Sample:
    """A document's ids and the number of the sentence each is in, from 1 on; questions, and where their answers are.

    An answer's sentence 0: the document does not say.
    """

    ids: Tensor
    sentences: Tensor
    questions: list[tuple[list[int], int]]


class Lexicon(nn.Module):
    """What pieces mean, and how meanings are compared.

    Args:
        known: [pieces], which of a tokenizer's may mean something.
        akin: what is near each of them, see `relatives`.
    """

    known: Tensor

    def __init__(self, known: Tensor, akin: Sequence[dict[int, float]]) -> None:
        super().__init__()
        begun = torch.randn(len(known), SIZE)
        mixed = begun.clone()
        for at, each in enumerate(akin):
            for other, how in each.items():
                if how > NEAR:
                    mixed[at] += how * begun[other]
        self.register_buffer("known", known.float()[:, None])
        self.means = nn.Parameter(F.normalize(mixed, dim=1) * known[:, None])
        self.asks = nn.Parameter(3 * torch.eye(RANK, SIZE) + 0.05 * torch.randn(RANK, SIZE))
        self.tells = nn.Parameter(3 * torch.eye(RANK, SIZE) + 0.05 * torch.randn(RANK, SIZE))
        self.nowhere = nn.Parameter(torch.tensor(5.0))  # how near anything must be, for any piece to look at it …
        self.harder = nn.Parameter(torch.zeros(len(known)))  # … and for this one
        self.sharpness, self.refusal = nn.Parameter(torch.tensor(3.0)), nn.Parameter(torch.tensor(0.5))
        self.rare = nn.Parameter(torch.tensor(0.5))

    def forward(self, sample: Sample, questions: Tensor) -> Tensor:
        """How likely each sentence is the answer to each of questions [n, longest], filled up with -1: [n, 1 + m]."""
        there = (questions >= 0).float()[..., None]
        asked = questions.clamp(min=0)
        in_sentence = F.one_hot(sample.sentences).float()
        same = (asked[..., None] == sample.ids).float()
        votes = (same @ in_sentence) / (same.sum(-1, keepdim=True) + F.softplus(self.rare)) * there
        means = self.means * self.known
        query = means[asked] @ self.asks.T / 8**0.5
        far = query @ (means[sample.ids] @ self.tells.T).T
        own = query @ (means[asked] @ self.tells.T).transpose(1, 2)
        later = torch.ones(own.shape[1:]).triu(1).bool()
        own = own.masked_fill(later | (questions < 0)[:, None], APART)
        nowhere = (self.nowhere + self.harder[asked])[..., None]
        looks = torch.cat([far, own, nowhere], -1).softmax(-1)[..., : len(sample.ids)]
        votes = (votes + looks @ in_sentence * there).sum(1)
        refused = self.refusal.expand(len(questions), 1)
        return self.sharpness * torch.cat([refused, votes[:, 1:]], 1)


def learn(tokenizer: Tokenizer, seed: int = SEED, steps: int = STEPS, tell: Callable[[str], object] = print) -> Lexicon:
    """Learn a lexicon from the generator's documents, a few minutes.

    Args:
        seed: of the first document.
        steps: documents.
        tell: called with a line now and then.
    """
    torch.manual_seed(seed)
    chance = random.Random(seed)
    encoder = Encoder(tokenizer)
    vocabulary = tokenizer.get_vocab()
    akin = relatives(sorted(vocabulary, key=vocabulary.__getitem__))
    in_place = [[(other, how) for other, how in each.items() if how >= NEAR] for each in akin]
    samples = [sampled(encoder, seed + at, SENTENCES[at % len(SENTENCES)]) for at in range(steps)]
    count = torch.zeros(len(vocabulary))
    for each in samples:
        count[torch.unique(each.ids)] += 1
    known = (count >= SEEN) | torch.tensor([bool(each) for each in in_place])
    lexicon = Lexicon(known, akin)
    adam = torch.optim.Adam(lexicon.parameters(), lr=RATE, betas=(0.9, 0.99))
    right = torch.tensor(0.0)
    for step, sample in enumerate(samples):
        asked = [swapped(chance, ids, in_place) for ids, _ in sample.questions]
        wanted = torch.tensor([sentence for _, sentence in sample.questions])
        questions = _filled(asked)
        found = lexicon(sample, questions)
        large = lexicon.means[torch.unique(questions.clamp(min=0))].square().sum(1).mean()
        (F.cross_entropy(found, wanted) + SHRINK * large).backward()  # type: ignore[no-untyped-call]
        right.lerp_((found.argmax(-1) == wanted).float().mean(), max(0.005, 1 / (step + 1)))
        for group in adam.param_groups:
            group["lr"] = RATE * min(1.0, 2 * (1 - step / steps))
        if step % TOGETHER == TOGETHER - 1:
            adam.step()
            adam.zero_grad(set_to_none=True)
        if step % 1000 == 999:
            tell(f"lexicon: {step + 1} documents, {float(right):.3f} of the answers found")
    return lexicon


def sampled(encoder: Encoder, seed: int, sentences: int) -> Sample:
    """The document of a seed, and those of its questions whose answers are found in it."""
    made = example(seed, sentences, 24)
    ids = encoder.document(made.text)
    number, head = encoder.sentences(ids), encoder.prompt
    questions = []
    for each in made.questions:
        asked = encoder.question(each.text)
        asked = asked[len(head) if asked[: len(head)] == head else 0 : -1]
        at = 0 if each.refused else encoder.place(ids, encoder.answer(each.answer))
        if at is not None:
            questions.append((asked, 0 if each.refused else int(number[at])))
    return Sample(torch.tensor(ids), number, questions)


def swapped(chance: random.Random, ids: Iterable[int], akin: Sequence[list[tuple[int, float]]]) -> list[int]:
    """A question, some of its words replaced by relatives, the nearer the more often."""
    found = []
    for each in ids:
        if akin[each] and chance.random() < SWAPPED:
            others, how = zip(*akin[each], strict=True)
            each = chance.choices(others, how)[0]
        found.append(each)
    return found


def _filled(rows: Sequence[list[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [-1] * (longest - len(row)) for row in rows])
