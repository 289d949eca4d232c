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


def content(data):
    """Makes this the content of the second training image's file."""
    return lambda coco: coco.image().write_bytes(data)


def image(make, form=None, size=None):
    """Puts a picture of ``make()`` in place of the second training image."""

    def spoil(data):
        made = make()
        made.save(data.image(), format=form)
        if size:
            data.size(*size)

    return spoil


def of_mode(mode):
    return lambda: picture(mode=mode)


def of_16_bits():
    return picture(mode="I").point(lambda value: value * 100).convert("I;16")


def _rename(data, name, image=2):
    """Gives an image another file name; returns its new path."""
    path = data.folder / "images" / name
    os.rename(data.image(image), path)
    data.train["images"][image - 1]["file_name"] = name
    return path


kind("no image at all", STOPPED, "train2.png: cannot be read")(
    content(b"<html>404 Not Found</html>")
)
kind("empty file", STOPPED, "train2.png: cannot be read")(content(b""))


kind("truncated", STOPPED, "train2.png: cannot be read")(_truncate)
kind(
    "truncated, with unreadable=skip",
    SKIPPED,
    "train2.png: cannot be read",
    "1 of 4 images",
    overrides=["dataloader.train.unreadable=skip"],
)(_truncate)


@kind("truncated, in the evaluated split", STOPPED, "val1.png: cannot be read")
def _(data):
    path = data.folder / "images" / "val1.png"
    path.write_bytes(path.read_bytes()[:2000])


def _remove(data):
    data.image().unlink()


kind("missing", STOPPED, "_train': 1 of its 4 image files are not there, such as ", "train2.png")(
    _remove
)
kind(
    "missing, with unreadable=skip",
    SKIPPED,
    "1 of its 4 image files are not there",
    "skipped 1 of 4 images",
    overrides=["dataloader.train.unreadable=skip"],
)(_remove)


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


kind("1 x 1 pixel", TRAINED)(image(lambda: picture((1, 1)), size=(1, 1)))
kind("5,000 x 1 pixels", STOPPED, "train2.png")(image(lambda: picture((5000, 1)), size=(5000, 1)))
kind("6,000 x 4,000 pixels", TRAINED)(
    image(lambda: Image.new("L", (6000, 4000)), size=(6000, 4000))
)
kind("20,000 x 20,000 pixels", STOPPED, "train2.png: cannot be read")(
    image(lambda: Image.new("1", (20000, 20000)), size=(20000, 20000))
)
kind("greyscale", TRAINED)(image(of_mode("L")))
kind("greyscale of 16 bits", STOPPED, "train2.png: cannot be read", "scale them to 0 to 255")(
    image(of_16_bits)
)
kind("greyscale of 16 bits with values up to 255", TRAINED)(
    image(lambda: picture(mode="I").convert("I;16"))
)
kind(
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
)(image(of_16_bits))


@kind("greyscale of 16 bits, named .jpg", STOPPED, "train2.jpg: cannot be read", "scale them to")
def _(data):
    of_16_bits().save(_rename(data, "train2.jpg"), format="PNG")


kind("JPEG 2000 of 16 bits", STOPPED, "train2.png: cannot be read", "scale them to 0 to 255")(
    image(of_16_bits, "JPEG2000")
)
kind("TIFF of floats from 0 to 1", STOPPED, "train2.png: cannot be read", "scale them to 0 to 255")(
    image(lambda: picture(mode="F").point(lambda value: value * 0.004 + 0), "TIFF")
)
kind("TIFF of floats from 0 to 255", TRAINED)(image(of_mode("F"), "TIFF"))
kind("of 1 bit", TRAINED)(image(of_mode("1")))
kind("greyscale with alpha", TRAINED)(image(of_mode("LA")))
kind("RGBA", TRAINED)(image(of_mode("RGBA")))
kind("CMYK", TRAINED)(image(of_mode("CMYK"), "JPEG"))
kind("a GIF named .png", TRAINED)(image(of_mode("P"), "GIF"))


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


kind("of another size than annotated", STOPPED, "train2.png: cannot be read (SizeMismatch")(
    image(lambda: picture((32, 32)))
)


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
