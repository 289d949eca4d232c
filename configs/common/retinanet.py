"""Sampling-free RetinaNet: Detectron2's own model with class, prior and threshold exchanged."""

from detectron2 import model_zoo

from sampling_free import SamplingFreeRetinaNet

model = model_zoo.get_config("common/models/retinanet.py").model
model._target_ = SamplingFreeRetinaNet
del model["focal_loss_alpha"], model["focal_loss_gamma"]
model.prior = "auto"  # measured on the training set before the first iteration
model.box_reg_loss_weight = 1.0  # sum over the 4 coordinates, as Detectron2 has it
model.test_score_thresh = 1e-3  # the authors' final code; scores are lower without sampling
