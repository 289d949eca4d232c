"""Fixtures that several files of this room share."""

import detectron2.data.transforms as T
import pytest
from detectron2.data import MetadataCatalog

from helpers.fine_tuning_cases import NAME
from helpers.interruption_cases import BEST, LONG, Signalled
from helpers.tiny import (
    mapper_of,
    write_dicts,
)
from helpers.tiny_run import FOCAL, run, write_config
from sampling_free import PriorInit
from sampling_free.utils.signals import Interrupted


@pytest.fixture
def dicts(tmp_path):
    MetadataCatalog.get(NAME).set(thing_classes=["ant", "bee", "cat"])
    folder = tmp_path / "images"
    folder.mkdir()
    return write_dicts(folder, [(64, 96), (61, 47), (64, 64)], [4, 6, 1])


@pytest.fixture
def mapper():
    return mapper_of(T.ResizeShortestEdge((48, 48), 128))  # one view of each image


@pytest.fixture
def hook(dicts, mapper, tmp_path):
    def make(**kwargs):
        return PriorInit(dicts, mapper, NAME, output_dir=str(tmp_path / "out"), **kwargs)

    return make


@pytest.fixture
def signalled(monkeypatch):
    """Trains until a signal comes; returns the trainer's exception."""

    def call(config, *overrides, **where):
        for key, value in where.items():
            monkeypatch.setattr(Signalled, key, value)
        with monkeypatch.context() as m, pytest.raises(Interrupted) as e:
            m.setattr("helpers.tiny_run.LazyTrainer", Signalled)
            run(config, *overrides)
        return e.value

    return call


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folders of uninterrupted runs, with a guide that has a state, and of focal loss."""
    folders = {}
    for name, extra in (("frozen", "model.guide = 'frozen'\n"), ("focal", FOCAL)):
        folders[name] = tmp_path_factory.mktemp(name)
        run(write_config(folders[name], extra), *LONG, *BEST)
    return folders
