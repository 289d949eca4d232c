"""Counts a data set's labels with a sparse matcher, many images at once.

    B views   L levels   G objects of all views   M foreground anchors

Several processes may share the images.
"""

from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from .assignment import LevelShapes
from .batched_views import apply, read_records, recipes
from .counts import Tally
from .sparse.images import Images, expand
from .views import mapped_views, sampled_names

IMAGES_AT_ONCE = 256


def tally_sparsely(
    assignment, matcher: Callable, dataset_dicts, mapper, *, num_passes, seed, progress, num_workers
) -> Tally:
    """Counts a training set with a sparse matcher.

    Args:
        assignment (Assignment): what ``matcher`` stands for.
        matcher: from Images to Labeled; see sparse/select.py.
        dataset_dicts, mapper, num_passes, seed, progress, num_workers: as in ``count_anchors``.

    Returns:
        The same for any number of workers.
    """
    views, chunks = _views(dataset_dicts, mapper, num_passes, seed)
    counter = _Counter(
        views,
        matcher,
        LevelShapes(assignment),
        np.array(assignment.anchor_generator.num_anchors),
        assignment.num_classes,
        knows_classes=assignment.class_names is None,
    )
    tally = counter.new_tally()
    left = len(dataset_dicts)
    with tqdm(total=left, desc="counting anchors", unit="image", disable=not progress) as bar:
        for part in _map(counter, chunks, num_workers):
            tally.add_all(part)
            bar.update(min(IMAGES_AT_ONCE, left))
            left -= IMAGES_AT_ONCE
    return tally


def _views(dataset_dicts, mapper, num_passes, seed):
    """What makes the views of some images, and the images in chunks for it."""
    begins = range(0, len(dataset_dicts), IMAGES_AT_ONCE)
    augmentations = mapper.augmentations.augs
    if not sampled_names(augmentations) and not mapper.recompute_boxes:
        records = read_records(dataset_dicts)
        if records is not None:
            chunks = [records.part(begin, begin + IMAGES_AT_ONCE) for begin in begins]
            return _AllAtOnce(recipes(augmentations)), chunks
    chunks = [(begin, dataset_dicts[begin : begin + IMAGES_AT_ONCE]) for begin in begins]
    return _OneByOne(mapper, num_passes, seed), chunks


class _Batch(NamedTuple):
    """Views of the same weight."""

    weight: float
    sizes: np.ndarray  # (B, 2) int64, pixels
    boxes: np.ndarray  # (G, 4) float32 XYXY, pixels
    classes: np.ndarray  # (G,) int64
    starts: np.ndarray  # (B + 1,) int64, view i has the objects starts[i]:starts[i + 1]


@dataclass
class _AllAtOnce:
    """Views of augmentations that are exact."""

    recipes: list

    def __call__(self, records):
        for steps, weight in self.recipes:
            yield _Batch(weight, *apply(steps, records))


@dataclass
class _OneByOne:
    """Views by the mapper: drawn ones, boxes from masks, and boxes that are no plain lists."""

    mapper: object
    num_passes: int
    seed: int

    def __call__(self, chunk):
        begin, dataset_dicts = chunk
        found = defaultdict(list)
        for index, image in enumerate(dataset_dicts, begin):
            views = mapped_views(self.mapper, image, index, self.num_passes, self.seed)
            for weight, size, instances in views:
                boxes, classes = instances.gt_boxes.tensor, instances.gt_classes
                found[weight].append((size, boxes.numpy(), classes.numpy()))
        for weight, rows in found.items():
            sizes, boxes, classes = zip(*rows)
            starts = np.cumsum([0, *map(len, boxes)])
            yield _Batch(
                weight, np.array(sizes), np.concatenate(boxes), np.concatenate(classes), starts
            )


@dataclass
class _Counter:
    """From a chunk of images to its tally; can be sent to another process."""

    views: object
    matcher: object
    level_shapes: LevelShapes
    per_cell: np.ndarray  # (L,) anchors at each place
    num_classes: int
    knows_classes: bool

    def new_tally(self):
        return Tally(len(self.per_cell), self.num_classes)

    def __call__(self, chunk):
        tally = self.new_tally()
        for batch in self.views(chunk):
            images = Images(batch.boxes, batch.starts, self.level_shapes(batch.sizes))
            classes = batch.classes if self.knows_classes else np.zeros_like(batch.classes)
            tally.add(batch.weight, *self._count(images, classes))
        return tally

    def _count(self, images, classes):
        """The arguments of :meth:`Tally.add`."""
        found = self.matcher(images)
        labels = np.full(len(found.object), -1)
        matched = found.object >= 0
        labels[matched] = classes[found.object[matched]]
        foreground = np.flatnonzero((labels >= 0) & (labels < self.num_classes))
        num_levels = len(self.per_cell)
        anchors = images.shapes.prod(axis=2).sum(axis=0) * self.per_cell
        return (
            anchors - np.bincount(found.level[labels < 0], minlength=num_levels),
            np.bincount(found.level[foreground], minlength=num_levels),
            np.bincount(labels[foreground], minlength=self.num_classes),
            len(images.boxes),
            num_unreached(images, found.object[foreground]),
        )


def num_unreached(images: Images, matched: np.ndarray) -> int:
    """Objects of which neither they nor one with the same box in their image is matched.

    Args:
        images: G objects.
        matched: (M,) objects of the foreground anchors.
    """
    is_reached = np.zeros(len(images.boxes), bool)
    is_reached[matched] = True
    left = np.flatnonzero(~is_reached)
    image = np.searchsorted(images.starts, left, side="right") - 1
    owner, other = expand(images.starts[image], np.diff(images.starts)[image])
    same = (images.boxes[left[owner]] == images.boxes[other]).all(axis=1) & is_reached[other]
    return len(left) - len(np.unique(owner[same]))


def _map(counter, chunks, num_workers):
    """The tallies of all chunks, in their order."""
    if num_workers == 0:
        yield from map(counter, chunks)
        return
    most = max(min(num_workers, len(chunks)), 1)
    with ProcessPoolExecutor(most, initializer=_start, initargs=(counter,)) as pool:
        yield from pool.map(_run, chunks)


_of_process = {}


def _start(counter):
    torch.set_num_threads(1)  # there is a process for each core; and a fork has no other threads
    _of_process["counter"] = counter


def _run(chunk):
    return _of_process["counter"](chunk)
