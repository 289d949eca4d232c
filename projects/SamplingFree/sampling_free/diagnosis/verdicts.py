"""What the numbers of a measurement mean, in words.

Two limits, of this project; neither enters the training:

    LARGE = 10       classification gradient over localization gradient at the outputs, L1 norms.
                     A box loss that is a mean over the foreground pushes by about 1 at each
                     coordinate. One that is divided by all samples, or made of IoU, pushes less
                     and says less, so that it counts as 1. What was measured on either side of
                     the limit is in docs/imbalance.md.
    FORGOTTEN = 0.1  mean score of the foreground over N_f / (N * K), the best score of a detector
                     that knows nothing but the counts. Below it, knowing nothing would be better.
"""

import math

LARGE = 10
FORGOTTEN = 0.1


def explosion(head) -> str:
    """Says whether the gradients of a head explode.

    Args:
        head (HeadMeasurement):

    Returns:
        One sentence if gradients are not finite or far too large, else "".
    """
    norms = [*head.outputs.items(), *head.features.items()]
    wrong = dict.fromkeys(k for k, x in norms if not math.isfinite(x))
    if wrong:
        return f"the gradient of {', '.join(wrong)} is not finite; the learning rate is too large"
    loc = sum(head.outputs[name] for name in head.loc_names)
    if not loc or head.outputs[head.cls_name] <= LARGE * max(loc, 1.0):
        return ""
    return (
        f"the gradient of {head.cls_name} is {readable(head.gradient_ratio)} times that of "
        f"{' + '.join(head.loc_names)}: expect divergence, or everything to become background"
    )


def collapse(head) -> str:
    """Says whether a head has collapsed.

    Args:
        head (HeadMeasurement):

    Returns:
        One sentence if everything is background to this head, else "".
    """
    score, prior = head.scores.get("foreground"), head.optimal_prior
    if score is None or prior is None or not score < FORGOTTEN * prior:  # NaN explodes
        return ""
    return (
        f"to {head.cls_name} everything is background: the mean score of the foreground is "
        f"{score:.2g}, while a detector that knows nothing but the counts of this batch would give "
        f"{prior:.2g} everywhere"
    )


def readable(x):
    """Three digits: 0.0546, 55.5, 3,200."""
    return f"{x:,.0f}" if x >= 1000 else f"{x:.3g}"
