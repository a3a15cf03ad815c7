"""Random Mistrals for tests: tiny ones in memory, and folders of them on disk with the embedded tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

import cag_daemon
from cag_daemon.engine.attention import install
from cag_daemon.engine.model import LoadedModel

EMBEDDED = Path(cag_daemon.__file__).parent / "embedded"
VOCABULARY = len(json.loads((EMBEDDED / "tokenizer.json").read_text("utf-8"))["model"]["vocab"])  # of the embedded
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def mistral_config(**changes: Any) -> MistralConfig:
    """A tiny Mistral with grouped queries, no window and no end token."""
    values = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "sliding_window": None,
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }
    return MistralConfig(**(values | changes))


def random_mistral(seed: int = 0, *, packed: bool = True, device: str = "cpu", **changes: Any) -> MistralForCausalLM:
    """A Mistral whose every token depends on all that it sees: initial weights are too small for that.

    Args:
        packed: attends as the product has it do; False: as transformers has.
    """
    generator = torch.Generator(device).manual_seed(seed)
    with torch.device(device):
        model = MistralForCausalLM(mistral_config(**changes)).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.normal_(0, 1.2 / parameter.shape[1] ** 0.5, generator=generator)
    model.get_input_embeddings().weight.normal_(0, 1, generator=generator)
    if packed:
        install(model)
    return model


def embedded_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(EMBEDDED, local_files_only=True)


def loaded_random(tokenizer: Any, *, context: int = 1024, chunk: int = 16, **changes: Any) -> LoadedModel:
    """A tiny random model that speaks the embedded tokenizer's tokens, as `load_model` would give it."""
    model = random_mistral(vocab_size=VOCABULARY, max_position_embeddings=context, **changes)
    return LoadedModel(
        model, tokenizer, "random", "for a test", "cpu", "float32", 1, 1, chunk, context, {"systemPrompt": ""}
    )


def save_model(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Write a random Mistral and the embedded tokenizer into a folder; quick for big ones too."""
    folder.mkdir(parents=True, exist_ok=True)
    config = mistral_config(**({"vocab_size": VOCABULARY, "tie_word_embeddings": True} | changes))
    with torch.device("meta"):
        shapes = MistralForCausalLM(config).state_dict()
    pattern = torch.empty(1 << 20).uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(0)).to(dtype)
    weights = {
        name: pattern.repeat(-(-shape.numel() // pattern.numel()))[: shape.numel()].reshape(shape.shape).clone()
        for name, shape in shapes.items()
        if name != "lm_head.weight" or not config.tie_word_embeddings
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    values = config.to_dict() | {"architectures": ["MistralForCausalLM"], "dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(values))
    for name in TOKENIZER_FILES:
        shutil.copy(EMBEDDED / name, folder / name)
    return folder


def _device(name: str, there: bool) -> Any:
    return pytest.param(
        name,
        marks=[getattr(pytest.mark, name), pytest.mark.skipif(not there, reason=f"no {name} here that torch uses")],
    )


# What a promise about bits is tested on: the CPU, and whatever else is here.
DEVICES = [
    "cpu",
    _device("cuda", torch.cuda.is_available()),
    _device("mps", torch.backends.mps.is_available()),
]
