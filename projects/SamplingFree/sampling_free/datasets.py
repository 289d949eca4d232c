"""From the data set nodes of a config to checked dataset dicts and loaders."""

import os

from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.utils.registry import locate

from .data.check import check_dataset, check_num_classes, require_registered
from .errors import BadInput
from .loader import ReadOrName


def dataset_names(node):
    """Registered names of a ``get_detection_dataset_dicts`` node, registering them if it does so.

    Args:
        node (DictConfig): with "names": a name, a list of names, or a call that returns one.

    Returns:
        list[str]
    """
    names = instantiate(node.names)
    names = [names] if isinstance(names, str) else list(names)
    require_registered(names)
    return names


def load_dataset(node, model_node=None):
    """Instantiates and checks a data set.

    Args:
        node (DictConfig): calls Detectron2's ``get_detection_dataset_dicts`` or the like.
        model_node (DictConfig): its ``num_classes`` must fit the annotations; None checks nothing.

    Returns:
        list[dict]: without boxes that are malformed.

    Raises:
        BadInput: for an unknown name, a missing folder or file, a class count that does not fit.
    """
    names = dataset_names(node) if "names" in node else []
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
    if model_node is None or "num_classes" not in model_node:
        return dicts
    classes = MetadataCatalog.get(names[0]).get("thing_classes") if names else None
    return check_dataset(dicts, model_node.num_classes, classes, label)


def test_loader(node, model_node):
    """The test loader of a config; an image that cannot be read is named in one line."""
    dicts = load_dataset(node.dataset)
    names = dataset_names(node.dataset)
    if "num_classes" in model_node:
        classes = MetadataCatalog.get(names[0]).get("thing_classes")
        check_num_classes(model_node.num_classes, classes, ", ".join(names))
    return instantiate_with(node, dataset=dicts, mapper=ReadOrName(instantiate(node.mapper)))


def instantiate_with(node, **given):
    """Instantiates a call with some of its arguments given as objects."""
    arguments = {k: instantiate(node[k]) for k in node if k != "_target_" and k not in given}
    return target_of(node)(**arguments, **given)


def target_of(node):
    """The callable of a node; a config that a run has saved holds its name."""
    return locate(node._target_) if isinstance(node._target_, str) else node._target_
