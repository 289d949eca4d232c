"""Detectron2's optimizer for detectors."""

from detectron2 import model_zoo

SGD = model_zoo.get_config("common/optim.py").SGD
