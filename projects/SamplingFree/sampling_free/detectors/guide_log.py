"""What the guide did, for Detectron2's event storage, and a warning where it had none."""

import logging
import math

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor

from ..method.guided_loss import GuidedLosses, num_processes

logger = logging.getLogger(__name__)


class GuideLog:
    """Writes the guide's numbers to Detectron2's event storage and watches for empty batches.

    Attributes:
        num_batches, num_empty (int): batches seen, and those without a foreground sample on any
            process. Plain numbers; the trainer keeps them in the checkpoint.
        ratio (float or None): r of the newest batch, finite or not.
    """

    WARN_ABOVE = 0.2
    WARN_AFTER = 50  # batches: fewer say little about a fifth

    def __init__(self, name: str = ""):
        """Starts a log; ``name`` is that of the head where a detector has several ("rpn")."""
        self.prefix = f"guide/{name}/" if name else "guide/"
        self.num_batches = 0
        self.num_empty = 0
        self.ratio = None
        self.warned = False

    def write(
        self, losses: GuidedLosses, storage: EventStorage, scalars: dict[str, Tensor]
    ) -> None:
        """Writes r and the raw classification loss to the event storage.

        Args:
            losses: of this batch.
            storage: gets guide/r, guide/loss_cls_raw and guide/empty_batches, a running count,
                with the head's name after guide/. What is not finite is left out: the step stops or
                is skipped, and the writers' median would be lost for 20 more.
            scalars: written besides, under their own names.
        """
        numbers = losses.ratio, losses.loss_cls_raw, losses.num_foreground, *scalars.values()
        self.ratio, loss_cls_raw, num_foreground, *values = torch.stack(
            [x.double() for x in numbers]
        ).tolist()  # one synchronization with the GPU
        self.num_batches += 1
        self.num_empty += num_foreground == 0
        named = {
            f"{self.prefix}r": self.ratio,
            f"{self.prefix}loss_cls_raw": loss_cls_raw,
            **dict(zip(scalars, values)),
        }
        storage.put_scalars(**{name: x for name, x in named.items() if math.isfinite(x)})
        # A running count: the writers' median would halve it.
        storage.put_scalar(f"{self.prefix}empty_batches", self.num_empty, smoothing_hint=False)
        if self.num_batches >= self.WARN_AFTER and not self.warned:
            share = self.num_empty / self.num_batches
            if share > self.WARN_ABOVE:
                self.warned = True
                logger.warning(
                    f"{self.prefix}empty_batches: {share:.0%} of {self.num_batches} batches had "
                    "no foreground sample and taught nothing: use larger batches, or "
                    "filter_empty=True in dataloader.train.dataset"
                )


def per_image(num: Tensor, num_images: int) -> Tensor:
    """Divides a count over all processes by the images of all processes."""
    return num / (num_images * num_processes())
