"""What every sampling-free head knows about its bias; mixed into Detectron2's classes."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from omegaconf import ListConfig
from torch import Tensor, nn

from ..method.guides import RECOMMENDED
from ..method.prior import prior_to_bias, softmax_prior_to_bias
from ..utils.errors import BadInput

AUTO = "auto"
PER_CLASS = "per_class"
TO_BE_MEASURED = (AUTO, PER_CLASS)


def parameter_or_none(module: nn.Module, name: str) -> nn.Parameter | None:
    """Returns the parameter of that name, or None; a layer made without bias has None for one."""
    try:
        return module.get_parameter(name)
    except AttributeError:
        return None


class ClassifierBias:
    """Mixin: where the bias of the classification layer is, and whether a checkpoint filled it.

    No parameter or buffer is added, so the ``state_dict`` keeps Detectron2's keys.

    Attributes:
        classifier_bias_name (str): of the parameter, within this module.
        head_was_loaded (bool): whether a ``load_state_dict`` filled that layer.
    """

    classifier_bias_name = None
    head_was_loaded = False
    __jit_unused_properties__ = ["classifier_bias", "num_prior_classes"]

    @property
    def classifier_bias(self):
        """Returns the bias parameter of the classification layer.

        Raises:
            BadInput: if the head has none.
        """
        bias = parameter_or_none(self, self.classifier_bias_name)
        if bias is None:
            path, _, layer = self.classifier_bias_name.rpartition(".")[0].rpartition(".")
            head = self.get_submodule(path)
            raise BadInput(
                f"{type(self).__name__}: {type(head).__name__} has no parameter {layer}.bias, "
                "which the prior has to set; give that layer a bias"
            )
        return bias

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # Detectron2's checkpointer removes each tensor of another shape first: a layer of another
        # class count, but also the weight alone where only the layer's input differs.
        layer = prefix + self.classifier_bias_name.rpartition(".")[0]
        self.head_was_loaded |= {f"{layer}.weight", f"{layer}.bias"} <= state_dict.keys()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class PriorBias(ClassifierBias):
    """Mixin of a dense head: its prior and the bias that belongs to it.

    A subclass calls :meth:`init_prior` at the end of its constructor. The prior travels as an
    entry of the checkpoint, see :class:`sampling_free.engine.prior_init.PriorInit`.

    Attributes:
        prior (float, list[float] or str): "auto" or "per_class" until it has been measured.
        class_priors (list[float] or None): (C,) theta_j of each class, if they were measured.
        prior_key (str): where a config has it.
    """

    prior_key = "model.prior"
    class_priors = None

    def init_prior(self, prior: float | Sequence[float] | str) -> None:
        """Sets up the prior.

        Args:
            prior: a number in (0, 1), or one for each class, sets the bias at once; "auto" and
                "per_class" are to be measured.

        Raises:
            BadInput: for another prior, or a head without bias.
        """
        _ = self.classifier_bias  # must be there
        self.prior = prior
        if isinstance(prior, str) and prior in TO_BE_MEASURED:
            return
        several = isinstance(prior, (list, tuple, ListConfig))
        if several and len(prior) != self.num_prior_classes:
            raise BadInput(
                f"{self.prior_key}={list(prior)}: {len(prior)} for a head of "
                f"{self.num_prior_classes} class(es); give one for each class, or 'auto'"
            )
        try:
            self.set_prior([float(x) for x in prior] if several else float(prior))
        except (TypeError, ValueError, RuntimeError):
            raise BadInput(
                f"{self.prior_key}={prior!r} is neither 'auto' nor 'per_class', nor a number in "
                "(0, 1), nor one for each class (YAML: MODEL.SAMPLING_FREE.PRIOR)"
            ) from None

    @property
    def num_prior_classes(self):
        """Returns C, which is 1 for the objectness of an RPN."""
        return getattr(self, "num_classes", 1)

    @torch.no_grad()
    def set_prior(self, prior: float | list[float]) -> None:
        """Makes every start score ``prior``: the paper's optimal bias initialization.

        Args:
            prior: in (0, 1); of a list the scores of each class, (C,).
        """
        if isinstance(prior, list):
            if len(prior) != self.num_prior_classes:
                raise ValueError(f"{len(prior)} priors for {self.num_prior_classes} classes")
            biases = self.classifier_bias.new_tensor([prior_to_bias(x) for x in prior])
            self.classifier_bias.view(-1, len(prior)).copy_(biases)  # (A, C)
        else:
            self.classifier_bias.fill_(prior_to_bias(prior))
        self.prior = prior

    def class_logits(self, features: dict[str, Tensor]) -> list[Tensor]:
        """Computes the classification logits of each level from the backbone's features."""
        return self.head([features[f] for f in self.head_in_features])[0]

    def require_prior(self) -> None:
        """Raises BadInput if the prior is still to be measured."""
        if self.prior in TO_BE_MEASURED:
            raise BadInput(
                f"{self.prior_key} is still {self.prior!r}: train with train_net.py, or register "
                f"the hook sampling_free.PriorInit with your trainer, or set {self.prior_key} to "
                "the number that tools/estimate_prior.py prints"
            )


class SoftmaxPriorBias(ClassifierBias):
    """Mixin of a softmax head over ``num_classes`` and background, the last.

    Attributes:
        softmax_prior (float or None): start score of each class; None leaves the bias alone, as
            the paper does.
    """

    def init_softmax_prior(self, prior: float | None) -> None:
        """Sets the bias for a prior in (0, 1 / num_classes); None leaves it alone."""
        self.softmax_prior = prior
        self.reset_bias()

    @torch.no_grad()
    def reset_bias(self) -> None:
        """Sets the bias of a fresh head."""
        if self.softmax_prior is None:
            return
        try:
            difference = softmax_prior_to_bias(float(self.softmax_prior), self.num_classes)
        except (TypeError, ValueError) as e:
            raise BadInput(
                f"softmax_prior={self.softmax_prior!r}: {e}; None leaves it off"
            ) from None
        self.classifier_bias.zero_()
        self.classifier_bias[-1] = difference


def prior_and_guide(node: CfgNode) -> dict[str, Any]:
    """Returns the constructor arguments of a ``MODEL.SAMPLING_FREE`` node."""
    return {
        "prior": AUTO if node.PRIOR is None else node.PRIOR,
        "guide": RECOMMENDED if node.GUIDE is None else node.GUIDE,
    }
