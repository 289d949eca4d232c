"""The data of a config, checked before the training: one call, one record."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from detectron2.config import instantiate
from detectron2.data import build_detection_train_loader
from omegaconf import DictConfig

from ..utils.lazy import instantiate_with, target_of
from .datasets import check_image_files, check_training_masks, dataset_names, load_dataset
from .loader import ReadOrName


class TrainingData(NamedTuple):
    """What a training needs of its data.

    Attributes:
        names: registered names of the data sets; empty for another source.
        dicts: in Detectron2's format, without malformed boxes.
        mapper: the training mapper.
    """

    names: list[str]
    dicts: list[dict]
    mapper: Callable


def prepare_data(cfg: DictConfig, tests: Sequence[DictConfig] = ()) -> TrainingData:
    """Loads and checks the training set of a config.

    Args:
        cfg: of :func:`sampling_free.load_config`.
        tests: loaders of test sets, which are checked too.

    Raises:
        BadInput: a name is unknown, a file is missing, the class count does not fit, or an
            annotation is wrong; names it.
    """
    node = cfg.dataloader.train
    dicts = load_dataset(node.dataset, cfg.model, tests=tests)
    names = dataset_names(node.dataset)
    mapper = instantiate(node.mapper)
    check_training_masks(dicts, mapper, cfg.model, ", ".join(names))
    check_image_files(dicts, mapper, ", ".join(names), node.get("unreadable", "stop"))
    return TrainingData(names, dicts, mapper)


def train_loader(node: DictConfig, dicts: list[dict], mapper: Callable) -> Iterable:
    """Builds the training loader of a config; an image that cannot be read is named in one line."""
    if target_of(node) is build_detection_train_loader:  # the one here does so by itself
        mapper = ReadOrName(mapper)
    return instantiate_with(node, dataset=dicts, mapper=mapper)
