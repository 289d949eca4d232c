"""Two processes with half of a batch each train like one with all of it, whatever the guide."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from helpers.guided_detectors import GUIDES, detector, heads_of, inputs_of

KINDS = ["fcos", "atss", "paa", "faster", "cascade"]
NUMS = {"both halves": (3, 1, 2, 0), "second half empty": (3, 1, 0, 0), "nothing": (0, 0, 0, 0)}
CASES = [("retinanet", guide, nums) for guide in GUIDES for nums in NUMS]
CASES += [(kind, guide, "second half empty") for kind in KINDS for guide in ("gradient", "frozen")]
CASES += [("faster", "iteration", nums) for nums in NUMS]
CASES += [("atss", guide, "both halves") for guide in ("iteration", "gradient")]  # two normalizers


def step(model, kind, inputs):
    """{r: value}, losses, gradients and the guides' state."""
    with EventStorage() as storage:
        losses = model(inputs)
        latest = {k: v for k, (v, _) in storage.latest().items()}
    sum(losses.values()).backward()
    bare = getattr(model, "module", model)
    return {
        "r": {r: latest[r] for *_, r, _ in heads_of(bare, kind)},
        "losses": {k: v.item() for k, v in losses.items()},
        "gradients": {k: p.grad for k, p in bare.named_parameters()},
        "guides": {k: v for k, v in bare.state_dict().items() if "guide" in k},
    }


def _process(rank, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = {}
    for kind, guide, nums in CASES:
        model = DistributedDataParallel(detector(kind, guide).train())
        half = inputs_of(kind, *NUMS[nums])[2 * rank : 2 * rank + 2]
        found[kind, guide, nums] = step(model, kind, half)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(_process, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("kind, guide, nums", CASES)
def test_two_processes_train_like_one(two_processes, kind, guide, nums):
    whole = step(detector(kind, guide).train(), kind, inputs_of(kind, *NUMS[nums]))
    first, second = (x[kind, guide, nums] for x in two_processes)
    assert first["r"] == second["r"] == pytest.approx(whole["r"], rel=1e-4)
    for name, loss in whole["losses"].items():
        mean = (first["losses"][name] + second["losses"][name]) / 2
        assert mean == pytest.approx(loss, rel=1e-4, abs=1e-7), name
    for name, gradient in whole["gradients"].items():
        assert torch.equal(first["gradients"][name], second["gradients"][name])
        torch.testing.assert_close(first["gradients"][name], gradient, rtol=1e-3, atol=1e-5)
    for name, x in whole["guides"].items():
        assert torch.equal(first["guides"][name], second["guides"][name])
        torch.testing.assert_close(first["guides"][name], x, rtol=1e-4, atol=0)
