"""Checks of a COCO file before Detectron2 reads it: a mistake is one line with file and id.

Detectron2's own errors name no id, and some mistakes are none to it: of two images with one id
pycocotools keeps the last. What can be left out alone, such as a box without an area, is not
looked at here but in check.py. For this a file is parsed once more, which takes as long as
Detectron2 takes to load it.
"""

import json
from collections import Counter
from numbers import Integral, Real

from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager

from ..utils.errors import BadInput

_MOST_RUN = 2**32 - 1  # pycocotools' largest run length


def is_id(value):
    """Says whether a value can be an id in a COCO file."""
    return isinstance(value, (Integral, str)) or isinstance(value, float) and value.is_integer()


def _is_side(value):
    return is_id(value) and not isinstance(value, str) and value >= 1


def _is_text(value):
    return isinstance(value, str)


_ID, _TEXT = (is_id, "a whole number or text"), (_is_text, "text")
_SIDE = _is_side, "a whole number of pixels from 1 up"
# What Detectron2 reads of each entry: a test, and what to give where it fails.
_KEYS = {
    "categories": {"id": _ID, "name": _TEXT},
    "images": {"id": _ID, "file_name": _TEXT, "width": _SIDE, "height": _SIDE},
    "annotations": {"id": _ID, "image_id": _ID, "category_id": _ID},
}
_WANTED = "lists of objects: images, annotations and categories"
_ONE = {"categories": "category", "images": "image", "annotations": "annotation"}


def read_coco_file(path: str) -> dict:
    """The content of a COCO instances file that Detectron2 can read without a loss.

    Args:
        path: the file.

    Returns:
        With "images", "categories" and, except in a test set without them, "annotations".

    Raises:
        BadInput: names the file, the entry and what is wrong with it.
    """
    try:
        with PathManager.open(path) as f:
            content = json.load(f)
    except OSError as e:
        raise BadInput(f"{path}: cannot be read ({e.strerror}); give another file") from None
    except (ValueError, RecursionError) as e:
        raise BadInput(f"{_not_coco(path)} ({type(e).__name__}: {e}); write it again") from None
    if not isinstance(content, dict):
        raise BadInput(f"{_not_coco(path)}: it holds a {type(content).__name__}; give {_WANTED}")
    for key, wanted in _KEYS.items():
        if key in content or key != "annotations":
            _check_entries(content.get(key), path, key, wanted)
    _check_names(content["categories"], path)
    known = {category["id"] for category in content["categories"]}
    is_text = _is_text(content["images"][0]["id"])
    for annotation in content.get("annotations", []):
        fault = _fault(annotation, known, is_text)
        if fault:
            raise BadInput(f"{path}: {called(annotation)} has {fault}; correct or remove it")
    return content


def called(entry, key="annotations", number=None):
    """What a message calls an entry: by its id, or by its place from 0 up."""
    name = f"{_ONE[key]} {entry['id']}" if "id" in entry else f"entry {number} of {key!r}"
    return f"{name} of image {entry['image_id']}" if "image_id" in entry else name


def _not_coco(path):
    return f"{path}: not a COCO instances file"


def _check_entries(entries, path, key, wanted):
    if not isinstance(entries, list):
        found = "no" if entries is None else f"a {type(entries).__name__} as"
        raise BadInput(f"{_not_coco(path)}: it has {found} {key!r}; give {_WANTED}")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            where = called({}, key, number)
            raise BadInput(
                f"{_not_coco(path)}: {where} is a {type(entry).__name__}; give {_WANTED}"
            )
    if not entries and key != "annotations":
        raise BadInput(f"{path}: {key!r} is empty; check how the file was written")
    for number, entry in enumerate(entries):
        for name, (is_right, what) in wanted.items():
            if name not in entry or not is_right(entry[name]):
                found = f"{name}={entry[name]!r}" if name in entry else f"no {name!r}"
                where = called(entry, key, number)
                raise BadInput(f"{_not_coco(path)}: {where} has {found}; give it {what}")
    ids = [entry["id"] for entry in entries]
    if len({_is_text(i) for i in ids}) > 1:
        raise BadInput(f"{_not_coco(path)}: {key!r} have numbers and text as ids; take one kind")
    if len(set(ids)) < len(ids):
        (double, count), *_ = Counter(ids).most_common(1)
        raise BadInput(
            f"{_not_coco(path)}: {count} {key} have the id {double!r}; give each one of its own"
        )


def _check_names(categories, path):
    ids = {}
    for category in categories:
        ids.setdefault(category["name"], []).append(category["id"])
    for name, same in ids.items():
        if len(same) > 1:
            raise BadInput(f"{path}: categories {same} are all called {name!r}; rename all but one")


def check_metadata(content: dict, path: str, name: str):
    """Makes sure that the catalog does not tell other classes of a data set than its file.

    Args:
        content: of :func:`read_coco_file`.
        path: of that file.
        name: of the data set.

    Raises:
        BadInput: shows both.
    """
    categories = sorted(content["categories"], key=lambda category: category["id"])
    told = {
        "thing_classes": [category["name"] for category in categories],
        "thing_dataset_id_to_contiguous_id": {c["id"]: k for k, c in enumerate(categories)},
    }
    for key, of_file in told.items():
        by_hand = MetadataCatalog.get(name).get(key, of_file)
        if by_hand != of_file:
            raise BadInput(
                f"data set {name!r}: {key} is set to {by_hand}, but by {path} it is {of_file}: "
                "leave it out, or change the categories in the file"
            )


def left_out(content: dict) -> list[str]:
    """What Detectron2 does not take from a file, and what no detector is trained on.

    Args:
        content: of :func:`read_coco_file`.

    Returns:
        How many annotations, and why.
    """
    annotations = content.get("annotations", [])
    ids = {image["id"] for image in content["images"]}
    counts = {
        "are of no image of the file": sum(a["image_id"] not in ids for a in annotations),
        "are crowds (iscrowd=1)": sum(bool(a.get("iscrowd", 0)) for a in annotations),
        "have a 'segmentation' without a polygon of three points: remove that key, which a "
        "detector of boxes does not need": sum(map(_is_unfinished, annotations)),
    }
    return [f"{n} of {len(annotations)} annotations {why}" for why, n in counts.items() if n]


def _is_unfinished(annotation):
    mask = annotation.get("segmentation")
    return isinstance(mask, list) and bool(mask) and all(len(p) < 6 or len(p) % 2 for p in mask)


def _fault(annotation, known, has_text_ids):
    """What makes an annotation unreadable; None if Detectron2 reads it, or skips it and says so."""
    if _is_text(annotation["image_id"]) != has_text_ids:
        kind = "text" if has_text_ids else "numbers"
        return f"image_id={annotation['image_id']!r}, which is the id of no image: those are {kind}"
    if annotation["category_id"] not in known:
        return f"category_id={annotation['category_id']!r}, which is the id of no category"
    if annotation.get("iscrowd", 0) not in (0, 1):
        return f"iscrowd={annotation['iscrowd']!r}, which is neither 0 nor 1"
    if annotation.get("ignore", 0) != 0:
        return "'ignore', which Detectron2 does not know (iscrowd=1 is much like it)"
    box = annotation.get("bbox", [0])
    if not isinstance(box, list) or not box:
        return f"bbox={box!r}, which is no list of numbers"
    if not all(isinstance(x, Real) for x in annotation.get("keypoints") or ()):
        return "'keypoints' that are no numbers"
    mask = annotation.get("segmentation")
    if isinstance(mask, dict) and isinstance(mask.get("counts"), list):
        numbers = [*mask["counts"], *_sides(mask.get("size"))]
        is_readable = all(isinstance(n, int) and 0 <= n <= _MOST_RUN for n in numbers)
    elif isinstance(mask, dict):
        is_readable = "counts" in mask
    else:
        is_readable = not mask or isinstance(mask, list) and all(isinstance(p, list) for p in mask)
    return None if is_readable else "a 'segmentation' of neither polygons nor run lengths"


def _sides(size):
    return size if isinstance(size, list) and len(size) == 2 else [None]
