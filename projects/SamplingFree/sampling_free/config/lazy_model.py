"""The variants of a LazyConfig's model node; see convert.py."""

from detectron2.config import instantiate
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import ROIHeads
from omegaconf import DictConfig, ListConfig

from ..detectors.bias import AUTO, parameter_or_none
from ..detectors.fcos import SamplingFreeFCOS
from ..utils.errors import BadInput
from ..utils.lazy import target_of
from .families import (
    BASELINES,
    COORDINATES,
    DENSE,
    FCOS_SCORE_THRESH,
    GHM,
    HEADS,
    OHEM,
    PREDICTORS,
    PROPOSALS,
    RCNNS,
    ROI_HEADS,
    SCORE_THRESH,
    STOCK,
    dense_variants,
    rcnn_variants,
)

METHOD = ("sampling_free", "all_samples")
# Arguments that only the sampling-free classes and the baselines take.
OURS = (
    "prior",
    "guide",
    "softmax_prior",
    "max_mask_positives",
    "box_reg_loss_weight",
    "box_weight",
    "hard_per_image",
    "hard_nms_thresh",
    "bins",
    "momentum",
)
# Detectron2's numbers, where a conversion has dropped them.
FOCAL = {"focal_loss_alpha": 0.25, "focal_loss_gamma": 2.0}
RPN_SAMPLES = {"batch_size_per_image": 256, "positive_fraction": 0.5}
ROI_SAMPLES = {"batch_size_per_image": 512, "positive_fraction": 0.25}


def vary_model(node: DictConfig, name: str, changes: list[str]):
    """Makes a variant of a LazyConfig's model, in place.

    Args:
        node: the model node, or that of an RPN or of RoI heads; changed in place.
        name: of the variant.
        changes: gets a line for each change.

    Raises:
        BadInput: if the variant does not apply; names the first thing that is not known.
    """
    model = CallNode(node, "model", changes)
    for key, base in (("proposal_generator", RPN), ("roi_heads", ROIHeads)):
        if _is_a(model, base):
            model.where = key
            _vary_rcnn(_Alone(key, model), name)
            return
    if model.target in RCNNS or _is_a(model, GeneralizedRCNN):
        _vary_rcnn(model, name)
    else:
        _vary_dense(model, name)


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


def convert_model(node: DictConfig, changes: list[str]):
    """Makes a LazyConfig's model sampling-free, in place.

    Args:
        node: the model node; changed in place.
        changes: gets a line for each change.

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
    model.swap(DENSE)
    model.drop("focal_loss_alpha", "focal_loss_gamma")
    model.start_from_the_prior()
    if issubclass(target_of(model.node), SamplingFreeFCOS):
        model.lower("test_score_thresh", FCOS_SCORE_THRESH, 0.2)
    else:
        model.lower("test_score_thresh", SCORE_THRESH, 0.05)


def convert_proposals(model):
    """Makes the RPN of an R-CNN sampling-free, in place."""
    if model.node.get("proposal_generator", None) is None:  # precomputed proposals
        return
    rpn = model.child("proposal_generator")
    if rpn.swap(PROPOSALS):
        fraction = rpn.node.get("positive_fraction", 0.5)
        rpn.shrink_box_loss("loss_rpn_cls", "loss_rpn_loc", fraction)
    rpn.require_bias("head", "objectness_logits")
    rpn.drop("batch_size_per_image", "positive_fraction")
    rpn.start_from_the_prior()


def convert_roi_heads(model):
    """Makes the RoI heads of an R-CNN sampling-free, in place."""
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
        predictor.lower("test_score_thresh", SCORE_THRESH, 0.0)


def class_name(x):
    """A class by its name, of another's code with its module."""
    if not isinstance(x, type):
        return getattr(x, "__qualname__", str(x))
    ours = x.__module__.split(".")[0] in ("detectron2", "sampling_free", "builtins")
    return x.__name__ if ours else f"{x.__module__}.{x.__qualname__}"


class _Alone:
    """A part of a model that is varied alone, in the place of the model."""

    def __init__(self, key, part):
        self.node, self.part = {key: part.node}, part

    def child(self, key):
        return self.part


def _is_a(call, base):
    return isinstance(call.target, type) and issubclass(call.target, base)


def _vary_dense(model, name):
    if name in METHOD:
        _leave_baseline(model)
        convert_model(model.node, model.changes)
        _set_guide(model, name)
        return
    _require_known(model, DENSE, RCNNS)
    stock = STOCK[model.target]
    require_applies(name, dense_variants(stock), _named(model))
    _exchange(model, {"focal": stock, "ohem": OHEM.get(stock), "ghm": GHM.get(stock)}[name])
    if name == "focal":
        _restore(model, FOCAL)
    if isinstance(model.node.get("test_score_thresh", None), str):  # it followed from the prior
        model.set("test_score_thresh", FCOS_SCORE_THRESH if stock is FCOS else SCORE_THRESH)


def _vary_rcnn(model, name):
    rpn, roi_heads = (
        model.child(key) if model.node.get(key, None) is not None else None
        for key in ("proposal_generator", "roi_heads")
    )
    parts = [x for x in (rpn, roi_heads) if x is not None]
    predictors = _predictors(roi_heads) if roi_heads is not None else []
    if name in METHOD:
        for part in parts:
            _leave_baseline(part)
        convert_proposals(model)
        convert_roi_heads(model)
        for head in [x for x in (rpn, *predictors) if x is not None]:
            _set_guide(head, name)
        return
    for part, known in ((rpn, PROPOSALS), (roi_heads, ROI_HEADS)):
        if part is not None:
            _require_known(part, known)
    for predictor in predictors:
        _require_known(predictor, PREDICTORS)
    roi_stock = roi_heads and STOCK[roi_heads.target]
    applicable = rcnn_variants(rpn is not None, roi_stock)
    require_applies(name, applicable, ", ".join(map(_named, parts)))
    if rpn is not None:
        # As published, OHEM is for the RoI head; its RPN samples.
        hard = name == "ohem" and roi_heads is None
        _exchange(rpn, GHM[RPN] if name == "ghm" else OHEM[RPN] if hard else RPN)
        _restore(rpn, {} if name == "ghm" else RPN_SAMPLES)
    if roi_heads is not None:
        _exchange(roi_heads, OHEM[roi_stock] if name == "ohem" else roi_stock)
        _restore(roi_heads, {} if name == "ohem" else ROI_SAMPLES)
    for predictor in predictors:
        _exchange(predictor, STOCK[predictor.target])


def _predictors(roi_heads):
    key = "box_predictors" if "box_predictors" in roi_heads.node else "box_predictor"
    return roi_heads.children(key)


def _require_known(call, *tables):
    known = [x for table in tables for x in table]
    if call.target not in STOCK or STOCK[call.target] not in known:
        names = ", ".join(class_name(x) for x in known)
        raise BadInput(f"{_named(call)}: no variant of it is known; known: {names}")


def require_applies(name, applicable, named):
    """Raises BadInput unless the variant is one of those for what is named."""
    if name not in applicable:
        raise BadInput(
            f"{named}: the variant {name!r} does not apply; those that do: {', '.join(applicable)}"
        )


def _named(call):
    return f"{call.where}._target_ = {class_name(call.target)}"


def _exchange(call, new):
    """Another target, without the arguments that it does not take."""
    if call.target is new:
        return
    call.changes.append(f"{call.where}: {class_name(call.target)} -> {class_name(new)}")
    call.drop(*OURS)
    if call.target not in BASELINES and call.target is not STOCK[new]:  # of a conversion
        call.drop("loss_weight")
    call.node._target_ = call.target = new


def _leave_baseline(call):
    if call.target in BASELINES:
        _exchange(call, STOCK[call.target])


def _restore(call, defaults):
    for key, value in defaults.items():
        if key not in call.node:
            call.set(key, value)


def _set_guide(call, name):
    """A constant is what tells the two apart; another guide stays."""
    if name == "all_samples":
        call.set("guide", 1.0)
    elif not isinstance(call.node.get("guide", ""), str):
        call.drop("guide")
