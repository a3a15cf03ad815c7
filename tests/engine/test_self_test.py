"""Whether a refreshed cache is a fresh one is tried on the model itself, once, and what was found is heeded."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from cag_daemon.engine import self_test as module
from cag_daemon.engine.engine import Engine
from cag_daemon.engine.model import LoadedModel, load_model
from cag_daemon.engine.self_test import kept_results, refreshed_is_fresh, self_test
from cag_daemon.places import found
from tests.engine.caches import BAKERY, fresh, identical, kv
from tests.models import embedded_tokenizer, loaded_random, random_mistral

TOKENIZER = embedded_tokenizer()
NO_TIME = '{"passed": true, "model": "m", "device": "cpu", "dtype": "d", "threads": 1, "time": null}'


@pytest.fixture
def loaded() -> LoadedModel:
    return dataclasses.replace(loaded_random(TOKENIZER), key="a model")


def drifting(loaded: LoadedModel) -> LoadedModel:
    """A model whose kernels choose their way by what ran before."""
    passes = 0

    def drift(layer: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += 1
        return output * (1 + 1e-6 * (passes % 7))

    loaded.model.get_decoder().layers[0].mlp.register_forward_hook(drift)
    return loaded


@pytest.mark.parametrize(
    "changes",
    [{}, {"sliding_window": 24}, {"chunk": 64}, {"context": 33}, {"context": 20}, {"num_hidden_layers": 1}],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_holds_here(dtype: torch.dtype, changes: dict[str, Any]) -> None:
    loaded = loaded_random(TOKENIZER, **changes)
    loaded.model.to(dtype)
    layers = loaded.model.get_decoder().layers
    assert refreshed_is_fresh(loaded)
    assert loaded.model.get_decoder().layers is layers


def test_it_holds_for_what_is_shipped() -> None:
    assert refreshed_is_fresh(load_model("embedded"))


def test_the_first_layers_tell(loaded: LoadedModel) -> None:
    """And no more of them are asked."""
    ran = []
    for number, layer in enumerate(loaded.model.get_decoder().layers):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    assert refreshed_is_fresh(loaded)
    assert set(ran) == {0, 1}


def test_bits_that_depend_on_what_ran_before_are_found_out(loaded: LoadedModel) -> None:
    assert not refreshed_is_fresh(drifting(loaded))


def test_where_it_does_not_hold_everything_is_read_after_an_edit(
    loaded: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = str(tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        result = self_test(drifting(loaded), folder)
    assert not result.passed
    assert [each for each in caplog.messages if "not bit for bit" in each]
    loaded = loaded_random(TOKENIZER)  # the same ids cost nothing, and what is read can be compared
    engine = Engine(dataclasses.replace(loaded, key="a model"), keep_in=folder, exact=result.passed)
    assert engine.keeping is None
    texts = (BAKERY * 3, BAKERY * 3 + "More.", BAKERY * 2)
    for text in texts:
        reading = engine.prepare("d", text, text, file=str(tmp_path / "d.txt"), saved=True)
        assert (reading.kept, reading.computed) == (0, reading.tokens)
        assert engine.prepare("d", text, text).computed == 0
        assert identical(kv(engine), fresh(engine, text)[0])
    other = engine.prepare("e", "e", BAKERY * 2 + "Else.")
    assert other.kept == 0
    assert engine.prepare("f", "f", BAKERY * 2).computed == 0  # the same text under another name
    assert not (tmp_path / "cache" / "caches").exists()


def test_the_previous_text_answers_while_all_is_read(loaded: LoadedModel) -> None:
    engine = Engine(loaded, exact=False)
    engine.prepare("d", "1", BAKERY * 3)
    before, asked = engine.ask("d", "Why?", max_new_tokens=4), []
    engine.prepare(
        "d",
        "2",
        "New. " + BAKERY * 3,
        between_chunks=lambda: asked.append(engine.ask("d", "Why?", max_new_tokens=4)),
    )
    assert asked
    assert all(each == before for each in asked)
    assert identical(kv(engine), fresh(engine, "New. " + BAKERY * 3)[0])


def test_it_is_tried_once_for_an_environment(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tried = str(tmp_path / "cache"), []
    monkeypatch.setattr(module, "refreshed_is_fresh", lambda loaded: tried.append(loaded) or True)
    first = self_test(loaded, folder)
    assert self_test(loaded, folder) == first
    assert len(tried) == 1
    self_test(dataclasses.replace(loaded, key="another model"), folder)
    monkeypatch.setattr(module, "environment", lambda device: "another driver")
    self_test(loaded, folder)
    assert len(tried) == 3
    assert len(kept_results(folder)) == 3
    assert kept_results(folder)[-1] == first
    assert {each.what for each in found(folder) if each.path.is_relative_to(folder)} == {"result of a self-test"}
    self_test(loaded, None)
    assert len(tried) == 4


@pytest.mark.parametrize("words", ["", "[]", "{}", '{"passed": 1}', '{"passed": true, "more": 2}', "\udcff", NO_TIME])
def test_a_result_that_is_no_use_is_tried_again(words: str, loaded: LoadedModel, tmp_path: Path) -> None:
    folder = str(tmp_path / "cache")
    first = self_test(loaded, folder)
    (kept,) = tmp_path.glob("cache/self-tests/*/result.json")
    kept.write_bytes(words.encode("utf-8", "surrogateescape"))
    again = self_test(loaded, folder)
    assert again.passed
    assert again.time > first.time
    assert json.loads(kept.read_text())["passed"] is True


def test_a_folder_that_nobody_can_write_to_is_no_hindrance(loaded: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert self_test(loaded, str(tmp_path / "file" / "cache")).passed


def test_a_tokenizer_may_have_more_tokens_than_the_model(loaded: LoadedModel) -> None:
    assert len(TOKENIZER) > 64
    assert refreshed_is_fresh(dataclasses.replace(loaded, model=random_mistral(vocab_size=64)))


def test_what_can_not_be_tested_is_not_relied_on(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(loaded: LoadedModel) -> bool:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(module, "refreshed_is_fresh", fail)
    assert not self_test(loaded, str(tmp_path / "cache")).passed
    assert "could not be tested with random (RuntimeError: CUDA out of memory)" in caplog.text
    assert len(caplog.messages) == 1
    monkeypatch.undo()
    assert self_test(loaded, str(tmp_path / "cache")).passed  # it was not written down
