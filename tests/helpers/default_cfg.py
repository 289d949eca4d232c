"""YAML configs of Detectron2's own trainer for tests, on a minute registered set."""

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from helpers.tiny import write_dicts
from sampling_free import add_sampling_free_config
from sampling_free.config.zoo import model_zoo


@pytest.fixture
def registered(tmp_path):
    """The name of a set of three images with rectangles as masks."""
    folder = tmp_path / "set"
    folder.mkdir()
    dicts = write_dicts(folder, [(64, 96), (64, 64), (64, 80)], [4, 3, 2])
    for record in dicts:
        for a in record["annotations"]:
            x, y, w, h = a["bbox"]
            a["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            assert a["bbox_mode"] == BoxMode.XYWH_ABS
    name = f"test_fine_tuning_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(thing_classes=["ant", "bee", "cat"])
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


MODELS = {
    "faster": ("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", "Standard"),
    "mask": ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", "Standard"),
    "cascade": ("Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml", "Cascade"),
    "retinanet": ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", None),
}


def cfg_of(kind, name, output):
    cfg = get_cfg()
    add_sampling_free_config(cfg)
    path, heads = MODELS[kind]
    cfg.merge_from_file(model_zoo.get_config_file(path))
    model = cfg.MODEL
    model.DEVICE, model.WEIGHTS = "cpu", ""
    model.RESNETS.DEPTH, model.RESNETS.RES2_OUT_CHANNELS = 18, 64
    model.FPN.OUT_CHANNELS, model.ROI_BOX_HEAD.FC_DIM = 8, 16
    model.ROI_MASK_HEAD.CONV_DIM, model.ROI_MASK_HEAD.NUM_CONV = 4, 1
    model.ROI_HEADS.NUM_CLASSES = model.RETINANET.NUM_CLASSES = 3
    model.RETINANET.NUM_CONVS = 1
    if heads:
        model.PROPOSAL_GENERATOR.NAME = "SamplingFreeRPN"
        model.ROI_HEADS.NAME = f"SamplingFree{heads}ROIHeads"
        model.RPN.POST_NMS_TOPK_TRAIN = 20
    else:
        model.META_ARCHITECTURE = "SamplingFreeRetinaNet"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), ()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (48,), 128
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = 2, 2, 1
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WARMUP_ITERS = 1e-3, 0
    cfg.SEED, cfg.OUTPUT_DIR = 3, str(output)
    output.mkdir(exist_ok=True)
    return cfg
