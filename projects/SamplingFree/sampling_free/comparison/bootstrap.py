"""AP of a test set whose images are drawn anew: how much a result owes to these very images.

    bootstrap_ap(evaluation) -> list[float]      # one AP for each drawing
    paired_interval(a, b, mean) -> (low, high)   # of the mean difference of two variants

The drawings depend on nothing but the number of images, so that two runs on one test set are
drawn alike and their differences are paired (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993, chapter 13: percentile intervals). `scipy.stats.bootstrap` would need the
detections of all runs at once; a record keeps the APs of its drawings, for any later pair of runs.

Legend: B drawings, I images, D detections and G objects of one class.
"""

import contextlib
import io

import numpy as np
from pycocotools.cocoeval import COCOeval

DRAWINGS = 300
SEED = 0
DIGITS = 3  # of an AP in percent


def evaluated(coco_gt, detections: list[dict]) -> COCOeval | None:
    """COCO's matches of boxes at its ten overlaps, objects of all sizes.

    Args:
        coco_gt (COCO): ground truth.
        detections: in COCO's result format.

    Returns:
        After its ``evaluate``; None without a detection, which ``loadRes``
        does not take.
    """
    if not detections:
        return None
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco_gt, coco_gt.loadRes(detections), "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
    return evaluation


def drawn_weights(num_images, drawings=DRAWINGS) -> np.ndarray:
    """How often each image is in each drawing of as many images, with replacement.

    Returns:
        (B, I) integers; each row adds up to I.
    """
    rng = np.random.Generator(np.random.PCG64(SEED))
    return rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=drawings)


def bootstrap_ap(evaluation: COCOeval, weights: np.ndarray) -> np.ndarray:
    """AP at the ten overlaps, as COCO defines it, of each drawing.

    COCOeval on the drawn images gives the same, but for detections of one image with equal scores,
    which it takes in turns where the image was drawn twice.

    Args:
        evaluation: of :func:`evaluated`.
        weights: (B, I), of :func:`drawn_weights`.

    Returns:
        (B,) in percent; NaN for a drawing without an object.
    """
    num_images = weights.shape[1]
    per_class = len(evaluation.evalImgs) // num_images
    classes = [
        _precisions(evaluation.evalImgs[k * num_images : (k + 1) * num_images], evaluation, weights)
        for k in range(per_class)
    ]
    sums = np.nansum(classes, axis=0)
    counts = np.isfinite(classes).sum(axis=0)
    return 100 * sums / np.where(counts > 0, counts, np.nan)


def _precisions(images, evaluation, weights):
    """(B,) mean precision of one class over recalls and overlaps; NaN where it has no object."""
    known = [(i, e) for i, e in enumerate(images) if e is not None]
    objects = np.zeros(weights.shape[1])
    for i, e in known:
        objects[i] = np.sum(e["gtIgnore"] == 0)
    totals = weights @ objects
    scores = np.concatenate([np.zeros(0), *(e["dtScores"] for _, e in known)])
    order = np.argsort(-scores, kind="mergesort")  # COCO's order of equal scores
    owner = np.concatenate([np.zeros(0, int), *([i] * len(e["dtScores"]) for i, e in known)])
    times = weights[:, owner.astype(int)[order]]
    precisions = np.zeros(len(weights))
    for t in range(len(evaluation.params.iouThrs)):
        correct = np.concatenate([np.zeros(0), *(e["dtMatches"][t] for _, e in known)])[order] > 0
        ignored = np.concatenate([np.zeros(0), *(e["dtIgnore"][t] for _, e in known)])[order] > 0
        right = np.cumsum(times * (correct & ~ignored), axis=1)
        wrong = np.cumsum(times * (~correct & ~ignored), axis=1)
        precisions += _interpolated(right, wrong, totals, evaluation.params.recThrs)
    return np.where(totals > 0, precisions / len(evaluation.params.iouThrs), np.nan)


def _interpolated(right: np.ndarray, wrong: np.ndarray, totals: np.ndarray, recalls: np.ndarray):
    """(B,) mean over the recalls of the best precision at that recall or a larger one.

    Args:
        right, wrong: (B, D) counts down to each detection.
        totals: (B,) objects.
        recalls: of COCO, 101.
    """
    precision = right / (right + wrong + np.spacing(1))
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    best = np.pad(best, ((0, 0), (0, 1)))  # no detection reaches that recall: 0
    recall = right / np.where(totals > 0, totals, 1)[:, None]
    rows = [b[np.searchsorted(r, recalls, side="left")].mean() for b, r in zip(best, recall)]
    return np.array(rows)


def paired_interval(
    values: np.ndarray, reference: np.ndarray, observed: float, confidence: float = 0.95
) -> tuple[float, float]:
    """The interval of the mean difference of two variants over the drawn images.

    It has the percentiles of the drawn differences, moved so that these have ``observed`` for their
    mean: a drawing leaves out classes of which it has no object, so that its AP is of fewer ones.

    Args:
        values, reference: (S, B) APs of S seeds, of the same drawings.
        observed: the mean difference on the images as they are.
        confidence: in (0, 1).

    Returns:
        Low and high.
    """
    difference = np.nanmean(values - reference, axis=0)
    tail = 50 * (1 - confidence)
    moved = difference - np.nanmean(difference) + observed
    low, high = np.nanpercentile(moved, [tail, 100 - tail])
    return float(low), float(high)
