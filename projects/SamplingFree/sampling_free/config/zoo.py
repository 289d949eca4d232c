"""Detectron2's model zoo, with every setuptools.

That of Detectron2's main branch asks ``pkg_resources`` for a path; setuptools has it no longer.
"""

import importlib
import importlib.resources
import sys
from types import ModuleType


def _import_model_zoo():
    if "pkg_resources" in sys.modules:
        return importlib.import_module("detectron2.model_zoo")
    importlib.import_module("detectron2.modeling")  # what else the zoo imports sees no stand-in
    stand_in = ModuleType("pkg_resources")
    stand_in.resource_filename = lambda package, name: str(
        importlib.resources.files(package) / name
    )
    sys.modules["pkg_resources"] = stand_in
    try:
        return importlib.import_module("detectron2.model_zoo")
    finally:
        del sys.modules["pkg_resources"]


model_zoo = _import_model_zoo()
