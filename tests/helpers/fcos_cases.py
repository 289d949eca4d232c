"""FCOS and inputs for it."""

import torch


def lively(model, seed=5):
    """The model with head weights that are not all near zero, so that predictions differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer, scale in [("cls_score", 0.3), ("bbox_pred", 0.1), ("ctrness", 0.3)]:
            weight = getattr(model.head, layer).weight
            weight.add_(scale * torch.randn(weight.shape, generator=generator))
        model.head.bbox_pred.bias.fill_(1.2)
    return model
