"""Times of several functions, taken in turn, so that whatever the machine does meets all alike."""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

import numpy as np
import torch

# What glibc does with memory that is freed. Kept, as the caching allocator of a GPU does it, the
# next tensor finds it; by default big tensors are given back, and cost page faults each time.
HEAPS = {
    "kept": {
        "MALLOC_MMAP_THRESHOLD_": str(1 << 40),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        "MALLOC_TOP_PAD_": str(1 << 28),
    },
    "default": {},
}


def now():
    """Seconds, when the GPU has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def in_turn(functions, seconds, least=5, most=100, warm_up=3):
    """
    Args:
        functions (dict[str, callable]): without arguments.
        seconds (float): rounds begin within this time.
        least, most (int): rounds.
        warm_up (int): rounds before, which compile and allocate; not measured.

    Returns:
        dict[str, list[float]]: seconds of each call, round by round.
    """
    for _ in range(warm_up):
        for function in functions.values():
            function()
    times = {name: [] for name in functions}
    begin = now()
    for i in range(most):
        if i >= least and now() - begin > seconds:
            break
        names = list(functions)
        for name in names[i % len(names) :] + names[: i % len(names)]:  # each once the first
            start = now()
            result = functions[name]()
            times[name].append(now() - start)
            del result  # not in the time, as its owner would keep it
    return times


def summary(times, reference):
    """
    Args:
        times (list[float]): seconds.
        reference (list[float]): of what it is compared with, in the same rounds.

    Returns:
        dict[str, float]: "rounds"; median and quantiles of the milliseconds, "ms", "ms_10",
        "ms_90"; and of the ratio to the reference, round by round, "ratio" and so on.
    """
    return {
        "rounds": len(times),
        **_quantiles("ms", np.multiply(times, 1e3)),
        **_quantiles("ratio", np.divide(times, reference)),
    }


def _quantiles(name, values):
    low, median, high = np.quantile(values, (0.1, 0.5, 0.9))
    return {name: float(median), f"{name}_10": float(low), f"{name}_90": float(high)}


def in_own_process(heap, function, *args):
    """Calls ``function`` in a new process, as an allocator keeps the mode that it starts in.

    Args:
        heap (str): of ``HEAPS``.
        function (callable): of a module.

    Returns:
        what the function returns.
    """
    spawn = multiprocessing.get_context("spawn")
    with mock.patch.dict(os.environ, HEAPS[heap]), ProcessPoolExecutor(1, spawn) as pool:
        return pool.submit(function, *args).result()
