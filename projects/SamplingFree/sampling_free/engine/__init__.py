"""The training: Detectron2's trainer and hooks for LazyConfigs and YAML files."""

from ..utils.exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        ".prior_init": "PriorInit",
        ".trainer": "LazyTrainer evaluate_only with_present_device",
    },
)
