"""Which passes agree is tried on the model itself, and what does not agree is found out."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from cag_daemon.engine.kv_cache import InPlaceCache
from cag_daemon.engine.model import load_model
from cag_daemon.engine.widths import CANDIDATES, OF_SMALL, agreeing
from tests.models import embedded_tokenizer, loaded_random

TOKENIZER = embedded_tokenizer()


def found(loaded: Any) -> tuple[int, ...]:
    return agreeing(loaded, InPlaceCache(loaded.model.config))


def test_what_is_shipped_is_drafted() -> None:
    """On every CPU that was tried."""
    widths = found(load_model("embedded"))
    assert widths
    assert list(widths) == sorted(set(widths) & {*CANDIDATES, *OF_SMALL})


@pytest.mark.parametrize("wrong", [4, 8, 16, 32])
def test_a_width_whose_rows_are_others_is_left_out(wrong: int) -> None:
    loaded = loaded_random(TOKENIZER)
    loaded.model.to(torch.bfloat16)
    allowed = found(loaded)

    def differ(layer: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output * 1.01 if output.shape[1] == wrong else output

    loaded.model.get_decoder().layers[0].mlp.register_forward_hook(differ)
    assert wrong not in found(loaded) or found(loaded)[0] == wrong
    assert found(loaded) != allowed or wrong not in allowed


def test_rows_that_depend_on_each_other_are_not_drafted() -> None:
    loaded = loaded_random(TOKENIZER)

    def mixed(layer: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output + 1e-6 * output.sum(1, keepdim=True)

    loaded.model.get_decoder().layers[1].mlp.register_forward_hook(mixed)
    assert found(loaded) == ()


def test_rows_whose_bits_depend_on_their_place_are_not_drafted() -> None:
    loaded = loaded_random(TOKENIZER)

    def by_place(layer: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output * (1 + 1e-6 * (torch.arange(output.shape[1]) % 3)[:, None])

    loaded.model.get_decoder().layers[1].mlp.register_forward_hook(by_place)
    assert found(loaded) == ()


def test_a_width_that_takes_longer_than_a_wider_one_is_left_out() -> None:
    loaded = loaded_random(TOKENIZER)
    widest = max(found(loaded))  # how the others fare without this depends on the machine's noise

    def dawdle(layer: Any, inputs: Any, output: torch.Tensor) -> None:
        if output.shape[1] < widest:
            time.sleep(0.05)

    handle = loaded.model.get_decoder().layers[0].mlp.register_forward_hook(dawdle)
    assert found(loaded) == (widest,)
    handle.remove()

    def hurry(layer: Any, inputs: Any, output: torch.Tensor) -> None:
        time.sleep(output.shape[1] / 2000)

    loaded.model.get_decoder().layers[0].mlp.register_forward_hook(hurry)
    assert len(found(loaded)) > 1


def test_a_model_without_room_for_the_test_is_not_drafted() -> None:
    assert found(loaded_random(TOKENIZER, context=64)) == ()
