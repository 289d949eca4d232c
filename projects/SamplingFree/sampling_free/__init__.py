"""Object detectors without sampling heuristics, for Detectron2 (arXiv 1909.04868)."""

from . import _moved
from .utils.exports import lazy_exports

__version__ = "0.1.0"

_moved.install()
__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        ".baselines.ghm": "GHMC",
        ".baselines.ohem": "hard_examples",
        ".baselines.retinanet": "GHMRetinaNet OHEMRetinaNet",
        ".baselines.roi_heads": "OHEMStandardROIHeads",
        ".baselines.rpn": "GHMRPN OHEMRPN",
        ".checkpoint.checkpointer": "load_trained",
        ".config.cfg_node": "add_sampling_free_config",
        ".config.convert": "VARIANTS as_variant convert",
        ".config.load": "load_config",
        ".counting.estimate": "measure_prior",
        ".data.loader": "build_replayable_train_loader",
        ".data.register": "register_coco register_synthetic register_voc",
        ".detectors.atss": "ATSS SamplingFreeATSS",
        ".detectors.cascade": "SamplingFreeCascadeROIHeads",
        ".detectors.fcos": "SamplingFreeFCOS",
        ".detectors.paa": "PAA SamplingFreePAA",
        ".detectors.retinanet": "SamplingFreeRetinaNet",
        ".detectors.roi_heads": "SamplingFreeFastRCNNOutputLayers SamplingFreeRes5ROIHeads "
        "SamplingFreeStandardROIHeads",
        ".detectors.rpn": "SamplingFreeRPN",
        ".diagnosis.monitor": "ImbalanceMonitor",
        ".engine.prior_init": "PriorInit",
        ".engine.trainer": "LazyTrainer",
        ".method.classification_loss": "sigmoid_bce_all",
        ".method.guided_loss": "guide_ratio guided_losses",
        ".method.guides": "make_guide",
        ".method.prior": "optimal_prior prior_to_bias start_loss",
        ".utils.errors": "BadInput",
    },
)
