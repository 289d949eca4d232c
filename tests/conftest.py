"""Fixtures that several test files share."""

import importlib

import pytest
import torch
from triton_on_cpu import DEVICE
from yaml_files import sets, tiny

__all__ = ["sets", "tiny"]

# As LazyTrainer does it on a CPU: else a focal loss that an earlier test has compiled rounds
# otherwise.
torch.jit.set_fusion_strategy([])

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
    module = importlib.import_module(f"sampling_free.kernels.sigmoid_bce_{name}")
    if name == "triton" and DEVICE == "cpu":
        # Smaller programs: in each the interpreter takes 0.1 ms for a logit, be it there or not.
        monkeypatch.setattr(module, "PLACES", 16)
    monkeypatch.setattr("sampling_free.classification_loss.kernel_of", lambda _: module)
    return KERNELS[request.param]
