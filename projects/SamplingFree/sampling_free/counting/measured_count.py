"""Counts labels on the batches of a training loader, where annotations do not tell what it gives.

A mapper of one's own may crop, a sampler may repeat images, a loader may come from anywhere. Its
batches are then read before the training, seeded, and labeled by the model's own assignment.
"""

import inspect
import logging
import math
from collections.abc import Callable, Iterable

import numpy as np
from detectron2.data import DatasetMapper, MapDataset
from detectron2.data import transforms as T
from detectron2.data.common import AspectRatioGroupedDataset, ToIterableDataset
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data.images import reads_as_detectron2
from ..data.loader import ReadOrName, ReplayableLoader
from ..utils.distributed import caught, raised
from ..utils.errors import BadInput
from ..utils.seeding import seeded
from .assignment import Assignment, assignment_of
from .count import LabelTally
from .counts import AnchorCounts

logger = logging.getLogger(__name__)

PRECISE = 0.02  # relative standard error of the prior from which no more is read
LEAST_IMAGES, MOST_IMAGES = 64, 2048
MOST_COMPARED = 100  # images of the loader with those of the data set


class Uncountable(Exception):
    """Why the annotations do not tell what a loader gives, in words."""


def source_of(loader: Iterable, dataset_dicts: list[dict]) -> DatasetMapper | str:
    """What tells the prior of a training loader.

    Args:
        loader: gives lists of mapped dicts.
        dataset_dicts: the data set, in Detectron2's format.

    Returns:
        The loader's mapper, where its augmentations and the annotations tell
        what the loader gives; else why they do not.
    """
    try:
        return _countable_mapper(loader, dataset_dicts)
    except Uncountable as e:
        return str(e)


def _countable_mapper(loader, dataset_dicts):
    mapper, sampler, images = _parts(loader)
    if type(sampler) is not TrainingSampler:
        raise Uncountable(f"{type(sampler).__name__} need not show each image equally often")
    some = np.linspace(0, len(images) - 1, min(len(images), MOST_COMPARED)).astype(int).tolist()
    if len(images) != len(dataset_dicts) or any(
        _ground_truth(images[i]) != _ground_truth(dataset_dicts[i]) for i in some
    ):
        raise Uncountable("the loader's images or annotations are not those of the data set")
    require_countable(mapper)
    return mapper


def _parts(loader):
    """Mapper, sampler and data set."""
    if isinstance(loader, ReplayableLoader):
        return loader.mapper, loader.batches.sampler, loader.dataset.dicts
    inner = loader.dataset if isinstance(loader, AspectRatioGroupedDataset) else loader
    images = inner.dataset if isinstance(inner, DataLoader) else None
    if isinstance(images, ToIterableDataset) and isinstance(images.dataset, MapDataset):
        mapped = images.dataset
        mapper = getattr(mapped._map_func, "_obj", mapped._map_func)
        mapper = mapper.mapper if isinstance(mapper, ReadOrName) else mapper
        return mapper, images.sampler, mapped._dataset
    raise Uncountable(f"its loader, {_name(loader)}, is none of Detectron2's")


def _ground_truth(record):
    objects = record.get("annotations", [])
    return record["file_name"], [(*map(float, a["bbox"]), a["category_id"]) for a in objects]


def require_countable(mapper: Callable) -> None:
    """Raises Uncountable unless a mapper does what its list of augmentations says."""
    if not reads_as_detectron2(mapper):
        raise Uncountable(f"the mapper {_name(mapper)} has its own way to read an image")
    for augmentation in mapper.augmentations.augs:
        _require_known(augmentation)


def _require_known(augmentation):
    cls = type(augmentation)
    if cls.__module__.split(".")[0] not in ("detectron2", "fvcore"):
        raise Uncountable(f"what the augmentation {cls.__name__} does is not known")
    if isinstance(augmentation, T.Augmentation):
        wanted = inspect.signature(cls.get_transform).parameters.values()
        names = {p.name for p in wanted if p.kind == p.POSITIONAL_OR_KEYWORD}
        if names - {"self", "image"}:
            raise Uncountable(f"the augmentation {cls.__name__} looks at more than the image")
    for value in vars(augmentation).values():
        for part in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(part, (T.Augmentation, T.Transform)):
                _require_known(part)


def _name(x):
    return getattr(x, "__name__", type(x).__name__)


def measure_counts(
    model: nn.Module | Assignment,
    loader: Iterable,
    *,
    max_images: int = MOST_IMAGES,
    seed: int = 0,
    progress: bool = True,
) -> AnchorCounts:
    """Counts the labels that a detector gives on the first batches of a training loader.

    All processes read their share, until the prior's standard error is within 2 %. The batches are
    padded as in the training. The loader can be iterated over again, and the global random
    generators stay as they are.

    Args:
        model: not wrapped, or its :func:`assignment_of`.
        loader: gives lists of dicts with "image" (C, H, W) and "instances".
        max_images: of all processes, about; a batch is not cut.
        seed: of what is drawn from the global random generators.
        progress: show a progress bar.

    Returns:
        Sums over the images that were read; the same on all processes.
    """
    labels, sums = LabelTally(assignment_of(model)), np.zeros(7, np.int64)
    bar = tqdm(desc="measuring the prior", unit="image", disable=not progress)
    with seeded(seed), bar:
        batches = iter(loader)
        while sums[0] < max_images and not _is_precise(sums):
            parts = comm.all_gather(caught(lambda: _read(labels, next(batches, None))))
            if any(raised(part) is None for part in parts):  # a loader that ends
                break
            sums += sum(parts)
            bar.update(int(sums[0]) - bar.n)
        if hasattr(batches, "close"):  # ends the processes that read ahead
            batches.close()
    for bucket in getattr(loader, "_buckets", ()):  # Detectron2's keep what was not yet a batch
        bucket.clear()
    tally = labels.new_tally()
    for part in comm.all_gather(labels.tally):
        tally.add_all(part)
    return tally.counts(
        strides=labels.assignment.strides,
        num_images=int(sums[0]),
        num_empty_images=int(sums[0] - sums[6]),
        num_passes=1,
        standard_error=_standard_error(sums),
    )


def _read(labels, batch):
    """Labels a batch: (7,) images, sums of f, v, f f, v v, f v, and images with an object.

    f and v are an image's foreground and valid samples.
    """
    if batch is None:
        return None
    try:
        sizes = np.array([x["image"].shape[-2:] for x in batch])
        instances = [x["instances"] for x in batch]
    except (KeyError, TypeError, AttributeError):
        raise BadInput(
            "the training loader gives no lists of dicts with 'image' and 'instances', so the "
            "prior cannot be measured; set model.prior to a number"
        ) from None
    size = tuple(sizes.max(axis=0).tolist())
    f, v = np.array([labels.add(1.0, size, x) for x in instances]).T
    rows = np.ones_like(f), f, v, f * f, v * v, f * v, [len(x) > 0 for x in instances]
    return np.array([np.sum(row) for row in rows])


def _standard_error(sums):
    """Of the ratio sum(f) / sum(v), from the residuals f - v * ratio, relative to it."""
    n, f, v, ff, vv, fv, _ = sums.tolist()
    if n < 2 or f == 0:
        return math.inf
    ratio = f / v
    squares = max(ff - 2 * ratio * fv + ratio**2 * vv, 0)
    return math.sqrt(squares * n / (n - 1)) / f


def _is_precise(sums):
    return sums[0] >= LEAST_IMAGES and _standard_error(sums) <= PRECISE
