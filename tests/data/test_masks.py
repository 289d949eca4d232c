"""Masks in COCO's form: what pycocotools encodes is sound, and what it cannot decode is not."""

import math

import numpy as np
import pytest
from pycocotools import mask as mask_util

from sampling_free.data.masks import is_sound_mask, run_lengths
from sampling_free.data.synthetic.generate import run_lengths as raw_run_lengths

SQUARE = [1.0, 1, 5, 1, 5, 5, 1, 5]


def random_mask(seed):
    """(H, W) uint8, from empty through noise to full."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 90, 2)
    mask = rng.random((height, width)) < rng.choice([0, 0.001, 0.05, 0.5, 0.99, 1])
    mask[: rng.integers(height + 1), : rng.integers(width + 1)] ^= True
    return mask.astype(np.uint8)


@pytest.mark.parametrize("seed", range(60))
def test_the_letters_of_pycocotools_are_read_as_it_writes_them(seed):
    mask = random_mask(seed)
    encoded = mask_util.encode(np.asfortranarray(mask))
    lengths = run_lengths(encoded["counts"])
    assert np.array_equal(np.repeat(np.arange(len(lengths)) % 2, lengths), mask.flatten("F"))
    text = {**encoded, "counts": encoded["counts"].decode()}
    raw = {"size": list(mask.shape), "counts": raw_run_lengths(mask > 0)}
    for sound in (encoded, text, raw):
        assert is_sound_mask(sound) and is_sound_mask(sound, mask.shape)
    height, width = mask.shape
    assert not is_sound_mask(text, (height + 1, width))
    assert not is_sound_mask({**text, "size": [height, width + 1]})


@pytest.mark.parametrize(
    "mask",
    [
        {},
        {"size": [4, 4]},
        {"size": [4, 4], "counts": []},
        {"size": [4, 4], "counts": [15]},
        {"size": [4, 4], "counts": [-1, 17]},
        {"size": [4, 4], "counts": [8.5, 7.5]},
        {"size": [4, 4], "counts": ["16"]},
        {"size": [4, 4], "counts": [2**70]},
        {"size": [4], "counts": [16]},
        {"size": [4, 4], "counts": None},
        {"size": [4, 4], "counts": ""},
        {"size": [4, 4], "counts": "P"},  # more groups of bits would have to follow
        {"size": [4, 4], "counts": "oooooooo0"},
        {"size": [4, 4], "counts": "\x010"},
        {"size": [4, 4], "counts": "0\xe4"},
        [],
        [[]],
        [[1, 1, 5, 5]],
        [[1, 1, 5, 1, 5, 5, 1]],
        [SQUARE, [1, 1]],
        [[1, 1, 5, math.nan, 5, 5]],
        [[1, 1, 5, "1", 5, 5]],
        [[[1, 1], [5, 5]]],
        [[[1, 1], [5, math.nan], [5, 5]]],
        [[[1, 1], [5], [5, 5]]],
        [1, 1, 5, 1, 5, 5],
        None,
    ],
)
def test_what_is_no_mask(mask):
    assert not is_sound_mask(mask, (4, 4))


@pytest.mark.parametrize("mask", [[SQUARE], [SQUARE, SQUARE], [np.array(SQUARE)]])
def test_polygons(mask):
    assert is_sound_mask(mask, (4, 4))
    pairs = [np.array(polygon).reshape(-1, 2) for polygon in mask]
    assert is_sound_mask(pairs) and is_sound_mask([p.tolist() for p in pairs])
