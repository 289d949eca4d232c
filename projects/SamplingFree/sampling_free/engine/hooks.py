"""Hooks that Detectron2 lacks."""

import glob
import logging
import math
import os
from collections.abc import Callable

import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from detectron2.engine.hooks import BestCheckpointer, PeriodicCheckpointer, PeriodicWriter
from detectron2.utils.logger import log_first_n

from ..data.datasets import dataset_names, load_dataset
from ..evaluation import best_threshold
from ..evaluation.test_sets import first_test_set, metric_of
from ..utils.models import unwrapped
from .metrics_file import cut, put_aside

logger = logging.getLogger(__name__)


class StatefulBestCheckpointer(BestCheckpointer):
    """Detectron2's, but a resumed run remembers the best score so far, if it is of its metric."""

    def _best_checking(self):
        value, _ = self.trainer.storage.latest().get(self._val_metric, (0, 0))
        if not math.isfinite(value):
            log_first_n(
                logging.WARNING,
                f"train.best_metric={self._val_metric} is {value}, as that of a class is of which "
                "the evaluated set has no object: no model is the best by it; choose another",
                name=__name__,
                key="message",
            )
        super()._best_checking()

    def state_dict(self):
        best = self.best_metric, self.best_iter
        storage = getattr(self.trainer, "storage", None)
        latest = storage.latest().get(self._val_metric) if storage else None
        # The checkpoint of a new best score is written before the score is taken over. One from
        # before the resume has had its turn, or was not asked for then.
        if (
            latest
            and latest[1] >= self.trainer.start_iter - 1
            and math.isfinite(latest[0])
            and (best[0] is None or self._compare(latest[0], best[0]))
        ):
            best = latest
        return {"metric": self._val_metric, "best_metric": best[0], "best_iter": best[1]}

    def load_state_dict(self, state):
        before = state.get("metric", self._val_metric)  # earlier versions kept no name
        if before == self._val_metric:
            self.best_metric, self.best_iter = state["best_metric"], state["best_iter"]
        else:
            logger.warning(
                f"Resumed with train.best_metric={self._val_metric}, begun with {before}: the best "
                "model is looked for anew from here on."
            )


class KeepingCheckpointer(PeriodicCheckpointer):
    """Detectron2's, but ``max_to_keep`` holds for what was saved before a resume, too."""

    def before_train(self):
        super().before_train()
        if self.max_to_keep and self.trainer.start_iter > 0:
            folder = glob.escape(self.checkpointer.save_dir)
            saved = sorted(glob.glob(os.path.join(folder, f"{self.file_prefix}_[0-9]*.pth")))
            newest = os.path.join(
                self.checkpointer.save_dir,
                f"{self.file_prefix}_{self.trainer.start_iter - 1:07d}.pth",
            )
            # Later ones, after a torn one, are written again.
            saved = [path for path in saved if path <= newest]
            for path in saved[: -self.max_to_keep]:
                os.remove(path)
            self.recent_checkpoints = saved[-self.max_to_keep :]

    def after_step(self):
        trainer = self.trainer
        if trainer.iter >= trainer.start_iter:
            super().after_step()
        elif trainer.iter == trainer.max_iter - 1:  # resumed; it may have been killed before this
            self.checkpointer.save(f"{self.file_prefix}_final", iteration=trainer.iter)


class ResumableWriter(PeriodicWriter):
    """Detectron2's, but a resumed run goes on with metrics.json as if it had never ended.

    Attributes:
        newest (int): the newest iteration that its files have; -1 without one.
    """

    def __init__(self, build_writers: Callable, metrics: str, period: int):
        """Opens nothing yet.

        Args:
            build_writers: () -> list[EventWriter]; called when the training starts, as
                they open their files.
            metrics: path of metrics.json.
            period: in iterations.
        """
        super().__init__([], period)
        self._build_writers = build_writers
        self._metrics = metrics
        self.newest = -1

    def before_train(self):
        trainer = self.trainer
        if trainer.goes_on and trainer.start_iter == 0:
            put_aside(self._metrics)
        elif trainer.goes_on:
            self.newest = cut(self._metrics, trainer.start_iter, trainer.end_before)
        self._writers = self._build_writers()
        for writer in self._writers:
            if isinstance(getattr(writer, "_last_write", None), int):  # not the printer
                writer._last_write = self.newest

    def after_train(self):
        # What stopped between two writes is in the checkpoint, and written in its turn; an
        # iteration whose evaluation failed would pass for evaluated.
        trainer = self.trainer
        if trainer.iter < trainer.max_iter and (trainer.interruption.number or trainer.is_in_hooks):
            for writer in self._writers:
                writer.close()
        else:
            super().after_train()


class PeakMemory(HookBase):
    """On a GPU: the most memory that tensors took so far, as `max_mem_mb` (MiB) in metrics.json."""

    def after_step(self):
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated() / 2**20
            self.trainer.storage.put_scalar("max_mem_mb", peak, smoothing_hint=False)


class ShortHistories(HookBase):
    """Forgets old values of the event storage, of which Detectron2 keeps a million of each name.

    That is about 90 bytes a value, 100 MB in 90,000 iterations. No writer looks further back than
    ``KEPT`` values; averages over the whole training are kept apart from them.
    """

    KEPT = 1000  # the longest look back: Detectron2's estimate of the time left

    def after_step(self):
        if (self.trainer.iter + 1) % self.KEPT == 0:
            for history in self.trainer.storage.histories().values():
                del history.values()[: -self.KEPT]


class FinalPictures(HookBase):
    """After the last iteration: detections beside the ground truth, and a plot of the losses."""

    def __init__(self, cfg):
        """Args: cfg (DictConfig): ``train.num_pictures`` says how many; 0 for none."""
        self.cfg = cfg

    def after_train(self):
        train = self.cfg.train
        if self.trainer.iter < self.trainer.max_iter or train.num_pictures <= 0:
            return
        try:
            from ..evaluation.pictures import save_prediction_pictures
            from .training_plot import plot_training
        except ImportError as e:  # Detectron2 draws with OpenCV, which it does not install
            logger.warning(f"No pictures: {e}; pip install opencv-python-headless")
            return

        plot = os.path.join(train.output_dir, "training.png")
        metrics = os.path.join(train.output_dir, "metrics.json")
        plot_training(metrics, plot)
        threshold = best_threshold.FALLBACK_THRESHOLD
        threshold_file = os.path.join(train.output_dir, best_threshold.FILE_NAME)
        if os.path.isfile(threshold_file):
            threshold = best_threshold.BestThreshold.load(threshold_file).display_threshold
        if "test" not in self.cfg.dataloader:
            logger.info(f"Losses and r: {plot}. No pictures: the config has no test set.")
            return
        node = first_test_set(self.cfg).dataloader.test
        paths = save_prediction_pictures(
            unwrapped(self.trainer.model),
            load_dataset(node.dataset, self.cfg.model, is_train=False),
            instantiate(node.mapper),
            MetadataCatalog.get((dataset_names(node.dataset) or ["unnamed"])[0]),
            threshold,
            os.path.join(train.output_dir, "pictures"),
            max_images=train.num_pictures,
        )
        prior = os.path.join(train.output_dir, "prior.json")
        scores = {k: v for k, (v, _) in self.trainer.storage.latest().items()}
        keys = [metric_of(self.cfg, key) for key in ("bbox/AP", "bbox/AP50")]
        reached = ", ".join(f"{k} {scores[k]:.1f}" for k in keys if k in scores)
        lines = [
            f"Reached {reached or 'the end, without an evaluation'}. Scores from {threshold:.3g} "
            "up are worth showing (best F1).",
            f"  pictures      {paths[-1]}",
            f"  losses and r  {plot}",
            f"  numbers       {metrics} (TensorBoard: tensorboard --logdir {train.output_dir})",
            f"  prior         {prior}" if os.path.isfile(prior) else None,
            f"  model         {os.path.join(train.output_dir, 'model_final.pth')}",
        ]
        logger.info("\n".join(filter(None, lines)))
