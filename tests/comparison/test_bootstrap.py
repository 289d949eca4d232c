"""The bootstrap over images: its oracle is COCOeval on a set in which the images are drawn."""

import contextlib
import copy
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sampling_free.comparison.bootstrap import (
    bootstrap_ap,
    drawn_weights,
    evaluated,
    paired_interval,
)

IMAGES, CLASSES = 7, 3


def coco_of(dataset):
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def made_up(seed, num_images=IMAGES):
    """Ground truth with a crowd, an empty image and a class of one object; detections near it."""
    rng = np.random.default_rng(seed)
    annotations, detections = [], []
    for image in range(1, num_images + 1):
        for _ in range(0 if image == 2 else rng.integers(1, 5)):
            box = [*rng.uniform(0, 60, 2), *rng.uniform(8, 40, 2)]
            category = int(rng.integers(1, CLASSES))
            annotations.append(
                {"image_id": image, "category_id": category, "bbox": box, "iscrowd": 0}
            )
            for _ in range(rng.integers(0, 4)):
                near = np.array(box) + rng.normal(0, 3, 4) * rng.choice([0.3, 2])
                category = category if rng.random() < 0.8 else int(rng.integers(1, CLASSES + 1))
                score = (len(detections) % 16 + 1) / 17  # equal in several images, not in one
                detections.append(
                    {
                        "image_id": image,
                        "category_id": category,
                        "bbox": np.maximum(near, 1).tolist(),
                        "score": score,
                    }
                )
    annotations[0]["iscrowd"] = 1
    annotations[-1]["category_id"] = CLASSES
    for i, a in enumerate(annotations, 1):
        a.update(id=i, area=a["bbox"][2] * a["bbox"][3])
    dataset = {
        "images": [{"id": i, "height": 100, "width": 100} for i in range(1, num_images + 1)],
        "categories": [{"id": k, "name": str(k)} for k in range(1, CLASSES + 1)],
        "annotations": annotations,
    }
    return dataset, detections


def drawn(dataset, detections, weights):
    """The set that has image i ``weights[i]`` times, each time under another id."""
    new, found = {**dataset, "images": [], "annotations": []}, []
    for image, times in zip(dataset["images"], weights):
        for _ in range(times):
            identity = len(new["images"]) + 1
            new["images"].append({**image, "id": identity})
            for source, target in (
                (dataset["annotations"], new["annotations"]),
                (detections, found),
            ):
                rows = [copy.deepcopy(x) for x in source if x["image_id"] == image["id"]]
                target += [{**x, "image_id": identity} for x in rows]
    for i, a in enumerate(new["annotations"], 1):
        a["id"] = i
    return new, found


def ap_of_coco(dataset, detections):
    coco = coco_of(dataset)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * evaluation.stats[0]


@pytest.mark.parametrize("seed", range(4))
def test_each_drawing_has_the_ap_of_coco_on_the_drawn_images(seed):
    dataset, detections = made_up(seed)
    weights = drawn_weights(IMAGES, 12)
    found = bootstrap_ap(evaluated(coco_of(dataset), detections), weights)
    wanted = [ap_of_coco(*drawn(dataset, detections, row)) for row in weights]
    assert found == pytest.approx(wanted, abs=1e-9)
    assert len(set(wanted)) > 6


def test_every_image_once_is_the_ap_itself():
    dataset, detections = made_up(5)
    found = bootstrap_ap(evaluated(coco_of(dataset), detections), np.ones((1, IMAGES), int))
    assert found == pytest.approx([ap_of_coco(dataset, detections)], abs=1e-9)


def test_drawings_depend_on_the_number_of_images_alone():
    weights = drawn_weights(40, 300)
    assert weights.shape == (300, 40) and (weights.sum(axis=1) == 40).all()
    assert (weights == drawn_weights(40, 300)).all()
    # An image is left out with probability (1 - 1/n) ** n.
    assert (weights == 0).mean() == pytest.approx((1 - 1 / 40) ** 40, abs=0.01)


def test_without_a_detection_there_is_nothing_to_draw():
    assert evaluated(coco_of(made_up(0)[0]), []) is None


def test_a_drawing_without_an_object_has_no_ap():
    dataset, detections = made_up(0)
    weights = np.zeros((1, IMAGES), int)
    weights[0, 1] = IMAGES  # the image that is empty
    assert np.isnan(bootstrap_ap(evaluated(coco_of(dataset), detections), weights)).all()


def test_the_paired_interval_is_that_of_the_mean_over_seeds():
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 5, 4000)  # of the images: both variants have it, and it cancels
    reference = np.stack([shared + 40, shared + 42])
    values = reference + rng.normal(1, 0.5, (2, 4000))
    half = 1.96 * 0.5 / np.sqrt(2)
    for mean in (1.0, 3.0):  # where the drawn APs are off, as of fewer classes, they are moved
        low, high = paired_interval(values, reference, mean)
        assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.05)
