"""The conversion of a LazyConfig's model node; see convert.py."""

from detectron2.config import instantiate
from detectron2.modeling import GeneralizedRCNN
from omegaconf import DictConfig, ListConfig

from ..detectors.bias import AUTO, parameter_or_none
from ..detectors.fcos import SamplingFreeFCOS
from ..method.guides import RECOMMENDED
from ..utils.errors import BadInput
from ..utils.lazy import target_of
from .families import (
    COORDINATES,
    DENSE,
    FCOS_SCORE_THRESH,
    HEADS,
    PREDICTORS,
    PROPOSALS,
    RCNNS,
    ROI_HEADS,
    SCORE_THRESH,
)


class CallNode:
    """A call of a LazyConfig that notes its changes."""

    def __init__(self, node, where, changes):
        if not isinstance(node, DictConfig) or "_target_" not in node:
            raise BadInput(f"{where}: is {class_name(type(node))}, no call (L(...)) to convert")
        self.node, self.where, self.changes = node, where, changes
        try:
            self.target = target_of(node)
        except Exception as e:  # whatever the import of a user's module raises
            raise BadInput(
                f"{where}._target_ = {node._target_}: cannot be imported ({e})"
            ) from None

    def child(self, key):
        return CallNode(self.node[key], f"{self.where}.{key}", self.changes)

    def children(self, key):
        """Those of a list, or the one child."""
        value = self.node[key]
        if not isinstance(value, ListConfig):
            return [self.child(key)]
        return [CallNode(x, f"{self.where}.{key}[{i}]", self.changes) for i, x in enumerate(value)]

    def swap(self, table):
        """Exchanges the target; False if it was exchanged before."""
        if isinstance(self.target, type) and issubclass(self.target, tuple(table.values())):
            return False
        if self.target not in table:
            raise BadInput(self.refusal(table))
        self.changes.append(
            f"{self.where}: {class_name(self.target)} -> {class_name(table[self.target])}"
        )
        self.node._target_ = table[self.target]
        return True

    def refusal(self, table):
        line = f"{self.where}._target_ = {class_name(self.target)}: cannot be converted"
        for base, new in table.items():
            if isinstance(self.target, type) and issubclass(self.target, base):
                own = sorted(k for k, v in vars(self.target).items() if callable(v))
                what = f" with its own {', '.join(own)}" if own else ""
                return (
                    f"{line}: a subclass of {base.__name__}{what}; derive it from "
                    f"sampling_free.{new.__name__} by hand"
                )
        return f"{line}; known: {', '.join(class_name(x) for x in table)}"

    def set(self, key, value):
        old = self.node.get(key, "(none)")
        if old != value:
            self.changes.append(f"{self.where}.{key}: {old} -> {value}")
            self.node[key] = value

    def lower(self, key, limit, default):
        value = self.node.get(key, default)
        if not isinstance(value, str) and value > limit:  # "prior" follows from the data
            self.set(key, limit)

    def drop(self, *keys):
        for key in keys:
            if key in self.node:
                self.changes.append(f"{self.where}.{key}: {self.node[key]} -> (dropped)")
                del self.node[key]

    def shrink_box_loss(self, cls, loc, positive_fraction):
        """Makes up for the smaller divisor of the box loss."""
        smooth_l1 = self.node.get("box_reg_loss_type", "smooth_l1") == "smooth_l1"
        factor = COORDINATES if smooth_l1 else positive_fraction
        weight = self.node.get("loss_weight", 1.0)
        is_number = isinstance(weight, (int, float))
        weights = {cls: float(weight), loc: float(weight)} if is_number else dict(weight)
        self.set("loss_weight", {**weights, loc: weights.get(loc, 1.0) * factor})
        if weights.get(cls, 1.0) != weights.get(loc, 1.0):
            self.changes.append(f"{self.where}.loss_weight.{cls}: no effect under the guide")

    def start_from_the_prior(self):
        if "prior" not in self.node:
            self.set("prior", AUTO)

    def guide(self):
        if "guide" not in self.node:
            self.set("guide", RECOMMENDED)

    def require_bias(self, key, layer):
        """The head at ``key`` must have ``layer``.bias; one of Detectron2's own has."""
        try:
            head = self.node[key]
            if isinstance(head, DictConfig):
                if target_of(head) in HEADS:
                    return
                head = instantiate(head)
        except Exception as e:  # of OmegaConf, or whatever the head raises
            line = f"{type(e).__name__}: {e}"
            raise BadInput(f"{self.where}.{key}: cannot be built ({line})") from None
        if parameter_or_none(head, f"{layer}.bias") is None:
            raise BadInput(
                f"{self.where}.{key} is {class_name(type(head))}, which has no parameter "
                f"{layer}.bias for the prior to set; give that layer a bias"
            )


def convert_model(node, changes):
    """
    Args:
        node (DictConfig): the model node; changed in place.
        changes (list[str]): gets a line for each change.

    Raises:
        BadInput: names the first thing that cannot be converted.
    """
    model = CallNode(node, "model", changes)
    if model.target in RCNNS or (
        isinstance(model.target, type) and issubclass(model.target, GeneralizedRCNN)
    ):
        convert_proposals(model)
        convert_roi_heads(model)
        return
    known = isinstance(model.target, type) and issubclass(model.target, tuple(DENSE.values()))
    if not known and model.target not in DENSE:
        raise BadInput(model.refusal({**DENSE, **{x: x for x in RCNNS}}))
    model.require_bias("head", "cls_score")
    if model.swap(DENSE):
        model.guide()
    model.drop("focal_loss_alpha", "focal_loss_gamma")
    model.start_from_the_prior()
    if issubclass(target_of(model.node), SamplingFreeFCOS):
        model.lower("test_score_thresh", FCOS_SCORE_THRESH, 0.2)
    else:
        model.lower("test_score_thresh", SCORE_THRESH, 0.05)


def convert_proposals(model):
    if model.node.get("proposal_generator", None) is None:  # precomputed proposals
        return
    rpn = model.child("proposal_generator")
    if rpn.swap(PROPOSALS):
        fraction = rpn.node.get("positive_fraction", 0.5)
        rpn.shrink_box_loss("loss_rpn_cls", "loss_rpn_loc", fraction)
        rpn.guide()
    rpn.require_bias("head", "objectness_logits")
    rpn.drop("batch_size_per_image", "positive_fraction")
    rpn.start_from_the_prior()


def convert_roi_heads(model):
    if model.node.get("roi_heads", None) is None:  # a proposal network
        return
    heads = model.child("roi_heads")
    heads.swap(ROI_HEADS)
    fraction = heads.node.get("positive_fraction", 0.25)
    heads.drop("batch_size_per_image", "positive_fraction")
    key = "box_predictors" if "box_predictors" in heads.node else "box_predictor"
    for predictor in heads.children(key):
        if predictor.node.get("use_fed_loss", False):
            raise BadInput(f"{predictor.where}.use_fed_loss = True: samples the classes; drop it")
        if predictor.node.get("use_sigmoid_ce", False):
            raise BadInput(
                f"{predictor.where}.use_sigmoid_ce = True: has no prior; set it to False"
            )
        if predictor.swap(PREDICTORS):
            predictor.shrink_box_loss("loss_cls", "loss_box_reg", fraction)
            predictor.guide()
        predictor.lower("test_score_thresh", SCORE_THRESH, 0.0)


def class_name(x):
    """A class by its name, of another's code with its module."""
    if not isinstance(x, type):
        return getattr(x, "__qualname__", str(x))
    ours = x.__module__.split(".")[0] in ("detectron2", "sampling_free", "builtins")
    return x.__name__ if ours else f"{x.__module__}.{x.__qualname__}"
