"""tools/compare.py and tools/render_tables.py: records, choices and tables."""

import json
from pathlib import Path

import pytest

import compare
import render_tables
from sampling_free.config import load_config

ROOT = Path(__file__).parents[1]
FULL = "configs/bccd/retinanet_R_18_FPN.py"


def record(config=FULL, rate=0.04, seed=0, splits=("train", "val"), **scores):
    keys = dict(config=config, learning_rate=rate, seed=seed)
    return {**keys, "train_split": splits[0], "test_split": splits[1], **scores}


def test_the_tables_in_the_documents_are_what_the_results_say(monkeypatch):
    monkeypatch.chdir(ROOT)
    for path in render_tables.DOCUMENTS:
        text = Path(path).read_text()
        assert render_tables.MARKER.search(text)
        assert render_tables.render(text) == text, "run python tools/render_tables.py"


def test_rendering_writes_numbers_from_the_results_and_is_idempotent(tmp_path):
    rows = [
        record(rate=0.02, **{"bbox/AP": 41.0, "bbox/AP50": 70.0}),
        record(splits=("trainval", "test"), **{"bbox/AP": 43.21, "bbox/AP50": 77.77}),
    ]
    path = tmp_path / "r.json"
    path.write_text(json.dumps(rows))
    text = f"a\n<!-- table final {path} -->\nold\n<!-- end -->\nb\n"
    new = render_tables.render(text)
    assert "43.2" in new and "77.8" in new and "old" not in new and "41.0" not in new
    assert new.startswith("a\n") and new.endswith("\nb\n")
    assert render_tables.render(new) == new


def test_a_run_that_diverged_is_shown_as_such_in_the_table_of_rates():
    rows = [record(rate=0.02, **{"bbox/AP": 41.0}), record(rate=0.08, failed="not finite")]
    assert "not finite" in render_tables.rates(rows)


def test_the_best_rate_is_of_the_config_and_split_asked_for(tmp_path):
    records = compare.Records(tmp_path / "r.json")
    records.rows = [
        record(rate=0.02, **{"bbox/AP": 41.0}),
        record(rate=0.04, **{"bbox/AP": 40.0}),
        record(rate=0.08, failed="not finite"),
        record(rate=0.16, splits=("trainval", "test"), **{"bbox/AP": 90.0}),
        record(config="other.py", rate=0.32, **{"bbox/AP": 90.0}),
    ]
    assert records.best_rate(FULL, ["train", "val"]) == 0.02


def test_a_run_that_is_recorded_is_not_repeated(tmp_path, monkeypatch):
    calls = []

    def run(config, rate, seed, splits, override, **how):
        calls.append((config, override))
        return {**record(config, rate, seed, splits), "override": override}

    monkeypatch.setattr(compare, "run", run)
    path = str(tmp_path / "results" / "r.json")
    for _ in range(2):
        compare.Records(path).get(FULL, 0.04, 0, ["train", "val"])
        compare.Records(path).get(FULL, 0.04, 0, ["train", "val"], "model.guide=gradient")
    assert calls == [(FULL, None), (FULL, "model.guide=gradient")]


def test_the_curves_are_lines_of_the_metrics_at_the_points_and_the_end():
    rows = [{"iteration": i, "guide/r": i / 10, "lr": 1} for i in range(19, 500, 20)]
    rows.append({"iteration": 500, "bbox/AP": 3.0})
    curves = compare.curves(rows)
    assert [x["iterations"] for x in curves] == [20, 40, 100, 200, 400, 500]
    assert curves[1] == {"iterations": 40, "guide/r": 3.9}
    assert compare.curves([{"iteration": 19, "total_loss": 1.0}]) == []


@pytest.mark.parametrize("config", ["bccd/retinanet_R_18_FPN.py", "demo/retinanet.py"])
def test_overrides_are_keys_of_the_configs(config):
    splits = ["train", "val"] if "bccd" in config else [None, None]
    changes = compare.overrides(0.5, 7, splits, "out", "model.guide=2.0")
    cfg = load_config(str(ROOT / "configs" / config), changes)
    assert (cfg.optimizer.lr, cfg.train.seed, cfg.train.output_dir) == (0.5, 7, "out")
    assert cfg.model.guide == 2.0
    if splits[0]:
        names = cfg.dataloader.train.dataset.names
        assert (names.split, names.name) == ("train", "compare_train")
