"""Training from a checkpoint, and what is logged."""

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import SimpleTrainer

from helpers.tiny import (
    log_lines,
)
from helpers.tiny_detectors import rcnn_batch

NAME = "test_fine_tuning_train"


def train(model, hook, kind="faster", start_iter=0, num=1, lr=0.0):
    """Detectron2's own loop, with lr 0 so that the biases stay as the hook leaves them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    trainer = SimpleTrainer(model, [rcnn_batch(3, 2, kind=kind)], optimizer)
    trainer.register_hooks([hook])
    with log_lines("sampling_free.engine.prior_init") as lines:
        trainer.train(start_iter, start_iter + num)
    trainer.lines = lines
    return trainer


def load(model, source, folder, drop=lambda key: False):
    """``source`` through a file into ``model``, without the keys that ``drop`` says."""
    weights = {k: v for k, v in source.state_dict().items() if not drop(k)}
    torch.save({"model": weights}, folder / "source.pth")
    DetectionCheckpointer(model).load(str(folder / "source.pth"))
    return model


def only(lines, *parts):
    """The one line with all of ``parts``."""
    found = [line for line in lines if all(part in line for part in parts)]
    assert len(found) == 1, (parts, lines)
    return found[0]
