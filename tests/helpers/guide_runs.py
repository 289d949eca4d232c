"""Finished runs with every guide, and train_net.py in this process, for several tests."""

import pytest
import torch
from detectron2.utils.env import seed_all_rng

import train_net as script
from helpers.tiny_run import load, only_error, run, write_config
from sampling_free.config.load import load_config
from sampling_free.engine.trainer import LazyTrainer


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A finished run of 6 iterations for each guide: its folder, with config.py and out/."""
    folders = {guide: tmp_path_factory.mktemp(guide) for guide in ("iteration", "gradient")}
    folders["frozen"] = tmp_path_factory.mktemp("frozen")
    for guide, folder in folders.items():
        # Large enough a step that the learned weights move.
        run(write_config(folder, f"model.guide = {guide!r}\noptimizer.lr = 0.01\n"))
    return folders


@pytest.fixture
def main(monkeypatch, capsys):
    """Runs train_net.py in this process; returns the exit code and stderr."""
    monkeypatch.setattr(script, "default_setup", lambda cfg, args: None)
    monkeypatch.setattr(script, "setup_logger", lambda *args, **kwargs: None)

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["train_net.py", "--config-file", *map(str, arguments)])
        capsys.readouterr()
        try:
            script.main()
            code = 0
        except SystemExit as e:
            code = e.code
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, err

    return call


@pytest.fixture
def refused(main):
    def call(*arguments):
        code, err = main(*arguments)
        assert code == 2, err
        return only_error(err)

    return call


def weights(folder, name="model_final"):
    return f"train.init_checkpoint={folder}/out/{name}.pth"


def changed(folder, target, change):
    """A copy of a run's weights after ``change``, as an override."""
    checkpoint = load(folder / "out" / "model_final.pth")
    change(checkpoint)
    torch.save(checkpoint, target / "changed.pth")
    return f"train.init_checkpoint={target}/changed.pth"


def yaml_run(config, *pairs, resume=False):
    cfg = load_config(config, list(pairs), True)
    seed_all_rng(cfg.train.seed)
    made = LazyTrainer(cfg)
    made.resume_or_load(resume=resume)
    made.train()
    return made
