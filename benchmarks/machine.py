"""What a record says of the machine and of the versions."""

import platform

import torch
import torchvision
from detectron2 import __version__ as detectron2_version


def default_device():
    """The GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name(device):
    """The card of "cuda"; of "cpu" the architecture and how many threads PyTorch takes."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"


def versions():
    """dict[str, str]: of Python, PyTorch, torchvision and Detectron2."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "detectron2": detectron2_version,
    }
