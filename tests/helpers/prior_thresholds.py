"""Thresholds from the prior, compared with those of a number."""

import math

import pytest
import torch

from sampling_free import BadInput

THETAS = [0.02, 0.1, 0.2]


def compared(kind, theta):
    """What inference compares with: FCOS has the square root of score times centerness."""
    return math.sqrt(theta) if kind == "fcos" else theta


def numbers(threshold):
    return threshold.tolist() if isinstance(threshold, torch.Tensor) else threshold


def line(function, *arguments, **kwargs):
    with pytest.raises(BadInput) as error:
        function(*arguments, **kwargs)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)
