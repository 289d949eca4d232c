"""Kinds of image files that are not what the annotations say."""

import os

from PIL import Image

from helpers.bad_kind import SKIPPED, STOPPED, TRAINED, kinds_of
from helpers.sound_data import CocoData, picture

IMAGE_KINDS, kind = kinds_of("image", CocoData)
ROTATED = 6  # EXIF: turn it by 90 degrees
PICTURES = ["train.num_pictures=2"]


def _truncate(data):
    data.image().write_bytes(data.image().read_bytes()[:2000])


def _rename(data, name, image=2):
    """Gives an image another file name; returns its new path."""
    path = data.folder / "images" / name
    os.rename(data.image(image), path)
    data.train["images"][image - 1]["file_name"] = name
    return path


@kind("no image at all", STOPPED, "train2.png: cannot be read")
def _(data):
    data.image().write_bytes(b"<html>404 Not Found</html>")


@kind("empty file", STOPPED, "train2.png: cannot be read")
def _(data):
    data.image().write_bytes(b"")


@kind("truncated", STOPPED, "train2.png: cannot be read")
def _(data):
    _truncate(data)


@kind(
    "truncated, with unreadable=skip",
    SKIPPED,
    "train2.png: cannot be read",
    "1 of 4 images",
    overrides=["dataloader.train.unreadable=skip"],
)
def _(data):
    _truncate(data)


@kind("truncated, in the evaluated split", STOPPED, "val1.png: cannot be read")
def _(data):
    path = data.folder / "images" / "val1.png"
    path.write_bytes(path.read_bytes()[:2000])


@kind("missing", STOPPED, "_train': 1 of its 4 image files are not there, such as ", "train2.png")
def _(data):
    data.image().unlink()


@kind(
    "missing, with unreadable=skip",
    SKIPPED,
    "1 of its 4 image files are not there",
    "skipped 1 of 4 images",
    overrides=["dataloader.train.unreadable=skip"],
)
def _(data):
    data.image().unlink()


@kind("missing, in the evaluated split", STOPPED, "_val': 1 of its 2 image files are not there")
def _(data):
    (data.folder / "images" / "val1.png").unlink()


@kind("file name of Windows", STOPPED, "such as ", "write / in place of \\")
def _(data):
    (data.folder / "images" / "cam1").mkdir()
    _rename(data, "cam1/train2.png")
    data.train["images"][1]["file_name"] = "cam1\\train2.png"


@kind("a folder in its place", STOPPED, "train2.png: cannot be read")
def _(data):
    data.image().unlink()
    data.image().mkdir()


@kind("1 x 1 pixel", TRAINED)
def _(data):
    picture((1, 1)).save(data.image())
    data.size(1, 1)


@kind("5,000 x 1 pixels", STOPPED, "train2.png")
def _(data):
    picture((5000, 1)).save(data.image())
    data.size(5000, 1)


@kind("6,000 x 4,000 pixels", TRAINED)
def _(data):
    Image.new("L", (6000, 4000)).save(data.image())
    data.size(6000, 4000)


@kind("20,000 x 20,000 pixels", STOPPED, "train2.png: cannot be read")
def _(data):
    Image.new("1", (20000, 20000)).save(data.image())
    data.size(20000, 20000)


@kind("greyscale", TRAINED)
def _(data):
    picture(mode="L").save(data.image())


@kind("greyscale of 16 bits", STOPPED, "train2.png: cannot be read", "scale them to 0 to 255")
def _(data):
    picture(mode="I").point(lambda value: value * 100).convert("I;16").save(data.image())


@kind("greyscale of 16 bits with values up to 255", TRAINED)
def _(data):
    picture(mode="I").convert("I;16").save(data.image())


@kind(
    "greyscale of 16 bits, with Detectron2's own loader",
    STOPPED,
    "train2.png: cannot be read",
    "scale them to 0 to 255",
    lines="""
from detectron2.data import build_detection_train_loader
dataloader.train = L(build_detection_train_loader)(
    dataset=dataloader.train.dataset, mapper=dataloader.train.mapper, total_batch_size=2
)
train.max_iter = 20  # until the image comes
""",
)
def _(data):
    picture(mode="I").point(lambda value: value * 100).convert("I;16").save(data.image())


@kind("greyscale of 16 bits, named .jpg", STOPPED, "train2.jpg: cannot be read", "scale them to")
def _(data):
    path = _rename(data, "train2.jpg")
    picture(mode="I").point(lambda value: value * 100).convert("I;16").save(path, format="PNG")


@kind("JPEG 2000 of 16 bits", STOPPED, "train2.png: cannot be read", "scale them to 0 to 255")
def _(data):
    image = picture(mode="I").point(lambda value: value * 100).convert("I;16")
    image.save(data.image(), format="JPEG2000")


@kind("TIFF of floats from 0 to 1", STOPPED, "train2.png: cannot be read", "scale them to 0 to 255")
def _(data):
    picture(mode="F").point(lambda value: value * 0.004 + 0).save(data.image(), format="TIFF")


@kind("TIFF of floats from 0 to 255", TRAINED)
def _(data):
    picture(mode="F").save(data.image(), format="TIFF")


@kind("of 1 bit", TRAINED)
def _(data):
    picture(mode="1").save(data.image())


@kind("greyscale with alpha", TRAINED)
def _(data):
    picture(mode="LA").save(data.image())


@kind("RGBA", TRAINED)
def _(data):
    picture(mode="RGBA").save(data.image())


@kind("CMYK", TRAINED)
def _(data):
    picture(mode="CMYK").save(data.image(), format="JPEG")


@kind("a GIF named .png", TRAINED)
def _(data):
    picture(mode="P").save(data.image(), format="GIF")


@kind("EXIF-rotated, annotated as shown", TRAINED)
def _(data):
    _save_rotated(data.image(), (48, 64))


@kind("EXIF-rotated, annotated as stored", STOPPED, "train2.png: cannot be read (SizeMismatch")
def _(data):
    _save_rotated(data.image(), (64, 48))


def _save_rotated(path, stored):
    exif = Image.Exif()
    exif[0x0112] = ROTATED
    picture(stored).save(path, exif=exif)


@kind("of another size than annotated", STOPPED, "train2.png: cannot be read (SizeMismatch")
def _(data):
    picture((32, 32)).save(data.image())


@kind("file name outside the folder", TRAINED, overrides=PICTURES)
def _(data):
    _rename(data, "../../outside.png", 1)
    data.val["images"][0]["file_name"] = "../../outside.png"


@kind("file name that is not UTF-8", TRAINED, overrides=PICTURES)
def _(data):
    _rename(data, os.fsdecode(b"\xff.png"), 1)
    data.val["images"][0]["file_name"] = os.fsdecode(b"\xff.png")


@kind("broken, with a file name that is not UTF-8", STOPPED, "\\udcff.png: cannot be read")
def _(data):
    _rename(data, os.fsdecode(b"\xff.png")).write_bytes(b"")


@kind("broken, with a line break in the file name", STOPPED, "a b.png: cannot be read")
def _(data):
    _rename(data, "a\nb.png").write_bytes(b"")
