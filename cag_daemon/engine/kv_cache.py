"""The cache layer that writes in place.

transformers' DynamicCache concatenates the whole cache for every token; here a layer owns a buffer
[batch, kv heads, capacity, head dim], a pass writes its slice and sees a view, and forgetting tokens changes a number.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from cag_daemon.engine.attention import NAME as PACKED

GRID = 64  # capacities are multiples of this many tokens


class InPlaceLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one decoder layer, batch 1, all tokens kept: a sliding window is the model's mask's business.

    Args:
        capacity: tokens to make room for when the first ones come.
        grid: passes are given keys and values up to a multiple of so many tokens; what is beyond the length is finite,
            and the attention must mask it. 1: no more than there are.
    """

    is_croppable = True
    is_sliding = False

    def __init__(self, capacity: int = 0, grid: int = 1) -> None:
        # Not the parent's: it would set `keys` and `values`, which are views here.
        self.length = 0
        self.capacity = capacity
        self.grid = grid
        self.key_buffer: torch.Tensor | None = None
        self.value_buffer: torch.Tensor | None = None

    @property
    def is_initialized(self) -> bool:
        """Whether there are buffers."""
        return self.key_buffer is not None

    @property
    def keys(self) -> torch.Tensor | None:
        """The cached keys, rotated: a view [batch, kv heads, length, head dim]; None before the first ones came."""
        return None if self.key_buffer is None else self.key_buffer[:, :, : self.length]

    @property
    def values(self) -> torch.Tensor | None:
        """The cached values: a view [batch, kv heads, length, head dim]; None before the first ones came."""
        return None if self.value_buffer is None else self.value_buffer[:, :, : self.length]

    @property
    def bytes(self) -> int:
        """What the buffers take, used or not."""
        if self.key_buffer is None or self.value_buffer is None:
            return 0
        return self.key_buffer.nbytes + self.value_buffer.nbytes

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate the buffers, like these states in everything but the number of tokens."""
        capacity = _rounded(max(self.capacity, key_states.shape[-2]))
        self.key_buffer, self.value_buffer = _buffer(key_states, capacity), _buffer(value_states, capacity)
        self.capacity = capacity

    def reserve(self, tokens: int) -> None:
        """Make room for so many tokens in all; what is cached is copied once if the buffers must grow."""
        if tokens <= self.capacity:
            return
        capacity = _rounded(tokens)
        if self.key_buffer is not None and self.value_buffer is not None:
            # One after the other: at no time are more than three of the four buffers alive.
            self.key_buffer = _grown(self.key_buffer, capacity, self.length)
            self.value_buffer = _grown(self.value_buffer, capacity, self.length)
        self.capacity = capacity  # last: where there was no memory for it, there is no such room

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new tokens behind the cached ones.

        Args:
            key_states, value_states: [batch, kv heads, new tokens, head dim].

        Returns:
            Views of all keys and values, [batch, kv heads, length up to the grid, head dim].

        Raises:
            ValueError: other batch, heads, dtype or device than what is cached.
        """
        if self.key_buffer is None or self.value_buffer is None:
            self.lazy_initialization(key_states, value_states)
        assert self.key_buffer is not None
        assert self.value_buffer is not None
        for new, buffer in ((key_states, self.key_buffer), (value_states, self.value_buffer)):
            if _kind(new) != _kind(buffer):
                raise ValueError(
                    f"The cache holds {_kind(buffer)}, and {_kind(new)} came: it belongs to another model."
                )
        start, (keys, values) = self.length, self.claim(key_states.shape[-2])
        # Detached: a cache is no place for gradients, and a graph through it would keep every pass alive.
        keys[:, :, start : self.length] = key_states.detach()
        values[:, :, start : self.length] = value_states.detach()
        return keys, values

    def claim(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Grow by so many tokens, which the caller writes, where there are buffers; what is returned see `update`."""
        end = self.length + tokens
        if end > self.capacity:
            self.reserve(max(end, 2 * self.capacity))
        assert self.key_buffer is not None
        assert self.value_buffer is not None
        self.length = end
        seen = _rounded(end, self.grid)
        return self.key_buffer[:, :, :seen], self.value_buffer[:, :, :seen]

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens; a positive number is a ValueError, as in transformers."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop wants minus the number of tokens to remove, not {tokens_to_remove}.")
        self.length = max(0, self.length + tokens_to_remove)

    def reset(self) -> None:
        """Forget all tokens; the buffers stay."""
        self.length = 0

    def get_seq_length(self) -> int:
        """How many tokens are cached."""
        return self.length

    def get_max_length(self) -> int:
        """-1: the buffers grow."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys a pass of so many queries is given, and the position of the first: up to the grid."""
        return _rounded(self.length + query_length, self.grid), 0

    def _not_supported(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            f"{type(self).__name__} holds one sequence in place: no beams, batches or offloading."
        )

    reorder_cache = batch_repeat_interleave = batch_select_indices = offload = prefetch = _not_supported


class InPlaceCache(Cache):  # type: ignore[misc]
    """A cache of in-place layers.

    Args:
        config: the model's.
        capacity: tokens to make room for when the first ones come.
    """

    def __init__(self, config: Any, capacity: int = 0) -> None:
        config = config.get_text_config(decoder=True)
        grid = GRID if config._attn_implementation == PACKED else 1  # others may leave out the mask
        super().__init__(layers=[InPlaceLayer(capacity, grid) for _ in range(config.num_hidden_layers)])

    def reserve(self, tokens: int) -> None:
        """Make room for so many tokens in all, layer by layer, so that no later step has to."""
        for layer in self.layers:
            layer.reserve(tokens)

    @property
    def capacity(self) -> int:
        """Tokens that fit without another allocation."""
        return min(int(layer.capacity) for layer in self.layers)

    @property
    def bytes(self) -> int:
        """What all buffers take, used or not."""
        return sum(layer.bytes for layer in self.layers)


def bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """What one cached token takes, in bytes."""
    config = config.get_text_config(decoder=True)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * dtype.itemsize)


def _rounded(tokens: int, grid: int = GRID) -> int:
    return -(-tokens // grid) * grid


def _buffer(like: torch.Tensor, capacity: int) -> torch.Tensor:
    # Zeros: what is masked must still be finite. No inference tensor: it could not be written to outside that mode.
    with torch.inference_mode(False):
        return torch.zeros((*like.shape[:-2], capacity, like.shape[-1]), dtype=like.dtype, device=like.device)


def _grown(old: torch.Tensor, capacity: int, length: int) -> torch.Tensor:
    new = _buffer(old, capacity)
    new[:, :, :length] = old[:, :, :length]
    return new


def _kind(states: torch.Tensor) -> tuple[object, ...]:
    """All that must agree between a buffer and what is written to it."""
    return (states.shape[0], states.shape[1], states.shape[3], states.dtype, states.device)
