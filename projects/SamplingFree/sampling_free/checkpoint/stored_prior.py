"""The prior that a checkpoint stores: its entry ``prior``, beside the weights."""

from ..detectors.bias import TO_BE_MEASURED, PriorBias
from ..detectors.thresholds import PriorThreshold
from ..method.prior import class_priors
from ..utils.errors import BadInput


class StoredPrior:
    """What :class:`sampling_free.PriorInit` saves: {"prior", "estimate"}, or {}."""

    def __init__(self):
        self.state = {}

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = dict(state)

    def give(self, head: PriorBias, wins: bool = False) -> bool:
        """Tells a head its prior; its bias, which the checkpoint has filled, stays.

        Args:
            head:
            wins: even if the config has a prior.

        Returns:
            Whether there was one.

        Raises:
            BadInput: if it is the prior of another number of classes.
        """
        if "prior" not in self.state:
            return False
        prior, estimate = self.state["prior"], self.state.get("estimate")
        counts = list(estimate["per_class"].values()) if estimate else None
        for measured in (counts, prior):
            if isinstance(measured, list) and len(measured) != head.num_prior_classes:
                raise BadInput(
                    f"{head.prior_key}: the checkpoint stores the prior of {len(measured)} "
                    f"class(es), this model has {head.num_prior_classes}; use the config that it "
                    "was trained with"
                )
        if counts:
            head.class_priors = class_priors(counts, estimate["num_valid"])
        if wins or head.prior in TO_BE_MEASURED:
            head.prior = prior
        return True

    def give_all(self, model):
        """:meth:`give` for the heads of a whole model, and a check of its threshold."""
        for module in model.modules():
            if isinstance(module, PriorBias):
                self.give(module)
            if isinstance(module, PriorThreshold):
                module.require_threshold()
