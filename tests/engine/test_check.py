"""The self-check that users run: it passes where all is well, and only there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cag_daemon.engine import check
from cag_daemon.engine.check import check_model
from cag_daemon.engine.model import load_model
from cag_daemon.engine.plan import Wanted
from tests.models import save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3, "max_position_embeddings": 4096}
    return save_model(tmp_path_factory.mktemp("models") / "model", **shape)


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_passes_where_all_is_well(folder: Path, dtype: str, quantization: str) -> None:
    said: list[str] = []
    found = check_model(load_model(Wanted(str(folder), dtype=dtype, quantization=quantization)), said.append)
    assert found.passed
    assert found.same == found.compared >= 20
    assert found.tokens > 200
    assert min(found.reading, found.decoding, found.first_token) > 0
    assert said == ["Reading a page", *["Answering from the cache"] * 2, *["Reading anew, to compare"] * 2]


def test_a_cache_that_is_not_cleaned_up_is_found_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "clean_up", lambda cache, length: None)
    assert not check_model(load_model(Wanted(str(folder)))).passed


def test_keys_that_are_changed_are_found_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def clean_up(cache: Any, length: int) -> None:
        for layer in cache.layers:
            layer.length = length
        cache.layers[1].key_buffer[0, 0, 5, 0] += 0.01

    monkeypatch.setattr(check, "clean_up", clean_up)
    found = check_model(load_model(Wanted(str(folder), dtype="float32")))
    assert not found.bits
    assert not found.passed


def test_on_a_slow_machine_a_part_of_the_page_will_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "SECONDS", 0.0)
    loaded = load_model(Wanted(str(folder)))
    assert check_model(loaded).tokens == loaded.chunk


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "TOKENS", 12)
