"""5,000 iterations by train_net.py: memory stays flat, and nothing that was opened stays open.

Drift is the mean resident memory of the last 500 iterations over that of the iterations 500 to
1,000, minus one: the caches of the allocators have filled by then. It is sampled every 50
iterations, never beside an evaluation, a checkpoint or a measurement.
"""

import json
import time

import pytest

from helpers.long_run import means, needs_proc, slope
from helpers.tiny_run import FOCAL, metrics, train_net, write_config

ITERATIONS, WARMUP, WINDOW = 5000, 500, 500
KIB, MIB = 2**10, 2**20
MODELS = {
    "sampling-free RetinaNet, frozen guide": "model.guide = 'frozen'\n",
    "Detectron2's RetinaNet": FOCAL,
}
# All that a real run does, more often.
RUN = """
from helpers import long_run
dataloader.train.update(_target_=long_run.build_watched_loader, file={file!r}, num_workers=1)
dataloader.test.num_workers = 1
train.update(max_iter={iterations}, log_period=20, eval_period=200, best_metric="bbox/AP50")
train.update(monitor_period=40, num_pictures=2)
train.checkpointer.update(period=250, max_to_keep=3)
"""


@needs_proc
@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_memory_is_flat_and_no_handle_is_lost(name, tmp_path, figure):
    file = tmp_path / "samples.jsonl"
    text = MODELS[name] + RUN.format(file=str(file), iterations=ITERATIONS)
    begin = time.perf_counter()
    done = train_net(write_config(tmp_path, text))
    minutes = (time.perf_counter() - begin) / 60
    assert done.code == 0, done.err[-2000:]
    require_whole_run(tmp_path / "out")

    samples = [json.loads(line) for line in file.read_text().splitlines()]
    assert [x["iteration"] for x in samples] == list(range(25, ITERATIONS, 50))
    settled = [x for x in samples if x["iteration"] >= WARMUP]
    for key in ("handles", "threads", "processes"):
        assert len({x[key] for x in settled}) == 1, f"{key}: {[x[key] for x in settled]}"
    assert settled[0]["processes"] == 2, "the loader's worker was not watched"
    start, end = means(samples, "rss", WARMUP, WINDOW)
    start_of_all, end_of_all = means(samples, "rss_of_all", WARMUP, WINDOW)
    assert end / start < 1.01 and end_of_all / start_of_all < 1.01
    figure(
        "long_run",
        name,
        iterations=ITERATIONS,
        rss_start_mib=round(start * KIB / MIB, 1),
        rss_end_mib=round(end * KIB / MIB, 1),
        drift_percent=round(100 * (end / start - 1), 2),
        drift_of_all_percent=round(100 * (end_of_all / start_of_all - 1), 2),
        bytes_per_iteration=round(slope(samples, "rss", WARMUP) * KIB),
        values_per_iteration=round(slope(samples, "values", WARMUP), 1),
        handles_start=settled[0]["handles"],
        handles_end=settled[-1]["handles"],
        threads=settled[-1]["threads"],
        processes=settled[-1]["processes"],
        minutes=round(minutes, 1),
    )


def require_whole_run(out):
    """The evaluations, checkpoints, events, measurements and pictures are there."""
    rows = metrics(out)
    assert sum("bbox/AP50" in row for row in rows.values()) == ITERATIONS // 200
    assert any("monitor/ratio/cls" in row for row in rows.values())
    assert len(list(out.glob("model_0*.pth"))) == 3
    assert all((out / f"model_{name}.pth").exists() for name in ("best", "final"))
    assert list(out.glob("events.out.tfevents*")) and (out / "pictures" / "overview.png").exists()


def test_a_slow_leak_shows_in_the_figures():
    """A mebibyte every 100 iterations, after a jump in the warm-up, is 10,486 bytes each."""
    samples = [
        {"iteration": i, "rss": 700_000 + 20_000 * (i > 200) + i * KIB / 100}
        for i in range(25, ITERATIONS, 50)
    ]
    assert slope(samples, "rss", WARMUP) * KIB == pytest.approx(2**20 / 100)
    start, end = means(samples, "rss", WARMUP, WINDOW)
    assert start == pytest.approx(720_000 + 750 * KIB / 100)
    assert end - start == pytest.approx(4000 * KIB / 100) and end / start > 1.01
