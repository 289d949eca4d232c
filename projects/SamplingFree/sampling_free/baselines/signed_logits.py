"""One tensor for the value and for the gradient of binary cross entropy."""

import torch
from torch import Tensor


def signed_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits, negated at the right class of each foreground row.

    BCE is softplus of it, and sigmoid of it is |sigmoid(x) - y|, the size of BCE's gradient; both
    are exact at tiny scores, see classification_loss.py.

    Args:
        logits: (R, K), any floating type.
        labels: (R,), 0..K-1 foreground of that class; all else is background.

    Returns:
        (R, K), float32, connected to ``logits``.
    """
    logits = logits.float()
    rows = ((labels >= 0) & (labels < logits.shape[1])).nonzero().squeeze(1)
    signs = torch.ones_like(logits)
    signs[rows, labels[rows].long()] = -1  # an RPN labels in int8
    return signs * logits
