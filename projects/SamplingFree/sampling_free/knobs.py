"""Every number of a config that somebody chose against class imbalance: the knobs.

The model is built, and what is read is what acts: a default that no config mentions is listed, what
a class accepts and does not use is not. Three lists:

    knobs          alpha, gamma, fixed priors, numbers and fractions of samplers, hand-set weights
                   of losses; a sampling-free config has none
    constants      of the method, the same for every data set, and of the detector's box loss
    test_settings  thresholds and limits of inference

Which sample is foreground (thresholds of matchers, ATSS' topk) belongs to the detector and is in
none of them.
"""

from detectron2.config import instantiate
from detectron2.data.samplers import RandomSubsetTrainingSampler, TrainingSampler
from detectron2.modeling import PanopticFPN, RetinaNet
from omegaconf import OmegaConf
from torch import nn

from .baselines.retinanet import GHMRetinaNet, OHEMRetinaNet
from .baselines.roi_heads import OHEMStandardROIHeads
from .baselines.rpn import GHMRPN, OHEMRPN
from .config.convert_lazy import class_name
from .config.families import COORDINATES, DENSE, PREDICTORS, PROPOSALS, RCNNS, ROI_HEADS
from .detectors.atss import ATSS
from .detectors.bias import TO_BE_MEASURED, PriorBias, parameter_or_none
from .detectors.fcos import SamplingFreeFCOS
from .detectors.paa import PAA
from .detectors.retinanet import SamplingFreeRetinaNet
from .detectors.roi_heads import EveryProposal, SamplingFreeFastRCNNOutputLayers
from .knob_writer import Knob, Knobs, KnobWriter
from .method.guides import ConstantGuide, FrozenGuide
from .utils.errors import BadInput
from .utils.lazy import target_of

HALF = 0.5  # of the RPN's box loss, in the authors' code
BOX_WEIGHTS = {1.0: "sum over the 4 coordinates", COORDINATES: "1/4: mean over the 4 coordinates"}
RPN_BOX_WEIGHTS = {
    **BOX_WEIGHTS,
    HALF: "the RPN's 0.5 of the authors",
    HALF * COORDINATES: "the RPN's 0.5 of the authors, of the mean over the 4 coordinates",
}
PUBLISHED = {ATSS: 2.0, PAA: 1.3}  # weight of the GIoU loss
PUBLISHED_IOU_WEIGHT = 0.5
# The keys of each cure, which are attributes of its class too.
FOCAL = {
    "focal_loss_alpha": "alpha of the focal loss",
    "focal_loss_gamma": "gamma of the focal loss",
}
SAMPLER = {
    "batch_size_per_image": "samples of an image that are drawn",
    "positive_fraction": "share of foreground among them at most",
}
HARD = {
    "hard_per_image": "hardest samples of an image that are trained on",
    "hard_nms_thresh": "IoU of the NMS by loss",
}
HARD_RPN = {
    "batch_size_per_image": HARD["hard_per_image"],
    "hard_nms_thresh": HARD["hard_nms_thresh"],
}
GHM = {"bins": "of the histogram of gradients", "momentum": "of its running average"}
# Each image as often as any other.
EVEN_SAMPLERS = (TrainingSampler, RandomSubsetTrainingSampler)
# Of RepeatFactorTrainingSampler; the second is newer than v0.6.
REPEATS = {
    "repeat_thresh": "share of images under which a class is rare",
    "sqrt": "whether the root of a class' rarity is taken",
}
REPEATS_OF_YAML = dict(zip(("REPEAT_THRESHOLD", "REPEAT_SQRT"), REPEATS.values()))


def list_knobs(cfg):
    """
    Args:
        cfg (DictConfig): of :func:`sampling_free.load_config`; its model is built on the
            CPU, no data are read.

    Returns:
        Knobs: named by the keys of the LazyConfig, or of the YAML file if ``cfg`` is made of one.

    Raises:
        BadInput: for a detector or a part of one that is not known here.
    """
    lister = _Lister(cfg)
    lister.loader()
    lister.model(_built(cfg.model))
    # The stages of a cascade share their YAML keys.
    return Knobs(*(list(dict.fromkeys(x)) for x in lister.lists))


def _built(node):
    try:
        return instantiate(node)
    except BadInput:
        raise
    except Exception as e:  # whatever a user's class raises
        raise BadInput(f"model: cannot be built ({type(e).__name__}: {e})") from e


class _Lister(KnobWriter):
    """Goes through a config part by part."""

    # Parts of the method -------------------------------------------------------------------------

    def prior(self, where, module):
        if module.prior not in TO_BE_MEASURED:
            key = "MODEL.SAMPLING_FREE.PRIOR"
            self.add(self.lists.knobs, where, "prior", key, module.prior, "fixed prior")

    def head_prior(self, head):
        """The start score that Detectron2's dense heads are given."""
        bias = parameter_or_none(head, "cls_score.bias")
        if bias is None or bias.min() != bias.max():  # a head of the user's own, without one
            return
        prior = float(f"{bias[0].sigmoid().item():.5g}")
        key = "MODEL.RETINANET.PRIOR_PROB"
        self.add(self.lists.knobs, "model.head", "prior_prob", key, prior, "fixed prior")

    def guide(self, where, guide):
        if isinstance(guide, ConstantGuide):
            what = "constant weight of the classification loss"
            key = "MODEL.SAMPLING_FREE.GUIDE"
            self.add(self.lists.knobs, where, "guide", key, guide.key, what)
            return
        what = f"w of the guide {guide.key!r}"
        self.lists.constants.append(Knob(f"{where}.guide.weight", guide.weight, what))
        if isinstance(guide, FrozenGuide):
            what = "iterations until r is frozen"
            self.lists.constants.append(Knob(f"{where}.guide.WARMUP", guide.WARMUP, what))

    # Parts of a config ---------------------------------------------------------------------------

    def loader(self):
        if self.yaml is not None:
            key, where, node = "DATALOADER.SAMPLER_TRAIN", "DATALOADER", self.yaml.DATALOADER
            sampler, whats = node.SAMPLER_TRAIN, REPEATS_OF_YAML
            if sampler == TrainingSampler.__name__:
                return
        else:
            key, where = "dataloader.train.sampler", "dataloader.train.sampler.repeat_factors"
            node, whats = OmegaConf.select(self.cfg, where, default={}), REPEATS
            sampler = OmegaConf.select(self.cfg, key)
            if sampler is None or target_of(sampler) in EVEN_SAMPLERS:
                return
            sampler = class_name(target_of(sampler))
        knobs = self.lists.knobs
        knobs.append(Knob(key, sampler, "says how often each image is seen"))
        knobs.extend(Knob(f"{where}.{k}", node[k], what) for k, what in whats.items() if k in node)

    def model(self, model):
        if type(model) not in RCNNS:
            known = [*DENSE, *DENSE.values(), OHEMRetinaNet, GHMRetinaNet, *RCNNS]
            _require_known("model", model, known)
            self.dense(model)
            return
        self.rpn(getattr(model, "proposal_generator", None), hasattr(model, "roi_heads"))
        if hasattr(model, "roi_heads"):
            self.roi_heads(model.roi_heads)
        if isinstance(model, PanopticFPN):
            self.panoptic(model)

    def dense(self, model):
        if isinstance(model, PriorBias):
            self.prior("model", model)
            self.guide("model", model.guide)
        else:
            if isinstance(model, OHEMRetinaNet):
                self.add_knobs("model", model, None, HARD)
            elif isinstance(model, GHMRetinaNet):
                self.add_knobs("model", model.ghm, None, GHM)
            else:
                self.add_knobs("model", model, "MODEL.RETINANET", FOCAL)
            self.head_prior(model.head)
        node = "MODEL.RETINANET" if isinstance(model, RetinaNet) else "MODEL.SAMPLING_FREE.FCOS"
        if isinstance(model, SamplingFreeRetinaNet):
            key, value = "MODEL.SAMPLING_FREE.BOX_REG_LOSS_WEIGHT", model.box_reg_loss_weight
            what = "weight of the box loss"
            self.add_weight("model", "box_reg_loss_weight", key, value, what, BOX_WEIGHTS)
        elif isinstance(model, SamplingFreeFCOS):
            what = "weight of each point in the box loss"
            self.add(self.lists.constants, "model", "box_weight", None, model.box_weight, what)
        elif isinstance(model, ATSS):
            node = f"MODEL.SAMPLING_FREE.{model.yaml_node}"
            self.anchor_loss_weights(model, node)
        self.dense_test_settings(model, node)

    def anchor_loss_weights(self, model, node):
        """Of ATSS and PAA; those published belong to the detector."""
        published = PUBLISHED[PAA if isinstance(model, PAA) else ATSS]
        key, value = f"{node}.BOX_LOSS_WEIGHT", model.box_loss_weight
        what = "weight of the GIoU loss"
        self.add_weight("model", "box_loss_weight", key, value, what, (published,))
        if isinstance(model, PAA):
            key, value = f"{node}.IOU_LOSS_WEIGHT", model.quality_loss_weight
            what = "weight of the loss of the predicted IoU"
            self.add_weight("model", "iou_loss_weight", key, value, what, (PUBLISHED_IOU_WEIGHT,))

    def dense_test_settings(self, model, node):
        def add(name, yaml_key, what, value=None):
            value = getattr(model, name) if value is None else value
            self.add(self.lists.test_settings, "model", name, yaml_key, value, what)

        key, threshold = f"{node}.SCORE_THRESH_TEST", None
        if isinstance(model, PriorBias):
            threshold = model._test_score_thresh  # "prior", where no prior is known yet
            ours = "MODEL.SAMPLING_FREE.TEST_SCORE_THRESH"
            if self.yaml is not None and OmegaConf.select(self.yaml, ours) is not None:
                key = ours
        add("test_score_thresh", key, "detections score more", threshold)
        topk = "MODEL.RETINANET.TOPK_CANDIDATES_TEST"
        add("test_topk_candidates", topk, "candidates of a level before NMS")
        add("test_nms_thresh", f"{node}.NMS_THRESH_TEST", "IoU of the NMS")
        limit = "TEST.DETECTIONS_PER_IMAGE"
        add("max_detections_per_image", limit, "detections of an image at most")
        if isinstance(model, PAA):
            add("score_voting", f"{node}.SCORE_VOTING", "detections vote for their boxes")

    def rpn(self, rpn, has_roi_heads):
        if rpn is None:  # precomputed proposals
            return
        where, node = "model.proposal_generator", "MODEL.RPN"
        _require_known(where, rpn, [*PROPOSALS, *PROPOSALS.values(), OHEMRPN, GHMRPN])
        constants = ()
        if isinstance(rpn, PriorBias):
            self.prior(where, rpn)
            self.guide(where, rpn.guide)
            constants = RPN_BOX_WEIGHTS
        elif isinstance(rpn, GHMRPN):
            self.add_knobs(where, rpn.ghm, None, GHM)
        elif isinstance(rpn, OHEMRPN):
            self.add_knobs(where, rpn, node, HARD_RPN)
        else:
            self.add_knobs(where, rpn, node, SAMPLER)
        keys = (f"{node}.LOSS_WEIGHT", f"{node}.BBOX_REG_LOSS_WEIGHT")
        self.add_loss_weights(where, rpn, "loss_rpn_cls", "loss_rpn_loc", keys, constants)
        if has_roi_heads:
            key, what = f"{node}.POST_NMS_TOPK_TRAIN", "proposals of an image in training at most"
            value = rpn.post_nms_topk[True]
            self.add(self.lists.constants, where, "post_nms_topk.0", key, value, what)
        for name, value, key, what in (
            ("pre_nms_topk.1", rpn.pre_nms_topk[False], "PRE_NMS_TOPK_TEST", "before NMS"),
            ("post_nms_topk.1", rpn.post_nms_topk[False], "POST_NMS_TOPK_TEST", "after NMS"),
        ):
            tests, what = self.lists.test_settings, f"proposals {what}"
            self.add(tests, where, name, f"{node}.{key}", value, what)
        what = "IoU of the proposals' NMS, in training too"
        key, value = f"{node}.NMS_THRESH", rpn.nms_thresh
        self.add(self.lists.test_settings, where, "nms_thresh", key, value, what)

    def roi_heads(self, heads):
        where = "model.roi_heads"
        _require_known(where, heads, [*ROI_HEADS, *ROI_HEADS.values(), OHEMStandardROIHeads])
        if isinstance(heads, OHEMStandardROIHeads):
            self.add_knobs(where, heads, None, HARD)
        elif not isinstance(heads, EveryProposal):
            self.add_knobs(where, heads, "MODEL.ROI_HEADS", SAMPLER)
        elif getattr(heads, "max_mask_positives", None) is not None:
            whats = {"max_mask_positives": "proposals of an image that the mask head sees"}
            self.add_knobs(where, heads, "MODEL.SAMPLING_FREE", whats)
        self.mask_and_keypoint_heads(heads, where)
        if isinstance(heads.box_predictor, nn.ModuleList):
            predictors = {f"box_predictors.{i}": x for i, x in enumerate(heads.box_predictor)}
        else:
            predictors = {"box_predictor": heads.box_predictor}
        for name, predictor in predictors.items():
            self.predictor(predictor, f"{where}.{name}")
        self.predictor_test_settings(predictor, f"{where}.{name}")  # the last stage's detections

    def mask_and_keypoint_heads(self, heads, where):
        if getattr(heads, "mask_on", False):
            key, value = "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT", heads.mask_head.loss_weight
            what = "weight of the mask loss"
            self.add_weight(f"{where}.mask_head", "loss_weight", key, value, what)
        if getattr(heads, "keypoint_on", False):
            where, node = f"{where}.keypoint_head", "MODEL.ROI_KEYPOINT_HEAD"
            head = heads.keypoint_head
            key, what = f"{node}.LOSS_WEIGHT", "weight of the keypoint loss"
            self.add_weight(where, "loss_weight", key, head.loss_weight, what)
            if head.loss_normalizer != "visible":
                key = f"{node}.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS"
                value, what = head.loss_normalizer, "keypoint loss of an image is divided by it"
                self.add(self.lists.knobs, where, "loss_normalizer", key, value, what)

    def predictor(self, predictor, where):
        _require_known(where, predictor, [*PREDICTORS, *PREDICTORS.values()])
        node, constants = "MODEL.ROI_BOX_HEAD", ()
        if isinstance(predictor, SamplingFreeFastRCNNOutputLayers):
            self.guide(where, predictor.guide)
            constants = BOX_WEIGHTS
            if predictor.softmax_prior is not None:
                whats = {"softmax_prior": "fixed start score of each class"}
                self.add_knobs(where, predictor, "MODEL.SAMPLING_FREE", whats)
        keys = (None, f"{node}.BBOX_REG_LOSS_WEIGHT")
        self.add_loss_weights(where, predictor, "loss_cls", "loss_box_reg", keys, constants)
        whats = {}  # newer than v0.6
        if getattr(predictor, "use_sigmoid_ce", False):
            whats["use_sigmoid_ce"] = "a score for each class, none for background"
        if getattr(predictor, "use_fed_loss", False):
            whats["use_fed_loss"] = "classes are sampled"
            whats["fed_loss_num_classes"] = "classes that are sampled"
        self.add_knobs(where, predictor, node, whats)
        if "use_fed_loss" in whats and self.yaml is not None:
            key = f"{node}.FED_LOSS_FREQ_WEIGHT_POWER"
            power, what = OmegaConf.select(self.yaml, key), "sampled by their frequency to that"
            self.lists.knobs.append(Knob(key, power, what))

    def predictor_test_settings(self, predictor, where):
        for name, key, what in (
            ("test_score_thresh", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "detections score more"),
            ("test_nms_thresh", "MODEL.ROI_HEADS.NMS_THRESH_TEST", "IoU of the NMS"),
            ("test_topk_per_image", "TEST.DETECTIONS_PER_IMAGE", "detections of an image at most"),
        ):
            value = getattr(predictor, name)
            self.add(self.lists.test_settings, where, name, key, value, what)

    def panoptic(self, model):
        where, key = "model.sem_seg_head", "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT"
        value, what = model.sem_seg_head.loss_weight, "weight of the segmentation loss"
        self.add_weight(where, "loss_weight", key, value, what)


def _require_known(where, module, known):
    """Raises BadInput for a class, or a subclass of one, of which nothing is known."""
    if type(module) not in known:
        names = ", ".join(class_name(x) for x in known)
        raise BadInput(
            f"{where}: {class_name(type(module))} may have knobs that this list does not know; "
            f"known: {names}"
        )
