"""A loss or a gradient that is not finite: the run stops in one line, or leaves the batch out."""

import copy
import json
import math
import re
from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from helpers.line_model import Line, record
from helpers.poison import HOWS, LR, Poison, make, train
from helpers.tiny import batch, log_lines, stock_retinanet, tiny_retinanet
from helpers.tiny_detectors import tiny_fcos, tiny_rcnn
from helpers.tiny_run import FOCAL, load, metrics, run, run_until, same, trainer, write_config
from sampling_free import GHMRetinaNet
from sampling_free.config.load import DTYPES, load_config
from sampling_free.engine.step import MIN_SCALE, PrecisionTrainer
from sampling_free.utils.errors import BadInput, NonFiniteLoss


class Consumed(PrecisionTrainer):
    """What a trainer should do that leaves out some batches: read them, and nothing more."""

    left_out = ()

    def run_step(self):
        if self.iter in self.left_out:
            next(self._data_loader_iter)
        else:
            super().run_step()


MAKERS = {
    "frozen guide": lambda: tiny_retinanet(prior=0.01, guide="frozen"),
    "running normalizer": stock_retinanet,
    "running counts": lambda: tiny_retinanet(GHMRetinaNet),
    "batch norm": lambda: tiny_fcos(prior=0.01, norm="BN"),
    "cascade": lambda: tiny_rcnn("cascade", rpn={"prior": 0.01}),
}


def stopped(made, num=1):
    with pytest.raises(NonFiniteLoss) as e:
        train(made, num)
    assert len(str(e.value).splitlines()) == 1 and "not finite" in str(e.value)
    return str(e.value)


def everything(made):
    """All that a training goes on from."""
    logs = [vars(m.guide_log) for m in made.model.modules() if hasattr(m, "guide_log")]
    return {
        "tensors": {k: v.clone() for k, v in made.model.state_dict().items()},
        "buffers": {k: v.clone() for k, v in made.model.named_buffers()},
        "optimizer": copy.deepcopy(made.optimizer.state_dict()),
        "scaler": made.grad_scaler.state_dict(),
        "logs": copy.deepcopy(logs),
        "normalizer": vars(made.model).get("loss_normalizer"),
    }


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kind", MAKERS)
def test_a_batch_that_is_left_out_leaves_no_trace(kind, how):
    skipping = make(MAKERS[kind](), skip=2)
    Poison(skipping.model, how, {1, 2})
    plain = make(MAKERS[kind](), cls=Consumed)
    plain.left_out = {1, 2}
    train(skipping, 5), train(plain, 5)
    assert same(everything(skipping), everything(plain))
    assert skipping.num_skipped == 2 and plain.num_skipped == 0
    untouched = make(MAKERS[kind]())
    assert not same(everything(skipping)["tensors"], everything(untouched)["tensors"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("how", ["loss", "proposals"])
def test_nor_does_it_in_mixed_precision(dtype, how):
    skipping, plain = (
        make(tiny_fcos(prior=0.01, norm="BN"), dtype, skip, cls)
        for skip, cls in ((1, PrecisionTrainer), (0, Consumed))
    )
    Poison(skipping.model, how, {1})
    plain.left_out = {1}
    train(skipping, 3), train(plain, 3)
    assert same(everything(skipping), everything(plain)) and skipping.num_skipped == 1


@pytest.mark.parametrize("how, words", [*zip(HOWS, ("the loss", "the gradient", "the proposals"))])
def test_without_leave_the_first_stops_the_run(how, words):
    made = make(tiny_retinanet(prior=0.01))
    Poison(made.model, how, {2})
    before = train(made, 2)
    latest = before.latest()["guide/r"][0]
    with EventStorage(2) as storage:
        storage.put_scalar("guide/r", latest)
        made.iter = 2
        with pytest.raises(NonFiniteLoss) as e:
            made.run_step()
    line = str(e.value)
    assert line.startswith(f"{words} ") and "at iteration 2:" in line
    assert f"learning rate {LR:.3g}, images ['?', '?']" in line
    assert "'guide/r': " in line and line.endswith("skips up to N such batches in a row")
    assert made.num_skipped == 0


def test_the_last_r_is_in_the_line_even_if_the_batch_has_none():
    made = make(tiny_retinanet(prior=0.01), batches=[batch(3, 2)] * 9)
    with EventStorage() as storage:
        made.run_step()
        latest = storage.latest()["guide/r"][0]
        with torch.no_grad():
            made.model.head.cls_score.bias.fill_(math.nan)
        made.iter = storage.iter = 1
        with pytest.raises(NonFiniteLoss, match=f"'guide/r': {latest}"):
            made.run_step()
        assert math.isnan(made.model.guide_log.ratio)
        assert all(math.isfinite(v) for v, _ in storage.latest().values())


def test_the_parameters_are_named_and_counted():
    made = make(tiny_retinanet(prior=0.01))
    Poison(made.model, "gradient", {0})
    name = [n for n, p in made.model.named_parameters() if p.requires_grad][0]
    total = sum(p.requires_grad for p in made.model.parameters())
    assert f"the gradient is not finite in 1 of {total} parameters ({name}) at" in stopped(made)

    made = make(tiny_retinanet(prior=0.01))
    for parameter in made.model.parameters():
        parameter.register_hook(lambda g: g * math.inf)
    names = [n for n, _ in made.model.named_parameters()]
    assert f"in {total} of {total} parameters ({', '.join(names[:3])}, ...)" in stopped(made)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("size", [1e25, 3e38])
def test_a_gradient_that_is_large_and_finite_is_taken(dtype, size):
    made = make(Line(1.0), dtype, batches=[[record(1.0, 2.0, 3.0, 4.0)]] * 9)
    weight = made.model.linear.weight
    made.optimizer.param_groups[0]["lr"] = 1e-38
    before = weight.detach().clone()
    weight.register_hook(lambda g: torch.full_like(g, size))
    train(made, 1)
    assert torch.allclose(weight, before - size * 1e-38, rtol=1e-3) and made.num_skipped == 0


@pytest.mark.parametrize("how", HOWS)
def test_more_in_a_row_than_allowed_stop_the_run(how):
    made = make(tiny_retinanet(prior=0.01), skip=2)
    Poison(made.model, how, {0, 1, 3, 4, 6, 7, 8})
    with log_lines("sampling_free.engine.step") as lines:
        line = stopped(made, 20)
    assert "at iteration 8" in line and made.num_skipped == 6
    assert line.endswith("the 2 before it were skipped, see train.skip_nonfinite")
    found = [int(re.search(r"at iteration (\d+)", x)[1]) for x in lines]
    assert found == [0, 1, 3, 4, 6, 7]
    assert all(x.startswith("Skipped: ") and "images ['?', '?']" in x for x in lines)
    in_a_row = [re.search(r"(\d) in a row, at most train.skip_nonfinite=2", x)[1] for x in lines]
    assert in_a_row == ["1", "2"] * 3


def test_what_is_logged_is_that_of_the_others():
    made = make(tiny_retinanet(prior=0.01), skip=1)
    Poison(made.model, "loss", {1})
    storage = train(made, 4)
    assert storage.latest()["skipped_batches"] == (1, 1)
    for name in ("total_loss", "loss_cls", "data_time"):
        assert [i for _, i in storage.history(name).values()] == [0, 2, 3]
    assert all(math.isfinite(v) for v, _ in storage.latest_with_smoothing_hint(20).values())


def test_the_model_is_not_copied_unless_batches_may_be_left_out(monkeypatch):
    monkeypatch.setattr("sampling_free.engine.step.ForwardState", None)
    train(make(tiny_retinanet(prior=0.01)), 1)


@pytest.mark.parametrize("dtype", [None, *DTYPES])
@pytest.mark.parametrize("skip", [0, 3])
def test_the_look_at_the_numbers_waits_for_a_gpu_once(dtype, skip, monkeypatch):
    made, waits = make(tiny_fcos(prior=0.01), dtype, skip), []
    look = made._require_finite

    def counting_look(*args):
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
                own = getattr(torch.Tensor, name)
                patch.setattr(
                    torch.Tensor,
                    name,
                    lambda self, *a, name=name, own=own: waits.append(name) or own(self, *a),
                )
            look(*args)

    made._require_finite = counting_look
    train(made, 2)
    assert waits == ["tolist", "tolist"]


class TestFloat16:
    def test_gradients_that_overflow_are_left_to_the_scaler(self):
        made = make(Line(10.0), "float16", batches=[[record(1.0, 2.0, 3.0, 4.0)]] * 9)
        before = made.model.linear.weight.detach().clone()
        train(made, 2)
        assert torch.equal(made.model.linear.weight, before)
        assert made.grad_scaler.get_scale() == 2**14 and made.num_skipped == 0

    def test_a_scale_that_has_fallen_to_nothing_stops_the_run_whatever_may_be_skipped(self):
        made = make(Line(1.0), "float16", 99, batches=[[record(1.0, 2.0, 3.0, 4.0)]] * 99)
        made.model.linear.weight.register_hook(lambda g: g * math.nan)
        before = made.model.linear.weight.detach().clone()
        line = stopped(made, 99)
        # 65536 halved at each step.
        assert made.iter == math.ceil(math.log2(65536 / MIN_SCALE)) == 30
        assert "float16's fell to 6.1e-05" in line and torch.equal(made.model.linear.weight, before)

    def test_the_scale_of_a_run_that_recovers_is_no_reason(self):
        made = make(Line(1e-9), "float16", batches=[[record(1.0, 2.0, 3.0, 4.0)]] * 99)
        handle = made.model.linear.weight.register_hook(lambda g: g * math.inf)
        train(made, 28)
        handle.remove()
        train(made, 3)
        assert made.grad_scaler.get_scale() == 2.0**-12


@pytest.fixture(scope="module")
def learning_rates(tmp_path_factory):
    """Of a run of which no batch is left out."""
    folder = tmp_path_factory.mktemp("rates")
    run(write_config(folder))
    return {i: row["lr"] for i, row in metrics(folder / "out").items() if "lr" in row}


@pytest.mark.parametrize("how, focal", [*((how, False) for how in HOWS), ("loss", True)])
def test_a_whole_run_goes_on_in_step_with_its_schedule(tmp_path, how, focal, learning_rates):
    config = write_config(tmp_path, FOCAL if focal else "")
    made = trainer(config, "train.skip_nonfinite=1", "train.clip_gradients.enabled=True")
    Poison(made.model, how, {0, 3})
    made.train()
    rows = metrics(tmp_path / "out")
    trained = {i: rows[i] for i in range(6)}
    assert {i: row["lr"] for i, row in trained.items()} == {i: learning_rates[i] for i in trained}
    assert [i for i, row in trained.items() if "total_loss" not in row] == [0, 3]
    assert [i for i, row in trained.items() if "skipped_batches" in row] == [0, 3]
    assert rows[3]["skipped_batches"] == 2 and "bbox/AP" in rows[6]
    assert all(math.isfinite(x) for row in trained.values() for x in row.values())
    saved = load(tmp_path / "out" / "model_final.pth")
    assert saved["trainer"]["_trainer"]["skipped"] == {"all": 2, "in_a_row": 0}
    assert all(x.isfinite().all() for x in saved["model"].values())
    assert "nan" not in json.dumps(saved["trainer"]["scalars"]).lower()


def test_a_resumed_run_counts_on(tmp_path):
    config = write_config(tmp_path)
    options = ["train.skip_nonfinite=2", "train.max_iter=9"]
    made = trainer(config, *options)
    Poison(made.model, "loss", {1, 2})
    step = made.run_step

    def stopping_step():
        if made.iter == 3:
            raise KeyboardInterrupt
        step()

    made.run_step = stopping_step
    with pytest.raises(KeyboardInterrupt):
        made.train()
    resumed = trainer(config, *options, resume=True)
    assert resumed.start_iter == 3 and resumed._trainer.num_skipped_in_a_row == 2
    Poison(resumed.model, "loss", {0})
    with pytest.raises(NonFiniteLoss, match="at iteration 3: .*the 2 before it were skipped"):
        resumed.train()
    again = run(config, *options, resume=True)  # whose batch is good
    assert again._trainer.num_skipped == 2 and again._trainer.num_skipped_in_a_row == 0


@pytest.mark.parametrize("skip", [0, 1, 2])
def test_a_resumed_run_that_may_skip_less_than_it_has_stops_at_the_next(skip):
    before = make(tiny_retinanet(prior=0.01), skip=3)
    Poison(before.model, "loss", {0, 1})
    train(before, 2)
    resumed = make(tiny_retinanet(prior=0.01), skip=skip)
    resumed.load_state_dict(before.state_dict())
    Poison(resumed.model, "loss", set(range(9)))
    assert "; the 2 before it were skipped, see train.skip_nonfinite" in stopped(resumed, 9)
    assert resumed.iter == 0 and resumed.num_skipped == 2


def test_a_checkpoint_from_before_has_skipped_nothing(tmp_path):
    config = write_config(tmp_path)
    run_until(4, config, "train.max_iter=6")
    path = Path(tmp_path) / "out" / "model_0000002.pth"
    saved = load(path)
    del saved["trainer"]["_trainer"]["skipped"]
    torch.save(saved, path)
    assert trainer(config, resume=True)._trainer.num_skipped == 0


@pytest.mark.parametrize("value", [-1, 1.5, "True", "often"])
def test_another_number_is_refused(tmp_path, value):
    config = write_config(tmp_path)
    with pytest.raises(BadInput, match="train.skip_nonfinite"):
        load_config(config, [f"train.skip_nonfinite={value}"])


def _process(rank, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = {}
    for how in ("loss", "gradient"):
        model = DistributedDataParallel(tiny_fcos(prior=0.01, norm="BN"))
        made = make(model, skip=1, batches=[batch(2, 1)] * 9)
        for data in made.data_loader:
            for i, item in enumerate(data):
                item["file_name"] = f"{rank}{i}.png"
        if rank == 1:
            Poison(model.module, how, {1, 3, 4})
        with log_lines("sampling_free.engine.step") as lines, pytest.raises(NonFiniteLoss) as e:
            train(made, 9)
        found[how] = {**everything(made), "lines": lines, "error": str(e.value), "at": made.iter}
    # A pass that breaks off cannot be left out: the other process would wait amid its own.
    model = DistributedDataParallel(Line(1.0))
    if rank == 1:
        made = make(model, skip=5, batches=[[record(1.0, 2.0, 3.0, 4.0)]])
        Poison(model.module, "proposals", {0})
        found["proposals"] = stopped(made)
    torch.save(found, f"{folder}/{rank}.pt")


def test_two_processes_leave_out_the_same_batches(tmp_path):
    torch.multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for how in ("loss", "gradient"):
        a, b = first[how], second[how]
        assert same(a, b) and a["at"] == 4 and len(a["lines"]) == 2
        assert all(x.isfinite().all() for x in a["tensors"].values())
    assert "images ['10.png', '11.png']" in first["loss"]["lines"][0]
    # After the reduction nobody knows whose it was.
    assert "images ['00.png', '01.png', '10.png', '11.png']" in first["gradient"]["error"]
    assert "at iteration 0" in second["proposals"]
