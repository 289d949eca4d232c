"""train_net.py: what a user sees; a mistake is one line and exit code 2, without a stack trace."""

import builtins
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog

import train_net as script
from helpers.live_process import kill, start, text_of, wait_until
from helpers.patience import PATIENCE, wait_for
from helpers.tiny_run import (
    FOCAL,
    OWN_CONFIG,
    call_main,
    error_line,
    load,
    metrics,
    only_error,
    run,
    same,
    train_net,
    write_config,
)
from sampling_free import SamplingFreeRetinaNet
from sampling_free.utils.signals import LoaderSignals

FASTER = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path)


@pytest.fixture
def main(monkeypatch, capsys):
    """Runs ``main`` in this process; returns the exit code and stderr."""
    # Detectron2's set-up gives its loggers handlers for good.
    monkeypatch.setattr(script, "default_setup", lambda cfg, args: None)
    monkeypatch.setattr(script, "setup_logger", lambda *args, **kwargs: None)

    def call(*arguments):
        code, _, err = call_main(script, ["train_net.py", *arguments], monkeypatch, capsys)
        return code, err

    return call


def refused(main, *arguments):
    code, err = main(*arguments)
    assert code == 2, err
    return only_error(err)


def test_a_run_its_resumption_and_its_evaluation(tmp_path, config, main):
    out = tmp_path / "out"
    first = train_net(config, "train.max_iter=3", "train.device=cuda", "train.num_pictures=1")
    assert first.code == 0 and "Traceback" not in first.out + first.err, first.err
    assert ("No GPU found" in first.out) != torch.cuda.is_available()
    assert "Prior of the training set" in first.out and "copypaste: AP,AP50" in first.out
    assert (out / "config.yaml").is_file() and (out / "training.png").is_file()
    scores = {k: v for k, v in metrics(out)[3].items() if k.startswith("bbox/")}
    prior = (out / "prior.json").stat().st_mtime_ns

    # The config that the run has saved describes the run, and training goes on from its end.
    second = train_net(out / "config.yaml", "--resume", "train.max_iter=4", "train.device=cpu")
    assert second.code == 0, second.err
    assert "Prior of the training set" not in second.out
    assert load(out / "model_final.pth")["iteration"] == 3
    assert (out / "prior.json").stat().st_mtime_ns == prior

    weights = f"train.init_checkpoint={out}/model_0000002.pth"
    arguments = ["--config-file", config, "--eval-only", weights]
    rows = [f"[bbox,{k},{scores[f'bbox/{k}']},1e-9]" for k in ("AP", "AP50")]
    assert main(*arguments, f"train.expected_results=[{','.join(rows)}]")[0] == 0
    assert main(*arguments, f"train.expected_results=[{rows[0]},[bbox,AP50,101,1]]")[0] == 1


@pytest.mark.long
def test_a_process_that_is_killed_and_resumed_gives_the_uninterrupted_run(tmp_path):
    # Of Detectron2's own RetinaNet: its focal loss is compiled anew in each process, and here not.
    (tmp_path / "whole").mkdir(), (tmp_path / "killed").mkdir()
    options = ["train.max_iter=9", "train.seed=3"]
    whole, killed = (write_config(tmp_path / n, FOCAL) for n in ("whole", "killed"))
    run(whole, *options)
    process = start(killed, *options, "train.checkpointer.period=1")
    assert wait_until((tmp_path / "killed" / "out" / "model_0000004.pth").exists, process)
    kill(process)
    resumed = train_net(killed, "--resume", *options)
    assert resumed.code == 0 and "Starting training from iteration" in resumed.out
    a, b = (load(tmp_path / n / "out" / "model_final.pth") for n in ("whole", "killed"))
    assert same(a["model"], b["model"])
    assert same(a["trainer"]["_trainer"], b["trainer"]["_trainer"])


@pytest.mark.parametrize(
    "number, num_workers",
    [
        (signal.SIGTERM, 2),
        pytest.param(signal.SIGINT, 0, marks=pytest.mark.long),
    ],
)
def test_an_interrupt_is_one_line_and_leaves_a_checkpoint(tmp_path, config, number, num_workers):
    workers = f"dataloader.train.num_workers={num_workers}"
    process = start(config, "train.max_iter=100000", "train.checkpointer.period=2", workers)
    assert wait_until((tmp_path / "out" / "model_0000003.pth").exists, process)
    # As a terminal and a cluster do it: to all processes, those that load the images among them.
    os.killpg(process.pid, number)
    text = text_of(process)
    assert process.returncode == 128 + number and "Traceback" not in text, text
    path = tmp_path / "out" / (tmp_path / "out" / "last_checkpoint").read_text()
    name = signal.Signals(number).name
    assert only_error(text) == f"error: interrupted by {name}; --resume goes on from {path}"
    assert load(path)["trainer"]["is_in_hooks"] is False


class Evaluates(SamplingFreeRetinaNet):
    """Tells by a file when it has begun to, and does not end."""

    def forward(self, inputs):
        if not self.training:
            Path(os.environ["BEGUN"]).touch()
            time.sleep(PATIENCE)
        return super().forward(inputs)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_an_evaluation_with_workers_too(tmp_path, monkeypatch, number):
    monkeypatch.setenv("BEGUN", str(tmp_path / "begun"))
    lines = f"import {__name__}\nmodel._target_ = {__name__}.Evaluates\n"
    options = ["train.max_iter=8", "train.eval_period=4", "dataloader.test.num_workers=2"]
    process = start(write_config(tmp_path, lines), *options)
    assert wait_until((tmp_path / "begun").exists, process)
    os.killpg(process.pid, number)
    text = text_of(process)
    assert process.returncode == 128 + number and "Traceback" not in text, text
    path = tmp_path / "out" / "model_0000003.pth"
    name = signal.Signals(number).name
    assert only_error(text) == f"error: interrupted by {name}; --resume goes on from {path}"


class Late(LoaderSignals):
    """Of a loader's process that is still starting when the signal comes."""

    def __call__(self, worker_id):
        Path(os.environ["BEGUN"]).touch()
        wait_for(Path(os.environ["SIGNALLED"]).exists)
        super().__call__(worker_id)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module, iteration", [("loader", 0), ("datasets", 3)])
def test_while_the_workers_start_too(tmp_path, monkeypatch, number, module, iteration):
    monkeypatch.setenv("BEGUN", str(tmp_path / "begun"))
    monkeypatch.setenv("SIGNALLED", str(tmp_path / "signalled"))
    lines = (
        f"import {__name__}, sampling_free.data.{module}\n"
        f"sampling_free.data.{module}.LoaderSignals = {__name__}.Late\n"
    )
    options = [f"dataloader.{x}.num_workers=2" for x in ("train", "test")]
    config = write_config(tmp_path, lines)
    process = start(config, *options, "train.max_iter=8", "train.eval_period=4")
    assert wait_until((tmp_path / "begun").exists, process)
    os.killpg(process.pid, number)
    (tmp_path / "signalled").touch()
    text = text_of(process)
    assert process.returncode == 128 + number and "Traceback" not in text, text
    path = tmp_path / "out" / f"model_{iteration:07d}.pth"
    name = signal.Signals(number).name
    assert only_error(text) == f"error: interrupted by {name}; --resume goes on from {path}"


@pytest.fixture
def torn_image(tmp_path):
    """A config with a private set, one of whose images is cut off; and that image."""
    folder = tmp_path / "sub"
    folder.mkdir()
    lines = (
        "\nfor _s in (dataloader.train, dataloader.test):\n"
        f"    _s.dataset.names.root = {str(tmp_path)!r}\n"
        f"    _s.dataset.names.name += {tmp_path.name!r}\n"
    )
    config = write_config(folder, lines)
    run(config, "train.max_iter=1")
    (image,) = tmp_path.glob("*/train/images/000003.png")
    image.write_bytes(image.read_bytes()[:200])
    return config, image


def test_a_torn_image_stops_the_run_or_is_skipped_also_with_workers(torn_image):
    config, image = torn_image
    options = ["dataloader.train.num_workers=2", "train.max_iter=20"]
    line = error_line(train_net(config, *options))
    assert f"{image}: cannot be read" in line and "dataloader.train.unreadable=skip" in line
    skipping = train_net(config, *options, "dataloader.train.unreadable=skip")
    assert skipping.code == 0, skipping.err
    assert len([x for x in skipping.out.splitlines() if f"{image}: cannot be read" in x]) == 1


def test_a_torn_image_at_evaluation_is_named(torn_image, main):
    config, image = torn_image
    image = Path(str(image).replace("/train/", "/val/"))
    image.write_bytes(image.read_bytes()[:200])
    weights = f"train.init_checkpoint={Path(config).parent}/out/model_final.pth"
    assert f"{image}: cannot be read" in refused(
        main, "--config-file", config, "--eval-only", weights
    )


def test_a_torn_image_among_those_that_a_loaded_head_is_scored_on(torn_image, main):
    config, image = torn_image
    weights = f"train.init_checkpoint={Path(config).parent}/out/model_final.pth"
    arguments = ["--config-file", config, weights, "train.max_iter=12"]
    assert f"{image}: cannot be read" in refused(main, *arguments)
    assert main(*arguments, "dataloader.train.unreadable=skip")[0] == 0


def test_a_loss_that_explodes_says_where_and_with_what(config):
    line = error_line(train_net(config, "optimizer.lr=1e20"))
    found = re.search(r"at iteration (\d+): .*'loss_cls': .*'loss_box_reg': .*'guide/r': ", line)
    assert found and int(found.group(1)) <= 2
    assert re.search(r"learning rate \d\.\d+e\+\d+, images \['/.*\.png', '/.*\.png'\]", line)


def folder_with_five_classes(tmp_path, split):
    """Of the sets that this session's tests have made."""
    for path in tmp_path.parent.glob(f"tiny_sets/*/{split}/annotations.json"):
        if len(json.loads(path.read_text())["categories"]) == 5:
            return str(path.parent)


def test_a_users_own_config_of_detectron2s_pieces_is_trained(tmp_path, config, main):
    run(config, "train.max_iter=1")
    folders = {s: folder_with_five_classes(tmp_path, s) for s in ("train", "val")}
    own = tmp_path / "own.py"
    own.write_text(
        OWN_CONFIG.replace("FOLDERS", str(folders)).replace("OUTPUT", repr(f"{tmp_path}/own"))
    )
    try:
        assert main("--config-file", own) == (0, "")
        (tmp_path / "own" / "best_threshold.json").unlink()
        assert main("--config-file", own, "--resume", "train.max_iter=3")[0] == 0
        state = load(tmp_path / "own" / "model_final.pth")
        assert state["iteration"] == 2 and not state.get("prior")
        assert main("--config-file", own, "--eval-only", "--resume")[0] == 0
        assert "has 5 classes" in refused(main, "--config-file", own, "model.num_classes=6")
    finally:
        for name in ("own_train", "own_val"):
            DatasetCatalog.remove(name)


def test_missing_and_broken_configs(main, tmp_path):
    assert "--config-file is missing" in refused(main)
    assert "configs/demo/retinanet.py?" in refused(
        main, "--config-file", "configs/demo/retnanet.py"
    )
    before = builtins.__import__
    for name, text in (("syntax.py", "a = ("), ("raises.py", "1 / 0")):
        (tmp_path / name).write_text(text)
        assert f"{tmp_path / name}: " in refused(main, "--config-file", tmp_path / name)
        assert builtins.__import__ is before


@pytest.mark.parametrize(
    "override, parts",
    [
        ("train.max_itr=5", ["train.max_itr", "train.max_iter?"]),
        ("model.test_score_tresh=0.1", ["test_score_tresh", "test_score_thresh?"]),
        ("train.max_iter", ["'train.max_iter'", "key=value"]),
        ("model.anchor_generator.sizes.7=[1]", ["list of 5", "'7'"]),
        ("dataloader.train.dataset.names=tiny_trian", ["'tiny_trian'", "unknown data set"]),
        ("dataloader.train.dataset.names=coco_2017_train", ["coco_2017_train", "DETECTRON2_DATA"]),
        ("model.num_classes=4", ["5 classes", "model.num_classes=4", "model.num_classes=5"]),
        ("model.prior=2", ["model.prior=2", "(0, 1)"]),
        ("model.guide=never", ["model.guide='never'", "'iteration'"]),
        ("train.init_checkpoint=none.pth", ["none.pth: no such checkpoint"]),
        ("train.init_checkpoint=README.md", ["README.md: not a readable checkpoint"]),
        ("train.prior_file=none.json", ["none.json: no such file", "estimate_prior.py"]),
        ("train.prior_file=setup.cfg", ["setup.cfg: not a prior estimate"]),
        ("train.amp.dtype=half", ["train.amp.dtype='half'", "bfloat16"]),
        ("train.output_dir=setup.cfg", ["train.output_dir=setup.cfg"]),
        ("train.expected_results=[[bbox,AP]]", ["train.expected_results"]),
        ("dataloader.train.total_batch_size=0", ["dataloader.train.total_batch_size=0"]),
        ("dataloader.train.unreadable=maybe", ["'maybe'", "'skip'"]),
        ("train.device=tpu0", ["train.device"]),
        ("train.clip_gradients={enabled:True,clip_type:no}", ["clip_type"]),
    ],
)
def test_a_mistake_in_an_override_is_one_line(main, config, monkeypatch, override, parts):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/nowhere")
    line = refused(main, "--config-file", config, override)
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["COCO-Detection/faster_rcnn_R_50_FPN_1x.yml"], ["no such config file"]),
        (["COCO-Detection/nothing.yaml"], ["COCO-Detection/nothing.yaml: no such config file"]),
        ([FASTER, "SOLVER.MAX_ITR", "5"], ["SOLVER.MAX_ITR", "SOLVER.MAX_ITER?"]),
        ([FASTER, "SOLVER.MAX_ITER"], ["SOLVER.MAX_ITER", "value is missing"]),
        ([FASTER, "SOLVER.MAX_ITER", "many"], ["SOLVER.MAX_ITER many", "int"]),
        ([FASTER, "SOLVER.MAX_ITER", "5", "train.max_itr=3"], ["train.max_itr"]),
        ([FASTER, "DATASETS.TRAIN", "('coco_2017_trian',)"], ["'coco_2017_trian'"]),
        ([FASTER], ["coco_2017_train", "DETECTRON2_DATASETS"]),
        (["--sampling-free", FASTER], ["coco_2017_train", "DETECTRON2_DATASETS"]),
        (["--sampling-free", "Misc/semantic_R_50_FPN_1x.yaml"], ["SemanticSegmentor"]),
        (["--sampling-free", "Misc/torchvision_imagenet_R_50.py"], ["ClassificationNet"]),
        (["--eval-only", "--sampling-free", FASTER, "MODEL.WEIGHTS", "''"], ["needs weights"]),
        (["--eval-only", FASTER, "MODEL.WEIGHTS", "no.pth"], ["no.pth: no such checkpoint"]),
    ],
)
def test_a_mistake_with_a_config_of_the_model_zoo_is_one_line(main, monkeypatch, arguments, parts):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/nowhere")
    i = next(i for i, x in enumerate(arguments) if not x.startswith("--"))
    words = [*arguments[:i], "--config-file", arguments[i]]
    line = refused(main, *words, *arguments[i + 1 :])
    assert all(part in line for part in parts), line


def test_eval_only_needs_weights_that_fit(main, tmp_path, config):
    arguments = ["--config-file", config, "--eval-only"]
    assert "--eval-only needs weights" in refused(main, *arguments)
    run(config, "train.max_iter=1")
    weights = tmp_path / "out" / "model_final.pth"
    line = refused(
        main, *arguments, f"train.init_checkpoint={weights}", "model.head.conv_dims=[16]"
    )
    assert f"{weights}: of another architecture" in line
    weights.write_bytes(weights.read_bytes()[:1000])
    assert f"{weights}: not a readable" in refused(main, *arguments, "--resume")


def test_the_help_shows_the_commands(main, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train_net.py", "--help"])
    with pytest.raises(SystemExit) as e:
        script.main()
    assert e.value.code == 0
    assert "train_net.py --config-file configs/demo/retinanet.py" in capsys.readouterr().out
