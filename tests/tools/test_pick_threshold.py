"""tools/pick_threshold.py on a tiny model: its table, its files, and a line for each mistake."""

import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from pycocotools.coco import COCO

import pick_threshold as script
from helpers.tiny_run import NUM_CLASSES, call_main, only_error, write_config
from sampling_free.checkpoint.checkpointer import NamingCheckpointer
from sampling_free.config.load import load_config
from sampling_free.data.datasets import dataset_names
from sampling_free.engine.trainer import LazyTrainer
from sampling_free.evaluation.best_threshold import BestThreshold, pick_threshold
from sampling_free.evaluation.matching import match_detections

EVERYTHING = "model.test_score_thresh=0.0"  # an untrained model scores low


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The config of a tiny model with a checkpoint, and its validation set."""
    folder = tmp_path_factory.mktemp("pick")
    config = write_config(folder)
    cfg = load_config(config)
    (name,) = dataset_names(cfg.dataloader.test.dataset)
    model = LazyTrainer.build_model(cfg)
    (folder / "out").mkdir()
    NamingCheckpointer(model, str(folder / "out")).save("model_final")
    return config, MetadataCatalog.get(name).json_file


@pytest.fixture
def main(tiny, monkeypatch, capsys):
    """Runs the tool in this process; returns the exit code, stdout and stderr."""
    monkeypatch.setattr(script, "setup_logger", lambda *args, **kwargs: None)

    def call(*arguments, config=tiny[0]):
        arguments = ["--config-file", config, *map(str, arguments)]
        return call_main(script, ["pick_threshold.py", *arguments], monkeypatch, capsys)

    return call


@pytest.fixture
def refused(main, monkeypatch):
    """The one line with which the tool stops, before a model is run."""
    monkeypatch.setattr(script, "evaluate_only", None)

    def call(*arguments, **kwargs):
        code, _, err = main(*arguments, **kwargs)
        assert code == 2
        return only_error(err)

    return call


@pytest.fixture
def found(tiny, tmp_path):
    """A file in which every object of the validation set is found, at ever lower scores."""
    truth = json.loads(Path(tiny[1]).read_text())
    objects = [a for a in truth["annotations"] if not a.get("iscrowd")]
    keys = ("image_id", "category_id", "bbox")
    detections = [
        {**{k: a[k] for k in keys}, "score": 1 - (i + 1) / 128} for i, a in enumerate(objects)
    ]
    path = tmp_path / "found.json"
    path.write_text(json.dumps(detections))
    return path, detections


@pytest.mark.parametrize("resume", [False, True])
def test_a_model_is_run_and_its_threshold_picked(tiny, main, tmp_path, resume):
    config, truth = tiny
    out = Path(config).parent / "out"
    weights = ["--resume", EVERYTHING]
    if not resume:
        weights = [EVERYTHING, f"train.init_checkpoint={out}/model_final.pth"]
    # The verdict of a whole training must not stop a look at the thresholds.
    expected = "train.expected_results=[[bbox,AP,99.0,0.1]]"
    code, text, err = main("--iou", 0.1, "--output", tmp_path / "new", *weights, expected)
    assert code == 0, err
    detections = json.loads((out / "inference" / "coco_instances_results.json").read_text())
    assert detections
    picked = BestThreshold.load(tmp_path / "new" / "threshold.json")
    assert picked == pick_threshold(match_detections(COCO(truth), detections, iou=0.1), iou=0.1)
    assert len(picked.per_class) == NUM_CLASSES
    *table, last = text.rstrip().splitlines()[-NUM_CLASSES - 4 :]
    assert table[0].split()[:2] == ["class", "threshold"]
    assert [row.split("  ")[0] for row in table[2:]] == [*picked.per_class, "all classes"]
    assert str(tmp_path / "new" / "threshold.json") in last
    assert str(tmp_path / "new" / "threshold.png") in last
    assert (tmp_path / "new" / "threshold.png").read_bytes()[:4] == b"\x89PNG"


def test_detections_of_a_file_need_no_model(main, found, monkeypatch, tmp_path):
    path, detections = found
    monkeypatch.setattr(script, "evaluate_only", None)
    code, text, err = main("--detections", path, f"train.output_dir={tmp_path}")
    assert code == 0, err
    picked = BestThreshold.load(tmp_path / "threshold.json")
    lowest = min(d["score"] for d in detections)
    assert (picked.threshold, picked.precision, picked.recall) == (lowest, 1.0, 1.0)
    assert f"{lowest:.4f}" in text.splitlines()[-2]


def test_a_precision_that_is_never_reached_is_said_in_words(main, found, tmp_path):
    path, detections = found
    for d in detections:
        if d["category_id"] == detections[0]["category_id"]:
            d["bbox"] = [0, 0, 0.5, 0.5]
    path.write_text(json.dumps(detections))
    arguments = "--precision", 1, "--detections", path, "--output", tmp_path
    code, text, err = main(*arguments)
    assert code == 0, err
    stored = json.loads((tmp_path / "threshold.json").read_text())
    assert stored["wanted_precision"] == 1.0
    none = [r for r in stored["per_class"].values() if r["threshold"] is None]
    assert [r["num_detections"] > 0 for r in none if r["num_ground_truth"]] == [True]
    # The best score of all is of that class, so no cut shows correct ones alone.
    assert stored["threshold"] is None and stored["recall"] is None
    assert text.count("1 never reached") == 2


def test_no_detection_at_all(main, tmp_path):
    (tmp_path / "none.json").write_text("[]")
    code, text, _ = main("--detections", tmp_path / "none.json", "--output", tmp_path)
    assert code == 0 and "no detection" in text.splitlines()[-2]
    assert json.loads((tmp_path / "threshold.json").read_text())["threshold"] is None


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--precision", "0"], ["--precision 0:", "above 0 and up to 1"]),
        (["--precision", "90"], ["--precision 90:"]),
        (["--precision", "nan"], ["--precision nan:"]),
        (["--iou", "1.5"], ["--iou 1.5:"]),
        ([], ["train.init_checkpoint=FILE", "--resume", "--detections"]),
        (["--resume", "train.output_dir=empty"], ["--resume", "train.output_dir=empty"]),
        (["--detections", "none.json"], ["none.json: cannot be read", "coco_instances_results"]),
        (["--output", __file__], ["--output", "(is a file); give another folder"]),
        (["train.output_dri=x"], ["did you mean"]),
    ],
)
def test_a_mistake_of_the_command_line_is_one_line(refused, arguments, words):
    line = refused(*arguments)
    assert all(word in line for word in words), line


GOOD = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", ["not a JSON file"]),
        ({"annotations": []}, ["holds a dict, not a list"]),
        ([GOOD, 3], ["entry 1 is no detection"]),
        ([{k: v for k, v in GOOD.items() if k != "score"}], ["entry 0", "score"]),
        ([{**GOOD, "bbox": [1, 2, 3]}], ["entry 0", "bbox"]),
        ([{**GOOD, "score": float("nan")}], ["entry 0"]),
        ([{**GOOD, "score": "0.5"}], ["entry 0"]),
        ([{**GOOD, "image_id": [1]}], ["entry 0"]),
        ([GOOD, {**GOOD, "image_id": 987}], ["image_id=987 of entry 1", "tiny_val", "6 of them"]),
        ([{**GOOD, "category_id": 91}], ["category_id=91 of entry 0", "tiny_val", "5 of them"]),
    ],
)
def test_a_wrong_file_of_detections_is_one_line(refused, tmp_path, content, words):
    path = tmp_path / "wrong.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    line = refused("--detections", path)
    assert all(word in line for word in [str(path), *words]), line


VOC = """
from detectron2.evaluation import PascalVOCDetectionEvaluator as Voc
dataloader.evaluator = L(Voc)(dataset_name="${..test.dataset.names}")
"""


def test_another_evaluator_is_refused_with_a_way_out(refused, main, found, tmp_path):
    config = write_config(tmp_path, VOC, "voc.py")
    line = refused("--resume", config=config)
    assert "voc.py: dataloader.evaluator is PascalVOCDetectionEvaluator" in line
    hint = "dataloader.evaluator._target_=detectron2.evaluation.COCOEvaluator"
    assert hint in line
    code, _, err = main("--detections", found[0], hint, config=config)
    assert code == 0, err


def test_a_config_without_an_evaluator_is_refused(refused, tmp_path):
    config = write_config(tmp_path, "\ndel dataloader['evaluator']\n", "bare.py")
    line = refused("--resume", config=config)
    assert "bare.py: dataloader.evaluator is missing" in line and "COCOEvaluator" in line


def test_of_several_evaluators_the_coco_one_is_used(tiny, main, tmp_path):
    several = "_coco = dataloader.evaluator\n" + VOC
    several += "dataloader.evaluator = [dataloader.evaluator, _coco]\n"
    several += "for _one in dataloader.evaluator:\n"
    several += "    _one.dataset_name = '${...test.dataset.names}'\n"
    config = write_config(tmp_path, several, "several.py")
    weights = f"train.init_checkpoint={Path(tiny[0]).parent}/out/model_final.pth"
    code, _, err = main(EVERYTHING, weights, config=config)
    assert code == 0, err
    assert BestThreshold.load(tmp_path / "out" / "threshold.json").num_ground_truth > 0


def test_a_set_without_annotations_is_refused(tiny, refused, tmp_path):
    truth = json.loads(Path(tiny[1]).read_text())
    del truth["annotations"]
    (tmp_path / "bare.json").write_text(json.dumps(truth))
    register_coco_instances("pick_bare", {}, str(tmp_path / "bare.json"), str(tmp_path))
    try:
        line = refused("--resume", "dataloader.test.dataset.names=pick_bare")
    finally:
        DatasetCatalog.remove("pick_bare")
        MetadataCatalog.remove("pick_bare")
    assert "pick_bare: has no annotations" in line
