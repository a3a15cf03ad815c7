"""A pass through the model: it happens whole or not at all, and can be stopped between its layers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.cache_utils import Cache

from cag_daemon.engine.kv_cache import InPlaceCache
from cag_daemon.errors import Stopped

ShouldStop = Callable[[], bool]
NARROW = "narrow_pass"  # what a decoder calls its way for few rows, see `narrow`


def clean_up(cache: Cache, origin_len: int) -> None:
    """Crop a cache back to its first ``origin_len`` tokens.

    Layer by layer, since after an interrupted pass they have different lengths.

    Raises:
        ValueError: the cache is shorter than that.
    """
    lengths = [int(layer.get_seq_length()) for layer in cache.layers] or [0]
    if min(lengths) < origin_len or origin_len < 0:
        raise ValueError(f"A cache of {min(lengths)} tokens can't be cleaned up to {origin_len}.")
    for layer, length in zip(cache.layers, lengths, strict=False):
        if length > origin_len:
            layer.crop(origin_len - length)


def one_sequence(input_ids: torch.Tensor, model: Any) -> torch.Tensor:
    """The ids [1, n] on the model's device; a ValueError if they are anything else, or none."""
    if input_ids.ndim != 2 or input_ids.shape[0] != 1:
        raise ValueError(f"input_ids must be one sequence, of shape [1, n], not {list(input_ids.shape)}.")
    if input_ids.shape[1] == 0:
        raise ValueError("input_ids is empty: there is nothing to read.")
    return input_ids.to(model.device)


def reserve(cache: Cache, tokens: int) -> None:
    """Room for so many tokens in all, where the cache can make it."""
    if isinstance(cache, InPlaceCache):
        cache.reserve(tokens)


def forward(module: Any, input_ids: torch.Tensor, cache: Cache, should_stop: ShouldStop | None, **kwargs: Any) -> Any:
    """One pass of a model or its decoder, which happens whole or not at all; see `prefill` for the arguments.

    For documents: always by the same way, whatever else there is.
    """
    with _whole_or_nothing(cache), _stoppable(module.get_decoder(), should_stop), torch.no_grad():
        return module(input_ids=input_ids, use_cache=True, **{cache_argument(module): cache}, **kwargs)


def answering(module: Any, input_ids: torch.Tensor, cache: Cache, should_stop: ShouldStop | None, **kwargs: Any) -> Any:
    """`forward` for questions and answers: by the narrow pass, where the model has one and the rows are few.

    Its logits may lack rows behind those that are wanted.
    """
    narrow = getattr(module.get_decoder(), NARROW, None)
    if narrow is None or not narrow.takes(module, input_ids, cache):
        return forward(module, input_ids, cache, should_stop, **kwargs)
    with _whole_or_nothing(cache), torch.no_grad():
        return narrow(module, input_ids, cache, should_stop, **kwargs)


def cache_argument(module: Any) -> str:
    """What a model calls its cache: ``cache`` from transformers 5.24 on, ``past_key_values`` before."""
    return _cache_argument(type(module).forward)


@functools.cache
def _cache_argument(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


@contextmanager
def _whole_or_nothing(cache: Cache) -> Iterator[None]:
    origin = cache.get_seq_length()
    try:
        yield
    except BaseException:
        clean_up(cache, origin)
        raise


@contextmanager
def _stoppable(decoder: Any, should_stop: ShouldStop | None) -> Iterator[None]:
    """Ask ``should_stop`` before every decoder layer and every linear layer in it: on a CPU one takes long enough."""

    def ask(*_: Any) -> None:
        if should_stop is not None and should_stop():
            raise Stopped

    layers = decoder.layers if should_stop is not None else ()
    linear = (module for layer in layers for module in layer.modules() if hasattr(module, "in_features"))
    hooks = [module.register_forward_pre_hook(ask) for module in (*layers, *linear)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
