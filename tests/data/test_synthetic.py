import contextlib
import dataclasses
import hashlib
import io
import json
import random

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, pairwise_iou
from PIL import Image
from pycocotools.coco import COCO

from sampling_free.data.synthetic.generate import (
    EASY,
    GENERATOR_VERSION,
    HARD,
    SETTINGS,
    SyntheticConfig,
    class_names,
    draw,
    generate,
    run_lengths,
)
from sampling_free.utils.errors import BadInput

SMALL = dataclasses.replace(EASY, train_images=300, crowd=0.1)
TINY = dataclasses.replace(EASY, train_images=6, val_images=3, crowd=0.5, empty=0.2)

# (version, start of the sha256 of five train images and their annotations)
GOLDEN = {"easy": (1, "653180ccb174b0b8"), "hard": (1, "fe7280dcc6a11e4c")}


def _digests(folder):
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(folder, COCO) of a generated train split."""
    folder = tmp_path_factory.mktemp("synthetic") / "train"
    generate(SMALL, "train", folder)
    with contextlib.redirect_stdout(io.StringIO()):
        return folder, COCO(str(folder / "annotations.json"))


def test_same_seed_gives_the_same_bytes_whatever_ran_before(tmp_path):
    generate(TINY, "train", tmp_path / "a")
    generate(TINY, "val", tmp_path / "other")
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    generate(TINY, "train", tmp_path / "somewhere" / "b")
    now = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert now == state, "the random generators are left alone"
    first = _digests(tmp_path / "a")
    assert len(first) == TINY.train_images + 1
    assert first == _digests(tmp_path / "somewhere" / "b")


@pytest.mark.parametrize("setting", sorted(GOLDEN))
def test_a_change_of_the_pictures_comes_with_a_new_version(setting):
    digest = hashlib.sha256()
    for index in range(5):
        pixels, anns = draw(SETTINGS[setting], "train", index)
        digest.update(pixels.tobytes() + json.dumps(anns, sort_keys=True).encode())
    assert (GENERATOR_VERSION, digest.hexdigest()[:16]) == GOLDEN[setting]


def test_seed_split_and_index_each_change_the_picture():
    pictures = [
        draw(TINY, "train", 0)[0],
        draw(TINY, "train", 1)[0],
        draw(TINY, "val", 0)[0],
        draw(dataclasses.replace(TINY, seed=1), "train", 0)[0],
    ]
    assert len({p.tobytes() for p in pictures}) == 4


def test_images_are_as_the_annotations_say(small):
    folder, coco = small
    assert len(coco.imgs) == SMALL.train_images == len(list((folder / "images").iterdir()))
    low, high = SMALL.image_size
    for info in coco.imgs.values():
        with Image.open(folder / "images" / info["file_name"]) as image:
            assert image.size == (info["width"], info["height"])
            assert image.mode == "RGB"
        assert low <= info["width"] <= high and low <= info["height"] <= high
    assert [c["name"] for c in coco.dataset["categories"]] == class_names(SMALL)


def test_masks_areas_and_boxes_agree(small):
    _, coco = small
    for ann in coco.anns.values():
        info = coco.imgs[ann["image_id"]]
        x, y, w, h = ann["bbox"]
        assert x >= 0 and y >= 0 and x + w <= info["width"] and y + h <= info["height"]
        mask = coco.annToMask(ann)
        ys, xs = np.nonzero(mask)
        edges = [xs.min() - x, ys.min() - y, xs.max() + 1 - x - w, ys.max() + 1 - y - h]
        slack = 0 if ann["iscrowd"] else 1.5
        assert np.abs(edges).max() <= slack, ann
        if ann["iscrowd"]:
            assert mask.sum() == ann["area"]
        else:
            points = np.array(ann["segmentation"][0]).reshape(-1, 2)
            steps = np.linalg.norm(points - np.roll(points, 1, axis=0), axis=1)
            assert abs(mask.sum() - ann["area"]) <= 0.5 * steps.sum() + 1, ann
            np.testing.assert_allclose(points.min(axis=0), [x, y], atol=0.011)
            np.testing.assert_allclose(points.max(axis=0), [x + w, y + h], atol=0.011)


def test_there_are_empty_images_and_crowds(small):
    _, coco = small
    empty = [i for i in coco.imgs if not coco.imgToAnns[i]]
    crowds = [a for a in coco.anns.values() if a["iscrowd"]]
    assert 5 <= len(empty) <= 30, "5 % of 300"
    assert 15 <= len(crowds) <= 50, "10 % of the others"
    assert all(isinstance(a["segmentation"], dict) for a in crowds)


@pytest.mark.parametrize("setting, few", [("easy", 1), ("hard", 10)])
def test_classes_have_a_long_tail(setting, few):
    config = dataclasses.replace(
        SETTINGS[setting], image_size=(32, 32), clutter=0, crowd=0, empty=0, objects=(3, 3)
    )
    anns = [a for i in range(300) for a in draw(config, "train", i)[1]]
    counts = np.bincount([a["category_id"] - 1 for a in anns], minlength=config.num_classes)
    weights = 1.0 / np.arange(1, config.num_classes + 1) ** config.tail
    share = weights[:few].sum() / weights.sum()
    spread = (share * (1 - share) / len(anns)) ** 0.5
    assert counts[:few].sum() / len(anns) == pytest.approx(share, abs=4 * spread)
    assert counts[0] > 3 * max(1, counts[-1])


def _anchors(height, width):
    """All anchors of Detectron2's common RetinaNet for an image padded to 32 px, (R, 4)."""
    generator = DefaultAnchorGenerator(
        sizes=[[s, s * 2 ** (1 / 3), s * 2 ** (2 / 3)] for s in (32, 64, 128, 256, 512)],
        aspect_ratios=[0.5, 1.0, 2.0],
        strides=[8, 16, 32, 64, 128],
        offset=0.0,
    )
    padded = [-(-v // 32) * 32 for v in (height, width)]
    maps = [torch.zeros(1, 1, *(-(-v // s) for v in padded)) for s in (8, 16, 32, 64, 128)]
    return Boxes.cat(generator(maps))


def test_hard_setting_is_as_imbalanced_as_demanded():
    matcher = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True)
    num_samples = num_foreground = 0
    for index in range(60):
        pixels, anns = draw(HARD, "train", index)
        boxes = torch.tensor([a["bbox"] for a in anns if not a["iscrowd"]]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        iou = pairwise_iou(Boxes(boxes), _anchors(*pixels.shape[:2]))
        labels = matcher(iou)[1]
        num_samples += (labels >= 0).sum().item()
        num_foreground += (labels == 1).sum().item()
    assert HARD.num_classes == 80
    assert num_samples * HARD.num_classes / num_foreground >= 50_000


@pytest.mark.parametrize("start", [False, True])
def test_run_lengths_are_read_back_by_the_coco_api(start):
    mask = np.random.default_rng(0).integers(0, 2, (7, 5)).astype(bool)
    for end in (False, True):
        mask[0, 0], mask[-1, -1] = start, end
        rle = {"size": [7, 5], "counts": run_lengths(mask)}
        assert (mask_util.decode(mask_util.frPyObjects(rle, 7, 5)) == mask).all()


@pytest.mark.parametrize(
    "key, value",
    [
        ("num_classes", 241),
        ("num_classes", "many"),
        ("train_images", 0),
        ("image_size", (16, 64)),
        ("image_size", 96),
        ("objects", (0, 2)),
        ("min_size", 7),
        ("tail", float("nan")),
        ("contrast", 0.0),
    ],
)
def test_a_bad_parameter_is_named(key, value):
    with pytest.raises(BadInput, match=f"^{key}=.*: give ") as error:
        SyntheticConfig(**{key: value})
    assert "\n" not in str(error.value)


def test_an_unknown_split_is_named(tmp_path):
    with pytest.raises(BadInput, match="split='tests'.*train, val, test"):
        generate(TINY, "tests", tmp_path)
