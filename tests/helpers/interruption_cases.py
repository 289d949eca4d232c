"""Interrupted runs and what they are compared with."""

import os
import signal

from sampling_free.engine.trainer import LazyTrainer

LONG = ["train.max_iter=9", "train.log_period=2", "train.eval_period=4"]


BEST = ["train.best_metric=bbox/AP"]


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


class Signalled(LazyTrainer):
    """Gets a signal in the step of an iteration, in its evaluation, or before the first one."""

    where, at, number = "step", 5, signal.SIGTERM

    def run_step(self):
        if (self.where, self.at) == ("step", self.iter):
            send(self.number)
        super().run_step()

    def test(self, cfg, model):
        if (self.where, self.at) == ("evaluation", self.iter):
            send(self.number)
            raise AssertionError("not reached")
        return LazyTrainer.test(cfg, model)

    def before_step(self):
        # The hooks of the iteration before are done, and its checkpoint is written.
        if (self.where, self.at) == ("between", self.iter):
            send(self.number)
        super().before_step()
