"""The data and the evaluation of a YAML config as those of a LazyConfig."""

import copy
import pickle

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.build import _test_loader_from_config, _train_loader_from_config
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)
from detectron2.structures import BoxMode

from helpers.tiny_run import log_lines
from helpers.yaml_files import FASTER, KEYPOINTS, zoo
from sampling_free import BadInput
from sampling_free.config.cfg_node import lazy_from_cfg_node
from sampling_free.data.datasets import dataset_names, load_dataset
from sampling_free.evaluation.test_sets import each_test_set


def mapper_of(cfg, is_train):
    """What DefaultTrainer's loader is made with."""
    cfg = cfg.clone()
    cfg.MODEL.LOAD_PROPOSALS, loads = False, cfg.MODEL.LOAD_PROPOSALS  # from no file here
    dataset = [{"file_name": "0.png"}]
    if is_train:
        mapper = _train_loader_from_config(cfg, dataset=dataset)["mapper"]
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("detectron2.data.build.get_detection_dataset_dicts", lambda *a, **k: [{}])
            mapper = _test_loader_from_config(cfg, cfg.DATASETS.TEST[0])["mapper"]
    if loads:
        cfg.MODEL.LOAD_PROPOSALS = True
        mapper = DatasetMapper(cfg, is_train=is_train)
    return mapper


@pytest.mark.parametrize(
    "name, changes",
    [
        (FASTER, {}),
        (KEYPOINTS, {"INPUT__RANDOM_FLIP": "none"}),
        (FASTER, {"INPUT__RANDOM_FLIP": "vertical", "INPUT__MIN_SIZE_TRAIN_SAMPLING": "range",
                  "INPUT__MIN_SIZE_TRAIN": (100, 200)}),
        (FASTER, {"INPUT__CROP__ENABLED": True, "INPUT__FORMAT": "RGB"}),
        (KEYPOINTS, {"MODEL__MASK_ON": True, "INPUT__MASK_FORMAT": "bitmask"}),
        (FASTER, {"MODEL__LOAD_PROPOSALS": True}),
    ],
    ids=range(6),
)  # fmt: skip
def test_the_mappers_are_those_of_default_trainer(name, changes):
    cfg = zoo(name, **changes)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST
    node = lazy_from_cfg_node(cfg).dataloader
    for part, is_train in ((node.train, True), (node.test, False)):
        found, expected = instantiate(part.mapper), mapper_of(cfg, is_train)
        assert type(found) is DatasetMapper
        assert repr(found.augmentations) == repr(expected.augmentations)
        apart = ("augmentations", "keypoint_hflip_indices")
        a, b = ({k: v for k, v in vars(m).items() if k not in apart} for m in (found, expected))
        assert a == b
        indices = found.keypoint_hflip_indices, expected.keypoint_hflip_indices
        assert np.array_equal(*indices) or indices == (None, None)


@pytest.fixture
def keypoint_set():
    """A registered set: images without, with a crowd, with 2 and with 12 visible keypoints."""
    names = ["yaml_config_keypoints", "yaml_config_more_keypoints"]

    def record(i, visible, crowd=0):
        points = [x for k in range(17) for x in (1.0, 1.0, 2 if k < visible else 0)]
        box = {"bbox": [1, 1, 20, 20], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
        return {
            "file_name": f"{i}.png",
            "image_id": i,
            "height": 40,
            "width": 60,
            "annotations": [{**box, "iscrowd": crowd, "keypoints": points}] if visible >= 0 else [],
        }

    dicts = [record(0, -1), record(1, 0, crowd=1), record(2, 2), record(3, 12)]
    for name in names:
        DatasetCatalog.register(name, lambda: copy.deepcopy(dicts))
        MetadataCatalog.get(name).set(
            thing_classes=["person"],
            evaluator_type="coco",
            keypoint_names=[str(k) for k in range(17)],
            keypoint_flip_map=[],
        )
    yield names
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.mark.parametrize(
    "name, changes, ids",
    [
        (FASTER, {}, [2, 3]),
        (FASTER, {"DATALOADER__FILTER_EMPTY_ANNOTATIONS": False}, [0, 1, 2, 3]),
        (KEYPOINTS, {}, [2, 3]),
        (KEYPOINTS, {"MODEL__ROI_KEYPOINT_HEAD__MIN_KEYPOINTS_PER_IMAGE": 4}, [3]),
        (FASTER, {"MODEL__ROI_KEYPOINT_HEAD__MIN_KEYPOINTS_PER_IMAGE": 4}, [2, 3]),
    ],
)
def test_the_training_set_is_that_of_default_trainer(keypoint_set, name, changes, ids):
    cfg = zoo(name, DATASETS__TRAIN=tuple(keypoint_set), **changes)
    cfg.DATASETS.TEST = (keypoint_set[0],)
    lazy = lazy_from_cfg_node(cfg)
    found = instantiate(lazy.dataloader.train.dataset)
    assert [d["image_id"] for d in found] == ids * 2
    assert found == _train_loader_from_config(cfg)["dataset"]
    assert dataset_names(lazy.dataloader.train.dataset) == keypoint_set
    # All images are evaluated.
    found = instantiate(lazy.dataloader.test.dataset)
    assert len(found) == 4
    assert found == _test_loader_from_config(cfg, keypoint_set[0])["dataset"]


def proposal_file(path, ids, side=30):
    boxes = [np.array([[0.0, 0, 10, 10], [5, 5, side, side]], np.float32) for _ in ids]
    scores = [np.array([0.5, 0.75], np.float32) for _ in ids]
    path.write_bytes(
        pickle.dumps({"ids": ids, "boxes": boxes, "objectness_logits": scores, "bbox_mode": 0})
    )
    return str(path)


def test_precomputed_proposals_come_with_every_set(keypoint_set, tmp_path):
    cfg = zoo("COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (keypoint_set[0],), tuple(keypoint_set)
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = (proposal_file(tmp_path / "a.pkl", [0, 1, 2, 3]),)
    files = [proposal_file(tmp_path / f"{i}.pkl", [3, 2, 1, 0], 20 + i) for i in range(2)]
    cfg.DATASETS.PROPOSAL_FILES_TEST = tuple(files)
    lazy = lazy_from_cfg_node(cfg)
    tests = [load_dataset(x.dataloader.test.dataset) for x in each_test_set(lazy).values()]
    sets = [instantiate(lazy.dataloader.train.dataset), *tests]
    for dicts, num, side in zip(sets, (2, 4, 4), (30, 20, 21), strict=True):
        assert len(dicts) == num and all(len(d["proposal_boxes"]) == 2 for d in dicts)
        assert dicts[0]["proposal_objectness_logits"].tolist() == [0.75, 0.5]
        assert dicts[0]["proposal_boxes"][0].tolist() == [5, 5, side, side]


def test_the_loader_has_the_settings_of_the_cfg_node(keypoint_set):
    cfg = zoo(
        DATASETS__TRAIN=(keypoint_set[0],),
        SOLVER__IMS_PER_BATCH=2,
        DATALOADER__ASPECT_RATIO_GROUPING=False,
        DATALOADER__NUM_WORKERS=3,
        SEED=7,
    )
    node = without_test_set(cfg).dataloader.train
    loader = instantiate(node)
    assert loader.num_workers == 3 and loader.dataset.seed == 7
    assert loader.batches.total_batch_size == 2
    assert type(loader.batches.sampler) is TrainingSampler
    assert not any(loader.batches.is_tall)
    assert repr(loader.dataset.mapper.mapper.augmentations) == repr(
        DatasetMapper(cfg, is_train=True).augmentations
    )
    assert node.aspect_ratio_grouping is False
    assert loader.dataset.unreadable == "stop"


def without_test_set(cfg):
    cfg.DATASETS.TEST = ()
    return lazy_from_cfg_node(cfg)


def test_rare_classes_are_repeated_if_so_configured():
    name = "yaml_config_rare"
    box = {"bbox": [1, 1, 9, 9], "bbox_mode": BoxMode.XYXY_ABS, "iscrowd": 0}
    dicts = [
        {"file_name": f"{i}.png", "image_id": i, "height": 20, "width": 20,
         "annotations": [{**box, "category_id": int(i == 0)}]}
        for i in range(10)
    ]  # fmt: skip
    DatasetCatalog.register(name, lambda: dicts)
    try:
        cfg = zoo(
            DATASETS__TRAIN=(name,),
            SOLVER__IMS_PER_BATCH=2,
            DATALOADER__SAMPLER_TRAIN="RepeatFactorTrainingSampler",
            DATALOADER__REPEAT_THRESHOLD=0.9,
            SEED=7,
        )
        lazy = without_test_set(cfg)
        sampler = instantiate(lazy.dataloader.train).batches.sampler
        assert type(sampler) is RepeatFactorTrainingSampler
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dicts, 0.9)
        found = sampler._int_part + sampler._frac_part
        assert torch.equal(found, factors) and factors[0] == 3
        first = [i for i, _ in zip(sampler._infinite_indices(), range(60))]
        again = instantiate(lazy.dataloader.train).batches.sampler
        assert first == [i for i, _ in zip(again._infinite_indices(), range(60))]
        assert 10 <= [int(i) for i in first].count(0) <= 20  # 3 of 12
        cfg.DATALOADER.SAMPLER_TRAIN = "RandomSubsetTrainingSampler"
        with pytest.raises(BadInput, match="SAMPLER_TRAIN = RandomSubsetTrainingSampler"):
            instantiate(without_test_set(cfg).dataloader.train)
    finally:
        DatasetCatalog.remove(name)


@pytest.fixture
def kind_of_set():
    names = []

    def register(kind):
        name = f"yaml_config_{kind}_{len(names)}"
        MetadataCatalog.get(name).set(**({"evaluator_type": kind} if kind else {}))
        names.append(name)
        return name

    yield register
    for name in names:
        MetadataCatalog.pop(name)


@pytest.mark.parametrize(
    "kind, evaluators",
    [
        ("coco", [COCOEvaluator]),
        (None, [COCOEvaluator]),
        ("lvis", [LVISEvaluator]),
        ("pascal_voc", [PascalVOCDetectionEvaluator]),
        ("coco_panoptic_seg", [COCOEvaluator, SemSegEvaluator, COCOPanopticEvaluator]),
    ],
)
def test_the_evaluator_is_that_of_the_test_set(kind_of_set, kind, evaluators):
    name = kind_of_set(kind)
    node = lazy_from_cfg_node(zoo(DATASETS__TEST=(name,))).dataloader.evaluator
    nodes = [node] if len(evaluators) == 1 else node
    assert [n._target_ for n in nodes] == evaluators
    assert [n.dataset_name for n in nodes] == [name] * len(evaluators)
    assert all("kpt_oks_sigmas" not in n for n in nodes)


def test_other_evaluations(kind_of_set):
    cfg = zoo(DATASETS__TEST=(kind_of_set("coco"),), TEST__KEYPOINT_OKS_SIGMAS=[0.1, 0.2])
    assert list(lazy_from_cfg_node(cfg).dataloader.evaluator.kpt_oks_sigmas) == [0.1, 0.2]
    assert set(without_test_set(zoo()).dataloader) == {"train"}
    name = kind_of_set("citizens")
    with pytest.raises(BadInput, match=f"{name}.*citizens.*coco_panoptic_seg"):
        lazy_from_cfg_node(zoo(DATASETS__TEST=(name,)))


def test_what_is_not_done_is_said():
    with log_lines() as lines:
        lazy_from_cfg_node(zoo())
    assert lines == []
    keys = ("TEST.PRECISE_BN.ENABLED", "TEST.AUG.ENABLED")
    with log_lines() as lines:
        lazy_from_cfg_node(zoo(**{key.replace(".", "__"): True for key in keys}))
    assert len(lines) == 2
    assert all(key in line and "ignored" in line for key, line in zip(keys, lines))
