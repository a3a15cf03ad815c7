"""``python -m training.grow``: give a trained model whole words and what they mean, and leave all else as it is.

The tokenizer gets some thousand whole words; the hidden state gets 32 dimensions more, for what each piece means; and
the third head of layer 2, which a trained model hardly misses, looks by them for words that answer to a question's
words, and fetches the names of their sentences, as the heads beside it do for the same words (see `meaning_head`). What
means what is learned beforehand, see `lexicon`. The model then has to be trained on. A model that has grown keeps its
pieces and its size, and gets new meanings.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.export import export, load
from training.initialise import CODE
from training.lexicon import Lexicon, learn
from training.meaning_head import MORE, NORMS, has_meanings, levels_of, write_head, write_meanings
from training.model import LOOKS, Layer, TrainingModel
from training.tokenizer import renewed, with_words

SEED = 4  # of new codes. Not the one that the first codes were drawn with: they would be the same ones
MATRICES = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")  # that read the hidden state


@torch.no_grad()
def grow(old: TrainingModel, tokenizer: Tokenizer, lexicon: Lexicon, seed: int = SEED) -> TrainingModel:
    """The larger model.

    Args:
        old: the trained one.
        tokenizer: its own with more pieces behind.
        lexicon: what they mean.
        seed: of the new pieces' codes.
    """
    shape, width = old.shape, old.shape.hidden
    new = TrainingModel(replace(shape, vocabulary=tokenizer.get_vocab_size(), hidden=width + MORE))
    for each in new.parameters():
        each.zero_()
    weight = new.embed_tokens.weight
    _embed(weight, old.embed_tokens.weight, torch.Generator().manual_seed(seed))
    write_meanings(new, tokenizer, lexicon)
    more = float(weight[:, width:].square().sum(1).mean())
    levels = levels_of(old, tokenizer)
    for before, after, found in zip(old.layers, new.layers, levels[:-1], strict=True):
        assert isinstance(before, Layer)
        assert isinstance(after, Layer)
        for name in MATRICES:
            part = "mlp" if name in ("gate_proj", "up_proj") else "self_attn"
            getattr(getattr(after, part), name).weight[:, :width] = getattr(getattr(before, part), name).weight
        after.self_attn.o_proj.weight[:width] = before.self_attn.o_proj.weight
        after.mlp.down_proj.weight[:width] = before.mlp.down_proj.weight
        for name, level in zip(NORMS, found, strict=True):
            norm = getattr(before, name).weight
            getattr(after, name).weight[:width] = norm * _kept(level, width, more)
            getattr(after, name).weight[width:] = norm.mean()
    new.norm.weight[:width] = old.norm.weight * _kept(levels[-1][0], width, more)
    write_head(new, lexicon, math.sqrt((levels[LOOKS][0] ** 2 * width + more) / (width + MORE)))
    return new


@torch.no_grad()
def renew(model: TrainingModel, tokenizer: Tokenizer, lexicon: Lexicon) -> None:
    """Give a model that has grown the meanings of another lexicon, in place."""
    write_meanings(model, tokenizer, lexicon)
    write_head(model, lexicon, levels_of(model, tokenizer)[LOOKS][0])


def _embed(weight: Tensor, old: Tensor, random: torch.Generator) -> None:
    """Old pieces stay; new ones are the mean of all, but for codes of their own."""
    many, width = old.shape
    codes = torch.randn((len(weight) - many, CODE), generator=random)
    words = old[many // 8 :]  # behind bytes and letters
    codes *= words[:, 1 : 1 + CODE].norm(dim=1).mean() / codes.norm(dim=1, keepdim=True)
    weight[:many, :width] = old
    weight[many:, :width] = words.mean(0)
    weight[many:, 1 : 1 + CODE] += codes


def _kept(level: float, width: int, more: float) -> float:
    """What a norm's weights are multiplied by, so that more dimensions leave what it puts out as it was."""
    squares = level**2 * width
    return math.sqrt(width / (width + MORE) * (squares + more) / squares)


def main() -> None:
    """Read the command line and grow."""
    reader = argparse.ArgumentParser("python -m training.grow", description=__doc__)
    reader.add_argument("start", type=Path, help="the model folder; one that has grown gets new meanings")
    reader.add_argument("--out", type=Path, required=True, help="where the larger one is put")
    options = reader.parse_args()
    model, tokenizer = load(options.start)
    tokenizer = renewed(tokenizer)
    if has_meanings(model.shape):
        renew(model, tokenizer, learn(tokenizer))
    else:
        tokenizer = with_words(tokenizer)
        model = grow(model, tokenizer, learn(tokenizer))
    export(model, tokenizer, options.out)


if __name__ == "__main__":
    main()
