"""Twenty steps of each detector, by one process or by two with half of each batch each.

In float64 all that the sources compute in float32 is computed in float64 too: then the two differ
by 1e-14 of themselves, and nothing that is of one process alone can pass for rounding.
"""

import contextlib
from typing import NamedTuple
from unittest import mock

import torch
from detectron2.data.samplers import TrainingSampler
from detectron2.engine.defaults import create_ddp_model
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.meta_arch import ProposalNetwork
from detectron2.structures import Boxes
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from fvcore.nn import sigmoid_focal_loss
from torch import distributed as dist
from torch import nn
from torch.overrides import TorchFunctionMode

from helpers.tiny import stock_retinanet, tiny_fpn, tiny_retinanet
from helpers.tiny_detectors import PIXELS, rcnn_batch, tiny_fcos, tiny_rcnn
from helpers.tiny_run import tiny_stages
from sampling_free import (
    ATSS,
    PAA,
    SamplingFreeATSS,
    SamplingFreeFCOS,
    SamplingFreePAA,
    SamplingFreeRetinaNet,
)
from sampling_free.data.loader import build_replayable_train_loader
from sampling_free.method.kernels import sigmoid_bce_torch

NUM_STEPS = 20
NO_POINT = -1  # stands for one object that holds no center of an anchor
# objects of the four images; each of two processes has two of them
BATCHES = {
    "both halves full": (3, 1, 2, 2),
    "no object in the first half": (0, 0, 2, 1),
    "no object in the second half": (3, 1, 0, 0),
    "no point in an object of the first half": (NO_POINT, NO_POINT, 1, 3),
    "no object at all": (0, 0, 0, 0),
}


def group_norm(channels):
    """Detectron2's "GN" has 32 groups; there are 8 channels here."""
    return nn.GroupNorm(2, channels)


def retinanet(guide, **kwargs):
    torch.manual_seed(0)
    backbone = tiny_fpn(norm=group_norm)
    return tiny_retinanet(prior=0.01, guide=guide, backbone=backbone, **kwargs)


def points(cls, **kwargs):
    return tiny_fcos(cls, norm=group_norm, **kwargs)


def rcnn(kind, guide, **kwargs):
    rpn, predictor = {"prior": 0.01, "guide": guide}, {"guide": guide}
    model = tiny_rcnn(kind, rpn=rpn, predictor=predictor, **kwargs)
    return FrozenBatchNorm2d.convert_frozen_batchnorm(model)  # of C4's res5


def rpn_alone(guide):
    whole = rcnn("faster", guide)
    parts = dict(backbone=whole.backbone, proposal_generator=whole.proposal_generator)
    return ProposalNetwork(**parts, **PIXELS)


def without_keypoints(guide):
    """Their loss is Detectron2's own mean, of one process; here it weighs nothing."""
    model = rcnn("keypoint", guide)
    model.roi_heads.keypoint_head.loss_weight = 0.0
    return model


def fixed_keypoints(guide):
    """Detectron2's other normalizer of keypoints: a number for each image."""
    model = rcnn("keypoint", guide)
    model.roi_heads.keypoint_head.loss_normalizer = 8.0
    return model


# name -> a function of the guide, and the kind of R-CNN for which the images are
DETECTORS = {
    "RetinaNet": (retinanet, ""),
    "RetinaNet without low-quality matches": (lambda g: retinanet(g, low_quality=False), ""),
    "FCOS": (lambda g: points(SamplingFreeFCOS, prior=0.01, guide=g), ""),
    "ATSS": (lambda g: points(SamplingFreeATSS, prior=0.01, guide=g), ""),
    "ATSS with focal loss": (lambda g: points(ATSS), ""),
    "PAA": (lambda g: points(SamplingFreePAA, prior=0.01, guide=g), ""),
    "PAA with focal loss": (lambda g: points(PAA), ""),
    "RPN": (rpn_alone, ""),
    "Faster R-CNN": (lambda g: rcnn("faster", g), ""),
    "Faster R-CNN without objects as proposals": (
        lambda g: rcnn("faster", g, proposal_append_gt=False),
        "",
    ),
    "Faster R-CNN C4": (lambda g: rcnn("c4", g), ""),
    "Mask R-CNN": (lambda g: rcnn("mask", g), "mask"),
    "Keypoint R-CNN but for its keypoints": (without_keypoints, "keypoint"),
    "Keypoint R-CNN with a fixed normalizer": (fixed_keypoints, "keypoint"),
    "Cascade R-CNN": (lambda g: rcnn("cascade", g), ""),
    "Cascade Mask R-CNN": (lambda g: rcnn("cascade_mask", g), "cascade_mask"),
    # Only to look at that loss.
    "Keypoint R-CNN": (lambda g: rcnn("keypoint", g), "keypoint"),
    "RetinaNet of Detectron2": (lambda g: stock_retinanet(), ""),
}


class Case(NamedTuple):
    """What is trained.

    Attributes:
        detector (str): a key of ``DETECTORS``.
        guide (str or float): as in a config.
        dtype (torch.dtype): float32 or float64.
        num_steps (int): one of each of ``BATCHES``, and so on.
        rate (float): learning rate.
    """

    detector: str
    guide: str = "iteration"
    dtype: torch.dtype = torch.float64
    num_steps: int = NUM_STEPS
    rate: float = 0.002


class _InFloat64(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.float:
            func = torch.Tensor.double
            args = [x.clone() if x.dtype == torch.float64 else x for x in args]
        if func is torch.Tensor.view and torch.int32 in args:  # ATSS orders floats by their bits
            args = [args[0].to(torch.float32), *args[1:]]
        args = [torch.float64 if x is torch.float32 else x for x in args]
        if kwargs.get("dtype") is torch.float32:
            kwargs = {**kwargs, "dtype": torch.float64}
        return func(*args, **kwargs)


@contextlib.contextmanager
def in_float64():
    """Computes in float64 what says float32."""
    torch.set_default_dtype(torch.float64)
    # Of TorchScript, which no mode can look into; nor is there one in a backward pass.
    focal = {"sigmoid_focal_loss_jit": sigmoid_focal_loss}
    gradients = sigmoid_bce_torch.gradients

    def gradients_in_float64(*args):
        with _InFloat64():
            return gradients(*args)

    try:
        with (
            mock.patch.object(sigmoid_bce_torch, "gradients", gradients_in_float64),
            mock.patch.multiple("sampling_free.detectors.atss", **focal),
            mock.patch.multiple("sampling_free.detectors.paa", **focal),
            _InFloat64(),
        ):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def build(name, guide="iteration"):
    """A detector in training mode, with drawn weights in the heads."""
    model = DETECTORS[name][0](guide).train()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if not key.startswith("backbone") and "guide" not in key:
                p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model


def images(name, num_steps=NUM_STEPS):
    """Training inputs of all steps in their order, four a step, of one size."""
    kind = DETECTORS[name][1]
    found = []
    for seed in range(num_steps):
        nums = list(BATCHES.values())[seed % len(BATCHES)]
        drawn = [1 if n == NO_POINT else n for n in nums]
        records = rcnn_batch(*drawn, kind=kind, seed=seed)
        for record, n in zip(records, nums):
            if n == NO_POINT:
                record["instances"].gt_boxes = Boxes(torch.tensor([[0.5, 0.5, 3.5, 3.0]]))
                if kind == "keypoint":
                    record["instances"].gt_keypoints.tensor[..., :2] = 2.0
        found += records
    return found


class AsItIs:
    """A mapper."""

    def __call__(self, record):
        return record


def train(case):
    """Trains as ``LazyTrainer`` does, on the whole of each batch or this process' share.

    Returns:
        dict: "steps", a list of dicts with "losses", "r" and "gradients" by name; "start" and
        "weights", the state before and after them, that of the guides too; "momentum".
    """
    with in_float64() if case.dtype == torch.float64 else contextlib.nullcontext():
        return _train(case)


def _train(case):
    bare = build(case.detector, case.guide).to(case.dtype)
    start = {k: v.clone() for k, v in bare.state_dict().items()}
    model = create_ddp_model(bare, device_ids=None, broadcast_buffers=False)
    optimizer = torch.optim.SGD(bare.parameters(), lr=case.rate, momentum=0.9)
    dataset = images(case.detector, case.num_steps)
    loader = build_replayable_train_loader(
        dataset,
        mapper=AsItIs(),
        sampler=TrainingSampler(len(dataset), shuffle=False, seed=0),
        total_batch_size=4,
    )
    steps = []
    with EventStorage() as storage:
        for storage.iter, inputs in zip(range(1, case.num_steps + 1), loader):
            losses = model(inputs)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            latest = {k: v for k, (v, i) in storage.latest().items() if i == storage.iter}
            steps.append(
                {
                    "losses": {k: v.item() for k, v in losses.items()},
                    "r": {k: v for k, v in latest.items() if "guide/" in k and k.endswith("/r")},
                    "gradients": {k: p.grad.clone() for k, p in bare.named_parameters()},
                }
            )
            optimizer.step()
    momentum = {k: optimizer.state[p]["momentum_buffer"] for k, p in bare.named_parameters()}
    return {"steps": steps, "start": start, "weights": bare.state_dict(), "momentum": momentum}


def _one_of_two(rank, cases, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.save({case: train(case) for case in cases}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def in_two_processes(cases, folder):
    """What :func:`train` returns in each of two processes: {case: (first, second)}."""
    torch.multiprocessing.spawn(_one_of_two, (cases, str(folder)), nprocs=2)
    first, second = (torch.load(folder / f"{i}.pt", weights_only=False) for i in range(2))
    return {case: (first[case], second[case]) for case in cases}


def difference(found, expected, least=0.0):
    """Largest difference of two tensors or numbers, over the largest value of the second.

    Args:
        found, expected (Tensor or float):
        least (float): what it is divided by where that is more.
    """
    found, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (found, expected))
    if torch.equal(found, expected):
        return 0.0
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=least)).item()


def largest(found, expected):
    """The same of two dicts of numbers with the same keys."""
    assert found.keys() == expected.keys()
    return max((difference(found[k], x) for k, x in expected.items()), default=0.0)


def largest_of_tensors(found, expected):
    """The same of two dicts of tensors.

    Some gradients are nothing but rounding, as that of the bias of a softmax over places. A
    thousandth of the largest value of all is the least that anything is divided by.
    """
    assert found.keys() == expected.keys()
    least = 1e-3 * max(x.abs().max().item() for x in expected.values())
    return max(difference(found[k], x, least) for k, x in expected.items())


def moved(result):
    """How far the weights of :func:`train` went, over their length at the start."""
    start, end = (
        torch.cat([x.double().flatten() for x in result[k].values()]) for k in ("start", "weights")
    )
    return ((end - start).norm() / start.norm()).item()


class Written(SamplingFreeRetinaNet):
    """Writes what each process has before each step."""

    def __init__(self, *, folder, **kwargs):
        super().__init__(**kwargs)
        self.folder, self.seen = folder, []

    def forward(self, inputs):
        if self.training:
            weights = {k: v.clone() for k, v in self.state_dict().items()}
            files = [x["file_name"] for x in inputs]
            self.seen.append({"prior": self.prior, "weights": weights, "files": files})
            torch.save(self.seen, f"{self.folder}/{comm.get_rank()}_of_{comm.get_world_size()}.pt")
        return super().forward(inputs)


def frozen_stages():
    """``tiny_run.tiny_stages`` with frozen batch normalization."""
    freeze = FrozenBatchNorm2d.convert_frozen_batchnorm
    return [[freeze(block) for block in stage] for stage in tiny_stages()]
