#!/usr/bin/env python
"""What becomes of bad data: each kind is made, trained on by train_net.py, and recorded.

    PYTHONPATH=tests python -m helpers.bad_data --output results/reliability.json

The kinds are in bad_images.py, bad_coco.py, bad_boxes.py, bad_evaluated.py, bad_voc.py and
bad_catalog.py.
"""

import argparse
import contextlib
import importlib
import io
import itertools
import json
import logging
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from detectron2.config import instantiate
from detectron2.utils.env import seed_all_rng
from tqdm import tqdm

from helpers.bad_boxes import BOX_KINDS
from helpers.bad_catalog import CATALOG_KINDS
from helpers.bad_coco import COCO_KINDS
from helpers.bad_evaluated import EVALUATED_KINDS, VOC_EVALUATED_KINDS
from helpers.bad_images import IMAGE_KINDS
from helpers.bad_kind import SKIPPED, STOPPED, TRAINED
from helpers.bad_voc import VOC_KINDS
from helpers.tiny_run import REPO, write_config
from sampling_free.config.load import load_config
from sampling_free.data.datasets import load_dataset
from sampling_free.utils.files import write_json

sys.path.insert(0, str(REPO))
train_net = importlib.import_module("train_net")

KINDS = [
    *IMAGE_KINDS,
    *COCO_KINDS,
    *BOX_KINDS,
    *EVALUATED_KINDS,
    *VOC_KINDS,
    *VOC_EVALUATED_KINDS,
    *CATALOG_KINDS,
]
TRACED = "STACK TRACE"  # none ends so
_tags = itertools.count()

# In the log: how many were left out, of images or of objects.
COUNTS = {
    "objects": [
        re.compile(r"skipped (\d+) boxes"),
        re.compile(r"Filtered out (\d+) instances without valid segmentation"),
    ],
    "images": [
        re.compile(r"Removed ([1-9]\d*) images with no usable annotations"),
        re.compile(r"skipped (\d+) of \d+ images so far"),
    ],
}
UNMATCHED = re.compile(r"contains (\d+) annotations, but only (\d+) of them match to images")

CONFIG = """
from detectron2.data import transforms as T
from sampling_free.data import register_coco, register_voc

dataloader.train.dataset.names = {train}
dataloader.test.dataset.names = {val}
dataloader.train.dataset.filter_empty = True
dataloader.train.mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length=(64,), max_size=128, sample_style="choice"),
    L(T.RandomFlip)(),
]
dataloader.test.mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length=48, max_size=128)
]
model.num_classes = 2
train.max_iter = 3
"""


class Outcome(NamedTuple):
    """What became of a run.

    Attributes:
        outcome (str): STOPPED, SKIPPED, TRAINED or TRACED.
        message (str): what the user was told, without the name of the folder; may be empty.
        skipped (dict[str, int]): images and objects that the log says were left out.
        losses (list[float]): all that were logged.
    """

    outcome: str
    message: str
    skipped: dict
    losses: list


def make(kind, folder):
    """Writes the data of a kind and a config for them; returns the data and the config's path."""
    data = kind.data(folder / "data")
    kind.spoil(data)
    data.write()
    tag = f"bad_data_{next(_tags)}"
    nodes = {split: data.node(split, tag) for split in ("train", "val")}
    return data, write_config(folder, CONFIG.format(**nodes) + kind.lines)


def happens(config, folder, overrides=()):
    """Trains and evaluates; returns the :class:`Outcome`."""
    code, err, records = _train_net(config, overrides)
    lines = list(dict.fromkeys(" ".join(r.getMessage().split()) for r in records))
    if code not in (0, 2) or "Traceback" in err or any(r.exc_info for r in records):
        return Outcome(TRACED, f"{code}", {}, [])
    if code == 2:
        (message,) = (x for x in err.splitlines() if x.startswith("error: "))
        return Outcome(STOPPED, _without(folder, message[len("error: ") :]), {}, [])
    counted = [line for line in lines if any(_counted(line).values())]
    skipped = {key: sum(_counted(line)[key] for line in counted) for key in COUNTS}
    warned = {" ".join(r.getMessage().split()) for r in records if r.levelno > logging.INFO}
    told = [line for line in lines if line in counted or line in warned]
    message = "; ".join(_without(folder, line) for line in told)
    return Outcome(SKIPPED if counted else TRAINED, message, skipped, _losses(folder))


def used(config, overrides=()):
    """(images, objects) that the training mapper of a config gives to the model."""
    cfg = load_config(config, list(overrides))
    mapper = instantiate(cfg.dataloader.train.mapper)
    images = objects = 0
    for record in load_dataset(cfg.dataloader.train.dataset, cfg.model):
        try:
            objects += len(mapper(record)["instances"])
            images += 1
        except OSError:  # skipped as an image, with what is in it
            objects += len(record["annotations"])
    return images, objects


def _counted(line):
    if "val.json" in line:  # nothing is left out of what is trained on
        return dict.fromkeys(COUNTS, 0)
    found = {
        key: sum(int(x) for pattern in patterns for x in pattern.findall(line))
        for key, patterns in COUNTS.items()
    }
    found["objects"] += sum(int(a) - int(b) for a, b in UNMATCHED.findall(line))
    return found


def _train_net(config, overrides):
    """Calls train_net.py in this process; returns the exit code, stderr and the log's records."""
    records, err = [], io.StringIO()
    handler = logging.Handler(logging.INFO)
    handler.emit = records.append
    words = ["train_net.py", "--config-file", config, *overrides]
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(mock.patch.object(sys, "argv", words))
        # Detectron2's set-up gives its loggers handlers for good.
        enter(mock.patch.object(train_net, "default_setup", lambda *_: seed_all_rng(0)))
        enter(mock.patch.object(train_net, "setup_logger", lambda *_, **__: None))
        enter(contextlib.redirect_stderr(err))
        enter(contextlib.redirect_stdout(io.StringIO()))
        for name in ("detectron2", "sampling_free", "fvcore"):
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            stack.callback(logger.removeHandler, handler)
            logger.setLevel(logging.INFO)
            logger.addHandler(handler)
        try:
            train_net.main()
            code = 0
        except SystemExit as e:
            code = e.code
        except Exception as e:
            code = f"{type(e).__name__}: {e}"
    for record in records:
        record.getMessage().encode()  # as a log file takes it
    return code, err.getvalue(), records


def _without(folder, message):
    for place in (f"{folder}/data/", f"{folder}/", f"{REPO}/"):
        message = message.replace(place, "")
    return message


def _losses(folder):
    lines = (folder / "out" / "metrics.json").read_text().splitlines()
    return [v for line in lines for k, v in json.loads(line).items() if "loss" in k]


def record(kind):
    """A row of the table: what happened, as a dict."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder).resolve()
        _, config = make(kind, folder)
        found = happens(config, folder, kind.overrides)
    assert None not in found.losses  # what is not finite
    return {
        "place": kind.place,
        "kind": kind.name,
        "outcome": found.outcome,
        "message": re.sub(r"bad_data_\d+_", "", found.message),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="JSON, one key of which")
    path = parser.parse_args().output
    os.environ.pop("DETECTRON2_DATASETS", None)  # a path that a message would have
    content = {}
    if os.path.exists(path):
        with open(path) as f:
            content = json.load(f)
    content["bad_data"] = [record(kind) for kind in tqdm(KINDS)]
    write_json(path, content)


if __name__ == "__main__":
    main()
