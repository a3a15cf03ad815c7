"""Documents and questions as the tensors of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from training.data.document import REFUSED, Example, example
from training.easier import easier
from training.tokenizer import START

PAD, END = "<pad>", "</s>"
IGNORED = -100
ROW = 160  # tokens of questions in a row, about
VOTE = 1.5  # how much likelier a sentence is for each vote
CHOSEN_AGAIN = 6  # tokens of an answer: before each of them its sentence is chosen anew


@dataclass(frozen=True)
class Size:
    """How much a step has.

    Attributes:
        documents: how many.
        sentences, questions: of each.
        refused: what part of the questions has no answer.
        hard: what part is kept of those that have one, but not where a plain lookup finds it.
    """

    documents: int
    sentences: int
    questions: int
    refused: float = REFUSED
    hard: float = 1.0


@dataclass(frozen=True)
class Batch:
    """What the model is given, and what it should say.

    Attributes:
        documents, lengths, asked, places: see `TrainingModel.forward`.
        wanted: [n] places in the flattened ``asked`` where a token of an answer comes next.
        targets: [n] those tokens; `IGNORED` where padded.
        answers: [n] which answer each belongs to; ``count`` for padding.
        count: how many answers there are.
        refused: [count] whether the answer is that the document does not say.
        sentences: [B, T, S], whether a token is in a sentence; the first is what stands before all.
        askers: [m] places in the flattened ``asked`` of the tokens of questions whose answers are sentences, …
        asking: [m] which of those questions each belongs to, …
        found: [questions] and in which sentence its answer is.
        choosers: [k] places in the flattened ``asked`` where an answer begins that is a sentence or the refusal, and of
            its first few tokens, …
        chosen: [k] and which sentence it is; 0 for the refusal.
    """

    documents: Tensor
    lengths: Tensor
    asked: Tensor
    places: Tensor
    wanted: Tensor
    targets: Tensor
    answers: Tensor
    count: int
    refused: Tensor
    sentences: Tensor
    askers: Tensor
    asking: Tensor
    found: Tensor
    choosers: Tensor
    chosen: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved: dict[str, Any] = {name: value.to(device, non_blocking=True) for name, value in tensors.items()}
        return replace(self, **moved)

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What the model is called with."""
        return self.documents, self.lengths, self.asked, self.places, self.wanted, self.sentences

    @property
    def tokens(self) -> int:
        """All of them, padding too."""
        return self.documents.numel() + self.asked.numel()


class Encoder:
    """Texts to ids as the daemon's own template makes them: prefix, suffix, answer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.pad, self.end, self.start = (id_of(tokenizer, each) for each in (PAD, END, START))
        self.prompt = self.question("Question:")[:-1]  # what stands before the first word of a question …
        self.selected = self.question("Selected text:")[:-1]  # … and of a selection

    def document(self, text: str) -> list[int]:
        """The prefix."""
        return self._ids(f"<s>[INST] {text}\n\n")

    def question(self, text: str) -> list[int]:
        """The suffix; ``text`` has "Question: " in it, and a selection before that if there is one."""
        return self._ids(f"{text} [/INST]")

    def before(self, question: Sequence[int]) -> int:
        """How many tokens of a suffix come before the first that asks: a selection asks, too."""
        return next(len(each) for each in (self.prompt, self.selected) if list(question[: len(each)]) == each)

    def answer(self, text: str) -> list[int]:
        """The answer and the end; the mark that a sentence starts is left out, as ``[/INST]`` stands for it."""
        return [*self._ids(f" {text}")[1:], self.end]

    def sentences(self, document: Sequence[int]) -> Tensor:
        """Which sentence each token of a document is in, [tokens], from 1 on; 0 is before the first."""
        return torch.tensor(document).eq(self.start).cumsum(0)

    def place(self, document: Sequence[int], answer: Sequence[int]) -> int | None:
        """Where in a document an answer begins; None: it isn't there. Of several sentences the first is looked for."""
        wanted = list(takewhile(lambda each: each not in (self.start, self.end), answer))
        many = len(wanted)
        starts = (at for at in range(len(document) - many + 1) if many and document[at] == wanted[0])
        return next((at for at in starts if document[at : at + many] == wanted), None)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


def id_of(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that there must be.

    Raises:
        ValueError: there is none.
    """
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"The tokenizer has no token {token}.")
    return found


def make_batch(encoder: Encoder, seed: int, size: Size, *, held_out: bool = False) -> Batch:
    """The batch of a seed: always the same."""
    examples = [
        easier(example(seed * 1000 + at, size.sentences, size.questions, held_out, size.refused), size.hard, seed)
        for at in range(size.documents)
    ]
    return collate(encoder, examples)


def collate(encoder: Encoder, examples: Sequence[Example]) -> Batch:
    """Pad and stack. Lengths are rounded up, so that few shapes of memory are asked for."""
    documents = [encoder.document(each.text) for each in examples]
    pairs = [[(encoder.question(q.text), encoder.answer(q.answer)) for q in each.questions] for each in examples]
    known = [[question + answer[:-1] for question, answer in each] for each in pairs]
    longest = _up(max(map(len, documents)), 32)
    # Rows that are filled well by the questions of the document that has most to ask.
    total = max(sum(map(len, each)) for each in known)
    length = _up(max(total // -(-total // ROW) + 8, *(len(ids) for each in known for ids in each)), 8)
    rows = [packed([len(ids) for ids in each], length) for each in known]
    most = max(row for each in rows for row, _ in each) + 1
    asked = torch.full((len(pairs), most, length), encoder.pad)
    places = torch.zeros_like(asked)
    wanted: list[int] = []
    targets: list[int] = []
    answers: list[int] = []
    count = 0
    numbers = [encoder.sentences(ids) for ids in documents]
    askers: list[int] = []
    asking: list[int] = []
    found: list[int] = []
    choosers: list[int] = []
    chosen: list[int] = []
    for at, each in enumerate(pairs):
        no = [question.refused for question in examples[at].questions]
        for (question, answer), ids, (row, start), refused in zip(each, known[at], rows[at], no, strict=True):
            asked[at, row, start : start + len(ids)] = torch.tensor(ids)
            places[at, row, start : start + len(ids)] = torch.arange(len(ids))
            base = (at * most + row) * length + start
            wanted += range(base + len(question) - 1, base + len(ids))
            targets += answer
            answers += [count] * len(answer)
            count += 1
            place = None if refused else encoder.place(documents[at], answer)
            if refused or place is not None:
                first = base + len(question) - 1
                again = range(first, first + min(CHOSEN_AGAIN, len(answer)))
                choosers += again
                chosen += [0 if place is None else int(numbers[at][place])] * len(again)
            if place is not None:
                words = range(base + encoder.before(question), base + len(question) - 1)
                askers += words
                asking += [len(found)] * len(words)
                found.append(int(numbers[at][place]))
    missing = -len(wanted) % 64
    most_sentences = _up(1 + max(int(each[-1]) for each in numbers), 8)
    sentences = torch.zeros((len(pairs), longest, most_sentences), dtype=torch.bool)
    for at, number in enumerate(numbers):
        sentences[at, torch.arange(len(number)), number] = True
    return Batch(
        documents=torch.tensor([[*ids, *[encoder.pad] * (longest - len(ids))] for ids in documents]),
        lengths=torch.tensor([len(ids) for ids in documents]),
        asked=asked,
        places=places,
        wanted=torch.tensor(wanted + [0] * missing),
        targets=torch.tensor(targets + [IGNORED] * missing),
        answers=torch.tensor(answers + [count] * missing),
        count=count,
        refused=torch.tensor([question.refused for each in examples for question in each.questions]),
        sentences=sentences,
        askers=torch.tensor(askers, dtype=torch.long),
        asking=torch.tensor(asking, dtype=torch.long),
        found=torch.tensor(found, dtype=torch.long),
        choosers=torch.tensor(choosers, dtype=torch.long),
        chosen=torch.tensor(chosen, dtype=torch.long),
    )


def packed(lengths: Sequence[int], room: int) -> list[tuple[int, int]]:
    """Which row of so much room each piece goes to, and where in it: the longest first, each where it fits first."""
    filled: list[int] = []
    found = {}
    for at in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        row = next((row for row, used in enumerate(filled) if used + lengths[at] <= room), len(filled))
        if row == len(filled):
            filled.append(0)
        found[at] = (row, filled[row])
        filled[row] += lengths[at]
    return [found[at] for at in range(len(lengths))]


def loss_of(logits: Tensor, batch: Batch) -> Tensor:
    """The mean over tokens of answers, as a number [1]."""
    return F.cross_entropy(logits.float(), batch.targets, ignore_index=IGNORED)


def looking_loss(votes: Tensor, batch: Batch) -> Tensor:
    """How unlikely the right sentences are by what the words of the questions look at, a number [1].

    What is said of an answer's sentence by its first tokens alone tells a head little of where it should have looked.

    Args:
        votes: [B, K, L, S], see `TrainingModel.votes`.
    """
    many = votes.shape[-1]
    counted = votes.new_zeros((len(batch.found), many)).index_add(
        0, batch.asking, votes.reshape(-1, many)[batch.askers]
    )
    if not len(batch.found):
        return counted.sum()
    return F.cross_entropy(VOTE * counted[:, 1:], batch.found - 1)  # what stands before all is no sentence


def choosing_loss(choices: Tensor, batch: Batch) -> Tensor:
    """How unlikely the right sentences are by what is chosen where answers begin, a number [1].

    Each token chooses for itself, so the first few are all asked: where only the first was, the others forgot it.

    Args:
        choices: [B, K, L, S], see `TrainingModel.choices`.
    """
    if not len(batch.chosen):
        return choices.sum() * 0
    taken = choices.reshape(-1, choices.shape[-1])[batch.choosers].gather(1, batch.chosen[:, None])
    return -(taken + 1e-4).log().mean()


@torch.no_grad()
def exact(logits: Tensor, batch: Batch) -> Tensor:
    """Which answers are right to the last token, [count], given what comes before each token."""
    wrong = (logits.argmax(-1) != batch.targets) & (batch.targets != IGNORED)
    return torch.zeros(batch.count + 1, device=wrong.device).index_add_(0, batch.answers, wrong.float())[:-1] == 0


def _up(number: int, to: int) -> int:
    return -(-number // to) * to
