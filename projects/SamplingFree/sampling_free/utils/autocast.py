"""Autocast for training, without what PyTorch leaves unwritten on CPUs.

In bfloat16 on a CPU a convolution to or from a level of one row or column may read memory that
nobody wrote (oneDNN; PyTorch 2.11 to 2.14): in the weights' gradient, and on processors with AMX in
the output and in the gradient of a transposed convolution's input. P6 and P7 of small or tall
images are such levels. Float32 and float16 do not have it.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch.overrides import TorchFunctionMode

CONVOLUTIONS = (torch.conv2d, torch.conv_transpose2d)


@contextlib.contextmanager
def training_autocast(device: str, dtype: torch.dtype | None) -> Iterator[None]:
    """A context in which a detector computes its losses in mixed precision.

    Args:
        device: "cuda" or "cpu".
        dtype: of convolutions and matrix products; None for full precision.
    """
    is_unsound = device == "cpu" and dtype == torch.bfloat16
    with (
        torch.autocast(device, dtype=dtype, enabled=dtype is not None),
        _NarrowInFloat32() if is_unsound else contextlib.nullcontext(),
    ):
        yield


class _NarrowInFloat32(TorchFunctionMode):
    """Computes convolutions of few rows or columns in float32, where that costs next to nothing."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        is_half = torch.is_autocast_enabled("cpu")  # in parts it is switched off
        if is_half and func in CONVOLUTIONS and _is_narrow(*args, **kwargs):
            with torch.autocast("cpu", enabled=False):
                args, kwargs = _in_float32(args), dict(zip(kwargs, _in_float32(kwargs.values())))
                return func(*args, **kwargs).bfloat16()
        return func(*args, **kwargs)


def _is_narrow(input, weight, bias=None, stride=1, padding=0, dilation=1, *args, **kwargs):
    """Whether input or output may have but one row or column, or the strides differ.

    An output of one is at most ``dilation * (kernel - 1) + stride`` long before the convolution.
    """
    strides, dilations = ((x, x) if isinstance(x, int) else x for x in (stride, dilation))
    sides = zip(input.shape[-2:], weight.shape[-2:], strides, dilations)
    is_short = any(n == 1 or n <= d * (k - 1) + s for n, k, s, d in sides)
    return is_short or strides[0] != strides[1]


def _in_float32(values):
    return [x.float() if isinstance(x, torch.Tensor) else x for x in values]
