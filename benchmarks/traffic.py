"""Bytes that a function moves through memory, and bytes that it holds.

Both depend on the shapes and on PyTorch alone, not on the speed of the machine.
"""

import json
import os
import tempfile
import warnings
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Else the profiler says on every machine without a GPU that there is none.
os.environ.setdefault("KINETO_LOG_LEVEL", "5")

# By their schema these are no views, but they move nothing.
STILL = {"_unsafe_view", "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty"}
# They read as much of the first argument as they return.
PICKS = {"index", "index_select", "gather", "take", "masked_select"}
# They write as much of it as they are given, or have indices.
PUTS = {"index_put_", "_index_put_impl_", "index_add_", "index_copy_", "index_fill_", "scatter_"}
FILLS = {"copy_", "fill_", "zero_"}  # they write it without reading


class Traffic(TorchDispatchMode):
    """A context that counts what the operators inside it read and write.

    Each tensor that an operator is given counts once, each that it returns once. Views and
    allocations are free, a tensor that is expanded counts as what is there of it. Compiled code
    and kernels outside of PyTorch's operators are not seen.

    Attributes:
        bytes (int): read and written.
    """

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.bytes += _bytes_moved(func._schema, args, kwargs or {}, result)
        return result


def _bytes_moved(schema, args, kwargs, result):
    name = schema.name.split("::")[-1]
    aliases = [x.alias_info for x in schema.returns]
    if name in STILL or any(a is not None and not a.is_write for a in aliases):
        return 0
    outputs = {a.name for a in schema.arguments if a.is_out}
    given = [_size(x) for x in _tensors((args, [v for k, v in kwargs.items() if k not in outputs]))]
    returned = sum(map(_size, _tensors(result)))
    if name in PICKS:
        return sum(given[1:]) + 2 * returned
    if name in PUTS:
        return sum(given[1:]) + given[-1]
    return sum(given[1:] if name in FILLS else given) + returned


def _tensors(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _size(x):
    """Bytes of the elements of ``x`` that lie apart in memory."""
    num = x.element_size()
    for length, stride in zip(x.shape, x.stride()):
        num *= length if stride else min(length, 1)
    return num


class Memory(NamedTuple):
    """Bytes beyond those that were held before.

    Attributes:
        peak: at most, while the function ran.
        held: at its end, with its result and what that keeps alive.
    """

    peak: int
    held: int


def memory_of(function, device):
    """
    Args:
        function (callable): without arguments; called once.
        device (str): "cpu" has PyTorch's allocations listed by its profiler, "cuda" asks its
            allocator.

    Returns:
        Memory
    """
    return _memory_on_gpu(function) if device == "cuda" else _memory_on_cpu(function)


def _memory_on_gpu(function):
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = function()
    torch.cuda.synchronize()
    memory = Memory(
        torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before
    )
    del result
    return memory


def _memory_on_cpu(function):
    with profile(profile_memory=True) as p:
        result = function()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace.json")
        p.export_chrome_trace(path)
        with open(path) as f:
            events = [e for e in json.load(f)["traceEvents"] if e["name"] == "[memory]"]
    del result
    peak = held = 0
    sizes = {}  # of what was allocated here and lives, by address
    for event in sorted(events, key=lambda e: e["ts"]):
        size, address = event["args"]["Bytes"], event["args"]["Addr"]
        if size > 0:
            sizes[address] = size
        held += size if size > 0 else -sizes.pop(address, 0)
        peak = max(peak, held)
    return Memory(peak, held)


def synchronizations(function):
    """
    Args:
        function (callable): without arguments; called once.

    Returns:
        int or None: how often it made the CPU wait for the GPU; None where there is no GPU.
    """
    if not torch.cuda.is_available():
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(w.message) for w in caught)
