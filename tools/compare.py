#!/usr/bin/env python
"""Trains configs side by side, with seeds, and keeps the results.

    python tools/compare.py --configs configs/bccd/retinanet_R_18_FPN*.py \
        --rates 0.02 0.04 0.08 --choose train val --final trainval test --output results/bccd.json
    python tools/compare.py --configs configs/demo/retinanet.py --seeds 0 1 2 \
        --output results/demo.json

    python tools/compare.py --configs configs/bccd/retinanet_R_18_FPN.py \
        --vary model.guide=iteration model.guide=gradient --output results/bccd_guides.json

With --rates, each config's learning rate is chosen on the splits of --choose, and the final runs
take it. All configs get the same data, schedule, seed and test settings. Every run is a call of
train_net.py in a process of its own, and one record in the output; a second call does only what is
missing. tools/render_tables.py puts the records into the documentation.
"""

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys

import torch
import torchvision
from detectron2 import __version__ as detectron2_version
from tqdm import tqdm

from sampling_free.cli import one_line_errors
from sampling_free.errors import BadInput

METRICS = ("bbox/AP", "bbox/AP50", "bbox/AP75", "segm/AP", "segm/AP50")
# Of these numbers of the training what was logged first, and after so many iterations.
CURVES = ("guide/r", "num_pos_anchors")
POINTS = (20, 40, 100, 200, 400)


def overrides(rate, seed, splits, output_dir, override):
    """The overrides of train_net.py for one run."""
    changes = [
        f"train.seed={seed}",
        "train.num_pictures=0",
        f"train.output_dir={output_dir}",
    ]
    if override is not None:
        changes.append(override)
    if rate is not None:
        changes.append(f"optimizer.lr={rate}")
    for part, split in zip(("train", "test"), splits):
        if split is not None:
            node = f"dataloader.{part}.dataset.names"
            changes += [f"{node}.split={split}", f"{node}.name=compare_{split}"]
    return changes


def run(config, rate, seed, splits, override, folder, threads):
    """Trains and evaluates once.

    Args:
        config (str): file.
        rate (float or None): learning rate; None for the config's own.
        seed (int):
        splits (list): names of the training and test split; None for the config's own.
        override (str or None): key=value, changed in the config.
        folder (str): where the runs keep their files.
        threads (int): CPU threads.

    Returns:
        dict: what was run, on what, METRICS in percent, and CURVES.
    """
    name = os.path.splitext(os.path.basename(config))[0]
    key = override and override.replace("=", "-")  # no = in a folder of an override
    tags = [name, key, rate and f"lr{rate}", f"seed{seed}", *splits]
    output_dir = os.path.join(folder, "_".join(str(t) for t in tags if t is not None))
    command = [sys.executable, "train_net.py", "--config-file", config]
    command += overrides(rate, seed, splits, output_dir, override)
    os.makedirs(output_dir, exist_ok=True)
    with open(os.path.join(output_dir, "output.txt"), "w") as out:
        code = subprocess.call(
            command, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": str(threads)}
        )
    if code not in (0, 2):  # 2 is for one clear line
        raise BadInput(f"{config}: training failed with exit code {code}; see {out.name}")
    record = {
        "config": config,
        "override": override,
        "learning_rate": rate,
        "seed": seed,
        "train_split": splits[0],
        "test_split": splits[1],
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{platform.machine()} CPU, {threads} thread(s)",
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "detectron2": detectron2_version,
    }
    if code == 2:  # a loss that is not finite is a result
        with open(out.name) as f:
            errors = [line.strip() for line in f if "error:" in line]
            record["failed"] = errors[-1] if errors else f"see {out.name}"
        if "not finite" not in record["failed"]:
            raise BadInput(f"{config}: {record['failed']}")
    else:
        with open(os.path.join(output_dir, "metrics.json")) as f:
            rows = [json.loads(line) for line in f]
        last = [row for row in rows if "bbox/AP" in row][-1]
        record.update({key: last[key] for key in METRICS if key in last})
        record["curves"] = curves(rows)
        record["counted_pos_anchors"] = counted_pos_anchors(output_dir)
    return record


def curves(rows):
    """CURVES at POINTS and at the end, from the lines of a metrics.json.

    A line has the median of the last 20 iterations.
    """
    logged = [row for row in rows if any(key in row for key in CURVES)]
    chosen = [row for row in logged if row["iteration"] + 1 in POINTS or row is logged[-1]]
    return [
        {"iterations": row["iteration"] + 1, **{k: row[k] for k in CURVES if k in row}}
        for row in chosen
    ]


def counted_pos_anchors(output_dir):
    """Foreground anchors of an image as they were counted for the prior; None if they were not."""
    path = os.path.join(output_dir, "prior.json")
    if not os.path.exists(path):
        return None
    with open(path) as f:
        estimate = json.load(f)
    return estimate["num_foreground"] / estimate["num_images"]


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

    def best_rate(self, config, splits):
        """The learning rate of best AP on these splits."""
        tried = self.find(config=config, train_split=splits[0], test_split=splits[1])
        return max(tried, key=lambda r: r.get("bbox/AP", -1))["learning_rate"]

    def get(self, config, rate, seed, splits, override=None, **how):
        """The record of a run, made now if it is not there yet; arguments as in :func:`run`."""
        wanted = dict(config=config, override=override, learning_rate=rate, seed=seed)
        wanted.update(train_split=splits[0], test_split=splits[1])
        if not self.find(**wanted):
            record = run(config, rate, seed, splits, override, **how)
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
    parser.add_argument(
        "--vary", nargs="+", default=[None], metavar="KEY=VALUE", help="run each config with each"
    )
    parser.add_argument("--rates", nargs="+", type=float, help="default: the config's own")
    parser.add_argument("--seeds", nargs="+", default=[0], type=int)
    parser.add_argument("--choose", nargs=2, metavar=("TRAIN", "TEST"), help="splits")
    parser.add_argument(
        "--final", nargs=2, default=[None, None], metavar=("TRAIN", "TEST"), help="splits"
    )
    parser.add_argument("--output", required=True, metavar="JSON")
    parser.add_argument("--folder", default="output/compare", help="of the runs")
    parser.add_argument("--threads", default=1, type=int, help="CPU threads of a run")
    args = parser.parse_args()

    if args.vary != [None] and args.rates:
        raise BadInput("--vary and --rates: one at a time; each config's own rate is taken")
    if bool(args.rates) != bool(args.choose):
        raise BadInput("--rates and --choose go together: the splits on which a rate is chosen")

    records = Records(args.output)
    how = {"folder": args.folder, "threads": args.threads}
    grid = [(config, rate) for rate in args.rates or [] for config in args.configs]
    for config, rate in tqdm(grid, desc="choosing learning rates", disable=not grid):
        records.get(config, rate, args.seeds[0], args.choose, **how)
    finals = list(itertools.product(args.configs, args.vary, args.seeds))
    for config, override, seed in tqdm(finals, desc="final runs"):
        rate = records.best_rate(config, args.choose) if grid else None
        record = records.get(config, rate, seed, args.final, override, **how)
        scores = ", ".join(f"{key} {record[key]:.1f}" for key in METRICS if key in record)
        what = ", ".join(filter(None, [config, override, f"rate {rate}", f"seed {seed}"]))
        tqdm.write(f"{what}: {scores or record['failed']}")


if __name__ == "__main__":
    main()
