"""Old names of modules, which the config.yaml of old runs and scripts of users have.

They are those of version 0.1.0 that its docs and configs named.
"""

import importlib
import importlib.abc
import importlib.util
import sys

PACKAGE = __name__.rpartition(".")[0]
MOVED = {
    "best_threshold": "evaluation.best_threshold",
    "classification_loss": "method.classification_loss",
    "datasets": "data.datasets",
    "errors": "utils.errors",
    "estimate": "counting.estimate",
    "guided_loss": "method.guided_loss",
    "guides": "method.guides",
    "json_file": "utils.files",
    "loader": "data.loader",
    "monitor": "diagnosis.monitor",
    "pictures": "evaluation.pictures",
    "prior": "method.prior",
    "prior_init": "engine.prior_init",
    "processes": "engine.launch",
    "variants": "config.convert",
    "yaml_config": "config.cfg_node",
}


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a module by its old name; it is the same object as by the new one."""

    def find_spec(self, fullname, path=None, target=None):
        package, _, name = fullname.rpartition(".")
        if package == PACKAGE and name in MOVED:
            return importlib.util.spec_from_loader(fullname, self)
        return None

    def create_module(self, spec):
        module = importlib.import_module(f"{PACKAGE}.{MOVED[spec.name.rpartition('.')[2]]}")
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module):
        module.__spec__ = module.__spec__.loader_state  # Python has put the old name's there


def install() -> None:
    """Lets ``import`` find the old names, once."""
    if not any(isinstance(x, _Finder) for x in sys.meta_path):
        sys.meta_path.append(_Finder())
