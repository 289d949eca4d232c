"""Every file that the project writes as JSON is read by a parser that knows JSON alone."""

import json
import math
import os

import pytest
from detectron2.data import MetadataCatalog
from detectron2.utils.events import EventStorage, JSONWriter

import check_imbalance
import demo
import estimate_prior as estimate_prior_script
import pick_threshold
from helpers import tiny_run
from helpers.tiny import mapper_of, write_dicts
from helpers.tiny_detectors import tiny_fcos
from helpers.yaml_files import RETINANET
from sampling_free.comparison.outcome import read_metrics
from sampling_free.config.load import load_config
from sampling_free.counting.estimate import PriorEstimate, dependencies, estimate_prior
from sampling_free.engine.metrics_file import StrictJSONWriter, cut
from sampling_free.engine.trainer import LazyTrainer, evaluate_only
from sampling_free.engine.training_plot import plot_training
from sampling_free.utils.errors import BadInput
from sampling_free.utils.files import write_json

NAN, INF = float("nan"), float("inf")
FCOS = ["MODEL.META_ARCHITECTURE", "SamplingFreeFCOS", "MODEL.SAMPLING_FREE.FCOS.NORM", ""]
FCOS += ["MODEL.SAMPLING_FREE.FCOS.CENTER_SAMPLING_RADIUS", "1e999"]


def strictly(text):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_files_of_a_run_its_evaluation_and_the_tools(tiny, sets, tmp_path, monkeypatch, capsys):
    config = tiny(RETINANET)
    run = LazyTrainer(load_config(config, [*FCOS, "train.monitor_period=1"]))
    run.train()
    evaluate_only(run.cfg, resume=True)
    pictures = ["--input", sets.images["val"], "--output", tmp_path / "demo"]
    for script, words in {
        check_imbalance: ["--json", tmp_path / "imbalance.json", "--images", "4"],
        estimate_prior_script: ["--output", tmp_path / "tools_prior.json"],
        pick_threshold: ["--resume"],
        demo: [*pictures, "--confidence-threshold", "0"],
    }.items():
        monkeypatch.setattr(script, "setup_logger", lambda *a, **k: None, raising=False)
        words = ["x.py", "--config-file", config, *words, *FCOS]
        code, _, err = tiny_run.call_main(script, words, monkeypatch, capsys)
        assert not code, err
    contents = {}
    for path in tmp_path.rglob("*.json"):
        lines = path.read_text().splitlines()
        if path.name == "metrics.json":
            contents[path.stem] = [strictly(line) for line in lines]
        else:
            contents[path.stem] = strictly("\n".join(lines))
    assert any(None in row.values() for row in contents["metrics"]), "AP of sizes without objects"
    assert None in contents["evaluation"].values()
    assert contents["prior"]["depends_on"] == contents["tools_prior"]["depends_on"]
    assert contents["prior"]["depends_on"]["center sampling radius"] == "inf"
    others = {"imbalance", "threshold", "best_threshold", "score_histograms"}
    assert others <= contents.keys()
    shown = {x["class"] for image in contents["detections"] for x in image["detections"]}
    assert shown and shown <= set(MetadataCatalog.get(sets.names["val"]).thing_classes)


class TestPrior:
    def test_an_fcos_without_center_sampling_reads_its_own_file(self, tmp_path):
        dicts = write_dicts(tmp_path, [(64, 96)], [4])
        model, path = tiny_fcos(center_sampling_radius=INF), tmp_path / "prior.json"
        estimate = estimate_prior(model, dicts, mapper_of(), progress=False)
        estimate.standard_error = INF  # of too few batches
        estimate.save(path)
        now = dependencies(model, dicts, mapper_of())
        assert strictly(path.read_text())["depends_on"] == json.loads(json.dumps(now))
        assert PriorEstimate.load(path, now) == estimate
        # As it was written before.
        text = path.read_text().replace('"inf"', "Infinity").replace("null", "Infinity")
        path.write_text(text)
        assert math.inf in json.loads(text)["depends_on"].values()
        assert PriorEstimate.load(path, now) == estimate
        other = dependencies(tiny_fcos(center_sampling_radius=1.5), dicts, mapper_of())
        with pytest.raises(BadInput, match="radius = inf, but now it is 1.5"):
            PriorEstimate.load(path, other)


class TestMetrics:
    ROWS = {0: {"total_loss": NAN, "loss_cls": NAN}, 1: {"total_loss": 0.1 + 0.2, "bbox/AP": INF}}

    def written(self, path, kind):
        with EventStorage() as storage:
            writer = kind(str(path))
            for storage.iter, row in self.ROWS.items():
                storage.put_scalars(smoothing_hint=False, **row)
                writer.write()
            writer.write()
            writer.close()
        return path.read_text()

    def test_they_are_detectron2s_with_null_for_what_is_not_finite(self, tmp_path):
        text = self.written(tmp_path / "metrics.json", StrictJSONWriter)
        stock = self.written(tmp_path / "stock.json", JSONWriter)
        assert text == stock.replace("NaN", "null").replace("Infinity", "null") != stock
        assert [strictly(line)["iteration"] for line in text.splitlines()] == [0, 1]

    @pytest.mark.parametrize("kind", [StrictJSONWriter, JSONWriter])
    def test_what_reads_them_takes_null_and_nan(self, tmp_path, kind):
        path = tmp_path / "metrics.json"
        text = self.written(path, kind)
        assert [row["iteration"] for row in read_metrics(str(tmp_path))] == [0, 1]
        plot_training(path, tmp_path / "plot.png")
        assert (tmp_path / "plot.png").exists()
        assert cut(str(path), 1) == 0 and path.read_text() == text.splitlines(True)[0]


class TestWriteJson:
    def test_what_is_not_finite_is_null(self, tmp_path):
        path = tmp_path / "new" / "x.json"
        write_json(path, {"a": [NAN, 0.1, (INF, "NaN")], "b": {"c": -INF, "d": None}})
        expected = {"a": [None, 0.1, [None, "NaN"]], "b": {"c": None, "d": None}}
        assert strictly(path.read_text()) == expected

    @pytest.mark.parametrize("indent, lines", [(None, 1), (1, 3)])
    def test_what_cannot_be_written_leaves_what_was_there(self, tmp_path, indent, lines):
        path = tmp_path / "x.json"
        write_json(path, {"a": 1}, indent)
        before = path.read_text()
        assert len(before.splitlines()) == lines and before.endswith("}\n")
        with pytest.raises(TypeError):
            write_json(path, {"a": path})
        assert path.read_text() == before and os.listdir(tmp_path) == ["x.json"]
        write_json(path, {"a": path}, default=str)
        assert strictly(path.read_text()) == {"a": str(path)}
