import math

import numpy as np
import pytest

from sampling_free.method.prior import (
    bias_to_prior,
    class_priors,
    optimal_prior,
    prior_to_bias,
    softmax_prior_to_bias,
    start_loss,
)

COCO_LIKE = (1.0, 1000.0, 80)  # N_f, N, C


def _minimum(function, low, high):
    """Golden-section search for the minimum of a function with one valley."""
    golden = (math.sqrt(5) - 1) / 2
    a, b = high - golden * (high - low), low + golden * (high - low)
    for _ in range(100):
        if function(a) < function(b):
            high, b = b, a
            a = high - golden * (high - low)
        else:
            low, a = a, b
            b = low + golden * (high - low)
    return (low + high) / 2


COUNTS = [(3, 363, 3), (7.25, 9_000_000.5, 80), (50, 60, 1), (2, 2, 5)]


@pytest.mark.parametrize("counts", COUNTS)
def test_the_optimal_prior_is_where_the_start_loss_is_least(counts):
    best = _minimum(lambda b: start_loss(bias_to_prior(b), *counts), -30, 10)
    assert prior_to_bias(optimal_prior(*counts)) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("counts", COUNTS)
def test_start_loss_is_a_sum_of_binary_cross_entropies(counts):
    # As many places as the counts say, each with its own term; fractions of places count as such.
    num_foreground, num_valid, num_classes = counts
    for prior in (0.5, 0.01, 1e-5):
        ones = num_foreground * -math.log(prior)
        zeros = (num_valid * num_classes - num_foreground) * -math.log(1 - prior)
        expected = (ones + zeros) / num_foreground
        assert start_loss(prior, *counts) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("counts", [(1, 1000, 80), (1, 50, 1), (11, 1_000_000, 20)])
def test_background_part_is_about_one_at_the_optimal_prior_whatever_the_data(counts):
    prior = optimal_prior(*counts)
    assert start_loss(prior, *counts) + math.log(prior) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("prior", [1e-300, 1.25e-5, 0.5, 1 - 1e-12])
def test_bias_is_the_logit_of_the_prior_and_back(prior):
    bias = prior_to_bias(prior)
    odds = math.exp(bias)
    assert odds == pytest.approx(prior / (1 - prior), rel=1e-9)
    assert bias_to_prior(bias) == pytest.approx(prior, rel=1e-9)


def test_bias_agrees_with_the_paper():
    # Section "Optimal Bias Initialization": b = -log(N / N_f * C - 1)
    assert prior_to_bias(optimal_prior(*COCO_LIKE)) == pytest.approx(-math.log(1000 * 80 - 1))


@pytest.mark.parametrize("bias", [-800.0, 800.0])
def test_extreme_biases_do_not_overflow(bias):
    assert bias_to_prior(bias) == (0.0 if bias < 0 else 1.0)


@pytest.mark.parametrize("counts", [(0, 10, 3), (11, 10, 3), (10, 10, 1), (0, 0, 1)])
def test_impossible_counts_are_refused_with_their_numbers(counts):
    with pytest.raises(ValueError, match=f"N_f={counts[0]}, N={counts[1]}"):
        optimal_prior(*counts)


@pytest.mark.parametrize("prior", [0, 1, -0.1, float("nan")])
def test_a_prior_outside_0_1_is_refused(prior):
    with pytest.raises(ValueError, match="probability"):
        prior_to_bias(prior)


def _softmax(logits):
    terms = [math.exp(x - max(logits)) for x in logits]
    return [t / sum(terms) for t in terms]


@pytest.mark.parametrize(
    "num_classes, share, others",
    [(1, 1e-6, 0.0), (3, 0.5, -3.5), (80, 0.1, 0.0), (80, 1 - 1e-6, -3.5)],
)
def test_a_softmax_with_the_bias_gives_each_class_the_prior(num_classes, share, others):
    prior = share / num_classes  # share: of all classes together
    difference = softmax_prior_to_bias(prior, num_classes)
    *classes, background = _softmax([others] * num_classes + [others + difference])
    assert classes == pytest.approx([prior] * num_classes, rel=1e-9)
    assert background == pytest.approx(1 - share, rel=1e-6)


@pytest.mark.parametrize("prior", [0, -0.1, 1 / 3, float("nan")])
def test_a_softmax_prior_that_leaves_the_background_nothing_is_refused(prior):
    with pytest.raises(ValueError, match="3 classes and background"):
        softmax_prior_to_bias(prior, 3)


class TestClassPriors:
    @pytest.mark.parametrize("num", [1, 300, 9999])
    def test_no_other_start_score_has_a_smaller_loss(self, num):
        (prior,) = class_priors([num], 10000)
        scores = np.exp(np.linspace(np.log(prior) - 3, min(np.log(prior) + 3, -1e-9), 20001))
        losses = -num * np.log(scores) - (10000 - num) * np.log1p(-scores)
        assert scores[losses.argmin()] == pytest.approx(prior, rel=1e-3)

    def test_a_class_without_a_sample_counts_as_one(self):
        assert class_priors([0, 5.5, 1], 100) == [0.01, 0.055, 0.01]

    @pytest.mark.parametrize("counts", [[100], [5, 101]])
    def test_more_foreground_than_samples_is_refused(self, counts):
        with pytest.raises(ValueError, match="N_j"):
            class_priors(counts, 100)
