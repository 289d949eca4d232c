"""dev/render_tables.py: the tables are what the results say."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest

import render_tables
from reliability_tables import RELIABILITY_TABLES
from sampling_free.comparison.summary import summarize

ROOT = Path(__file__).parents[2]
FULL = "configs/bccd/retinanet_R_18_FPN.py"


def record(config=FULL, rate=0.04, seed=0, splits=("train", "val"), **scores):
    keys = dict(config=config, learning_rate=rate, seed=seed)
    return {**keys, "train_split": splits[0], "test_split": splits[1], **scores}


def test_the_tables_in_the_documents_are_what_the_results_say(monkeypatch):
    monkeypatch.chdir(ROOT)
    for path in render_tables.DOCUMENTS:
        text = Path(path).read_text()
        assert render_tables.MARKER.search(text)
        assert render_tables.render(text) == text, "run python dev/render_tables.py"


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


def test_what_compare_writes_is_read_too(tmp_path):
    runs = [record(seed=s, **{"bbox/AP": 40.0 + s, "bbox/AP50": 70.0}) for s in (0, 1)]
    runs += [record("demo/fcos.py", seed=s, **{"bbox/AP": 30.0, "bbox/AP50": 60.0}) for s in (0, 1)]
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"runs": runs, "summary": summarize(runs)}))
    text = f"<!-- table quick {path} -->\n<!-- end -->\n"
    assert "40.5 (40.0 to 41.0)" in render_tables.render(text)
    text = f"<!-- table comparison {path} -->\n<!-- end -->\n"
    first, second = render_tables.render(text).splitlines()[3:5]
    assert "40.5 ± 0.7 (40.0 to 41.0)" in first and "reference" in first
    # Differences -10 and -11: standard error 0.5, t of one degree of freedom 12.706.
    assert "fcos" in second and "-10.5 (-16.9 to -4.1)" in second


def test_a_list_has_no_summary(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps([record(**{"bbox/AP": 1.0})]))
    with pytest.raises(SystemExit, match="r.json: has no summary"):
        render_tables.render(f"<!-- table comparison {path} -->\n<!-- end -->\n")


def test_a_figure_has_the_versions_it_was_measured_with(request, figure):
    figure("a table", "a row", value=3)
    ((_, (table, row, values)),) = request.node.user_properties
    request.node.user_properties.clear()  # it is none of a document
    assert (table, row, values.pop("value")) == ("a table", "a row", 3)
    assert values["torch"].startswith(version("torch"))  # and the CUDA it was built with
    assert values["detectron2"].startswith("0.6") and len(values) == 2


KILLED = {"name": "a", "iterations": 9, "kills": 3, "while_writing": 1, "compared": ["x"]}


@pytest.mark.parametrize(
    "more, cells",
    [
        ({"resumed_from": [4, 5]}, "| 3, 1 of them while a checkpoint was written | 4, 5 "),
        (
            {"resumed_from": [None, 5], "while_starting": 2, "torch": "2.11", "detectron2": "0.6"},
            "| 3, 1 of them while a checkpoint was written, 2 before the first | none, 5 ",
        ),
    ],
    ids=["of before", "of today"],
)
def test_the_kills_of_a_run_are_a_row(more, cells):
    assert cells in " ".join(RELIABILITY_TABLES["interruption"]([KILLED | more]).split())
