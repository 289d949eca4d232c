"""Sampling-free ATSS: the head and backbone of Detectron2's FCOS, with ATSS' anchors."""

from detectron2 import model_zoo

from sampling_free import ATSS, convert

model = model_zoo.get_config("common/models/fcos.py").model
model._target_ = ATSS
model.test_score_thresh = 0.05
model.test_nms_thresh = 0.6
model = convert(model, quiet=True)
