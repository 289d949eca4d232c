"""Configs of the zoo and what their variants are."""

import pytest
import torch
from detectron2.config import instantiate

from helpers.small_zoo import (
    PRIOR,
    shrink,
)
from sampling_free import (
    BadInput,
    as_variant,
)

METHOD = ("sampling_free", "all_samples")


def varied(cfg, name):
    return as_variant(cfg, name, quiet=True)


def tiny(node):
    """The model of a node, made small."""
    shrink(node)
    for head in (node, node.get("proposal_generator", None) or {}):
        if head.get("prior", None) == "auto":
            head.prior = PRIOR
    torch.manual_seed(0)
    return instantiate(node)


def message(function, *args):
    """The one line of the refusal."""
    with pytest.raises(BadInput) as e:
        function(*args)
    assert len(str(e.value).splitlines()) == 1
    return str(e.value)
