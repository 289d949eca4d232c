"""What the guide did, for Detectron2's event storage, and a warning where it had none."""

import logging

import torch

from .guided_loss import num_processes

logger = logging.getLogger(__name__)


class GuideLog:
    """Writes the guide's numbers to Detectron2's event storage and watches for empty batches.

    Attributes:
        num_batches, num_empty (int): batches seen, and those without a foreground sample on any
            process. Plain numbers; the trainer keeps them in the checkpoint.
    """

    WARN_ABOVE = 0.2
    WARN_AFTER = 50  # batches: fewer say little about a fifth

    def __init__(self):
        self.num_batches = 0
        self.num_empty = 0
        self.warned = False

    def write(self, losses, storage, num_images):
        """
        Args:
            losses (GuidedLosses):
            storage (EventStorage): gets guide/r, guide/loss_cls_raw, guide/empty_batches (a
                running count) and num_pos_anchors (per image, as Detectron2 logs it).
            num_images (int): images of this process.
        """
        numbers = losses.ratio, losses.loss_cls_raw, losses.num_foreground
        ratio, loss_cls_raw, num_foreground = torch.stack(
            [x.double() for x in numbers]
        ).tolist()  # one synchronisation with the GPU
        self.num_batches += 1
        self.num_empty += num_foreground == 0
        storage.put_scalars(
            **{
                "guide/r": ratio,
                "guide/loss_cls_raw": loss_cls_raw,
                "num_pos_anchors": num_foreground / (num_images * num_processes()),
            }
        )
        # A running count: the writers' median would halve it.
        storage.put_scalar("guide/empty_batches", self.num_empty, smoothing_hint=False)
        if self.num_batches >= self.WARN_AFTER and not self.warned:
            share = self.num_empty / self.num_batches
            if share > self.WARN_ABOVE:
                self.warned = True
                logger.warning(
                    f"{share:.0%} of {self.num_batches} batches had no foreground sample and "
                    "taught nothing: use larger batches, or filter_empty=True in "
                    "dataloader.train.dataset"
                )
