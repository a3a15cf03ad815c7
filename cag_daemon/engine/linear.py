"""Linear layers whose weights lie in memory as the processor's product wants them: read once, in order.

torch reorders a bfloat16 weight on a CPU for every product, or reads it as it lies, which takes up to twice as long.
oneDNN gives the reordered weight to keep; it takes the place of the original, and memory holds each weight once.
The operators are torch's own and private: they are tried first, and where they are missing or wrong, layers
stay as they are. Only bfloat16: in float32 nothing was won.

Where the reordered weight turns out to lie in the blocks that `few_rows` multiplies with, a layer says so.
"""

from __future__ import annotations

import ctypes
import functools
import logging

import torch
from torch.nn.functional import linear

from cag_daemon.engine.memory import trim

log = logging.getLogger(__name__)
ROWS = (1, 4, 8, 128)  # that are tried
NEAR = 0.01  # of a product's norm; bfloat16 itself makes a half of it
BLOCK = 64  # outputs of a block, if it is one as `blocks_at` looks for


class PackedLinear(torch.nn.Module):
    """A linear layer without bias, on a CPU, its weight [out, in] as oneDNN wants it.

    Attributes:
        blocks_at: where its blocks lie, see `blocks_at`; None: not in such blocks.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = None
        self._packed = pack_weight(weight)
        self.blocks_at = blocks_at(self._packed, weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product with x [..., in]."""
        return multiply_packed(x, self._packed)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}, packed"


def pack_linears(model: torch.nn.Module) -> bool:
    """Have the linear layers of a model packed, one by one, where that is possible; whether any is."""
    tied = {id(each.weight) for each in model.modules() if isinstance(each, torch.nn.Embedding)}
    found = False
    # No list of layers: it would keep the weights that are to go.
    for parent in [each for each in model.modules() if type(each) is not torch.nn.Linear]:
        for name in [name for name, _ in parent.named_children()]:
            layer = getattr(parent, name)
            if type(layer) is not torch.nn.Linear or layer.bias is not None or id(layer.weight) in tied:
                continue
            weight = layer.weight
            if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and packs():
                setattr(parent, name, PackedLinear(weight.detach()))
                found = True
                del layer, weight
                trim()
    return found


@functools.cache
def packs() -> bool:
    """Whether the operators are here, and compute what a plain product does."""
    random = torch.Generator().manual_seed(0)
    weight = torch.rand((160, 96), generator=random).sub_(0.5).bfloat16()
    try:
        packed = pack_weight(weight)
        for rows in ROWS:
            x = torch.rand((1, rows, 96), generator=random).sub_(0.5).bfloat16()
            plain = linear(x, weight)
            if (multiply_packed(x, packed) - plain).float().norm() > NEAR * plain.float().norm():
                raise RuntimeError("the products differ")
    except (RuntimeError, AttributeError, TypeError, NotImplementedError) as error:
        log.info("Linear layers are not packed here: %s", error)
        return False
    return True


def blocks_at(packed: torch.Tensor, weight: torch.Tensor) -> int | None:
    """The address of a packed weight, if it lies in blocks [out / 64, in / 2, 64, 2], the last filled up.

    oneDNN says nowhere how it packs, and another version or processor may do otherwise: some blocks are compared.
    """
    outputs, inputs = weight.shape
    if inputs % 2:
        return None
    try:
        address = int(torch.ops.mkldnn.data_ptr(packed))
        size = int(torch.ops.mkldnn._nbytes(packed))
    except (RuntimeError, AttributeError, TypeError, NotImplementedError):
        return None
    many = -(-outputs // BLOCK)
    if not address or size != many * BLOCK * inputs * weight.itemsize:
        return None
    memory = torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=weight.dtype)
    for number in {0, many // 2, many - 1}:
        block = weight.new_zeros(BLOCK, inputs)
        rows = weight[number * BLOCK : (number + 1) * BLOCK]
        block[: len(rows)] = rows
        wanted = block.view(BLOCK, inputs // 2, 2).transpose(0, 1).reshape(-1)
        if not torch.equal(memory[number * BLOCK * inputs :][: BLOCK * inputs], wanted):
            return None
    return address


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """A weight [out, in] in bfloat16, reordered."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1)
    return packed


def multiply_packed(x: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """The product of x [..., in] with a reordered weight."""
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    return product
