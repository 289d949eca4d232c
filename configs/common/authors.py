"""What the authors' code does otherwise than Detectron2 (arXiv 1909.04868, final code of 2021).

Box losses: smooth L1 with beta 0.11 (RetinaNet), 1/9 (RPN) and 1 (RoI head), their mean over the
four coordinates, half of it in the RPN; FCOS without center sampling, its box loss weighted by
centerness (GIoU here as in Detectron2, IoU there); ATSS and PAA as published. As they guide the
classification losses, these are scaled too. Images have one scale, 800 px, an R-CNN keeps 1000
proposals. Biases learn at twice the rate and do not decay. The guide is that of the paper;
model.guide=frozen is that of the final code, which had it for one-stage detectors.
"""

from sampling_free import SamplingFreeFCOS


def authors_recipe(model, dataloader, optimizer):
    """Changes the nodes of a sampling-free config in place."""
    if "proposal_generator" in model:
        rpn, heads = model.proposal_generator, model.roi_heads
        rpn.smooth_l1_beta = 1 / 9
        rpn.loss_weight = {"loss_rpn_loc": 0.125}
        rpn.post_nms_topk = (1000, 1000)
        predictors = heads.box_predictors if "box_predictors" in heads else [heads.box_predictor]
        for predictor in predictors:
            predictor.smooth_l1_beta = 1.0
            predictor.loss_weight = {"loss_box_reg": 0.25}
        guided = [rpn, *predictors]
    else:
        guided = [model]
    for node in guided:
        node.guide = "iteration"
    if "anchor_matcher" in model:
        model.smooth_l1_beta = 0.11
        model.box_reg_loss_weight = 0.25
    elif model._target_ is SamplingFreeFCOS:
        model.center_sampling_radius = float("inf")
        model.box_weight = "centerness"
    dataloader.train.mapper.augmentations[0].short_edge_length = (800,)
    optimizer.params.base_lr = "${..lr}"
    optimizer.params.bias_lr_factor = 2.0
    optimizer.params.weight_decay_bias = 0.0
