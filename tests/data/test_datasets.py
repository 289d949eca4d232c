"""From the nodes of a config to dataset dicts and loaders; what is missing is named."""

import re

import numpy as np
import pytest
from detectron2.config import LazyCall as L
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    get_detection_dataset_dicts,
)
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from omegaconf import OmegaConf
from PIL import Image

from helpers.sound_data import CocoData
from helpers.tiny import log_lines
from helpers.tiny_run import NUM_CLASSES, NUM_TRAIN, NUM_VAL, run, trainer, write_config
from sampling_free.config.load import load_config
from sampling_free.data.datasets import (
    check_ground_truth,
    check_image_files,
    check_training_masks,
    dataset_names,
    load_dataset,
    num_classes_of,
)
from sampling_free.data.datasets import test_loader as make_test_loader
from sampling_free.utils.errors import BadInput


@pytest.fixture
def cfg(tmp_path):
    return load_config(write_config(tmp_path))


@pytest.fixture
def name(request):
    """A name of a data set that is free again after the test."""
    made = f"set of {request.node.name}"
    yield made
    if made in DatasetCatalog:
        DatasetCatalog.remove(made)
    MetadataCatalog.pop(made, None)


def node(names, **kwargs):
    return OmegaConf.create(
        {"d": L(get_detection_dataset_dicts)(names=names, **kwargs)}, flags={"allow_objects": True}
    ).d


def in_memory(name, boxes, classes=("a", "b")):
    """Registers images that are not on disk; ``boxes`` has a list of (box, class) for each."""
    dicts = [
        {
            "file_name": f"{i}.png",
            "image_id": i,
            "height": 40,
            "width": 40,
            "annotations": [
                {"bbox": b, "bbox_mode": 0, "category_id": k, "iscrowd": 0} for b, k in found
            ],
        }
        for i, found in enumerate(boxes)
    ]
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).thing_classes = list(classes)
    return name


GOOD = ([1, 1, 9, 9], 0)


def test_names_are_one_or_several_or_a_call_that_gives_one(name):
    in_memory(name, [[GOOD]])
    assert dataset_names(node([name])) == dataset_names(node(name)) == [name]
    assert dataset_names(node(L(str)(object=name))) == [name]


def test_a_call_in_the_config_registers_the_set(cfg):
    dicts = load_dataset(cfg.dataloader.train.dataset, cfg.model)
    assert len(dicts) == NUM_TRAIN
    assert {d["height"] for d in dicts} == {64}
    (registered,) = dataset_names(cfg.dataloader.train.dataset)
    assert len(MetadataCatalog.get(registered).thing_classes) == NUM_CLASSES


def test_several_sets_are_joined(name):
    in_memory(name, [[GOOD], [GOOD], []])
    assert len(load_dataset(node([name, name]))) == 4
    assert len(load_dataset(node([name, name], filter_empty=False))) == 6


@pytest.mark.parametrize("missing", ["coco_2017_val", "voc_2007_test"])
def test_missing_data_are_named_with_the_place_where_they_are_looked_for(
    tmp_path, monkeypatch, missing
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(BadInput) as e:
        load_dataset(node(missing))
    assert all(x in str(e.value) for x in (missing, "is missing", "$DETECTRON2_DATASETS"))


def test_a_class_count_that_does_not_fit_is_refused(name):
    in_memory(name, [[GOOD]])
    assert load_dataset(node(name), OmegaConf.create({"num_classes": 2}))
    with pytest.raises(BadInput, match="has 2 classes.*model.num_classes=7"):
        load_dataset(node(name), OmegaConf.create({"num_classes": 7}))


def test_the_class_count_of_a_lazy_config_and_of_none():
    assert num_classes_of(OmegaConf.create({"num_classes": 4})) == 4
    assert num_classes_of(OmegaConf.create({"roi_heads": {"num_classes": 5}})) == 5
    assert num_classes_of(OmegaConf.create({"backbone": 1})) is None
    assert num_classes_of(None) is None


@pytest.mark.parametrize("filter_empty", [True, False])
def test_a_set_without_an_annotated_image_is_refused(name, filter_empty):
    in_memory(name, [[], []])
    with pytest.raises(BadInput, match=re.escape(name)):
        load_dataset(node(name, filter_empty=filter_empty), OmegaConf.create({"num_classes": 2}))


def test_the_test_loader_gives_every_image_once(cfg):
    loader = make_test_loader(cfg.dataloader.test, cfg.model)
    found = [record for batch in loader for record in batch]
    assert sorted(record["image_id"] for record in found) == list(range(1, NUM_VAL + 1))
    assert all(record["image"].shape == (3, 64, 64) for record in found)


def test_the_classes_of_the_test_set_are_checked(cfg):
    cfg.model.num_classes = 9
    with pytest.raises(BadInput, match=f"has {NUM_CLASSES} classes.*model.num_classes=9"):
        make_test_loader(cfg.dataloader.test, cfg.model)


def test_a_set_that_is_no_registered_one_can_be_trained_on(tmp_path):
    # "or the like": any call that returns dicts.
    lines = """
from detectron2.data import get_detection_dataset_dicts
_names = [dataloader.train.dataset.names, dataloader.test.dataset.names]
dataloader.train.dataset = L(tiny_run.dicts_of)(source=_names[0])
"""
    made = run(write_config(tmp_path, lines), "train.max_iter=1")
    assert made.iter == 1 and len(made.data_loader.dataset.dicts) == NUM_TRAIN


def test_a_test_set_that_is_missing_is_named_before_hours_of_training(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(BadInput, match="coco_2017_val"):
        trainer(write_config(tmp_path), "dataloader.test.dataset.names=coco_2017_val")


# --- data sets that are registered with Detectron2, or by hand -----------------------------


@pytest.fixture
def stock(tmp_path, name):
    """Writes a COCO file after a change and registers it as Detectron2 does; returns its node."""

    def register(change):
        data = CocoData(tmp_path / "data")
        change(data.train)
        data.write()
        register_coco_instances(name, {}, str(data.folder / "train.json"), data.root)
        return node(name)

    return register


TWO = OmegaConf.create({"num_classes": 2})


def _no_area(data):
    del data["annotations"][0]["area"]


def test_a_mistake_in_its_file_is_named(stock):
    with pytest.raises(BadInput, match="train.json: annotation 1 of image 1 has category_id=9"):
        load_dataset(stock(lambda data: data["annotations"][0].update(category_id=9)), TWO)


def evaluator(made, **kwargs):
    return OmegaConf.create({"e": L(COCOEvaluator)(dataset_name=made.names, **kwargs)}).e


def test_what_an_evaluation_needs_is_asked_where_coco_evaluates(stock):
    made = stock(_no_area)
    assert len(load_dataset(made, TWO)) == len(load_dataset(made, TWO, is_train=False)) == 4
    other = OmegaConf.create({"_target_": "builtins.dict", "dataset_name": made.names})
    check_ground_truth(other, TWO)
    for nodes in (evaluator(made), OmegaConf.create([other, evaluator(made)])):
        with pytest.raises(BadInput, match="train.json: annotation 1 of image 1 has area=None"):
            check_ground_truth(nodes, TWO)


def _no_mask(data):
    del data["annotations"][3]["segmentation"]


MASK_HEADS = [
    OmegaConf.create({"roi_heads": {"num_classes": 2, "mask_head": {"x": 1}}}),
    OmegaConf.create(
        {
            "cfg": {
                "MODEL": {
                    "META_ARCHITECTURE": "GeneralizedRCNN",
                    "MASK_ON": True,
                    "ROI_HEADS": {"NUM_CLASSES": 2},
                }
            }
        }
    ),
]


@pytest.mark.parametrize("model", MASK_HEADS, ids=["lazy", "YAML"])
def test_a_mask_head_needs_masks_and_is_evaluated_by_them(stock, model):
    made = stock(_no_mask)
    dicts = load_dataset(made, model)
    mapper = DatasetMapper(True, augmentations=[], image_format="BGR", use_instance_mask=True)
    with pytest.raises(BadInput, match="'some set': an object in .*train2.png has no segmentation"):
        check_training_masks(dicts, mapper, model, "some set")
    check_training_masks([d for d in dicts if d["image_id"] != 2], mapper, model, "some set")
    check_training_masks(dicts, mapper, TWO, "some set")
    check_training_masks(dicts, lambda record: record, model, "some set")
    mapper.use_instance_mask = False
    with pytest.raises(BadInput, match="dataloader.train.mapper.use_instance_mask=False"):
        check_training_masks(dicts, mapper, model, "some set")
    with pytest.raises(BadInput, match="annotation 4 of image 2 has no sound 'segmentation'"):
        check_ground_truth(evaluator(made), model)
    check_ground_truth(evaluator(made, tasks=["bbox"]), model)
    check_ground_truth(evaluator(made), TWO)


@pytest.mark.parametrize("model", [{"num_classes": 2}, {"backbone": 1}, {"roi_heads": {}}])
def test_malformed_boxes_are_left_out_whatever_the_model_says_of_classes(name, model):
    in_memory(name, [[GOOD, ([5, 5, 5, 5], 1)]])
    (record,) = load_dataset(node(name), OmegaConf.create(model))
    assert [a["bbox"] for a in record["annotations"]] == [GOOD[0]]


@pytest.fixture
def other(name):
    """A second name."""
    yield f"{name} 2"
    DatasetCatalog.pop(f"{name} 2", None)
    MetadataCatalog.pop(f"{name} 2", None)


def test_sets_with_other_classes_are_not_joined(name, other):
    in_memory(name, [[GOOD]])
    in_memory(other, [[GOOD]], classes=("a", "c"))
    line = f"data sets '{name}' and '{other}' have other classes (a, b; a, c): give all the same"
    with pytest.raises(BadInput, match=re.escape(line)):
        load_dataset(node([name, other]), TWO)
    assert len(load_dataset(node([name, other], check_consistency=False), TWO)) == 2


@pytest.mark.parametrize("num_classes", [2, 3])
def test_sets_are_compared_before_either_is_with_the_model(name, other, num_classes):
    in_memory(name, [[GOOD]])
    in_memory(other, [[GOOD]], classes=("a", "b", "c"))
    model = OmegaConf.create({"num_classes": num_classes})
    test = loader_node(other)
    with pytest.raises(BadInput, match="have 2 classes .a, b. and 3 .a, b, c.: give both the same"):
        load_dataset(node(name), model, tests=[test])


def loader_node(names):
    mapper = L(DatasetMapper)(is_train=False, augmentations=[], image_format="BGR")
    made = {"dataset": L(get_detection_dataset_dicts)(names=names), "mapper": mapper}
    return OmegaConf.create(made, flags={"allow_objects": True})


def test_images_that_are_not_there_are_counted(tmp_path):
    mapper = DatasetMapper(True, augmentations=[], image_format="BGR")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    names = [str(tmp_path / "a.png"), "s3://far/away.png", "b.png", "c.png"]
    dicts = [{"file_name": n} for n in names]
    with pytest.raises(BadInput, match="'some': 2 of its 4 image files are not there, .* b.png; c"):
        check_image_files(dicts, mapper, "some")
    check_image_files(dicts[:2], mapper, "some")
    check_image_files(dicts, lambda record: record, "some")  # may take images from anywhere
    with log_lines() as lines:
        check_image_files(dicts, mapper, "some", unreadable="skip")
    assert len(lines) == 1 and "2 of its 4 image files are not there" in lines[0]
    with pytest.raises(BadInput, match="write / in place of"):
        check_image_files([{"file_name": "C:\\data\\a.png"}], mapper, "some")


def test_what_nobody_foresaw_is_one_line_too(name):
    in_memory(name, [[GOOD]])
    with pytest.raises(BadInput, match="/no/such/file.pkl is missing"):
        load_dataset(node(name, proposal_files=["/no/such/file.pkl"]), TWO)
    with pytest.raises(BadInput, match=f"data set {name}: cannot be loaded .AssertionError"):
        load_dataset(node(name, proposal_files=[]), TWO)


def test_records_of_no_registered_set_are_made_readable_too():
    made = OmegaConf.create({"d": L(own_records)()}, flags={"allow_objects": True}).d
    (record,) = load_dataset(made, TWO)
    assert record["annotations"][0]["bbox"] == [1, 1, 5, 5]


def own_records():
    annotation = {"bbox": np.array([1, 1, 5, 5]), "bbox_mode": 0, "category_id": 1}
    return [{"file_name": "a.png", "height": 9, "width": 9, "annotations": [annotation]}]


def test_classes_in_another_order_are_refused(name, other):
    in_memory(name, [[GOOD]])
    in_memory(other, [[GOOD]], classes=("b", "a"))
    with pytest.raises(BadInput, match="in another order .a, b; b, a"):
        load_dataset(node(name), TWO, tests=[loader_node(other)])
