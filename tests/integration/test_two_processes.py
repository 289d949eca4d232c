"""Two processes under DistributedDataParallel, one of them without any object in its batch."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from helpers.tiny import batch, tiny_retinanet
from helpers.tiny_detectors import ROI_HEADS, rcnn_batch, tiny_fcos, tiny_rcnn
from sampling_free import ATSS, PAA, SamplingFreeATSS, SamplingFreePAA

POINTS = {
    "fcos": lambda: tiny_fcos(prior=0.01),
    "atss": lambda: tiny_fcos(SamplingFreeATSS, prior=0.01),
    "paa": lambda: tiny_fcos(SamplingFreePAA, prior=0.01),
    "atss_focal": lambda: tiny_fcos(ATSS),
    "paa_focal": lambda: tiny_fcos(PAA),
}
KINDS = ["retinanet", "gradient", "frozen", *POINTS, *ROI_HEADS]


def _detector(kind):
    if kind in ROI_HEADS:
        return tiny_rcnn(kind, rpn={"prior": 0.01})
    if kind in POINTS:
        return POINTS[kind]()
    return tiny_retinanet(prior=0.01, guide="iteration" if kind == "retinanet" else kind)


def _work(rank, folder):
    """Two steps of each detector; the gradients of both processes and the losses."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = {}
    for kind in KINDS:
        model = DistributedDataParallel(_detector(kind), broadcast_buffers=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        nums = [(2, 1), (0, 0)][rank]
        for _ in range(2):  # an unused parameter is an error in the second
            inputs = rcnn_batch(*nums, kind=kind) if kind in ROI_HEADS else batch(*nums)
            with EventStorage():
                losses = model(inputs)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
        found[kind] = gradients, {k: v.item() for k, v in losses.items()}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(_work, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("kind", KINDS)
def test_both_end_with_the_same_finite_gradients(found, kind):
    (first, losses), (second, empty) = (x[kind] for x in found)
    assert torch.equal(first, second) and first.isfinite().all() and first.abs().sum() > 0
    located = [k for k in losses if any(x in k for x in ("loc", "box_reg", "ctr"))]
    assert all(losses[k] > 0 and empty[k] == 0 for k in located) and located
