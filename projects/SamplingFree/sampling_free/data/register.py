"""Data sets that a config describes: VOC-style folders, COCO files and the synthetic set.

Each function returns the registered name and may be called again with the same arguments, so a
config can say ``names=L(register_voc)(...)`` for the loader and let the evaluator refer to it::

    dataloader.test = L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names=L(register_voc)(name="cells_val", ...)),
    )
    dataloader.evaluator = L(COCOEvaluator)(dataset_name="${..test.dataset.names}")

Relative paths are under ``$DETECTRON2_DATASETS``, by default "datasets", as in Detectron2.
"""

import dataclasses
import difflib
import hashlib
import json
import os
import shutil
import uuid
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode

from ..utils.errors import BadInput
from .check import clean_dicts, require_pixels
from .coco_file import check_metadata, read_coco_file
from .images import IMAGE_SUFFIXES
from .synthetic.generate import (
    GENERATOR_VERSION,
    SETTINGS,
    SyntheticConfig,
    class_names,
    generate,
    num_images,
)

# A VOC box includes its last pixel, so Detectron2 reads the point xmin == xmax as 1 px wide.
_VOC_POINT = 1.0


def register_voc(name: str, root: str, split: str, classes: Sequence[str]) -> str:
    """Register a VOC-style folder with its own class names.

    Args:
        name: the name to register.
        root: the folder with Annotations/*.xml, ImageSets/Main and JPEGImages/; an image
            that is no .jpg is found by <filename> in its XML file, or by its name.
        split: ImageSets/Main/``split``.txt lists the images.
        classes: the class names; their order gives the category ids.

    Returns:
        ``name``.
    """
    if isinstance(classes, str) or not classes or len(set(classes)) != len(classes):
        raise BadInput(f"classes={classes!r} of data set {name!r}: give a list of distinct names")
    classes = [str(c) for c in classes]
    folder = _existing(root, "root", name)
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        _existing(folder / part, "root", name)
    split_file = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not split_file.is_file():
        known = sorted(p.stem for p in split_file.parent.glob("*.txt"))
        raise BadInput(
            f"{split_file}: no such file (split={split!r} of data set {name!r}): "
            f"choose one of {', '.join(known[:8]) or '(there is none)'}"
        )

    def load():
        return load_voc(folder, split, classes)

    # The year makes Detectron2's PascalVOCDetectionEvaluator use the area under the curve.
    metadata = {"dirname": str(folder), "split": split, "year": 2012, "thing_classes": classes}
    return _register(name, ("voc", str(folder), split, tuple(classes)), load, metadata)


def register_coco(name: str, json_file: str, image_root: str) -> str:
    """Register a COCO instances file; the class names come from its categories.

    Args:
        name: the name to register.
        json_file: the annotation file.
        image_root: the folder that its file names are relative to.

    Returns:
        ``name``.
    """
    json_file = _existing(json_file, "json_file", name)
    image_root = _existing(image_root, "image_root", name)
    metadata = {"json_file": str(json_file), "image_root": str(image_root)}

    def load():
        return load_coco(json_file, image_root, name)

    return _register(name, ("coco", str(json_file), str(image_root)), load, metadata)


def register_synthetic(
    name: str, split: str, setting: str = "easy", root: str | None = None, **overrides
) -> str:
    """Register a split of the synthetic set, and write it if the cache does not hold it yet.

    It is written here, not when it is loaded, as COCOEvaluator opens its annotation file at once.

    Args:
        name: the name to register.
        split: "train", "val" or "test".
        setting: "easy" or "hard".
        root: the cache; else $SAMPLING_FREE_CACHE, else ~/.cache/sampling_free.
        **overrides: fields of ``SyntheticConfig``, for example num_classes or objects.

    Returns:
        ``name``.
    """
    config = synthetic_config(setting, **overrides)
    folder = cached_split(config, setting, split, root)
    metadata = {
        "json_file": str(folder / "annotations.json"),
        "image_root": str(folder / "images"),
        "thing_classes": class_names(config),
        "thing_dataset_id_to_contiguous_id": {k + 1: k for k in range(config.num_classes)},
    }

    def load():
        return load_coco(metadata["json_file"], metadata["image_root"], name)

    return _register(name, ("synthetic", str(folder)), load, metadata)


def load_voc(folder: str | Path, split: str, classes: Sequence[str]) -> list[dict]:
    """The dataset dicts of a VOC-style folder, without its malformed boxes.

    As Detectron2's ``load_voc_instances`` reads it, but images may have any suffix, names may have
    blanks, and a split may be of one image.
    """
    folder = Path(folder)
    names = _read_split(folder / "ImageSets" / "Main" / f"{split}.txt")
    images = {}
    for path in sorted((folder / "JPEGImages").iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            images.setdefault(path.stem, path)
    dicts = [_voc_record(folder, name, images, classes) for name in names]
    require_pixels(dicts, str(folder))
    return clean_dicts(dicts, str(folder), min_size=_VOC_POINT)


def _read_split(path):
    """The image names in a file of ImageSets/Main."""
    try:
        lines = path.read_text().splitlines()
    except ValueError as error:
        raise BadInput(f"{path}: cannot be read ({error}): write it again in UTF-8") from None
    ids = [line.strip() for line in lines if line.strip()]
    if not ids:
        raise BadInput(f"{path}: is empty: write one image name per line")
    if len(set(ids)) < len(ids):
        (double, count), *_ = Counter(ids).most_common(1)
        raise BadInput(f"{path}: lists {double} {count} times: take out all but one")
    for name in ids:
        if len(name.split()) > 1 and not (path.parents[2] / "Annotations" / f"{name}.xml").exists():
            raise BadInput(
                f"{path}: there is no Annotations/{name}.xml: write one image name per line, and "
                "nothing behind it"
            )
    return ids


def _voc_record(folder, name, images, classes):
    """The dataset dict of one image; ``images`` has the files by their names without suffix."""
    root = _check_voc_xml(folder / "Annotations" / f"{name}.xml", classes)
    path = folder / "JPEGImages" / f"{name}.jpg"
    if not path.exists():
        told = path.parent / Path(root.findtext("filename") or "").name
        path = told if told.suffix and told.is_file() else images.get(name, path)
    annotations = []
    for thing in root.findall("object"):
        sides = ("xmin", "ymin", "xmax", "ymax")
        x0, y0, x1, y1 = (float(thing.findtext(f"bndbox/{side}")) for side in sides)
        annotations.append(
            {
                "category_id": list(classes).index(thing.findtext("name")),
                "bbox": [x0 - 1, y0 - 1, x1, y1],  # VOC counts pixels from 1, the last included
                "bbox_mode": BoxMode.XYXY_ABS,
            }
        )
    sizes = {side: int(root.findtext(f"size/{side}")) for side in ("height", "width")}
    return {"file_name": str(path), "image_id": name, **sizes, "annotations": annotations}


def _check_voc_xml(path, classes):
    """The root of a VOC annotation file; BadInput if Detectron2 could not read it."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file: add it or take {path.stem} out of the split")
    try:
        path.read_text()
        root = ET.parse(path).getroot()
    except UnicodeDecodeError as error:  # whatever its first line says
        raise BadInput(f"{path}: not in UTF-8 ({error.reason}): write it again") from error
    except ET.ParseError as error:
        raise BadInput(f"{path}: not a readable XML file ({error}): write it again") from error
    tags = [(root, "size/width", int), (root, "size/height", int)]
    for thing in root.findall("object"):
        tags.append((thing, "name", str))
        tags += [(thing, f"bndbox/{side}", float) for side in ("xmin", "ymin", "xmax", "ymax")]
    for node, tag, kind in tags:
        text = node.findtext(tag)
        try:
            kind(text.strip())
        except (AttributeError, ValueError):
            raise BadInput(
                f"{path}: <{tag}> is {text!r}: give it a value ({kind.__name__})"
            ) from None
        if tag == "name" and text not in classes:
            raise BadInput(
                f"{path}: class {text!r} is not in classes={list(classes)}: add it there "
                "or correct the file"
            )
    return root


def load_coco(json_file: str | Path, image_root: str | Path, name: str) -> list[dict]:
    """The dataset dicts of a COCO file, read by Detectron2, without its malformed boxes."""
    try:
        dicts = load_coco_json(str(json_file), str(image_root), name)
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
        content = read_coco_file(str(json_file))  # names the entry at fault, if it finds it
        check_metadata(content, json_file, name)
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise BadInput(
            f"{json_file}: not a COCO instances file ({reason}): it needs images, annotations "
            "and categories whose ids fit together"
        ) from error
    return clean_dicts(dicts, str(json_file))


def synthetic_config(setting: str = "easy", **overrides) -> SyntheticConfig:
    """The ``SyntheticConfig`` of a setting with some fields replaced."""
    if setting not in SETTINGS:
        raise BadInput(f"setting={setting!r}: choose one of {', '.join(sorted(SETTINGS))}")
    known = [f.name for f in dataclasses.fields(SETTINGS[setting])]
    for key in overrides:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1) or known
            raise BadInput(f"{key}: the synthetic set has no such key; use {', '.join(close)}")
    return dataclasses.replace(SETTINGS[setting], **overrides)


def cached_split(
    config: SyntheticConfig, setting: str, split: str, root: str | None = None
) -> Path:
    """The folder of a synthetic split, written on the first call.

    The folder appears complete or not at all: it is written under another name and renamed. Of
    several processes that write it at once the first wins and the others discard their copies.
    """
    num_images(config, split)  # a wrong split ends here, before a folder is made
    root = Path(root or os.environ.get("SAMPLING_FREE_CACHE") or "~/.cache/sampling_free")
    key = json.dumps([GENERATOR_VERSION, dataclasses.asdict(config)], sort_keys=True)
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    folder = root.expanduser().absolute() / f"{setting}-{digest}" / split
    if folder.is_dir():
        return folder
    partial = folder.with_name(f".{split}-{uuid.uuid4().hex}")
    try:
        generate(config, split, partial)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    except OSError as error:
        raise BadInput(
            f"{folder}: cannot be written ({error.strerror}): set SAMPLING_FREE_CACHE or root to "
            "a folder with free space"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _existing(path, key, name):
    """The absolute path of a file or folder that a config names."""
    base = Path(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))
    full = (base / os.path.expanduser(path)).absolute()
    if not full.exists():
        raise BadInput(
            f"{full}: no such file or folder ({key} of data set {name!r}): relative paths are "
            f"under DETECTRON2_DATASETS={str(base)!r}; set it or give an absolute path"
        )
    return full


def _register(name, source, load, metadata):
    """Register ``load`` unless the same source has the name already; returns the name."""
    if name in DatasetCatalog:
        if MetadataCatalog.get(name).get("source", None) != source:
            raise BadInput(
                f"data set name {name!r} is taken by other data or arguments: choose another name"
            )
        return name
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(evaluator_type="coco", source=source, **metadata)
    return name
