"""OHEM and GHM-C: two processes with half of a batch each train like one with all of it."""

from unittest import mock

import pytest
import torch
from detectron2.modeling.meta_arch import ProposalNetwork
from detectron2.utils.events import EventStorage
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from helpers import tiny_detectors
from helpers.tiny import tiny_retinanet
from helpers.tiny_detectors import PIXELS, rcnn_batch, tiny_rcnn
from sampling_free import GHMRPN, OHEMRPN, GHMRetinaNet, OHEMRetinaNet


def rpn(cls):
    with mock.patch.object(tiny_detectors, "RPN", cls):
        whole = tiny_rcnn("faster", stock=True)
    parts = dict(backbone=whole.backbone, proposal_generator=whole.proposal_generator)
    return ProposalNetwork(**parts, **PIXELS)


MODELS = {
    # So many that the images have not as many of them as they may.
    "OHEM": lambda: tiny_retinanet(OHEMRetinaNet, hard_per_image=10**6),
    "GHM": lambda: tiny_retinanet(GHMRetinaNet),
    "RPN with OHEM": lambda: rpn(OHEMRPN),
    "RPN with GHM": lambda: rpn(GHMRPN),
}
NUMS = {"both halves": (3, 1, 2, 0), "second half empty": (3, 1, 0, 0), "nothing": (0, 0, 0, 0)}
NUM_STEPS = 3  # of normalizers that run


def steps(model, inputs):
    """[(losses, gradients)], and what the model keeps of the steps; the weights stay."""
    found, bare = [], getattr(model, "module", model)
    for _ in range(NUM_STEPS):
        with EventStorage():
            losses = model(inputs)
        model.zero_grad()
        sum(losses.values()).backward()
        gradients = {k: p.grad.clone() for k, p in bare.named_parameters()}
        found.append(({k: v.item() for k, v in losses.items()}, gradients))
    return found, vars(bare).get("loss_normalizer")


def _process(rank, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = {}
    for name in MODELS:
        for nums in NUMS:
            model = DistributedDataParallel(MODELS[name]().train(), broadcast_buffers=False)
            half = rcnn_batch(*NUMS[nums])[2 * rank : 2 * rank + 2]
            found[name, nums] = steps(model, half)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(_process, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("nums", NUMS)
@pytest.mark.parametrize("name", MODELS)
def test_two_processes_train_like_one(two_processes, name, nums):
    whole, normalizer = steps(MODELS[name]().train(), rcnn_batch(*NUMS[nums]))
    (first, a), (second, b) = (x[name, nums] for x in two_processes)
    assert a == b == normalizer
    for (losses, gradients), (loss_a, grad_a), (loss_b, grad_b) in zip(whole, first, second):
        for key, loss in losses.items():
            mean = (loss_a[key] + loss_b[key]) / 2
            assert mean == pytest.approx(loss, rel=1e-4, abs=1e-7), key
        for key, gradient in gradients.items():
            assert torch.equal(grad_a[key], grad_b[key])
            torch.testing.assert_close(grad_a[key], gradient, rtol=1e-3, atol=1e-5)
