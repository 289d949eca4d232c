"""Test thresholds that follow from the prior: nothing to choose for a detector of low scores.

Trained on every sample, a detector starts from scores of the prior's size and stays low
("confidence shifting"), so that the customary 0.05 would hide detections. Besides a number,
``test_score_thresh`` takes

    "prior"       N_f / N, the share of foreground among the anchors
    "per_class"   theta_j = N_j / N for class j (arXiv 1909.04868, versions of 2019: the adaptive
                  threshold)

from the prior that was measured for training and lies in the checkpoint.
"""

import copy
import math

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..utils.errors import BadInput, require_number
from .bias import PER_CLASS, ClassifierBias

PRIOR = "prior"
MODES = (PRIOR, PER_CLASS)


class PriorThreshold:
    """Mixin of a dense detector with :class:`PriorBias`; Detectron2's inference stays."""

    @property
    def test_score_thresh(self) -> float | Tensor:
        """Returns what inference compares its scores with; for "per_class" (K,) numbers.

        Raises:
            BadInput: if it is to follow from a prior that is not known.
        """
        mode = self._test_score_thresh
        if not isinstance(mode, str):
            return mode
        if isinstance(self.prior, str):
            raise BadInput(
                f"model.test_score_thresh={mode!r}: no prior is stored with these weights, or they "
                "were not loaded by sampling_free.load_trained; set model.prior to that of their "
                "training (prior.json), or model.test_score_thresh to a number"
            )
        several = isinstance(self.prior, list)
        if mode == PRIOR:  # pi* is the mean of theta_j, this is their sum
            total = sum(self.prior) if several else self.prior * self.num_classes
            return self.compared_threshold(total)
        thetas = self.prior if several else self.class_priors
        if thetas is None:
            raise BadInput(
                "model.test_score_thresh='per_class': model.prior is one number for all classes; "
                "give a list of one for each, or have it measured (model.prior='auto')"
            )
        compared = [self.compared_threshold(x) for x in thetas]
        return torch.tensor(compared, device=self.pixel_mean.device)

    @test_score_thresh.setter
    def test_score_thresh(self, threshold: float | str) -> None:
        if not isinstance(threshold, (int, float)) and threshold not in MODES:
            raise BadInput(
                f"model.test_score_thresh={threshold!r} is unknown; known: {', '.join(MODES)}, or "
                "a number (YAML: MODEL.SAMPLING_FREE.TEST_SCORE_THRESH)"
            )
        if not isinstance(threshold, str):
            require_number("model.test_score_thresh", threshold, 0, 1)
        self._test_score_thresh = threshold

    def __prepare_scriptable__(self):
        """Returns the stock detector with these weights and this threshold for TorchScript.

        TorchScript compiles no property of this kind, and inference needs no other.
        """
        stock = copy.copy(self)
        ours = PriorThreshold, ClassifierBias
        stock.__class__ = next(
            c for c in type(self).__mro__ if issubclass(c, nn.Module) and not issubclass(c, ours)
        )
        stock._modules = dict(self._modules)
        # scripting_with_instances says so of the classes that it finds in the model.
        stock.__constants__ = [*getattr(self, "__constants__", ()), "training"]
        stock.test_score_thresh = self.test_score_thresh
        return stock

    def require_threshold(self) -> None:
        """Raises BadInput if the threshold is to follow from a prior that is not known."""
        _ = self.test_score_thresh

    @staticmethod
    def compared_threshold(threshold: float) -> float:
        """Converts the threshold of a class score to that of what inference compares."""
        return threshold

    @classmethod
    def threshold_from_config(cls, cfg: CfgNode) -> dict[str, str]:
        """Returns the constructor argument of a config that has one."""
        mode = cfg.MODEL.SAMPLING_FREE.TEST_SCORE_THRESH
        return {} if mode is None else {"test_score_thresh": mode}


class RootPriorThreshold(PriorThreshold):
    """The same where inference compares sqrt(class score * centerness), as Detectron2's FCOS."""

    @staticmethod
    def compared_threshold(threshold: float) -> float:
        return math.sqrt(threshold)
