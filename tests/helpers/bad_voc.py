"""Kinds of VOC-style folders with mistakes."""

from helpers.bad_kind import SKIPPED, STOPPED, TRAINED, drop, kinds_of, put
from helpers.sound_data import VocData, voc_xml

VOC_KINDS, kind = kinds_of("VOC", VocData)


def replace(*pairs):
    """Changes the XML of the second training image, one first occurrence for each pair."""

    def spoil(data):
        for old, new in pairs:
            data.replace(old, new)

    return spoil


@kind("XML cut off", STOPPED, "train2.xml: not a readable XML file")
def _(data):
    data.xml["train2"] = data.xml["train2"][:200]


kind("XML empty", STOPPED, "train2.xml: not a readable XML file")(put("", "xml.train2"))
kind("XML missing", STOPPED, "train2.xml: no such file")(drop("xml.train2"))


@kind("XML in Latin-1 that does not say so", STOPPED, "train2.xml: not in UTF-8")
def _(data):
    data.replace("<size>", "<owner>Zo\xe9</owner><size>")
    data.encoding = "latin-1"


@kind("XML in Latin-1 that says so", STOPPED, "train2.xml: not in UTF-8")
def _(data):
    data.replace("<size>", "<owner>Zo\xe9</owner><size>")
    data.xml["train2"] = "<?xml version='1.0' encoding='latin-1'?>" + data.xml["train2"]
    data.encoding = "latin-1"


kind("XML without size", STOPPED, "train2.xml: <size/width> is None")(
    replace(("size>", "shape>"), ("size>", "shape>"))
)
kind("XML without name", STOPPED, "train2.xml: <name> is None")(replace(("<name>ant</name>", "")))
kind("XML without bndbox", STOPPED, "train2.xml: <bndbox/xmin> is None")(
    replace(("<bndbox>", "<box>"), ("</bndbox>", "</box>"))
)
kind("XML without xmax", STOPPED, "train2.xml: <bndbox/xmax> is None")(
    replace(("xmax>", "x_max>"), ("xmax>", "x_max>"))
)
kind("size of 0 x 0", STOPPED, "width=0 of JPEGImages/train2.jpg")(
    replace(("<width>64", "<width>0"), ("<height>48", "<height>0"))
)
kind("unknown class", STOPPED, "train2.xml: class 'wasp' is not in classes")(
    replace(("<name>ant", "<name>wasp"))
)
kind("blanks around a class", STOPPED, "train2.xml: class ' ant ' is not in classes")(
    replace(("<name>ant", "<name> ant "))
)
kind("coordinate nan", SKIPPED, "skipped 1 boxes (1 not finite) in train2.jpg")(
    replace(("<xmin>5", "<xmin>nan"))
)
kind("coordinate that is a word", STOPPED, "train2.xml: <bndbox/xmin> is 'five'")(
    replace(("<xmin>5", "<xmin>five"))
)
kind("xmin beyond xmax", SKIPPED, "skipped 1 boxes (1 of no area) in train2.jpg")(
    replace(("<xmin>5", "<xmin>60"))
)


@kind("box outside the image", SKIPPED, "skipped 1 boxes (1 outside the image) in train2.jpg")
def _(data):
    data.xml["train2"] = voc_xml([("ant", (90, 90, 20, 20)), ("bee", (5, 5, 20, 20))])


kind("no object in an image", SKIPPED, "Removed 1 images")(put(voc_xml([]), "xml.train2"))


@kind("no object in any image", STOPPED, "No image has an object")
def _(data):
    data.xml.update((name, voc_xml([])) for name in data.splits["train"])


kind("empty split", STOPPED, "train.txt: is empty: write one image name per line")(
    put([], "splits.train")
)


@kind("image listed twice", STOPPED, "train.txt: lists train2 2 times")
def _(data):
    data.splits["train"].append("train2")


@kind("image that is a .PNG", TRAINED)
def _(data):
    data.image().rename(data.image().with_suffix(".PNG"))


@kind("name with blanks", TRAINED)
def _(data):
    data.image().rename(data.image("my image (2)"))
    data.xml["my image (2)"] = data.xml.pop("train2")
    data.splits["train"][1] = "my image (2)"


kind("split of one image", TRAINED)(put(["val1"], "splits.val"))


@kind("split with a flag behind each name", STOPPED, "there is no Annotations/train1 1.xml")
def _(data):
    data.splits["train"] = [f"{name} 1" for name in data.splits["train"]]


@kind("boxes as fractions", STOPPED, "all 8 boxes lie in [0, 1]")
def _(data):
    for name in data.splits["train"]:
        data.xml[name] = voc_xml([(c, (-0.9, -0.9, 1.5, 1.5)) for c in ("ant", "bee")])


@kind("image missing", STOPPED, "1 of its 4 image files are not there", "train2.jpg")
def _(data):
    data.image().unlink()


kind("image of another size than annotated", STOPPED, "train2.jpg: cannot be read (SizeMismatch")(
    replace(("<width>64", "<width>99"))
)
