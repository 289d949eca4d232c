import copy
import logging
import math

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

from helpers.tiny import log_lines
from sampling_free.data.check import (
    check_dataset,
    check_masks,
    check_same_classes,
    clean_dicts,
    report_crowds,
    report_implausible,
    require_pixels,
    require_registered,
)
from sampling_free.utils.errors import BadInput

XYXY, XYWH, XYWHA = BoxMode.XYXY_ABS, BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS
BAD_BOXES = [
    ([5, 5, 5, 9], XYXY, "of no area"),
    ([5, 5, 0, 3], XYWH, "of no area"),
    ([5, 5, 0, 4, 0], XYWHA, "of no area"),
    ([40, 5, 50, 9], XYXY, "outside the image"),
    ([5, 30, 3, 3], XYWH, "outside the image"),
    ([60, 60, 4, 4, 45], XYWHA, "outside the image"),
    ([math.nan, 5, 6, 9], XYXY, "not finite"),
    ([1, 5, math.inf, 9], XYXY, "not finite"),
    ([1, 5, 3], XYWH, "not 4 numbers"),
    (None, XYWH, "not 4 numbers"),
    (["1", "2", "3", "4"], XYWH, "not 4 numbers"),
    ([1, 2, [3], 4], XYWH, "not 4 numbers"),
    ([1, 2, 10**30, 4], XYWH, "not 4 numbers"),
    ([40 - 1e-7, 5, 9, 9], XYWH, "outside the image"),
]
GOOD_BOXES = [
    ([0, 0, 40, 30], XYXY),
    ([-5, -5, 1, 1], XYXY),
    ([39.5, 29, 10, 10], XYWH),
    (np.array([1.0, 1.0, 0.5, 0.5]), XYWH),
    ([20, 15, 10, 5, 30], XYWHA),
]


def _record(*boxes, name="a.jpg", **annotation):
    annotations = [
        {"bbox": box, "bbox_mode": mode, "category_id": 0, **annotation} for box, mode in boxes
    ]
    return {"file_name": f"x/{name}", "width": 40, "height": 30, "annotations": annotations}


@pytest.fixture
def warnings_of_check():
    with log_lines(level=logging.WARNING) as lines:
        yield lines


@pytest.mark.parametrize("box, mode, reason", BAD_BOXES)
def test_a_bad_box_is_dropped_with_its_reason(box, mode, reason, warnings_of_check):
    dicts = [_record((box, mode), ([1, 1, 5, 5], XYXY))]
    source = f"bad {box} {mode}"
    (record,) = clean_dicts(dicts, source)
    assert [a["bbox"] for a in record["annotations"]] == [[1, 1, 5, 5]]
    assert warnings_of_check == [f"{source}: skipped 1 boxes (1 {reason}) in a.jpg"]


def test_a_good_box_is_kept_as_it_is(warnings_of_check):
    (record,) = clean_dicts([_record(*GOOD_BOXES)], "good")
    assert all(a["bbox"] is box for a, (box, _) in zip(record["annotations"], GOOD_BOXES))
    assert warnings_of_check == []


def test_the_report_is_one_line_and_comes_once(warnings_of_check):
    dicts = [_record(([5, 5, 5, 5], XYXY), name=f"{i}.jpg") for i in range(5)]
    dicts.append(_record(([50, 5, 60, 9], XYXY), ([math.nan] * 4, XYWH), name="z.jpg"))
    for _ in range(3):
        clean_dicts(dicts, "one line")
    assert warnings_of_check == [
        "one line: skipped 7 boxes (1 not finite, 5 of no area, 1 outside the image) "
        "in 0.jpg, 1.jpg, 2.jpg and 3 more"
    ]


def test_the_input_is_left_alone_and_images_stay():
    dicts = [_record(([5, 5, 5, 5], XYXY)), _record(([5, 5, 9, 9], XYXY)), {"image_id": 3}]
    before = copy.deepcopy(dicts)
    cleaned = clean_dicts(dicts, "left alone")
    assert dicts == before
    assert [len(d.get("annotations", [])) for d in cleaned] == [0, 1, 0]
    assert cleaned[0]["file_name"] == dicts[0]["file_name"]


def test_nothing_is_outside_an_image_of_unknown_size():
    record = _record(([500, 500, 510, 510], XYXY))
    del record["width"], record["height"]
    assert len(clean_dicts([record], "unknown size")[0]["annotations"]) == 1


def test_crowds_are_kept_and_min_size_counts():
    record = _record(([5, 5, 6, 9], XYXY), iscrowd=1)
    assert len(clean_dicts([record], "crowd")[0]["annotations"]) == 1
    assert len(clean_dicts([record], "crowd", min_size=1.0)[0]["annotations"]) == 0


POLYGON = [[1, 1, 9, 1, 9, 9]]


@pytest.mark.parametrize("mask", [[[1, 1, 9, math.nan, 9, 9]], {"size": [9, 9], "counts": [81]}])
def test_a_broken_mask_takes_its_box_with_it(mask, warnings_of_check):
    # "counts" are of another image; a bitmap, or a form of a user's own, is not looked at.
    masks = [POLYGON, None, [], {"size": [30, 40], "counts": [1200]}, np.ones((30, 40), bool)]
    record = _record(*[([i + 1, 1, 9, 9], XYXY) for i in range(6)])
    for annotation, other in zip(record["annotations"], [mask, *masks]):
        annotation["segmentation"] = other
    (cleaned,) = clean_dicts([record], f"mask {mask}")
    assert cleaned["annotations"] == record["annotations"][1:]
    assert "skipped 1 boxes (1 of a broken mask) in a.jpg" in warnings_of_check[0]


def test_sizes_become_whole_numbers_or_are_named():
    sound = _record(([1, 1, 5, 5], XYXY))
    (cleaned,) = clean_dicts([{**sound, "width": 40.0, "height": np.int64(30)}], "sizes")
    assert repr([cleaned["width"], cleaned["height"]]) == "[40, 30]"
    for width in (0, math.nan, math.inf, 40.5, "40", None):
        with pytest.raises(BadInput, match=r"^src: width=.* of x/a.jpg: give a whole number"):
            clean_dicts([{**sound, "width": width}], "src")


def test_a_file_name_that_is_not_utf8_is_reported_all_the_same(warnings_of_check):
    clean_dicts([_record(([5, 5, 5, 5], XYXY), name="\udcff.jpg")], "odd name")
    assert warnings_of_check == [r"odd name: skipped 1 boxes (1 of no area) in \udcff.jpg"]


@pytest.mark.parametrize("first", [{"segmentation": []}, {"segmentation": POLYGON}])
def test_an_object_without_a_mask_is_named(first):
    record = _record(([1, 1, 5, 5], XYXY), ([1, 1, 5, 5], XYXY))
    record["annotations"][0].update(first)
    with pytest.raises(BadInput, match="'masks': an object in x/a.jpg has no segmentation"):
        check_masks([record], "masks")
    for annotation in record["annotations"]:
        annotation["segmentation"] = POLYGON
    check_masks([record, {"file_name": "b.jpg"}], "masks")
    del record["annotations"][0]["segmentation"]
    record["annotations"][0]["iscrowd"] = 1
    check_masks([record], "masks")


def test_classes_of_two_sets_are_the_same_in_the_same_order(warnings_of_check):
    train = "train", ["ant", "bee"]
    for theirs in (["ant", "bee"], ("ant", "bee"), None, []):
        check_same_classes(train, ("test", theirs))
    assert warnings_of_check == []
    with pytest.raises(BadInput, match="'train' and 'test' .*another order .ant, bee; bee, ant"):
        check_same_classes(train, ("test", ["bee", "ant"]))
    with pytest.raises(BadInput, match="have 2 classes .ant, bee. and 1 .ant.: give both the same"):
        check_same_classes(train, ("test", ["ant"]))
    check_same_classes(train, ("test", ["Ant", "bee"]))
    (line,) = warnings_of_check
    assert "differently (ant, bee; Ant, bee)" in line


@pytest.mark.parametrize("mode", [None, BoxMode.XYXY_REL])
def test_an_unsupported_box_mode_is_named(mode):
    with pytest.raises(BadInput, match="src: bbox_mode=.* in x/a.jpg: give one of XYXY_ABS"):
        clean_dicts([_record(([0, 0, 1, 1], mode))], "src")


def test_a_sound_data_set_passes():
    dicts = [_record(([1, 1, 5, 5], XYXY)), _record()]
    assert check_dataset(dicts, 2, ["a", "b"], "sound") == dicts
    assert check_dataset(dicts, 2, None, "sound") == dicts


def test_a_class_count_that_does_not_fit_names_both_numbers_and_the_way_out():
    dicts = [_record(([1, 1, 5, 5], XYXY))]
    names = ["ant", "bee", "cat", "dog", "eel"]
    with pytest.raises(BadInput) as error:
        check_dataset(dicts, 80, names, "animals")
    assert str(error.value) == (
        "data set 'animals' has 5 classes (ant, bee, cat and 2 more) but model.num_classes=80: "
        "set model.num_classes=5"
    )


@pytest.mark.parametrize("category", [-1, 2, None, "ant", 0.5])
def test_a_category_outside_the_classes_is_named(category):
    dicts = [_record(([1, 1, 5, 5], XYXY), category_id=category)]
    with pytest.raises(BadInput, match=rf"'ids'.*category_id={category} in x/a.jpg.*0..1"):
        check_dataset(dicts, 2, None, "ids")


@pytest.mark.parametrize(
    "dicts",
    [
        [],
        [_record(), {"file_name": "b.jpg"}],
        [_record(([5, 5, 5, 5], XYXY))],
        [_record(([1, 1, 5, 5], XYXY), iscrowd=1)],
    ],
    ids=["no image", "no annotation", "only bad boxes", "only crowds"],
)
def test_no_annotated_image_at_all(dicts):
    with pytest.raises(BadInput, match=f"'bare': none of its {len(dicts)} images"):
        check_dataset(dicts, 1, ["a"], "bare")


def test_an_unknown_name_gets_close_matches():
    DatasetCatalog.register("check_known_train", lambda: [])
    require_registered("check_known_train")
    require_registered(["check_known_train", "coco_2017_val"])
    with pytest.raises(BadInput, match="'check_knwon_train'.*did you mean check_known_train"):
        require_registered(["coco_2017_val", "check_knwon_train"])
    with pytest.raises(BadInput, match="unknown data set 'zzz': register it: .*_ENV_MODULE"):
        require_registered("zzz")
    with pytest.raises(BadInput, match="did you mean coco_2017_train.*If not, register it: in the"):
        require_registered("coco_2017_trian")


# --- what can hardly be meant so -----------------------------------------------------------

FRACTIONS = [[0.1, 0.2, 0.5, 0.4], [0.5, 0.5, 1.0, 1.0]]


@pytest.mark.parametrize("mode", [XYXY, XYWH])
def test_boxes_that_are_all_fractions_are_refused(mode):
    dicts = [_record((box, mode)) for box in FRACTIONS]
    with pytest.raises(BadInput, match="src: all 2 boxes lie in .0, 1..*have to be pixels"):
        require_pixels(dicts, "src")
    require_pixels([*dicts, _record(([1, 1, 5, 5], mode))], "src")
    require_pixels([{**record, "width": 1, "height": 1} for record in dicts], "src")
    require_pixels([{"annotations": []}], "src")


@pytest.mark.parametrize(
    "box, is_far", [([1, 1, 43, 31], False), ([-4, 0, 9, 9], False), ([1, 1, 45, 9], True)]
)
def test_boxes_a_tenth_beyond_the_image_are_counted(box, is_far, warnings_of_check):
    report_implausible([_record((box, XYXY), ([1, 1, 9, 9], XYXY))], f"far {box}")
    line = f"far {box}: 1 of 2 boxes reach well beyond the image, such as in x/a.jpg, and are cut "
    assert warnings_of_check == ([line + "at its edge"] if is_far else [])


def test_corners_given_as_width_and_height_are_told(warnings_of_check):
    corners = [[5, 5, 20, 20], [20, 10, 39, 30], [1, 1, 38, 28]]
    report_implausible([_record(*[(box, XYWH) for box in corners])], "corners")
    assert "1 of 3 boxes reach" in warnings_of_check[0]
    assert "all would lie inside as corners" in warnings_of_check[0]
    report_implausible([_record(*[(b, XYWH) for b in corners], ([9, 9, 5, 5], XYWH))], "no corners")
    assert "corners:" not in warnings_of_check[1].replace("no corners:", "")


@pytest.mark.parametrize("num_sound, is_warned", [(20, False), (0, True)])
def test_many_crowds_are_a_warning(num_sound, is_warned):
    crowd = _record(([1, 1, 5, 5], XYXY), iscrowd=1)
    sound = _record(*[([1, 1, 5, 5], XYXY)] * num_sound)
    with log_lines(level=logging.WARNING) as warnings, log_lines() as lines:
        report_crowds([crowd, sound], f"crowds {num_sound}")
    assert "annotations are crowds (iscrowd=1), which no detector" in lines[0]
    assert bool(warnings) == is_warned
