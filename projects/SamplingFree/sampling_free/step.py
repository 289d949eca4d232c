"""One training step, with or without mixed precision, on CPU and GPU.

Detectron2's ``AMPTrainer`` asserts CUDA and, in v0.6, knows no bfloat16.
"""

import contextlib
import time

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import get_event_storage

from .errors import NonFiniteLoss, naming_non_finite

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class PrecisionTrainer(SimpleTrainer):
    """``SimpleTrainer`` with autocast; float16 comes with a gradient scaler."""

    def __init__(self, model, data_loader, optimizer, device, dtype=None):
        """
        Args:
            model, data_loader, optimizer: as in ``SimpleTrainer``.
            device (str): "cuda" or "cpu".
            dtype (str or None): a key of ``DTYPES``, or None for full precision.
        """
        super().__init__(model, data_loader, optimizer)
        device = torch.device(device).type
        self.grad_scaler = torch.amp.GradScaler(device, enabled=dtype == "float16")
        self.autocast = contextlib.nullcontext
        if dtype is not None:
            self.autocast = lambda: torch.autocast(device, dtype=DTYPES[dtype])

    def run_step(self):
        assert self.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        try:
            with self.autocast(), naming_non_finite():
                losses = self.model(data)
                total = sum(losses.values())
        except FloatingPointError as e:  # of Detectron2's RPN, or of a detector here
            what = str(e) if "not finite" in str(e) else "the proposals are not finite"
            raise NonFiniteLoss(self._describe({}, data, what)) from e
        self.optimizer.zero_grad()
        self.grad_scaler.scale(total).backward()
        self.after_backward()
        if not torch.isfinite(total):
            raise NonFiniteLoss(self._describe(losses, data, "the loss is not finite"))
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def after_backward(self):
        """v0.6's ``SimpleTrainer`` has no such hook point."""
        if hasattr(SimpleTrainer, "after_backward"):
            super().after_backward()

    def _describe(self, losses, data, what):
        terms = {name: value.item() for name, value in losses.items()}
        latest = get_event_storage().latest()
        guide = {k: v for k, (v, _) in latest.items() if "guide/" in k}
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        files = [record.get("file_name", "?") for record in data]
        return (
            f"{what} at iteration {self.iter}: {terms}, {guide}, learning rate "
            f"{rate:.3g}, images {files}; lower the learning rate or look at these images"
        )

    def state_dict(self):
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
