"""A stage for comparisons whose runs are those of stub_train_net.py, which trains nothing."""

import json
from pathlib import Path
from types import SimpleNamespace

import compare
from helpers import tiny_run
from sampling_free.comparison.execute import Workshop
from sampling_free.comparison.plan import plan, runs_of_configs, with_seeds
from sampling_free.comparison.precision_recalls import Detections
from sampling_free.comparison.schedule import SideBySide
from sampling_free.comparison.store import Output
from sampling_free.comparison.subprocesses import Processes

ROOT = Path(__file__).parents[2]
STUB = str(Path(__file__).parent / "stub_train_net.py")
FULL = "configs/bccd/retinanet_R_18_FPN.py"


def make_stage(tmp_path, monkeypatch):
    """A folder with a tiny config, and the stub in place of train_net.py."""
    monkeypatch.setattr(compare, "TRAIN_NET", STUB)
    monkeypatch.setenv("PYTHONPATH", tiny_run.environment()["PYTHONPATH"])
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    (tmp_path / "calls").touch()
    config = tiny_run.write_config(tmp_path)

    def run(*words):
        """Compares; the lines of what failed."""
        base = ["--config-file", config, "--folder", f"{tmp_path}/runs"]
        base = base if "--configs" not in words else base[2:]
        return compare.compare(compare.parse_args([*base, *words]), poll=0.05)

    def calls():
        """The command lines since the last question."""
        lines = [json.loads(x)["words"] for x in (tmp_path / "calls").read_text().splitlines()]
        (tmp_path / "calls").write_text("")
        return lines

    def place(name):
        """The folder of a run, whatever the digest of its config is."""
        (folder,) = (tmp_path / "runs").glob(f"{name}_??????")
        return folder

    def result(name):
        return json.loads((place(name) / "result.json").read_text())

    return SimpleNamespace(
        folder=tmp_path, config=config, run=run, calls=calls, place=place, result=result
    )


def side_by_side(jobs=1, output=None, poll=0.05):
    workshop = Workshop(STUB, 1, jobs, Processes(), Detections())
    return SideBySide(workshop, Output(output), poll)


def planned(stage, seeds=(0,), **kwargs):
    """Runs of the config as it is."""
    runs = runs_of_configs([stage.config], [None], ["train.max_iter=4"])
    return plan(with_seeds(runs, seeds), f"{stage.folder}/{kwargs.get('folder', 'runs')}")
