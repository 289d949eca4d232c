#!/usr/bin/env python
"""Picks the score threshold of best F1, or of a wanted precision, on the test set of a config.

    python tools/pick_threshold.py --config-file configs/demo/retinanet.py \\
        train.init_checkpoint=output/demo/model_final.pth
    python tools/pick_threshold.py --config-file CONFIG --resume --precision 0.9
    python tools/pick_threshold.py --config-file CONFIG --detections FILE    # runs no model

Prints a table with each class at a threshold of its own and all classes at one. Writes
threshold.json, with the exact numbers, and threshold.png, the precision-recall curves. A threshold
is one of the detections' scores, to be given to demo.py --confidence-threshold; what the model
drops by its own test_score_thresh is not seen. Running one is an evaluation as of train_net.py
--eval-only, which writes into train.output_dir.
"""

import argparse
import os

from detectron2.evaluation import COCOEvaluator
from detectron2.utils.logger import setup_logger
from omegaconf import ListConfig
from torch import nn

from sampling_free.checkpoint.checkpointer import NamingCheckpointer
from sampling_free.cli import add_config_options, config_of, one_line_errors, parse
from sampling_free.data.datasets import load_dataset
from sampling_free.engine.trainer import LazyTrainer, evaluate_only
from sampling_free.evaluation.best_threshold import pick_threshold
from sampling_free.evaluation.matching import matches_from_evaluator
from sampling_free.evaluation.precision_recall_plot import plot_precision_recall
from sampling_free.evaluation.test_sets import first_test_set
from sampling_free.utils.errors import BadInput, require_writable_folder
from sampling_free.utils.lazy import target_of


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_options(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--resume", action="store_true", help="the last checkpoint of train.output_dir"
    )
    source.add_argument(
        "--detections",
        metavar="FILE",
        help="coco_instances_results.json of an earlier evaluation; runs no model",
    )
    parser.add_argument(
        "--iou", type=float, default=0.5, help="overlap of a correct box; default: 0.5"
    )
    parser.add_argument(
        "--precision", type=float, help="the lowest threshold that has it; default: best F1"
    )
    parser.add_argument("--output", metavar="FOLDER", help="default: train.output_dir")
    return parse(parser)


def keep_coco_evaluator(cfg, config_file):
    """Drop the evaluators of a config that are not Detectron2's COCOEvaluator.

    Raises:
        BadInput: nothing is left.
    """
    node = cfg.dataloader.get("evaluator")
    several = isinstance(node, ListConfig)
    nodes = list(node) if several else [node] if node else []
    targets = [target_of(one) for one in nodes]
    is_coco = [isinstance(t, type) and issubclass(t, COCOEvaluator) for t in targets]
    if not any(is_coco):
        what = ", ".join(getattr(t, "__name__", str(t)) for t in targets) or "missing"
        way_out = "dataloader.evaluator._target_=detectron2.evaluation.COCOEvaluator"
        if several or not nodes:
            way_out = (
                'dataloader.evaluator = L(COCOEvaluator)(dataset_name="${..test.dataset.names}")'
            )
        raise BadInput(
            f"{config_file}: dataloader.evaluator is {what}; thresholds are picked with a "
            f"COCOEvaluator: set {way_out}"
        )
    if several:  # in place, as relative references in a node depend on where it is
        node[:] = [one for one, keep in zip(nodes, is_coco) if keep]


def require_weights(cfg, resume):
    """Raise BadInput if neither ``train.init_checkpoint`` nor a last checkpoint is there."""
    folder = cfg.train.output_dir
    if resume and not NamingCheckpointer(nn.Identity(), folder).has_checkpoint():
        raise BadInput(f"--resume: no last checkpoint in train.output_dir={folder}; train first")
    if not resume and not cfg.train.init_checkpoint:
        raise BadInput(
            "no weights: give train.init_checkpoint=FILE, --resume for the last checkpoint in "
            f"{folder}, or --detections FILE of an earlier evaluation"
        )


@one_line_errors
def main():
    args = parse_args()
    for option in ("iou", "precision"):
        value = getattr(args, option)
        if value is not None and not 0 < value <= 1:
            raise BadInput(f"--{option} {value:g}: give a number above 0 and up to 1")
    setup_logger()  # Detectron2's, for the progress
    setup_logger(name="sampling_free")

    cfg = config_of(args)
    folder = args.output or cfg.train.output_dir
    require_writable_folder("--output", folder)
    if cfg.dataloader.get("evaluator"):
        cfg = first_test_set(cfg)
    keep_coco_evaluator(cfg, args.config_file)
    if not args.detections:
        require_weights(cfg, args.resume)
    load_dataset(cfg.dataloader.test.dataset, cfg.model, is_train=False)
    built = LazyTrainer.build_evaluator(cfg)
    evaluator = built if isinstance(built, COCOEvaluator) else built[0]
    if "annotations" not in evaluator._coco_api.dataset:
        raise BadInput(
            f"data set {evaluator._metadata.name}: has no annotations; a threshold is picked on "
            "a labeled set: set dataloader.test.dataset.names"
        )
    if not args.detections:
        cfg.train.expected_results = []  # a threshold is wanted, no verdict
        evaluate_only(cfg, resume=args.resume)
    by_class = matches_from_evaluator(evaluator, args.iou, args.detections)
    picked = pick_threshold(by_class, args.iou, args.precision)

    paths = [os.path.join(folder, f"threshold.{kind}") for kind in ("json", "png")]
    picked.save(paths[0])
    plot_precision_recall(by_class, picked, paths[1])
    print(picked.table())
    print(f"Written to {paths[0]} and {paths[1]}")


if __name__ == "__main__":
    main()
