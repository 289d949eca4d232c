"""What the authors' code does otherwise than Detectron2 (arXiv 1909.04868, final code of 2021).

The box loss is smooth L1 with beta 0.11, its mean over the four coordinates; as it guides the
classification loss both are a quarter as large. Images have one scale, 800 px. Biases learn at
twice the rate and do not decay.
"""


def authors_recipe(model, dataloader, optimizer):
    """Changes the nodes of a RetinaNet config in place."""
    model.smooth_l1_beta = 0.11
    model.box_reg_loss_weight = 0.25
    dataloader.train.mapper.augmentations[0].short_edge_length = (800,)
    optimizer.params.base_lr = "${..lr}"
    optimizer.params.bias_lr_factor = 2.0
    optimizer.params.weight_decay_bias = 0.0
