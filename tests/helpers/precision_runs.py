"""Short runs of the configs in configs/demo/, in full and in mixed precision.

Their set, batch and backbone are made smaller, so that a step takes a twentieth of a second.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.resnet import BasicBlock, ResNet
from detectron2.utils.env import seed_all_rng

from helpers.half_products import half_products
from helpers.tiny_run import REPO
from sampling_free.config.load import load_config
from sampling_free.engine.trainer import LazyTrainer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DETECTORS = ("retinanet", "fcos", "atss", "paa", "faster_rcnn", "mask_rcnn", "cascade_rcnn")
STEPS, WARMUP = 300, 50
FIRST_SCALE = 2.0**16  # of PyTorch's GradScaler; it halves at each overflow
NUM_CLASSES = 2
IMAGES = {
    "image_size": "[96,96]",
    "min_size": 16,
    "num_classes": NUM_CLASSES,
    "crowd": 0.0,
    "empty": 0.0,
}
SETTINGS = {
    "dataloader.train.dataset.names.train_images": 200,
    "dataloader.test.dataset.names.val_images": 50,
    "dataloader.train.total_batch_size": 2,
    "lr_multiplier.warmup_length": WARMUP / STEPS,
    "train.max_iter": STEPS,
    "train.device": DEVICE,
    "train.log_period": 5,
    "train.num_pictures": 0,
}
DENSE = {"model.num_classes": NUM_CLASSES, "optimizer.lr": 0.02}
RCNN = {
    "model.roi_heads.num_classes": NUM_CLASSES,
    "model.proposal_generator.post_nms_topk": "[64,64]",
    "optimizer.lr": 0.005,
}


class Outcome(NamedTuple):
    """Of a run.

    Attributes:
        ap, ap50 (float): of boxes, in percent.
        num_not_finite (int): numbers of metrics.json and tensors of the checkpoint that are not.
        scale (float or None): of float16's gradient scaler, at the end.
        last_overflow (int): steps until its last overflow; 0 without one.
    """

    ap: float
    ap50: float
    num_not_finite: int
    scale: float
    last_overflow: int

    @property
    def num_overflows(self):
        """int: the scaler grows after 2,000 steps only, so that each overflow halves it."""
        return round(math.log2(FIRST_SCALE / self.scale))


def half_stages():
    """Those of the R18, of half its channels: a quarter of its products."""
    widths = [32, 32, 64, 128, 256]
    return [
        ResNet.make_stage(
            BasicBlock,
            2,
            in_channels=a,
            out_channels=b,
            stride_per_block=[1 + (i > 0), 1],
            norm="BN",
        )
        for i, (a, b) in enumerate(zip(widths, widths[1:]))
    ]


def halve_backbone(fpn):
    """Changes the FPN of a config in place."""
    fpn.bottom_up.stem.out_channels = 32
    fpn.bottom_up.stages = L(half_stages)()
    if fpn.top_block.get("in_channels") == 512:  # p6 of c5, not of p5
        fpn.top_block.in_channels = 256


def guided_heads(model):
    """The nodes of a sampling-free model that have a guide."""
    if "roi_heads" not in model:
        return [model]
    heads = model.roi_heads
    predictors = heads.box_predictors if "box_predictors" in heads else [heads.box_predictor]
    return [model.proposal_generator, *predictors]


def train(detector, folder, dtype=None, seed=0):
    """
    Args:
        detector (str): of ``DETECTORS``.
        folder (Path): for the output; the images are kept beside its parent, for other runs.
        dtype (str or None): a key of ``step.DTYPES``, or None for full precision.
        seed (int): of weights and order; the images are the same.

    Returns:
        Outcome: of ``STEPS`` steps.
    """
    settings = SETTINGS | (RCNN if "rcnn" in detector else DENSE)
    for part in ("train", "test"):
        node = f"dataloader.{part}.dataset.names"
        settings |= {f"{node}.{key}": value for key, value in IMAGES.items()}
        settings |= {
            f"{node}.name": f"precision_{part}",
            f"{node}.root": folder.parents[1] / "sets",
        }
    settings |= {"train.output_dir": folder, "train.seed": seed}
    if dtype is not None:
        settings |= {"train.amp.enabled": True, "train.amp.dtype": dtype}
    cfg = load_config(
        str(REPO / "configs" / "demo" / f"{detector}.py"), [f"{k}={v}" for k, v in settings.items()]
    )
    for head in guided_heads(cfg.model):
        head.guide = "iteration"  # the paper's, of which docs/reliability.md speaks
    halve_backbone(cfg.model.backbone)
    seed_all_rng(seed)
    made = LazyTrainer(cfg)
    made.resume_or_load(resume=False)
    with half_products(DEVICE, dtype):
        boxes = made.train()["bbox"]
    scaler = made._trainer.grad_scaler.state_dict()
    return Outcome(
        ap=boxes["AP"],
        ap50=boxes["AP50"],
        num_not_finite=_not_finite(folder),
        scale=scaler.get("scale"),
        last_overflow=STEPS - scaler.get("_growth_tracker", STEPS),
    )


def _not_finite(folder):
    rows = [json.loads(line) for line in (Path(folder) / "metrics.json").read_text().splitlines()]
    assert rows[-1]["iteration"] >= STEPS - 1
    # An evaluation has null for the AP of sizes that no object has.
    numbers = [
        x for row in rows for key, x in row.items() if "bbox/" not in key and "segm/" not in key
    ]
    weights = torch.load(Path(folder) / "model_final.pth", weights_only=True)["model"].values()
    return sum(x is None or not math.isfinite(x) for x in numbers) + sum(
        not bool(w.isfinite().all()) for w in weights
    )
