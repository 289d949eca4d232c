"""Detectron2's COCO loaders, with a training order that --resume can continue exactly."""

from detectron2 import model_zoo

from sampling_free import build_replayable_train_loader

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train._target_ = build_replayable_train_loader
dataloader.train.seed = "${train.seed}"
dataloader.train.mapper.use_instance_mask = False
