"""Fixtures that several files of this room share."""

import pytest
from detectron2.data import MetadataCatalog

from helpers.measured_count_cases import NAME
from helpers.tiny import write_dicts


@pytest.fixture
def dicts(tmp_path):
    MetadataCatalog.get(NAME).set(thing_classes=["ant", "bee", "cat"])
    folder = tmp_path / "images"
    folder.mkdir()
    return write_dicts(folder, [(64, 96), (61, 47), (80, 64), (64, 64)], [4, 6, 0, 2])
