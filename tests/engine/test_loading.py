"""All kinds of Mistral, in the shapes that they have, bit by bit as transformers loads them; and what that takes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Ministral3Config,
    MinistralConfig,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralVisionConfig,
)

from cag_daemon.engine.cag import generate_step, prefill
from cag_daemon.engine.folder import check_folder, quantization_method, read_json, weights_of
from cag_daemon.engine.installed import resolve_folder
from cag_daemon.engine.kv_cache import InPlaceCache
from cag_daemon.engine.model import load_model
from cag_daemon.engine.plan import Wanted
from cag_daemon.engine.weights import dequantized
from cag_daemon.errors import ModelFailed, ModelNotFound
from tests.models import EMBEDDED, TOKENIZER_FILES, VOCABULARY, mistral_config, save_model

IDS = torch.randint(5, 3000, (1, 90), generator=torch.Generator().manual_seed(3))
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}
VISION = PixtralVisionConfig(
    hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
)

CONFIGS: dict[str, Callable[[], Any]] = {
    "7B v0.1, with a window": lambda: mistral_config(**SMALL | {"sliding_window": 32, "head_dim": 16}),
    "7B v0.3": lambda: mistral_config(**SMALL | {"head_dim": 16}),
    "Nemo, heads narrower than the model": lambda: mistral_config(**SMALL | {"head_dim": 8}),
    "tied": lambda: mistral_config(**SMALL | {"head_dim": 16, "tie_word_embeddings": True}),
    "Ministral, a window in every other layer": lambda: MinistralConfig(
        **SMALL, head_dim=16, sliding_window=32, layer_types=["full_attention", "sliding_attention"]
    ),
    "Ministral 3's text": lambda: Ministral3Config(**SMALL, head_dim=16, rope_parameters=YARN),
    "Ministral 3": lambda: Mistral3Config(
        text_config=Ministral3Config(**SMALL, head_dim=16, rope_parameters=YARN), vision_config=VISION
    ),
    "Ministral 3, tied": lambda: Mistral3Config(
        text_config=Ministral3Config(**SMALL, head_dim=16, rope_parameters=YARN, tie_word_embeddings=True),
        vision_config=VISION,
        tie_word_embeddings=True,
    ),
    "Mistral Small 3": lambda: Mistral3Config(
        text_config=mistral_config(**SMALL | {"head_dim": 16}), vision_config=VISION
    ),
}


def save(folder: Path, config: Any, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A model of that configuration with random weights, as its makers would save it, and a tokenizer."""
    kind = Mistral3ForConditionalGeneration if config.model_type == "mistral3" else AutoModelForCausalLM
    torch.manual_seed(0)
    model = kind(config) if kind is Mistral3ForConditionalGeneration else kind.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, 1.2 / parameter.shape[1] ** 0.5)
    model.to(dtype).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(EMBEDDED / name, folder / name)
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_the_model_that_transformers_loads(name: str, dtype: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", CONFIGS[name]())
    loaded = load_model(Wanted(str(folder), device="cpu", dtype=dtype))
    kind = Mistral3ForConditionalGeneration if "vision_config" in read_json(folder / "config.json") else None
    theirs = (kind or AutoModelForCausalLM).from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    assert torch.equal(logits(loaded.model), logits(theirs))
    assert loaded.model.dtype == getattr(torch, dtype)
    assert {each.dtype for each in loaded.model.parameters()} == {loaded.model.dtype}
    assert not any("vision" in key for key in loaded.model.state_dict())
    assert loaded.context == 4096


@pytest.mark.parametrize("name", CONFIGS)
def test_reading_in_chunks_and_asking_is_as_reading_all_at_once(name: str, tmp_path: Path) -> None:
    """The cache keeps all tokens, and the mask applies the window."""
    model = load_model(Wanted(str(save(tmp_path / "model", CONFIGS[name]())), dtype="float32")).model
    cache = InPlaceCache(model.config)
    prefill(model, IDS[:, :70], cache, chunk_size=16)
    cached = list(generate_step(model, IDS[:, 70:], cache, max_new_tokens=8))
    sequence = IDS
    for token in cached:
        assert int(logits_of(model, sequence)[0, -1].argmax()) == token
        sequence = torch.cat([sequence, torch.tensor([[token]])], dim=1)


def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, use_cache=False).logits  # type: ignore[no-any-return]


def test_the_ends_of_an_answer_are_the_generation_configs(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", CONFIGS["7B v0.3"]())
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    assert load_model(Wanted(str(folder))).model.generation_config.eos_token_id == [2, 7]


# ── eight-bit floats ────────────────────────────────────────────────────────────────────────


def to_fp8(folder: Path, block: int | None) -> dict[str, torch.Tensor]:
    """Rewrite a folder as an FP8 checkpoint in two shards; what its weights are when they are dequantised."""
    weights, exact = load_file(folder / "model.safetensors"), {}
    stored: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        exact[name] = weight
        if "_proj.weight" not in name or "vision" in name or "projector" in name:
            stored[name] = weight
            continue
        rows, columns = weight.shape if block is None else (block, block)
        padded = torch.nn.functional.pad(weight.float(), (0, -weight.shape[1] % columns, 0, -weight.shape[0] % rows))
        blocks = padded.unflatten(0, (-1, rows)).unflatten(2, (-1, columns))
        scale = blocks.abs().amax(dim=(1, 3)) / 448
        eight = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        stored[name] = eight.flatten(2, 3).flatten(0, 1)[: weight.shape[0], : weight.shape[1]].contiguous()
        stored[name + "_scale_inv"] = scale.reshape(()).to(torch.bfloat16) if block is None else scale
        stored[name.removesuffix("weight") + "activation_scale"] = torch.tensor(0.1)
        factors = stored[name + "_scale_inv"].float()
        spread = factors if block is None else factors.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        if block is not None:
            spread = spread[: weight.shape[0], : weight.shape[1]]
        exact[name] = (stored[name].float() * spread).to(torch.bfloat16)
    (folder / "model.safetensors").unlink()
    # The scale may lie in another file than its weight.
    places = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(stored)}
    for file in set(places.values()):
        save_file({name: w for name, w in stored.items() if places[name] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    config = read_json(folder / "config.json")
    config["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "static",
        "weight_block_size": None if block is None else [block, block],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return exact


@pytest.mark.parametrize("block", [None, 32, 40])
def test_eight_bit_floats_are_dequantised(block: int | None, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", CONFIGS["Ministral 3"]())
    plain = save(tmp_path / "plain", CONFIGS["Ministral 3"]())
    exact = to_fp8(folder, block)
    save_file(
        {name: weight.contiguous() for name, weight in exact.items()}, plain / "model.safetensors", {"format": "pt"}
    )
    assert quantization_method(read_json(folder / "config.json")) == "fp8"
    eight, same = (load_model(Wanted(str(each), dtype="bfloat16")) for each in (folder, plain))
    assert torch.equal(logits(eight.model), logits(same.model))
    assert eight.model.dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [[], [1], [6, 1], [3, 2], [2, 3]])
def test_scales_are_spread(shape: list[int]) -> None:
    stored = torch.randn(6, 5).to(torch.float8_e4m3fn)
    scale = torch.rand(shape)
    spread = torch.empty(6, 5)
    for row in range(6):
        for column in range(5):
            if scale.numel() == 1:
                spread[row, column] = scale.reshape(())
            else:
                spread[row, column] = scale[row // -(-6 // shape[0]), column // -(-5 // shape[1])]
    assert torch.equal(dequantized(stored, scale, torch.float32), stored.float() * spread)


def test_eight_bit_floats_without_their_scale_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", CONFIGS["7B v0.3"]())
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name].to(torch.float8_e4m3fn)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelFailed, match="without the scale"):
        load_model(Wanted(str(folder)))


# ── what is not ours to load ────────────────────────────────────────────────────────────────


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def only(folder: Path, *names: str) -> None:
    for file in folder.iterdir():
        if file.name not in names:
            file.unlink()


FOREIGN: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "quantised by others": (
        lambda f: edit(f / "config.json", quantization_config={"quant_method": "gptq"}),
        ModelFailed,
        "quantised with gptq, which is not read: choose the original model, and set quantization",
    ),
    "an adapter": (
        lambda f: ((f / "config.json").unlink(), (f / "adapter_config.json").write_text("{}")),
        ModelFailed,
        "is an adapter, not a whole model: merge it",
    ),
    "GGUF": (
        lambda f: (only(f), (f / "mistral-q4.gguf").write_bytes(b"GGUF")),
        ModelNotFound,
        "in GGUF, which is not read: choose the original model in safetensors",
    ),
    "GGUF beside a config": (
        lambda f: ((f / "model.safetensors").unlink(), (f / "m.gguf").write_bytes(b"GGUF")),
        ModelNotFound,
        "in GGUF, which is not read",
    ),
    "Mistral's own format": (
        lambda f: (only(f), (f / "params.json").write_text("{}"), (f / "consolidated.safetensors").write_bytes(b"x")),
        ModelNotFound,
        "in Mistral's own format .*download the model again in the format of transformers",
    ),
    "a pointer of Git LFS": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        ModelFailed,
        "is a pointer of Git LFS; run `git lfs pull`",
    ),
    "a model that sees, around no Mistral": (
        lambda f: edit(f / "config.json", model_type="mistral3", text_config={"model_type": "gemma3_text"}),
        ModelFailed,
        "text part of the model model is a 'gemma3_text', no Mistral",
    ),
    "weights of another model beside ours": (
        lambda f: save_file(
            load_file(f / "model.safetensors") | {"model.layers.9.mlp.up_proj.weight": torch.ones(1)},
            f / "model.safetensors",
        ),
        ModelFailed,
        r"unexpected: model\.layers\.9",
    ),
    "another shape than the configuration's": (
        lambda f: edit(f / "config.json", intermediate_size=64),
        ModelFailed,
        r"of another shape: model\.layers\.0\.mlp\.down_proj",
    ),
    "a configuration that nobody understands": (
        lambda f: edit(f / "config.json", rope_parameters={"rope_type": "nonsense"}),
        ModelFailed,
        "could not be loaded",
    ),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_it_is_said_what_it_is_and_what_to_do(what: str, tmp_path: Path) -> None:
    harm, kind, words = FOREIGN[what]
    folder = save_model(tmp_path / "model")
    harm(folder)
    with pytest.raises(kind, match=words) as caught:
        load_model(Wanted(str(folder)))
    assert "\n" not in str(caught.value)


def test_a_gguf_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "mistral.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelNotFound, match="is a GGUF file, which is not read"):
        resolve_folder(str(tmp_path / "mistral.gguf"))


def test_a_download_that_was_broken_off_names_the_file_and_what_completes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hub_model(tmp_path, monkeypatch, "someone/Tiny-Instruct", save(tmp_path / "m", CONFIGS["Ministral 3"]()))
    to_fp8(folder, None)
    (folder / "model-00002-of-00002.safetensors").unlink()
    words = r"has no model-00002-of-00002\.safetensors in .*: run `cag-daemon pull someone/Tiny-Instruct`"
    with pytest.raises(ModelNotFound, match=words):
        check_folder(resolve_folder("someone/Tiny-Instruct"))


def test_what_another_tool_knows_to_be_missing_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has fetched all but the second copy of the weights, and the list of the repository's files."""
    import huggingface_hub
    from huggingface_hub.errors import IncompleteSnapshotError

    folder = save_model(tmp_path / "model")

    def snapshot_download(model: str, *, local_files_only: bool) -> str:
        raise IncompleteSnapshotError("consolidated.safetensors is missing", str(folder))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve_folder("someone/Tiny-Instruct").path == folder


def hub_model(base: Path, monkeypatch: pytest.MonkeyPatch, name: str, folder: Path) -> Path:
    """Put a model folder into a hub cache of this test's own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(base / "hub"))
    repository = base / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "snapshots").mkdir()
    return folder.rename(repository / "snapshots" / ("a" * 40))


# ── memory ──────────────────────────────────────────────────────────────────────────────────

PEAK = """
import contextlib, sys, psutil, threading, time
from cag_daemon.engine import narrow_pass
from cag_daemon.engine.model import load_model
from cag_daemon.engine.plan import Wanted
import torch, transformers
transformers.MistralForCausalLM, transformers.AutoTokenizer
load_model(Wanted("embedded"))
with contextlib.suppress(Exception):
    narrow_pass._machine()  # LLVM, whatever the model: 80 MB, nine tenths of it mapped from its file
before = psutil.Process().memory_info().rss
peak, going = before, True
def watch():
    global peak
    while going:
        peak = max(peak, psutil.Process().memory_info().rss)
        time.sleep(0.002)
thread = threading.Thread(target=watch); thread.start()
loaded = load_model(Wanted(sys.argv[1], device="cpu", dtype="bfloat16", quantization=sys.argv[2]))
going = False; thread.join()
print(loaded.bytes, peak - before, psutil.Process().memory_info().rss - before)
"""


def peak_of_loading(folder: Path, quantization: str = "none") -> tuple[int, int, int]:
    command = [sys.executable, "-c", PEAK, str(folder), quantization]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    size, peak, after = map(int, done.stdout.split())
    return size, peak, after


def test_loading_takes_the_weights_and_one_layer(tmp_path: Path) -> None:
    """A file of a fifth of a gigabyte, all in one."""
    folder = save_model(
        tmp_path / "model",
        torch.bfloat16,
        **{"hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 7, "num_attention_heads": 16},
        **{"num_key_value_heads": 8, "head_dim": 64},
    )
    largest = sum(
        each.numel * 2 for name, each in weights_of(resolve_folder(str(folder))).items() if ".layers.3." in name
    )
    size, peak, after = peak_of_loading(folder)
    assert 190e6 < size < 250e6
    assert 0.9 * size < after < 1.15 * size  # what oneDNN and the trial of narrow passes keep is in it
    assert peak < 1.15 * (size + largest)
