"""The hook that measures the prior before the first iteration and sets the bias."""

import logging
import os
from dataclasses import asdict

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from .detectors.bias import AUTO, PriorBias
from .errors import BadInput
from .estimate import FILE_NAME, PriorEstimate, dependencies, estimate_prior

logger = logging.getLogger(__name__)


class PriorInit(HookBase):
    """Sets the classifier bias of a sampling-free detector from its training set.

    Works with any Detectron2 trainer; does nothing for a model without a prior. At iteration 0

    * a prior that the config gives as a number wins; "auto" is measured on the main process,
      logged, written to ``prior.json`` and sent to the others;
    * a head that no checkpoint filled gets the bias; a head that was loaded keeps its own, with a
      line that compares the two, unless ``reset_prior``.

    A resumed run takes the prior from its checkpoint and measures nothing.
    """

    def __init__(
        self, dataset_dicts, mapper, names=(), *, output_dir="", prior_file="", reset_prior=False
    ):
        """
        Args:
            dataset_dicts (list[dict]): the training set in Detectron2's format.
            mapper (DatasetMapper): the training mapper, for its augmentations.
            names (str or list[str]): registered names, for class names and the record.
            output_dir (str): where prior.json goes; "" writes none.
            prior_file (str): read this estimate instead of measuring; refused if it is stale.
            reset_prior (bool): set the bias of a loaded head, too.
        """
        self.dataset_dicts = dataset_dicts
        self.mapper = mapper
        self.names = names
        self.output_dir = output_dir
        self.prior_file = prior_file
        self.reset_prior = reset_prior
        self.state = {}

    def state_dict(self):
        """{"prior": float, "estimate": dict or None}, or {} before training."""
        return self.state

    def load_state_dict(self, state):
        self.state = dict(state)

    def before_train(self):
        model = self.trainer.model
        model = getattr(model, "module", model)
        if not isinstance(model, PriorBias):
            return
        if self.trainer.start_iter > 0:
            self._restore(model)
            return
        estimate = None
        if model.prior == AUTO:
            estimate = self._from_main_process(model)
            logger.info("Prior of the training set:\n" + estimate.table())
        else:
            logger.info(f"Prior {model.prior:.4e} from the config; nothing measured.")
        prior = estimate.prior if estimate else model.prior
        self._set_bias(model, prior)
        self.state = {"prior": prior, "estimate": asdict(estimate) if estimate else None}

    def _restore(self, model):
        if "prior" in self.state:
            model.prior = self.state["prior"]
        elif model.prior == AUTO:
            raise BadInput(
                "the checkpoint to resume from holds no prior: it is not of a sampling-free run; "
                "start anew with train.init_checkpoint set to it, or set model.prior"
            )

    def _set_bias(self, model, prior):
        if model.head_was_loaded and not self.reset_prior:
            score = torch.sigmoid(model.classifier_bias.detach().double()).mean().item()
            logger.info(
                f"The classification head came with the checkpoint and keeps its bias: mean score "
                f"{score:.3e}, the prior is {prior:.3e}; train.reset_prior=True sets it."
            )
            model.prior = prior
        else:
            model.set_prior(prior)

    def _from_main_process(self, model):
        """Measures or reads on the main process; all get the same bits, or the same error."""
        answer = None
        if comm.is_main_process():
            try:
                answer = self._measure(model)
            except Exception as e:  # the others must not wait for an answer in vain
                answer = e
        answer = comm.all_gather(answer)[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _measure(self, model):
        if self.prior_file:
            now = dependencies(model, self.dataset_dicts, self.mapper, self.names)
            estimate = PriorEstimate.load(self.prior_file, now)
            logger.info(f"Prior read from {self.prior_file}.")
        else:
            estimate = estimate_prior(model, self.dataset_dicts, self.mapper, self.names)
        if self.output_dir:
            os.makedirs(self.output_dir, exist_ok=True)
            estimate.save(os.path.join(self.output_dir, FILE_NAME))
        return estimate
