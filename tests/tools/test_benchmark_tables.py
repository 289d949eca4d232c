"""The made-up data of the benchmarks, and the tables of their rows."""

import pytest

import bench_counting
import bench_iteration
import bench_loss
import bench_roi
import bench_rpn
import bench_targets
import render_tables
import rivals
from bench_tables import SHAPE, TARGET
from helpers.benchmarks_cases import check


def test_counting_is_measured_and_right():
    case = {"detector": "FCOS", "views": 1, "images": 5}
    found = bench_counting.measure(case, "cpu", 0)
    assert [r["method"] for r in found] == ["near an object", "every anchor"]
    assert found[0]["same"] and found[0]["foreground"] == pytest.approx(found[1]["foreground"])
    check(found, ("seconds", "ms_per_image", "ratio", "foreground"))
    assert [len(bench_counting.cases(x, False)) for x in ("cpu", "cuda")] == [5, 0]


def as_text(rows_of_case):
    return [{k: "" if v is None else str(v) for k, v in r.items()} for r in rows_of_case]


def test_tables_show_the_rows_of_every_device_and_empty_cells_where_there_was_none():
    shape = dict(zip(SHAPE, TARGET))
    cpu = {"device": "cpu", "heap": "kept", **shape, "reason": ""}
    time = {"ms_10": "19", "ms_90": "23", "ratio": "1", "floors": "2.5"}
    ours = {**cpu, "loss": "fused", "ms": "20.123", **time, "peak": "1.002"}
    focal = {**cpu, "loss": "focal", "ms": "2414.3", **time, "ratio": "12.06"}
    none = {"device": "cuda", "heap": "", **shape, "reason": "no GPU"}
    table = render_tables.TABLES["loss_time"]([ours, focal, none]).splitlines()
    assert "| ours " in table[2] and "20.1 (19 to 23)" in table[2]
    assert "| 2414 (19 to 23)" in table[3] and "| 12.1 " in table[3] and "no GPU" in table[3]
    shapes = render_tables.TABLES["loss_shapes"]([ours, focal, none]).splitlines()
    assert "12.1" in shapes[2] and "CPU, heap kept" in shapes[2]
    assert "GPU" in shapes[3] and "no GPU" in shapes[3] and "nan" not in shapes[3]
    assert "1 " in render_tables.TABLES["loss_memory"]([ours, focal, none]).splitlines()[2]


def test_a_target_is_held_against_the_worst_of_its_rows():
    loss = {**dict(zip(SHAPE, TARGET)), "device": "cpu", "heap": "kept", "loss": "focal"}
    ours = {**loss, "loss": "fused", "peak": "1.01"}
    text = bench_targets.targets(
        [{**loss, "ratio": "20.4"}, ours, {**ours, "heap": "default", "peak": "1.2"}]
    )
    cells = [[x.strip() for x in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    found = {what: (target, measured, reached) for what, target, measured, reached in cells}
    assert len(found) == len(bench_targets.TARGETS)
    assert found["loss, CPU, heap kept: focal loss over ours"] == (">= 10", "20.4", "yes")
    assert found["loss: peak memory over the logits'"] == ("<= 1.15", "1.2", "no")
    assert found["loss, GPU: ours over the floor"] == ("<= 1.5", "", "not measured")


@pytest.mark.parametrize("target", bench_targets.TARGETS, ids=lambda t: t.text)
def test_every_target_is_of_a_row_that_a_benchmark_writes(target):
    """Of a case by its values, of a row by its columns; what is compared is the benchmark's."""
    benchmarks = (bench_loss, bench_rpn, bench_roi, bench_iteration, bench_counting)
    device = target.rows.get("device", "cpu")
    known = {"device": {device}, "heap": {"kept", "default"}}
    named = {
        "loss": set(rivals.LOSSES),
        "method": {"near an object", "every anchor"},
        "variant": {*bench_rpn.CONFIGS, *bench_roi.VARIANTS, "baseline", "sampling-free"},
    }
    for module in benchmarks:
        for case in as_text(module.cases(device, False)):
            values = {**known, **named, **{k: {v} for k, v in case.items()}}
            if all(v in (values.get(k) or ()) for k, v in target.rows.items()):
                return
    pytest.fail(f"no benchmark has {target.rows}")
