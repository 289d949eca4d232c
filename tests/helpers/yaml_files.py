"""YAML configs for tests: small ones of the zoo's files, on a registered set."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from sampling_free import BadInput
from sampling_free.config.cfg_node import read_cfg_node
from sampling_free.config.load import load_config
from sampling_free.config.zoo import model_zoo
from sampling_free.data import register_synthetic

ROOT = Path(model_zoo.get_config_file("Base-RCNN-FPN.yaml")).parent
FASTER = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
KEYPOINTS = "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml"
NUM_CLASSES = 5

TINY = """
_BASE_: "{base}"
MODEL:
  WEIGHTS: ""
  DEVICE: cpu
  MASK_ON: False
  RESNETS: {{STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 32, WIDTH_PER_GROUP: 8}}
  FPN: {{OUT_CHANNELS: 32}}
  RPN: {{PRE_NMS_TOPK_TRAIN: 40, POST_NMS_TOPK_TRAIN: 40, POST_NMS_TOPK_TEST: 20}}
  ROI_BOX_HEAD: {{FC_DIM: 16}}
  ROI_HEADS: {{NUM_CLASSES: 5}}
  RETINANET: {{NUM_CLASSES: 5}}
INPUT:
  MIN_SIZE_TRAIN: (48, 64)
  MIN_SIZE_TEST: 64
DATASETS:
  TRAIN: ("{train}",)
  TEST: ("{val}",)
DATALOADER: {{NUM_WORKERS: 0}}
SOLVER:
  IMS_PER_BATCH: 2
  BASE_LR: 1.0e-4
  MAX_ITER: 4
  STEPS: (3,)
  WARMUP_ITERS: 2
  CHECKPOINT_PERIOD: 2
SEED: 3
OUTPUT_DIR: "{output}"
"""
CASCADE = "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml"
C4 = "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml"


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two registered synthetic sets: names and annotation files by split."""
    root = str(tmp_path_factory.mktemp("yaml_sets"))
    made = SimpleNamespace(names={}, files={}, images={})
    for split in ("train", "val"):
        name = f"yaml_config_{split}"
        register_synthetic(
            name,
            split,
            root=root,
            train_images=12,
            val_images=6,
            image_size=(64, 64),
            crowd=0.0,
            empty=0.0,
        )
        made.names[split] = name
        made.files[split] = MetadataCatalog.get(name).json_file
        made.images[split] = MetadataCatalog.get(name).image_root
    yield made
    for name in made.names.values():
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture
def tiny(tmp_path, sets):
    """Writes a small YAML config of a zoo file; returns its path."""

    def write(base=FASTER, extra="", name="config.yaml"):
        path = tmp_path / name
        text = TINY.format(
            base=ROOT / base,
            train=sets.names["train"],
            val=sets.names["val"],
            output=tmp_path / "out",
        )
        path.write_text(text + extra)
        return str(path)

    return write


def zoo(name=FASTER, **changes):
    """The CfgNode of a zoo file with keys changed; "__" stands for a dot."""
    cfg = read_cfg_node(model_zoo.get_config_file(name))
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def message(*arguments):
    with pytest.raises(BadInput) as e:
        load_config(*arguments)
    assert len(str(e.value).splitlines()) == 1
    return str(e.value)
