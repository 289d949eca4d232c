"""What is drawn is read back from the axes."""

import json

import pytest
from matplotlib.figure import Figure

from sampling_free.engine.training_plot import plot_training, read_metrics
from sampling_free.utils.errors import BadInput


def line(iteration, **values):
    return json.dumps({"iteration": iteration, **values}) + "\n"


@pytest.fixture
def drawn(monkeypatch):
    """The figure that was saved last, as {y label: {legend: [(x, y), ...]}}."""
    panels = {}
    save = Figure.savefig

    def keep(figure, *args, **kwargs):
        panels.clear()
        for axes in figure.axes:
            curves = {c.get_label(): list(zip(*c.get_data())) for c in axes.lines}
            panels[axes.get_ylabel()] = curves
            assert axes.get_yscale() == "log"
            shown = [t.get_text() for t in axes.get_legend().get_texts()]
            assert shown == list(curves)
        assert figure.axes[-1].get_xlabel() == "iteration"
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return panels


def test_guided_run(tmp_path, drawn):
    rows = [
        {"loss_cls": 0.5, "loss_box_reg": 0.5, "guide/loss_cls_raw": 4.0, "guide/r": 0.125},
        {"loss_cls": 0.4, "loss_box_reg": 0.4, "guide/loss_cls_raw": 0.8, "guide/r": 0.5},
    ]
    text = "".join(line(20 * i + 19, total_loss=1, **row) for i, row in enumerate(rows))
    (tmp_path / "metrics.json").write_text(text + line(39, **{"bbox/AP50": 7}))
    plot_training(tmp_path / "metrics.json", tmp_path / "new" / "plot.png")
    assert drawn == {
        "loss": {
            "raw classification loss": [(19, 4.0), (39, 0.8)],
            "box loss": [(19, 0.5), (39, 0.4)],
        },
        "r": {"r": [(19, 0.125), (39, 0.5)]},
    }
    assert (tmp_path / "new" / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_baseline_without_a_guide_has_one_panel(tmp_path, drawn):
    (tmp_path / "m").write_text(line(0, loss_cls=1.0, loss_box_reg=0.5, total_loss=1.5))
    plot_training(tmp_path / "m", tmp_path / "p.png")
    assert drawn == {"loss": {"classification loss": [(0, 1.0)], "box loss": [(0, 0.5)]}}


def test_a_cascade_has_a_curve_for_each_stage(tmp_path, drawn):
    stages = {f"stage{k}/guide/roi/r": 0.5 + k for k in range(3)}
    stages |= {f"stage{k}/guide/roi/loss_cls_raw": 5.0 + k for k in range(3)}
    stages |= {f"loss_box_reg_stage{k}": 0.2 + k for k in range(3)}
    stages |= {f"loss_cls_stage{k}": 0.4 + 2 * k for k in range(3)}  # twice the box loss: not drawn
    rpn = {"guide/rpn/r": 0.125, "guide/rpn/loss_cls_raw": 3.0, "loss_rpn_loc": 0.1}
    counts = {"guide/rpn/empty_batches": 0, "stage0/guide/roi/empty_batches": 0, "loss_mask": 0.7}
    (tmp_path / "m").write_text(line(0, total_loss=9, loss_rpn_cls=0.1, **stages, **rpn, **counts))
    plot_training(tmp_path / "m", tmp_path / "p.png")
    raw, box = "raw classification loss", "box loss"
    assert drawn == {
        "loss": {
            f"{raw} (rpn/loss_cls_raw)": [(0, 3.0)],
            **{f"{raw} (stage{k}/roi/loss_cls_raw)": [(0, 5.0 + k)] for k in range(3)},
            **{f"{box} (loss_box_reg_stage{k})": [(0, 0.2 + k)] for k in range(3)},
            f"{box} (loss_rpn_loc)": [(0, 0.1)],
        },
        "r": {
            "r (rpn/r)": [(0, 0.125)],
            **{f"r (stage{k}/roi/r)": [(0, 0.5 + k)] for k in range(3)},
        },
    }


def test_torn_lines_are_skipped(tmp_path):
    text = (
        line(0, total_loss=3.0) + '{"iterati' + line(19, total_loss=2.0) + line(39, total_loss=1.0)
    )
    (tmp_path / "m").write_text(text + '3\n[]\n{"lr": 1}\n{"iteration": 59, "total_lo')
    assert read_metrics(tmp_path / "m") == {0: {"total_loss": 3.0}, 39: {"total_loss": 1.0}}


def test_of_repeated_iterations_the_last_run_wins(tmp_path):
    first = "".join(line(i, total_loss=1.0) for i in (10, 20, 30, 40))
    # Resumed at 15 and writing less often: 20 and 40 of the run before are no part of it.
    (tmp_path / "m").write_text(first + line(15, total_loss=2.0) + line(30, total_loss=2.0))
    losses = {i: v["total_loss"] for i, v in read_metrics(tmp_path / "m").items()}
    assert losses == {10: 1.0, 15: 2.0, 30: 2.0}


@pytest.mark.parametrize("text", [None, "", "torn", '{"iteration": 3, "lr": 0.1}\n'])
def test_nothing_to_draw_is_named(tmp_path, text):
    path = tmp_path / "metrics.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadInput, match=r"metrics\.json: "):
        plot_training(path, tmp_path / "p.png")
    assert not (tmp_path / "p.png").exists()
