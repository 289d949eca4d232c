"""COCO files and the synthetic set, registered."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.utils.visualizer import Visualizer
from omegaconf import OmegaConf
from PIL import Image

from helpers.patience import PATIENCE
from helpers.register_cases import CLASSES, line_of, perfect
from sampling_free.data import (
    check_dataset,
    register,
    register_coco,
    register_synthetic,
    register_voc,
)
from sampling_free.utils.errors import BadInput

TINY = {"train_images": 4, "val_images": 6, "empty": 0.0, "crowd": 0.5}


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
    assert "DETECTRON2_DATASETS" in line_of(error)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"images": [{}], "categories": 3}'])
def test_a_broken_coco_file_is_named(coco, name, text):
    (coco / "ann.json").write_text(text)
    register_coco(name, "ann.json", "images")
    with pytest.raises(BadInput, match="ann.json: not a COCO instances file") as error:
        DatasetCatalog.get(name)
    line_of(error)


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


def test_synthetic_set_is_scored_by_the_coco_evaluator_and_drawn(tmp_path, name):
    assert register_synthetic(name, "val", root=str(tmp_path), **TINY) == name
    evaluator = COCOEvaluator(name, tasks=("bbox",), output_dir=None, use_fast_impl=False)
    evaluator.reset()
    dicts = DatasetCatalog.get(name)
    assert len(dicts) == 6
    for record in dicts:
        evaluator.process([record], [{"instances": perfect(record)}])
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
    line_of(error)
    assert list(tmp_path.iterdir()) == [] and "never" not in DatasetCatalog


def test_a_name_holds_one_data_set(voc, coco, name):
    register_voc(name, "cells", "train", CLASSES)
    assert register_voc(name, root=str(voc), split="train", classes=tuple(CLASSES)) == name
    with pytest.raises(BadInput, match="is taken by other data or arguments"):
        register_voc(name, "cells", "train", CLASSES[::-1])
    with pytest.raises(BadInput, match="is taken"):
        register_coco(name, "ann.json", "images")
    with pytest.raises(BadInput, match="'coco_2017_train' is taken"):
        register_coco("coco_2017_train", "ann.json", "images")
