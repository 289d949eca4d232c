"""Calls of a LazyConfig: what a node calls, with which parameters, and calling it."""

import inspect
from collections.abc import Callable

from detectron2.config import instantiate
from detectron2.utils.registry import locate
from omegaconf import DictConfig

from .errors import BadInput


def instantiate_with(node: DictConfig, **given: object) -> object:
    """Instantiates a call with some of its arguments given as objects."""
    arguments = {k: instantiate(node[k]) for k in node if k != "_target_" and k not in given}
    return target_of(node)(**arguments, **given)


def target_of(node: DictConfig) -> Callable:
    """Returns the callable of a node; a config that a run has saved holds its name."""
    return locate(node._target_) if isinstance(node._target_, str) else node._target_


def call_parameters(node: DictConfig) -> set[str] | None:
    """Returns the parameter names of a node's ``_target_``.

    They are empty for a plain dict, and None if the callable takes any keyword.
    """
    target = node.get("_target_", None)
    if target is None:
        return set()
    if isinstance(target, str):
        try:
            target = locate(target)
        except Exception as e:  # whatever the import of a user's module raises
            raise BadInput(f"_target_={target}: cannot be imported ({e})") from None
    if not inspect.isclass(target):
        return _named(target)
    names = set()
    for cls in target.__mro__:
        if "__init__" in vars(cls):
            own = _named(cls.__init__)
            if own is not None:
                return names | own
            names |= _named(cls.__init__, keep_named=True) or set()
    return None


def _named(function, keep_named=False):
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return None
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters)
    return None if takes_any and not keep_named else names - {"self"}
