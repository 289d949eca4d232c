"""What every sampling-free detector knows about its prior; mixed into Detectron2's classes."""

import logging

import torch

from ..errors import BadInput
from ..prior import prior_to_bias

logger = logging.getLogger(__name__)

AUTO = "auto"


class PriorBias:
    """Mixin: the prior of a detector and the classifier bias that belongs to it.

    A subclass says by :attr:`classifier_bias_name` where the bias is, and calls
    :meth:`init_prior` at the end of its constructor. No parameter or buffer is added, so the
    ``state_dict`` keeps Detectron2's keys; the prior travels as an entry of the checkpoint, see
    :class:`sampling_free.prior_init.PriorInit`.

    Attributes:
        prior (float or "auto"): "auto" until it has been measured.
        head_was_loaded (bool): whether the last ``load_state_dict`` filled the bias.
    """

    classifier_bias_name = None

    def init_prior(self, prior):
        """Sets up the attributes, and the hook that notes what a checkpoint fills.

        Args:
            prior (float or "auto"): a number in (0, 1) sets the bias at once.
        """
        self.prior = AUTO
        self.head_was_loaded = False
        self.register_load_state_dict_post_hook(_note_whether_head_was_loaded)
        if prior != AUTO:
            try:
                self.set_prior(float(prior))
            except (TypeError, ValueError):
                raise BadInput(
                    f"model.prior={prior!r} is neither 'auto' nor a number in (0, 1)"
                ) from None

    @property
    def classifier_bias(self):
        """The bias parameter of the classification layer, (A * K,)."""
        return self.get_parameter(self.classifier_bias_name)

    @torch.no_grad()
    def set_prior(self, prior):
        """Makes every start score ``prior``: the paper's optimal bias initialisation.

        Args:
            prior (float): in (0, 1).
        """
        self.classifier_bias.fill_(prior_to_bias(prior))
        self.prior = prior

    @torch.no_grad()
    def mean_score(self, batched_inputs):
        """Mean score over all anchors and classes.

        Args:
            batched_inputs (list[dict]): as the model takes them.

        Returns:
            float: in [0, 1].
        """
        was_training = self.training
        self.eval()
        features = self.backbone(self.preprocess_image(batched_inputs).tensor)
        logits = self.head([features[f] for f in self.head_in_features])[0]
        self.train(was_training)
        scores = torch.cat([x.flatten() for x in logits]).double().sigmoid()
        return scores.mean().item()

    def require_prior(self):
        """Raises BadInput if the prior is still to be measured."""
        if self.prior == AUTO:
            raise BadInput(
                "model.prior is still 'auto': train with train_net.py, or register the hook "
                "sampling_free.PriorInit with your trainer, or set model.prior to the number that "
                "tools/estimate_prior.py prints"
            )


def _note_whether_head_was_loaded(model, incompatible_keys):
    # A layer of another class count is missing here too: Detectron2's checkpointer removes what
    # has another shape first. A wrapper puts a prefix before the name.
    missing = incompatible_keys.missing_keys
    model.head_was_loaded = not any(k.endswith(model.classifier_bias_name) for k in missing)
