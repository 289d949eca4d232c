"""Training runs of a few seconds: a config derived from the demo's, with a minute model and set.

The model is a RetinaNet of 8 channels, the data are 12 synthetic images of 64 x 64 pixels.
"""

import contextlib
import json
import logging
import math
import os
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling.backbone.resnet import BasicBlock, ResNet
from detectron2.utils.env import seed_all_rng

from sampling_free.config.load import load_config
from sampling_free.engine.trainer import LazyTrainer

REPO = Path(__file__).resolve().parents[2]
NUM_TRAIN, NUM_VAL, NUM_CLASSES = 12, 6, 5
TIMES = ("time", "data_time", "rank_data_time", "eta_seconds")

CONFIG = """
from detectron2.config import LazyCall as L, LazyConfig
from detectron2.layers import ShapeSpec
from sampling_free.data import register_synthetic
from helpers import tiny_run

_demo = LazyConfig.load({demo!r})
model, optimizer, lr_multiplier = _demo.model, _demo.optimizer, _demo.lr_multiplier
dataloader, train = _demo.dataloader, _demo.train

_set = dict(root={root!r}, train_images=12, val_images=6, image_size=(64, 64), crowd=0.0, empty=0.0)
_train = L(register_synthetic)(name="tiny_train_{tag}", split="train", **_set)
_val = L(register_synthetic)(name="tiny_val_{tag}", split="val", **_set)
dataloader.train.dataset.names, dataloader.test.dataset.names = _train, _val
dataloader.train.total_batch_size = 2

bottom_up = model.backbone.bottom_up
bottom_up.stem.out_channels = 8
bottom_up.stages = L(tiny_run.tiny_stages)()
model.backbone.out_channels = 8
model.backbone.top_block.in_channels = 32
model.head.update(input_shape=[ShapeSpec(channels=8)] * 5, conv_dims=[8], norm="")

model.guide = "iteration"
train.update(output_dir={output!r}, device="cpu", max_iter=6, log_period=1, num_pictures=0)
train.checkpointer.period = 3
train.eval_period = 0
"""


def tiny_stages():
    """Four ResNet stages of one block each."""
    widths = [8, 8, 16, 24, 32]  # a block of stride 2 must change the width
    return [
        ResNet.make_stage(
            BasicBlock, 1, in_channels=a, out_channels=b, stride_per_block=[1 + (i > 0)], norm="BN"
        )
        for i, (a, b) in enumerate(zip(widths, widths[1:]))
    ]


def write_config(folder, extra="", name="config.py"):
    """A config file in ``folder``; its output goes to ``folder``/out.

    Args:
        folder (Path): the images go to the shared cache of its parent, drawn once for all tests.
        extra (str): lines of Python at the end of the file.
    """
    root = str(Path(folder).parent / "tiny_sets")
    text = CONFIG.format(
        demo=str(REPO / "configs" / "demo" / "retinanet.py"),
        root=root,
        tag=zlib.crc32(root.encode()),
        output=str(Path(folder) / "out"),
    )
    path = Path(folder) / name
    path.write_text(text + extra)
    return str(path)


# Turns the config into Detectron2's own RetinaNet.
FOCAL = """
from detectron2 import model_zoo
_stock = model_zoo.get_config("common/models/retinanet.py").model
model._target_ = _stock._target_
del model["prior"], model["guide"], model["box_reg_loss_weight"]
model.focal_loss_alpha, model.focal_loss_gamma = 0.25, 2.0
"""


# Only pieces of Detectron2, put together as its documentation has it.
OWN_CONFIG = """
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data.datasets import register_coco_instances
from detectron2.data import DatasetCatalog
from detectron2.modeling.backbone.resnet import BasicBlock, ResNet

for split in ("train", "val"):
    if "own_" + split not in DatasetCatalog:
        folder = FOLDERS[split]
        annotations, images = folder + "/annotations.json", folder + "/images"
        register_coco_instances("own_" + split, {}, annotations, images)

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train.dataset.names = "own_train"
dataloader.test.dataset.names = "own_val"
dataloader.train.total_batch_size = 2
dataloader.train.num_workers = dataloader.test.num_workers = 0
dataloader.train.mapper.use_instance_mask = False
dataloader.train.mapper.augmentations[0].short_edge_length = (64,)
dataloader.test.mapper.augmentations[0].short_edge_length = 64
optimizer = model_zoo.get_config("common/optim.py").SGD
lr_multiplier = model_zoo.get_config("common/coco_schedule.py").lr_multiplier_1x
model = model_zoo.get_config("common/models/retinanet.py").model
model.backbone.bottom_up.stages = dict(
    _target_=ResNet.make_default_stages, depth=18, block_class=BasicBlock, norm="BN"
)
model.backbone.top_block.in_channels = 512
model.num_classes = 5
train = dict(
    output_dir=OUTPUT,
    init_checkpoint="",
    max_iter=2,
    amp=dict(enabled=False),
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    checkpointer=dict(period=5000, max_to_keep=100),
    eval_period=5000,
    log_period=20,
    device="cpu",
)
"""


def trainer(config, *overrides, resume=False):
    """A ``LazyTrainer`` ready to train, seeded as Detectron2's ``default_setup`` does it."""
    cfg = load_config(config, list(overrides))
    seed_all_rng(None if cfg.train.seed < 0 else cfg.train.seed)
    made = LazyTrainer(cfg)
    made.resume_or_load(resume=resume)
    return made


def run(config, *overrides, resume=False):
    """Trains; returns the trainer."""
    made = trainer(config, *overrides, resume=resume)
    made.train()
    _end_workers(made)
    return made


def _end_workers(made):
    """Now; when they are left to the garbage collector PyTorch waits for seconds."""
    iterator = made._trainer._data_loader_iter
    if hasattr(iterator, "close"):
        iterator.close()


def run_until(iteration, config, *overrides, error=KeyboardInterrupt):
    """Trains and is stopped from outside before ``iteration``."""
    made = trainer(config, *overrides)
    step = made.run_step

    def stopping_step():
        if made.iter == iteration:
            raise error
        step()

    made.run_step = stopping_step
    with pytest.raises(error):
        made.train()
    _end_workers(made)


def metrics(output_dir):
    """metrics.json as {iteration: {name: value}} without times; null is NaN; the last of each."""
    rows = {}
    for line in (Path(output_dir) / "metrics.json").read_text().splitlines():
        row = json.loads(line)
        row = {k: math.nan if v is None else v for k, v in row.items() if k not in TIMES}
        rows.setdefault(row.pop("iteration"), {}).update(row)
    return rows


def load(path):
    """A checkpoint as a dict."""
    return torch.load(path, map_location="cpu", weights_only=False)


def same(a, b):
    """Whether two nested structures are equal to the last bit; NaN equals NaN."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


@contextlib.contextmanager
def log_lines(name="sampling_free"):
    """Messages of a logger and its children, whatever handlers they have."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger(name)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def environment():
    """Variables for a script started from a test."""
    paths = [str(REPO / "projects" / "SamplingFree"), *filter(None, sys.path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def command(config, *arguments):
    """The command line of train_net.py."""
    return [sys.executable, str(REPO / "train_net.py"), "--config-file", str(config), *arguments]


def train_net(config, *arguments, cwd=REPO):
    """Runs train_net.py as a process of its own; returns code, out and err."""
    done = subprocess.run(
        command(config, *arguments), capture_output=True, text=True, env=environment(), cwd=cwd
    )
    return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)


def error_line(run):
    """The one ``error:`` line of a process that was stopped by bad input, after checking it."""
    assert run.code == 2, run.out[-2000:] + run.err[-2000:]
    assert "Traceback" not in run.out + run.err
    return only_error(run.err)


def only_error(text):
    """The one ``error:`` line in ``text``, which must have nothing of the message beside it."""
    lines = text.splitlines()
    errors = [i for i, x in enumerate(lines) if x.startswith("error:")]
    assert len(errors) == 1, text
    assert errors == [len(lines) - 1], f"the message has more than one line: {text}"
    return lines[-1]


def dicts_of(source):
    """Dataset dicts from a call that is not Detectron2's ``get_detection_dataset_dicts``."""
    return DatasetCatalog.get(source)


def call_main(script, words, monkeypatch, capsys):
    """Calls ``main`` of a script in this process; returns the exit code, stdout and stderr."""
    monkeypatch.setattr("sys.argv", list(map(str, words)))
    capsys.readouterr()
    code = 0
    try:
        script.main()
    except SystemExit as e:
        code = e.code
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


def without_id(mapper):
    """A mapper of one's own that forgets what an image is known by."""
    return lambda record: {k: v for k, v in mapper(record).items() if k != "image_id"}
