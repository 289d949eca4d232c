"""A detector that returns what it is told."""

import torch
from detectron2.structures import Boxes, Instances

from sampling_free.evaluation import pictures

SIZE = pictures.MIN_SIDE


def found(boxes, scores, classes, size=(SIZE, SIZE)):
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor(scores, dtype=torch.float32)
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    return instances


class Detector(torch.nn.Module):
    """Finds a dog everywhere, and notes in which mode it was asked."""

    def forward(self, batch):
        assert not self.training and not torch.is_grad_enabled()
        (x,) = batch
        size = (x["height"], x["width"])
        return [{"instances": found([[40, 40, 200, 200]], [0.9], [1], size)}]
