"""Fixtures that several test files share."""

import importlib
import json
import os
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from helpers.default_cfg import registered
from helpers.triton_on_cpu import DEVICE
from helpers.yaml_files import sets, tiny
from sampling_free.utils.files import write_json

__all__ = ["registered", "sets", "tiny"]

# As LazyTrainer does it on a CPU: else a focal loss that an earlier test has compiled rounds
# otherwise.
torch.jit.set_fusion_strategy([])
# As `make test` has it, for plain pytest and the processes that tests start: some tests fork, and
# the child of a process with threads of OpenMP waits for them for ever.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# kernel of sigmoid_bce_all -> device for it; without a GPU Triton's interpreter runs its kernel
KERNELS = {"torch": "cpu", "triton": DEVICE}
if DEVICE == "cuda":
    KERNELS["torch on cuda"] = "cuda"  # as it is where Triton is missing


@pytest.fixture(params=KERNELS)
def device(request, monkeypatch):
    """Runs a test once with each kernel of ``sigmoid_bce_all``, on the device that it gets."""
    name = request.param.split()[0]
    if name == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    module = importlib.import_module(f"sampling_free.method.kernels.sigmoid_bce_{name}")
    if name == "triton" and DEVICE == "cpu":
        # Smaller programs: in each the interpreter takes 0.1 ms for a logit, be it there or not.
        monkeypatch.setattr(module, "PLACES", 16)
    monkeypatch.setattr("sampling_free.method.classification_loss.kernel_of", lambda _: module)
    return KERNELS[request.param]


FIGURE = "figure"  # the name of pytest's property that holds one


def pytest_addoption(parser):
    parser.addoption("--figures", metavar="FILE", help="JSON that gets what long tests measure")


@pytest.fixture
def figure(record_property):
    """Call as ``figure(table, name, **values)``: a row of a table in docs/reliability.md.

    Beside the values it keeps the versions that they were measured with.
    """
    versions = {"torch": str(torch.__version__), "detectron2": version("detectron2")}

    def keep(table, name, **values):
        record_property(FIGURE, [table, name, {**values, **versions}])

    return keep


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    path = config.getoption("--figures")
    if path and not hasattr(config, "workerinput"):  # of pytest-xdist: it reports to the first
        config.pluginmanager.register(_Figures(Path(path)))


class _Figures:
    """Writes each figure as soon as its test has passed; what other tests measured stays."""

    def __init__(self, path):
        self.path = path

    def pytest_runtest_logreport(self, report):
        if report.when != "call" or not report.passed:
            return
        for name, (table, row, values) in report.user_properties:
            if name == FIGURE:
                content = json.loads(self.path.read_text()) if self.path.exists() else {}
                content.setdefault(table, {})[row] = values
                write_json(str(self.path), content)
