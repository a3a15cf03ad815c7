"""A trained model to and from a folder that the daemon loads: a plain MistralForCausalLM with a fast tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from training.model import Shape, TrainingModel

SHIPPED = Path(__file__).resolve().parent.parent / "cag_daemon" / "embedded"
CARD = {"name": "embedded", "systemPrompt": "", "dtype": "float32", "standIn": True}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role']=='user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
TOKENIZER_CONFIG = {
    "backend": "tokenizers",
    "bos_token": "<s>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "</s>",
    "model_max_length": 1000000000000000019884624838656,
    "pad_token": "<pad>",
    "tokenizer_class": "TokenizersBackend",
    "unk_token": "<unk>",
}


def export(model: TrainingModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the model to a folder, its weights in bfloat16. What else is in the folder's ``cag.json`` stays."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {f"model.{name}": value.to("cpu", torch.bfloat16).contiguous() for name, value in _state(model).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    card = folder / "cag.json"
    known = json.loads(card.read_text("utf-8")) if card.exists() else {}
    card.write_text(json.dumps(known | CARD) + "\n", "utf-8")
    _write(folder / "config.json", _config(model.shape))
    _write(folder / "generation_config.json", ENDS | {"use_cache": True})
    _write(folder / "tokenizer_config.json", TOKENIZER_CONFIG)
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))


def load(folder: Path) -> tuple[TrainingModel, Tokenizer]:
    """A model and its tokenizer from such a folder, to be trained further in float32."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    shape = Shape(
        vocabulary=config["vocab_size"],
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        head=config["head_dim"],
        inner=config["intermediate_size"],
        theta=config["rope_parameters"]["rope_theta"],
        epsilon=config["rms_norm_eps"],
        context=config["max_position_embeddings"],
    )
    model = TrainingModel(shape)
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): value.float() for name, value in weights.items()})
    return model, Tokenizer.from_file(str(folder / "tokenizer.json"))


def ship(folder: Path) -> None:
    """Put an exported model in the place of the one that the daemon comes with. Its model card is not touched."""
    limit = json.loads((SHIPPED / "cag.json").read_text("utf-8")) if (SHIPPED / "cag.json").exists() else {}
    for file in sorted(folder.iterdir()):
        if file.name != "cag.json":
            shutil.copyfile(file, SHIPPED / file.name)
    (SHIPPED / "cag.json").write_text(json.dumps(limit | CARD) + "\n", "utf-8")


def _state(model: TrainingModel) -> dict[str, torch.Tensor]:
    return model.state_dict()


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["MistralForCausalLM"],
        "attention_dropout": 0.0,
        **ENDS,
        "dtype": "bfloat16",
        "head_dim": shape.head,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.inner,
        "max_position_embeddings": shape.context,
        "model_type": "mistral",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.heads,
        "rms_norm_eps": shape.epsilon,
        "rope_parameters": {"rope_theta": shape.theta, "rope_type": "default"},
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": shape.vocabulary,
    }


def _write(file: Path, content: Mapping[str, object]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
