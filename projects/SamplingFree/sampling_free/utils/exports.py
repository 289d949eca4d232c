"""Names that a package exports and imports when they are asked for (PEP 562)."""

import importlib
from collections.abc import Callable


def lazy_exports(package: str, modules: dict[str, str]) -> tuple[Callable, Callable, list[str]]:
    """Makes the ``__getattr__``, ``__dir__`` and ``__all__`` of a package.

    Args:
        package: its ``__name__``.
        modules: a module of the package, with a dot in front -> the names that it exports,
            separated by blanks.
    """
    home = {name: module for module, names in modules.items() for name in names.split()}

    def get(name):
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(home[name], package), name)

    return get, lambda: sorted(home), sorted(home)
