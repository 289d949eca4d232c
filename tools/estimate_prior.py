#!/usr/bin/env python
"""Finds the prior of a config's training set, prints the table and writes the JSON.

    python tools/estimate_prior.py --config-file configs/bccd/retinanet_R_18_FPN.py

The file goes to train.output_dir/prior.json, or to --output. Training reads it with
train.prior_file=FILE instead of counting again, and refuses it once it is stale.
"""

import argparse
import os

from detectron2.config import instantiate
from detectron2.utils.logger import setup_logger

from sampling_free.cli import add_config_options, config_of, one_line_errors, parse
from sampling_free.counting.assignment import assignment_of
from sampling_free.counting.estimate import FILE_NAME, measure_prior
from sampling_free.diagnosis.report import YAML_KEYS
from sampling_free.utils.errors import require_writable
from sampling_free.utils.models import with_present_device


@one_line_errors
def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_options(parser)
    parser.add_argument("--output", metavar="FILE", help="default: train.output_dir/prior.json")
    parser.add_argument(
        "--num-workers",
        type=int,
        default=0,
        metavar="N",
        help="processes that count, 0 for this one alone (default); the numbers are the same",
    )
    args = parse(parser)
    setup_logger(name="sampling_free")

    cfg = with_present_device(config_of(args))
    path = args.output or os.path.join(cfg.train.output_dir, FILE_NAME)
    require_writable("--output", path)
    assignment = assignment_of(instantiate(cfg.model).to(cfg.train.device))
    estimate = measure_prior(cfg, assignment, args.num_workers)
    print(estimate.table())
    key = assignment.prior_key
    by_hand = f"{YAML_KEYS[key]} " if "cfg" in cfg else f"{key}="
    print(f"To set it by hand, in any trainer: {by_hand}{estimate.prior:.6g}")
    estimate.save(path)
    print(f"Written to {path}")


if __name__ == "__main__":
    main()
