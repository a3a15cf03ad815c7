"""``python -m training.grow``: give a trained model whole words and what they mean, and leave all else as it is.

The tokenizer gets some thousand whole words; the hidden state gets 32 dimensions more, for what each piece means; and
the third head of layer 2, which a trained model hardly misses, looks by them for words that answer to a question's
words, and fetches the names of their sentences, as the heads beside it do for the same words. What means what is
learned beforehand, see `lexicon`. The model then has to be trained on.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.batch import Encoder, Size, id_of, make_batch
from training.export import export, load
from training.initialise import CODE
from training.lexicon import SIZE, Lexicon, learn
from training.model import Layer, TrainingModel
from training.tokenizer import renewed, with_words

MORE = 32  # dimensions: what a piece means, whether it is the first, how hard it is to find something for it
LAYER, HEAD = 2, 2  # what the new head takes the place of
WORDS = (0, 1)  # the heads beside it, that fetch sentences' names for the same words
VOTES = 0.1  # how strong its votes are beside theirs at the start; with 1 answers fell apart
SEED = 4  # of new codes. Not the one that the first codes were drawn with: they would be the same ones
NOWHERE = 4.0  # to what part "how hard" is kept smaller, and the first token larger
MATRICES = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")  # that read the hidden state
NORMS = ("input_layernorm", "post_attention_layernorm")


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
    weight[:, width : width + SIZE] = lexicon.means * lexicon.known
    weight[id_of(tokenizer, "<s>"), width + SIZE] = NOWHERE
    weight[:, width + SIZE + 1] = (lexicon.harder + lexicon.nowhere) / NOWHERE
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
    _look(new, old, lexicon, math.sqrt((levels[LAYER][0] ** 2 * width + more) / (width + MORE)))
    return new


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


def _look(new: TrainingModel, old: TrainingModel, lexicon: Lexicon, level: float) -> None:
    """Write the new head: where it looks, and what it fetches from there."""
    layer, before = new.layers[LAYER], old.layers[LAYER]
    assert isinstance(layer, Layer)
    assert isinstance(before, Layer)
    width, size = old.shape.hidden, old.shape.head
    rows = slice(size * HEAD, size * HEAD + size)
    query, key, value = (getattr(layer.self_attn, f"{name}_proj").weight[rows] for name in "qkv")
    out = layer.self_attn.o_proj.weight[:, rows]
    for each in (query, key, value, out):
        each.zero_()
    # In the pairs of dimensions that turn slowest, for meaning has no place; attention divides by 8, `lexicon` by √8.
    half = size // 2
    slow = [half * side + at for side in (1, 0) for at in range(half - 1, half - 1 - MORE // 2, -1)]
    scale = level * 8**0.25 / layer.input_layernorm.weight[width:]
    left, strength, right = torch.linalg.svd(lexicon.asks.T @ lexicon.tells)
    query[slow[:SIZE], width : width + SIZE] = (left * strength.sqrt()).T * scale[:SIZE]
    key[slow[:SIZE], width : width + SIZE] = (right.T * strength.sqrt()).T * scale[:SIZE]
    query[slow[SIZE], width + SIZE + 1] = 8**0.25 * scale[SIZE + 1]
    key[slow[SIZE], width + SIZE] = 8**0.25 * scale[SIZE]
    # Names: what the heads beside it fetch together, as well as one head can.
    fetched = torch.zeros(width, width)
    for head in WORDS:
        of = slice(size * head, size * head + size)
        fetched += before.self_attn.o_proj.weight[:, of] @ before.self_attn.v_proj.weight[of]
    left, strength, right = torch.linalg.svd(fetched)
    root = strength[:size].sqrt()
    value[:, :width] = right[:size] * root[:, None]
    out[:width] = left[:, :size] * root * VOTES


@torch.no_grad()
def levels_of(model: TrainingModel, tokenizer: Tokenizer) -> list[tuple[float, ...]]:
    """The root mean square of what goes into the norms of each layer, and into the last one."""
    found: dict[int, float] = {}

    def see(norm: torch.nn.Module, inputs: tuple[Tensor]) -> None:
        found[id(norm)] = float(inputs[0].float().square().mean(-1).sqrt().mean())

    listed = [[getattr(layer, name) for name in NORMS] for layer in model.layers] + [[model.norm]]
    hooks = [norm.register_forward_pre_hook(see) for norms in listed for norm in norms]
    # Whatever the tokenizer is: pieces that the model does not have are left out.
    batch = make_batch(Encoder(tokenizer), 4711, Size(2, 30, 12))
    documents, lengths, asked, places, wanted = batch.inputs
    most = model.shape.vocabulary - 1
    model(documents.clamp(max=most), lengths, asked.clamp(max=most), places, wanted)
    for hook in hooks:
        hook.remove()
    return [tuple(found[id(norm)] for norm in norms) for norms in listed]


def main() -> None:
    """Read the command line and grow."""
    reader = argparse.ArgumentParser("python -m training.grow", description=__doc__)
    reader.add_argument("start", type=Path, help="the model folder")
    reader.add_argument("--out", type=Path, required=True, help="where the larger one is put")
    options = reader.parse_args()
    model, tokenizer = load(options.start)
    larger = with_words(renewed(tokenizer))
    export(grow(model, larger, learn(larger)), larger, options.out)


if __name__ == "__main__":
    main()
