"""Cascade R-CNN without sampling, with a guide for each stage.

Only the first stage of Detectron2's ``CascadeROIHeads`` samples; the others take what the stage
before gives them. Every stage has a box predictor of its own, which guides its own losses.
"""

from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, CascadeROIHeads

from .roi_heads import SamplingFreeFastRCNNOutputLayers, SamplingFreeStandardROIHeads


@ROI_HEADS_REGISTRY.register()
class SamplingFreeCascadeROIHeads(SamplingFreeStandardROIHeads, CascadeROIHeads):
    """Detectron2's ``CascadeROIHeads`` (box, mask, keypoint), trained on every proposal.

    Arguments are those of ``SamplingFreeStandardROIHeads`` and Detectron2's class. The event
    storage gets "stage0/guide/roi/r" and so on.
    """

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        # Detectron2's, not that of a single predictor.
        ret = super(SamplingFreeStandardROIHeads, cls)._init_box_head(cfg, input_shape)
        ret["box_predictors"] = [
            SamplingFreeFastRCNNOutputLayers(
                cfg, head.output_shape, box2box_transform=predictor.box2box_transform
            )
            for head, predictor in zip(ret["box_heads"], ret["box_predictors"])
        ]
        return ret
