"""LazyTrainer: Detectron2's loop and hooks, and a resume that equals the uninterrupted run."""

import math
from pathlib import Path

import pytest
import torch
from detectron2.engine import DefaultTrainer, hooks
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter
from fvcore.nn import sigmoid_focal_loss_jit

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
from sampling_free.engine.hooks import StatefulBestCheckpointer
from sampling_free.engine.trainer import LazyTrainer, evaluate_only
from sampling_free.utils.errors import BadInput, NonFiniteLoss

STEPS = """
from fvcore.common.param_scheduler import MultiStepParamScheduler
lr_multiplier = L(MultiStepParamScheduler)(values=[1, 0.1], milestones=[4], num_updates=6)
optimizer.lr = 0.01
optimizer.momentum = 0.0
optimizer.weight_decay = 0.0
optimizer.params.weight_decay_norm = 0.0
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The trainer of a complete run."""
    return run(write_config(tmp_path_factory.mktemp("finished"), STEPS))


def weights(made):
    return {k: v.clone() for k, v in made.model.state_dict().items()}


def test_it_is_detectron2s_trainer_with_its_hooks_and_writers(finished):
    assert isinstance(finished, DefaultTrainer)
    kinds = [type(h) for h in finished._hooks]
    expected = [
        hooks.IterationTimer,
        hooks.LRScheduler,
        hooks.PeriodicCheckpointer,
        hooks.EvalHook,
        hooks.PeriodicWriter,
    ]
    assert [sum(issubclass(k, e) for k in kinds) for e in expected] == [1] * 5
    assert not any(issubclass(k, hooks.BestCheckpointer) for k in kinds), "needs a best_metric"
    (writer,) = (h for h in finished._hooks if isinstance(h, hooks.PeriodicWriter))
    writers = [type(w) for w in writer._writers]
    assert all(map(issubclass, writers, [CommonMetricPrinter, JSONWriter, TensorboardXWriter]))


def test_a_run_leaves_checkpoints_metrics_events_and_the_best_threshold(finished):
    out = finished.cfg.train.output_dir
    files = {p.name.split(".")[0] for p in Path(out).iterdir()}
    assert {"model_0000002", "model_0000005", "model_final", "metrics", "events"} <= files
    assert {"best_threshold", "prior"} <= files
    rows = metrics(out)
    assert list(rows) == [0, 1, 2, 3, 4, 5, 6]
    for i in range(6):
        assert {"total_loss", "loss_cls", "loss_box_reg", "lr", "guide/r"} <= rows[i].keys()
    assert 0 <= rows[6]["bbox/AP"] <= rows[6]["bbox/AP50"] <= 100


def test_the_schedule_decides_the_learning_rate_of_each_iteration(finished):
    rows = metrics(finished.cfg.train.output_dir)
    assert [rows[i]["lr"] for i in range(6)] == pytest.approx([0.01] * 4 + [0.001] * 2)


def test_the_seed_decides_the_run(finished, tmp_path):
    config = write_config(tmp_path, STEPS)
    again, other = run(config), run(config, "train.seed=1", f"train.output_dir={tmp_path / 'o'}")
    assert same(weights(again), weights(finished))
    assert not same(weights(other), weights(finished))


def test_no_seed_gives_another_run_each_time(tmp_path):
    config = write_config(tmp_path)
    one, two = (run(config, "train.seed=-1", "train.max_iter=1") for _ in range(2))
    assert not same(weights(one), weights(two))


@pytest.mark.parametrize("focal", [False, True], ids=["sampling_free", "focal"])
@pytest.mark.parametrize(
    "overrides",
    [
        ["dataloader.train.aspect_ratio_grouping=False", "dataloader.train.num_workers=2"],
        ["train.amp.enabled=True", "train.clip_gradients.enabled=True"],
        ["train.amp.enabled=True", "train.amp.dtype=bfloat16", "train.log_period=2"],
    ],
    ids=["workers", "float16", "bfloat16"],
)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, focal, overrides):
    # Images of two orientations, so that half-full groups are pending at the stop.
    extra = FOCAL if focal else ""
    extra += "\n_set.update(image_size=(48, 64), train_images=15)\n"
    extra += f"_set.update(name='two_shapes', root={str(tmp_path.parent)!r})\n"
    extra += "dataloader.train.dataset.names.update(**_set)\n"
    paths = []
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        paths.append(write_config(tmp_path / name, extra))
    run(paths[0], "train.max_iter=9", *overrides)
    run_until(7, paths[1], "train.max_iter=9", *overrides)
    # As in a new process: TorchScript's first calls are not yet specialised and round otherwise.
    sigmoid_focal_loss_jit._debug_flush_compilation_cache()
    # Another number of workers than before the stop.
    more = [*overrides, "dataloader.train.num_workers=0"]
    resumed = run(paths[1], "train.max_iter=9", *more, resume=True)
    assert resumed.start_iter == 6
    whole, stopped = (load(tmp_path / n / "out" / "model_final.pth") for n in ("whole", "stopped"))
    assert same(whole["model"], stopped["model"])
    assert whole["trainer"]["_trainer"]["optimizer"]["state"]
    assert same(whole["trainer"]["_trainer"], stopped["trainer"]["_trainer"])
    assert same(whole.get("prior"), stopped.get("prior"))
    a, b = (metrics(tmp_path / n / "out") for n in ("whole", "stopped"))
    assert len(a) >= 5 and same(a, b)


def test_a_finished_run_can_be_resumed_and_made_longer(tmp_path):
    config = write_config(tmp_path, STEPS)
    first = run(config, "train.max_iter=2")
    again = run(config, "train.max_iter=2", resume=True)
    assert same(weights(first), weights(again))
    longer = run(config, "train.max_iter=4", resume=True)
    assert longer.start_iter == 2 and longer.iter == 4
    assert not same(weights(first), weights(longer))


@pytest.mark.parametrize("resume", [False, True])
def test_without_a_checkpoint_resume_starts_anew(tmp_path, resume):
    assert trainer(write_config(tmp_path), resume=resume).start_iter == 0


def test_resuming_and_evaluating_measure_no_prior(tmp_path, monkeypatch):
    config = write_config(tmp_path)
    prior = run(config, "train.max_iter=3").model.prior
    monkeypatch.setattr("sampling_free.engine.prior_init.count_anchors", None)
    (tmp_path / "out" / "prior.json").unlink()
    resumed = run(
        config, "train.max_iter=4", "dataloader.train.dataset.filter_empty=True", resume=True
    )
    assert resumed.model.prior == prior
    evaluate_only(trainer(config).cfg, resume=True)
    assert not (tmp_path / "out" / "prior.json").exists()


@pytest.mark.parametrize("resume", [False, True])
def test_evaluation_alone_gives_the_scores_of_the_training(finished, tmp_path, resume):
    out = finished.cfg.train.output_dir
    rows = metrics(out)[6]
    again = trainer(write_config(tmp_path, STEPS), f"train.output_dir={out}").cfg
    again.train.init_checkpoint = "" if resume else f"{out}/model_final.pth"
    results = evaluate_only(again, resume=resume)
    assert results["bbox"].keys() == {k.split("/")[1] for k in rows}
    assert same({f"bbox/{k}": float(v) for k, v in results["bbox"].items()}, rows)


def test_evaluation_alone_without_weights_is_refused(tmp_path):
    cfg = trainer(write_config(tmp_path)).cfg
    for resume in (False, True):
        with pytest.raises(BadInput, match="--eval-only needs weights.*train.init_checkpoint"):
            evaluate_only(cfg, resume=resume)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision_is_switched_on_by_a_key(tmp_path, finished, dtype):
    made = trainer(
        write_config(tmp_path, STEPS), "train.amp.enabled=True", f"train.amp.dtype={dtype}"
    )
    seen = set()
    made.model.head.register_forward_hook(
        lambda module, inputs, outputs: seen.update(x.dtype for x in outputs[0])
    )
    made.train()
    # Training and, in full precision, the evaluation.
    assert seen == {getattr(torch, dtype), torch.float32}
    assert all(torch.isfinite(v).all() for v in weights(made).values())
    assert not same(weights(made), weights(finished))


@pytest.mark.parametrize("amp", [False, True])
def test_gradients_are_clipped_by_norm_after_unscaling(tmp_path, amp):
    clip = 1e-3
    made = trainer(
        write_config(tmp_path, STEPS),
        "train.max_iter=1",
        f"train.amp.enabled={amp}",
        "train.clip_gradients.enabled=True",
        f"train.clip_gradients.clip_value={clip}",
    )
    before = {k: p.detach().clone() for k, p in made.model.named_parameters()}
    bias = made.model.classifier_bias_name  # the prior sets it, too
    made.train()
    norms = [(p - before[k]).norm().item() for k, p in made.model.named_parameters() if k != bias]
    # Detectron2 clips each parameter for itself; without momentum a step is lr times that.
    assert max(norms) == pytest.approx(0.01 * clip, rel=0.02)


def test_gradients_are_clipped_by_value(tmp_path):
    overrides = ["enabled=True", "clip_type=value", "clip_value=1e-4"]
    made = trainer(
        write_config(tmp_path, STEPS),
        "train.max_iter=1",
        *(f"train.clip_gradients.{x}" for x in overrides),
    )
    before = made.model.head.bbox_pred.weight.detach().clone()
    made.train()
    steps = (made.model.head.bbox_pred.weight - before).abs()
    assert steps.max().item() == pytest.approx(1e-6, rel=0.02)


SCORES = {2: 3.0, 4: 7.0, 6: 5.0, 8: 6.0}


class Scripted(LazyTrainer):
    """Evaluations with given scores, by the number of iterations done."""

    def test(self, cfg, model):
        score = SCORES[min(self.iter + 1, self.max_iter)]
        return {"bbox": {"AP": score, "AP50": 10 * score}}


def scripted(monkeypatch):
    monkeypatch.setattr("helpers.tiny_run.LazyTrainer", Scripted)
    best = ["train.best_metric=bbox/AP", "train.eval_period=2", "train.checkpointer.period=2"]
    return ["train.max_iter=8", *best]


def best_iteration(folder):
    return load(folder / "out" / "model_best.pth")["iteration"]


def test_the_best_checkpoint_is_that_of_the_best_evaluation(tmp_path, monkeypatch):
    run(write_config(tmp_path), *scripted(monkeypatch))
    assert best_iteration(tmp_path) == 3
    rows = metrics(tmp_path / "out")
    assert [rows[i]["bbox/AP"] for i in (1, 3, 5, 8)] == list(SCORES.values())


def test_a_best_metric_that_is_nan_is_said_once(tmp_path, monkeypatch):
    monkeypatch.setattr("test_trainer.SCORES", dict.fromkeys(SCORES, math.nan))
    with log_lines() as lines:
        run(write_config(tmp_path), *scripted(monkeypatch))
    assert len([x for x in lines if "train.best_metric=bbox/AP is nan" in x]) == 1
    assert not (tmp_path / "out" / "model_best.pth").exists()


@pytest.mark.parametrize("stop", [4, 5, 6])
def test_a_resumed_run_remembers_the_best_score(tmp_path, monkeypatch, stop):
    config, overrides = write_config(tmp_path), scripted(monkeypatch)
    run_until(stop, config, *overrides)
    run(config, *overrides, resume=True)
    assert best_iteration(tmp_path) == 3


def test_the_score_of_another_metric_is_not_remembered(tmp_path, monkeypatch):
    config, overrides = write_config(tmp_path), scripted(monkeypatch)
    run_until(6, config, *overrides, "train.best_metric=bbox/AP50")
    with log_lines() as lines:
        run(config, *overrides, resume=True)
    assert best_iteration(tmp_path) == 8  # of 5.0 and 6.0; the 70 were of the other
    assert len([x for x in lines if "best_metric=bbox/AP, begun with bbox/AP50" in x]) == 1


def test_a_score_that_was_not_asked_for_is_not_the_best(tmp_path, monkeypatch):
    # It comes with the storage of the checkpoint, and evaluations are rarer than checkpoints.
    config, overrides = write_config(tmp_path), scripted(monkeypatch)
    overrides += ["train.eval_period=4", "train.checkpointer.period=3"]
    run_until(6, config, *overrides, "train.best_metric=bbox/AP50")
    made = trainer(config, *overrides, resume=True)
    (hook,) = (x for x in made._hooks if isinstance(x, StatefulBestCheckpointer))
    found, step = [], made.run_step
    made.run_step = lambda: found.append(hook.state_dict()) or step()
    made.train()
    assert found == 2 * [{"metric": "bbox/AP", "best_metric": None, "best_iter": None}]
    assert best_iteration(tmp_path) == 8


def test_a_best_score_without_a_name_is_taken(tmp_path, monkeypatch):
    config, overrides = write_config(tmp_path), scripted(monkeypatch)
    run_until(6, config, *overrides)
    path = tmp_path / "out" / "model_0000005.pth"
    saved = load(path)
    del saved["trainer"]["hooks"]["StatefulBestCheckpointer"]["metric"]
    torch.save(saved, path)
    run(config, *overrides, resume=True)
    assert best_iteration(tmp_path) == 3


@pytest.mark.parametrize(
    "expected, ok",
    [
        ("[[bbox,AP,5,0.5]]", True),
        ("[[bbox,AP,5,0.5],[bbox,AP,4.4,0.5]]", False),
        ("[[segm,AP,5,99]]", False),
        ("[[bbox,AP99,5,99]]", False),
    ],
)
def test_results_are_verified(tmp_path, monkeypatch, expected, ok):
    scripted(monkeypatch)
    monkeypatch.setitem(SCORES, 1, 5.0)
    made = trainer(write_config(tmp_path), "train.max_iter=1", f"train.expected_results={expected}")
    if ok:
        assert made.train() == {"bbox": {"AP": 5.0, "AP50": 50.0}}
        return
    with pytest.raises(SystemExit) as e:
        made.train()
    assert e.value.code == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without GPU")
def test_without_a_gpu_it_runs_on_the_cpu_and_says_so(tmp_path):
    with log_lines() as lines:
        made = trainer(write_config(tmp_path), "train.device=cuda")
    assert made.cfg.train.device == "cpu"
    assert [x for x in lines if "No GPU found" in x and "train.device=cpu" in x]


def test_a_loss_that_explodes_stops_the_run_before_a_checkpoint_is_written(tmp_path):
    with pytest.raises(NonFiniteLoss, match="at iteration [12]: .*loss_cls.*guide/r.*png"):
        run(write_config(tmp_path), "optimizer.lr=1e20")
    assert not list((tmp_path / "out").glob("*.pth"))


def test_the_config_of_a_trainer_holds_no_model(finished):
    assert "model" not in finished.cfg.optimizer.params
