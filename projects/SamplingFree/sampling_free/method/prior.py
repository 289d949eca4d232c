"""Idea 1 of the paper: start where the imbalance is already accounted for.

Every score of a freshly initialized dense detector is about sigmoid(b), the *prior*. With the
usual b = 0, or the 0.01 that focal loss asks for, thousands of background samples then push with
one voice and the classification gradient explodes. The counts of the training set say which b is
best, so nothing is left to tune.

    N    valid samples: anchors labeled foreground or background (ignored ones are in neither)
    N_f  foreground samples among them
    C    classes; 1 for the objectness of an RPN

Source: Chen et al., "Is Heuristic Sampling Necessary in Training Deep Object Detectors?",
arXiv 1909.04868, section "Optimal Bias Initialization". Pure mathematics; needs no Detectron2.
"""

import math
from collections.abc import Sequence


def optimal_prior(num_foreground: float, num_valid: float, num_classes: int) -> float:
    """The prior that minimizes :func:`start_loss`: pi* = N_f / (N * C).

    A binary label is 1 in N_f of the N * C places, so pi* is simply their mean.

    Args:
        num_foreground: N_f, in (0, N). Means over augmented views need not be whole.
        num_valid: N > 0.
        num_classes: C >= 1.

    Returns:
        In (0, 1).

    Raises:
        ValueError: if there is no foreground, or more foreground than samples.
    """
    if not 0 < num_foreground < num_valid * num_classes or num_foreground > num_valid:
        raise ValueError(
            f"need 0 < N_f <= N and N_f < N * C, got N_f={num_foreground}, N={num_valid}, "
            f"C={num_classes}"
        )
    return num_foreground / (num_valid * num_classes)


def class_priors(num_foreground_per_class: Sequence[float], num_valid: float) -> list[float]:
    """The best prior of each class by itself: theta_j = N_j / N.

    A class' scores are right at 1 on its N_j foreground samples and at 0 on all others, so its
    best start score is their mean, and the start loss is minimal class by class. With one prior
    for all classes pi* is the mean of theta_j. Ours; the paper has theta_j as a test threshold.

    Args:
        num_foreground_per_class: N_j of each class, (C,). A class without a
            foreground sample counts as one: its prior stays above 0.
        num_valid: N > 0.

    Returns:
        (C,), each in (0, 1).

    Raises:
        ValueError: if a class has as many foreground samples as there are samples.
    """
    counts = [n if n > 0 else 1.0 for n in num_foreground_per_class]
    if not all(0 < n < num_valid for n in counts):
        raise ValueError(f"need 0 < N_j < N, got N_j={counts}, N={num_valid}")
    return [n / num_valid for n in counts]


def prior_to_bias(prior: float) -> float:
    """The bias b with sigmoid(b) = prior: b = log(pi / (1 - pi)) = -log(N / N_f * C - 1) at pi*.

    Args:
        prior: in (0, 1).

    Returns:
        The logit of ``prior``.

    Raises:
        ValueError: if ``prior`` is outside (0, 1).
    """
    if not 0 < prior < 1:
        raise ValueError(f"a prior is a probability in (0, 1), got {prior}")
    return math.log(prior) - math.log1p(-prior)


def bias_to_prior(bias: float) -> float:
    """The inverse of :func:`prior_to_bias`, the sigmoid, without overflow at either end."""
    e = math.exp(-abs(bias))
    return 1 / (1 + e) if bias >= 0 else e / (1 + e)


def softmax_prior_to_bias(prior: float, num_classes: int) -> float:
    """The analogue for a softmax over C classes and background, of which the paper says nothing.

    With equal weights and foreground biases of 0 the background's bias is
    b_bg - b_fg = log((1 - C * pi) / pi).

    Args:
        prior: start score of each class, in (0, 1 / C).
        num_classes: C >= 1.

    Returns:
        b_bg - b_fg.

    Raises:
        ValueError: if ``prior`` is outside (0, 1 / C).
    """
    if not 0 < prior < 1 / num_classes:
        raise ValueError(
            f"the prior of a softmax over {num_classes} classes and background is in "
            f"(0, 1/{num_classes}), got {prior}"
        )
    return math.log1p(-num_classes * prior) - math.log(prior)


def start_loss(prior: float, num_foreground: float, num_valid: float, num_classes: int) -> float:
    """Classification loss per foreground sample when every score equals ``prior``.

        L(pi) = -log(pi) - (N / N_f * C - 1) * log(1 - pi)

    The first term is the one right class of each foreground sample, the second all other places.
    Its minimum is at :func:`optimal_prior`, where the second term is about 1 whatever the data;
    near the minimum it is flat, so a prior that is 1 % off does no harm.

    Args:
        prior: pi, in (0, 1).
        num_foreground, num_valid, num_classes: as in :func:`optimal_prior`.

    Returns:
        In nats per foreground sample.
    """
    num_zeros_per_foreground = num_valid / num_foreground * num_classes - 1
    return -math.log(prior) - num_zeros_per_foreground * math.log1p(-prior)
