"""Runs of version 0.1.0 (commit 1970fcc), whose modules lay elsewhere, go on and are evaluated."""

import shutil
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog
from detectron2.layers import ShapeSpec

from helpers.tiny_run import load, run, same
from sampling_free import SamplingFreeRetinaNet, load_config, load_trained
from sampling_free.config.convert import is_of_yaml
from sampling_free.data.loader import build_replayable_train_loader

RUNS = Path(__file__).parent / "old_runs"
# Detectron2's main branch cannot read the ShapeSpec in a LazyConfig that its v0.6 saved.
saved_by_v06 = pytest.mark.skipif(
    not issubclass(ShapeSpec, tuple), reason="its config was saved by Detectron2 v0.6"
)


@pytest.fixture
def old(tmp_path):
    """Makes the folder of an old run as it was; returns the path of its config.yaml."""

    def make(name):
        folder = tmp_path / "out"
        folder.mkdir()
        text = (RUNS / f"{name}.yaml").read_text().replace("FOLDER", str(tmp_path))
        (folder / "config.yaml").write_text(text)
        if name == "lazy":
            shutil.copy(RUNS / "lazy.pth", folder / "model_final.pth")
            (folder / "last_checkpoint").write_text("model_final.pth")
        return str(folder / "config.yaml")

    yield make
    for name in ("old_tiny_train", "old_tiny_val"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)


@saved_by_v06
def test_a_lazy_run_is_resumed_with_its_weights_and_its_prior(old, tmp_path):
    config = old("lazy")
    before = load(tmp_path / "out" / "model_final.pth")
    trainer = run(config, "train.max_iter=2", resume=True)
    assert trainer.start_iter == 1
    assert type(trainer.model) is SamplingFreeRetinaNet and trainer.model.guide.key == "iteration"
    assert trainer.model.prior == before["prior"]["prior"]
    after = load(tmp_path / "out" / "model_final.pth")
    assert after["iteration"] == 1 and after["model"].keys() == before["model"].keys()
    assert not same(after["model"], before["model"])


@saved_by_v06
def test_its_checkpoint_is_loaded_whole(old, tmp_path):
    cfg = load_config(old("lazy"))
    model = instantiate(cfg.model)
    load_trained(model, str(tmp_path / "out" / "model_final.pth"))
    expected = load(tmp_path / "out" / "model_final.pth")["model"]
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_every_call_of_a_yaml_run_is_found_and_its_model_built(old):
    cfg = load_config(old("yaml"), ["train.max_iter=3"])
    assert is_of_yaml(cfg.model) and cfg.train.max_iter == 3
    assert type(instantiate(cfg.model)) is SamplingFreeRetinaNet
    assert callable(instantiate(cfg.dataloader.train.mapper))


def test_the_loader_by_its_old_name_is_the_same():
    from sampling_free.loader import build_replayable_train_loader as by_old_name

    assert by_old_name is build_replayable_train_loader
