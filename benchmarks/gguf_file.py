"""A Mistral as a GGUF file, for llama.cpp: the same weights, bit for bit, in bfloat16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(model: Any, file: Path, context: int) -> None:
    """Write a transformers Mistral whose linear layers are not packed.

    The vocabulary is made up: the benchmark speaks in ids.

    Args:
        context: tokens that llama.cpp may be asked to see.
    """
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_name("benchmark")
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{number}>".encode() for number in range(config.vocab_size)])
    writer.add_token_scores([0.0] * config.vocab_size)
    writer.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, weight in model.state_dict().items():
        written = _name(name)
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if written.startswith("blk") and ".attn_q." in written:
            weight = _interleaved(weight, config.num_attention_heads)
        elif written.startswith("blk") and ".attn_k." in written:
            weight = _interleaved(weight, config.num_key_value_heads)
        if weight.ndim == 1:
            writer.add_tensor(written, weight.float().numpy())
        else:
            shape, half = list(weight.shape), weight.bfloat16().contiguous()
            writer.add_tensor(
                written,
                half.view(torch.uint8).reshape(shape[0], 2 * shape[1]).numpy(),
                raw_dtype=gguf.GGMLQuantizationType.BF16,
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    if name == "lm_head.weight":
        return "output.weight"
    _, _, number, rest = name.split(".", 3)
    return f"blk.{number}.{NAMES[rest.removesuffix('.weight')]}.weight"


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp turns neighbours, transformers turns halves: the same rotation, of rows in another order."""
    rows, wide = weight.shape
    return weight.view(heads, 2, rows // heads // 2, wide).swapaxes(1, 2).reshape(rows, wide)
