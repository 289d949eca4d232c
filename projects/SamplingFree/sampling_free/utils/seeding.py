"""Random generators that depend on a seed alone."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def seeded(*seed: int) -> Iterator[None]:
    """Makes the global random generators depend on ``seed`` (all >= 0) alone.

    Augmentations draw from those of Python, numpy or torch. The former states come back.
    """
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    words = np.random.SeedSequence(seed).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1:])
    torch.random.default_generator.manual_seed(int(words[0]))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
