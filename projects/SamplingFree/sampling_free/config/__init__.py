"""Reading configs, and making them sampling-free or one of the variants."""

from ..utils.exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        ".load": "find_config load_config",
        ".cfg_node": "add_sampling_free_config",
    },
)
