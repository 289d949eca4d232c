"""Fixtures that several files of this room share."""

import pytest
from PIL import Image

from helpers.register_cases import xml_of


@pytest.fixture
def voc(tmp_path, monkeypatch):
    """A VOC-style folder of three images, "cells" under $DETECTRON2_DATASETS."""
    folder = tmp_path / "cells"
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    files = {
        "i1": [("ant", (1, 1, 20, 30)), ("bee", (11, 12, 13, 14))],
        "i2": [("bee", (5, 5, 60, 40))],
        "i3": [],
    }
    for name, objects in files.items():
        (folder / "Annotations" / f"{name}.xml").write_text(xml_of(objects))
        Image.new("RGB", (60, 40)).save(folder / "JPEGImages" / f"{name}.jpg")
    (folder / "ImageSets" / "Main" / "train.txt").write_text("i1\ni2\ni3\n")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return folder


@pytest.fixture
def name(request):
    """A name that no other test registers."""
    return "test_register_" + request.node.name.replace("[", "_").replace("]", "")
