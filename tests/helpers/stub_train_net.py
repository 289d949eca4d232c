"""Stands in for train_net.py in the tests of tools/compare.py: writes files, trains nothing.

The seed says what becomes of a run: 0 to 4 are good, 5 diverges, 6 crashes, 7 does not end.
Each call adds a line to the file $CALLS, and goes on when this has $LEAST_CALLS of them.
"""

import json
import os
import sys
import time

from helpers.patience import PATIENCE, wait_for

DIVERGES, CRASHES, HANGS = 5, 6, 7
BEGUN = time.time()


def main(words):
    values = dict(word.split("=", 1) for word in words if "=" in word)
    folder, seed = values["train.output_dir"].strip("'"), int(values["train.seed"])
    is_eval = "--eval-only" in words
    with open(os.environ["CALLS"], "a") as f:
        f.write(json.dumps({"words": words, "pid": os.getpid()}) + "\n")
    if seed == DIVERGES:
        nan = float("nan")
        with open(os.path.join(folder, "metrics.json"), "w") as f:
            json.dump({"iteration": 2, "guide/r": nan, "num_pos_anchors": 7.0, "loss_cls": nan}, f)
        with open(os.path.join(folder, "score_histograms.json"), "w") as f:
            json.dump({"cls": {"edges": [0.0, nan]}}, f)
        print("error: the loss is not finite at iteration 3", file=sys.stderr)
        sys.exit(2)
    if seed == CRASHES:
        raise RuntimeError("no room on the disk")
    if seed == HANGS:
        time.sleep(PATIENCE)
    wait_for(lambda: num_calls() >= int(os.environ.get("LEAST_CALLS", 0)))
    numbers = {"bbox/AP": 40.0 + seed, "bbox/AP50": 80.0, "bbox/AP-cat": float("nan")}
    if is_eval:
        with open(os.path.join(folder, "evaluation.json"), "w") as f:
            json.dump({**numbers, "bbox/AP": 30.0 + seed}, f)
        return
    with open(os.path.join(folder, "metrics.json"), "a") as f:
        for i in (19, 39):
            f.write(json.dumps({"iteration": i, "total_loss": 2.0, "time": 0.25}) + "\n")
        f.write(json.dumps({"iteration": 40, **numbers}) + "\n")
    with open(os.path.join(folder, "times.json"), "w") as f:
        json.dump([BEGUN, time.time()], f)


def num_calls():
    with open(os.environ["CALLS"]) as f:
        return len(f.readlines())


if __name__ == "__main__":
    main(sys.argv[1:])
