"""R-CNNs of every proposal from YAML configs."""

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import (
    Res5ROIHeads,
    StandardROIHeads,
)

from helpers.every_proposal_cases import BOTH, OWN_LOSSES
from helpers.tiny import train_step
from helpers.tiny_detectors import rcnn_batch
from sampling_free import (
    BadInput,
    SamplingFreeFastRCNNOutputLayers,
    SamplingFreeRes5ROIHeads,
    SamplingFreeRPN,
    SamplingFreeStandardROIHeads,
    add_sampling_free_config,
)


class TestConfigNode:
    """Detectron2's YAML configs, with a narrow ResNet-18."""

    def _cfg(self, name, stock=False, **sampling_free):
        cfg = get_cfg()
        if not stock:
            add_sampling_free_config(cfg)
        cfg.merge_from_file(model_zoo.get_config_file(name))
        model = cfg.MODEL
        model.DEVICE, model.WEIGHTS = "cpu", ""
        model.RESNETS.DEPTH, model.RESNETS.RES2_OUT_CHANNELS = 18, 64
        model.RESNETS.WIDTH_PER_GROUP = 2
        model.FPN.OUT_CHANNELS, model.ROI_BOX_HEAD.FC_DIM = 8, 16
        model.ROI_MASK_HEAD.CONV_DIM = model.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 4
        model.ROI_MASK_HEAD.NUM_CONV = 1
        model.ROI_KEYPOINT_HEAD.CONV_DIMS = (4,)
        model.ROI_HEADS.NUM_CLASSES = 3
        if not stock:
            c4 = "C4" in name
            model.PROPOSAL_GENERATOR.NAME = "SamplingFreeRPN"
            kind = "Res5" if c4 else "Standard"
            model.ROI_HEADS.NAME = f"SamplingFree{kind}ROIHeads"
            for key, value in sampling_free.items():
                model.SAMPLING_FREE[key] = value
        return cfg

    FASTER = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
    MASK = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
    KEYPOINT = "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml"
    C4 = "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml"

    @pytest.mark.parametrize("name", [FASTER, MASK, KEYPOINT, C4])
    def test_it_builds_the_classes_with_stocks_parameters(self, name):
        model = build_model(self._cfg(name))
        heads = SamplingFreeRes5ROIHeads if name == self.C4 else SamplingFreeStandardROIHeads
        assert type(model.proposal_generator) is SamplingFreeRPN
        assert type(model.roi_heads) is heads
        predictor = model.roi_heads.box_predictor
        assert type(predictor) is SamplingFreeFastRCNNOutputLayers
        stock = build_model(self._cfg(name, stock=True))
        assert isinstance(stock.roi_heads, (StandardROIHeads, Res5ROIHeads))
        shapes = {k: v.shape for k, v in model.state_dict().items()}
        assert shapes == {k: v.shape for k, v in stock.state_dict().items()}
        assert model.proposal_generator.prior == "auto" and predictor.softmax_prior is None
        assert predictor.guide.key == model.proposal_generator.guide.key == "gradient"
        theirs = stock.roi_heads.box_predictor
        for key, value in vars(theirs).items():
            if isinstance(value, (int, float, str, dict)) and not key.startswith("_"):
                if key != "training":
                    assert vars(predictor)[key] == value, key
        assert predictor.box2box_transform.weights == theirs.box2box_transform.weights

    def test_the_keys_of_the_project_are_honored(self):
        keys = {"PRIOR": 0.003, "GUIDE": 0.5, "SOFTMAX_PRIOR": 0.02, "MAX_MASK_POSITIVES": 7}
        model = build_model(self._cfg(self.MASK, **keys))
        rpn, heads = model.proposal_generator, model.roi_heads
        assert rpn.prior == 0.003 and rpn.guide.key == heads.box_predictor.guide.key == 0.5
        assert heads.max_mask_positives == 7 and heads.box_predictor.softmax_prior == 0.02
        scores = rpn.rpn_head.objectness_logits.bias.sigmoid()
        assert scores.tolist() == pytest.approx([0.003] * 3, rel=1e-5)
        scores = heads.box_predictor.cls_score.bias.softmax(dim=0)
        assert scores.tolist() == pytest.approx([0.02] * 3 + [0.94], rel=1e-5)

    def test_c4_says_that_it_knows_no_limit_of_masks(self):
        with pytest.raises(BadInput, match="MAX_MASK_POSITIVES: Res5ROIHeads"):
            build_model(self._cfg(self.C4, MAX_MASK_POSITIVES=7))

    def test_from_the_command_line_they_may_be_numbers(self):
        cfg = self._cfg(self.FASTER)
        cfg.merge_from_list(["MODEL.SAMPLING_FREE.SOFTMAX_PRIOR", "0.1", "MODEL.MASK_ON", "False"])
        assert build_model(cfg).roi_heads.box_predictor.softmax_prior == 0.1

    @pytest.mark.parametrize("name", [FASTER, MASK, C4])
    def test_it_trains_a_step(self, name):
        cfg = self._cfg(name, PRIOR=0.01, GUIDE="iteration")
        cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = 0.25
        cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 20
        kind = "faster" if name == self.FASTER else "mask"
        torch.manual_seed(0)
        losses, latest, gradients = train_step(build_model(cfg), rcnn_batch(3, 5, kind=kind))
        assert losses.keys() == BOTH | OWN_LOSSES[kind]
        twice = 2 * losses["loss_box_reg"].item()
        assert losses["loss_cls"].item() == pytest.approx(twice, rel=1e-5) and twice > 0
        trained = {k: g for k, g in gradients.items() if "roi_heads" in k}
        assert all(g is not None and g.isfinite().all() for g in trained.values())
