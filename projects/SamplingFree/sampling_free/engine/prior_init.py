"""The hook that measures the prior before the first iteration and sets the bias."""

import contextlib
import copy
import functools
import logging
import math
import operator
import os
from dataclasses import asdict

import torch
from detectron2.config import configurable
from detectron2.data import DatasetMapper, get_detection_dataset_dicts
from detectron2.engine import HookBase
from detectron2.utils import comm

from ..checkpoint.stored_prior import StoredPrior
from ..counting.assignment import assignment_of
from ..counting.count import count_anchors
from ..counting.estimate import FILE_NAME, PriorEstimate, dependencies, estimate_from_counts
from ..counting.measured_count import Uncountable, measure_counts, require_countable, source_of
from ..data.loader import ReadOrName
from ..detectors.bias import PER_CLASS, TO_BE_MEASURED, PriorBias, SoftmaxPriorBias
from ..detectors.thresholds import PriorThreshold
from ..method.guides import FrozenGuide
from ..method.prior import prior_to_bias
from ..utils.distributed import agreed, caught, raised
from ..utils.errors import BadInput
from ..utils.models import pixels, unwrapped
from ..utils.seeding import seeded

logger = logging.getLogger(__name__)

MOST_SHOWN = 10  # classes in a line of the log
NUM_SCORED = 4  # images on which a loaded head is compared with the prior


class PriorInit(HookBase):
    """Sets the classifier bias of a sampling-free detector from its training set.

    Works with any Detectron2 trainer; does nothing for a model without a prior. ``PriorInit(cfg)``
    takes all it needs from a CfgNode. At iteration 0

    * a prior that the config gives as a number wins; "auto" is counted from the annotations, each
      process counting its share of the images, or, where those do not tell what the trainer's
      loader gives, measured on its first batches; logged, written to ``prior.json`` and the same
      on all processes, to the bit;
    * a head that no checkpoint filled gets the bias; a head that was loaded keeps its own, with a
      line that compares the two, unless ``reset_prior``; head by head: the RPN and each box
      predictor of an R-CNN.

    A resumed run takes the prior from its checkpoint and measures nothing; for that the hook has
    to be registered before the checkpoint is loaded.
    """

    @configurable
    def __init__(
        self,
        dataset_dicts: list[dict],
        mapper: DatasetMapper,
        names: str | list[str] = (),
        *,
        output_dir: str = "",
        prior_file: str = "",
        reset_prior: bool = False,
        follow_loader: bool = False,
    ):
        """Keeps the training set until training starts.

        Args:
            dataset_dicts: the training set in Detectron2's format.
            mapper: the training mapper, for its augmentations. Of another kind,
                the batches of the trainer's loader are measured.
            names: registered names, for class names and the record.
            output_dir: where prior.json goes; "" writes none.
            prior_file: read this estimate instead of measuring; refused if it is stale.
            reset_prior: set the bias of a loaded head, too.
            follow_loader: what the trainer's loader gives counts, not ``mapper``.
        """
        self.dataset_dicts = dataset_dicts
        self.mapper = mapper
        self.names = names
        self.output_dir = output_dir
        self.prior_file = prior_file
        self.reset_prior = reset_prior
        self.follow_loader = follow_loader
        self.stored = StoredPrior()

    @classmethod
    def from_config(cls, cfg):
        names = list(cfg.DATASETS.TRAIN)
        dicts = get_detection_dataset_dicts(
            names,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
            if cfg.MODEL.KEYPOINT_ON
            else 0,
        )
        return {
            "dataset_dicts": dicts,
            "mapper": DatasetMapper(cfg, is_train=True),
            "names": names,
            "output_dir": cfg.OUTPUT_DIR,
            "follow_loader": True,
        }

    def state_dict(self):
        """{"prior": float or list, "estimate": dict or None}, or {} before training."""
        return self.stored.state_dict()

    def load_state_dict(self, state):
        self.stored.load_state_dict(state)

    def before_train(self):
        if self.dataset_dicts is None:  # train() was called again
            return
        model = self.trainer.model
        model = unwrapped(model)
        heads = {n: m for n, m in model.named_modules() if isinstance(m, PriorBias)}
        for name, head in heads.items():  # at most one: a dense detector or the RPN
            if self.trainer.start_iter > 0:
                self._restore(head)
            else:
                self._start(model, name, head)
        if self.trainer.start_iter == 0:
            for name, module in model.named_modules():
                if isinstance(module, SoftmaxPriorBias):
                    self._start_softmax(name, module)
                if isinstance(module, FrozenGuide) and module.num_batches > 0:
                    module.restart()
                    logger.info(f"{name} came with the checkpoint and starts anew.")
        self.dataset_dicts = None  # not needed any more, and large

    def _start(self, model, name, head):
        estimate = None
        prior = head.prior
        if prior in TO_BE_MEASURED:
            estimate = self._estimate(assignment_of(model))
            logger.info("Prior of the training set:\n" + estimate.table())
            prior = estimate.prior
            head.class_priors = estimate.class_priors
            if head.prior == PER_CLASS:
                prior = estimate.class_priors
            if estimate.absent_classes:
                absent = estimate.absent_classes
                names = ", ".join(absent[:MOST_SHOWN])
                names += f" and {len(absent) - MOST_SHOWN} more" if absent[MOST_SHOWN:] else ""
                logger.warning(f"{names}: no foreground sample; counted as one where it matters.")
        else:
            logger.info(f"Prior {_shown(prior, 4)} from the config; nothing measured.")
        self._set_bias(model, name, head, prior)
        if isinstance(head, PriorThreshold):
            head.require_threshold()
        self.stored.load_state_dict(
            {"prior": prior, "estimate": asdict(estimate) if estimate else None}
        )

    def _restore(self, head):
        if not self.stored.give(head, wins=True) and head.prior in TO_BE_MEASURED:
            raise BadInput(
                "no prior came with the checkpoint to resume from: register PriorInit before it is "
                "loaded; if it is of another run, start anew with train.init_checkpoint set to it"
            )

    def _set_bias(self, model, name, head, prior):
        where = f"{name}.{head.classifier_bias_name}".lstrip(".")
        if head.head_was_loaded and not self.reset_prior:
            score = f"{self._mean_score(model, head):.3e}"
            logger.info(
                f"{where} came with the checkpoint and stays: the head's mean score is {score}, "
                f"the prior is {_shown(prior)}; train.reset_prior=True sets it."
            )
            head.prior = prior
        else:
            head.set_prior(prior)
            biases = _shown(prior, 4, prior_to_bias, "f")
            logger.info(f"{where} is set to {biases}, the prior's.")

    def _start_softmax(self, name, head):
        where = f"{name}.{head.classifier_bias_name}"
        if head.head_was_loaded and not self.reset_prior:
            logger.info(f"{where} came with the checkpoint and stays.")
            return
        head.reset_bias()
        if head.softmax_prior is None:
            logger.info(f"{where} is left as it is: a softmax needs no prior.")
        else:
            logger.info(f"{where} is set for a start score of {head.softmax_prior:.4e} a class.")

    @torch.no_grad()
    def _mean_score(self, model, head):
        """Over all anchors and classes on the first images that can be read."""
        images, read = [], ReadOrName(self.mapper)
        with seeded(0):
            for record in self.dataset_dicts:
                with contextlib.suppress(BadInput):
                    images.append(read(copy.deepcopy(record)))
                if len(images) == NUM_SCORED:
                    break
        if not images:
            return math.nan
        training = [m for m in model.modules() if m.training]
        model.eval()
        try:
            logits = head.class_logits(model.backbone(pixels(model, images)))
        finally:
            for module in training:
                module.training = True
        return torch.cat([x.flatten() for x in logits]).double().sigmoid().mean().item()

    def _estimate(self, assignment):
        """The same on every process, or an error."""
        loader = loader_of(self.trainer)
        source = self._source(loader)
        if self.prior_file:
            return agreed(lambda: self._read(assignment, source))
        rank, num_processes = comm.get_rank(), comm.get_world_size()
        if isinstance(source, str):
            logger.info(f"The prior is measured on batches of the training loader: {source}.")
            counts = [measure_counts(assignment, loader, progress=rank == 0)]
        else:
            share = self.dataset_dicts[rank::num_processes]
            counts = comm.all_gather(
                caught(lambda: count_anchors(assignment, share, source, progress=rank == 0))
            )
            for part in counts:
                raised(part)
        return agreed(lambda: self._sum(assignment, counts, source))

    def _source(self, loader):
        """The mapper whose augmentations are counted, or why the loader is measured."""
        if self.follow_loader and loader is not None:
            return source_of(loader, self.dataset_dicts)
        try:
            require_countable(self.mapper)
        except Uncountable as e:
            if loader is None:
                raise BadInput(
                    f"{e}, and {type(self).__name__} finds no training loader in its trainer "
                    "(data_loader or _trainer.data_loader) to measure the prior on; set it to a "
                    "number, see tools/estimate_prior.py"
                ) from None
            return str(e)
        if self.follow_loader:
            logger.warning(
                "No training loader in the trainer (data_loader or _trainer.data_loader): the "
                "prior is counted with the augmentations of the config."
            )
        return self.mapper

    def _read(self, assignment, source):
        now = dependencies(assignment, self.dataset_dicts, source, self.names)
        estimate = PriorEstimate.load(self.prior_file, now)
        logger.info(f"Prior read from {self.prior_file}.")
        return self._save(estimate)

    def _sum(self, assignment, counts, source):
        total = functools.reduce(operator.add, counts)
        return self._save(
            estimate_from_counts(total, assignment, self.dataset_dicts, source, self.names)
        )

    def _save(self, estimate):
        if self.output_dir:
            os.makedirs(self.output_dir, exist_ok=True)
            estimate.save(os.path.join(self.output_dir, FILE_NAME))
        return estimate


def loader_of(trainer):
    """The training loader of a Detectron2 trainer, or None where it is not found."""
    return getattr(getattr(trainer, "_trainer", trainer), "data_loader", None)


def _shown(prior, digits=3, function=float, kind="e"):
    """A prior, or that of each class, for the log."""
    several = prior if isinstance(prior, list) else [prior]
    if len(several) > MOST_SHOWN:
        low, high = (_shown(x, digits, function, kind) for x in (min(several), max(several)))
        return f"{low} to {high} ({len(several)} classes)"
    return ", ".join(f"{function(x):.{digits}{kind}}" for x in several)
