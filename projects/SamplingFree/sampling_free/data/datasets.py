"""From the data set nodes of a config to checked dataset dicts and loaders."""

import inspect
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence

from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MapDataset, MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    PascalVOCDetectionEvaluator,
    RotatedCOCOEvaluator,
)
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch.utils.data import DataLoader

from ..utils.errors import BadInput, printable
from ..utils.lazy import instantiate_with, target_of
from ..utils.signals import LoaderSignals, SignalSafeLoader
from .check import (
    check_dataset,
    check_masks,
    check_num_classes,
    check_same_classes,
    clean_dicts,
    report_crowds,
    report_implausible,
    require_registered,
)
from .coco_file import check_metadata, left_out, read_coco_file
from .evaluated import check_converted, check_evaluated_boxes, check_evaluated_masks, warn_if_bare
from .images import makes_8_bits
from .loader import ReadOrName, is_detectron2s
from .records import check_at_source, readable_records

logger = logging.getLogger(__name__)


def dataset_names(node: DictConfig) -> list[str]:
    """Registered names of a ``get_detection_dataset_dicts`` node, registering them if it does so.

    From then on Detectron2 gets their records as :mod:`sampling_free.data.records` checks them.

    Args:
        node: "names" is a name, a list of names, or a call that returns one; a node
            without it has none.
    """
    names = instantiate(node.get("names", None)) or []
    names = [names] if isinstance(names, str) else list(names)
    require_registered(names)
    for name in names:
        check_at_source(name)
    return names


def load_dataset(
    node: DictConfig,
    model_node: DictConfig | None = None,
    is_train: bool = True,
    tests: Sequence[DictConfig] = (),
) -> list[dict]:
    """Instantiates and checks a data set.

    Args:
        node: calls Detectron2's ``get_detection_dataset_dicts`` or the like.
        model_node: its class count, if it has any, must fit the annotations;
            None checks nothing.
        is_train: check the annotations too; evaluators read test sets on their own.
        tests: loaders of test sets, whose data are loaded too and compared
            with these, before either are with the model.

    Returns:
        Of a training set without boxes that are malformed.

    Raises:
        BadInput: for an unknown name, a missing folder or file, a class count that does not fit,
            or a mistake in an annotation file or a record, which it names.
    """
    names = dataset_names(node)
    label = ", ".join(names) or str(node.get("_target_", "data set"))
    for name in names:
        path = _coco_file(name)
        if path and MetadataCatalog.get(name).get("evaluator_type") == "coco":
            check_metadata(read_coco_file(path), path, name)
    dicts = _instantiated(node, names, label)
    if isinstance(dicts, list):
        if is_train and names and not any(d.get("annotations") for d in dicts):
            raise _nothing_left(names, label)
        report_implausible(dicts, f"data set {label!r}")
    for test in tests:
        found, called = load_dataset(test.dataset, is_train=False), dataset_names(test.dataset)
        if names and called:
            check_same_classes((names[0], _classes(names)), (called[0], _classes(called)))
        check_image_files(found, instantiate(test.mapper), ", ".join(called))
    key, num_classes = _class_count(model_node)
    classes = _classes(names)
    if not is_train:
        warn_if_bare(dicts, label)
        if num_classes is not None:
            check_num_classes(num_classes, classes, label, key)
        return dicts
    if isinstance(dicts, list):
        report_crowds(dicts, f"data set {label!r}")
    if num_classes is None:
        return clean_dicts(dicts, label) if isinstance(dicts, list) else dicts
    dicts = check_dataset(dicts, num_classes, classes, label, key)
    for test in (dataset_names(test.dataset) for test in tests):
        check_num_classes(num_classes, _classes(test), ", ".join(test), key)
    return dicts


def _instantiated(node, names, label):
    """The dicts that a node gives, readable by Detectron2; whatever it raises becomes a line."""
    try:
        dicts = instantiate(node)
    except BadInput:
        raise
    except FileNotFoundError as e:
        root = os.environ.get("DETECTRON2_DATASETS", "datasets")
        raise BadInput(
            f"data set {label}: {e.filename} is missing; data are looked for under "
            f"$DETECTRON2_DATASETS, now {root!r}"
        ) from None
    except Exception as e:  # of Detectron2, or of somebody's own function
        if isinstance(e, AssertionError) and "No valid data found" in str(e):
            raise _nothing_left(names, label) from None
        for name in names[1:]:
            _check_same_list(names[0], name)
        raise BadInput(f"data set {label}: cannot be loaded ({type(e).__name__}: {e})") from e
    if names or not isinstance(dicts, list):
        return dicts
    return readable_records(dicts, f"data set {label!r}")


def _check_same_list(first, second):
    ours, theirs = _classes([first]), _classes([second])
    if ours != theirs:
        raise BadInput(
            f"data sets {first!r} and {second!r} have other classes ({', '.join(ours or [])}; "
            f"{', '.join(theirs or [])}): give all the same list"
        )


def _nothing_left(names, label):
    """The error for a data set of which Detectron2 has taken out every image."""
    why = []
    for name in names:
        if _coco_file(name):
            why += left_out(read_coco_file(_coco_file(name)))
        else:
            records = DatasetCatalog.get(name)
            crowds = [bool(a.get("iscrowd", 0)) for d in records for a in d.get("annotations", [])]
            if any(crowds):
                why.append(f"{sum(crowds)} of {len(crowds)} annotations are crowds (iscrowd=1)")
    reason = "; ".join(why) or "check its split and its annotations"
    return BadInput(
        f"data set {label}: No image has an object that is no crowd: {reason} (in {_where(names)})"
    )


def _coco_file(name):
    """The annotation file of a registered data set, if it has one that is there."""
    path = MetadataCatalog.get(name).get("json_file")
    return path if path and PathManager.exists(path) else None


def _where(names):
    """The annotation files or folders of data sets."""
    known = map(MetadataCatalog.get, names)
    return ", ".join(m.get("json_file") or m.get("dirname") or m.name for m in known)


def _classes(names):
    return MetadataCatalog.get(names[0]).get("thing_classes") if names else None


def check_ground_truth(evaluator_node: DictConfig | ListConfig, model_node: DictConfig):
    """Makes sure that the COCO evaluators of a config can measure by the files that they read.

    Args:
        evaluator_node: one or several.
        model_node: with a mask head masks are measured too.

    Raises:
        BadInput: names the annotation that is in the way.
    """
    for node in coco_evaluators(evaluator_node):
        name = instantiate(node.dataset_name)
        path = _coco_file(name)
        if not path:
            check_converted(name, issubclass(target_of(node), RotatedCOCOEvaluator))
        else:
            content = read_coco_file(path)
            check_evaluated_boxes(content, path)
            if _has_mask_head(model_node) and "segm" in (node.get("tasks") or ["segm"]):
                check_evaluated_masks(content, path)


def evaluators_of(evaluator_node) -> list:
    """One or several evaluators, nodes of a config or what is built of them, as a list."""
    if isinstance(evaluator_node, (list, ListConfig)):
        return list(evaluator_node)
    return [] if evaluator_node is None else [evaluator_node]


def coco_evaluators(evaluator_node: DictConfig | ListConfig | None) -> list[DictConfig]:
    """The nodes of Detectron2's ``COCOEvaluator`` among one or several."""
    return [
        node
        for node in evaluators_of(evaluator_node)
        if inspect.isclass(target_of(node)) and issubclass(target_of(node), COCOEvaluator)
    ]


def check_training_masks(dicts: list[dict], mapper: Callable, model_node: DictConfig, label: str):
    """Makes sure that a mask head gets a mask for every object of a training set.

    Args:
        dicts: of :func:`load_dataset`.
        mapper: of one's own, it may take masks from wherever it likes.
        model_node: without a mask head nothing is checked.
        label: what a message calls the data set.

    Raises:
        BadInput: names an image, or the key of the mapper.
    """
    if not _has_mask_head(model_node) or not is_detectron2s(mapper):
        return
    if not mapper.use_instance_mask:
        raise BadInput(
            "the model has a mask head, but dataloader.train.mapper.use_instance_mask=False: set it"
        )
    check_masks(dicts, label)


def check_image_files(dicts: list[dict], mapper: Callable, label: str, unreadable: str = "stop"):
    """Makes sure that the images of a data set are there, before a training of days meets one.

    Args:
        dicts: of :func:`load_dataset`.
        mapper: of one's own, it may take images from wherever it likes.
        label: what a message calls the data set.
        unreadable: with "skip" there is only a warning.

    Raises:
        BadInput: counts those that are missing, and names one.
    """
    if not isinstance(dicts, list) or not makes_8_bits(mapper):
        return
    for number, record in enumerate(dicts):
        if not isinstance(record.get("file_name"), (str, os.PathLike)):
            raise BadInput(
                f"data set {label!r}: entry {number} has file_name={record.get('file_name')!r}; "
                "give the path of its image"
            )
    paths = [os.fspath(record["file_name"]) for record in dicts]
    missing = [p for p in paths if not re.match(r"\w+://", p) and not os.path.exists(p)]
    if not missing:
        return
    line = f"data set {label!r}: {len(missing)} of its {len(paths)} image files are not there, "
    line += f"such as {missing[0]}; "
    if "\\" in missing[0]:
        line += "its name has the separators of Windows: write / in place of \\"
    else:
        line += "correct the names or the folder, or leave these images out"
    if unreadable != "skip":
        raise BadInput(line)
    logger.warning(printable(line))


def num_classes_of(model_node: DictConfig | None) -> int | None:
    """Classes that a model node detects, or None if it does not say so."""
    return _class_count(model_node)[1]


# Base of a meta-architecture -> the YAML node with its NUM_CLASSES. FCOS, ATSS and PAA have none of
# their own in Detectron2's YAML files and take RetinaNet's.
_YAML_NODES = {RetinaNet: "RETINANET", FCOS: "RETINANET", GeneralizedRCNN: "ROI_HEADS"}


def _yaml_node(name):
    """The node with NUM_CLASSES of a registered meta-architecture; None without one."""
    cls = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
    if not isinstance(cls, type):
        return None
    return next((node for base, node in _YAML_NODES.items() if issubclass(cls, base)), None)


def _class_count(model_node):
    """The key of the class count, as a user writes it, and its value; None, None without."""
    if model_node is not None and "cfg" in model_node:  # of a YAML config
        node = _yaml_node(model_node.cfg.MODEL.META_ARCHITECTURE)
        if node:
            return f"MODEL.{node}.NUM_CLASSES", model_node.cfg.MODEL[node].NUM_CLASSES
    elif model_node is not None:
        for key in ("num_classes", "roi_heads.num_classes"):
            found = OmegaConf.select(model_node, key)
            if found is not None:
                return f"model.{key}", found
    return None, None


def _has_mask_head(model_node):
    if model_node is None:
        return False
    if "cfg" in model_node:  # of a YAML config
        model = model_node.cfg.MODEL
        return _yaml_node(model.META_ARCHITECTURE) == "ROI_HEADS" and model.MASK_ON
    return OmegaConf.select(model_node, "roi_heads.mask_head") is not None


def test_loader(node: DictConfig, model_node: DictConfig) -> Iterable:
    """The test loader of a config; an image that cannot be read is named in one line."""
    dicts = load_dataset(node.dataset, model_node, is_train=False)
    loader = instantiate_with(node, dataset=dicts, mapper=ReadOrName(instantiate(node.mapper)))
    if type(loader) is DataLoader and loader.worker_init_fn is None:  # Detectron2's
        loader.__class__, loader.worker_init_fn = SignalSafeLoader, LoaderSignals()
    return loader


def require_image_id(loader: Iterable, dataloader: DictConfig):
    """Makes sure that what evaluators know an image by comes out of a test loader.

    Args:
        loader: of :func:`test_loader`; of one of Detectron2's the first image is read.
        dataloader: the node with "test" and "evaluator".

    Raises:
        BadInput: there is no "image_id", or the image cannot be read.
    """
    kinds = [target_of(node) for node in evaluators_of(dataloader.evaluator)]
    needs_it = any(kind in (COCOEvaluator, PascalVOCDetectionEvaluator) for kind in kinds)
    dataset = getattr(loader, "dataset", None)
    if needs_it and isinstance(dataset, MapDataset) and len(dataset):
        first = dataset[0]
        if isinstance(first, dict) and "image_id" not in first:
            names = ", ".join(dataset_names(dataloader.test.dataset))
            raise BadInput(
                f"data set {names}: {first.get('file_name')} comes out of the test loader without "
                "'image_id', by which an evaluator knows it; give each record of the data set its "
                "own, and leave it in dataloader.test.mapper"
            )
