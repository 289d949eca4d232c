#!/usr/bin/env python
"""Trains configs side by side: learning rate chosen on a validation split, then one final run each.

    python tools/compare.py --configs configs/bccd/retinanet_R_18_FPN*.py \
        --rates 0.02 0.04 0.08 --choose train val --final trainval test --output results/bccd.json

All configs get the same data, schedule, seed and test settings. Every run is a call of
train_net.py in a process of its own with one thread, and one record in the output; a second call
does only what is missing. tools/render_tables.py puts the records into the documentation.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time

import torch
import torchvision
from detectron2 import __version__ as detectron2_version
from tqdm import tqdm

from sampling_free.cli import one_line_errors
from sampling_free.errors import BadInput

METRICS = ("bbox/AP", "bbox/AP50", "bbox/AP75")


def overrides(config, rate, seed, splits, output_dir):
    """The overrides of train_net.py for one run."""
    train, test = splits
    prefix = "dataloader.{}.dataset.names.{}={}"
    return [
        f"optimizer.lr={rate}",
        f"train.seed={seed}",
        "train.num_pictures=0",
        f"train.output_dir={output_dir}",
        prefix.format("train", "split", train),
        prefix.format("train", "name", f"compare_{train}"),
        prefix.format("test", "split", test),
        prefix.format("test", "name", f"compare_{test}"),
    ]


def run(config, rate, seed, splits, folder):
    """Trains and evaluates once.

    Returns:
        dict: what was run, on what, and METRICS in percent.
    """
    name = os.path.splitext(os.path.basename(config))[0]
    output_dir = os.path.join(folder, f"{name}_lr{rate}_seed{seed}_{splits[0]}_{splits[1]}")
    command = [sys.executable, "train_net.py", "--config-file", config]
    command += overrides(config, rate, seed, splits, output_dir)
    os.makedirs(output_dir, exist_ok=True)
    start = time.perf_counter()
    with open(os.path.join(output_dir, "output.txt"), "w") as out:
        code = subprocess.call(
            command, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    if code not in (0, 2):
        raise BadInput(f"{config}: training failed with exit code {code}; see {out.name}")
    record = {
        "config": config,
        "learning_rate": rate,
        "seed": seed,
        "train_split": splits[0],
        "test_split": splits[1],
        "minutes": (time.perf_counter() - start) / 60,
        "device": f"CPU, one thread ({platform.machine()})",
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "detectron2": detectron2_version,
    }
    if code == 2:  # a loss that is not finite is a result
        with open(out.name) as f:
            record["failed"] = [line for line in f if line.startswith("error:")][-1].strip()
        if "not finite" not in record["failed"]:
            raise BadInput(f"{config}: {record['failed']}")
    else:
        with open(os.path.join(output_dir, "metrics.json")) as f:
            last = [json.loads(line) for line in f if "bbox/AP" in line][-1]
        record.update({key: last[key] for key in METRICS})
    return record


class Records:
    """A list of records in a JSON file; the file is whole at any moment."""

    def __init__(self, path):
        self.path = path
        self.rows = []
        if os.path.exists(path):
            with open(path) as f:
                self.rows = json.load(f)

    def find(self, **wanted):
        return [r for r in self.rows if all(r.get(k) == v for k, v in wanted.items())]

    def get(self, config, rate, seed, splits, folder):
        """The record of a run, made now if it is not there yet."""
        wanted = dict(config=config, learning_rate=rate, seed=seed)
        wanted.update(train_split=splits[0], test_split=splits[1])
        if not self.find(**wanted):
            record = run(config, rate, seed, splits, folder)
            self.rows.append(record)
            os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
            with open(f"{self.path}.tmp", "w") as f:
                json.dump(self.rows, f, indent=1)
                f.write("\n")
            os.replace(f"{self.path}.tmp", self.path)
        return self.find(**wanted)[0]


@one_line_errors
def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="+", required=True, metavar="FILE")
    parser.add_argument("--rates", nargs="+", required=True, type=float)
    parser.add_argument("--seeds", nargs="+", default=[0], type=int)
    parser.add_argument("--choose", nargs=2, required=True, metavar=("TRAIN", "TEST"))
    parser.add_argument("--final", nargs=2, required=True, metavar=("TRAIN", "TEST"))
    parser.add_argument("--output", required=True, metavar="JSON")
    parser.add_argument("--folder", default="output/compare", help="of the runs")
    args = parser.parse_args()

    records = Records(args.output)
    grid = [(c, r) for r in args.rates for c in args.configs]
    for config, rate in tqdm(grid, desc="choosing learning rates"):
        records.get(config, rate, args.seeds[0], args.choose, args.folder)
    for config in tqdm(args.configs, desc="final runs"):
        tried = records.find(config=config, train_split=args.choose[0], test_split=args.choose[1])
        best = max(tried, key=lambda r: r.get("bbox/AP", -1))["learning_rate"]
        for seed in args.seeds:
            record = records.get(config, best, seed, args.final, args.folder)
            print(f"{config}: learning rate {best}, AP {record.get('bbox/AP', float('nan')):.1f}")


if __name__ == "__main__":
    main()
