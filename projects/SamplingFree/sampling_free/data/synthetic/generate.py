"""A seeded synthetic detection set in COCO format: images, boxes and masks.

The same configuration gives the same bytes: each image has its own PCG64 stream seeded by
(seed, split, index) and no global state, clock or font is read. Boxes and polygons are amodal:
they go around the whole object although a later one may cover up to 30 % of it.

Legend: H, W image height and width, (h, w) a window in it; sizes are longer sides in pixels.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
from PIL import Image

from ...utils.errors import BadInput
from .scene import Scene
from .shapes import MAX_CLASSES, look, outline, render

GENERATOR_VERSION = 1  # raise it with every change that alters a byte of the output
SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """What a synthetic set looks like. Ranges are inclusive pairs (low, high).

    Attributes:
        num_classes: 1 to 240 combinations of shape, color and texture.
        train_images, val_images: number of images of "train", and of "val" and "test" each.
        image_size: range of height and of width in pixels, at least 32.
        objects: range of the number of objects in an image that is not empty.
        tail: class k is drawn in proportion to (k + 1) ** -tail; 0 is uniform.
        min_size: smallest object, at least 8 px; the largest is half of the image's shorter side.
        size_skew: sizes are log-uniform at 1; smaller values favor large objects, larger small.
        empty: share of images without any annotation.
        crowd: probability of a crowd region in an image that is not empty.
        clutter: mean number of lines and blobs of no class.
        contrast: opacity of the objects, in (0, 1].
        noise: a pixel's brightness is off by -noise, 0 or noise, of 255.
        seed: non-negative integer.
    """

    num_classes: int = 5
    train_images: int = 600
    val_images: int = 120
    image_size: tuple = (112, 144)
    objects: tuple = (1, 4)
    tail: float = 0.8
    min_size: int = 8
    size_skew: float = 0.7
    empty: float = 0.05
    crowd: float = 0.04
    clutter: int = 4
    contrast: float = 1.0
    noise: int = 6
    seed: int = 0

    def __post_init__(self):
        for key, smallest in (("image_size", 32), ("objects", 1)):
            try:
                low, high = (int(v) for v in getattr(self, key))
            except (TypeError, ValueError):
                low, high = 0, 0
            if not smallest <= low <= high:
                raise _bad(self, key, f"integers (low, high), {smallest} <= low <= high")
            object.__setattr__(self, key, (low, high))
        limits = {
            "num_classes": (1, MAX_CLASSES),
            "train_images": (1, 10**6),
            "val_images": (1, 10**6),
            "tail": (0, 10),
            "min_size": (8, self.image_size[0] // 2),
            "size_skew": (0.1, 10),
            "empty": (0, 1),
            "crowd": (0, 1),
            "clutter": (0, 1000),
            "contrast": (0.05, 1),
            "noise": (0, 128),
            "seed": (0, 2**63),
        }
        for key, (low, high) in limits.items():
            value, kind = getattr(self, key), type(getattr(type(self), key))
            if not isinstance(value, (int, kind)) or not low <= value <= high:
                raise _bad(self, key, f"{kind.__name__} in [{low}, {high}]")
            object.__setattr__(self, key, kind(value))


def _bad(config, key, wanted):
    return BadInput(f"{key}={getattr(config, key)!r} of the synthetic set: give {wanted}")


EASY = SyntheticConfig()
HARD = SyntheticConfig(
    num_classes=80,
    train_images=2000,
    val_images=400,
    image_size=(224, 256),
    objects=(1, 2),
    tail=1.0,
    size_skew=1.8,
    empty=0.1,
    crowd=0.04,
    clutter=10,
    contrast=0.8,
    noise=12,
)
SETTINGS = {"easy": EASY, "hard": HARD}


def class_names(config):
    """The names of the classes in the order of their contiguous ids."""
    return [look(k).name for k in range(config.num_classes)]


def generate(config: SyntheticConfig, split, folder):
    """Write one split: ``folder/images/*.png`` and ``folder/annotations.json``.

    Args:
        config: what to draw.
        split: "train", "val" or "test".
        folder: the target; made if it is missing.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(num_images(config, split)):
        pixels, found = draw(config, split, index)
        name = f"{index:06d}.png"
        Image.fromarray(pixels).save(folder / "images" / name, compress_level=2)
        height, width = pixels.shape[:2]
        images.append({"id": index + 1, "file_name": name, "height": height, "width": width})
        for ann in found:
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **ann})
    data = {
        "info": {"description": "synthetic", "version": GENERATOR_VERSION, "split": split}
        | {"config": dataclasses.asdict(config)},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": k + 1, "name": n} for k, n in enumerate(class_names(config))],
    }
    (folder / "annotations.json").write_text(
        json.dumps(data, sort_keys=True, allow_nan=False), encoding="ascii"
    )


def num_images(config, split):
    """The number of images of a split, which is "train", "val" or "test"."""
    if split not in SPLITS:
        raise BadInput(f"split={split!r}: a synthetic set has the splits {', '.join(SPLITS)}")
    return config.train_images if split == "train" else config.val_images


def draw(config, split, index):
    """Draw image ``index`` of a split, which needs no other image.

    Returns:
        (H, W, 3) uint8 RGB pixels, and the annotations as COCO has them but without ids.
    """
    rng = np.random.Generator(np.random.PCG64([config.seed, SPLITS.index(split), index]))
    low, high = config.image_size
    height, width = (int(v) for v in rng.integers(low, high + 1, 2))
    scene = Scene(rng, height, width)
    for _ in range(int(rng.integers(0, 2 * config.clutter + 1))):
        scene.add_clutter()
    annotations = []
    if rng.uniform() >= config.empty:
        weights = np.arange(1, config.num_classes + 1, dtype=np.float64) ** -config.tail
        cumulative = np.cumsum(weights) / weights.sum()
        if rng.uniform() < config.crowd:
            annotations.append(_add_crowd(scene, cumulative, config))
        for _ in range(int(rng.integers(config.objects[0], config.objects[1] + 1))):
            annotations.append(_add_object(scene, cumulative, config))
    return scene.finish(config.noise), [a for a in annotations if a is not None]


def _draw_class(rng, cumulative):
    return min(int(np.searchsorted(cumulative, rng.uniform())), len(cumulative) - 1)


def _add_object(scene, cumulative, config):
    """Place one object; returns its annotation, or None where it found no place."""
    rng = scene.rng
    k = _draw_class(rng, cumulative)
    largest = min(scene.pixels.shape[:2]) // 2
    exponent = rng.uniform() ** config.size_skew
    size = round(config.min_size * (largest / config.min_size) ** exponent)
    polygon = outline(look(k).shape, size, rng.uniform(0.8, 1.25), rng.uniform(-15, 15))
    mask, paint = render(rng, k, size, polygon)
    corner = scene.place(mask, paint, config.contrast)
    if corner is None:
        return None
    polygon = np.round(polygon + corner, 2)
    (x0, y0), (x1, y1) = polygon.min(axis=0), polygon.max(axis=0)
    x, y = polygon[:, 0], polygon[:, 1]
    area = abs((x * np.roll(y, 1) - y * np.roll(x, 1)).sum()) / 2
    return {
        "category_id": k + 1,
        "bbox": [round(float(v), 2) for v in (x0, y0, x1 - x0, y1 - y0)],
        "area": round(float(area), 2),
        "segmentation": [polygon.reshape(-1).tolist()],
        "iscrowd": 0,
    }


def _add_crowd(scene, cumulative, config):
    """Place a heap of one class's objects, too small to be told apart, as one crowd region."""
    rng = scene.rng
    k = _draw_class(rng, cumulative)
    side = int(rng.integers(24, max(25, min(scene.pixels.shape[:2]) * 2 // 5)))
    heap, paint = np.zeros((side, side), dtype=bool), np.zeros((side, side, 3), dtype=np.int64)
    for _ in range(int(rng.integers(10, 17))):
        size = int(rng.integers(5, 8))
        mask, colors = render(rng, k, size, outline(look(k).shape, size))
        y, x = (int(v) for v in rng.integers(0, side - size, 2))
        window = slice(y, y + mask.shape[0]), slice(x, x + mask.shape[1])
        heap[window] |= mask
        paint[window] = np.where(mask[:, :, None], colors, paint[window])
    corner = scene.place(heap, paint, config.contrast)
    if corner is None:
        return None
    full = np.zeros(scene.pixels.shape[:2], dtype=bool)
    full[corner[1] : corner[1] + side, corner[0] : corner[0] + side] = heap
    ys, xs = np.nonzero(full)
    box = [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
    return {
        "category_id": k + 1,
        "bbox": [int(v) for v in box],
        "area": int(full.sum()),
        "segmentation": {"size": list(full.shape), "counts": run_lengths(full)},
        "iscrowd": 1,
    }


def run_lengths(mask):
    """COCO's uncompressed run lengths of an (H, W) mask: by columns, zeros first."""
    flat = np.concatenate([[False], mask.flatten(order="F"), [not mask[-1, -1]]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(ends, prepend=0).tolist()
