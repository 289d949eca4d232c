"""The config.yaml of a run, which repeats it."""

import contextlib
import functools
from collections.abc import Iterator

import yaml


@contextlib.contextmanager
def keys_in_order() -> Iterator[None]:
    """Lets Detectron2's ``LazyConfig.save`` keep the order of keys, which it otherwise sorts.

    The parts of a model are built, and draw their random weights, in the order of the keys.
    """
    dump = yaml.dump
    yaml.dump = functools.partial(dump, sort_keys=False)
    try:
        yield
    finally:
        yaml.dump = dump
