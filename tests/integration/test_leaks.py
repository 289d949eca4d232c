"""What has been used is given back: graphs, batches, files, processes.

Of a training step nothing may be left to the garbage collector, which may come late: it is off.
"""

import contextlib
import gc
import os
import weakref
from types import SimpleNamespace

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils.events import EventStorage
from matplotlib import pyplot
from matplotlib.figure import Figure

from helpers.guided_detectors import inputs_of
from helpers.long_run import children, held, needs_proc
from helpers.patience import wait_for
from helpers.poison import make, train
from helpers.probed import BUILT
from helpers.tiny import batch, mapper_of, tiny_retinanet, write_dicts
from helpers.tiny_run import run_until, trainer, write_config
from sampling_free.counting import sparse_count as sparse_counting
from sampling_free.counting.count import count_anchors
from sampling_free.data.loader import build_replayable_train_loader
from sampling_free.diagnosis.gradients import measure
from sampling_free.engine.hooks import ShortHistories
from sampling_free.engine.trainer import LazyTrainer

# What a short training does at most.
ALL = ["train.eval_period=3", "train.monitor_period=2", "train.num_pictures=2"]
ALL += ["train.best_metric=bbox/AP50", "dataloader.train.num_workers=1"]


@contextlib.contextmanager
def only_reference_counts():
    """Without garbage collector; :func:`alive` finds what was made in it and is still there."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def alive(kind):
    """list: objects of that class."""
    return [x for x in gc.get_objects() if issubclass(type(x), kind)]


def graphs():
    """list[Tensor]: those that hold an autograd graph."""
    return [x for x in alive(torch.Tensor) if x.grad_fn is not None]


@pytest.mark.parametrize("name", BUILT)
def test_a_step_and_a_measurement_leave_no_graph(name):
    kind, make_model = BUILT[name]
    model, inputs = make_model().train(), inputs_of(kind, 3, 2)
    with only_reference_counts():
        with EventStorage():
            losses = model(inputs)
            sum(losses.values()).backward()
            assert graphs()
            del losses
            assert not graphs()
            measure(model, inputs)
            assert not graphs()


class Batches:
    """Endless batches that nothing here holds on to, ``images`` of which are still there."""

    def __init__(self):
        self.noted = []

    def __iter__(self):
        for seed in range(99):
            yield self._note(batch(3, 2, seed=seed))

    def _note(self, inputs):
        self.noted += [weakref.ref(record["image"]) for record in inputs]
        return inputs

    @property
    def images(self):
        return [x() for x in self.noted if x() is not None]


def test_no_batch_outlives_its_step():
    batches = Batches()
    made = make(tiny_retinanet(prior=0.01, guide="frozen"), batches=batches)
    with only_reference_counts():
        train(made, 3)
        assert len(batches.noted) == 6 and not batches.images and not graphs()


def test_histories_stay_short_and_averages_whole():
    hook, numbers = ShortHistories(), range(2 * ShortHistories.KEPT + 7)
    with EventStorage() as storage:
        for i in numbers:
            hook.trainer = SimpleNamespace(iter=i, storage=storage)
            storage.iter = i
            storage.put_scalar("x", i)
            if i % 3 == 0:
                storage.put_scalar("seldom", i)
            hook.after_step()
    kept = storage.history("x")
    assert kept.values() == [(i, i) for i in numbers[-ShortHistories.KEPT - 7 :]]
    assert kept.global_avg() == pytest.approx(sum(numbers) / len(numbers))
    assert len(storage.history("seldom").values()) == len(numbers[::3])


def rest():
    now = held()
    return now["handles"], now["threads"], set(children())


def has_nothing_new(before):
    """Whether this process holds no more than before, or soon does not.

    The system counts a thread for a moment longer than Python, which has joined it by then; and
    what an earlier test has left may end in the meantime.
    """

    def nothing_new():
        handles, threads, processes = rest()
        return handles <= before[0] and threads <= before[1] and processes <= before[2]

    return wait_for(nothing_new)


def open_under(folder):
    """list[str]: files of a folder that this process holds open."""
    found = []
    for handle in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing itself is closed by now
            found.append(os.readlink(f"/proc/self/fd/{handle}"))
    return [x for x in found if x.startswith(str(folder))]


@pytest.mark.long
@needs_proc
def test_trainings_in_one_process_leave_nothing(tmp_path, monkeypatch):
    config, evaluators = write_config(tmp_path), []
    build = LazyTrainer.build_evaluator

    def noting(cfg):
        evaluator = build(cfg)
        evaluators.append(weakref.ref(evaluator))
        return evaluator

    monkeypatch.setattr(LazyTrainer, "build_evaluator", noting)
    gc.collect()
    left, registered, gone, figures = None, [], [], len(alive(Figure))
    for number in range(3):
        trained = trainer(config, *ALL, f"train.output_dir={tmp_path}/{number}")
        trained.train()
        assert not open_under(tmp_path), "the trainer is there, but done"
        gone += map(weakref.ref, (trained, trained.model, trained.optimizer, trained.storage))
        del trained
        gc.collect()
        left = left or rest()
        assert has_nothing_new(left), (rest(), left)
        registered.append(len(DatasetCatalog))
    assert registered[0] == registered[1] == registered[2]
    assert len(evaluators) == 9 and not any(x() for x in evaluators + gone)
    assert len(alive(Figure)) == figures and not pyplot.get_fignums()


@needs_proc
def test_a_training_that_fails_closes_its_files(tmp_path):
    run_until(2, write_config(tmp_path), error=RuntimeError)
    assert (tmp_path / "out" / "metrics.json").exists() and not open_under(tmp_path)


@needs_proc
def test_a_loader_that_is_left_ends_its_worker(tmp_path):
    dicts = write_dicts(tmp_path, [(64, 64)] * 4, [2] * 4)
    gc.collect()
    before = rest()
    for _ in range(2):
        loader = build_replayable_train_loader(
            dicts, mapper=mapper_of(), total_batch_size=2, num_workers=1
        )
        batches = iter(loader)
        assert len(next(batches)) == 2 and len(set(children()) - before[2]) == 1
        del loader, batches
        gc.collect()
        assert has_nothing_new(before), (rest(), before)


class Broken(RuntimeError):
    pass


def fails(chunk):
    raise Broken


@needs_proc
def test_counting_ends_its_processes(tmp_path, monkeypatch):
    dicts = write_dicts(tmp_path, [(64, 64)] * 4, [2] * 4)
    options = dict(progress=False, num_workers=2)
    gc.collect()
    before = rest()
    count_anchors(tiny_retinanet(), dicts, mapper_of(), **options)
    assert has_nothing_new(before), (rest(), before)
    monkeypatch.setattr(sparse_counting, "_run", fails)
    with pytest.raises(Broken):
        count_anchors(tiny_retinanet(), dicts, mapper_of(), **options)
    assert has_nothing_new(before), (rest(), before)
