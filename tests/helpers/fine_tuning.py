"""Checkpoints to fine-tune from, and what a bias should be then."""

import pytest
import torch

RPN = "proposal_generator.rpn_head.objectness_logits.bias"

PREDICTOR = "roi_heads.box_predictor.cls_score.bias"

HEAD = "head.cls_score.bias"


def bias(model, key):
    return model.state_dict()[key].clone()


def with_own_biases(source, *keys, seed=4):
    """Gives the classification layers weights and biases as no initialization has them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key in keys:
            for name, shift in ((key, -2), (key.replace("bias", "weight"), 0)):
                parameter = source.get_parameter(name)
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 3 + shift)
    return source


def assert_filled(value, expected):
    assert value.tolist() == pytest.approx([expected] * len(value), rel=1e-5)
