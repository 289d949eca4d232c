"""float16 products as a GPU has them, on a CPU that would take fifteen times as long for them.

A GPU multiplies float16 numbers, adds the products up in float32 and rounds the sum to float16.
"""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

PRODUCTS = {
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.convolution.default,
    torch.ops.aten.convolution_backward.default,
    torch.ops.aten.mm.default,
}


def half_products(device, dtype="float16"):
    """A context in which float16 convolutions and matrix products are fast; on a GPU they are.

    Args:
        device (str): "cuda" or "cpu".
        dtype (str or None): of the autocast; of another than float16 nothing is changed.
    """
    emulated = device == "cpu" and dtype == "float16"
    return _HalfProducts() if emulated else contextlib.nullcontext()


class _HalfProducts(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in PRODUCTS or not any(map(_is_half, args)):
            return func(*args, **kwargs)
        result = func(*(x.float() if _is_half(x) else x for x in args), **kwargs)
        return tree_map(lambda x: None if x is None else x.half(), result)


def _is_half(x):
    return isinstance(x, torch.Tensor) and x.dtype == torch.float16
