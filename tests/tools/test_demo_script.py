"""demo.py on pictures made here, with a detector whose answers are known and a real RetinaNet."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from PIL import Image

import demo
from sampling_free.evaluation.best_threshold import FALLBACK_THRESHOLD, FILE_NAME, BestThreshold

# Finds three things in every picture: its left half, its right half, all of it.
CONFIG = """
import torch
import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper, build_detection_test_loader, get_detection_dataset_dicts
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf


class Halves(torch.nn.Module):
    def __init__(self, num_outputs=3):
        super().__init__()
        self.scores = torch.nn.Parameter(torch.zeros(num_outputs))

    def forward(self, batch):
        (x,) = batch
        assert min(x["image"].shape[1:]) == 32, "the mapper of the test loader resizes"
        w, h = float(x["width"]), float(x["height"])
        found = Instances((x["height"], x["width"]))
        found.pred_boxes = Boxes([[0, 0, w / 2, h], [w / 2, 0, w, h], [0, 0, w, h]])
        found.scores = self.scores.detach()
        found.pred_classes = torch.tensor([0, 1, 5])
        return [{"instances": found}]


model = L(Halves)()
optimizer, lr_multiplier = OmegaConf.create(), OmegaConf.create()
train = OmegaConf.create({"output_dir": "OUTPUT", "device": "cpu"})
dataloader = OmegaConf.create()
dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="coco_2017_val", filter_empty=False),
    mapper=L(DatasetMapper)(
        is_train=False,
        augmentations=[L(T.ResizeShortestEdge)(short_edge_length=32, max_size=96)],
        image_format="BGR",
    ),
)
"""
SCORES = torch.tensor([0.9, 0.3, 0.02])


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a config, trained weights, the stored threshold and three pictures."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.py").write_text(CONFIG.replace("OUTPUT", str(tmp_path / "trained")))
    (tmp_path / "trained").mkdir()
    torch.save({"model": {"scores": SCORES}}, tmp_path / "trained" / "model_final.pth")
    BestThreshold(0.3, 0.8, 0.8, 0.8, 0.5).save(tmp_path / "trained" / FILE_NAME)
    (tmp_path / "in").mkdir()
    for i, name in enumerate(("a.png", "b.jpg", "c[1].png")):
        Image.new("RGB", (60 + 20 * i, 40), "gray").save(tmp_path / "in" / name)
    return tmp_path


def run(*arguments):
    """Exit code of demo.py."""
    fixed = ["--config-file", "config.py", "--output", "out"]
    try:
        return demo.main([*fixed, *arguments])
    except SystemExit as e:
        return e.code


def results():
    return json.loads(Path("out/detections.json").read_text())


def test_shows_what_reaches_the_stored_threshold(place, capsys):
    assert run("--input", "in/a.png") == 0
    (result,) = results()
    assert result["file"] == "in/a.png"
    # Exactly at the threshold still counts.
    assert [d["class"] for d in result["detections"]] == ["person", "bicycle"]
    assert [d["box_xyxy"] for d in result["detections"]] == [[0, 0, 30, 40], [30, 0, 60, 40]]
    assert result["detections"][0]["score"] == pytest.approx(0.9)
    assert capsys.readouterr().out == "in/a.png: 2 detections with score >= 0.3\n"
    picture = np.asarray(Image.open("out/a.jpg"))
    assert picture.std() > 5, "boxes are drawn on the plain gray"


@pytest.mark.parametrize("threshold", ["2", "-0.1", "nan", "high"])
def test_an_impossible_threshold_is_refused(place, threshold, capsys):
    assert run("--input", "in/a.png", "--confidence-threshold", threshold) == 2
    assert "--confidence-threshold" in capsys.readouterr().err


def test_without_a_stored_threshold_one_line_warns(place, caplog):
    best = place / "trained" / FILE_NAME
    BestThreshold(None, None, None, None, 0.5).save(best)
    assert run("--input", "in/a.png") == 0
    best.unlink()
    assert run("--input", "in/a.png") == 0
    lines = [m for m in caplog.messages if m.startswith("warning")]
    assert len(lines) == 2
    assert all(FILE_NAME in x and f">= {FALLBACK_THRESHOLD}" in x for x in lines)
    assert results()[0]["threshold"] == FALLBACK_THRESHOLD


def test_folders_patterns_and_brackets(place):
    (place / "in" / "notes.txt").write_text("not an image")
    for inputs in (["in"], ["in/*.png", "in/b.jpg"], ["in/c[1].png", "in/a.png", "in/?.*", "in"]):
        assert run("--input", *inputs) == 0
        assert sorted(r["file"] for r in results()) == ["in/a.png", "in/b.jpg", "in/c[1].png"]
    assert len(list(Path("out").glob("*.jpg"))) == 3


def test_pictures_of_the_same_name_do_not_overwrite_each_other(place):
    (place / "other").mkdir()
    Image.new("RGB", (40, 40)).save(place / "other" / "a.jpg")
    assert run("--input", "in/a.png", "other/a.jpg") == 0
    assert {p.name for p in Path("out").iterdir()} == {"a.jpg", "a_2.jpg", "detections.json"}


def test_unreadable_pictures_are_named_and_the_others_shown(place, capsys):
    (place / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    (place / "in" / "cut.jpg").write_bytes((place / "in" / "b.jpg").read_bytes()[:300])
    assert run("--input", "in", "absent.jpg") == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert [e.split(":")[1].strip() for e in errors] == [
        "in/broken.png",
        "in/cut.jpg",
        "absent.jpg",
    ]
    assert len(results()) == 3


def test_what_was_detected_is_kept_when_the_run_is_ended(place, monkeypatch):
    find = demo.detect

    def interrupted_at_b(model, inputs, threshold):
        if inputs["width"] == 80:
            raise KeyboardInterrupt
        return find(model, inputs, threshold)

    monkeypatch.setattr(demo, "detect", interrupted_at_b)
    assert run("--input", "in") == 130
    assert [r["file"] for r in results()] == ["in/a.png"]


def test_a_picture_of_extreme_shape_is_shown(place):
    Image.new("RGB", (9_000, 40), "gray").save(place / "in" / "wide.png")
    assert run("--input", "in", "dataloader.test.mapper.augmentations.0.max_size=9000") == 0
    assert len(results()) == 4 and max(Image.open("out/wide.jpg").size) <= 65_500


def test_pictures_that_8_bits_would_make_white_or_black_are_refused_as_in_training(place, capsys):
    values = np.linspace(0, 1, 2400, dtype=np.float32).reshape(40, 60)
    Image.fromarray(values).save(place / "in" / "d.tif")
    Image.fromarray((values * 65535).astype(np.uint16)).save(place / "in" / "e.jpg", format="PNG")
    assert run("--input", "in") == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    for error, name, high in zip(errors, ("d.tif", "e.jpg"), ("1", "65535"), strict=True):
        assert f"in/{name}" in error and f"values from 0 to {high}; scale them to 0 to" in error
    assert len(results()) == 3


def test_the_pictures_themselves_are_never_overwritten(place, capsys):
    before = (place / "in" / "b.jpg").read_bytes()
    assert run("--input", "in/b.jpg", "--output", "in/../in") == 2
    assert "error: --output" in capsys.readouterr().err
    assert (place / "in" / "b.jpg").read_bytes() == before


def test_an_output_that_is_a_file_is_one_line(place, capsys):
    assert run("--input", "in/b.jpg", "--output", "config.py") == 2
    assert capsys.readouterr().err.startswith("error: --output config.py")


def test_weights_final_then_best_then_one_line(place, capsys):
    trained = place / "trained"
    (trained / "model_final.pth").rename(trained / "model_best.pth")
    assert run("--input", "in/a.png") == 0
    (trained / "model_best.pth").rename(place / "mine.pth")
    assert run("--input", "in/a.png", "--weights", "mine.pth", "--confidence-threshold", "0") == 0
    capsys.readouterr()
    assert run("--input", "in/a.png") == 2
    assert run("--input", "in/a.png", "--weights", "none.pth") == 2
    absent, wrong = capsys.readouterr().err.splitlines()
    assert "train.output_dir" in absent and "--weights" in absent
    assert wrong.startswith("error: --weights none.pth")


def test_weights_of_another_model_or_damaged_are_refused(place, capsys):
    assert run("--input", "in/a.png", "model.num_outputs=4") == 2
    (place / "trained" / "model_final.pth").write_bytes(b"no weights")
    assert run("--input", "in/a.png") == 2
    torch.save({"model": {}}, place / "trained" / "model_final.pth")
    assert run("--input", "in/a.png") == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(lines) == 3 and all("model_final.pth: " in x for x in lines)


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without GPU")
def test_without_a_gpu_it_runs_on_the_cpu(place, caplog):
    assert run("--input", "in/a.png", "train.device=cuda") == 0
    assert "No GPU" in caplog.text


def test_as_a_script_a_mistake_is_one_line(place):
    script = Path(demo.__file__)
    path = [str(script.parent / "projects" / "SamplingFree"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, script, "--config-file", "none.py", "--input", "in", "--output", "out"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
    )
    assert done.returncode == 2
    (line,) = [x for x in done.stderr.splitlines() if "Warning" not in x and x[:1] != " "]
    assert line.startswith("error: ") and "none.py" in line


def test_with_a_real_detector(place):
    real = """
from detectron2 import model_zoo
from detectron2.layers import ShapeSpec
model = model_zoo.get_config("common/models/retinanet.py").model
model.backbone.bottom_up.stages.pop("stride_in_1x1")
model.backbone.bottom_up.stages.update(depth=18, norm="BN")
model.backbone.bottom_up.out_features = model.backbone.in_features = ["res3"]
model.backbone.out_channels = 8
model.backbone.top_block.update(in_channels=8, in_feature="p3")
model.head_in_features = ["p3"]
model.head.update(conv_dims=[8], prior_prob=0.5, input_shape=[ShapeSpec(channels=8)])
model.anchor_generator.sizes, model.anchor_generator.strides = [[8, 16, 24]], [8]
"""
    (place / "real.py").write_text(CONFIG.replace("model = L(Halves)()", real))
    text = (place / "real.py").read_text().replace("OUTPUT", str(place / "trained"))
    (place / "real.py").write_text(text)
    torch.manual_seed(0)
    model = instantiate(LazyConfig.load("real.py").model)
    torch.save({"model": model.state_dict()}, place / "real.pth")
    mine = ["--config-file", "real.py", "--weights", "real.pth", "--confidence-threshold", "0"]
    assert run("--input", "in", *mine) == 0
    assert len(results()) == 3
    for result, width in zip(results(), (60, 80, 100)):
        boxes = np.array([d["box_xyxy"] for d in result["detections"]])
        assert len(boxes) and boxes.min() >= 0 and boxes[:, 2].max() <= width
