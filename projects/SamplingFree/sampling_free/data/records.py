"""What a function of Detectron2's ``DatasetCatalog`` returns, made into what Detectron2 reads.

Detectron2 itself reads the same record in several places, which do not agree: its mapper takes a
polygon as pairs of numbers, its conversion to COCO does not. Here a record is made into what all of
them take, where nothing is lost by it, or is named in one line.
"""

import contextlib
import logging
import traceback
from collections.abc import Sequence

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n
from PIL import Image
from pycocotools import mask as mask_util
from torch.utils.data import Dataset

from ..utils.errors import BadInput, printable
from .masks import is_sound_mask

_RETURN = "return a list with a dict for each image"
_ORIENTATION, _TURNED = 274, (5, 6, 7, 8)  # of EXIF: where width and height change places


def check_at_source(name: str):
    """Makes a registered name give checked records from now on, whoever asks for them.

    Args:
        name: registered with Detectron2.
    """
    if not isinstance(DatasetCatalog[name], CheckedSource):
        DatasetCatalog[name] = CheckedSource(name, DatasetCatalog[name])


class CheckedSource:
    """A function of the catalog whose records Detectron2 can read."""

    def __init__(self, name, function):
        self.name = name
        self.function = function

    def __call__(self):
        """list[dict]: see :func:`readable_records`; a PyTorch Dataset as it is."""
        where = f"data set {self.name!r}"
        records = self._listed(where)
        if isinstance(records, list):
            records = readable_records(records, where)
            classes = MetadataCatalog.get(self.name).get("thing_classes")
            if classes is not None:
                _require_names(classes, where)
                require_categories(records, len(classes), where, classes)
        return records

    def _listed(self, where):
        try:
            found = self.function()
            if isinstance(found, Dataset):
                return found
            if found is None or isinstance(found, (dict, str)) or not hasattr(found, "__iter__"):
                kind = "None" if found is None else f"a {type(found).__name__}"
                raise BadInput(f"{where}: its function returns {kind}; {_RETURN}")
            records = list(found)
        except BadInput:
            raise
        except Exception as e:  # whatever a user's code raises
            if isinstance(e, FileNotFoundError) and e.filename:
                raise  # named by who asked, with the place where data are looked for
            place = _place_in(self.function, e)
            raise BadInput(
                f"{where}: its function fails with {type(e).__name__}: {e}{place}; correct it"
            ) from e
        if not records:
            raise BadInput(f"{where}: its function returns no image; {_RETURN}")
        return records


def _place_in(function, error):
    """Where in the file of a function an error came up."""
    code = getattr(function, "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if code and f.filename == code.co_filename]
    return f" ({code.co_filename}, line {lines[-1]})" if lines else ""


def _require_names(classes, where):
    if isinstance(classes, str) or not all(isinstance(c, str) for c in classes):
        raise BadInput(f"{where}: thing_classes={classes!r}; give a list of names")


def readable_records(records: list[dict], source: str) -> list[dict]:
    """Records as all of Detectron2 reads them.

    Boxes and polygons become lists, masks without a point are left out, an image without
    "annotations" among others gets none, and a size that is missing is read from the image file.

    Args:
        records: the input is left as it is.
        source: what messages call the data set.

    Returns:
        As many, in the same order.

    Raises:
        BadInput: for what is no record or no annotation.
    """
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise BadInput(f"{source}: entry {number} is a {type(record).__name__}; {_RETURN}")
    is_annotated = any(record.get("annotations") is not None for record in records)
    made = [_readable(record, source, is_annotated) for record in records]
    num_sized = sum("width" in new and "width" not in old for new, old in zip(made, records))
    if num_sized:
        message = f"{source}: the size of {num_sized} images was read from their files; records "
        log_once(message + "with width and height load faster", logging.INFO)
    return made


def _readable(record, source, is_annotated):
    changed = {}
    if isinstance(record.get("image_id"), np.integer):
        changed["image_id"] = int(record["image_id"])
    if not {"width", "height"} <= record.keys():
        record = {**_size_of_file(record.get("file_name")), **record}
    if is_annotated:
        annotations = record.get("annotations")
        annotations = [] if annotations is None else annotations
        if not isinstance(annotations, (list, tuple)):
            kind = type(annotations).__name__
            raise BadInput(
                f"{source}: annotations of {called(record)} are a {kind}; give a list of dicts"
            )
        changed["annotations"] = [_readable_annotation(a, record, source) for a in annotations]
    return {**record, **changed}


def called(record):
    """What a message calls an image: its file or its id."""
    return record.get("file_name", record.get("image_id"))


def log_once(message: str, level: int = logging.WARNING):
    """Logs a message in one line, the first time that it comes."""
    log_first_n(level, printable(message), name=__name__, key="message")


def _size_of_file(path):
    """The size as Detectron2's mapper will see it; nothing for what Pillow cannot open."""
    with contextlib.suppress(Exception), PathManager.open(path, "rb") as f, Image.open(f) as image:
        is_turned = image.getexif().get(_ORIENTATION) in _TURNED
        width, height = image.size[::-1] if is_turned else image.size
        return {"width": width, "height": height}
    return {}


def _readable_annotation(annotation, record, source):
    if not isinstance(annotation, dict):
        kind = type(annotation).__name__
        raise BadInput(f"{source}: an annotation of {called(record)} is a {kind}; give a dict")
    if annotation.get("iscrowd", 0) not in (0, 1):
        raise BadInput(
            f"{source}: iscrowd={annotation['iscrowd']!r} in {called(record)}; give 0 or 1"
        )
    changed = {}
    if hasattr(annotation.get("bbox"), "tolist"):  # of NumPy or PyTorch
        changed["bbox"] = annotation["bbox"].tolist()
    if type(annotation.get("category_id")) is not int:
        changed["category_id"] = _as_whole(annotation.get("category_id"))
    mask = annotation.get("segmentation")
    if isinstance(mask, list) and any(map(_has_points, mask)):
        if not all(map(is_flat, mask)):
            changed["segmentation"] = [_flattened(p) for p in mask if _has_points(p)]
    elif isinstance(mask, dict):
        if isinstance(mask.get("counts"), list) and is_sound_mask(mask):
            changed["segmentation"] = mask_util.frPyObjects(mask, *mask["size"])
    elif "segmentation" in annotation and (mask is None or isinstance(mask, list)):
        annotation = {k: v for k, v in annotation.items() if k != "segmentation"}
    return {**annotation, **changed} if changed else annotation


def _as_whole(value):
    """1 for 1.0, "1" and NumPy's 1, as Detectron2 has it; else the value as it is."""
    try:
        return int(value) if float(value) == int(value) else value
    except (OverflowError, TypeError, ValueError):
        return value


def _has_points(polygon):
    return not hasattr(polygon, "__len__") or len(polygon) > 0


def is_flat(polygon):
    """Says whether a polygon is a flat list of numbers."""
    return type(polygon) is list and bool(polygon) and type(polygon[0]) in (int, float)


def _flattened(polygon):
    """A polygon of pairs, or one of NumPy, as [x0, y0, x1, y1, ...]; another thing as it is."""
    try:
        return np.asarray(polygon, dtype=np.float64).ravel().tolist()
    except (TypeError, ValueError):
        return polygon


def require_categories(
    records: list[dict],
    num_classes: int,
    source: str,
    classes: Sequence[str] | None = None,
    key: str | None = None,
):
    """Makes sure that every object is of one of the classes.

    Args:
        records: of :func:`readable_records`.
        num_classes: K.
        source: what messages call the data set.
        classes: their names.
        key: where a config has K.

    Raises:
        BadInput: names the image and what to give instead.
    """
    for record in records:
        for annotation in record.get("annotations") or ():
            k = annotation.get("category_id")
            if annotation.get("iscrowd", 0) or isinstance(k, int) and 0 <= k < num_classes:
                continue
            if classes is not None and k in classes:
                way_out = f"give its place in thing_classes, {list(classes).index(k)}"
            elif k == num_classes:
                way_out = "count them from 0"
            else:
                way_out = f"correct the annotation{f' or set {key}' if key else ''}"
            raise BadInput(
                f"{source}: category_id={k} in {called(record)} is outside 0..{num_classes - 1}, "
                f"the numbers of its {num_classes} classes: {way_out}"
            )
