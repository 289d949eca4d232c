"""The variants of a LazyConfig's model node; see convert.py."""

from detectron2.config import instantiate
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import ROIHeads
from omegaconf import DictConfig

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
    METHOD,
    OHEM,
    PREDICTORS,
    PROPOSALS,
    RCNNS,
    ROI_HEADS,
    SCORE_THRESH,
    STOCK,
    UNUSABLE_LOSSES,
    dense_variants,
    rcnn_variants,
    require_applies,
)

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


def vary_model(node: DictConfig, name: str, changes: list[str]) -> None:
    """Makes a variant of a LazyConfig's model, in place.

    Args:
        node: the model node, or that of an RPN or of RoI heads; changed in place.
        name: of the variant.
        changes: gets a line for each change.

    Raises:
        BadInput: the variant does not apply, or something is not known; names the first such thing.
    """
    model = _Call(node, "model", changes)
    rpn = roi_heads = None
    if model.is_a(RPN):
        model.where, rpn = "proposal_generator", model
    elif model.is_a(ROIHeads):
        model.where, roi_heads = "roi_heads", model
    elif model.is_a(*RCNNS):
        rpn, roi_heads = model.part("proposal_generator"), model.part("roi_heads")
    else:
        _vary_dense(model, name)
        return
    _vary_rcnn(rpn, roi_heads, name)


class _Call:
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

    def is_a(self, *bases):
        return isinstance(self.target, type) and issubclass(self.target, bases)

    def part(self, key):
        """The call at a key; None where there is none."""
        if self.node.get(key, None) is None:
            return None
        return _Call(self.node[key], f"{self.where}.{key}", self.changes)

    def predictors(self):
        """Of RoI heads: those of a cascade, or the one."""
        if "box_predictors" not in self.node:
            return [self.part("box_predictor")]
        where = f"{self.where}.box_predictors"
        nodes = self.node.box_predictors
        return [_Call(x, f"{where}[{i}]", self.changes) for i, x in enumerate(nodes)]

    def become(self, new):
        """Exchanges the target."""
        if self.target is not new:
            self.changes.append(f"{self.where}: {class_name(self.target)} -> {class_name(new)}")
            self.node._target_ = self.target = new

    def swap(self, table, known=()):
        """Exchanges the target; False if it was exchanged before."""
        if self.is_a(*table.values()):
            return False
        if self.target not in table:
            raise BadInput(self.refusal(table, known))
        self.become(table[self.target])
        return True

    def refusal(self, table, known):
        line = f"{self.named()}: cannot be converted"
        for base, new in table.items():
            if self.is_a(base):
                own = sorted(k for k, v in vars(self.target).items() if callable(v))
                what = f" with its own {', '.join(own)}" if own else ""
                return (
                    f"{line}: a subclass of {base.__name__}{what}; derive it from "
                    f"sampling_free.{new.__name__} by hand"
                )
        return f"{line}; known: {', '.join(map(class_name, (*table, *known)))}"

    def named(self):
        return f"{self.where}._target_ = {class_name(self.target)}"

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


def class_name(x: object) -> str:
    """Names a class, one of another's code with its module."""
    if not isinstance(x, type):
        return getattr(x, "__qualname__", str(x))
    ours = x.__module__.split(".")[0] in ("detectron2", "sampling_free", "builtins")
    return x.__name__ if ours else f"{x.__module__}.{x.__qualname__}"


def _vary_dense(model, name):
    if name in METHOD:
        _leave_baseline(model)
        model.swap(DENSE, known=RCNNS)
        model.require_bias("head", "cls_score")
        model.drop("focal_loss_alpha", "focal_loss_gamma")
        model.start_from_the_prior()
        limits = (FCOS_SCORE_THRESH, 0.2) if model.is_a(SamplingFreeFCOS) else (SCORE_THRESH, 0.05)
        model.lower("test_score_thresh", *limits)
        _set_guide(model, name)
        return
    _require_known(model, DENSE, RCNNS)
    stock = STOCK[model.target]
    require_applies(name, dense_variants(stock), model.named())
    _exchange(model, {"focal": stock, "ohem": OHEM.get(stock), "ghm": GHM.get(stock)}[name])
    if name == "focal":
        _restore(model, FOCAL)
    if isinstance(model.node.get("test_score_thresh", None), str):  # it followed from the prior
        model.set("test_score_thresh", FCOS_SCORE_THRESH if stock is FCOS else SCORE_THRESH)


def _vary_rcnn(rpn, roi_heads, name):
    """Each is None where there is none: of precomputed proposals, of a proposal network."""
    predictors = roi_heads.predictors() if roi_heads else []
    if name in METHOD:
        if rpn:
            _make_rpn_sampling_free(rpn)
        if roi_heads:
            _make_roi_heads_sampling_free(roi_heads, predictors)
        for head in [rpn, *predictors] if rpn else predictors:
            _set_guide(head, name)
        return
    if rpn:
        _require_known(rpn, PROPOSALS)
    if roi_heads:
        _require_known(roi_heads, ROI_HEADS)
    for predictor in predictors:
        _require_known(predictor, PREDICTORS)
    roi_stock = roi_heads and STOCK[roi_heads.target]
    named = ", ".join(x.named() for x in (rpn, roi_heads) if x)
    require_applies(name, rcnn_variants(rpn is not None, roi_stock), named)
    if rpn:
        # As published, OHEM is for the RoI head; its RPN samples.
        hard = name == "ohem" and roi_heads is None
        _exchange(rpn, GHM[RPN] if name == "ghm" else OHEM[RPN] if hard else RPN)
        _restore(rpn, {} if name == "ghm" else RPN_SAMPLES)
    if roi_heads:
        _exchange(roi_heads, OHEM[roi_stock] if name == "ohem" else roi_stock)
        _restore(roi_heads, {} if name == "ohem" else ROI_SAMPLES)
    for predictor in predictors:
        _exchange(predictor, STOCK[predictor.target])


def _make_rpn_sampling_free(rpn):
    _leave_baseline(rpn)
    if rpn.swap(PROPOSALS):
        fraction = rpn.node.get("positive_fraction", 0.5)
        rpn.shrink_box_loss("loss_rpn_cls", "loss_rpn_loc", fraction)
    rpn.require_bias("head", "objectness_logits")
    rpn.drop("batch_size_per_image", "positive_fraction")
    rpn.start_from_the_prior()


def _make_roi_heads_sampling_free(roi_heads, predictors):
    _leave_baseline(roi_heads)
    roi_heads.swap(ROI_HEADS)
    fraction = roi_heads.node.get("positive_fraction", 0.25)
    roi_heads.drop("batch_size_per_image", "positive_fraction")
    for predictor in predictors:
        for key, why in UNUSABLE_LOSSES.items():
            if predictor.node.get(key, False):
                raise BadInput(f"{predictor.where}.{key} = True: {why}; set it to False")
        if predictor.swap(PREDICTORS):
            predictor.shrink_box_loss("loss_cls", "loss_box_reg", fraction)
        predictor.lower("test_score_thresh", SCORE_THRESH, 0.0)


def _require_known(call, *tables):
    known = [x for table in tables for x in table]
    if STOCK.get(call.target) not in known:
        names = ", ".join(map(class_name, known))
        raise BadInput(f"{call.named()}: no variant of it is known; known: {names}")


def _exchange(call, new):
    """Another target, without the arguments that it does not take."""
    if call.target is new:
        return
    old = call.target
    call.become(new)
    call.drop(*OURS)
    if old not in BASELINES and old is not STOCK[new]:  # of a conversion
        call.drop("loss_weight")


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
