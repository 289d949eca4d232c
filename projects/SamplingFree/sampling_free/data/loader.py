"""A training loader whose order can be replayed, so that ``--resume`` continues exactly.

Detectron2's loader starts its order anew on resume, forgets half-full aspect ratio groups, and
draws augmentations from generators whose state depends on the number of workers. Here batch k is
a function of the seed and k alone: batches are formed from the annotated sizes before anything is
decoded, and each image's augmentations are seeded by its position in the stream. The batches are
also the same for any number of processes; each takes its slice.
"""

import itertools
import logging
import struct
from collections.abc import Callable

import torch
from detectron2.data import DatasetFromList, DatasetMapper
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from PIL import Image
from torch.utils.data import Dataset

from ..utils.errors import BadInput
from ..utils.seeding import seeded
from ..utils.signals import LoaderSignals, SignalSafeLoader
from .images import makes_8_bits, reads_as_detectron2, require_8_bits

logger = logging.getLogger(__name__)

# What a file that is no sound image raises in Pillow or, of another size, in Detectron2.
BROKEN_IMAGE = OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError
# Where the name of a package is not that of its module.
PACKAGES = {"cv2": "opencv-python-headless", "skimage": "scikit-image", "sklearn": "scikit-learn"}


class UnreadableImage(BadInput):
    """An image that a mapper cannot read: one line that names it."""


def build_replayable_train_loader(
    dataset: list[dict],
    *,
    mapper: Callable,
    sampler=None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    seed: int = 0,
    unreadable: str = "stop",
) -> "ReplayableLoader":
    """Like Detectron2's ``build_detection_train_loader``, with a replayable order.

    Args:
        dataset: in Detectron2's format.
        mapper: dict -> what the model takes.
        sampler (Sampler): one of Detectron2's training samplers, with a seed of its own; default
            an endless shuffle.
        total_batch_size: images over all processes.
        aspect_ratio_grouping: wide and tall images in separate batches.
        num_workers: loader processes; has no influence on the batches.
        seed: of the order and of the augmentations; -1 draws one, and then a resumed run
            has another order.
        unreadable: what an image that cannot be read does: "stop" the run, or "skip" to the
            next one, with one warning for each file, which counts them.
    """
    if unreadable not in ("stop", "skip"):
        raise BadInput(f"dataloader.train.unreadable={unreadable!r}: known are 'stop', 'skip'")
    if num_workers < 0:
        raise BadInput(f"dataloader.train.num_workers={num_workers}: give 0 or more")
    if total_batch_size <= 0 or total_batch_size % comm.get_world_size():
        raise BadInput(
            f"dataloader.train.total_batch_size={total_batch_size} is not a multiple of the "
            f"{comm.get_world_size()} processes"
        )
    if is_detectron2s(mapper) and mapper.use_instance_mask:
        _check_masks(dataset, mapper.instance_mask_format == "polygon")
    if seed < 0:  # Detectron2's way to ask for no seed
        seed = comm.shared_random_seed()
    sampler = sampler or TrainingSampler(len(dataset), seed=seed)
    batches = ReplayableBatches(sampler, dataset, total_batch_size, aspect_ratio_grouping)
    return ReplayableLoader(dataset, mapper, batches, num_workers, seed, unreadable)


def is_detectron2s(mapper: Callable) -> bool:
    """Says whether a mapper reads images and annotations as Detectron2's own does."""
    own = DatasetMapper._transform_annotations
    return reads_as_detectron2(mapper) and type(mapper)._transform_annotations is own


def _check_masks(dataset, is_polygon):
    """Raises BadInput for an image whose masks Detectron2's mapper cannot put together."""
    for record in dataset:
        objects = [a for a in record.get("annotations", ()) if not a.get("iscrowd", 0)]
        fault = None
        if len({"segmentation" in a for a in objects}) > 1:
            fault = "only some of its objects have a segmentation; add it to the others, or set "
            fault += "dataloader.train.mapper.use_instance_mask=False"
        elif is_polygon and any(isinstance(a.get("segmentation"), dict) for a in objects):
            fault = "the masks are run lengths; set "
            fault += "dataloader.train.mapper.instance_mask_format=bitmask (INPUT.MASK_FORMAT)"
        elif not all(isinstance(a.get("segmentation", []), (list, dict)) for a in objects):
            fault = "a mask is neither polygons nor run lengths; give it as one of them, or set "
            fault += "dataloader.train.mapper.use_instance_mask=False"
        if fault:
            raise BadInput(f"{record.get('file_name')}: {fault}")


class ReplayableBatches:
    """Endless batches of (position, index), as a function of the sampler's order alone.

    Attributes:
        start (int): the first batch to yield.
    """

    def __init__(self, sampler, dataset, total_batch_size, aspect_ratio_grouping):
        self.sampler = sampler
        self.is_tall = [
            aspect_ratio_grouping and d.get("height", 0) > d.get("width", 0) for d in dataset
        ]
        self.total_batch_size = total_batch_size
        self.start = 0

    def __iter__(self):
        share = self.total_batch_size // comm.get_world_size()
        first = comm.get_rank() * share
        for batch in itertools.islice(self._all(), self.start, None):
            yield batch[first : first + share]

    def _all(self):
        groups = {False: [], True: []}
        for position, index in enumerate(self.sampler._infinite_indices()):
            group = groups[self.is_tall[index]]
            group.append((position, int(index)))
            if len(group) == self.total_batch_size:
                yield list(group)
                group.clear()


class ReplayableLoader:
    """Iterates over batches (lists of mapped dicts), starting at batch ``start_iter``."""

    def __init__(self, dataset, mapper, batches, num_workers, seed, unreadable):
        self.batches = batches
        self.num_workers = num_workers
        self.dataset = _SeededDataset(dataset, mapper, seed, unreadable)

    @property
    def mapper(self):
        return self.dataset.mapper.mapper

    @property
    def start_iter(self):
        return self.batches.start

    @start_iter.setter
    def start_iter(self, value):
        self.batches.start = value

    def __iter__(self):
        # A generator: v0.6's trainer asks for the iterator before the resumed iteration is known.
        yield from SignalSafeLoader(
            self.dataset,
            batch_sampler=self.batches,
            num_workers=self.num_workers,
            collate_fn=list,
            worker_init_fn=LoaderSignals(),
            generator=torch.Generator().manual_seed(self.dataset.seed),
        )


class _SeededDataset(Dataset):
    def __init__(self, dataset, mapper, seed, unreadable):
        self.dicts = DatasetFromList(dataset, copy=False)
        self.mapper = ReadOrName(mapper)
        self.seed = seed
        self.unreadable = unreadable
        # Shared by the workers, so that a file is named once.
        self.warned = torch.zeros(len(dataset), dtype=torch.uint8).share_memory_()

    def __getitem__(self, item):
        position, index = item
        for candidate in itertools.chain(range(index, len(self.dicts)), range(index)):
            try:
                with seeded(self.seed, position):
                    mapped = self.mapper(self.dicts[candidate])
                if mapped is not None:  # a mapper's way to leave an image out, as in Detectron2
                    return mapped
            except UnreadableImage as e:
                if self.unreadable == "stop":
                    way_out = "or set dataloader.train.unreadable=skip"
                    raise UnreadableImage(f"{e}, {way_out}") from None
                if not self.warned[candidate]:
                    self.warned[candidate] = 1
                    so_far = f"{int(self.warned.sum())} of {len(self.dicts)}"
                    logger.warning(f"skipped {so_far} images so far: {e}")
        raise BadInput("none of the images can be read")


class ReadOrName:
    """Wraps a mapper so that an image that cannot be read is named in one line."""

    def __init__(self, mapper):
        self.mapper = mapper
        self.makes_8_bits = makes_8_bits(mapper)

    def __call__(self, record):
        try:
            if self.makes_8_bits:
                require_8_bits(record["file_name"])
            return self.mapper(record)
        except ModuleNotFoundError as e:  # fvcore's crop of polygons wants shapely
            module = str(e.name).split(".")[0]
            raise BadInput(
                f"the mapper needs {module}, which is not installed: "
                f"pip install {PACKAGES.get(module, module)}"
            ) from e
        except (*BROKEN_IMAGE, RuntimeError) as e:
            # A RuntimeError is Pillow's for a broken AVIF, and anybody's for anything.
            if isinstance(e, RuntimeError) and not _is_broken(record.get("file_name")):
                raise
            raise UnreadableImage(
                f"{record.get('file_name')}: cannot be read ({type(e).__name__}: {e}); "
                "mend or remove it"
            ) from e


def _is_broken(path):
    """Whether Pillow cannot read a file."""
    if path is None:
        return False
    try:
        with PathManager.open(path, "rb") as f, Image.open(f) as image:
            image.load()
    except (*BROKEN_IMAGE, RuntimeError):
        return True
    return False
