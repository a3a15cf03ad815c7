"""What is loaded, and whether it fits, is known before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from cag_daemon.engine import devices, memory, model, plan
from cag_daemon.engine.devices import choose_devices, choose_dtype
from cag_daemon.engine.installed import installed
from cag_daemon.engine.kv_cache import InPlaceCache, bytes_per_token
from cag_daemon.engine.memory import free_in_machine
from cag_daemon.engine.model import _by_module, _device_map, load_model
from cag_daemon.engine.passes import cache_argument
from cag_daemon.engine.plan import Wanted, plan_for
from cag_daemon.engine.weights import empty_decoder
from cag_daemon.errors import ModelFailed, OutOfMemory
from tests.models import save_model

MEDIUM = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6}


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """The hub cache of this test's own; called, it gets another model."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def add(name: str, **changes: Any) -> Path:
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("a" * 40)
        return save_model(repository / "snapshots" / ("a" * 40), torch.bfloat16, **changes)

    return add


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets how many bytes are free, beside what torch and the machine want for themselves."""

    def set_room(size: float) -> None:
        monkeypatch.setattr(plan, "free", lambda device: int(size + memory.KEPT_FREE + memory.WORKING))

    return set_room


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_estimated_is_what_it_takes(tied: bool, dtype: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", **MEDIUM, tie_word_embeddings=tied)
    planned = plan_for(Wanted(str(folder), device="cpu", dtype=dtype, characters=4000, max_new_tokens=100))
    loaded = load_model(Wanted(str(folder), device="cpu", dtype=dtype))
    assert planned.needs.weights == loaded.bytes
    assert planned.document_tokens == 1000
    assert planned.needs.cache == bytes_per_token(loaded.model.config, loaded.model.dtype) * min(512, 1000 + 256 + 100)
    cache = InPlaceCache(loaded.model.config, 512)
    with torch.no_grad():
        loaded.model(torch.tensor([[5]]), use_cache=True, **{cache_argument(loaded.model): cache})
    assert planned.needs.cache == cache.bytes


def test_auto_takes_the_largest_that_fits_and_says_so(hub: Callable[..., Path], room: Callable[[float], None]) -> None:
    hub("someone/Small-Instruct")
    hub("someone/Large-Instruct", **MEDIUM)
    room(1e9)
    chosen = plan_for(Wanted(device="cpu"))
    assert chosen.folder.name == "someone/Large-Instruct"
    assert chosen.folder.why.startswith("the largest on this machine that fits: ")
    room(3e6)
    assert plan_for(Wanted(device="cpu")).folder.name == "someone/Small-Instruct"
    room(1e5)
    chosen = plan_for(Wanted(device="cpu"))
    assert chosen.folder.name == "embedded"
    assert "a stand-in: someone/Small-Instruct needs " in chosen.folder.why


def test_without_a_real_mistral_auto_is_the_embedded_one_and_says_how_to_get_one() -> None:
    chosen = plan_for(Wanted(device="cpu"))
    assert (chosen.folder.name, chosen.quantization) == ("embedded", "none")
    assert chosen.folder.why == "a stand-in that ships with cag-daemon; for a real Mistral run `cag-daemon pull`"


def test_auto_leaves_alone_what_is_not_whole_or_cannot_be_asked(hub: Callable[..., Path]) -> None:
    broken = hub("someone/Broken-Instruct")
    (broken / "model.safetensors").write_bytes(b"x")
    base = hub("someone/Base")
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        (base / name).unlink()
    foreign = hub("someone/Llama-Instruct")
    (foreign / "config.json").write_text('{"model_type": "llama"}')
    assert installed() == []
    hub("someone/Good-Instruct")
    assert [folder.name for folder in installed()] == ["someone/Good-Instruct"]


def test_a_document_counts(hub: Callable[..., Path], room: Callable[[float], None]) -> None:
    hub("someone/Large-Instruct", **MEDIUM, max_position_embeddings=100_000)
    room(20e6)
    assert plan_for(Wanted(device="cpu", characters=1000)).folder.name == "someone/Large-Instruct"
    assert plan_for(Wanted(device="cpu", characters=100_000)).folder.name == "embedded"


def test_what_does_not_fit_gets_the_numbers_and_a_setting_that_would(
    tmp_path: Path, room: Callable[[float], None]
) -> None:
    folder = save_model(tmp_path / "model", **MEDIUM)
    half, whole = (plan_for(Wanted(str(folder), device="cpu", dtype=each)).needs for each in ("bfloat16", "float32"))
    room((half.total + whole.total) / 2 - memory.WORKING)
    with pytest.raises(OutOfMemory) as caught:
        load_model(Wanted(str(folder), device="cpu", dtype="float32"))
    words = str(caught.value)
    assert words.startswith("model needs ")
    assert "of weights" in words
    assert "are free on cpu: set dtype to bfloat16 (" in words
    assert words.endswith("or choose a smaller model.")


def test_a_document_that_is_too_long_for_memory_is_said_to_be(tmp_path: Path, room: Callable[[float], None]) -> None:
    folder = save_model(tmp_path / "model", **MEDIUM, max_position_embeddings=1_000_000)
    room(70e6)
    with pytest.raises(OutOfMemory, match=r"about 100,000 tokens.*: shorten the document to about \d+,000 tok"):
        load_model(Wanted(str(folder), device="cpu", characters=400_000))


def test_what_may_fit_is_tried(tmp_path: Path, room: Callable[[float], None]) -> None:
    """How many tokens a document has is only known once it is read: too long for sure is not the same as perhaps."""
    folder = save_model(tmp_path / "model", **MEDIUM, max_position_embeddings=100_000)
    planned = plan_for(Wanted(str(folder), device="cpu", characters=40_000))
    room(planned.needs.total - memory.WORKING - planned.needs.cache / 5)
    tight = plan_for(Wanted(str(folder), device="cpu", characters=40_000))
    assert not tight.fits
    assert not tight.hopeless


# ── what is free ────────────────────────────────────────────────────────────────────────────


def cgroup(base: Path, **values: str) -> None:
    base.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (base / f"memory.{name}").write_text(value)


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = free_in_machine()
    own = tmp_path / "proc"
    own.write_text("0::/slice/unit\n")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "sys")
    monkeypatch.setattr(memory, "OWN_CGROUP", own)
    assert free_in_machine() > 0.5 * free
    cgroup(tmp_path / "sys" / "slice" / "unit", max="max", current="5", stat="inactive_file 1\n")
    assert free_in_machine() > 0.5 * free
    cgroup(tmp_path / "sys" / "slice", max="900", current="500", stat="anon 4\ninactive_file 100\n")
    assert free_in_machine() == 500
    own.write_text("3:cpu,memory:/old\n")
    old = tmp_path / "sys" / "memory" / "old"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("700")
    (old / "memory.usage_in_bytes").write_text("300")
    (old / "memory.stat").write_text("total_inactive_file 50\n")
    assert free_in_machine() == 450


# ── devices ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: ((4, 8)[torch.device("cuda", device).index], 8))


@pytest.mark.usefixtures("two_gpus")
def test_cuda_is_all_gpus_the_one_with_most_room_first() -> None:
    assert list(map(str, choose_devices("cuda"))) == ["cuda:1", "cuda:0"]
    assert list(map(str, choose_devices("auto"))) == ["cuda:1", "cuda:0"]
    assert list(map(str, choose_devices("cuda:0"))) == ["cuda:0"]
    assert list(map(str, choose_devices("cuda+cpu"))) == ["cuda:1", "cuda:0", "cpu"]
    with pytest.raises(ModelFailed, match="no device cuda:2"):
        choose_devices("cuda:2")


def test_without_cuda_the_cpu_is_never_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cuda", "cuda:0", "cuda+cpu"):
        with pytest.raises(ModelFailed, match="set device to auto or cpu"):
            choose_devices(name)


def test_an_unused_gpu_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "nvidia_name", lambda: "NVIDIA RTX 4060, driver 550")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ModelFailed, match=r"unused GPU here \(NVIDIA RTX 4060.*a torch without CUDA; run: pip install"):
        choose_devices("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ModelFailed, match=r"torch is made for CUDA 13\.0, which its driver does not run"):
        choose_devices("cuda")


def test_gpus_that_lack_bfloat16_get_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert choose_dtype("auto", torch.device("cuda", 0)) == torch.float16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert choose_dtype("auto", torch.device("cuda", 0)) == torch.bfloat16


@pytest.mark.usefixtures("two_gpus")
def test_layers_are_spread_over_several_gpus_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which one goes where; that they work there can only be seen where there are some."""
    folder = save_model(tmp_path / "model", **MEDIUM, tie_word_embeddings=False)
    monkeypatch.setattr(plan, "free", lambda device: 10**12)
    whole = plan_for(Wanted(str(folder), device="cuda", dtype="bfloat16")).needs
    each_has = int(0.7 * whole.weights + whole.working + whole.cache + memory.KEPT_FREE)
    for module in (plan, model):
        monkeypatch.setattr(module, "free", lambda device: each_has)
    planned = plan_for(Wanted(str(folder), device="cuda", dtype="bfloat16"))
    assert [str(each) for each in planned.devices] == ["cuda:1", "cuda:0"]
    assert not planned.hopeless
    places = _device_map(empty_decoder(folder, torch.bfloat16), planned)
    assert set(places.values()) == {0, 1}
    assert all(name.count(".") <= 2 for name in places), "a layer was split"


def test_parameters_are_told_by_their_layer() -> None:
    found = _by_module(
        {"model.layers.3.mlp.up_proj.weight": 1, "model.embed_tokens.weight": 0, "lm_head.weight": "cpu"}
    )
    assert found == {"model.layers.3": 1, "model.embed_tokens": 0, "lm_head": "cpu"}
