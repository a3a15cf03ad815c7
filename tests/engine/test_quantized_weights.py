"""Weights are quantised once, layer by layer, and what came of it is kept: whole, or not at all."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from cag_daemon.engine import kept_weights
from cag_daemon.engine import linear as packing
from cag_daemon.engine.cag import generate_step
from cag_daemon.engine.engine import Engine
from cag_daemon.engine.kv_cache import InPlaceCache
from cag_daemon.engine.model import load_model
from cag_daemon.engine.plan import Wanted, plan_for
from cag_daemon.engine.quantize import QuantizedLinear, quantize_module
from tests.engine.test_loading import peak_of_loading
from tests.models import save_model

IDS = torch.randint(5, 3000, (1, 50), generator=torch.Generator().manual_seed(3))
WIDE = {
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "num_hidden_layers": 7,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
SCRATCH = 48e6  # of quantising a few rows at a time
SHAPE = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model", torch.bfloat16, **SHAPE, tie_word_embeddings=False)


@pytest.fixture
def wanted(folder: Path, tmp_path: Path) -> Wanted:
    return Wanted(str(folder), device="cpu", quantization="int4", cache_directory=str(tmp_path / "cache"))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A number for each weight that was quantised."""
    calls: list[int] = []
    quantize = QuantizedLinear.of.__func__  # type: ignore[attr-defined]

    def of(cls: Any, *args: Any) -> QuantizedLinear:
        calls.append(1)
        return quantize(cls, *args)  # type: ignore[no-any-return]

    monkeypatch.setattr(QuantizedLinear, "of", classmethod(of))
    return calls


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits  # type: ignore[no-any-return]


def kept(wanted: Wanted) -> list[Path]:
    """What is kept, whole or not, beside the tag that says that it is a cache."""
    return [each for each in Path(str(wanted.cache_directory), "quantized").iterdir() if each.name != "CACHEDIR.TAG"]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_it_is_the_model_quantised_and_takes_what_was_said(
    kind: str, tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "packs", lambda: False)  # what is packed can't be quantised afterwards
    folder = save_model(tmp_path / "model", torch.bfloat16, **SHAPE, tie_word_embeddings=tied)
    wanted = Wanted(str(folder), device="cpu", quantization=kind)
    loaded, plain = load_model(wanted), load_model(Wanted(str(folder), device="cpu"))
    assert (loaded.quantization, loaded.dtype, loaded.parameters) == (kind, "bfloat16", plain.parameters)
    assert loaded.bytes == plan_for(wanted).needs.weights
    quantize_module(plain.model if not tied else plain.model.model, kind, torch.bfloat16, torch.device("cpu"))
    assert torch.equal(logits(loaded.model), logits(plain.model))


def test_the_second_time_it_is_read_and_is_the_same_to_the_bit(wanted: Wanted, counted: list[int]) -> None:
    first = load_model(wanted)
    assert len(counted) == 3 * 7 + 1
    second = load_model(wanted)
    assert len(counted) == 3 * 7 + 1
    assert torch.equal(logits(first.model), logits(second.model))
    assert second.bytes == first.bytes
    (folder,) = kept(wanted)
    assert folder.name.startswith("model-int4-")
    modes = {stat.S_IMODE(each.stat().st_mode) for each in (folder, folder.parent)}
    assert modes == {0o700}
    assert (folder.parent.parent / "CACHEDIR.TAG").is_file()
    assert {stat.S_IMODE(each.stat().st_mode) for each in folder.iterdir()} == {0o600}


def test_other_weights_another_kind_and_another_type_are_others(
    wanted: Wanted, folder: Path, counted: list[int]
) -> None:
    load_model(wanted)
    seen = len(counted)
    for changes in ({"quantization": "int8"}, {"dtype": "float32"}):
        load_model(Wanted(**{**vars(wanted), **changes}))
        assert len(counted) == (seen := seen + 22)
    os.utime(folder / "model.safetensors", ns=(1, 1))
    load_model(wanted)
    assert len(counted) == seen + 22


@pytest.mark.parametrize("harm", ["a bit", "cut", "gone", "no manifest", "nonsense", "another shape of manifest"])
def test_what_is_damaged_is_made_anew(harm: str, wanted: Wanted, counted: list[int]) -> None:
    expected = logits(load_model(wanted).model)
    (folder,) = kept(wanted)
    file, manifest = folder / "0001.safetensors", folder / "manifest.json"
    if harm == "a bit":
        data = bytearray(file.read_bytes())
        data[-5] ^= 4
        file.write_bytes(data)
    elif harm == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif harm == "gone":
        file.unlink()
    elif harm == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text("{" if harm == "nonsense" else json.dumps({"files": ["0001.safetensors"]}))
    seen = len(counted)
    assert torch.equal(logits(load_model(wanted).model), expected)
    assert len(counted) == seen + 22
    assert torch.equal(logits(load_model(wanted).model), expected)
    assert len(counted) == seen + 22
    assert kept(wanted) == [folder]


def test_a_full_disk_costs_the_copy_and_nothing_else(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, file: Path) -> None:
        if file.name == "0002.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        file.write_bytes(b"")

    monkeypatch.setattr(kept_weights, "save_file", full)
    assert load_model(wanted).quantization == "int4"
    assert kept(wanted) == []


def test_a_disk_without_room_is_left_alone(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_weights, "FREE_AFTERWARDS", 1e18)
    load_model(wanted)
    assert kept(wanted) == []


def test_a_folder_that_cannot_be_written_to_is_no_hindrance(wanted: Wanted, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert load_model(wanted).quantization == "int4"


def test_nothing_is_written_where_nothing_shall_be(wanted: Wanted, tmp_path: Path) -> None:
    load_model(Wanted(**{**vars(wanted), "cache_directory": None}))
    assert not (tmp_path / "cache").exists()


def test_an_interrupt_leaves_nothing_behind(wanted: Wanted) -> None:
    told = 0

    def interrupt(percent: int) -> None:
        nonlocal told
        told += 1
        if told == 6:  # the imports, and some layers
            assert len(kept(wanted)) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_model(wanted, interrupt)
    assert kept(wanted) == []


def test_a_quantised_model_answers_and_is_stopped(wanted: Wanted) -> None:
    engine = Engine(load_model("embedded"))
    engine.prepare("d", "1", "Anna bakes bread. The lathe was donated by Anselm Brandt.")
    plain = engine.ask("d", "Who donated the lathe?").text
    quantised = Engine(load_model(Wanted("embedded", quantization="int8")))
    quantised.prepare("d", "1", "Anna bakes bread. The lathe was donated by Anselm Brandt.")
    assert quantised.ask("d", "Who donated the lathe?").text == plain == "The lathe was donated by Anselm Brandt."
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return False

    model = load_model(wanted).model
    list(generate_step(model, IDS, InPlaceCache(model.config), max_new_tokens=1, should_stop=should_stop))
    assert asked == 3 * (1 + 7)


@pytest.mark.exhaustive
def test_quantising_takes_the_result_and_one_layer(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", torch.bfloat16, **WIDE)
    size, peak, _ = peak_of_loading(folder, "int8")
    layer = 2 * 1024 * (3 * 3584 + 2 * 1024 + 2 * 512)
    assert 100e6 < size < 130e6
    assert peak < 1.15 * (size + layer) + SCRATCH


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["none", "int8", "int4"])
def test_a_gigabyte_of_a_7b_models_shape_takes_what_is_said(kind: str, tmp_path: Path) -> None:
    """The weights as they are held, and the largest of them once more."""
    folder = save_model(
        tmp_path / "model",
        torch.bfloat16,
        **{"vocab_size": 32768, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 2},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 32768},
        tie_word_embeddings=True,
    )
    planned = plan_for(Wanted(str(folder), device="cpu", dtype="bfloat16", quantization=kind, characters=1000))
    size, peak, after = peak_of_loading(folder, kind)
    largest = 2 * 32768 * 4096  # the embeddings
    assert size == planned.needs.weights
    assert 0.85 * size < after < 1.15 * size
    # From below only by what stays: how long the largest is held twice is for the machine to say.
    assert after <= peak < 1.15 * (size + largest)
    assert size + largest < planned.needs.total < 1.4 * (size + largest)
