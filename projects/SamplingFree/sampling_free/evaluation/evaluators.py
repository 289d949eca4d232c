"""The evaluators of a config, with one line for what they cannot be built from."""

import os

from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.utils import comm
from omegaconf import DictConfig

from ..data.datasets import check_ground_truth, coco_evaluators, dataset_names, evaluators_of
from ..data.evaluated import check_evaluated_voc
from ..utils.errors import BadInput
from ..utils.lazy import call_parameters


def built_evaluators(cfg: DictConfig) -> DatasetEvaluator | list[DatasetEvaluator]:
    """The evaluators of a config that has one test set.

    Detectron2's COCOEvaluator keeps its results for the pictures.

    Args:
        cfg: its evaluators get a folder for results, in place.

    Raises:
        BadInput: it cannot be built, or could not measure; names the data set and the cause.
    """
    check_ground_truth(cfg.dataloader.evaluator, cfg.model)
    give_output_dirs(cfg)
    for one in coco_evaluators(cfg.dataloader.evaluator):
        if one.get("output_dir"):
            _forget_converted(instantiate(one.dataset_name), one.output_dir)
    try:
        built = instantiate(cfg.dataloader.evaluator)
    except BadInput:
        raise
    except Exception as e:  # whatever the reading of somebody's data raises
        names = ", ".join(dataset_names(cfg.dataloader.test.dataset))
        raise BadInput(
            f"data set {names}: its evaluator cannot be built ({type(e).__name__}: {e}); "
            "correct the data, or leave the evaluation out by dataloader.evaluator=null"
        ) from e
    for one in evaluators_of(built):
        if isinstance(one, PascalVOCDetectionEvaluator):
            check_evaluated_voc(one)
    return built


def give_output_dirs(cfg: DictConfig):
    """Gives Detectron2's COCOEvaluator a folder, in place, as its results are wanted later on."""
    for node in coco_evaluators(cfg.dataloader.evaluator):
        parameters = call_parameters(node)
        takes_one = parameters is None or "output_dir" in parameters
        if takes_one and not node.get("output_dir"):
            node.output_dir = os.path.join(cfg.train.output_dir, "inference")


def _forget_converted(name, output_dir):
    """Removes the COCO file that an earlier run made of a data set that may have changed since."""
    path = os.path.join(output_dir, f"{name}_coco_format.json")
    if not hasattr(MetadataCatalog.get(name), "json_file"):
        if comm.is_main_process() and os.path.exists(path):
            os.remove(path)
        comm.synchronize()
