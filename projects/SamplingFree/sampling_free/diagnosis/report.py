"""The imbalance of a training set as a detector sees it, before the training, and what to do.

The counts come from the detector's own label assignment (estimate.py), all else from one batch
through the real model (gradients.py).
"""

import math
from dataclasses import asdict, dataclass, field

from tabulate import tabulate

from ..counting.estimate import PriorEstimate
from ..method.prior import prior_to_bias, start_loss
from ..utils.files import finite
from .gradients import PARTS, Measurement
from .verdicts import LARGE, collapse, explosion, readable

MOST_CLASSES = 20  # in the text; JSON has all
FAR = 2.0  # times the least start loss
UNREACHED, EMPTY = 0.01, 0.5  # shares from which a line says so
YAML_KEYS = {
    "model.head.prior_prob": "MODEL.RETINANET.PRIOR_PROB",
    "model.prior": "MODEL.SAMPLING_FREE.PRIOR",
    "model.proposal_generator.prior": "MODEL.SAMPLING_FREE.PRIOR",
}


@dataclass
class Imbalance:
    """What was found.

    Attributes:
        config (str): the file.
        estimate (PriorEstimate): counts of the training set, or of a part of it.
        num_images_of_set (int): images of the training set, counted or not.
        measurement (Measurement): of one batch.
        num_images (int): in that batch.
        weights (str): where the weights come from, in words.
        objects (dict[str, int]): objects of each class in the whole training set.
        is_yaml (bool): whether the config is a YAML file of Detectron2, which has other keys.
    """

    config: str
    estimate: PriorEstimate
    num_images_of_set: int
    measurement: Measurement
    num_images: int
    weights: str
    objects: dict = field(default_factory=dict)
    is_yaml: bool = False

    @property
    def classes(self) -> dict[str, float]:
        """Returns the number of each class.

        Returns:
            Foreground anchors of each class, or its objects where the counts are
            those of an RPN, which knows but one class.
        """
        has_classes = self.estimate.per_class.keys() == self.objects.keys()
        return self.estimate.per_class if has_classes or not self.objects else self.objects

    def optimal_prior(self, head) -> float | None:
        """Returns the optimal prior of a head.

        Returns:
            pi*, of the data set; of a head that gets proposals or sampled anchors,
            of the batch.
        """
        return self.estimate.prior if head.takes_all_anchors else head.optimal_prior

    def least_loss(self, head) -> float | None:
        """Returns the least loss that one score for all can have.

        Returns:
            The least cross entropy per foreground sample that one score for all can
            have, about -log(pi*) + 1; None for a softmax, which has no such score.
        """
        if head.takes_all_anchors:
            return self.estimate.start_loss()
        if head.is_softmax or head.optimal_prior is None:
            return None
        counts = head.num_foreground, head.num_valid, head.num_classes
        return start_loss(head.optimal_prior, *counts)

    def as_json(self):
        """dict: plain JSON values, None for what is not finite."""
        estimate, heads = self.estimate, []
        for head in self.measurement.heads:
            numbers = asdict(head)
            numbers["gradient_ratio"] = head.gradient_ratio
            numbers["optimal_prior"] = self.optimal_prior(head)
            numbers["least_cross_entropy"] = self.least_loss(head)
            heads.append(numbers)
        numbers = {
            "config": self.config,
            "weights": self.weights,
            "images": self.num_images_of_set,
            "objects": self.objects,
            "prior": estimate.prior,
            "bias": estimate.bias,
            "counts": asdict(estimate),
            "batch": {
                "images": self.num_images,
                "losses": self.measurement.losses,
                "heads": heads,
                "other_features": self.measurement.other_features,
            },
            "verdicts": verdicts(self),
        }
        return finite(numbers)

    def text(self):
        """str: tables and the verdicts."""
        estimate = self.estimate
        counted = f"{estimate.num_images} images counted, of {self.num_images_of_set}"
        lines = [
            f"Training set, as this detector sees it ({counted})",
            "",
            _shortened(estimate).table(),
            *_objects(self),
            "",
            f"First batch ({self.num_images} images; {self.weights})",
            "",
            _losses(self),
            "",
            "Gradients: L1 norm at the heads' outputs, L2 norm at the shared features",
            "",
            _gradients(self.measurement),
            "",
            "Verdict",
            *(f"  - {line}" for line in verdicts(self)),
        ]
        return "\n".join(lines)


def verdicts(found: Imbalance) -> list[str]:
    """Says in words what was found.

    Args:
        found:

    Returns:
        Sentences, those of the data first.
    """
    estimate, lines = found.estimate, []
    if estimate.num_objects and estimate.num_unreached / estimate.num_objects >= UNREACHED:
        lines.append(
            f"{estimate.num_unreached:.4g} of {estimate.num_objects:.6g} objects are reached by no "
            "anchor and teach only the background: use other anchor sizes or a larger input"
        )
    if estimate.num_empty_images > EMPTY * estimate.num_images:
        lines.append(
            f"{estimate.num_empty_images} of {estimate.num_images} images are empty: use large "
            "batches, as one without a single object teaches nothing"
        )
    absent = [name for name, n in found.classes.items() if not n > 0]
    if absent:
        names = ", ".join(absent[:MOST_CLASSES]) + (" ..." if absent[MOST_CLASSES:] else "")
        where = f"in the {estimate.num_images} images counted no anchor is foreground"
        if found.classes is found.objects:
            where = "no object is"
        lines.append(f"{where} of {len(absent)} class(es): {names}")
    for head in found.measurement.heads:
        lines += [line for line in _verdicts_of(found, head) if line]
    return lines


def _verdicts_of(found, head):
    if head.num_foreground == 0:
        yield f"{head.cls_name}: no foreground in this batch, so that nothing can be said"
        return
    cls, cure = head.cls_name, _cure(found, head)
    exploding, ratio = explosion(head), head.gradient_ratio
    if exploding:
        yield f"{exploding}{cure}"
    elif ratio is not None:
        why = ""
        if ratio > LARGE:
            why = ", which is small as it is divided by all samples or made of IoU"
        yield (
            f"the gradient of {cls} is {readable(ratio)} times that of "
            f"{' + '.join(head.loc_names)}{why}; with {readable(head.outputs[cls])} in all no "
            "explosion is to be expected"
        )
    forgotten = collapse(head)
    if forgotten:
        yield f"{forgotten}{'' if exploding else cure}"
    least = found.least_loss(head) if head.takes_all_anchors else None
    if least and head.cross_entropy > FAR * least and not head.is_focal:
        yield (
            f"cross entropy of {cls} starts at {readable(head.cross_entropy)} per foreground "
            f"anchor, {readable(head.cross_entropy / least)} times the least possible "
            f"{least:.1f}{'' if exploding or forgotten else cure}"
        )


def _cure(found, head):
    prior, key = found.optimal_prior(head), head.prior_key
    score = head.scores.get("background", math.nan)
    if not head.takes_all_anchors or not math.isfinite(head.outputs[head.cls_name] + score):
        return ""
    if prior / FAR < score < prior * FAR:  # it does start there
        return "; the weight of that loss is the cause" if head.ratio is not None else ""
    if found.is_yaml:
        key = YAML_KEYS.get(key, key)
    if head.takes_measured_prior:
        return f"; set {key} to 'auto', which is {prior:.2g} here"
    number = f"set the prior to {prior:.2g}"
    number += f" ({key})" if key else ""
    return f"; {number}, or train with --sampling-free"


def _losses(found):
    rows = []
    for head in found.measurement.heads:
        value = found.measurement.losses[head.cls_name]
        total = sum(head.loss_parts.values())
        shares = [f"{head.loss_parts[p] / total:.1%}" if total else "-" for p in PARTS]
        least = found.least_loss(head)
        prior = found.optimal_prior(head)
        rows.append(
            [
                head.cls_name,
                f"{value:.4g}",
                *shares,
                _or_dash(head.cross_entropy, ".4g"),
                _or_dash(least, ".4g"),
                _or_dash(head.scores.get("background"), ".2e"),
                _or_dash(prior, ".2e"),
                "-" if head.is_softmax else _or_dash(prior and prior_to_bias(prior), ".2f"),
            ]
        )
        rows += [[x, f"{found.measurement.losses[x]:.4g}"] for x in head.loc_names]
    known = {row[0] for row in rows}
    rows += [[k, f"{x:.4g}"] for k, x in found.measurement.losses.items() if k not in known]
    head = ["loss", "value", "foreground", "background", "cross entropy / N_f", "least"]
    head += ["mean score", "best prior", "its bias"]
    return tabulate(rows, head, disable_numparse=True)


def _gradients(measurement):
    rows = []
    for head in measurement.heads:
        for name in (head.cls_name, *(f"{head.cls_name}/{p}" for p in PARTS), *head.loc_names):
            rows.append([name, f"{head.outputs[name]:.3g}", f"{head.features[name]:.3g}"])
        at_features = sum(head.features[x] ** 2 for x in head.loc_names) ** 0.5
        rows.append(
            [
                f"{head.cls_name} / localization",
                _or_dash(head.gradient_ratio, ".3g"),
                _or_dash(at_features and head.features[head.cls_name] / at_features, ".3g"),
            ]
        )
    rows += [[k, "", f"{x:.3g}"] for k, x in measurement.other_features.items()]
    return tabulate(rows, ["gradient of", "outputs", "features"], disable_numparse=True)


def _objects(found):
    """Lines: objects of each class, where the counts know but one class."""
    if found.classes is not found.objects:
        return []
    rows = sorted(found.objects.items(), key=lambda x: x[1], reverse=True)
    if len(rows) > MOST_CLASSES + 1:
        rows = [*rows[: MOST_CLASSES // 2], *rows[-MOST_CLASSES // 2 :]]
    return ["", tabulate(rows, ["class", "objects in the training set"])]


def _or_dash(x, form):
    return "-" if not x else format(x, form)


def _shortened(estimate):
    """A copy with the most frequent classes alone, where there are many."""
    names = sorted(estimate.per_class, key=estimate.per_class.get, reverse=True)
    if len(names) <= MOST_CLASSES + 1:
        return estimate
    half = MOST_CLASSES // 2
    shown = {name: estimate.per_class[name] for name in (*names[:half], *names[-half:])}
    return PriorEstimate(**{**vars(estimate), "per_class": shown})
