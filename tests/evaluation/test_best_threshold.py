"""Oracle: a literal greedy matcher, then every threshold tried, one at a time."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools.coco import COCO

from sampling_free.evaluation.best_threshold import (
    FALLBACK_THRESHOLD,
    BestThreshold,
    best_f1,
    pick_threshold,
    recall_at_precision,
    threshold_from_evaluator,
)
from sampling_free.evaluation.matching import match_detections
from sampling_free.utils.errors import BadInput


def coco_of(annotations, num_images=2, names=("a", "b")):
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i, "height": 50, "width": 50} for i in range(num_images)],
        "categories": [{"id": 3 + 4 * i, "name": name} for i, name in enumerate(names)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def annotation(i, image, category, box, iscrowd=0):
    return {
        "id": i,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": iscrowd,
    }


def detection(image, category, box, score):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def best_f1_threshold(coco_gt, detections, iou=0.5):
    return pick_threshold(match_detections(coco_gt, detections, iou), iou)


def overlap(a, b):
    """IoU of two (x, y, w, h) boxes with integer corners, by counting pixels."""
    pixels = [
        {(x, y) for x in range(q[0], q[0] + q[2]) for y in range(q[1], q[1] + q[3])} for q in (a, b)
    ]
    return len(pixels[0] & pixels[1]) / len(pixels[0] | pixels[1])


def counts_at(threshold, annotations, detections, iou):
    """(true positives, shown) by greedy matching in order of score, image by image."""
    shown = sorted((d for d in detections if d["score"] >= threshold), key=lambda d: -d["score"])
    taken, true_positives = set(), 0
    for d in shown:
        same = ("image_id", "category_id")
        free = [
            a
            for a in annotations
            if all(a[k] == d[k] for k in same)
            and a["id"] not in taken
            and overlap(a["bbox"], d["bbox"]) >= iou
        ]
        if free:
            # COCO takes the last of equally good objects.
            best = max(reversed(free), key=lambda a: overlap(a["bbox"], d["bbox"]))
            taken.add(best["id"])
            true_positives += 1
    return true_positives, len(shown)


def brute_force(annotations, detections, iou):
    """(best F1, its highest threshold) over every score that occurs."""
    best = (0.0, None)
    for threshold in sorted({d["score"] for d in detections}, reverse=True):
        true_positives, shown = counts_at(threshold, annotations, detections, iou)
        precision, recall = true_positives / shown, true_positives / len(annotations)
        f1 = 2 * precision * recall / (precision + recall) if true_positives else 0.0
        if f1 > best[0] + 1e-12:
            best = (f1, threshold)
    return best


@pytest.mark.parametrize("seed", range(8))
def test_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    annotations, detections = [], []
    for i in range(rng.integers(1, 12)):
        box = [*rng.integers(0, 30, 2).tolist(), *rng.integers(4, 14, 2).tolist()]
        annotations.append(annotation(i, int(rng.integers(2)), int(rng.choice([3, 7])), box))
    for a in annotations * 2:
        if rng.random() < 0.75:
            box = (np.array(a["bbox"]) + rng.integers(-2, 3, 4)).clip(1).tolist()
            # Scores of two digits: some tie.
            score = round(float(rng.random()), 1 + seed % 2)
            category = a["category_id"] if rng.random() < 0.8 else 10 - a["category_id"]
            detections.append(detection(a["image_id"], category, box, score))
    iou = float(rng.choice([0.3, 0.5, 0.7]))
    # Without distinct order among ties the greedy match is not defined: give both the same order.
    detections.sort(key=lambda d: -d["score"])
    found = best_f1_threshold(coco_of(annotations), detections, iou)
    f1, threshold = brute_force(annotations, detections, iou)
    assert found.threshold == threshold
    assert found.f1 == pytest.approx(f1)
    for name, category in (("a", 3), ("b", 7)):
        mine = [a for a in annotations if a["category_id"] == category]
        if mine:
            of_class = [d for d in detections if d["category_id"] == category]
            f1, threshold = brute_force(mine, of_class, iou)
            assert found.per_class[name]["threshold"] == threshold
            assert found.per_class[name]["f1"] == pytest.approx(f1)
            assert found.per_class[name]["num_detections"] == len(of_class)


@pytest.mark.parametrize("wanted", ["1/100", "1/2", "9/10", "1"])
@pytest.mark.parametrize("seed", range(5))
def test_a_wanted_precision_equals_brute_force(seed, wanted):
    rng = np.random.default_rng(seed)
    scores = rng.random(40).round(1 + seed % 2)  # some tie
    is_correct = rng.random(40) < scores
    num_ground_truth, wanted = int(is_correct.sum()) + 3, Fraction(wanted)
    expected = None
    for threshold in sorted(set(scores.tolist())):
        shown = [bool(c) for s, c in zip(scores, is_correct) if s >= threshold]
        if expected is None and Fraction(sum(shown), len(shown)) >= wanted:
            precision, recall = sum(shown) / len(shown), sum(shown) / num_ground_truth
            f1 = 2 * precision * recall / (precision + recall)
            expected = {"threshold": threshold, "precision": precision, "recall": recall, "f1": f1}
    found = recall_at_precision(scores, is_correct, num_ground_truth, float(wanted))
    if expected is None:
        expected = dict.fromkeys(found)
    assert {k: v if v is None else pytest.approx(v) for k, v in expected.items()} == found


def test_categories_of_one_name_stay_apart():
    truth = [annotation(1, 0, 3, [0, 0, 9, 9]), annotation(2, 0, 7, [0, 0, 9, 9])]
    found = best_f1_threshold(coco_of(truth, names=["a", "a"]), [detection(0, 7, [0, 0, 9, 9], 1)])
    assert found.num_ground_truth == 2
    assert {name: row["f1"] for name, row in found.per_class.items()} == {
        "a": 0.0,
        "a (category 7)": 1.0,
    }


def test_equal_f1_takes_the_highest_threshold():
    # One object of three found at 0.9 and two of five shown at 0.1: F1 is 2/4 and 4/8.
    scores, is_correct = np.array([0.9, 0.8, 0.7, 0.6, 0.1]), np.array([1, 0, 0, 0, 1], bool)
    assert best_f1(scores, is_correct, 3)["threshold"] == 0.9


def test_no_detections_and_nothing_correct_fall_back():
    truth = [annotation(1, 0, 3, [0, 0, 9, 9])]
    for detections in ([], [detection(0, 3, [30, 30, 9, 9], 0.8)]):
        found = best_f1_threshold(coco_of(truth), detections)
        assert (found.threshold, found.f1, found.recall) == (None, 0.0, 0.0)
        assert found.display_threshold == FALLBACK_THRESHOLD
        assert found.num_ground_truth == 1


def test_no_ground_truth_measures_nothing():
    found = best_f1_threshold(coco_of([]), [detection(0, 3, [0, 0, 9, 9], 0.8)])
    assert (found.threshold, found.f1, found.precision) == (None, None, None)
    empty = best_f1_threshold(coco_of([], names=()), [])
    assert (empty.threshold, empty.per_class) == (None, {})


def test_crowds_and_what_lies_on_them_are_left_out():
    truth = [annotation(1, 0, 3, [0, 0, 9, 9]), annotation(2, 0, 3, [20, 20, 20, 20], iscrowd=1)]
    seen = [detection(0, 3, [0, 0, 9, 9], 0.4), detection(0, 3, [22, 22, 9, 9], 0.9)]
    found = best_f1_threshold(coco_of(truth), seen)
    assert (found.threshold, found.f1, found.num_ground_truth) == (0.4, 1.0, 1)


def test_save_and_load_are_exact_and_older_files_have_no_wanted_precision(tmp_path):
    path, box = tmp_path / "best.json", [0, 0, 9, 9]
    seen = [detection(0, 3, box, float(np.float32(0.31)))]
    by_class = match_detections(coco_of([annotation(1, 0, 3, box)]), seen)
    best = pick_threshold(by_class, 0.5, precision=0.9)
    best.save(path)
    assert BestThreshold.load(path) == best
    assert (torch.tensor([0.31]) >= BestThreshold.load(path).threshold).all()
    stored = json.loads(path.read_text())
    assert stored.pop("wanted_precision") == 0.9
    path.write_text(json.dumps(stored))
    assert BestThreshold.load(path).wanted_precision is None


@pytest.mark.parametrize(
    "text", [None, "{", '{"threshold": 0.5}', '{"threshold": "x", "iou": 0.5}']
)
def test_a_broken_file_is_named(tmp_path, text):
    path = tmp_path / "best.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadInput, match=r"best\.json.*--confidence-threshold"):
        BestThreshold.load(path)


def test_from_detectron2_evaluator(tmp_path):
    name = "best_threshold_test"
    dicts = [
        {
            "file_name": f"{i}.jpg",
            "image_id": i,
            "height": 50,
            "width": 50,
            "annotations": [
                {"bbox": [5, 5, 25, 25], "bbox_mode": BoxMode.XYXY_ABS, "category_id": i % 2}
            ],
        }
        for i in range(4)
    ]
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(thing_classes=["cat", "dog"])
    try:
        evaluator = COCOEvaluator(name, output_dir=str(tmp_path))
        evaluator.reset()
        for i, d in enumerate(dicts):
            instances = Instances((50, 50))
            # The first three find their object, at ever lower scores; the last is beside it.
            box = [5.0, 5, 25, 25] if i < 3 else [25.0, 25, 45, 45]
            instances.pred_boxes = Boxes(torch.tensor([box]))
            instances.scores = torch.tensor([0.4 - 0.1 * i])
            instances.pred_classes = torch.tensor([i % 2])
            evaluator.process([d], [{"instances": instances}])
        evaluator.evaluate()
        best = threshold_from_evaluator(evaluator)
        evaluator._output_dir = None
        with pytest.raises(BadInput, match=r"dataloader\.evaluator\.output_dir"):
            threshold_from_evaluator(evaluator)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    # F1 at 0.4, 0.3, 0.2, 0.1: 2/5, 4/6, 6/7, 6/8.
    assert best.threshold == pytest.approx(0.2)
    assert best.f1 == pytest.approx(6 / 7)
    assert set(best.per_class) == {"cat", "dog"}
    assert best.per_class["dog"]["f1"] == pytest.approx(2 / 3)
