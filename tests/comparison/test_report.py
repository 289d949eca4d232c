"""The page is read back as a browser would, its figures from their axes."""

import base64
import io
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from helpers.made_up_runs import CLASSES, VARIANTS, comparison, made_up_run
from sampling_free.comparison import report_figures as figures
from sampling_free.comparison.report import (
    MAX_CLASSES,
    MAX_POINTS,
    course,
    histogram,
    precision_recall,
    write_report,
)
from sampling_free.comparison.report_figures import Curve, mean
from sampling_free.comparison.summary import summarize
from sampling_free.comparison.table import summary_table


class Page(HTMLParser):
    """What a page shows.

    Attributes:
        text (str): all of it, white space as single blanks.
        tags (list): of (name, attributes).
        images (dict): by the heading of their section, (caption, kind, bytes).
        cells (list[str]): of the tables.
    """

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags, self.images, self.cells, self._texts, self._inside = [], {}, [], [], []
        self.feed(self.source)
        self.close()
        assert self._inside == [], "every tag is closed"
        self.text = " ".join(" ".join(self._texts).split())
        self.cells = [" ".join(cell.split()) for cell in self.cells]

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag in ("meta", "img"):
            if tag == "img":
                kind, _, data = attrs["src"].partition(";base64,")
                entry = (attrs["alt"], kind, base64.b64decode(data, validate=True))
                self.images.setdefault(self._section, []).append(entry)
            return
        self._inside.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._inside.pop() == tag

    def handle_data(self, data):
        if "style" in self._inside:
            return
        self._texts.append(data)
        if self._inside and self._inside[-1] in ("td", "th"):
            self.cells[-1] += data
        if self._inside and self._inside[-1] == "h2":
            self._section = data

    def missing(self):
        return re.findall(r"Missing: (.*?)\.(?: |$)", self.text)


def write(place, runs, **how):
    write_report(str(place / "new" / "page.html"), runs, **how)
    assert [p.name for p in (place / "new").iterdir()] == ["page.html"]
    return Page(place / "new" / "page.html")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The page of four variants with two seeds, and the records."""
    folder = tmp_path_factory.mktemp("whole")
    runs = comparison(folder / "runs")
    return write(folder, runs), runs


def small(variant="focal", seed=0, **changes):
    """A record with few curves, for a page that is written fast."""
    run = made_up_run(variant, seed)
    keep = ("iteration", "total_loss", "monitor/outputs/cls")
    run["course"] = {key: run["course"][key] for key in keep}
    run["precision_recall"] = {"all": run["precision_recall"]["all"]}
    run.update(changes)
    return run


def test_the_page_needs_nothing_beside_it(whole):
    page, _ = whole
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "a", "base"}
    references = [v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href")]
    assert references and all(v.startswith("data:image/") for v in references)
    assert not re.search(r"url\(|@import|https?:", page.source.split("<body>")[0])
    assert not any(k.startswith("on") for _, attrs in page.tags for k in attrs)
    assert len(page.source) < 3e6
    widths = [attrs for tag, attrs in page.tags if tag == "meta"]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in widths


def test_the_table_has_every_number_of_the_summary(whole):
    page, runs = whole
    head, rows = summary_table(summarize(runs))
    table = page.cells[-len(head) * (len(rows) + 1) :]
    assert table == [*head, *(cell for row in rows for cell in row)]
    # Apart from the summary: from the records.
    ap = {v: [r["bbox/AP"] for r in runs if r["variant"] == v] for v in ("sampling_free", "ohem")}
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    for values in ap.values():
        assert f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" in text
    assert f"{np.mean(ap['ohem']) - np.mean(ap['sampling_free']):+.1f} (" in text
    assert "2, diverged (1 of 2)" in page.cells
    assert "ohem, threshold 0.05" in page.cells


def test_what_was_compared_is_said(whole):
    page, _ = whole
    facts = page.cells[: page.cells.index("variant")]
    facts = dict(zip(facts[::2], facts[1::2]))
    assert facts["Config"] == "configs/bccd/retinanet_R_18_FPN.py"
    assert facts["Data set"] == "train: bccd_trainval, test: bccd_test"
    assert facts["Seeds"] == "0, 1" and facts["Iterations"] == "400"
    assert facts["Test score threshold"] == "0.0005"
    assert facts["Software"] == "PyTorch 2.11.0, torchvision 0.26.0, Detectron2 0.6"
    assert f"Compared: {', '.join(VARIANTS)}." in page.text


def test_every_image_decodes_and_has_a_caption(whole):
    page, _ = whole
    captions = {title: [c for c, *_ in images] for title, images in page.images.items()}
    monitored = [v for v in VARIANTS if v != "ohem"]
    losses = ["loss_cls", "loss_box_reg", "total_loss"]
    assert captions == {
        "AP of each seed": ["AP of the boxes"],
        "Losses": [*losses, "guide/loss_cls_raw: before the scaling by r", "guide/r"],
        "Gradients at the outputs": monitored,
        "Gradients at the features": monitored,
        "Classification gradient over localization gradient": ["cls"],
        "Scores of foreground and background": monitored,
        "Precision and recall": ["all classes together", *CLASSES],
        "Example pictures": [f"{v}, seed 0" for v in VARIANTS],
    }
    for title, images in page.images.items():
        for _, kind, data in images:
            if title == "Example pictures":
                assert kind == "data:image/jpeg"
                assert Image.open(io.BytesIO(data)).convert("RGB").size == (1320, 552)
            else:
                assert kind == "data:image/svg+xml"
                assert ElementTree.fromstring(data).tag == "{http://www.w3.org/2000/svg}svg"


def test_what_is_missing_is_named(whole):
    page, _ = whole
    last = "all_samples:model.prior=0.5 (seed 1)"
    assert page.missing() == [
        f"AP of {last}",
        "gradient magnitudes of ohem",
        "gradient magnitudes of ohem",
        "ratio of ohem",
        f"score histograms of ohem; {last}",
        f"precision-recall curves of {last}",
    ]
    assert "prior=0.5, seed 1, diverged: total_loss is not finite at iteration 199" in page.text


@pytest.mark.parametrize(
    "key, what",
    [
        ("course", "losses"),
        ("score_histograms", "score histograms"),
        ("precision_recall", "precision-recall curves"),
        ("bbox/AP", "AP"),
    ],
)
@pytest.mark.parametrize("value", [None, "absent"])
def test_a_page_of_runs_that_lack_something(tmp_path, key, what, value):
    runs = [small(seed=0), small(seed=1)]
    for run in runs:
        run[key] = value
        if value == "absent":
            del run[key]
    assert f"{what} of every run" in write(tmp_path, runs).missing()


def test_a_page_of_nothing_and_of_hardly_anything(tmp_path):
    page = write(tmp_path, [])
    assert page.missing() == ["everything, as no run is done"] and page.images == {}
    bare = {"config": "a/b.py", "seed": 3, "course": {"iteration": [], "total_loss": []}}
    bare.update(score_histograms={"loss_cls": None}, precision_recall={"all": {}, "cat": None})
    page = write(tmp_path, [bare, {"config": "c.py", "seed": 3, "failed": "not finite"}])
    assert page.images == {} and {"b", "c"} <= set(page.cells)
    what = ["AP", "losses", *["gradient magnitudes"] * 2, "ratio", "score histograms"]
    what = [f"{x} of every run" for x in [*what, "precision-recall curves"]]
    assert page.missing() == [*what, "pictures of b, c"]


def test_numbers_that_cannot_be_drawn_are_left_out(tmp_path):
    losses = {"total_loss": [0.0, 2.0], "loss_cls": [None] * 2, "loss_box_reg": [0.0, -1.0]}
    run = small(course={"iteration": [0, 1], **losses})
    run["score_histograms"] = {"x": {"edges": [-1, 0], "foreground": [0], "background": [0]}}
    page = write(tmp_path, [run])
    assert [c for c, *_ in page.images["Losses"]] == ["total_loss"]
    assert [c for c, *_ in page.images["Scores of foreground and background"]] == ["focal"]


def test_names_are_escaped_and_are_no_formula(tmp_path):
    bad = '<img src=x onerror="y">&amp;$\\frac$'
    run = small(variant="focal", seed=0)
    run.update(variant=bad, config=f"configs/{bad}.py", failed=f"error: {bad}")
    run["precision_recall"] = {"all": run["precision_recall"]["all"], bad: {}}
    run["precision_recall"][bad] = run["precision_recall"]["all"]
    run["course"][f"loss_{bad}"] = run["course"]["total_loss"]
    run["course"][f"monitor/outputs/cls_{bad}"] = run["course"]["total_loss"]
    run[f"bbox/AP-{bad}"] = 3.0
    page = write(tmp_path, [run])
    assert bad in page.cells and f"AP {bad}" in page.cells
    assert bad in [c for c, *_ in page.images["Precision and recall"]]
    assert all(attrs["src"].startswith("data:") for tag, attrs in page.tags if tag == "img")


def test_one_seed_is_no_conclusion(tmp_path, whole):
    one = "nothing follows from one seed"
    assert one in write(tmp_path, [small("focal"), small("ohem")]).text
    assert one not in whole[0].text
    page = write(tmp_path, [small("focal"), small("focal", 1), small("ohem")])
    assert "Nothing follows for a variant with one seed." in page.text


def test_settings_that_differ_and_runs_side_by_side_are_said(tmp_path):
    page = write(tmp_path, [small(jobs=2), small("ohem", jobs=2, torch="2.3.0")])
    assert any(cell.startswith("differs: PyTorch 2.11.0") for cell in page.cells)
    assert "read seconds and memory with care" in page.text


def test_runs_that_only_chose_a_rate_are_left_out(tmp_path):
    page = write(tmp_path, [small("ohem", choosing=True), small("focal")])
    assert "ohem" not in page.text and "focal" in page.cells


def test_pictures_of_a_folder_that_has_moved_are_found(tmp_path):
    run = made_up_run("focal", 1, tmp_path / "old" / "focal_seed1")
    run = small(folder=run["folder"], pictures=run["pictures"])
    (tmp_path / "old").rename(tmp_path / "moved")
    page = write(tmp_path, [run])
    assert page.missing() == ["gradient magnitudes of every run", "ratio of every run",
                              "pictures of focal"]  # fmt: skip
    assert "Example pictures" in write(tmp_path, [run], folder=str(tmp_path / "moved")).images
    (tmp_path / "moved" / "focal_seed1" / "pictures" / "overview.png").write_bytes(b"\x89PNG torn")
    torn = write(tmp_path, [run], folder=str(tmp_path / "moved"))
    assert "pictures of focal" in torn.missing()


def test_of_many_classes_those_are_drawn_that_differ_most(tmp_path):
    runs = [small("focal"), small("ohem")]
    for run, factor in zip(runs, (1, -1)):
        for i in range(80):
            run["precision_recall"][f"class {i}"] = run["precision_recall"]["all"]
            run[f"bbox/AP-class {i}"] = 40 + factor * abs(i - 40)  # most at 0, 1, ... and 79, 78
    page = write(tmp_path, runs)
    numbers = [*range(0, MAX_CLASSES // 2 + 1), *range(80 - MAX_CLASSES // 2 + 1, 80)]
    shown = [c for c, *_ in page.images["Precision and recall"]]
    assert shown == ["all classes together", *(f"class {i}" for i in numbers)]
    assert "Of 80 classes the 12 are shown" in page.text


def test_the_heads_of_an_rcnn_have_figures_of_their_own(tmp_path):
    run = small(score_histograms=None, precision_recall=None)
    terms = ("rpn_cls", "rpn_loc", "cls_stage0", "box_reg_stage0", "mask")
    values = [1.0] * len(run["course"]["iteration"])
    run["course"] = {"iteration": run["course"]["iteration"]}
    run["course"].update({f"monitor/features/{term}": values for term in terms})
    page = write(tmp_path, [run])
    for heading in (
        "RPN: rpn_cls, rpn_loc",
        "Stage 0: cls_stage0, box_reg_stage0",
        "Head: mask",
    ):
        assert heading in page.text
    assert len(page.images["Gradients at the features"]) == 3


def test_a_course_without_gaps_and_not_too_long():
    run = {"course": {"iteration": [0, 1, 2, 3], "a": [1.0, None, math.nan, 3.0]}}
    x, y, diverged = course(run, "a")
    assert (x.tolist(), y.tolist(), diverged) == ([0, 3], [1.0, 3.0], False)
    assert course(run, "b") is None and course({}, "a") is None
    n = 10 * MAX_POINTS
    long = {"course": {"iteration": list(range(n)), "a": [1e-3 * i + 1 for i in range(n)]}}
    x, y, _ = course({**long, "failed": "x"}, "a")
    assert len(x) == MAX_POINTS and x[0] == 4.5 and x[-1] == n - 5.5
    assert y == pytest.approx(1e-3 * x + 1)


def test_the_mean_of_seeds_is_taken_where_they_are_and_without_diverged_ones():
    def curve(x, y, *diverged):
        return Curve(np.array(x, float), np.array(y, float), *diverged)

    a, b = curve([0, 1, 2], [1, 2, 3]), curve([1, 2, 5], [4, 5, 7])
    bad = curve([0, 1], [50, 1e9], True)
    x, y, _ = mean([a, b, bad])
    assert (x.tolist(), y.tolist()) == ([0, 1, 2, 5], [1, 3, 4, 7])
    assert mean([bad]).y.tolist() == [50, 1e9]


def test_precision_is_nought_where_the_recall_ends():
    run = {"precision_recall": {"all": {"recall": [0.5, 0.25], "precision": [0.4, 0.8]}}}
    curve = precision_recall(run, "all")
    assert curve.y[[0, 25, 50, 51, 100]] == pytest.approx([0.8, 0.8, 0.4, 0, 0])
    assert curve.y[30] == pytest.approx(0.8 - 0.4 * 0.05 / 0.25)
    assert precision_recall(run, "cat") is None


def test_a_histogram_is_the_mean_of_runs_with_the_same_edges():
    def run(*counts, edges=(-2, -1, 0)):
        part = {"edges": list(edges), "foreground": list(counts), "background": [9, 0]}
        return {"score_histograms": {"loss_cls": part}}

    found = histogram([run(1, 2), {}, run(3, 6), run(100, 100, edges=(-4, -2, 0))], "loss_cls")
    assert found["foreground"].tolist() == [2, 4] and found["background"].tolist() == [9, 0]
    assert histogram([run(1, 2), {}], "loss_rpn_cls") is None


def test_a_figure_of_courses_shows_each_seed_the_mean_and_where_a_run_diverged():
    x = np.array([0.0, 10.0])
    seeds = [Curve(x, np.array([1.0, 4.0])), Curve(x, np.array([3.0, 8.0]))]
    gone = Curve(x[:1], np.array([700.0]), True)
    lines = [figures.Line([*seeds, gone], "#0072B2"), figures.Line(seeds[:1], "#D55E00", "--")]
    axes = figures.courses(lines, "loss", (0.1, 100)).axes[0]
    assert axes.get_yscale() == "log" and axes.get_ylim() == (0.1, 100)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("iteration", "loss")
    drawn = [(a.get_color(), a.get_ydata().tolist(), a.get_marker()) for a in axes.lines]
    blue = [y for color, y, _ in drawn if color == "#0072B2"]
    assert blue == [[1, 4], [3, 8], [700], [2, 6], [100]]
    assert [m for _, y, m in drawn if y == [100]] == ["x"]
    assert [y for color, y, _ in drawn if color == "#D55E00"] == [[1, 4]]
    assert [a.get_linestyle() for a in axes.lines if a.get_color() == "#D55E00"] == ["--"]
    assert figures.limits(lines) == pytest.approx((1 / 1.3, 8 * 1.3))
    assert figures.limits([figures.Line([gone], "k")]) == pytest.approx((700 / 1.3, 700 * 1.3))


def test_a_figure_of_scores_has_a_dot_for_each_seed():
    rows = [("a $x$", "#0072B2", [40.0, 42.0], [39.0]), ("b", "#D55E00", [], [])]
    axes = figures.scores_of_seeds(rows).axes[0]
    assert [t.get_text() for t in axes.texts] == ["a $x$", "b: no result"]
    dots = {m: x.get_xdata() for x in axes.lines if len(x.get_xdata()) and (m := x.get_marker())}
    assert (list(dots["o"]), list(dots["D"]), list(dots["None"])) == ([40, 42], [39], [41, 41])


def test_a_figure_of_a_histogram_has_the_counts_over_the_scores():
    counts = {"foreground": np.array([1.0, 20.0]), "background": np.array([5000.0, 3.0])}
    axes = figures.score_histogram(
        {"edges": np.array([-2, -1, 0]), **counts}, "#0072B2", (0.5, 1e4)
    )
    axes = axes.axes[0]
    background, foreground = (patch.get_data() for patch in axes.patches)
    assert foreground.values.tolist() == [1, 20] and background.values.tolist() == [5000, 3]
    assert foreground.edges == pytest.approx([0.01, 0.1, 1])
    assert axes.get_xscale() == axes.get_yscale() == "log" and axes.get_ylim() == (0.5, 1e4)


def test_each_variant_looks_different():
    looks = [figures.color_of(n) for n in range(28)]
    assert len(set(looks)) == 28
    assert len({color for color, _ in looks[:7]}) == 7 and {d for _, d in looks[:7]} == {"-"}
