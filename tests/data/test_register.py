import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets.pascal_voc import load_voc_instances
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.visualizer import Visualizer
from omegaconf import OmegaConf
from PIL import Image

from helpers.patience import PATIENCE
from sampling_free.data import (
    check_dataset,
    register,
    register_coco,
    register_synthetic,
    register_voc,
)
from sampling_free.utils.errors import BadInput

CLASSES = ["ant", "bee"]
TINY = {"train_images": 4, "val_images": 6, "empty": 0.0, "crowd": 0.5}


def _xml(objects, size=(60, 40)):
    things = "".join(
        f"<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated>"
        f"<difficult>0</difficult><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for name, (x0, y0, x1, y1) in objects
    )
    size = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation>{size}{things}</annotation>"


@pytest.fixture
def voc(tmp_path, monkeypatch):
    """A VOC-style folder of three images, "cells" under $DETECTRON2_DATASETS."""
    folder = tmp_path / "cells"
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    files = {
        "i1": [("ant", (1, 1, 20, 30)), ("bee", (11, 12, 13, 14))],
        "i2": [("bee", (5, 5, 60, 40))],
        "i3": [],
    }
    for name, objects in files.items():
        (folder / "Annotations" / f"{name}.xml").write_text(_xml(objects))
        Image.new("RGB", (60, 40)).save(folder / "JPEGImages" / f"{name}.jpg")
    (folder / "ImageSets" / "Main" / "train.txt").write_text("i1\ni2\ni3\n")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return folder


@pytest.fixture
def name(request):
    """A name that no other test registers."""
    return "test_register_" + request.node.name.replace("[", "_").replace("]", "")


def _line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


# --- VOC-style folders ---------------------------------------------------------------------


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
        evaluator.process([record], [{"instances": _perfect(record)}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


def test_a_point_in_a_voc_file_is_dropped_and_a_pixel_more_is_kept(voc, name):
    objects = [("ant", (9, 9, 9, 9)), ("ant", (9, 9, 10, 10)), ("bee", (70, 50, 80, 60))]
    (voc / "Annotations" / "i3.xml").write_text(_xml(objects))
    register_voc(name, "cells", "train", CLASSES)
    assert [a["bbox"] for a in DatasetCatalog.get(name)[2]["annotations"]] == [[8, 8, 10, 10]]


def test_voc_missing_folder_names_it_and_the_variable(voc, name):
    with pytest.raises(BadInput) as error:
        register_voc(name, "bccd_typo", "train", CLASSES)
    line = _line(error)
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
        (_xml([("wasp", (1, 1, 5, 5))]), "class 'wasp' is not in classes"),
        (_xml([("ant", ("x", 1, 5, 5))]), "<bndbox/xmin> is 'x'"),
        (_xml([]).replace("height", "depth"), "<size/height> is None"),
        (_xml([("ant", (1, 1, 5, 5))]).replace("ymax", "y_max"), "<bndbox/ymax> is None"),
        (_xml([("ant", (1, 1, 5, 5))]).replace("name>", "label>"), "<name> is None"),
        ("<annotation>", "not a readable XML file"),
        ("<?xml version='1.0' encoding='latin-1'?><a>\xe9</a>".encode("latin-1"), "not in UTF-8"),
    ],
)
def test_a_broken_voc_file_is_named(voc, tmp_path, text, message):
    path = voc / "Annotations" / "i2.xml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput, match=message) as error:
        register.load_voc(voc, "train", CLASSES)
    assert _line(error).startswith(str(path))


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
    _line(error)


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


# --- COCO files ----------------------------------------------------------------------------


@pytest.fixture
def coco(tmp_path, monkeypatch):
    """A COCO data set with category ids that are not contiguous."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "images").mkdir()
    data = {
        "images": [{"id": 7, "file_name": "a.png", "width": 50, "height": 40}],
        "categories": [{"id": 9, "name": "bee"}, {"id": 4, "name": "ant"}],
        "annotations": [
            {"id": i, "image_id": 7, "category_id": c, "bbox": b, "area": b[2] * b[3]}
            | {"iscrowd": 0}
            for i, (c, b) in enumerate([(9, [1, 2, 30, 20]), (4, [5, 5, 0, 9])], 1)
        ],
    }
    (tmp_path / "ann.json").write_text(json.dumps(data))
    return tmp_path


def test_coco_is_read_and_cleaned(coco, name):
    assert register_coco(name, "ann.json", "images") == name
    assert register_coco(name, json_file=str(coco / "ann.json"), image_root="images") == name
    (record,) = DatasetCatalog.get(name)
    assert record["file_name"] == str(coco / "images" / "a.png")
    assert [(a["category_id"], a["bbox"]) for a in record["annotations"]] == [(1, [1, 2, 30, 20])]
    assert MetadataCatalog.get(name).thing_classes == ["ant", "bee"]
    assert COCOEvaluator(name)._coco_api.getCatIds() == [9, 4]


@pytest.mark.parametrize("json_file, image_root", [("no.json", "images"), ("ann.json", "no")])
def test_coco_missing_paths_are_named(coco, name, json_file, image_root):
    with pytest.raises(BadInput, match=r"no(\.json)?: no such file or folder") as error:
        register_coco(name, json_file, image_root)
    assert "DETECTRON2_DATASETS" in _line(error)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"images": [{}], "categories": 3}'])
def test_a_broken_coco_file_is_named(coco, name, text):
    (coco / "ann.json").write_text(text)
    register_coco(name, "ann.json", "images")
    with pytest.raises(BadInput, match="ann.json: not a COCO instances file") as error:
        DatasetCatalog.get(name)
    _line(error)


def test_the_entry_at_fault_is_named_without_a_config_too(coco, name):
    content = json.loads((coco / "ann.json").read_text())
    content["annotations"][1]["category_id"] = 7
    (coco / "ann.json").write_text(json.dumps(content))
    register_coco(name, "ann.json", "images")
    with pytest.raises(BadInput, match="ann.json: annotation 2 of image 7 has category_id=7"):
        DatasetCatalog.get(name)


def test_what_the_checks_do_not_know_is_one_line_too(coco, name, monkeypatch):
    def fail(*_):
        raise TypeError("some reason")

    monkeypatch.setattr(register, "load_coco_json", fail)
    register_coco(name, "ann.json", "images")
    with pytest.raises(BadInput, match="ann.json: not a COCO instances file .TypeError: some"):
        DatasetCatalog.get(name)


# --- the synthetic set ---------------------------------------------------------------------


def _perfect(record):
    """The annotations of a dataset dict as detections of score 1."""
    kept = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in kept]
    return Instances(
        (record["height"], record["width"]),
        pred_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)),
        pred_classes=torch.tensor([a["category_id"] for a in kept], dtype=torch.long),
        scores=torch.ones(len(kept)),
    )


def test_synthetic_set_is_scored_by_the_coco_evaluator_and_drawn(tmp_path, name):
    assert register_synthetic(name, "val", root=str(tmp_path), **TINY) == name
    evaluator = COCOEvaluator(name, tasks=("bbox",), output_dir=None, use_fast_impl=False)
    evaluator.reset()
    dicts = DatasetCatalog.get(name)
    assert len(dicts) == 6
    for record in dicts:
        evaluator.process([record], [{"instances": _perfect(record)}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
    metadata = MetadataCatalog.get(name)
    check_dataset(dicts, 5, metadata.thing_classes, name)
    with Image.open(dicts[0]["file_name"]) as image:
        drawn = Visualizer(np.asarray(image), metadata).draw_dataset_dict(dicts[0]).get_image()
    assert drawn.size > 0


def test_synthetic_set_is_written_once(tmp_path, name, monkeypatch):
    register_synthetic(name, "train", root=str(tmp_path), **TINY)

    def never(*_):
        raise AssertionError("generated again")

    monkeypatch.setattr(register, "generate", never)
    register_synthetic(name, "train", root=str(tmp_path), **TINY)
    register_synthetic(name + "_2", "train", root=str(tmp_path), **TINY)
    with pytest.raises(AssertionError, match="again"):
        register_synthetic(name + "_3", "train", root=str(tmp_path), seed=1, **TINY)


def test_synthetic_cache_follows_the_environment(tmp_path, name, monkeypatch):
    monkeypatch.setenv("SAMPLING_FREE_CACHE", str(tmp_path / "cache"))
    cfg = L(register_synthetic)(name=name, split="train", image_size=[64, 72], **TINY)
    instantiate(OmegaConf.create({"names": cfg})["names"])
    (record, *_) = DatasetCatalog.get(name)
    assert record["file_name"].startswith(str(tmp_path / "cache" / "easy-"))
    assert 64 <= record["height"] <= 72


def test_an_interrupted_generation_leaves_nothing(tmp_path, monkeypatch):
    config = register.synthetic_config("easy", **TINY)

    def interrupted(config, split, folder):
        (Path(folder) / "images").mkdir(parents=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(register, "generate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            register.cached_split(config, "easy", "train", tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.name != p.parent.name and "train" in p.name] == []
    folder = register.cached_split(config, "easy", "train", tmp_path)
    assert (folder / "annotations.json").is_file()


def test_of_concurrent_generations_one_wins(tmp_path, monkeypatch):
    config = register.synthetic_config("easy", **TINY)
    together, generate = threading.Barrier(3), register.generate

    def slow(*args):
        generate(*args)
        together.wait(timeout=PATIENCE)  # all are written before the first is renamed

    monkeypatch.setattr(register, "generate", slow)
    with ThreadPoolExecutor(3) as pool:
        jobs = [
            pool.submit(register.cached_split, config, "easy", "train", tmp_path) for _ in range(3)
        ]
        folders = {job.result() for job in jobs}
    (folder,) = folders
    assert [p.name for p in folder.parent.iterdir()] == ["train"]
    assert len(list((folder / "images").iterdir())) == 4


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written.*set SAMPLING_FREE_CACHE"):
        register_synthetic("never", "train", root=str(tmp_path / "file"), **TINY)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"split": "tests"}, "split='tests'"),
        ({"split": "val", "setting": "medium"}, "setting='medium': choose one of easy, hard"),
        ({"split": "val", "num_clases": 3}, "num_clases: .*use num_classes"),
        ({"split": "val", "num_classes": 999}, r"num_classes=999.*\[1, 240\]"),
    ],
)
def test_bad_synthetic_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(BadInput, match=message) as error:
        register_synthetic("never", root=str(tmp_path), **arguments)
    _line(error)
    assert list(tmp_path.iterdir()) == [] and "never" not in DatasetCatalog


# --- names ---------------------------------------------------------------------------------


def test_a_name_holds_one_data_set(voc, coco, name):
    register_voc(name, "cells", "train", CLASSES)
    assert register_voc(name, root=str(voc), split="train", classes=tuple(CLASSES)) == name
    with pytest.raises(BadInput, match="is taken by other data or arguments"):
        register_voc(name, "cells", "train", CLASSES[::-1])
    with pytest.raises(BadInput, match="is taken"):
        register_coco(name, "ann.json", "images")
    with pytest.raises(BadInput, match="'coco_2017_train' is taken"):
        register_coco("coco_2017_train", "ann.json", "images")
