"""What several rooms do with a model: read its state, and put it back after a forward pass."""

import contextlib
import copy
import logging
import random
from collections.abc import Iterator

import numpy as np
import torch
from detectron2.structures import ImageList
from omegaconf import DictConfig
from torch import Tensor, nn

logger = logging.getLogger(__name__)

PLAIN = (bool, int, float, str, type(None))


class ForwardState:
    """What a forward pass in training changes in a model, as it is now.

    The buffers (statistics of normalization, running counts), and plain numbers among the
    attributes of the modules, such as the running ``loss_normalizer`` of Detectron2's RetinaNet,
    and of their ``guide_log``. Parameters and their gradients are not looked at.
    """

    def __init__(self, model: nn.Module):
        """Copies the state of a model that is not wrapped."""
        owners = list(model.modules())
        owners += [m.guide_log for m in model.modules() if hasattr(m, "guide_log")]
        self._attributes = [(x, _plain(x)) for x in owners]
        self._buffers = [(m, dict(m._buffers)) for m in model.modules()]
        self._copies = copy.deepcopy([saved for _, saved in self._buffers])

    @torch.no_grad()
    def restore(self) -> None:
        """Puts all of it back."""
        for owner, saved in self._attributes:
            for name in _plain(owner).keys() - saved.keys():
                delattr(owner, name)
            vars(owner).update(saved)
        for (module, tensors), saved in zip(self._buffers, self._copies):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensor.copy_(saved[name])
            module._buffers.clear()
            module._buffers.update(tensors)


@contextlib.contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Puts back at the end everything that a forward pass in training changes.

    The random generators of Python, numpy and torch (CPU and the model's GPU), and the model's
    :class:`ForwardState`.
    """
    devices = {x.device for x in model.parameters() if x.device.type == "cuda"}
    states = random.getstate(), np.random.get_state()
    before = ForwardState(model)
    try:
        with torch.random.fork_rng(devices=[x.index for x in devices]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        before.restore()


def _plain(owner):
    return {name: value for name, value in vars(owner).items() if isinstance(value, PLAIN)}


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns the detector within ``DistributedDataParallel``, or the model itself."""
    return getattr(model, "module", model)


def pixels(model: nn.Module, images: list[dict]) -> Tensor:
    """Returns the images (N, 3, H, W), normalized and padded.

    A ``ProposalNetwork`` has no method for that.
    """
    if hasattr(model, "preprocess_image"):
        return model.preprocess_image(images).tensor
    pixels = [(x["image"].to(model.device) - model.pixel_mean) / model.pixel_std for x in images]
    return ImageList.from_tensors(pixels, model.backbone.size_divisibility).tensor


def with_present_device(cfg: DictConfig) -> DictConfig:
    """Sets train.device to "cpu" where it is "cuda" and there is no GPU; says so."""
    if str(cfg.train.device).startswith("cuda") and not torch.cuda.is_available():
        logger.info("No GPU found: running on the CPU (train.device=cpu).")
        cfg.train.device = "cpu"
    return cfg
