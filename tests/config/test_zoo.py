"""Detectron2's model zoo where setuptools has no pkg_resources."""

import subprocess
import sys

from helpers.tiny_run import environment

CODE = """
import os, sys

class Without:
    def find_spec(name, path=None, target=None):
        if name == "pkg_resources":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Without)
import sampling_free
from detectron2 import model_zoo
path = model_zoo.get_config_file("common/train.py")
assert os.path.isfile(path), path
assert "pkg_resources" not in sys.modules
"""


def test_it_works_without_pkg_resources():
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
