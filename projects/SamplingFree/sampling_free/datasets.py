"""From the data set nodes of a config to checked dataset dicts and loaders."""

import os

from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.utils.registry import locate
from omegaconf import OmegaConf

from .data.check import check_dataset, check_num_classes, require_registered
from .errors import BadInput
from .loader import ReadOrName


def dataset_names(node):
    """Registered names of a ``get_detection_dataset_dicts`` node, registering them if it does so.

    Args:
        node (DictConfig): "names" is a name, a list of names, or a call that returns one; a node
            without it has none.

    Returns:
        list[str]
    """
    names = instantiate(node.get("names", None)) or []
    names = [names] if isinstance(names, str) else list(names)
    require_registered(names)
    return names


def load_dataset(node, model_node=None, is_train=True):
    """Instantiates and checks a data set.

    Args:
        node (DictConfig): calls Detectron2's ``get_detection_dataset_dicts`` or the like.
        model_node (DictConfig): its class count, if it has any, must fit the annotations;
            None checks nothing.
        is_train (bool): check the annotations too; evaluators read test sets on their own.

    Returns:
        list[dict]: of a training set without boxes that are malformed.

    Raises:
        BadInput: for an unknown name, a missing folder or file, a class count that does not fit.
    """
    names = dataset_names(node)
    label = ", ".join(names) or str(node.get("_target_", "data set"))
    try:
        dicts = instantiate(node)
    except FileNotFoundError as e:
        root = os.environ.get("DETECTRON2_DATASETS", "datasets")
        raise BadInput(
            f"data set {label}: {e.filename} is missing; data are looked for under "
            f"$DETECTRON2_DATASETS, now {root!r}"
        ) from None
    except AssertionError as e:  # Detectron2's way to say that nothing is left
        raise BadInput(f"data set {label}: {e}") from None
    key, num_classes = _class_count(model_node)
    if num_classes is None:
        return dicts
    classes = MetadataCatalog.get(names[0]).get("thing_classes") if names else None
    if is_train:
        return check_dataset(dicts, num_classes, classes, label, key)
    check_num_classes(num_classes, classes, label, key)
    return dicts


def num_classes_of(model_node):
    """Classes that a model node detects, or None if it does not say so."""
    return _class_count(model_node)[1]


# MODEL.META_ARCHITECTURE of a YAML config -> the node with its NUM_CLASSES
_YAML_CLASSES = {
    **dict.fromkeys(("RetinaNet", "SamplingFreeRetinaNet", "SamplingFreeFCOS"), "RETINANET"),
    **dict.fromkeys(("GeneralizedRCNN", "PanopticFPN"), "ROI_HEADS"),
}


def _class_count(model_node):
    """The key of the class count, as a user writes it, and its value; None, None without."""
    if model_node is not None and "cfg" in model_node:  # of a YAML config
        node = _YAML_CLASSES.get(model_node.cfg.MODEL.META_ARCHITECTURE)
        if node:
            return f"MODEL.{node}.NUM_CLASSES", model_node.cfg.MODEL[node].NUM_CLASSES
    elif model_node is not None:
        for key in ("num_classes", "roi_heads.num_classes"):
            found = OmegaConf.select(model_node, key)
            if found is not None:
                return f"model.{key}", found
    return None, None


def test_loader(node, model_node):
    """The test loader of a config; an image that cannot be read is named in one line."""
    dicts = load_dataset(node.dataset, model_node, is_train=False)
    return instantiate_with(node, dataset=dicts, mapper=ReadOrName(instantiate(node.mapper)))


def instantiate_with(node, **given):
    """Instantiates a call with some of its arguments given as objects."""
    arguments = {k: instantiate(node[k]) for k in node if k != "_target_" and k not in given}
    return target_of(node)(**arguments, **given)


def target_of(node):
    """The callable of a node; a config that a run has saved holds its name."""
    return locate(node._target_) if isinstance(node._target_, str) else node._target_
