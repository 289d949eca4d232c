"""What lets hundreds of trainings fit on a CPU: a ResNet-18 of a quarter's width, 32 channels."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import BasicBlock, ResNet

WIDTH = 16  # of the stem and the first stage, of which ResNet-18 has 64
CHANNELS = 32  # of the FPN and the heads
CONVS = 2  # in each branch of a head


def thin(model):
    """Narrows the node of a small detector, in place; returns it."""
    backbone = model.backbone
    backbone.bottom_up.stem.out_channels = WIDTH
    backbone.bottom_up.stages = [
        L(ResNet.make_stage)(
            block_class=BasicBlock,
            num_blocks=2,
            stride_per_block=[1 if stage == 0 else 2, 1],
            in_channels=WIDTH * 2 ** max(stage - 1, 0),
            out_channels=WIDTH * 2**stage,
            norm="BN",
        )
        for stage in range(4)
    ]
    backbone.out_channels = CHANNELS
    if "roi_heads" in model:
        model.proposal_generator.head.in_channels = CHANNELS
        model.roi_heads.box_head.input_shape = ShapeSpec(channels=CHANNELS, height=7, width=7)
        return model
    top = backbone.top_block
    top.in_channels = CHANNELS if top.get("in_feature", "res5") == "p5" else 8 * WIDTH
    model.head.input_shape = [ShapeSpec(channels=CHANNELS)] * 5
    model.head.conv_dims = [CHANNELS] * CONVS
    return model
