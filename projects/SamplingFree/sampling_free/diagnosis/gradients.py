"""How large the gradient of each loss term is, where the heads end and where they begin.

The paper (arXiv 1909.04868) blames the magnitude of the classification gradient. Here it is
measured, beside that of the localization loss, for any detector of Detectron2 or of this project:

    at the outputs    L1 norm of the gradient at the logits, or at the box deltas: how hard all
                      samples together push. Those of foreground and background add up.
    at the features   L2 norm of the gradient at the backbone's feature maps, which the heads share.
"""

import contextlib
from dataclasses import dataclass, field

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..detectors.bias import PriorBias
from ..utils.errors import naming_non_finite
from ..utils.models import preserved
from .heads import captured_heads

PARTS = ("foreground", "background")
LOWEST, BINS = -8.0, 40  # of the histograms: log10 of a score


@dataclass
class HeadMeasurement:
    """What one head was found to do. N_f foreground and N valid samples of the batch.

    Attributes:
        cls_name (str), loc_names (list[str]): loss terms, by the model's names.
        num_classes (int): K.
        num_foreground, num_valid (int): N_f and N; what a sampler left, where there is one.
        is_softmax (bool): over K classes and background; else K sigmoids.
        takes_all_anchors (bool): whether its samples are those that a prior is counted on: neither
            proposals nor what a sampler chose.
        is_focal (bool): whether its classification loss is focal loss.
        prior_key (str): the key of a LazyConfig that sets its start score; "" without one.
        takes_measured_prior (bool): whether that key may be left at "auto".
        outputs, features (dict[str, float]): norms by loss term; of the classification loss its
            parts too, under "NAME/foreground" and "NAME/background".
        scores (dict[str, float]): mean score of the right class at the foreground, and of all
            classes at the background.
        saturated (float): share of logits whose score is within float32's epsilon of 0 or 1.
        histograms (dict[str, list]): see :func:`score_histograms`.
        ratio (float or None): r, where the head has a guide.
        loss_parts (dict[str, float]): foreground's and background's part of the classification
            loss; only where they were asked for.
        cross_entropy (float or None): plain cross entropy of the same logits per foreground
            sample, nothing weighted; only where the parts were asked for.
    """

    cls_name: str
    loc_names: list
    num_classes: int
    num_foreground: int
    num_valid: int
    is_softmax: bool
    takes_all_anchors: bool
    is_focal: bool
    prior_key: str
    takes_measured_prior: bool
    outputs: dict
    features: dict
    scores: dict
    saturated: float
    histograms: dict
    ratio: float = None
    loss_parts: dict = field(default_factory=dict)
    cross_entropy: float = None

    @property
    def gradient_ratio(self):
        """float: classification over localization, L1 norms at the outputs; None without either."""
        loc = sum(self.outputs[name] for name in self.loc_names)
        return self.outputs[self.cls_name] / loc if loc else None

    @property
    def optimal_prior(self):
        """float: N_f / (N * K) of this batch; None without foreground, or with nothing else."""
        n = self.num_valid * self.num_classes
        return self.num_foreground / n if 0 < self.num_foreground < n else None


@dataclass
class Measurement:
    """What a batch does to a whole detector.

    Attributes:
        losses (dict[str, float]): every term that the model minimizes.
        heads (list[HeadMeasurement]): in the order in which they ran.
        other_features (dict[str, float]): norm at the features of the gradients of other terms,
            such as the loss of masks.
    """

    losses: dict
    heads: list
    other_features: dict


def measure(model: nn.Module, inputs: list[dict], with_parts: bool = False) -> Measurement:
    """One forward pass, and the gradients of its losses down to the backbone's feature maps.

    In float32 whatever the training's precision, as gradients this small vanish in float16. The
    backbone runs without gradient. The model, the random generators and the event storage are
    afterwards as they were.

    Args:
        model: a detector in training mode, not wrapped.
        inputs: a training batch.
        with_parts: find the foreground's and background's part of the loss' value too.

    Raises:
        BadInput: for a model without a head that is known.
        FloatingPointError: if the forward pass stops at values that are not finite.
    """
    device = next(model.parameters()).device.type
    with (
        preserved(model),
        EventStorage(start_iter=1),  # at 0 Detectron2 would draw pictures
        torch.enable_grad(),
        torch.autocast(device, enabled=False),
        # Else the profile of a TorchScript loss would have one run more.
        torch.jit.optimized_execution(False),
        _leaf_features(model.backbone) as features,
        captured_heads(model) as calls,
    ):
        for module in model.modules():
            if hasattr(module, "guide_log"):
                module.guide_log.warned = True  # the step itself will warn
        with naming_non_finite():
            losses = model(inputs)
        heads = [_measure_head(call, losses, features, with_parts) for call in calls]
        done = {name for head in heads for name in (head.cls_name, *head.loc_names)}
        other = {
            name: _norm(_gradients(loss, features))
            for name, loss in losses.items()
            if name not in done and loss.requires_grad and "guide" not in name
        }
        return Measurement({k: v.item() for k, v in losses.items()}, heads, other)


def _measure_head(call, losses, features, with_parts):
    call.name_terms(losses)
    cls = call.cls_name
    gradients = _gradients(losses[cls], call.outputs)
    outputs, at_features, whole = {cls: 0.0}, {cls: 0.0}, None
    for part, masks in zip(PARTS, call.rows()):
        masked = call.masked(gradients, masks)
        outputs[f"{cls}/{part}"] = sum(g.double().abs().sum().item() for g in masked)
        pushed = _gradients(call.outputs, features, masked)
        at_features[f"{cls}/{part}"] = _norm(pushed)
        whole = pushed if whole is None else [x + y for x, y in zip(whole, pushed)]
    outputs[cls] = sum(outputs[f"{cls}/{part}"] for part in PARTS)
    at_features[cls] = _norm(whole)
    for name in call.loc_names:
        gradients_loc = _gradients(losses[name], call.loc_outputs)
        outputs[name] = sum(g.double().abs().sum().item() for g in gradients_loc)
        at_features[name] = _norm(_gradients(losses[name], features))
    right, others = call.scores()
    parts = call.loss_parts(gradients) if with_parts else ()
    return HeadMeasurement(
        cls_name=cls,
        loc_names=call.loc_names,
        num_classes=call.num_classes,
        num_foreground=call.num_foreground,
        num_valid=call.num_valid,
        is_softmax=call.is_softmax,
        takes_all_anchors=_takes_all_anchors(call.head),
        is_focal=call.is_focal and call.head.focal_loss_gamma > 0,
        prior_key=_prior_key(call.head),
        takes_measured_prior=isinstance(call.head, PriorBias),
        outputs=outputs,
        features=at_features,
        scores={
            part: x.double().mean().item() for part, x in zip(PARTS, (right, others)) if x.numel()
        },
        saturated=call.share_saturated(),
        histograms=score_histograms(right, others),
        ratio=call.ratio,
        loss_parts=dict(zip(PARTS, parts)),
        cross_entropy=call.cross_entropy() if with_parts else None,
    )


def _takes_all_anchors(head):
    if isinstance(head, FastRCNNOutputLayers):
        return False
    return getattr(type(head), "_subsample_labels", None) is not RPN._subsample_labels


def _prior_key(head):
    if isinstance(head, PriorBias):
        return head.prior_key
    return "model.head.prior_prob" if isinstance(head, DenseDetector) else ""


def score_histograms(right: Tensor, others: Tensor) -> dict[str, list]:
    """Counts scores in bins of their logarithm.

    Args:
        right: (N_f,) score of the right class at each foreground sample.
        others: (N_b, K) scores at the background; the highest of each sample counts.

    Returns:
        "edges", log10 of scores, B + 1 of them; "foreground" and "background",
        counts of the B bins. What is smaller than the first edge is in the first bin.
    """
    edges = torch.linspace(LOWEST, 0, BINS + 1)
    highest = others.amax(dim=1) if others.numel() else others.flatten()
    counts = [
        torch.histc(x.float().log10().clamp(LOWEST, 0).cpu(), BINS, LOWEST, 0).long().tolist()
        for x in (right, highest)
    ]
    return {"edges": edges.tolist(), **dict(zip(PARTS, counts))}


@contextlib.contextmanager
def _leaf_features(backbone):
    """The feature maps that the backbone gives out become leaves of the graph."""
    leaves, own, run = [], vars(backbone).get("forward"), backbone.forward

    def forward(*args):
        with torch.no_grad():
            outputs = run(*args)
        outputs = {name: x.detach().requires_grad_() for name, x in outputs.items()}
        leaves.extend(outputs.values())
        return outputs

    backbone.forward = forward
    try:
        yield leaves
    finally:
        del backbone.forward
        if own is not None:
            backbone.forward = own


def _gradients(losses, inputs, weights=None):
    """Zeros where an input plays no part."""
    found = torch.autograd.grad(losses, inputs, weights, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs)]


def _norm(tensors):
    return sum(x.double().square().sum() for x in tensors).sqrt().item()
