"""What the heads of a detector hand to their losses: outputs, labels and loss terms.

    N images   R samples (anchors, points or proposals)   K classes; 1 for the objectness of an RPN

Works for Detectron2's detectors and for those here alike: each has its losses in a method
``losses``, which is listened to.
"""

import contextlib

import torch
from detectron2.layers import cat
from detectron2.modeling import RetinaNet
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn
from torch.nn import functional as F

from ..detectors.atss import ATSS
from ..detectors.rpn import one_class
from ..method.classification_loss import sigmoid_bce_all
from ..utils.errors import BadInput

KINDS = (RetinaNet, FCOS, RPN, FastRCNNOutputLayers)
FOCAL_LOSSES = (RetinaNet.losses, FCOS.losses, ATSS.losses)


class CapturedHead:
    """One call of a head's ``losses``.

    Attributes:
        head (nn.Module): a RetinaNet, FCOS, RPN or box predictor, or a subclass of one.
        num_classes (int): K.
        outputs (list[Tensor]): classification logits as the loss got them, in the graph: rows of
            classes, or (N, A*K, Hi, Wi) as the head gives them.
        labels (list[Tensor]): for each of ``outputs`` (..., R): -1 ignored, 0..K-1 foreground of
            that class, K background.
        loc_outputs (list[Tensor]): box deltas and, where there is one, the quality estimate.
        terms (dict[str, Tensor]): loss terms by the head's own names.
        cls_name (str): which of ``terms`` is the classification loss, by the model's name.
        loc_names (list[str]): those of localization, by the model's names.
        is_softmax (bool): over K classes and background, the last; else K sigmoids.
        ratio (float or None): r, where the head has a guide.
    """

    ratio = None

    def __init__(self, head, arguments, terms):
        self.head, self.terms = head, dict(terms)  # RoI heads add the loss of masks to theirs
        self.num_classes = 1 if isinstance(head, RPN) else head.num_classes
        self.is_softmax = False
        if isinstance(head, FastRCNNOutputLayers):
            (logits, deltas), proposals = arguments
            self.outputs, self.loc_outputs = [logits], [deltas]
            self.labels = [cat([p.gt_classes for p in proposals], dim=0)]
            self.is_softmax = not getattr(head, "use_sigmoid_ce", False)
            return
        _, self.outputs, labels, deltas, _, *quality = arguments
        self.loc_outputs = [*deltas, *(x for xs in quality for x in xs)]
        labels = torch.stack(labels)  # (N, R)
        labels = one_class(labels) if isinstance(head, RPN) else labels
        self.labels = list(labels.split([self._rows(x).shape[1] for x in self.outputs], dim=1))

    def name_terms(self, losses):
        """Finds the terms under the names of the whole model, as of the stages of a cascade."""
        names = {key: key for key in self.terms}
        for key, term in self.terms.items():
            names[key] = next((k for k, v in losses.items() if v is term), key)
        self.cls_name = next(names[k] for k in self.terms if "cls" in k)
        self.loc_names = [names[k] for k in self.terms if "cls" not in k and "guide" not in k]

    def logits(self, values: list[Tensor] | None = None) -> list[Tensor]:
        """Returns the logits of all samples in rows.

        Args:
            values: like ``outputs``, default: these.

        Returns:
            Float32, without gradient, (rows, K), of a softmax (rows, K + 1).
        """
        values = self.outputs if values is None else values
        columns = self.num_classes + self.is_softmax
        shaped = []
        for x, labels in zip(values, self.labels):
            x = self._rows(x.detach().float())
            x = x.unsqueeze(-1) if x.dim() == labels.dim() else x  # an RPN's have no last axis
            x = x.flatten(0, -2)
            shaped.append(x[:, :columns])  # of sigmoids in a RoI head the last is unused
        return shaped

    def _rows(self, x):
        """(N, Hi*Wi*A, K), also of what the head gave as (N, A*K, Hi, Wi)."""
        return permute_to_N_HWA_K(x, self.num_classes) if x.dim() == 4 else x

    def rows(self):
        """(foreground, background): lists of bool (rows,) for each of ``outputs``."""
        labels = [x.reshape(-1) for x in self.labels]
        foreground = [(x >= 0) & (x < self.num_classes) for x in labels]
        return foreground, [x == self.num_classes for x in labels]

    def masked(self, values: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        """Sets values outside the masks to zero.

        Args:
            values: like ``outputs``.
            masks: as of :meth:`rows`.

        Returns:
            The values, zero outside the masks.
        """
        result = []
        for x, mask, labels in zip(values, masks, self.labels):
            mask = mask.view(labels.shape)  # (..., R)
            if x.dim() == 4:
                num, channels, height, width = x.shape
                mask = mask.view(num, height, width, -1).permute(0, 3, 1, 2)  # (N, A, Hi, Wi)
                mask = mask.repeat_interleave(channels // mask.shape[1], dim=1)
            elif x.dim() > mask.dim():
                mask = mask.unsqueeze(-1)
            result.append(x * mask)
        return result

    @property
    def num_foreground(self):
        return sum(int(x.sum()) for x in self.rows()[0])

    @property
    def num_valid(self):
        return sum(int((x >= 0).sum()) for x in self.labels)

    @torch.no_grad()
    def scores(self) -> tuple[Tensor, Tensor]:
        """Returns the scores of foreground and background.

        Returns:
            Score of the right class at each foreground sample, (N_f,), and
            the scores of all classes at each background sample, (N_b, K). Float32.
        """
        right, others = [], []
        for logits, labels, fg, bg in zip(self.logits(), self.labels, *self.rows()):
            scores = self._probabilities(logits)[:, : self.num_classes]
            right.append(scores[fg].gather(1, labels.reshape(-1)[fg].long().unsqueeze(1)))
            others.append(scores[bg])
        return torch.cat(right).squeeze(1), torch.cat(others)

    def _probabilities(self, logits):
        return logits.softmax(dim=1) if self.is_softmax else logits.sigmoid()

    @torch.no_grad()
    def share_saturated(self):
        """Share of the valid rows' logits whose score is within float32's epsilon of 0 or 1."""
        eps, num, total = torch.finfo(torch.float32).eps, 0, 0
        for logits, labels in zip(self.logits(), self.labels):
            scores = self._probabilities(logits[labels.reshape(-1) >= 0])
            num += int(((scores < eps) | (scores > 1 - eps)).sum())
            total += scores.numel()
        return num / total if total else 0.0

    @torch.no_grad()
    def cross_entropy(self):
        """Plain cross entropy of the valid samples, nothing weighted, per foreground sample."""
        total = 0.0
        for logits, labels in zip(self.logits(), self.labels):
            labels = labels.reshape(-1)
            if self.is_softmax:
                valid = labels >= 0
                loss = F.cross_entropy(logits[valid], labels[valid].long(), reduction="sum")
            else:
                loss = sigmoid_bce_all(logits, labels)
            total += loss.item()
        return total / self.num_foreground if self.num_foreground else None

    @torch.no_grad()
    def loss_parts(self, gradients: list[Tensor]) -> tuple[float, float]:
        """Foreground's and background's part of the classification loss.

        Focal loss is computed anew. Every other loss here is cross entropy whose weights carry no
        gradient (a guide's r, GHM-C's, 0 for what was not chosen), so that these are the ratio of
        its gradient to that of cross entropy.

        Args:
            gradients: of the classification loss at ``outputs``.

        Returns:
            They sum to the loss term.
        """
        parts = [0.0, 0.0]
        for logits, grad, labels, *masks in zip(
            self.logits(), self.logits(gradients), self.labels, *self.rows()
        ):
            losses = self._row_losses(logits.double(), grad.double(), labels.reshape(-1))
            for i, mask in enumerate(masks):
                parts[i] += losses[mask].sum().item()
        if self.is_focal:
            cls = next(v for k, v in self.terms.items() if "cls" in k).item()
            total = sum(parts)
            parts = [x * cls / total if total else 0.0 for x in parts]
        return tuple(parts)

    @property
    def is_focal(self):
        return getattr(type(self.head), "losses", None) in FOCAL_LOSSES

    def _row_losses(self, logits, gradients, labels):
        """Returns the loss of each row, (rows,)."""
        target = F.one_hot(labels.clamp(min=0).long(), self.num_classes + 1).to(logits.dtype)
        if self.is_softmax:
            losses = -(logits.log_softmax(dim=1) * target).sum(dim=1)
            plain = logits.softmax(dim=1) - target
            # One weight for a row; where its gradient is largest it is known best.
            largest = plain.abs().argmax(dim=1, keepdim=True)
            plain, gradients = plain.gather(1, largest)[:, 0], gradients.gather(1, largest)[:, 0]
            return losses * _weights(gradients, plain)
        target = target[:, :-1]
        if self.is_focal:
            alpha, gamma = self.head.focal_loss_alpha, self.head.focal_loss_gamma
            return sigmoid_focal_loss(logits, target, alpha, gamma).sum(dim=1)
        signs = 1 - 2 * target
        losses = F.softplus(signs * logits)
        return (losses * _weights(gradients, signs * (signs * logits).sigmoid())).sum(dim=1)


def _weights(gradients, plain):
    return torch.where(plain == 0, torch.zeros_like(plain), gradients / plain)


@contextlib.contextmanager
def captured_heads(model: nn.Module):
    """Listens to the ``losses`` of every head of a detector.

    Args:
        model: a whole detector, not wrapped.

    Yields:
        list[CapturedHead]: gets one for each call that has a gradient.

    Raises:
        BadInput: for a model without a head that is known.
    """
    heads = [m for m in model.modules() if isinstance(m, KINDS)]
    if not heads:
        raise BadInput(
            f"{type(model).__name__}: no head that is known; known are RetinaNet, FCOS, ATSS, PAA, "
            "RPN and the box predictors of R-CNNs"
        )
    calls, own = [], [vars(head).get("losses") for head in heads]

    def listen(head):
        losses = head.losses

        def listening(*args):
            terms = losses(*args)
            call = CapturedHead(head, args, terms)
            if any(x.requires_grad for x in call.outputs):
                call.ratio = head.guide_log.ratio if hasattr(head, "guide_log") else None
                calls.append(call)
            return terms

        head.losses = listening

    for head in heads:
        listen(head)
    try:
        yield calls
    finally:
        for head, losses in zip(heads, own):
            del head.losses
            if losses is not None:
                head.losses = losses
