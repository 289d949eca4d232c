"""What is drawn is read back from the axes."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from sampling_free.evaluation.best_threshold import pick_threshold
from sampling_free.evaluation.matching import Matches
from sampling_free.evaluation.precision_recall_plot import NUM_NAMED, plot_precision_recall


def of_quality(num_objects, share=0.5):
    """2 G detections of G objects; one in two is correct, the better ones first."""
    rng = np.random.default_rng(num_objects)
    scores = np.sort(rng.random(2 * num_objects))[::-1].round(3)
    is_correct = rng.random(2 * num_objects) < 2 * share * np.linspace(1, 0, 2 * num_objects)
    return Matches(scores, is_correct, num_objects)


def drawn(by_class, folder, precision=None):
    """The legend as (color, text), all lines as (color, x, y) and the label, of a picture."""
    kept, save = [], Figure.savefig
    picked = pick_threshold(by_class, 0.5, precision)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda f, *a, **k: (kept.append(f), save(f, *a, **k)))
        plot_precision_recall(by_class, picked, folder / "plot.png")
    axes = kept[0].axes[0]
    handles, texts = axes.get_legend().get_lines(), axes.get_legend().get_texts()
    legend = [(h.get_color(), t.get_text()) for h, t in zip(handles, texts)]
    lines = [(x.get_color(), list(x.get_xdata()), list(x.get_ydata())) for x in axes.lines]
    return legend, lines, [t.get_text() for t in axes.texts], picked


def test_a_picture_of_few_classes_names_them_and_marks_every_point(tmp_path):
    by_class = {"cat": of_quality(30), "dog": of_quality(9), "price in $": of_quality(4)}
    legend, lines, (label,), picked = drawn(by_class, tmp_path)
    rows = picked.per_class
    assert [text for _, text in legend] == [
        f"all classes: {picked.threshold:.4f}",
        f"cat: {rows['cat']['threshold']:.4f}",
        f"dog: {rows['dog']['threshold']:.4f}",
        rf"price in \$: {rows['price in $']['threshold']:.4f}",
    ]
    assert label.split() == [
        *("threshold", f"{picked.threshold:.4f}"),
        *("precision", f"{picked.precision:.3f}"),
        *("recall", f"{picked.recall:.3f}"),
    ]
    for (color, _), row in zip(legend, [vars(picked), *rows.values()]):
        assert (color, [row["recall"]], [row["precision"]]) in lines
    scores, is_correct, num_objects = by_class["dog"]
    cuts = sorted(set(scores), reverse=True)
    shown = [is_correct[scores >= t] for t in cuts]
    dog = (legend[2][0], [c.sum() / num_objects for c in shown], [c.mean() for c in shown])
    assert any(x[0] == dog[0] and x[1:] == (pytest.approx(dog[1]), pytest.approx(dog[2]))
               for x in lines if len(x[1]) == len(cuts))  # fmt: skip


def test_of_many_classes_those_with_most_objects_are_named(tmp_path):
    # Most objects: class 47 and those around it.
    by_class = {f"class {i}": of_quality(100 - abs(i - 47)) for i in range(80)}
    by_class["absent"] = Matches(np.array([0.5]), np.zeros(1, bool), 0)
    by_class["unseen"] = Matches(np.zeros(0), np.zeros(0, bool), 4)
    legend, lines, _, _ = drawn(by_class, tmp_path)
    texts = [text for _, text in legend]
    assert len(texts) == 1 + NUM_NAMED + 2
    named = [int(text.split(":")[0].split()[1]) for text in texts[1 : 1 + NUM_NAMED]]
    assert named == list(range(41, 53))
    assert texts[-2:] == ["68 classes with fewer objects", "no object or no detection: 2 classes"]
    curves = [color for color, x, _ in lines if len(x) > 1]
    assert len(curves) == 81
    assert curves.count(legend[-2][0]) == 68


def test_a_picture_without_a_curve_or_a_point_is_drawn(tmp_path):
    nothing = Matches(np.zeros(0), np.zeros(0, bool), 0)
    legend, lines, (text,), _ = drawn({"a": nothing, "b": nothing}, tmp_path)
    assert "no curve" in text and len(legend) == 1 and not any(x for _, x, _ in lines)
    wrong = Matches(np.array([0.9, 0.8]), np.array([False, True]), 2)
    legend, lines, texts, _ = drawn({"a": wrong}, tmp_path, precision=0.75)
    assert [t for _, t in legend] == ["all classes: none", "a: none", "wanted precision 0.75"]
    assert texts == [] and not any(len(x) == 1 for _, x, _ in lines)
    perfect = Matches(np.array([0.9]), np.array([True]), 1)
    legend, lines, _, _ = drawn({"only": perfect}, tmp_path, precision=1.0)
    assert ("C0", [1.0], [1.0]) in lines
