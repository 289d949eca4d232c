#!/usr/bin/env python
"""Looks at the imbalance of a config's training set before the training, and says what to expect.

    python tools/check_imbalance.py --config-file configs/bccd/retinanet_R_18_FPN_focal.py
    python tools/check_imbalance.py --config-file COCO-Detection/retinanet_R_50_FPN_1x.yaml \
        --json imbalance.json SOLVER.IMS_PER_BATCH 2

Any detector that this project knows, stock or sampling-free, LazyConfig or YAML. Counts what is
foreground to this detector's anchors (on --images of the training set), passes one batch
through the real model, measures the gradient of each loss, and draws it all. Nothing is trained.
"""

import argparse
import os

from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from sampling_free.cli import add_config_options, config_of, one_line_errors, parse
from sampling_free.diagnosis.check import check_imbalance
from sampling_free.diagnosis.plot import plot_imbalance
from sampling_free.utils.errors import BadInput, require_writable
from sampling_free.utils.files import write_json
from sampling_free.utils.models import with_present_device


@one_line_errors
def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_options(parser)
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="images to count at most (default: all, or 200 where counting is slow)",
    )
    parser.add_argument("--json", metavar="FILE", help="write all numbers there, too")
    parser.add_argument("--picture", metavar="PNG", help="default: train.output_dir/imbalance.png")
    args = parse(parser)
    setup_logger(name="sampling_free")

    for option, path in (("--json", args.json), ("--picture", args.picture)):
        require_writable(option, path)
    if args.picture and not args.picture.endswith(".png"):
        raise BadInput(f"--picture {args.picture}: is drawn as PNG; give a name that ends on .png")
    cfg = with_present_device(config_of(args))
    if cfg.train.seed >= 0:
        seed_all_rng(cfg.train.seed)
    picture = args.picture or os.path.join(cfg.train.output_dir, "imbalance.png")
    require_writable("--picture", picture)
    found = check_imbalance(cfg, args.config_file, args.images)
    print(found.text())
    plot_imbalance(found, picture)
    print(f"\nPicture: {picture}")
    if args.json:
        write_json(args.json, found.as_json())
        print(f"Numbers: {args.json}")


if __name__ == "__main__":
    main()
