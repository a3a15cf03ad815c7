"""The head that looks by what words mean: how it is written into a model, and what training must leave as it is.

It stands in layer 2, and compares 32 dimensions of the hidden state that hold what each piece means. Its signal is weak
beside the noise of a run: Muon moves each matrix as far as any other, however small its gradient is. Two runs wrote so
much into those 32 dimensions that every word looked at the first one of the document, and no gradient was left to
bring the head back. So its queries and keys, the meanings, and whatever would write over them are no longer trained.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.batch import id_of
from training.lexicon import SIZE, Lexicon
from training.model import LOOKS, Layer, Shape, TrainingModel
from training.wiring import Levels

MORE = 32  # dimensions: what a piece means, whether it is the first, how hard it is to find something for it
HEAD = 2  # of the layer that looks: where it stands
WORDS = 0  # the head beside it, that fetches sentences' names for the same words
NOWHERE = 4.0  # to what part "how hard" is kept smaller, and the first token larger


def has_meanings(shape: Shape) -> bool:
    """Whether a model of this shape has the head."""
    return shape.hidden >= 320 + MORE


def kept(model: TrainingModel) -> list[tuple[Tensor, tuple[slice, ...]]]:
    """The parts of a model's parameters that training leaves as they are; none without the head."""
    if not has_meanings(model.shape):
        return []
    meanings, rows = slice(model.shape.hidden - MORE, None), _rows(model, HEAD)
    attention = _layer(model, LOOKS).self_attn
    found: list[tuple[Tensor, tuple[slice, ...]]] = [
        (model.embed_tokens.weight, (slice(None), meanings)),
        (attention.q_proj.weight, (rows,)),
        (attention.k_proj.weight, (rows,)),
        (_layer(model, LOOKS).input_layernorm.weight, (meanings,)),
    ]
    for at in range(LOOKS):
        layer = _layer(model, at)
        found += [(layer.self_attn.o_proj.weight, (meanings,)), (layer.mlp.down_proj.weight, (meanings,))]
    return found


@torch.no_grad()
def write_meanings(model: TrainingModel, tokenizer: Tokenizer, lexicon: Lexicon) -> None:
    """Put what pieces mean into the last dimensions of their embeddings, and keep those clear up to the head."""
    width = model.shape.hidden - MORE
    weight = model.embed_tokens.weight
    weight[:, width : width + SIZE] = lexicon.means * lexicon.known
    weight[:, width + SIZE] = 0
    weight[id_of(tokenizer, "<s>"), width + SIZE] = NOWHERE
    weight[:, width + SIZE + 1] = (lexicon.harder + lexicon.nowhere) / NOWHERE
    for at in range(LOOKS):
        layer = _layer(model, at)
        layer.self_attn.o_proj.weight[width:] = 0
        layer.mlp.down_proj.weight[width:] = 0


@torch.no_grad()
def write_head(model: TrainingModel, lexicon: Lexicon, level: Levels) -> None:
    """Write where the head looks, and what it fetches from there.

    Args:
        model: whose embeddings hold the meanings.
        lexicon: how they are compared.
        level: of what goes into the norm of the head's layer.
    """
    layer, width = _layer(model, LOOKS), model.shape.hidden - MORE
    size, rows = model.shape.head, _rows(model, HEAD)
    query, key, value = (getattr(layer.self_attn, f"{name}_proj").weight[rows] for name in "qkv")
    out = layer.self_attn.o_proj.weight[:, rows]
    for each in (query, key, value, out):
        each.zero_()
    # In the pairs of dimensions that turn slowest, for meaning has no place; attention divides by 8, `lexicon` by √8.
    half = size // 2
    slow = [half * side + at for side in (1, 0) for at in range(half - 1, half - 1 - MORE // 2, -1)]
    near = (size / 8) ** 0.25  # attention divides by √head, `lexicon` by √8
    scale = near / layer.input_layernorm.weight[width:]
    left, strength, right = torch.linalg.svd(lexicon.asks.T @ lexicon.tells)
    query[slow[:SIZE], width : width + SIZE] = (left * strength.sqrt()).T * scale[:SIZE] * level.questions
    key[slow[:SIZE], width : width + SIZE] = (right.T * strength.sqrt()).T * scale[:SIZE] * level.documents
    query[slow[SIZE], width + SIZE + 1] = scale[SIZE + 1] * level.questions
    key[slow[SIZE], width + SIZE] = scale[SIZE] * level.first
    # Names, as the head beside it fetches them.
    beside = _rows(model, WORDS)
    value[:] = layer.self_attn.v_proj.weight[beside]
    out[:] = layer.self_attn.o_proj.weight[:, beside]


def _layer(model: TrainingModel, at: int) -> Layer:
    layer = model.layers[at]
    assert isinstance(layer, Layer)
    return layer


def _rows(model: TrainingModel, head: int) -> slice:
    return slice(model.shape.head * head, model.shape.head * (head + 1))
