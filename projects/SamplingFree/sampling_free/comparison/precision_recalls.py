"""Precision-recall curves of a run's detections, at the 101 recalls of COCO's AP."""

import contextlib
import io
import os

import numpy as np
from detectron2.evaluation import COCOEvaluator
from omegaconf import DictConfig

from ..data.datasets import load_dataset
from ..engine.trainer import LazyTrainer
from ..evaluation.best_threshold import precision_recall
from ..evaluation.matching import all_classes, matches_from_evaluator, read_detections
from ..evaluation.test_sets import first_test_set
from . import bootstrap

RECALLS = np.linspace(0, 1, 101)
DIGITS = 4


def interpolated(matches):
    """The best precision at this recall or a larger one, as in COCO's AP; 0 where none reaches it.

    Args:
        matches (Matches): of a class, or of all.

    Returns:
        dict[str, list[float]] or None: `recall` and `precision`, 101 each; None without objects.
    """
    if matches.num_ground_truth == 0:
        return None
    curve = precision_recall(*matches)
    # Recall never falls along the curve; the best precision from each point on.
    best = np.maximum.accumulate(curve["precision"][::-1])[::-1]
    found = np.searchsorted(curve["recall"], RECALLS, side="left")
    precision = np.append(best, 0.0)[found]
    return {"recall": RECALLS.round(2).tolist(), "precision": precision.round(DIGITS).tolist()}


def curves_of_classes(by_class) -> dict[str, dict]:
    """Interpolates the curve of each class.

    Args:
        by_class (dict[str, Matches]):

    Returns:
        Of :func:`interpolated`, for "all" and for each class that has objects.
    """
    curves = {"all": interpolated(all_classes(by_class))}
    curves.update({name: interpolated(matches) for name, matches in by_class.items()})
    return {name: curve for name, curve in curves.items() if curve}


class Detections:
    """Reads what the runs have detected; the ground truth of a test set is read once.

    Not for several threads: pycocotools is silenced by exchanging sys.stdout.
    """

    def __init__(self):
        self._evaluators = {}

    def precision_recall(self, cfg: DictConfig, folder: str) -> dict[str, dict] | None:
        """Computes the precision-recall curves of a run.

        Args:
            cfg: of the run.
            folder: of the run; inference/coco_instances_results.json is its detections.

        Returns:
            Of :func:`curves_of_classes`; None where the run has kept no
            detections or its evaluator is not Detectron2's COCOEvaluator.
        """
        path = detections_file(folder)
        evaluator = self._evaluator_of(cfg, path)
        if evaluator is None:
            return None
        with contextlib.redirect_stdout(io.StringIO()):
            return curves_of_classes(matches_from_evaluator(evaluator, detections_file=path))

    def bootstrap_ap(self, cfg, folder):
        """Computes the AP of a run on drawings of the test images.

        Args:
            cfg, folder: as of :meth:`precision_recall`.

        Returns:
            list[float or None] or None: AP of each drawing of the test images, in percent; None
            as of :meth:`precision_recall`, or where nothing was detected.
        """
        path = detections_file(folder)
        evaluator = self._evaluator_of(cfg, path)
        if evaluator is None:
            return None
        coco_gt = evaluator._coco_api
        found = bootstrap.evaluated(
            coco_gt, read_detections(path, coco_gt, evaluator._metadata.get("name"))
        )
        if found is None:
            return None
        values = bootstrap.bootstrap_ap(found, bootstrap.drawn_weights(len(coco_gt.getImgIds())))
        return [round(x, bootstrap.DIGITS) if np.isfinite(x) else None for x in values.tolist()]

    def _evaluator_of(self, cfg, path):
        if not os.path.exists(path) or not cfg.dataloader.get("evaluator"):
            return None
        key = str(cfg.dataloader.test.dataset)
        if key not in self._evaluators:
            with contextlib.redirect_stdout(io.StringIO()):
                self._evaluators[key] = self._evaluator(cfg)
        return self._evaluators[key]

    @staticmethod
    def _evaluator(cfg):
        cfg = first_test_set(cfg)
        load_dataset(cfg.dataloader.test.dataset, cfg.model, is_train=False)
        built = LazyTrainer.build_evaluator(cfg)
        for one in built if isinstance(built, list) else [built]:
            if isinstance(one, COCOEvaluator) and "annotations" in one._coco_api.dataset:
                return one
        return None


def detections_file(folder):
    """str: where Detectron2's COCOEvaluator leaves the detections of a run."""
    return os.path.join(folder, "inference", "coco_instances_results.json")
