"""The views of an image with their ground truth, one by one, exactly as the mapper makes them."""

from ..utils.seeding import seeded
from .views import enumerate_views, size_of


def mapped_views(mapper, image: dict, index: int, num_passes: int, seed: int):
    """Yields an image as the mapper gives it under each view.

    Args:
        mapper (DatasetMapper): without masks, unless boxes are recomputed from them.
        image: in Detectron2's format; stays as it is.
        index: of the image, for what is drawn.
        num_passes: how often it is drawn.
        seed: of those draws.

    Yields:
        tuple[float, tuple[int, int], Instances]: weight of the view, (height, width), and what the
        detector gets to see.
    """
    for number in range(num_passes):
        with seeded(seed, number, index):
            views = enumerate_views(mapper.augmentations.augs, size_of(image, index))
        for view in views:
            record = {"annotations": [dict(a) for a in image.get("annotations", [])]}
            mapper._transform_annotations(record, view.transforms, view.size)
            yield view.weight / num_passes, view.size, record["instances"]
