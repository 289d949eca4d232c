"""The imbalance of a config before training: from its data, its weights and one batch."""

import logging
from collections import Counter

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.layers import FrozenBatchNorm2d
from omegaconf import DictConfig

from ..checkpoint.checkpointer import CannotFetch, NamingCheckpointer
from ..counting.assignment import assignment_of
from ..counting.count import is_fast
from ..counting.estimate import (
    PriorEstimate,
    class_names,
    dependencies,
    estimate_from_counts,
    estimate_prior,
)
from ..counting.measured_count import MOST_IMAGES, measure_counts, source_of
from ..data.datasets import num_classes_of
from ..data.prepare import prepare_data, train_loader
from ..detectors.bias import PER_CLASS, TO_BE_MEASURED, PriorBias
from ..utils.errors import BadInput, require_number
from ..utils.models import pixels
from .gradients import measure
from .report import Imbalance

logger = logging.getLogger(__name__)

MOST_IN_BATCH = 4  # images: enough to see the sizes, and they fit
MOST_BATCHES = 20  # to look for one with an object
MOST_COUNTED = 200  # images, where counting is slow


def check_imbalance(
    cfg: DictConfig, config_file: str = "", max_images: int | None = None
) -> Imbalance:
    """Measures the imbalance of a config on its data and one batch.

    Args:
        cfg: as ``load_config`` reads it.
        config_file: for the report.
        max_images: of the training set are counted, evenly spread. None for all, or
            200 where counting is slow.

    Raises:
        BadInput: as the training would; and if no batch has an object.
    """
    if max_images is not None:
        require_number("--images", max_images, 1, float("inf"))
    train = cfg.dataloader.train
    names, dicts, mapper = prepare_data(cfg)
    if train.get("total_batch_size", 0) > MOST_IN_BATCH:
        logger.info(f"The batch is cut to {MOST_IN_BATCH} of {train.total_batch_size} images.")
        train.total_batch_size = MOST_IN_BATCH
    model = instantiate(cfg.model).to(cfg.train.device).train()
    loader = train_loader(train, dicts, mapper)
    inputs = _first_batch(loader)
    weights = _load_weights(model, cfg.train, inputs)
    estimate = _estimate(cfg, assignment_of(model), dicts, loader, names, max_images)
    for head in model.modules():
        if isinstance(head, PriorBias):
            _set_prior(head, estimate, cfg.train.reset_prior)
    return Imbalance(
        config=config_file,
        estimate=estimate,
        num_images_of_set=len(dicts),
        measurement=_measure(model, inputs, weights),
        num_images=len(inputs),
        weights=weights,
        objects=_objects(dicts, names, num_classes_of(cfg.model)),
        is_yaml="cfg" in cfg,
    )


def _objects(dicts, names, num_classes):
    """dict[str, int]: objects by class; empty for a model that knows no classes."""
    if num_classes is None:
        return {}
    counts = Counter(
        a["category_id"] for d in dicts for a in d.get("annotations", []) if not a.get("iscrowd", 0)
    )
    return {name: counts[k] for k, name in enumerate(class_names(names, num_classes))}


def _measure(model, inputs, weights):
    try:
        return measure(model, inputs, with_parts=True)
    except FloatingPointError as e:  # of Detectron2's RPN, or of a detector here
        raise BadInput(f"the first batch with {weights}: {e}") from e


def _first_batch(loader):
    """The first batch with an object, as the training would see it."""
    for batch, _ in zip(loader, range(MOST_BATCHES)):
        if any(len(x["instances"]) for x in batch):
            return batch
    raise BadInput(
        f"dataloader.train: not one object in the first {MOST_BATCHES} batches; set "
        "filter_empty=True in its dataset"
    )


def _load_weights(model, train, inputs):
    """Fills the model; returns in words with what."""
    path = train.init_checkpoint
    if not path:
        return "random weights"
    try:
        NamingCheckpointer(model, allow_pickle=train.allow_pickle).load(path)
    except CannotFetch:
        _stand_in(model, inputs)
        logger.warning(
            f"{path} cannot be fetched: the backbone keeps random weights, and its frozen "
            "normalization is fitted to the batch; take the gradients at the features as rough."
        )
        return f"random weights in place of {path}"
    return f"weights of {path}"


@torch.no_grad()
def _stand_in(model, inputs):
    """Fits frozen normalization to a batch: without pre-trained statistics features explode."""

    def fit(layer, arguments):
        variance, mean = torch.var_mean(arguments[0], dim=(0, 2, 3), unbiased=False)
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)

    layers = [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
    handles = [m.register_forward_pre_hook(fit) for m in layers]
    try:
        model.backbone(pixels(model, inputs))
    finally:
        for handle in handles:
            handle.remove()


def _estimate(cfg, assignment, dicts, loader, names, max_images):
    source = source_of(loader, dicts)
    if cfg.train.prior_file:
        return PriorEstimate.load(
            cfg.train.prior_file, dependencies(assignment, dicts, source, names)
        )
    if isinstance(source, str):
        counts = measure_counts(assignment, loader, max_images=max_images or MOST_IMAGES)
        return estimate_from_counts(counts, assignment, dicts, source, names)
    if max_images is None:
        max_images = len(dicts) if is_fast(assignment, source) else MOST_COUNTED
    chosen = np.linspace(0, len(dicts) - 1, min(max_images, len(dicts))).round().astype(int)
    return estimate_prior(assignment, [dicts[i] for i in chosen], source, names)


def _set_prior(head, estimate, reset_prior):
    """As ``PriorInit`` would: a head that a checkpoint filled keeps its bias."""
    if head.prior in TO_BE_MEASURED:
        prior = estimate.class_priors if head.prior == PER_CLASS else estimate.prior
    else:
        prior = head.prior
    if head.head_was_loaded and not reset_prior:
        head.prior = prior
    else:
        head.set_prior(prior)
