"""A hook that measures gradients while a detector trains, and steers nothing."""

import logging
import os

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..utils.errors import BadInput
from ..utils.files import write_json
from ..utils.models import unwrapped
from .gradients import PARTS, measure
from .verdicts import collapse, explosion

logger = logging.getLogger(__name__)

FILE_NAME = "score_histograms.json"
PREFIX = "monitor"
# Measurements in a row that make a collapse: an R-CNN passes through one in its first iterations.
LASTING = 3


class ImbalanceMonitor(HookBase):
    """Every ``period`` iterations, and in the last, what the losses do to the heads.

    Before such a step one extra forward pass runs on the same batch, from the same state of the
    random generators, and everything that it changes is put back, so that the training is the same
    to the last bit; see :func:`.gradients.measure`. Works with any Detectron2
    trainer and with its own detectors. Of several processes each measures its share of the batch,
    the main one writes.

    The event storage gets, for each classification loss term "loss_NAME" and localization term
    "loss_LOC" (without "loss_", as Detectron2 prints what is called a loss on its console line),

    * monitor/outputs/NAME, .../foreground, .../background, monitor/outputs/LOC: L1 norm of the
      term's gradient at the head's outputs; monitor/ratio/NAME: the former over the latter;
    * monitor/features/...: likewise, L2 norm at the backbone's feature maps;
    * monitor/score/NAME/foreground and .../background: mean scores, of the right class and of all;
    * monitor/saturated/NAME: share of logits whose score is within 1.2e-7, float32's epsilon, of 0
      or 1;
    * monitor/r/NAME: the guide's r, where there is one.

    It warns of explosion and of collapse, in words and once for each head; of a collapse when it
    has lasted for three measurements.

    At the end ``score_histograms.json`` has the distribution of the scores in the last batch
    measured.
    """

    def __init__(self, period: int, output_dir: str = ""):
        """Checks the period.

        Args:
            period: iterations, from 1 up.
            output_dir: where the histograms go; "" writes none.

        Raises:
            BadInput: for another period.
        """
        if type(period) is not int or period < 1:
            raise BadInput(f"train.monitor_period={period!r}: give a whole number from 1 up")
        self.period = period
        self.output_dir = output_dir
        self.measurement = None
        self._measured_at = None
        self._handle = None
        self._warned = set()
        self._collapsed = {}  # loss term -> measurements in a row

    def before_train(self):
        model = unwrapped(self.trainer.model)
        self._handle = model.register_forward_pre_hook(self._before_forward)

    def after_train(self):
        if self._handle:  # none where a hook before this one has stopped the training
            self._handle.remove()
        if self.output_dir and self.measurement and comm.is_main_process():
            histograms = {head.cls_name: head.histograms for head in self.measurement.heads}
            write_json(os.path.join(self.output_dir, FILE_NAME), histograms, indent=None)

    def _before_forward(self, model, args):
        # It sees the batch that the trainer has read, whichever trainer that is.
        iteration = self.trainer.iter
        last = iteration == self.trainer.max_iter - 1
        if not model.training or self._measured_at == iteration:  # or it is measuring
            return
        if iteration % self.period and not last:
            return
        self._measured_at = iteration
        try:
            self.measurement = measure(model, *args)
        except FloatingPointError as e:  # the step itself will stop at that
            self._warn("not finite", f"Explosion at iteration {iteration}: {e}")
            return
        # Not smoothed: a median over iterations of which few were measured says nothing.
        self.trainer.storage.put_scalars(smoothing_hint=False, **scalars(self.measurement))
        for head in self.measurement.heads:
            cls, exploding, collapsed = head.cls_name, explosion(head), collapse(head)
            self._collapsed[cls] = self._collapsed.get(cls, 0) + 1 if collapsed else 0
            if exploding:
                self._warn(("explosion", cls), f"Explosion at iteration {iteration}: {exploding}")
            if self._collapsed[cls] >= LASTING:
                self._warn(("collapse", cls), f"Collapse at iteration {iteration}: {collapsed}")

    def _warn(self, what, line):
        """Once for each kind and head."""
        if what not in self._warned and comm.is_main_process():
            self._warned.add(what)
            logger.warning(line)


def scalars(measurement) -> dict[str, float]:
    """Names the numbers of a measurement for the event storage.

    Args:
        measurement (Measurement):

    Returns:
        By the names in :class:`ImbalanceMonitor`; without what there is none of.
    """
    numbers = {f"features/{name}": x for name, x in measurement.other_features.items()}
    for head in measurement.heads:
        cls = head.cls_name
        numbers.update({f"outputs/{name}": x for name, x in head.outputs.items()})
        numbers.update({f"features/{name}": x for name, x in head.features.items()})
        numbers.update({f"score/{cls}/{part}": head.scores.get(part) for part in PARTS})
        numbers[f"ratio/{cls}"] = head.gradient_ratio
        numbers[f"saturated/{cls}"] = head.saturated
        numbers[f"r/{cls}"] = head.ratio
    return {
        f"{PREFIX}/{name.replace('loss_', '', 1)}": x
        for name, x in numbers.items()
        if x is not None
    }
