"""None"""

import os
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets.pascal_voc import load_voc_instances
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator
from omegaconf import OmegaConf

from helpers.register_cases import CLASSES, line_of, perfect, xml_of
from sampling_free.data import (
    check_dataset,
    register,
    register_voc,
)
from sampling_free.utils.errors import BadInput


def test_voc_is_read_with_its_own_classes(voc, name):
    assert register_voc(name, "cells", "train", CLASSES) == name
    dicts = DatasetCatalog.get(name)
    assert [d["image_id"] for d in dicts] == ["i1", "i2", "i3"]
    assert [[a["category_id"] for a in d["annotations"]] for d in dicts] == [[0, 1], [1], []]
    assert dicts[0]["annotations"][0]["bbox"] == [0, 0, 20, 30]
    assert dicts[0]["file_name"] == str(voc / "JPEGImages" / "i1.jpg")
    check_dataset(dicts, 2, MetadataCatalog.get(name).thing_classes, name)


def test_voc_works_as_a_node_of_a_lazy_config(voc, name, tmp_path):
    cfg = OmegaConf.create({"test": {}})
    cfg.test.dataset = L(get_detection_dataset_dicts)(
        names=L(register_voc)(name=name, root="cells", split="train", classes=CLASSES),
        filter_empty=True,
    )
    cfg.evaluator = L(COCOEvaluator)(
        dataset_name="${..test.dataset.names}", output_dir=str(tmp_path / "out")
    )
    assert len(instantiate(cfg.test.dataset)) == 2
    assert instantiate(cfg.evaluator)._metadata.name == name
    assert instantiate(cfg.test.dataset.names) == name


def test_voc_serves_detectron2s_voc_evaluator(voc, name):
    register_voc(name, "cells", "train", CLASSES)
    evaluator = PascalVOCDetectionEvaluator(name)
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        evaluator.process([record], [{"instances": perfect(record)}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


def test_a_point_in_a_voc_file_is_dropped_and_a_pixel_more_is_kept(voc, name):
    objects = [("ant", (9, 9, 9, 9)), ("ant", (9, 9, 10, 10)), ("bee", (70, 50, 80, 60))]
    (voc / "Annotations" / "i3.xml").write_text(xml_of(objects))
    register_voc(name, "cells", "train", CLASSES)
    assert [a["bbox"] for a in DatasetCatalog.get(name)[2]["annotations"]] == [[8, 8, 10, 10]]


def test_voc_missing_folder_names_it_and_the_variable(voc, name):
    with pytest.raises(BadInput) as error:
        register_voc(name, "bccd_typo", "train", CLASSES)
    line = line_of(error)
    assert str(voc.parent / "bccd_typo") in line and "DETECTRON2_DATASETS" in line
    assert name not in DatasetCatalog


def test_voc_missing_split_lists_the_splits(voc, name):
    with pytest.raises(BadInput, match="test.txt: no such file.*choose one of train"):
        register_voc(name, "cells", "test", CLASSES)


@pytest.mark.parametrize("classes", ["ant", [], ["ant", "ant"]])
def test_voc_classes_are_distinct_names(voc, name, classes):
    with pytest.raises(BadInput, match="classes=.*list of distinct names"):
        register_voc(name, "cells", "train", classes)


@pytest.mark.parametrize(
    "text, message",
    [
        (xml_of([("wasp", (1, 1, 5, 5))]), "class 'wasp' is not in classes"),
        (xml_of([("ant", ("x", 1, 5, 5))]), "<bndbox/xmin> is 'x'"),
        (xml_of([]).replace("height", "depth"), "<size/height> is None"),
        (xml_of([("ant", (1, 1, 5, 5))]).replace("ymax", "y_max"), "<bndbox/ymax> is None"),
        (xml_of([("ant", (1, 1, 5, 5))]).replace("name>", "label>"), "<name> is None"),
        ("<annotation>", "not a readable XML file"),
        ("<?xml version='1.0' encoding='latin-1'?><a>\xe9</a>".encode("latin-1"), "not in UTF-8"),
    ],
)
def test_a_broken_voc_file_is_named(voc, tmp_path, text, message):
    path = voc / "Annotations" / "i2.xml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput, match=message) as error:
        register.load_voc(voc, "train", CLASSES)
    assert line_of(error).startswith(str(path))


def test_a_missing_voc_file_is_named(voc):
    (voc / "Annotations" / "i2.xml").unlink()
    with pytest.raises(BadInput, match="i2.xml: no such file"):
        register.load_voc(voc, "train", CLASSES)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "train.txt: is empty: write one image name per line"),
        ("i1 1\ni2 -1\n", "train.txt: there is no Annotations/i1 1.xml: write one image name per"),
        ("i1\ni2#a\n", "i2#a.xml: no such file"),
    ],
)
def test_a_split_file_that_lists_no_images_is_named(voc, text, message):
    (voc / "ImageSets" / "Main" / "train.txt").write_text(text)
    with pytest.raises(BadInput, match=message):
        register.load_voc(voc, "train", CLASSES)


def test_it_is_read_as_detectron2_reads_it(voc):
    found = register.load_voc(voc, "train", CLASSES)
    assert found == load_voc_instances(str(voc), "train", CLASSES)


def test_a_split_may_be_of_one_image_whose_name_has_blanks(voc):
    for folder, suffix in (("Annotations", ".xml"), ("JPEGImages", ".jpg")):
        (voc / folder / f"i1{suffix}").rename(voc / folder / f"my image 1{suffix}")
    (voc / "ImageSets" / "Main" / "train.txt").write_text("my image 1\n")
    (record,) = register.load_voc(voc, "train", CLASSES)
    assert record["file_name"] == str(voc / "JPEGImages" / "my image 1.jpg")
    assert [a["bbox"] for a in record["annotations"]] == [[0, 0, 20, 30], [10, 11, 13, 14]]


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpeg", ".JPG", ".bmp", ".tiff"])
def test_an_image_may_have_any_suffix(voc, suffix):
    (voc / "JPEGImages" / "i2.jpg").rename(voc / "JPEGImages" / f"i2{suffix}")
    found = [Path(d["file_name"]).name for d in register.load_voc(voc, "train", CLASSES)]
    assert found == ["i1.jpg", f"i2{suffix}", "i3.jpg"]


def test_an_image_is_found_by_what_its_file_tells(voc):
    (voc / "JPEGImages" / "i2.jpg").rename(voc / "JPEGImages" / "frame 7.png")
    path = voc / "Annotations" / "i2.xml"
    told = "<annotation><filename>frame 7.png</filename>"
    path.write_text(path.read_text().replace("<annotation>", told))
    assert register.load_voc(voc, "train", CLASSES)[1]["file_name"].endswith("/frame 7.png")


@pytest.mark.parametrize(
    "text, message",
    [
        (b"i1\ni2\n\ni1\ni1\n", "train.txt: lists i1 3 times"),
        (b"i1\n\xff\n", "train.txt: cannot be read.*write it again in UTF-8"),
    ],
)
def test_a_split_file_that_would_be_read_wrongly_is_named(voc, text, message):
    (voc / "ImageSets" / "Main" / "train.txt").write_bytes(text)
    with pytest.raises(BadInput, match=message) as error:
        register.load_voc(voc, "train", CLASSES)
    line_of(error)


BCCD = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "bccd"


@pytest.mark.skipif(not BCCD.is_dir(), reason="needs bccd in $DETECTRON2_DATASETS")
def test_bccd_has_the_counts_of_its_description(name):
    classes = ["RBC", "WBC", "Platelets"]
    counts = np.zeros(3, dtype=int)
    for split, num_images in (("trainval", 292), ("test", 72)):
        dicts = DatasetCatalog.get(register_voc(f"{name}_{split}", "bccd", split, classes))
        assert len(dicts) == num_images
        ids = [a["category_id"] for d in dicts for a in d["annotations"]]
        counts += np.bincount(ids, minlength=3)
    # 4,155 RBC, of which two are points.
    assert counts.tolist() == [4153, 372, 361]
