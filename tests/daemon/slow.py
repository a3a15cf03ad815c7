"""A model that is slow enough to be caught at its work: a random Mistral of some 0.3 billion parameters.

It never ends an answer by itself and only writes tokens that are words or pieces of words, so that there is always
something to interrupt.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.client import ROOT

EMBEDDED = ROOT / "cag_daemon" / "embedded"
HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD = 1024, 2816, 24, 16, 4, 64


def make_slow_model(folder: Path) -> Path:
    """Writes the model into the folder: weights, and the embedded model's tokenizer and template."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(EMBEDDED / name, folder / name)
    for extra in EMBEDDED.glob("*prompt*"):  # which prompt the folder was made for
        shutil.copy(extra, folder / extra.name)
    vocabulary = json.loads((EMBEDDED / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    config = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "vocab_size": len(vocabulary),
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        "sliding_window": None,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-05,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(_weights(vocabulary), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _weights(vocabulary: dict[str, int]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)

    def random(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator).mul_(0.02).to(torch.bfloat16)

    def ones() -> torch.Tensor:
        return torch.ones(HIDDEN, dtype=torch.bfloat16)

    head = random(len(vocabulary), HIDDEN)
    silent = [number for token, number in vocabulary.items() if token.startswith("<") and token.endswith(">")]
    head[silent] = 0  # special tokens and single bytes; the best of thousands of random logits is above zero
    weights = {"model.embed_tokens.weight": random(len(vocabulary), HIDDEN), "lm_head.weight": head}
    for number in range(LAYERS):
        layer = f"model.layers.{number}."
        weights |= {
            layer + "self_attn.q_proj.weight": random(HEADS * HEAD, HIDDEN),
            layer + "self_attn.k_proj.weight": random(KV_HEADS * HEAD, HIDDEN),
            layer + "self_attn.v_proj.weight": random(KV_HEADS * HEAD, HIDDEN),
            layer + "self_attn.o_proj.weight": random(HIDDEN, HEADS * HEAD),
            layer + "mlp.gate_proj.weight": random(INNER, HIDDEN),
            layer + "mlp.up_proj.weight": random(INNER, HIDDEN),
            layer + "mlp.down_proj.weight": random(HIDDEN, INNER),
            layer + "input_layernorm.weight": ones(),
            layer + "post_attention_layernorm.weight": ones(),
        }
    return weights | {"model.norm.weight": ones()}
