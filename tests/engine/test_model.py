"""A Mistral from disk: whole or not at all, never from the network."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cag_daemon.engine.folder import check_folder
from cag_daemon.engine.installed import resolve_folder
from cag_daemon.engine.memory import out_of_memory
from cag_daemon.engine.model import load_model
from cag_daemon.engine.plan import Wanted
from cag_daemon.errors import ModelFailed, ModelNotFound, OutOfMemory
from tests.models import save_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path / "tiny")


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def shard(folder: Path) -> None:
    """Split the weights in two files and an index, as big models have them."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(weights)}
    for file in set(places.values()):
        save_file({name: w for name, w in weights.items() if places[name] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("name", ["auto", "embedded"])
def test_the_embedded_model(name: str) -> None:
    loaded = load_model(name)
    assert (loaded.name, loaded.device, loaded.dtype) == ("embedded", "cpu", "float32")
    assert (loaded.parameters, loaded.bytes, loaded.context) == (6786208, 4 * 6786208, 4096)
    assert loaded.chunk % 64 == 0
    assert loaded.why == ("as set" if name == "embedded" else loaded.why)
    assert loaded.spec["standIn"] is True
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_a_folder(folder: Path) -> None:
    loaded = load_model(Wanted(str(folder), device="cpu"))
    assert (loaded.name, loaded.dtype, loaded.why) == ("tiny", "bfloat16", "as set, a folder")
    assert load_model(Wanted(str(folder), dtype="float32")).model.dtype == torch.float32
    (folder / "cag.json").write_text('{"name": "mine", "dtype": "float32"}')
    named = load_model(str(folder))
    assert (named.name, named.dtype) == ("mine", "float32")


def test_shards_are_loaded_and_missed(folder: Path) -> None:
    shard(folder)
    check_folder(resolve_folder(str(folder)))
    assert load_model(str(folder)).parameters > 0
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelNotFound, match=r"no model-00002-of-00002\.safetensors"):
        check_folder(resolve_folder(str(folder)))


def test_the_hub_cache_is_asked_and_never_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    with pytest.raises(ModelNotFound, match="cag-daemon pull someone/tiny"):
        resolve_folder("someone/tiny")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / ("a" * 40))
    found = resolve_folder("someone/tiny")
    assert found.name == "someone/tiny"
    check_folder(found)


@pytest.mark.parametrize("name", ["no such folder", "/nowhere/at/all", "./missing", "a/b/c"])
def test_what_is_not_there_is_said(name: str) -> None:
    with pytest.raises(ModelNotFound, match="no model folder"):
        resolve_folder(name)


def test_a_file_is_no_model(folder: Path) -> None:
    with pytest.raises(ModelNotFound, match="is a file"):
        resolve_folder(str(folder / "config.json"))


DAMAGE: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), ModelNotFound, "no config.json"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), ModelFailed, "config.json can't be read"),
    "config is no object": (lambda f: (f / "config.json").write_text("[]"), ModelFailed, "not a JSON object"),
    "config is no text": (lambda f: (f / "config.json").write_bytes(b"\xff"), ModelFailed, "config.json can't be read"),
    "a llama": (
        lambda f: edit(f / "config.json", model_type="llama"),
        ModelFailed,
        "is a 'llama', cag-daemon loads Mistral",
    ),
    "no type": (lambda f: edit(f / "config.json", model_type=None), ModelFailed, "cag-daemon loads Mistral"),
    "its own code": (lambda f: edit(f / "config.json", auto_map={"AutoModel": "x.Y"}), ModelFailed, "code of its own"),
    "its own tokenizer code": (
        lambda f: edit(f / "tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y", None]}),
        ModelFailed,
        "code of its own",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), ModelNotFound, "no tokenizer.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ModelNotFound, "no model.safetensors"),
    "pickled weights": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        ModelNotFound,
        "safetensors only",
    ),
    "weights cut off": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
        ModelFailed,
        "model.safetensors is not whole .*bytes",
    ),
    "header cut off": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:100]),
        ModelFailed,
        "model.safetensors is not whole",
    ),
    "an empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), ModelFailed, "is not whole"),
    "noise": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x10" + b"\0" * 7 + b"x" * 99),
        ModelFailed,
        "is not whole",
    ),
    "cag.json is no JSON": (lambda f: (f / "cag.json").write_text("?"), ModelFailed, "cag.json can't be read"),
}


@pytest.mark.parametrize("damage", sorted(DAMAGE))
def test_damage_is_named(folder: Path, damage: str) -> None:
    harm, kind, words = DAMAGE[damage]
    harm(folder)
    with pytest.raises(kind, match=words) as caught:
        check_folder(resolve_folder(str(folder)))
    assert "\n" not in str(caught.value)
    with pytest.raises(kind, match=words):
        load_model(str(folder))


def test_missing_weights_are_not_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelFailed, match=r"missing: model\.layers\.1\.mlp\.up_proj"):
        load_model(str(folder))


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    edit(folder / "config.json", intermediate_size=64)
    with pytest.raises(ModelFailed, match="tiny"):
        load_model(str(folder))


@pytest.mark.parametrize("device", ["cuda:99", "mps:3", "tpu", "cuda:x", ""])
def test_devices_that_are_not_there(device: str) -> None:
    with pytest.raises(ModelFailed, match="set device to"):
        load_model(Wanted("embedded", device=device))


def test_dtypes_that_are_not_known() -> None:
    with pytest.raises(ModelFailed, match="set dtype to"):
        load_model(Wanted("embedded", dtype="int3"))


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("x"), RuntimeError("DefaultCPUAllocator: can't allocate memory: x")]
)
def test_running_out_of_memory_is_said_so(error: Exception) -> None:
    with pytest.raises(OutOfMemory, match="too big"), out_of_memory("too big"):
        raise error


def test_other_errors_are_not_about_memory() -> None:
    with pytest.raises(RuntimeError, match="another"), out_of_memory("too big"):
        raise RuntimeError("another")


def test_looking_for_a_model_imports_nothing_heavy(folder: Path) -> None:
    code = (
        "import sys; from cag_daemon.engine.installed import *;"
        "check_folder(resolve_folder('embedded')); check_folder(resolve_folder(sys.argv[1])); installed();"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
