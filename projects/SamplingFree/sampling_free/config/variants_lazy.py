"""The variants of a LazyConfig's model node; see variants.py."""

from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import ROIHeads

from ..method.guides import RECOMMENDED
from ..utils.errors import BadInput
from .convert_lazy import CallNode, class_name, convert_model, convert_proposals, convert_roi_heads
from .families import (
    BASELINES,
    DENSE,
    FCOS_SCORE_THRESH,
    GHM,
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


def vary_model(node, name, changes):
    """
    Args:
        node (DictConfig): the model node, or that of an RPN or of RoI heads; changed in place.
        name (str): of the variant.
        changes (list[str]): gets a line for each change.

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
        call.set("guide", RECOMMENDED)
