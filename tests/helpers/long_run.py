"""What a run holds while it trains, from /proc: memory, open files, threads and processes."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from detectron2.utils.events import get_event_storage

from sampling_free.data.loader import build_replayable_train_loader

needs_proc = pytest.mark.skipif(
    not (os.path.isdir("/proc/self/fd") and os.path.isfile("/proc/self/status")),
    reason="what a process holds is read from Linux' /proc",
)
EVERY = 50  # iterations between two samples
PHASE = 25  # the samples lie between evaluations, checkpoints and measurements


def held(pid="self"):
    """What a process holds.

    Args:
        pid (int or str): of the process; "self" for this one.

    Returns:
        dict[str, int]: "rss", resident memory in KiB; "handles", open files, sockets and pipes
        among them; "threads".
    """
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    listing = pid == "self"  # is itself an open file
    return {
        "rss": int(status["VmRSS"].split()[0]),
        "handles": len(os.listdir(f"/proc/{pid}/fd")) - listing,
        "threads": int(status["Threads"]),
    }


def children():
    """list[int]: the processes that this one has started and that have not ended."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:  # the name, in brackets, may hold anything; then come the state and the parent
            state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has ended
            continue
        if int(parent) == os.getpid() and state != "Z":
            found.append(int(pid))
    return found


def sample():
    """dict[str, int]: :func:`held` by this process; "rss_of_all" with its children's (KiB), which
    counts what they share several times; how many "processes" that are; and the "values" in the
    histories of the event storage.
    """
    mine, others = held(), [held(pid) for pid in children()]
    histories = get_event_storage().histories().values()
    return {
        **mine,
        "rss_of_all": sum(x["rss"] for x in [mine, *others]),
        "processes": 1 + len(others),
        "values": sum(len(x.values()) for x in histories),
    }


class WatchedLoader:
    """A training loader that writes a :func:`sample` before some of the iterations."""

    def __init__(self, loader, file):
        """Args: loader (Iterable): endless; file (str): gets a line of JSON for each sample."""
        self.loader = loader
        self.file = file

    def __iter__(self):
        for iteration, batch in enumerate(self.loader):
            if iteration % EVERY == PHASE:
                line = json.dumps({"iteration": iteration, **sample()})
                with open(self.file, "a") as f:
                    print(line, file=f)
            yield batch


def build_watched_loader(dataset, *, mapper, file, **kwargs):
    """The project's training loader, watched; for a config. ``file`` as in WatchedLoader."""
    loader = build_replayable_train_loader(dataset, mapper=mapper, **kwargs)
    return WatchedLoader(loader, file)


def means(samples, key, warmup, window):
    """
    Args:
        samples (list[dict]): in order, with an "iteration" each.
        warmup, window (int): iterations.

    Returns:
        tuple[float, float]: means of ``key`` over ``window`` iterations, the first after ``warmup``
        and the last.
    """
    end = samples[-1]["iteration"] - samples[-1]["iteration"] % window + window
    spans = [(warmup, warmup + window), (end - window, end)]
    return tuple(
        float(np.mean([x[key] for x in samples if a <= x["iteration"] < b])) for a, b in spans
    )


def slope(samples, key, warmup):
    """float: of the straight line of least squares through ``key`` after ``warmup``."""
    rows = [(x["iteration"], x[key]) for x in samples if x["iteration"] >= warmup]
    return float(np.polyfit(*zip(*rows), deg=1)[0])
