"""A trainer whose run may end at any moment and goes on as if it had not: ``ResumableTrainer``."""

import contextlib
import logging
import signal

import numpy as np
import torch
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, hooks
from detectron2.utils import comm

from ..utils.errors import BadInput, disk_fault, disk_line
from ..utils.models import unwrapped
from ..utils.signals import Interrupted, Interruption
from .hooks import KeepingCheckpointer, ResumableWriter
from .lr_scaling import warn_if_other
from .prior_init import PriorInit
from .training_state import put_scalars, running_numbers, scalars_of, set_running_numbers

logger = logging.getLogger(__name__)


class ResumableTrainer(DefaultTrainer):
    """Detectron2's loop, whose checkpoints have all that a run needs to go on to the last bit.

    A subclass sets ``cfg`` (of a LazyConfig), ``max_iter``, ``checkpointer`` and ``_trainer``, a
    :class:`sampling_free.engine.step.PrecisionTrainer`, and registers hooks.

    Attributes:
        interruption (Interruption): of this run.
        is_in_hooks (bool): whether hooks have still to do something in this iteration. Detectron2
            writes its checkpoint before it evaluates.
        goes_on (bool): whether the run was resumed, be it from nothing.
        end_before (int or None): where a shorter run ended that is made longer.
    """

    def __init__(self):
        TrainerBase.__init__(self)
        self.interruption = Interruption()
        self.is_in_hooks = False
        self.goes_on = False
        self.end_before = None
        self._resumed = {}  # of the trainer's part of the checkpoint

    def resume_or_load(self, resume=True):
        """Resumes the last checkpoint of ``train.output_dir``, or loads ``init_checkpoint``."""
        self.goes_on = resume
        resumes = resume and self.checkpointer.has_checkpoint()
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.checkpointer.resume_or_load(self.cfg.train.init_checkpoint, resume=resume)
        if resumes:
            warn_if_other(rates, self.optimizer)
            self.start_iter = self.iter + 1
            self._check_max_iter()
            if hasattr(self.data_loader, "start_iter"):
                self.data_loader.start_iter = self.start_iter

    def _check_max_iter(self):
        if self.start_iter > self.max_iter:
            raise BadInput(
                f"train.max_iter={self.max_iter}: the checkpoint to resume from, of "
                f"{self.cfg.train.output_dir}, has {self.start_iter} iterations already; give "
                "more, or evaluate it by --eval-only --resume"
            )
        before = self._resumed.get("max_iter", self.max_iter)
        end = self._resumed.get("max_iter", self.start_iter)
        self.end_before = end if end < self.max_iter else None
        if before != self.max_iter:
            logger.warning(
                f"Resumed with train.max_iter={self.max_iter}, begun with {before}: from here on "
                f"the learning rate is that of a schedule of {self.max_iter} iterations."
            )

    def run_step(self):
        seed_step(self.cfg.train.seed, comm.get_rank(), self.iter)
        super().run_step()
        if self._trainer.must_stop and not self.interruption.number:
            self.interruption.number = signal.SIGTERM  # that of another process

    def train(self):
        """Trains to ``max_iter``.

        Raises:
            Interrupted: by SIGTERM or Ctrl-C, after the iteration; there is a checkpoint of it.
            BadInput: a disk is full.
        """
        try:
            with self.interruption:
                TrainerBase.train(self, self.start_iter, self.max_iter)
        except Interrupted as e:
            line = f"interrupted by {signal.Signals(e.number).name}{self._way_on()}"
            raise Interrupted(e.number, line if comm.is_main_process() else "") from None
        except Exception as e:
            if fault := disk_fault(e):
                line = disk_line(fault, f"train.output_dir={self.cfg.train.output_dir}")
                raise BadInput(f"{line}{self._way_on()}") from None
            raise

    def _way_on(self):
        if not self.checkpointer.has_checkpoint():
            return ""
        return f"; --resume goes on from {self.checkpointer.get_checkpoint_file()}"

    def before_train(self):
        put_scalars(self.storage, self._resumed)
        self.storage.iter = self.start_iter
        with self.interruption.at_once():
            super().before_train()
            self._finish_iteration()

    def _finish_iteration(self):
        """What hooks had still to do in the iteration of the checkpoint that is resumed."""
        last = self.start_iter - 1
        ends_earlier = self.start_iter == self.max_iter < self._resumed.get("max_iter", 0)
        if last < 0 or not (self._resumed.get("is_in_hooks", True) or ends_earlier):
            return
        self.iter = self.storage.iter = last
        self._call_after_step(
            KeepingCheckpointer, hooks.EvalHook, hooks.BestCheckpointer, ResumableWriter
        )
        self.iter = self.storage.iter = self.start_iter

    def _call_after_step(self, *kinds):
        self.is_in_hooks = True
        for hook in self._hooks:
            if isinstance(hook, kinds):
                hook.after_step()
        self.is_in_hooks = False

    def after_step(self):
        try:
            self._call_after_step(HookBase)
            if self._trainer.must_stop and self.iter + 1 < self.max_iter:
                raise Interrupted(self.interruption.number)
        except Interrupted:
            self._save()
            if self._trainer.must_stop:  # else others may be amid an evaluation
                comm.synchronize()  # the first process that ends ends the others
            raise

    def _save(self):
        self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)

    def after_train(self):
        ended = self.iter >= self.max_iter
        # Detectron2 counts on when a finished run is resumed.
        self.iter = min(self.iter, self.max_iter)
        with self.interruption.at_once() if ended else contextlib.nullcontext():
            super().after_train()

    def state_dict(self):
        # v0.6's DefaultTrainer keeps no optimizer state; no version keeps running numbers, nor
        # the last scalars.
        state = TrainerBase.state_dict(self)
        state.get("hooks", {}).pop(PriorInit.__qualname__, None)  # has its own entry
        return {
            **state,
            # After the last iteration Detectron2 counts on, for an evaluation that is the best.
            "iteration": min(self.iter, self.max_iter - 1),
            "max_iter": self.max_iter,
            "is_in_hooks": self.is_in_hooks,
            "_trainer": self._trainer.state_dict(),
            "running": running_numbers(self._bare_model()),
            **(scalars_of(self.storage) if hasattr(self, "storage") else {}),
        }

    def load_state_dict(self, state_dict):
        TrainerBase.load_state_dict(self, state_dict)
        if "max_iter" not in state_dict:  # of an earlier version, which counted on after the last
            newest = [pairs[-1][1] for pairs in state_dict.get("scalars", {}).values()]
            self.iter = min(self.iter, max(newest, default=self.iter))
        self._trainer.load_state_dict(state_dict["_trainer"])
        set_running_numbers(self._bare_model(), state_dict.get("running", {}))
        self._resumed = {k: v for k, v in state_dict.items() if k not in ("_trainer", "hooks")}

    def _bare_model(self):
        return unwrapped(self.model)


def seed_step(seed, rank, iteration):
    """Makes what a step draws (samples, dropout) the same after a resume; -1 seeds nothing."""
    if seed >= 0:
        words = np.random.SeedSequence((seed, rank, iteration))
        torch.manual_seed(int(words.generate_state(1)[0]))
