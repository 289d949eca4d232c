"""Autocast for training, without the one gradient that PyTorch leaves unwritten on CPUs.

In bfloat16 on a CPU the weight gradient of a convolution whose input is narrower than its stride
reads memory that nobody wrote (oneDNN; seen with PyTorch 2.11 to 2.14, with and without AMX).
P6 and P7 of small images are such inputs. In float32 and float16 it is right.
"""

import contextlib

import torch
from torch.overrides import TorchFunctionMode


@contextlib.contextmanager
def training_autocast(device, dtype):
    """A context in which a detector computes its losses in mixed precision.

    Args:
        device (str): "cuda" or "cpu".
        dtype (torch.dtype or None): of convolutions and matrix products; None for full precision.

    """
    is_unsound = device == "cpu" and dtype == torch.bfloat16
    with (
        torch.autocast(device, dtype=dtype, enabled=dtype is not None),
        _NarrowInFloat32() if is_unsound else contextlib.nullcontext(),
    ):
        yield


class _NarrowInFloat32(TorchFunctionMode):
    """Computes convolutions of inputs that are narrower than the stride in float32."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        is_half = torch.is_autocast_enabled("cpu")  # in parts it is switched off
        if is_half and func is torch.conv2d and _is_narrow(*args, **kwargs):
            with torch.autocast("cpu", enabled=False):
                args, kwargs = _in_float32(args), dict(zip(kwargs, _in_float32(kwargs.values())))
                return func(*args, **kwargs).bfloat16()
        return func(*args, **kwargs)


def _is_narrow(input, weight, bias=None, stride=1, *args, **kwargs):
    return input.shape[-1] < (stride if isinstance(stride, int) else stride[-1])


def _in_float32(values):
    return [x.float() if isinstance(x, torch.Tensor) else x for x in values]
