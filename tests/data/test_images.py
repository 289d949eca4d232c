"""Of which images 8 bits keep what is in them; the oracle is a picture of known values."""

import numpy as np
import pytest
from detectron2.data import DatasetMapper
from PIL import Image

from sampling_free.data.images import makes_8_bits, require_8_bits

SIZE = 8, 10
KEPT = {
    "I;16 to 255": ("I;16", 0, 255),
    "I to 200": ("I", 0, 200),
    "I of 0 and 1": ("I", 0, 1),
    "F to 254.6": ("F", 0.4, 254.6),
    "F, black": ("F", 0, 0),
}
LOST = {
    "I;16 to 300": ("I;16", 0, 300),
    "I below 0": ("I", -5, 200),
    "I to 256": ("I", 0, 256),
    "F to 1": ("F", 0, 1),
    "F of 1 alone": ("F", 1, 1),
    "F around 0.4": ("F", 0.35, 0.42),
    "F from -1": ("F", -1, 1),
    "F to 65535": ("F", 0, 65535),
    "F, NaN": ("F", 0, np.nan),
}
TYPES = {"I;16": np.uint16, "I": np.int32, "F": np.float32}


def save(path, mode, low, high, form="TIFF"):
    values = np.linspace(low, high, SIZE[0] * SIZE[1]).reshape(SIZE)
    values = values if mode == "F" else values.round()
    Image.fromarray(values.astype(TYPES[mode])).save(path, format=form)
    return values


@pytest.mark.parametrize("mode, low, high", KEPT.values(), ids=KEPT)
def test_values_from_0_to_255_are_kept(tmp_path, mode, low, high):
    path = tmp_path / "a.tif"
    values = save(path, mode, low, high)
    require_8_bits(str(path))
    read = DatasetMapper(False, augmentations=[], image_format="BGR")({"file_name": str(path)})
    assert np.abs(read["image"].numpy() - values).max() < 1


@pytest.mark.parametrize("mode, low, high", LOST.values(), ids=LOST)
def test_others_are_named(tmp_path, mode, low, high):
    path = tmp_path / "a"
    save(path, mode, low, high)
    with pytest.raises(ValueError, match="values from .*; scale them to 0 to 255 and save 8 bits"):
        require_8_bits(str(path))


@pytest.mark.parametrize("form", ["PNG", "PPM"])
def test_whatever_the_format(tmp_path, form):
    save(tmp_path / "a.jpg", "I;16", 0, 65535, form)
    with pytest.raises(ValueError, match="values from 0 to 65535"):
        require_8_bits(str(tmp_path / "a.jpg"))


@pytest.mark.parametrize("mode", ["1", "P", "RGBA", "CMYK"])
def test_an_image_of_8_bits_is_not_decoded_for_it(tmp_path, mode, monkeypatch):
    form = "TIFF" if mode == "CMYK" else "PNG"
    Image.new(mode, SIZE).save(tmp_path / "a.x", format=form)

    def never(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    require_8_bits(str(tmp_path / "a.x"))


@pytest.mark.parametrize(
    "image_format, expected", [("BGR", True), ("L", True), ("YUV-BT.601", True), ("F", False)]
)
def test_only_a_mapper_that_makes_8_bits_is_asked(image_format, expected):
    mapper = DatasetMapper(False, augmentations=[], image_format=image_format)
    assert makes_8_bits(mapper) == expected
    assert not makes_8_bits(lambda record: mapper(record))
