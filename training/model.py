"""The embedded Mistral while it is trained: the maths and the names of transformers' MistralForCausalLM.

The difference is how it is fed. A document is encoded once, and each of many questions about it sees the document and
itself, but no other question: what the daemon does with its cache, for many questions at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOOKS = 2  # the layer whose heads find the words of a question in the document, see `initialise`
CHOOSES = 4  # the layer whose first head finds the sentence that was found most


@dataclass(frozen=True)
class Shape:
    """The size of the model; each head has its own keys and values, input and output embeddings are one matrix."""

    vocabulary: int = 7168
    hidden: int = 352
    layers: int = 7
    heads: int = 3
    head: int = 96
    inner: int = 192
    theta: float = 1e20  # 78 of the 96 dimensions of a head turn so slowly that they are free of position
    epsilon: float = 1e-5
    context: int = 4096


@dataclass(frozen=True)
class Rotations:
    """Cosines and sines of rotary positions, [..., n, 1, head]: the 1 is for the heads."""

    cosines: Tensor
    sines: Tensor

    @classmethod
    def of(cls, positions: Tensor, shape: Shape) -> Rotations:
        """The rotations of positions [..., n]."""
        halves = torch.arange(0, shape.head, 2, dtype=torch.float32, device=positions.device) / shape.head
        angles = positions[..., None].float() * shape.theta**-halves
        angles = torch.cat([angles, angles], -1)[..., None, :]
        return cls(angles.cos(), angles.sin())

    def turn(self, x: Tensor) -> Tensor:
        """Rotate x [..., n, heads, head]."""
        first, second = x.chunk(2, -1)
        return x * self.cosines.to(x.dtype) + torch.cat([-second, first], -1) * self.sines.to(x.dtype)


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a batch are: B documents of T tokens, then for each K rows of L tokens with questions.

    Attributes:
        sizes: B, T, K, L.
        documents, asked: the rotations of both.
        ended: [B, 1, 1, T], much below 0 where a document has ended and is only padded.
        apart: [B, 1, K, L, L], much below 0 where a key is of another question than its query, or comes later.
        sentences: [B, T, S], whether a token is in a sentence; None: nobody wants to know who looks at which.
    """

    sizes: tuple[int, int, int, int]
    documents: Rotations
    asked: Rotations
    ended: Tensor
    apart: Tensor
    sentences: Tensor | None = None


class Norm(nn.Module):
    """RMS norm, computed in float32."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape.hidden))
        self.epsilon = shape.epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [..., hidden]; in the type of autocast, if that is on, so that it is cast once and not thrice."""
        normed = F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.epsilon)
        kind = x.device.type
        return normed.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else normed


class Attention(nn.Module):
    """Documents attend to themselves; questions to their document and to themselves."""

    votes: Tensor | None = None  # of the last pass, see `TrainingModel.votes`

    def __init__(self, shape: Shape, last: bool, looks: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.last = last
        self.looks = looks
        wide = shape.heads * shape.head
        self.q_proj = nn.Linear(shape.hidden, wide, bias=False)
        self.k_proj = nn.Linear(shape.hidden, wide, bias=False)
        self.v_proj = nn.Linear(shape.hidden, wide, bias=False)
        self.o_proj = nn.Linear(wide, shape.hidden, bias=False)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Attend: [tokens, hidden] to the same, or to the questions' tokens alone in the last layer."""
        documents, tokens, questions, length = layout.sizes
        ahead = documents * tokens
        heads = (self.shape.heads, self.shape.head)
        if self.last:
            queries, (keys, values) = self.q_proj(x[ahead:]), _at_once(x, self.k_proj, self.v_proj)
        else:
            queries, keys, values = _at_once(x, self.q_proj, self.k_proj, self.v_proj)
        # 1. Documents: causal. What is padded comes last, and nobody sees it.
        key = layout.documents.turn(keys[:ahead].view(documents, tokens, *heads)).transpose(1, 2)
        value = values[:ahead].view(documents, tokens, *heads).transpose(1, 2)
        found = []
        if not self.last:
            query = layout.documents.turn(queries[:ahead].view(documents, tokens, *heads)).transpose(1, 2)
            seen = F.scaled_dot_product_attention(query, key, value.to(query.dtype), is_causal=True)
            found.append(seen.transpose(1, 2).reshape(ahead, -1))
            queries = queries[ahead:]
        # 2. Questions: one softmax over the document's keys [B, h, K·L, T] and their own [B, h, K, L, L].
        asked = (documents, questions, length, *heads)
        query = layout.asked.turn(queries.view(asked)).permute(0, 3, 1, 2, 4) * self.shape.head**-0.5
        own_key = layout.asked.turn(keys[ahead:].view(asked)).permute(0, 3, 1, 2, 4)
        own_value = values[ahead:].view(asked).permute(0, 3, 1, 2, 4)
        far = query.flatten(2, 3) @ key.transpose(2, 3) + layout.ended.to(query.dtype)
        near = query @ own_key.transpose(3, 4) + layout.apart.to(query.dtype)
        with torch.autocast(x.device.type, enabled=False):  # which would make float32 of it, the largest of all tensors
            weights = torch.cat([far.view(*near.shape[:-1], tokens), near], -1).softmax(-1).to(value.dtype)
        far, near = torch.split(weights, [tokens, length], -1)  # not two slices, whose gradients would be added up
        if self.looks and layout.sentences is not None:
            votes = far.flatten(2, 3) @ layout.sentences.to(far.dtype)[:, None]
            chosen = votes[:, : self.looks].float().sum(1)
            self.votes = chosen.view(documents, questions, length, -1)
        seen = (far.flatten(2, 3) @ value).view(own_value.shape) + near @ own_value
        found.append(seen.permute(0, 2, 3, 1, 4).reshape(documents * questions * length, -1))
        mixed: Tensor = self.o_proj(torch.cat(found))
        return mixed


def _at_once(x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """Several layers' outputs for x [n, in], by one product."""
    made = F.linear(x, torch.cat([each.weight for each in layers]))
    return torch.split(made, [each.out_features for each in layers], -1)


class Feed(nn.Module):
    """The gated feed-forward part of a layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.down_proj = nn.Linear(shape.inner, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] to the same."""
        gate, up = _at_once(x, self.gate_proj, self.up_proj)
        made: Tensor = self.down_proj(F.silu(gate) * up)
        return made


class Layer(nn.Module):
    """One decoder layer. In the last, only the questions go on: of the documents their keys and values are enough."""

    def __init__(self, shape: Shape, last: bool, looks: int = 0) -> None:
        super().__init__()
        self.self_attn = Attention(shape, last, looks)
        self.mlp = Feed(shape)
        self.input_layernorm = Norm(shape)
        self.post_attention_layernorm = Norm(shape)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """[tokens, hidden] to the same, or to the questions' tokens alone in the last layer."""
        attended = self.self_attn(self.input_layernorm(x), layout)
        x = x[len(x) - len(attended) :] + attended
        fed: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return fed


class TrainingModel(nn.Module):
    """The embedded model; its parameters are named as transformers names them, less the leading ``model.``."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(
            Layer(shape, at == shape.layers - 1, {LOOKS: shape.heads, CHOOSES: 1}.get(at, 0))
            for at in range(shape.layers)
        )
        self.norm = Norm(shape)

    def forward(
        self,
        documents: Tensor,
        lengths: Tensor,
        asked: Tensor,
        places: Tensor,
        wanted: Tensor | None = None,
        sentences: Tensor | None = None,
    ) -> Tensor:
        """The logits of what comes next.

        Args:
            documents: [B, T] ids, padded on the right.
            lengths: [B], of the documents before they were padded.
            asked: [B, K, L] ids: rows of questions, each with what is known of its answer, one behind the other.
            places: [B, K, L], counted from the start of each question; a 0 is where another one starts.
            wanted: [n] places in the flattened ``asked``; None: all.
            sentences: [B, T, S], whether a token is in a sentence; `votes` then knows which were looked at.

        Returns:
            [n, vocabulary], or [B · K · L, vocabulary].
        """
        tokens, length = documents.shape[1], asked.shape[2]
        at = torch.arange(tokens, device=documents.device)
        on = torch.arange(length, device=documents.device)
        owner = (places == 0).cumsum(-1)
        layout = Layout(
            (*documents.shape, *asked.shape[1:]),
            Rotations.of(at[None], self.shape),
            Rotations.of(lengths[:, None, None] + places, self.shape),
            _barred(at >= lengths[:, None])[:, None, None],
            _barred((owner[..., None] != owner[..., None, :]) | (on > on[:, None]))[:, None],
            sentences,
        )
        x = self.embed_tokens(torch.cat([documents.flatten(), asked.flatten()]))
        for layer in self.layers:
            x = layer(x, layout)
        if wanted is not None:
            x = x[wanted]
        return F.linear(self.norm(x), self.embed_tokens.weight)

    @property
    def votes(self) -> Tensor:
        """How much each token of the last pass's questions looked at each sentence, all heads added, [B, K, L, S]."""
        return self._looked(LOOKS)

    @property
    def choices(self) -> Tensor:
        """How much each token of the last pass's questions chose each sentence, [B, K, L, S]; 0: none."""
        return self._looked(CHOOSES)

    def _looked(self, at: int) -> Tensor:
        layer = self.layers[at]
        assert isinstance(layer, Layer)
        votes = layer.self_attn.votes
        assert votes is not None
        return votes


def _barred(where: Tensor) -> Tensor:
    """Zeros, and a number that no softmax lets through where ``where`` is true; -inf would give nan for padded rows."""
    return torch.zeros(where.shape, device=where.device).masked_fill(where, -1e4)
