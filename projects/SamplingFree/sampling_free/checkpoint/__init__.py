"""Loading and saving weights: without pickled code, complete, with the prior."""

from ..utils.exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        ".checkpointer": "NamingCheckpointer load_trained",
    },
)
