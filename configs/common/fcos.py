"""Sampling-free FCOS: Detectron2's own model, converted."""

from detectron2 import model_zoo

from sampling_free import convert

model = convert(model_zoo.get_config("common/models/fcos.py").model, quiet=True)
