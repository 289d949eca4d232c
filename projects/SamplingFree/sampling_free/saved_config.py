"""The config.yaml of a run, which repeats it."""

import contextlib
import functools
from unittest import mock

import yaml


@contextlib.contextmanager
def keys_in_order():
    """Detectron2's ``LazyConfig.save`` within it keeps the order of keys, which it sorts else.

    The parts of a model are built, and draw their random weights, in the order of the keys.
    """
    with mock.patch.object(yaml, "dump", functools.partial(yaml.dump, sort_keys=False)):
        yield
