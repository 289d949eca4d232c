"""Small sound data sets in COCO's and in VOC's form, for tests that spoil them."""

import copy
import json
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

XYWH = BoxMode.XYWH_ABS
CLASSES = ["ant", "bee"]
SIZE = 64, 48  # width and height in pixels
BOXES = [(4, 6, 30, 24), (20, 10, 33, 30)]  # x, y, width, height; one of each class in each image
NUM_IMAGES = {"train": 4, "val": 2}


def picture(size=SIZE, mode="RGB", seed=0):
    """An image of noise."""
    shape = size[1], size[0], 3
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


class CocoData:
    """Four images to train on and two to evaluate on, with two objects each.

    Attributes:
        folder (Path): has images/ and, after :meth:`write`, train.json and val.json.
        train, val (dict): what the files will hold.
        text (dict[str, bytes]): what a file holds instead.
    """

    form = "COCO"

    def __init__(self, folder):
        self.folder = Path(folder)
        (self.folder / "images").mkdir(parents=True)
        self.train, self.val = self._split("train"), self._split("val")
        self.text = {}

    def _split(self, split):
        images, annotations = [], []
        for i in range(1, NUM_IMAGES[split] + 1):
            name = f"{split}{i}.png"
            picture(seed=i).save(self.folder / "images" / name)
            images.append({"id": i, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
            for k, box in enumerate(BOXES):
                annotations.append(_annotation(len(annotations) + 1, i, k + 1, box))
        categories = [{"id": k, "name": name} for k, name in enumerate(CLASSES, 1)]
        return {"images": images, "annotations": annotations, "categories": categories}

    def image(self, number=2):
        """The file of a training image."""
        return self.folder / "images" / f"train{number}.png"

    def add(self, box, image=2, **keys):
        """Another ant in a training image; its area and outline are sound."""
        found = self.train["annotations"]
        sound = _annotation(len(found) + 1, image, 1, (5, 5, 20, 20))
        found.append({**sound, "bbox": box, **keys})

    def size(self, width, height, image=2):
        """Says that a training image has this size, and gives it one box that is the whole."""
        self.train["images"][image - 1].update(width=width, height=height)
        first, second = (a for a in self.train["annotations"] if a["image_id"] == image)
        self.train["annotations"].remove(second)
        first["bbox"] = [0, 0, width, height]

    def write(self):
        for split, content in (("train", self.train), ("val", self.val)):
            text = self.text.get(split, json.dumps(content).encode())
            if text is not None:
                (self.folder / f"{split}.json").write_bytes(text)

    def node(self, split, tag):
        """The line of a config that registers a split."""
        paths = f"json_file={str(self.folder / split)!r} + '.json', image_root={self.root!r}"
        return f"L(register_coco)(name='{tag}_{split}', {paths})"

    @property
    def root(self):
        return str(self.folder / "images")

    def num_written(self):
        """(images, objects) that the training file has, crowds aside."""
        objects = [a for a in self.train["annotations"] if a.get("iscrowd", 0) == 0]
        return len(self.train["images"]), len(objects)


def _annotation(number, image, category, box):
    x, y, w, h = box
    outline = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "area": w * h,
        "iscrowd": 0,
        "segmentation": [outline],
    }


class CatalogData(CocoData):
    """The same as records that a function of Detectron2's ``DatasetCatalog`` gives.

    Attributes:
        folder (Path): has images/.
        records (dict[str, list[dict]]): of each split.
        function (callable): what the registered function makes of them; by default nothing.
        classes (list[str] or None): the thing_classes of both splits.
    """

    form = "catalog"

    def __init__(self, folder):
        super().__init__(folder)
        self.records = {"train": self._records(self.train), "val": self._records(self.val)}
        self.function = list
        self.classes = list(CLASSES)

    def _records(self, content):
        return [
            {
                "file_name": str(self.folder / "images" / image["file_name"]),
                "image_id": image["id"],
                "width": image["width"],
                "height": image["height"],
                "annotations": [
                    {"bbox": a["bbox"], "bbox_mode": XYWH, "category_id": a["category_id"] - 1}
                    for a in content["annotations"]
                    if a["image_id"] == image["id"]
                ],
            }
            for image in content["images"]
        ]

    def write(self):
        """Nothing: the records stay in memory."""

    def node(self, split, tag):
        """The line of a config that registers a split."""
        name = f"{tag}_{split}"
        DatasetCatalog.register(name, lambda: self.function(copy.deepcopy(self.records[split])))
        if self.classes is not None:
            MetadataCatalog.get(name).thing_classes = self.classes
        return repr(name)

    def num_written(self):
        """(images, objects) of the training split, crowds aside."""
        records = self.records["train"]
        objects = [a for r in records for a in r.get("annotations", []) if not a.get("iscrowd", 0)]
        return len(records), len(objects)


class VocData:
    """The same as a VOC-style folder.

    Attributes:
        folder (Path): with Annotations/, JPEGImages/ and ImageSets/Main/.
        xml (dict[str, str]): image name -> the text of its file.
        splits (dict[str, list[str]]): image names.
        encoding (str): of the XML files.
    """

    form = "VOC"

    def __init__(self, folder):
        self.folder = Path(folder)
        for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (self.folder / part).mkdir(parents=True)
        self.splits = {s: [f"{s}{i}" for i in range(1, n + 1)] for s, n in NUM_IMAGES.items()}
        self.encoding = "utf-8"
        self.xml = {}
        for name in sum(self.splits.values(), []):
            picture().save(self.image(name))
            self.xml[name] = voc_xml(zip(CLASSES, BOXES))

    def image(self, name="train2"):
        return self.folder / "JPEGImages" / f"{name}.jpg"

    def replace(self, old, new, name="train2"):
        """Changes the first ``old`` in the XML of an image."""
        assert old in self.xml[name]
        self.xml[name] = self.xml[name].replace(old, new, 1)

    def write(self):
        for name, text in self.xml.items():
            path = self.folder / "Annotations" / f"{name}.xml"
            path.write_bytes(text.encode(self.encoding))
        for split, names in self.splits.items():
            path = self.folder / "ImageSets" / "Main" / f"{split}.txt"
            path.write_text("".join(f"{name}\n" for name in names))

    def node(self, split, tag):
        """The line of a config that registers a split."""
        where = f"root={str(self.folder)!r}, split={split!r}, classes={CLASSES!r}"
        return f"L(register_voc)(name='{tag}_{split}', {where})"

    def num_written(self):
        """(images, objects) of the training split."""
        names = self.splits["train"]
        return len(names), sum(self.xml[name].count("<object>") for name in names)


def voc_xml(objects, size=SIZE):
    """The annotation file of an image; ``objects`` are pairs of a name and a box as in BOXES."""
    things = "".join(
        f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin>"
        f"<ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
        for name, (x, y, w, h) in objects
    )
    size = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation>{size}{things}</annotation>"
