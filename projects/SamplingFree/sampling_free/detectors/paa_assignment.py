"""PAA: which anchors are foreground, by a mixture of two Gaussians over what the network says.

    R anchors of all levels   n candidates of an object

Each anchor has a loss for the object that it would be matched with: classification plus
localization, as the network now is. Of each object's anchors the k of lowest loss in every level
are its candidates. A mixture of two Gaussians is fitted to their losses: the component of low
losses are those which the network takes for the object. Foreground are the candidates up to the
one of them at which the mixture's density is largest; all others are background.

Source: Kim and Lee, "Probabilistic Anchor Assignment with IoU Prediction for Object Detection",
arXiv 2007.08103, section 3.2, figure 3 (c) and algorithm 1.
"""

import warnings

import numpy as np
import torch
from torch import Tensor

from ..utils.errors import BadInput


def num_positives(losses: np.ndarray) -> int:
    """Counts the foreground among an object's candidates.

    Args:
        losses: (n,) in ascending order, n >= 1, finite.

    Returns:
        In 1..n; the first so many are foreground.
    """
    if len(losses) == 1:
        return 1
    mixture = _gaussian_mixture()(
        n_components=2,
        weights_init=[0.5, 0.5],
        means_init=[[losses[0]], [losses[-1]]],
        precisions_init=[[[1.0]], [[1.0]]],
        # Without effect on the fit; old versions would otherwise begin with k-means.
        init_params="random",
        random_state=0,
    )
    values = np.asarray(losses, dtype=np.float64)[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it did not converge, or found one cluster only
        mixture.fit(values)
    low = np.flatnonzero(mixture.predict(values) == 0)
    if len(low) == 0:
        return len(losses)
    return int(low[np.argmax(mixture.score_samples(values[low]))]) + 1


@torch.no_grad()
def paa_match(losses: Tensor, objects: Tensor, num_per_level: list[int], topk: int = 9) -> Tensor:
    """Assigns anchors to objects as PAA does.

    Args:
        losses: (R,) of each anchor for the object in ``objects``.
        objects: (R,) the object that an anchor would be matched with, -1 for none.
        num_per_level: anchors of each level, R in sum.
        topk: k, candidates of each level.

    Returns:
        (R,) index of the object of each anchor, -1 for background.

    Raises:
        FloatingPointError: for a loss that is not finite.
    """
    matched = torch.full_like(objects, -1)
    indices = (objects >= 0).nonzero().squeeze(1)
    levels = torch.arange(len(num_per_level)).repeat_interleave(torch.tensor(num_per_level))
    levels = levels[indices.cpu()].numpy()
    # On the CPU, where the library works: of each object a few dozen numbers.
    candidates = losses[indices].double().cpu().numpy()
    owners = objects[indices].cpu().numpy()
    if not np.isfinite(candidates).all():
        raise FloatingPointError("the losses of the anchors are not finite")
    # The best k of each object in each level; then of each object in one order.
    groups = owners * len(num_per_level) + levels
    order = np.lexsort((candidates, groups))
    rank = np.arange(len(order)) - np.searchsorted(groups[order], groups[order])
    best = order[rank < topk]
    best = best[np.lexsort((candidates[best], owners[best]))]
    positive = []
    for mine in np.split(best, np.flatnonzero(np.diff(owners[best])) + 1):
        if len(mine):
            positive.append(mine[: num_positives(candidates[mine])])
    if positive:
        chosen = indices[torch.from_numpy(np.concatenate(positive)).to(indices.device)]
        matched[chosen] = objects[chosen]
    return matched


def _gaussian_mixture():
    try:
        from sklearn.mixture import GaussianMixture
    except ImportError as e:
        raise BadInput(f"PAA needs scikit-learn ({e}): pip install scikit-learn") from None
    return GaussianMixture
