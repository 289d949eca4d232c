"""Runs killed at random moments, twenty times over, end as the run that was left alone.

With SIGKILL, which no program can answer; with SIGTERM in two processes, which they must.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from detectron2.utils import comm

from helpers.launched import url
from helpers.live_process import kill, start, text_of, wait_until
from helpers.long_run import needs_proc
from helpers.patience import PATIENCE
from helpers.tiny_run import FOCAL, load, metrics, only_error, same, train_net, write_config
from sampling_free import SamplingFreeRetinaNet

ITERATIONS, KILLS = 800, 20
LEAST = {"writing": 3, "elsewhere": 3, "starting": 2}  # kills at such a moment
START_UP = 5  # seconds of computing: imports, loading, the first iterations
BEST = ["train.best_metric=bbox/AP"]
RUNS = {
    "RetinaNet, frozen guide": "model.guide = 'frozen'\n",
    "RetinaNet, float16": "train.amp.enabled = True\ntrain.skip_nonfinite = 3\n",
    "Detectron2's RetinaNet": FOCAL,
}
OPTIONS = [
    f"train.max_iter={ITERATIONS}",
    "train.log_period=7",
    "train.eval_period=30",
    "train.checkpointer.period=5",
    "train.checkpointer.max_to_keep=3",
    "train.monitor_period=11",
    *BEST,
]


def unfinished(out):
    return list(out.glob("*.unfinished*"))


def newest(out):
    """Changes with every checkpoint that is written."""
    tag = out / "last_checkpoint"
    return tag.stat().st_mtime_ns if tag.exists() else 0


def killed(config, out, draw, num_workers):
    """Resumes a run and kills it; returns the moment, or None if it ended before."""
    before = newest(out)
    process = start(config, "--resume", *OPTIONS, f"dataloader.train.num_workers={num_workers}")
    # While a checkpoint is being written, which else would hardly be hit; at any moment after one;
    # and while the process starts, loads the last one, and cuts metrics.json.
    kind = draw.choice([*2 * ["writing", "elsewhere"], "starting"])
    if kind == "writing":
        for _ in range(draw.randrange(1, 5)):
            last = newest(out)
            if not wait_until(lambda last=last: newest(out) != last, process):
                return None
        if not wait_until(lambda: unfinished(out), process):
            return None
    elif kind == "elsewhere":
        if not wait_until(lambda: newest(out) != before, process):
            return None
        moment = computed(process) + draw.uniform(0, 0.6)
        wait_until(lambda: computed(process) > moment, process)
    else:
        moment = draw.uniform(0, START_UP)
        wait_until(lambda: computed(process) > moment, process)
    if process.poll() is not None:
        return None
    kill(process)
    if newest(out) == before:
        return "starting"
    return "writing" if unfinished(out) else "elsewhere"


def computed(process):
    """Seconds that it has computed; unlike those that have passed, as many on a busy machine."""
    numbers = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, numbers[11:13])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.long
@needs_proc
@pytest.mark.parametrize("name", RUNS)
def test_twenty_kills_leave_no_trace(tmp_path, figure, name):
    folders = [tmp_path / x for x in ("whole", "killed")]
    for folder in folders:
        folder.mkdir()
    whole, config = (write_config(folder, RUNS[name]) for folder in folders)
    run = train_net(whole, *OPTIONS)
    assert run.code == 0, run.err
    draw, out = random.Random(name), folders[1] / "out"
    moments, iterations = [], []
    while len(moments) < KILLS or any(moments.count(x) < n for x, n in LEAST.items()):
        moment = killed(config, out, draw, num_workers=draw.choice([0, 1, 2]))
        assert moment, f"the run ended after {len(moments)} kills: make it longer"
        moments.append(moment)
        iterations.append(last_iteration(out))
    last = train_net(config, "--resume", *OPTIONS)
    assert last.code == 0, last.err
    for file in ("model_final.pth", "model_best.pth"):
        a, b = (load(folder / "out" / file) for folder in folders)
        assert a.keys() == b.keys() and a["trainer"]["_trainer"]["optimizer"]["state"]
        for key in a:
            assert same(a[key], b[key]), (file, key)
    a, b = (metrics(folder / "out") for folder in folders)
    assert len(a) > 60 and same(a, b)
    files = {f.name for f in (folders[0] / "out").glob("model_*")}
    assert files == {f.name for f in out.glob("model_*")}
    figure(
        "interruption",
        name,
        iterations=ITERATIONS,
        kills=len(moments),
        while_writing=moments.count("writing"),
        while_starting=moments.count("starting"),
        resumed_from=iterations,
        compared=names_in(load(out / "model_final.pth")),
    )


def last_iteration(out):
    """Of the last checkpoint; None before the first."""
    tag = out / "last_checkpoint"
    return load(out / tag.read_text())["iteration"] if tag.exists() else None


def names_in(checkpoint):
    return sorted({*checkpoint, *checkpoint["trainer"]} - {"iteration", "trainer"})


@pytest.mark.long
@pytest.mark.parametrize(
    "send, number, by",
    [(os.kill, signal.SIGTERM, "SIGTERM"), (os.killpg, signal.SIGINT, "SIGINT")],
    ids=["the first of them", "all of them"],
)
def test_several_processes_save_too(tmp_path, send, number, by):
    out = tmp_path / "out"
    options = ["train.max_iter=100000", "train.checkpointer.period=2"]
    process = start(write_config(tmp_path), "--num-gpus=2", url(), *options)
    assert wait_until((out / "model_0000003.pth").exists, process)
    send(process.pid, number)
    text = text_of(process)
    assert process.returncode == 128 + number, text
    path = out / (out / "last_checkpoint").read_text()
    assert f"error: interrupted by {by}; --resume goes on from {path}" in text
    assert text.count("error: ") == 1 and "Traceback" not in text
    assert load(path)["trainer"]["is_in_hooks"] is False


class SlowlyMade(SamplingFreeRetinaNet):
    """Tells by a file that it is being made."""

    def __init__(self, *, folder, **kwargs):
        super().__init__(**kwargs)
        (Path(folder) / f"begun_{comm.get_rank()}").touch()
        time.sleep(PATIENCE)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_several_processes_that_have_not_begun_to_train_say_it_in_one_line(tmp_path, number):
    lines = f"import {__name__}\nmodel._target_ = {__name__}.SlowlyMade\n"
    config = write_config(tmp_path, f"{lines}model.folder = {str(tmp_path)!r}\n")
    process = start(config, "--num-gpus=2", url())
    assert wait_until(lambda: len(list(tmp_path.glob("begun_*"))) == 2, process)
    os.kill(process.pid, number)
    text = text_of(process)
    assert process.returncode == 128 + number and "Traceback" not in text, text
    assert only_error(text) == f"error: interrupted by {signal.Signals(number).name}"
