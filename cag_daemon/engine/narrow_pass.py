"""A pass of few rows by machine code: what it is called with, layer by layer, and the room that it needs.

For which models it is, and whether it is right here, is `narrow`'s to say.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from cag_daemon.engine.kv_cache import GRID, InPlaceCache, InPlaceLayer
from cag_daemon.engine.layer_call import MATRICES, PLAIN, WEIGHTS, Call, Weights
from cag_daemon.engine.linear import PackedLinear
from cag_daemon.engine.passes import NARROW, ShouldStop
from cag_daemon.engine.quantize import QuantizedLinear
from cag_daemon.errors import Stopped

if TYPE_CHECKING:
    from cag_daemon.engine.compiling import Compiled, Threads

MISTRAL = "transformers.models.mistral.modeling_mistral"
MINISTRAL_3 = "transformers.models.ministral3.modeling_ministral3"
NORMS = ("input_layernorm", "post_attention_layernorm")
OF_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
OF_NETWORK = ("gate_proj", "up_proj", "down_proj")
VERSION = 2  # of what is computed: other code may agree with itself at other widths
AHEAD = 2048  # tokens that there is room for beyond those there are, so that it is not made anew for each span


class Unknown(Exception):
    """A model, a processor or a torch that the narrow pass is not for."""


class NarrowPass:
    """The passes of few rows through one model, by one thread at a time: what they compute in is theirs together.

    Raises:
        Unknown: its weights do not lie in blocks, or are of several kinds.
        ImportError, OSError, AttributeError, RuntimeError: there is no compiler here, or no threads.
    """

    def __init__(self, model: Any) -> None:
        from cag_daemon.engine.few_rows import MOST_ROWS
        from cag_daemon.engine.layer_code import COUNTERS, own_bytes, parts_bytes
        from cag_daemon.engine.machine_code import LINE
        from cag_daemon.engine.tiles import has_tiles

        decoder, config = model.get_decoder(), model.config.get_text_config(decoder=True)
        attention = decoder.layers[0].self_attn
        self.most_rows = MOST_ROWS
        head, first = model.lm_head, attention.q_proj
        self._head = _where(head) if isinstance(head, PackedLinear | QuantizedLinear) else None
        self._kinds = getattr(first, "kind", PLAIN), getattr(head, "kind", PLAIN) if self._head else PLAIN
        self._compiled, self._threads = _machine(*self._kinds, tiles=has_tiles())
        self._by = "tiles" if has_tiles() else "vectors"
        self._code = self._compiled.address("layer")
        self._head_size = attention.head_dim
        self._heads, self._shared = config.num_attention_heads, config.num_key_value_heads
        self._hidden = torch.zeros(MOST_ROWS, config.hidden_size, dtype=torch.bfloat16)
        self._queries = torch.zeros(MOST_ROWS * self._heads * self._head_size, dtype=torch.bfloat16)
        self._middle = torch.zeros(MOST_ROWS, config.intermediate_size, dtype=torch.bfloat16)
        self._counters = (ctypes.c_int64 * (COUNTERS * LINE // 8))()
        self._attended = torch.zeros_like(self._queries)
        self._own_bytes = own_bytes(config.hidden_size, self._head_size, self._heads // self._shared)
        self._parts_bytes = functools.partial(parts_bytes, heads=self._heads, head_size=self._head_size)
        self._own = self._parts = torch.zeros(0, dtype=torch.uint8)
        # Each layer's, by its module: others may stand in the decoder for a while.
        self._weights: dict[int, ctypes.Array[ctypes.c_int64]] = {}
        for layer in decoder.layers:
            norms = [getattr(layer, name).weight.data_ptr() for name in NORMS]
            matrices = [getattr(layer.self_attn, name) for name in OF_ATTENTION]
            matrices += [getattr(layer.mlp, name) for name in OF_NETWORK]
            if any(getattr(each, "kind", PLAIN) != self._kinds[0] for each in matrices):
                raise Unknown("its weights are not all of one kind.")
            self._weights[id(layer)] = listed = (ctypes.c_int64 * WEIGHTS)()
            for at, (weight, scales) in enumerate(map(_blocks, matrices)):
                listed[at], listed[MATRICES + at] = weight, scales
            listed[Weights.INPUT_NORM], listed[Weights.NORM] = norms
        self._call = call = (ctypes.c_int64 * len(Call))()
        call[Call.COUNTERS] = ctypes.addressof(self._counters)
        call[Call.HIDDEN], call[Call.HIDDEN_SIZE] = self._hidden.data_ptr(), config.hidden_size
        call[Call.MIDDLE], call[Call.INTERMEDIATE_SIZE] = self._middle.data_ptr(), config.intermediate_size
        call[Call.HEAD_SIZE], call[Call.HEADS], call[Call.SHARED_HEADS] = self._head_size, self._heads, self._shared
        (call[Call.EPSILON],) = struct.unpack("i", struct.pack("f", decoder.norm.variance_epsilon))
        call[Call.OWN_BYTES] = self._own_bytes
        call[Call.QUERIES], call[Call.ATTENDED] = self._queries.data_ptr(), self._attended.data_ptr()
        call[Call.NORM] = decoder.norm.weight.data_ptr()
        self._scales = _scales(decoder, config)
        self._kind = (1, self._shared, self._head_size, torch.bfloat16)
        self._kept = [*decoder.layers, decoder.norm]  # whose addresses these are
        quantized = [each for each in model.modules() if isinstance(each, QuantizedLinear)]
        self._held = [(each, each.weight, each.scales) for each in quantized]  # which could be moved

    @property
    def kind(self) -> str:
        """What of this decides which widths agree."""
        return f"{NARROW} {VERSION} {self.most_rows} {self._by} {self._compiled.by} {' '.join(self._kinds)}"

    def takes(self, module: Any, input_ids: torch.Tensor, cache: Any) -> bool:
        """Whether such a pass may be a narrow one; what is not in its place is for the plain pass to refuse."""
        return (
            isinstance(cache, InPlaceCache)
            and input_ids.shape[0] == 1
            and input_ids.shape[1] <= self.most_rows
            and len(cache.layers) == len(module.get_decoder().layers)
            and all(each.holds(weight, scales) for each, weight, scales in self._held)
            and all(map(self._fits, cache.layers))
        )

    def _fits(self, cached: Any) -> bool:
        if not isinstance(cached, InPlaceLayer) or cached.grid != GRID:
            return False
        keys, values = cached.key_buffer, cached.value_buffer
        if keys is None or values is None:
            return keys is values
        # Values lie as keys do, unless there was no memory for them.
        kind = (keys.shape[0], keys.shape[1], keys.shape[3], keys.dtype)
        return kind == self._kind and keys.shape == values.shape and values.dtype == keys.dtype

    def __call__(
        self,
        module: Any,
        input_ids: torch.Tensor,
        cache: InPlaceCache,
        should_stop: ShouldStop | None,
        logits_to_keep: int = 0,
        wanted_rows: int | None = None,
    ) -> SimpleNamespace:
        """Pass some ids [1, n] through a model or its decoder, as `passes.forward` does.

        Args:
            logits_to_keep: of the last so many rows logits are made; 0: of all.
            wanted_rows: how many of the rows, the first ones, are wanted: only they are computed.

        Returns:
            With ``logits`` [1, rows, vocabulary] of those of the kept rows that are wanted; None of a decoder.

        Raises:
            Stopped: ``should_stop`` said so, which is asked before every layer.
        """
        call = self._call
        decoder, width = module.get_decoder(), input_ids.shape[1]
        rows, start = wanted_rows or width, cache.get_seq_length()
        self._hidden[:rows] = decoder.embed_tokens(input_ids[0, :rows])
        positions = torch.arange(start, start + rows)[None]
        turns = [each.contiguous() for each in decoder.rotary_emb(self._hidden[None, :rows], positions)]
        scales = self._scales(positions)
        self._room(start + width)
        call[Call.ROWS], call[Call.START], call[Call.SCALES] = rows, start, scales.data_ptr()
        call[Call.COSINES], call[Call.SINES] = turns[0].data_ptr(), turns[1].data_ptr()
        call[Call.OUTPUT], call[Call.NETWORK] = 0, 1
        for number, (layer, cached) in enumerate(zip(decoder.layers, cache.layers, strict=False), 1):
            if should_stop is not None and should_stop():
                raise Stopped
            if cached.key_buffer is None:
                empty = self._hidden.new_empty(1, self._shared, 0, self._head_size)
                cached.lazy_initialization(empty, empty)
            keys, values = cached.claim(width)
            call[Call.KEYS], call[Call.VALUES] = keys.data_ptr(), values.data_ptr()
            call[Call.HEAD_BYTES] = keys.stride(1) * keys.itemsize
            call[Call.WEIGHTS] = ctypes.addressof(self._weights[id(layer)])
            if module is decoder and number == len(decoder.layers):
                call[Call.NETWORK] = 0  # nobody wants what the last layer puts out
            self._run()
        call[Call.WEIGHTS] = 0
        logits = None if module is decoder else self._logits(module, rows, width, logits_to_keep or width)
        return SimpleNamespace(logits=logits)

    def _logits(self, model: Any, rows: int, width: int, kept: int) -> torch.Tensor:
        call, first = self._call, max(0, width - kept)
        # Tied to the embeddings, or not in whole blocks, it is a plain one: its bits depend on how many rows it gets.
        if self._head is None:
            normed = model.get_decoder().norm(self._hidden[None, first:width])
            return torch.as_tensor(model.lm_head(normed)[:, : max(0, rows - first)])
        call[Call.OUTPUT], call[Call.OUTPUT_SCALES] = self._head
        blocks = -(-model.lm_head.out_features // 64)
        logits = self._hidden.new_empty(1, max(0, rows - first), blocks * 64)
        if not logits.numel():
            return logits[:, :, : model.lm_head.out_features]
        call[Call.OUTPUT_BLOCKS], call[Call.LOGITS], call[Call.FIRST_LOGITS] = blocks, logits.data_ptr(), first
        self._run()
        return logits[:, :, : model.lm_head.out_features]

    def _room(self, tokens: int) -> None:
        """Room for what each thread and each span of the cache needs; none is ever given back."""
        threads, parts = torch.get_num_threads() * self._own_bytes, self._parts_bytes(tokens)
        if self._own.numel() < threads:
            self._own = torch.zeros(threads, dtype=torch.uint8)
            self._call[Call.OWN] = self._own.data_ptr()
        if self._parts.numel() < parts:
            self._parts = torch.empty(self._parts_bytes(tokens + AHEAD), dtype=torch.uint8)
            self._call[Call.PARTS] = self._parts.data_ptr()

    def _run(self) -> None:
        ctypes.memset(self._counters, 0, ctypes.sizeof(self._counters))
        self._threads.run(self._code, ctypes.addressof(self._call))


@functools.cache
def _machine(layers: str = PLAIN, head: str = PLAIN, *, tiles: bool = False) -> tuple[Compiled, Threads]:
    """The code for weights of such kinds, made once for all models, and who runs it."""
    from cag_daemon.engine.compiling import NEEDED, Compiled, Threads, features, multiplies_pairs
    from cag_daemon.engine.layer_code import layer_module

    if not features() >= NEEDED:
        raise Unknown("this processor has no AVX-512.")
    return Compiled(layer_module(dot=multiplies_pairs(), tiles=tiles, layers=layers, head=head)), Threads()


def _blocks(linear: Any) -> tuple[int, int]:
    """Where a layer's weights and their scales are.

    Raises:
        Unknown: they do not lie in blocks.
    """
    found = _where(linear)
    if found is None:
        raise Unknown("its weights are not packed, or not in blocks of 64 outputs.")
    return found


def _where(linear: Any) -> tuple[int, int] | None:
    if isinstance(linear, QuantizedLinear):
        return linear.blocks_at
    found = linear.blocks_at if isinstance(linear, PackedLinear) else None
    return None if found is None else (found, 0)


def _scales(decoder: Any, config: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """What makes the factors of scores of positions [1, rows]: Ministral 3 has others behind its first context."""
    scaling = decoder.layers[0].self_attn.scaling
    if type(decoder).__module__ == MISTRAL:
        return lambda positions: torch.full(positions.shape, scaling)
    from transformers.models.ministral3.modeling_ministral3 import get_llama_4_attn_scale

    rope = config.rope_parameters
    beta, original = rope.get("llama_4_scaling_beta"), rope.get("original_max_position_embeddings")
    return lambda positions: scaling * get_llama_4_attn_scale(positions, beta, original).bfloat16().float()
