"""One training step, with or without mixed precision, on CPU and GPU.

Detectron2's ``AMPTrainer`` asserts CUDA and, in v0.6, knows no bfloat16.

Losses and gradients are looked at before the weights are changed. Where one is not finite the run
stops with a line that says so, or leaves the batch out: then weights, optimizer, guide, statistics
of normalization and the gradient scaler stay as they were, and the schedule goes on.
"""

import functools
import logging
import time

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from ..config.load import DTYPES
from ..method.guided_loss import sum_over_processes
from ..utils.autocast import training_autocast
from ..utils.errors import NonFiniteBatch, NonFiniteLoss, naming_non_finite
from ..utils.models import ForwardState, unwrapped

logger = logging.getLogger(__name__)

# Of float16's gradient scaler, which halves it at each overflow; fairseq gives up there too.
MIN_SCALE = 1e-4
MOST_NAMED = 3  # parameters in a line


class PrecisionTrainer(SimpleTrainer):
    """``SimpleTrainer`` with autocast; float16 comes with a gradient scaler.

    Attributes:
        num_skipped, num_skipped_in_a_row (int): batches left out, all and the latest. They are in
            the checkpoint.
        wants_to_stop (callable): says whether this process was asked to end the run.
        must_stop (bool): whether one of the processes had been, as of the newest step; the same on
            all of them.
    """

    def __init__(
        self,
        model,
        data_loader,
        optimizer,
        device: str,
        dtype: str | None = None,
        skip_nonfinite: int = 0,
    ):
        """Wraps the model, its loader and its optimizer.

        Args:
            model, data_loader, optimizer: as in ``SimpleTrainer``.
            device: "cuda" or "cpu".
            dtype: a key of ``DTYPES``, or None for full precision.
            skip_nonfinite: so many batches in a row, whose loss or gradient is not finite,
                are left out before the run stops.
        """
        super().__init__(model, data_loader, optimizer)
        device = torch.device(device).type
        self.grad_scaler = torch.amp.GradScaler(device, enabled=dtype == "float16")
        self.autocast = functools.partial(training_autocast, device, DTYPES.get(dtype))
        self.skip_nonfinite = skip_nonfinite
        self.num_skipped = self.num_skipped_in_a_row = 0
        self.wants_to_stop = lambda: False
        self.must_stop = False

    def run_step(self):
        assert self.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        bare = unwrapped(self.model)
        before = ForwardState(bare) if self.skip_nonfinite else None
        try:
            losses = self._backpropagate(data)
        except NonFiniteBatch as e:
            self._skip(e)
            before.restore()
            return
        self.num_skipped_in_a_row = 0
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _backpropagate(self, data):
        """The losses by name, after their backward pass.

        Raises:
            NonFiniteLoss: they or their gradients are not finite.
        """
        try:
            with self.autocast(), naming_non_finite():
                losses = self.model(data)
                total = sum(losses.values())
        except FloatingPointError as e:  # of Detectron2's RPN, or of a detector here
            what = str(e) if "not finite" in str(e) else "the proposals are not finite"
            # Other processes are amid their step, and would wait for this one in vain.
            kind = NonFiniteBatch if comm.get_world_size() == 1 else NonFiniteLoss
            raise kind(self._describe({}, _files(data), what)) from e
        self.optimizer.zero_grad()
        self.grad_scaler.scale(total).backward()
        self.after_backward()
        self._require_finite(losses, total, data)
        return losses

    def _require_finite(self, losses, total, data):
        size = total.detach().new_zeros(()) if self.grad_scaler.is_enabled() else self._size()
        unit = self.grad_scaler.scale(torch.ones_like(size))
        stop = torch.full_like(size, self.wants_to_stop())
        flags, num_processes = sum_over_processes(~total.isfinite(), ~size.isfinite(), unit, stop)
        bad_loss, bad_size, scales, self.must_stop = flags.tolist()  # one wait for a GPU
        scale, kind, what = scales / num_processes, NonFiniteBatch, None
        if bad_loss:
            what = "the loss is not finite"
        elif bad_size:
            what = self._bad_gradients()
        elif scale < MIN_SCALE:
            kind = NonFiniteLoss
            what = f"the gradients are not finite at any scale: float16's fell to {scale:.1e}"
        if what:
            is_mine = not (bad_loss and total.isfinite())
            told = comm.all_gather((_terms(losses), _files(data)) if is_mine else None)
            told = [x for x in told if x]
            files = [file for _, files in told for file in files]
            raise kind(self._describe(told[0][0], files, what))

    def _size(self):
        """Tensor: not finite if a gradient is not, or if its square is beyond float32."""
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        gradients = [p.grad for p in parameters if p.grad is not None]
        return torch.stack(torch._foreach_norm(gradients)).sum()

    def _bad_gradients(self):
        """str or None: which gradients are not finite."""
        found = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        bad = [n.removeprefix("module.") for n, g in found.items() if not g.isfinite().all()]
        if not bad:
            return None
        names = ", ".join(bad[:MOST_NAMED]) + (", ..." if bad[MOST_NAMED:] else "")
        return f"the gradient is not finite in {len(bad)} of {len(found)} parameters ({names})"

    def _skip(self, error):
        """Counts a batch that is left out; raises the error if it is one too many in a row."""
        if self.num_skipped_in_a_row >= self.skip_nonfinite:  # resumed, it may be more
            raise NonFiniteLoss(f"{error}; {self._way_out()}") from error
        self.num_skipped += 1
        self.num_skipped_in_a_row += 1
        get_event_storage().put_scalar("skipped_batches", self.num_skipped, smoothing_hint=False)
        logger.warning(
            f"Skipped: {error}; {self.num_skipped_in_a_row} in a row, at most "
            f"train.skip_nonfinite={self.skip_nonfinite}"
        )

    def _way_out(self):
        if self.num_skipped_in_a_row:
            return (
                f"the {self.num_skipped_in_a_row} before it were skipped, see train.skip_nonfinite"
            )
        return "train.skip_nonfinite=N skips up to N such batches in a row"

    def after_backward(self):
        """v0.6's ``SimpleTrainer`` has no such hook point."""
        if hasattr(SimpleTrainer, "after_backward"):
            super().after_backward()

    def _describe(self, terms, files, what):
        latest = get_event_storage().latest()
        guide = {k: v for k, (v, _) in latest.items() if "guide/" in k}
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        return (
            f"{what} at iteration {self.iter}: {terms}, {guide}, learning rate "
            f"{rate:.3g}, images {files}; lower the learning rate or look at these images"
        )

    def state_dict(self):
        return {
            **super().state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
            "skipped": {"all": self.num_skipped, "in_a_row": self.num_skipped_in_a_row},
        }

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        skipped = state_dict.get("skipped", {"all": 0, "in_a_row": 0})
        self.num_skipped, self.num_skipped_in_a_row = skipped["all"], skipped["in_a_row"]


def _terms(losses):
    return {name: value.item() for name, value in losses.items()}


def _files(data):
    return [record.get("file_name", "?") for record in data]
