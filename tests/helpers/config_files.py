"""The files in configs/."""

import copy
import functools
import re

import pytest

from helpers.tiny_run import REPO
from sampling_free.config.load import load_config

FOLDER = REPO / "configs"

WHOLE = sorted(p for p in FOLDER.rglob("*.py") if p.parent.name != "common")

SUFFIX = re.compile("_(focal|sampled)$")

BASELINES = [p for p in WHOLE if SUFFIX.search(p.stem)]

SAMPLING_FREE = [p for p in WHOLE if p not in BASELINES]


def name(path):
    return str(path.relative_to(FOLDER))


def cases(paths):
    return pytest.mark.parametrize("path", paths, ids=name)


@functools.lru_cache(None)
def _loaded(path):
    return load_config(str(path))


def config(path):
    """A copy of a config that a test may change."""
    return copy.deepcopy(_loaded(path))
