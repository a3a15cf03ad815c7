"""The narrow pass: few rows through the layers of a Mistral by machine code of our own.

A token that is decoded, a draft that is verified and a piece of a question are so few rows that they should take as
long as their weights take to come from memory. Through torch each layer is some forty operators, which take a fifth
of a token's time on top of the products. Here a layer is one call, see `layer_code`.

What it computes is the plain pass, rounded in the same places, but for the order of sums. It is only for what is known
to the last module: bfloat16 on a CPU, weights packed in blocks or quantised, no biases, no windows. It is tried beside
the plain pass when a model is loaded; where it can't be had or is wrong, all passes stay plain, and the log says why.
Documents are always read by plain passes: what is kept of them does not depend on this.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from cag_daemon.engine.kv_cache import GRID, InPlaceCache
from cag_daemon.engine.narrow_pass import MINISTRAL_3, MISTRAL, NORMS, NarrowPass, Unknown
from cag_daemon.engine.passes import NARROW, clean_up, forward
from cag_daemon.errors import one_line

log = logging.getLogger(__name__)
KNOWN = (MISTRAL, MINISTRAL_3)
HEAD_SIZES = (64, 128, 256)
TRIED_ROWS = (1, 5)
TRIED_LAYERS = 2
NEAR = 0.03  # of a tensor's norm: rounding makes up to a hundredth, and sharp attention more of it


def narrow(model: Any) -> bool:
    """Have a model's passes of few rows be narrow ones, where that is possible; whether they are.

    Args:
        model: as `pack_linears` or `quantize_module` leave it.
    """
    decoder = model.get_decoder()
    try:
        _check(model)
        with torch.inference_mode(False):  # what it computes in is written to whoever passes
            passes = NarrowPass(model)
        _try(model, passes)
    except Exception as error:  # whatever it is: it goes without
        log.info("Passes of few rows go through torch: %s", one_line(error))
        return False
    setattr(decoder, NARROW, passes)
    return True


def _check(model: Any) -> None:
    """Raise `Unknown` where a model is another one than those that the code is for."""
    decoder, config = model.get_decoder(), model.config.get_text_config(decoder=True)
    first = decoder.layers[0]
    eps = decoder.norm.variance_epsilon
    kinds = {type(each).__module__ for layer in decoder.layers for each in (layer, layer.self_attn, layer.mlp)}
    hooked = [each for each in decoder.modules() if each._forward_hooks or each._forward_pre_hooks]
    for right, what in (
        (type(decoder).__module__ in KNOWN and kinds == {type(decoder).__module__}, "it has layers of another kind"),
        (type(model).__name__.endswith("ForCausalLM"), "it is more than a decoder"),
        (all(each.device.type == "cpu" for each in model.parameters()), "it is not on a CPU"),
        (all(each.dtype == torch.bfloat16 for each in model.parameters()), "it is not in bfloat16"),
        (config.hidden_act == "silu", f"its activation is {config.hidden_act}"),
        (not getattr(config, "sliding_window", None), "it looks through a window"),
        (config.hidden_size % 64 == config.intermediate_size % 64 == 0, "its sizes are no multiples of 64"),
        (first.self_attn.head_dim in HEAD_SIZES, f"its heads are of size {first.self_attn.head_dim}"),
        (all(getattr(each, name).variance_epsilon == eps for each in decoder.layers for name in NORMS), "norms differ"),
        (not hooked, "somebody listens to its layers"),
    ):
        if not right:
            raise Unknown(f"{what}.")


def _try(model: Any, narrow_pass: NarrowPass) -> None:
    """Raise `Unknown` if narrow passes of the first layers are not near the plain ones."""
    decoder = model.get_decoder()
    config = model.config.get_text_config(decoder=True)
    layers, decoder.layers = decoder.layers, decoder.layers[:TRIED_LAYERS]
    try:
        cache = InPlaceCache(model.config)
        del cache.layers[TRIED_LAYERS:]
        random = torch.Generator().manual_seed(0)
        ids = torch.randint(0, config.vocab_size, (1, GRID + max(TRIED_ROWS)), generator=random)
        start = GRID - 2  # passes over a multiple of the grid
        forward(decoder, ids[:, :start], cache, None)
        for rows in TRIED_ROWS:
            found = []
            for way in (forward, narrow_pass):
                logits = way(model, ids[:, start : start + rows], cache, None, logits_to_keep=rows).logits
                kept = [(each.keys[:, :, start:], each.values[:, :, start:]) for each in cache.layers]
                found.append([logits.clone(), *(each.clone() for both in kept for each in both)])
                clean_up(cache, start)
            for plain, ours in zip(*found, strict=True):
                if not (ours - plain).float().norm() <= NEAR * plain.float().norm():
                    raise Unknown("what it computes is not what the plain pass does.")
    finally:
        decoder.layers = layers
