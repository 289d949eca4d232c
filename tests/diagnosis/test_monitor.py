"""The monitor: a training with it is the training without it, and it warns once and when right."""

import json
import math
from pathlib import Path

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.env import seed_all_rng
from fvcore.nn import sigmoid_focal_loss_jit
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from helpers.guided_detectors import ROI_HEADS, STOCK, detector, inputs_of
from helpers.probed import BASELINES
from helpers.tiny import batch, tiny_retinanet
from helpers.tiny_detectors import tiny_rcnn
from helpers.tiny_run import (
    FOCAL,
    load,
    log_lines,
    metrics,
    run,
    run_until,
    same,
    trainer,
    write_config,
)
from helpers.yaml_files import FASTER, RETINANET
from sampling_free.config.load import load_config
from sampling_free.diagnosis.gradients import BINS, measure
from sampling_free.diagnosis.monitor import FILE_NAME, ImbalanceMonitor, scalars
from sampling_free.engine.prior_init import PriorInit
from sampling_free.engine.trainer import LazyTrainer
from sampling_free.utils.errors import BadInput

ON = "train.monitor_period=2"


def without_monitor(rows):
    rows = {i: {k: v for k, v in row.items() if k[:8] != "monitor/"} for i, row in rows.items()}
    return {i: row for i, row in rows.items() if row}


def assert_same_runs(on, off):
    """Two output folders: weights, optimizer, running numbers and every metric, bit for bit."""
    for name in ("model_0000002.pth", "model_final.pth"):
        a, b = load(on / name), load(off / name)
        assert a.keys() == b.keys() and a["iteration"] == b["iteration"]
        assert same(a["model"], b["model"]), name
        assert a["trainer"]["_trainer"]["optimizer"]["state"], "nothing was compared"
        times = ("time", "data_time", "rank_data_time")
        for x in (a, b):
            for kind in ("scalars", "unsmoothed"):
                kept = {k: v for k, v in x["trainer"].get(kind, {}).items() if k not in times}
                x["trainer"][kind] = {k: v for k, v in kept.items() if "monitor/" not in k}
        assert same(a["trainer"], b["trainer"]), name
        assert same(a.get("prior"), b.get("prior"))
    rows = metrics(on)
    assert any(k.startswith("monitor/") for row in rows.values() for k in row)
    assert same(without_monitor(rows), metrics(off))


def forget_compiled():
    """As in a new process; TorchScript's first calls round otherwise."""
    sigmoid_focal_loss_jit._debug_flush_compilation_cache()


LAZY = {
    "sampling-free": ("", []),
    "frozen guide": ("\nmodel.guide = 'frozen'\n", []),
    "focal": (FOCAL, []),
    "bfloat16": ("", ["train.amp.enabled=True", "train.amp.dtype=bfloat16"]),
    "float16": (FOCAL, ["train.amp.enabled=True", "train.clip_gradients.enabled=True"]),
    "a worker": ("", ["dataloader.train.num_workers=1"]),
}


@pytest.mark.parametrize("case", LAZY)
def test_a_training_is_the_same_with_it_and_without(tmp_path, case):
    extra, overrides = LAZY[case]
    folders = []
    for name, more in (("on", [ON]), ("off", [])):
        (tmp_path / name).mkdir()
        forget_compiled()
        with log_lines() as lines:
            run(write_config(tmp_path / name, extra), *overrides, *more)
        assert not [x for x in lines if "xplosion" in x or "ollapse" in x]
        folders.append(tmp_path / name / "out")
    assert_same_runs(*folders)


@pytest.mark.parametrize("base", [FASTER, RETINANET])
@pytest.mark.parametrize("sampling_free", [False, True])
def test_a_training_from_yaml_is_the_same_too(tiny, base, sampling_free):
    """Stock Faster R-CNN samples at random; ResNet-50 has frozen stages and normalization."""
    folders = []
    for name, period in (("on", 2), ("off", 0)):
        path = tiny(base)
        folders.append(Path(path).parent / name)
        options = ["OUTPUT_DIR", str(folders[-1]), "SOLVER.CHECKPOINT_PERIOD", "3"]
        options += ["train.log_period=1", f"train.monitor_period={period}"]
        cfg = load_config(path, options, sampling_free)
        forget_compiled()
        seed_all_rng(cfg.train.seed)
        made = LazyTrainer(cfg)
        made.resume_or_load(resume=False)
        made.train()
    assert_same_runs(*folders)


@pytest.mark.parametrize("extra", ["", FOCAL], ids=["sampling_free", "focal"])
def test_resumed_in_the_middle_with_it_equals_one_go_without(tmp_path, extra):
    paths = []
    for name in ("stopped", "whole"):
        (tmp_path / name).mkdir()
        paths.append(write_config(tmp_path / name, extra))
    forget_compiled()
    run(paths[1])
    forget_compiled()
    run_until(4, paths[0], ON)
    forget_compiled()
    resumed = run(paths[0], ON, resume=True)
    assert resumed.start_iter == 3
    a, b = (load(tmp_path / x / "out" / "model_final.pth") for x in ("stopped", "whole"))
    assert same(a["model"], b["model"])
    assert same(a["trainer"]["_trainer"], b["trainer"]["_trainer"])
    assert same(a["trainer"]["running"], b["trainer"]["running"])


# --- when, what and where -------------------------------------------------------------------------


def test_it_is_off_by_default_and_writes_when_it_is_due(tmp_path):
    config = write_config(tmp_path)
    assert load_config(config).train.monitor_period == 0
    made = trainer(config)
    assert not any(isinstance(h, ImbalanceMonitor) for h in made._hooks)
    run(config, "train.monitor_period=4", "train.max_iter=7")
    rows = metrics(tmp_path / "out")
    written = [i for i, row in rows.items() if any(k.startswith("monitor/") for k in row)]
    assert written == [0, 4, 6]  # and in the last
    cls = "cls"
    assert {k for k in rows[4] if k.startswith("monitor/")} == {
        *(f"monitor/{place}/{cls}{part}" for place in ("outputs", "features")
          for part in ("", "/foreground", "/background")),
        *(f"monitor/{place}/box_reg" for place in ("outputs", "features")),
        *(f"monitor/score/{cls}/{part}" for part in ("foreground", "background")),
        *(f"monitor/{x}/{cls}" for x in ("ratio", "saturated", "r")),
    }  # fmt: skip
    for row in (rows[0], rows[4]):
        assert row["monitor/outputs/box_reg"] == pytest.approx(4, rel=1e-3)
        parts = [row[f"monitor/outputs/{cls}/{p}"] for p in ("foreground", "background")]
        assert row[f"monitor/outputs/{cls}"] == pytest.approx(sum(parts))
        assert row[f"monitor/ratio/{cls}"] == pytest.approx(sum(parts) / 4, rel=1e-3)
        assert row[f"monitor/r/{cls}"] == row["guide/r"]  # of the same batch and weights
    prior = json.loads((tmp_path / "out" / "prior.json").read_text())["prior"]
    assert rows[0]["monitor/score/cls/background"] == pytest.approx(prior, rel=0.2)
    histograms = json.loads((tmp_path / "out" / FILE_NAME).read_text())
    assert list(histograms) == ["loss_cls"]
    assert {k: len(v) for k, v in histograms["loss_cls"].items()} == {
        "edges": BINS + 1, "foreground": BINS, "background": BINS
    }  # fmt: skip
    assert sum(histograms["loss_cls"]["foreground"]) > 0


def test_without_smoothing_a_writer_gets_each_number_as_it_is(tmp_path):
    made = run(write_config(tmp_path), ON, "train.log_period=20")
    hints = made.storage.smoothing_hints()
    names = [k for k in hints if k.startswith("monitor/")]
    assert names and not any(hints[k] for k in names)
    kept = load(tmp_path / "out" / "model_final.pth")["trainer"]["scalars"]
    assert kept and not any(k.startswith("monitor/") for k in kept)


@pytest.mark.parametrize("period", [-1, 2.5, "often", True, None])
def test_a_bad_period_is_refused_in_one_line(tmp_path, period):
    config = write_config(tmp_path, f"\ntrain.monitor_period = {period!r}\n")
    with pytest.raises(BadInput, match="train.monitor_period.*iterations"):
        load_config(config)
    with pytest.raises(BadInput, match="train.monitor_period=.*from 1 up"):
        ImbalanceMonitor(period)


def test_zero_is_no_period_of_the_hook():
    with pytest.raises(BadInput, match="train.monitor_period=0"):
        ImbalanceMonitor(0)


def test_what_stops_the_training_before_it_began_is_what_is_seen(tmp_path, monkeypatch):
    def stop(self):
        raise BadInput("no anchor is foreground")

    monkeypatch.setattr(PriorInit, "before_train", stop)
    with pytest.raises(BadInput, match="no anchor is foreground"):
        run(write_config(tmp_path), ON)


def test_a_model_that_it_does_not_know_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("sampling_free.diagnosis.heads.KINDS", ())
    with pytest.raises(BadInput, match="SamplingFreeRetinaNet: no head that is known"):
        run(write_config(tmp_path), ON)


# --- trainers of others ---------------------------------------------------------------------------


class Accumulating(SimpleTrainer):
    """Two forward and backward passes for a step."""

    num = 2

    def run_step(self):
        self.optimizer.zero_grad()
        for _ in range(self.num):
            losses = self.model(next(self._data_loader_iter))
            (sum(losses.values()) / self.num).backward()
        self._write_metrics(losses, 0.0)
        self.optimizer.step()


def train_simply(model, inputs, cls=SimpleTrainer, period=0, num_iterations=4, lr=1e-3):
    """Trains with one of Detectron2's own trainers; returns weights, optimizer and metrics."""
    torch.manual_seed(3)
    forget_compiled()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    made = cls(model.train(), [inputs] * 50, optimizer)
    if period:
        made.register_hooks([ImbalanceMonitor(period)])
    made.train(0, num_iterations)
    histories = made.storage.histories().items()
    kept = {k: v for k, v in histories if k[:8] != "monitor/" and "time" not in k}
    history = {k: v.values() for k, v in kept.items()}
    return made, (model.state_dict(), optimizer.state_dict(), history)


SIMPLE = {**{f"stock {k}": (k, make) for k, make in STOCK.items()}, **BASELINES}
SIMPLE |= {"faster": ("faster", lambda: detector("faster", "gradient"))}
SIMPLE |= {"stock mask": ("mask", lambda: tiny_rcnn("mask", stock=True))}


@pytest.mark.parametrize("cls", [SimpleTrainer, Accumulating])
@pytest.mark.parametrize("case", SIMPLE)
def test_detectron2s_own_trainer_and_one_that_accumulates(case, cls):
    kind, make = SIMPLE[case]
    inputs = inputs_of(kind, 3, 2)
    made, on = train_simply(make(), inputs, cls, period=1)
    _, off = train_simply(make(), inputs, cls)
    assert same(on, off)
    measured = [k for k in made.storage.histories() if k.startswith("monitor/outputs/")]
    assert measured
    for name in measured:  # once in an iteration, however many passes it has
        assert [i for _, i in made.storage.history(name).values()] == [0, 1, 2, 3]
    hooks = made.model._forward_pre_hooks
    assert not hooks, "the monitor is still listening"


def test_an_evaluation_within_the_training_is_not_measured():
    model, inputs = detector("retinanet", "iteration"), batch(2)

    class Evaluating(SimpleTrainer):
        def run_step(self):
            self.model.eval()
            with torch.no_grad():
                self.model([{"image": x["image"]} for x in inputs])
            self.model.train()
            super().run_step()

    made, _ = train_simply(model, inputs, Evaluating, period=1)
    assert len(made.storage.history("monitor/outputs/cls").values()) == 4


def test_each_number_is_that_of_a_measurement_before_the_step():
    inputs = inputs_of("faster", 3, 2)
    made, _ = train_simply(detector("faster", "iteration"), inputs, period=1, num_iterations=1)
    expected = scalars(measure(detector("faster", "iteration").train(), inputs))
    found = {k: made.storage.history(k).latest() for k in expected}
    assert found == expected and "monitor/r/rpn_cls" in expected
    assert expected["monitor/ratio/cls"] == pytest.approx(
        expected["monitor/outputs/cls"] / expected["monitor/outputs/box_reg"]
    )


def test_what_there_is_none_of_is_not_written():
    found = scalars(measure(tiny_rcnn(stock=True).train(), inputs_of("faster", 0, 0)))
    assert not any("/r/" in k or "/ratio/" in k for k in found)
    assert "monitor/score/cls/foreground" not in found
    assert all(math.isfinite(x) for x in found.values())


# --- warnings -------------------------------------------------------------------------------------


def warnings_of(model, inputs, **kwargs):
    with log_lines() as lines:
        train_simply(model, inputs, period=1, **kwargs)
    return [x for x in lines if x.startswith(("Explosion", "Collapse"))]


TINY = {f"stock {k}": (k, make) for k, make in STOCK.items()}
TINY |= {f"stock {k}": (k, lambda k=k: tiny_rcnn(k, stock=True)) for k in ROI_HEADS}
TINY |= {k: (k, lambda k=k: detector(k, "iteration")) for k in [*STOCK, *ROI_HEADS]}


@pytest.mark.parametrize("case", TINY)
def test_a_healthy_training_gives_no_warning(case):
    kind, make = TINY[case]
    assert warnings_of(make(), inputs_of(kind, 3, 2), num_iterations=3) == []
    assert warnings_of(make(), inputs_of(kind, 0, 0), num_iterations=2) == []


def test_a_prior_of_one_half_unguided_is_an_explosion_told_once():
    model = tiny_retinanet(prior=0.5, guide=1.0)
    (line,) = warnings_of(model, batch(3, 2, size=(128, 192)), lr=1e-9)
    assert line.startswith("Explosion at iteration 0: the gradient of loss_cls is ")
    assert "times that of loss_box_reg" in line


def test_a_bias_of_minus_thirty_is_a_collapse_told_once():
    model = tiny_retinanet(prior=0.01)
    with torch.no_grad():
        model.head.cls_score.weight.zero_()
        model.head.cls_score.bias.fill_(-30)
    assert not warnings_of(model, batch(3, 2), lr=1e-9, num_iterations=2)  # it may be passing
    (line,) = warnings_of(model, batch(3, 2), lr=1e-9, num_iterations=5)
    assert line.startswith("Collapse at iteration 2: to loss_cls everything is background")
    assert "9.4e-14" in line  # sigmoid(-30)


def test_values_that_are_not_finite_are_an_explosion_alone():
    model = tiny_retinanet(prior=0.01)
    with torch.no_grad():
        model.head.cls_score.bias.fill_(math.nan)
    with log_lines() as lines, pytest.raises(FloatingPointError):
        train_simply(model, batch(2), period=1)
    (line,) = [x for x in lines if x.startswith(("Explosion", "Collapse"))]
    assert "loss_cls" in line and "not finite" in line


def test_a_pass_that_stops_at_values_that_are_not_finite_leaves_the_error_to_the_step():
    model = tiny_rcnn(stock=True)
    with torch.no_grad():
        model.backbone.bottom_up.stem.bias.fill_(math.nan)
    with log_lines() as lines, pytest.raises(FloatingPointError):
        train_simply(model, inputs_of("faster", 2), period=1)
    assert [x for x in lines if x.startswith("Explosion at iteration 0: ")]


# --- two processes --------------------------------------------------------------------------------

PAIR = ["retinanet", "fcos", "faster"]


def _process(rank, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = {}
    for kind in PAIR:
        inputs = inputs_of(kind, *[(2, 1), (0, 0)][rank])
        for period in (0, 1):
            model = DistributedDataParallel(detector(kind, "iteration"), broadcast_buffers=False)
            with log_lines() as lines:
                made, numbers = train_simply(model, inputs, period=period, num_iterations=3)
            storage = made.storage.latest()
            seen = {k: v for k, (v, _) in storage.items() if k.startswith("monitor/")}
            found[kind, period] = numbers, seen, lines
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_train_the_same_with_it_and_each_measures_its_share(tmp_path):
    torch.multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    for kind in PAIR:
        for found in both:
            off, on = found[kind, 0], found[kind, 1]
            assert same(off[0], on[0]) and off[1] == {} and on[1]
        shares = [found[kind, 1][1] for found in both]
        names = [k for k in shares[0] if k.startswith("monitor/outputs/") and "cls" not in k]
        assert all(shares[0][k] > 0 and shares[1][k] == 0 for k in names) and names
        ratios = [k for k in shares[0] if k.startswith("monitor/r/")]
        assert ratios and all(shares[0][k] == shares[1][k] for k in ratios)
