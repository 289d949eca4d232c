"""Two processes with half of each batch each train as one with all of it, step by step."""

import shutil

import pytest
import torch
from detectron2.utils.events import EventStorage

from helpers.launched import url, weights
from helpers.tiny_run import load, metrics, same, train_net, write_config
from helpers.twenty_steps import (
    BATCHES,
    DETECTORS,
    NUM_STEPS,
    Case,
    build,
    difference,
    images,
    in_two_processes,
    largest,
    largest_of_tensors,
    moved,
    train,
)
from sampling_free.method.guides import FROZEN, GRADIENT

F32 = torch.float32
# In float32 a ReLU whose input is almost zero may open in one and not in the other: that changes
# the gradient of a step by 1e-3, in one process with weights that differ by 1e-7 as well.
TOLERANCE = {
    torch.float64: {"losses": 1e-12, "gradients": 1e-11, "weights": 1e-11},
    F32: {"losses": 1e-4, "gradients": 1e-2, "weights": 1e-3},
}
KEYPOINTS = "Keypoint R-CNN"  # the loss of its keypoints is Detectron2's own
STOCK = Case("RetinaNet of Detectron2", num_steps=len(BATCHES), rate=0.1)
COMPARED = [name for name in DETECTORS if name not in (KEYPOINTS, STOCK.detector)]
GUIDED = ["RetinaNet", "FCOS", "Faster R-CNN", "Cascade R-CNN"]
# PAA's labels depend on the network: that those of both are the same shows after some steps only.
QUICK = [Case(x, num_steps=NUM_STEPS if x == "PAA" else len(BATCHES)) for x in COMPARED]
# At rest each step has the same weights.
AT_REST = Case(KEYPOINTS, num_steps=len(BATCHES), rate=0.0)
LONG = [
    *(Case(name) for name in COMPARED),
    *(Case(name, guide) for name in GUIDED for guide in (GRADIENT, FROZEN, 0.5)),
    *(Case(name, dtype=F32) for name in GUIDED),
]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return in_two_processes([*QUICK, AT_REST, STOCK], tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    return in_two_processes(LONG, tmp_path_factory.mktemp("two"))


def compared(two, case):
    """Asserts that two processes have the same bits; their differences from one, the largest."""
    one, (first, second) = train(case), two[case]
    assert same(first["start"], one["start"]) and same(first["weights"], second["weights"])
    found = {"losses": 0.0, "gradients": 0.0}
    for whole, a, b in zip(one["steps"], first["steps"], second["steps"]):
        assert a["r"] == b["r"] and same(a["gradients"], b["gradients"])
        losses = {k: (a["losses"][k] + b["losses"][k]) / 2 for k in b["losses"]}
        step = {
            "losses": max(largest(losses, whole["losses"]), largest(a["r"], whole["r"])),
            "gradients": largest_of_tensors(a["gradients"], whole["gradients"]),
        }
        found = {k: max(x, step[k]) for k, x in found.items()}
    found["weights"] = max(largest_of_tensors(first[k], one[k]) for k in ("weights", "momentum"))
    assert moved(one) > 1e-3
    return found


def check(two, case):
    found = compared(two, case)
    assert all(x < TOLERANCE[case.dtype][k] for k, x in found.items()), found
    return found


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.detector)
def test_a_step_of_each_kind_of_batch(quick, case):
    check(quick, case)


def test_of_a_normalizer_of_each_process_it_would_be_known(quick):
    assert min(compared(quick, STOCK).values()) > 1e-2


@pytest.mark.long
@pytest.mark.parametrize("case", LONG, ids=lambda c: f"{c.detector}, {c.guide}, {c.dtype}")
def test_twenty_steps(long, case, figure):
    found = check(long, case)
    dtype = str(case.dtype).removeprefix("torch.")
    guide = "" if "focal" in case.detector else str(case.guide)
    values = {"detector": case.detector, "guide": guide, "dtype": dtype, "steps": case.num_steps}
    figure("processes", f"{case.detector}, {guide}, {dtype}", **values, **found)


def test_the_loss_of_keypoints_is_a_mean_of_each_process(quick):
    # Of Detectron2's own head: a process without an object counts as one whose loss is 0.
    name, one, (first, second) = "loss_keypoint", train(AT_REST), quick[AT_REST]
    tolerance = TOLERANCE[AT_REST.dtype]["losses"]
    for batch, whole, a, b in zip(BATCHES, one["steps"], first["steps"], second["steps"]):
        losses = {k: (a["losses"][k] + b["losses"][k]) / 2 for k in b["losses"]}
        mean, expected = losses.pop(name), whole["losses"].pop(name)
        assert largest(losses, whole["losses"]) < tolerance
        if "no object in" in batch:
            assert difference(mean, expected / 2) < tolerance
        elif "no object at all" in batch:
            assert mean == expected == 0
        else:
            assert abs(mean - expected) < 0.1 * expected
            assert mean != pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("name", COMPARED)
def test_a_half_may_have_objects_and_no_positive(name):
    """Where an object without a point has one all the same, its best anchor or itself is taken."""
    model, first = build(name), list(BATCHES).index("no point in an object of the first half")
    half = images(name)[4 * first :][:2]
    assert [len(x["instances"]) for x in half] == [1, 1]
    with EventStorage(1) as storage, torch.no_grad():
        model(half)
    numbers = {k: v for k, (v, _) in storage.latest().items() if "num_pos" in k or "num_fg" in k}
    assert numbers
    none = [k for k, v in numbers.items() if v == 0]
    if name in ("FCOS", "ATSS", "ATSS with focal loss", "RetinaNet without low-quality matches"):
        assert none == ["num_pos_anchors"]
    elif name == "Faster R-CNN without objects as proposals":
        assert none == ["roi_head/num_fg_samples"]
    else:
        assert not none


WORKERS = "dataloader.train.num_workers=2"
OTHERS = ["two", "two, num_workers=2", "one, then two", "two, then one"]  # processes
# Frozen normalization, and a learning rate that moves the weights.
RUN = """
import tiny_run, twenty_steps
bottom_up.stem.norm = "FrozenBN"
bottom_up.stages = L(twenty_steps.frozen_stages)()
model._target_, model.folder = twenty_steps.Written, {folder!r}
dataloader.train.total_batch_size = 4
optimizer.lr = 0.05
train.max_iter, train.checkpointer.period = 20, 10
"""


def whole_run(folder, num_processes, *overrides):
    """Twenty iterations by train_net.py; returns the folder."""
    folder.mkdir(exist_ok=True)
    config = write_config(folder, RUN.format(folder=str(folder)))
    words = ["--num-gpus=2", "--timeout=5", url()] if num_processes == 2 else []
    done = train_net(config, "--resume", *words, *overrides)
    assert done.code == 0, done.out + done.err
    return folder


def resumed_run(source, folder, num_processes):
    """The second half of a run, from the checkpoint after its first."""
    (folder / "out").mkdir(parents=True)
    shutil.copy(source / "out" / "model_0000009.pth", folder / "out")
    (folder / "out" / "last_checkpoint").write_text("model_0000009.pth")
    return whole_run(folder, num_processes)


def seen(folder, num_processes):
    """What each process wrote before each step."""
    return [load(folder / f"{i}_of_{num_processes}.pt") for i in range(num_processes)]


def files(processes):
    """The images of each step, over the processes."""
    return [sum((step["files"] for step in steps), []) for steps in zip(*processes)]


@pytest.mark.long
class TestTheTrainer:
    """train_net.py: one process against two, and each gone on with by the other number."""

    @pytest.fixture(scope="class")
    def runs(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("runs")
        made = {
            "one": whole_run(folder / "one", 1),
            "two": whole_run(folder / "two", 2),
            "two, num_workers=2": whole_run(folder / "workers", 2, WORKERS),
        }
        made["one, then two"] = resumed_run(made["one"], folder / "a", 2)
        made["two, then one"] = resumed_run(made["two"], folder / "b", 1)
        return made

    @pytest.mark.parametrize("name", OTHERS)
    def test_the_weights_and_the_metrics_are_those_of_one_process(self, runs, name, figure):
        one, other = runs["one"], runs[name]
        ((start, *_),) = seen(one, 1)
        assert moved({"start": start["weights"], "weights": weights(one)}) > 1e-2
        rows, expected = metrics(other / "out"), metrics(one / "out")
        first = 9 if "then" in name else 0  # the line of the checkpoint's iteration is made up for
        assert sorted(rows) == list(range(first, 21)) and "bbox/AP" in rows[20]
        found = {
            "losses": max(largest(row, expected[i]) for i, row in rows.items()),
            "weights": largest_of_tensors(weights(other), weights(one)),
        }
        assert max(found.values()) < 1e-4, found
        title = f"train_net.py, RetinaNet: {name}"
        values = {"detector": title, "guide": "iteration", "dtype": "float32", "steps": 20}
        figure("processes", title, **values, **found)

    @pytest.mark.parametrize("name", OTHERS)
    def test_the_batches_too(self, runs, name):
        last = 1 if name.endswith("one") else 2
        expected = files(seen(runs["one"], 1))
        found = files(seen(runs[name], last))
        assert found == expected[20 - len(found) :] and len(found) == (10 if "then" in name else 20)

    @pytest.mark.parametrize("name", [x for x in OTHERS if not x.endswith("one")])
    def test_both_processes_have_the_same_bits_of_prior_and_weights(self, runs, name):
        first, second = seen(runs[name], 2)
        for a, b in zip(first, second, strict=True):
            assert a["prior"] == b["prior"] == seen(runs["one"], 1)[0][0]["prior"]
            assert same(a["weights"], b["weights"])

    def test_loader_processes_change_no_bit(self, runs):
        assert same(weights(runs["two"]), weights(runs["two, num_workers=2"]))
