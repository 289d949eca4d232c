"""The page is read back as a browser would, its figures from their axes."""

import base64
import io
import math
import re
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


class Page:
    """What a page shows: its text, tags, cells, and (caption, kind, bytes) of images by section."""

    def __init__(self, path):
        self.source = path.read_text(encoding="utf-8")
        # As XML, of which a parser takes nothing that is not closed.
        text = self.source.removeprefix("<!DOCTYPE html>")
        root = ElementTree.fromstring(re.sub(r"<((?:img|meta) [^>]*)>", r"<\1/>", text))
        self.tags = [(x.tag, x.attrib) for x in root.iter()]
        body = root.find("body")
        self.text = " ".join(" ".join(body.itertext()).split())
        self.missing = re.findall(r"Missing: (.*?)\.(?: |$)", self.text)
        self.cells = [
            " ".join((x.text or "").split()) for x in body.iter() if x.tag in ("td", "th")
        ]
        self.images = {}
        for x in body.iter():
            if x.tag == "h2":
                section = x.text
            if x.tag == "img":
                kind, _, data = x.get("src").partition(";base64,")
                entry = (x.get("alt"), kind, base64.b64decode(data, validate=True))
                self.images.setdefault(section, []).append(entry)

    def captions(self, section):
        return [caption for caption, *_ in self.images.get(section, [])]


def write(place, runs, **how):
    write_report(str(place / "new" / "page.html"), runs, **how)
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
    return {**run, **changes}


def test_the_page_needs_nothing_beside_it(whole):
    page, _ = whole
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "a", "base"}
    references = [v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href")]
    assert references and all(v.startswith("data:image/") for v in references)
    assert not re.search(r"url\(|@import|https?:", page.source.split("<body>")[0])
    assert len(page.source) < 3e6 and 'content="width=device-width' in page.source


def test_the_table_has_every_number_of_the_summary(whole):
    page, runs = whole
    head, rows = summary_table(summarize(runs))
    table = page.cells[-len(head) * (len(rows) + 1) :]
    assert table == [*head, *(cell for row in rows for cell in row)]
    ap = [r["bbox/AP"] for r in runs if r["variant"] == "ohem"]  # from the records themselves
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert f"{np.mean(ap):.1f} ± {np.std(ap, ddof=1):.1f}" in text


def test_what_was_compared_is_said(whole, tmp_path):
    cells = whole[0].cells[: whole[0].cells.index("variant")]
    facts = dict(zip(cells[::2], cells[1::2]))
    assert facts["Data set"] == "train: bccd_trainval, test: bccd_test"
    assert facts["Seeds"] == "0, 1" and facts["Test score threshold"] == "0.0005"
    assert facts["Software"] == "PyTorch 2.11.0, torchvision 0.26.0, Detectron2 0.6"
    assert f"Compared: {', '.join(VARIANTS)}." in whole[0].text
    left_out = small("sampling_free", choosing=True)
    page = write(tmp_path, [left_out, small(jobs=2), small("ohem", jobs=2, torch="2.3.0")])
    assert any(cell.startswith("differs: PyTorch 2.11.0") for cell in page.cells)
    assert "read seconds and memory with care" in page.text
    assert "nothing follows from one seed" in page.text and "sampling_free" not in page.text


def test_every_image_decodes_and_has_a_caption(whole):
    page, _ = whole
    monitored = [v for v in VARIANTS if v != "ohem"]
    losses = ["loss_cls", "loss_box_reg", "total_loss"]
    assert {section: page.captions(section) for section in page.images} == {
        "AP of each seed": ["AP of the boxes"],
        "Losses": [*losses, "guide/loss_cls_raw: before the scaling by r", "guide/r"],
        "Gradients at the outputs": monitored,
        "Gradients at the features": monitored,
        "Classification gradient over localization gradient": ["cls"],
        "Scores of foreground and background": monitored,
        "Precision and recall": ["all classes together", *CLASSES],
        "Example pictures": [f"{v}, seed 0" for v in VARIANTS],
    }
    for section, images in page.images.items():
        for _, kind, data in images:
            if section == "Example pictures":
                assert kind == "data:image/jpeg"
                assert Image.open(io.BytesIO(data)).size == (1320, 552)
            else:
                assert kind == "data:image/svg+xml"
                assert ElementTree.fromstring(data).tag == "{http://www.w3.org/2000/svg}svg"


def test_what_is_missing_is_named(whole, tmp_path):
    last = "all_samples:model.prior=0.5 (seed 1)"
    assert whole[0].missing == [
        f"AP of {last}",
        *["gradient magnitudes of ohem"] * 2,
        "ratio of ohem",
        f"score histograms of ohem; {last}",
        f"precision-recall curves of {last}",
    ]
    assert "prior=0.5, seed 1, diverged: total_loss is not finite" in whole[0].text
    assert write(tmp_path, []).missing == ["everything, as no run is done"]
    bare = {"config": "a/b.py", "seed": 3, "course": {"iteration": [], "total_loss": []}}
    bare.update(score_histograms={"loss_cls": None}, precision_recall={"all": {}, "cat": None})
    page = write(tmp_path, [bare, {"config": "c.py", "seed": 3, "failed": "not finite"}])
    assert page.images == {} and {"b", "c"} <= set(page.cells)
    what = ["AP", "losses", *["gradient magnitudes"] * 2, "ratio", "score histograms"]
    what = [f"{x} of every run" for x in [*what, "precision-recall curves"]]
    assert page.missing == [*what, "pictures of b, c"]


def test_what_cannot_be_drawn_is_left_out_and_a_name_is_no_formula(tmp_path):
    name = "&amp;$\\frac$"
    losses = {"total_loss": [0.0, 2.0], "loss_cls": [None] * 2, "loss_box_reg": [0.0, -1.0]}
    run = {**small(course={"iteration": [0, 1], **losses}), "variant": name}
    run["score_histograms"] = {"x": {"edges": [-1, 0], "foreground": [0], "background": [0]}}
    page = write(tmp_path, [run])
    assert page.captions("Losses") == ["total_loss"]
    assert page.captions("Scores of foreground and background") == [name]


def test_pictures_of_a_folder_that_has_moved_are_found(tmp_path):
    made = made_up_run("focal", 1, tmp_path / "old" / "focal_seed1")
    run = small(folder=made["folder"], pictures=made["pictures"])
    (tmp_path / "old").rename(tmp_path / "moved")
    assert "pictures of focal" in write(tmp_path, [run]).missing
    assert "Example pictures" in write(tmp_path, [run], folder=str(tmp_path / "moved")).images
    (tmp_path / "moved" / "focal_seed1" / "pictures" / "overview.png").write_bytes(b"\x89PNG torn")
    assert "pictures of focal" in write(tmp_path, [run], folder=str(tmp_path / "moved")).missing


def test_of_many_classes_those_are_drawn_that_differ_most(tmp_path):
    runs = [small("focal"), small("ohem")]
    for run, factor in zip(runs, (1, -1)):
        for i in range(40):
            run["precision_recall"][f"class {i}"] = run["precision_recall"]["all"]
            run[f"bbox/AP-class {i}"] = 40 + factor * abs(i - 20)  # most at 0, 1, ... and 39, 38
    page = write(tmp_path, runs)
    numbers = [*range(MAX_CLASSES // 2 + 1), *range(40 - MAX_CLASSES // 2 + 1, 40)]
    shown = ["all classes together", *(f"class {i}" for i in numbers)]
    assert page.captions("Precision and recall") == shown
    assert "Of 40 classes the 12 are shown" in page.text


def test_the_heads_of_an_rcnn_have_figures_of_their_own(tmp_path):
    iterations = made_up_run("focal", 0)["course"]["iteration"]
    terms = ("rpn_cls", "rpn_loc", "cls_stage0", "box_reg_stage0", "mask")
    course_of = {f"monitor/features/{term}": [1.0] * len(iterations) for term in terms}
    run = small(score_histograms=None, course={"iteration": iterations, **course_of})
    page = write(tmp_path, [run])
    for text in ("RPN: rpn_cls, rpn_loc", "Stage 0: cls_stage0, box_reg_stage0", "Head: mask"):
        assert text in page.text
    assert len(page.images["Gradients at the features"]) == 3


def test_a_course_without_gaps_and_not_too_long():
    run = {"course": {"iteration": [0, 1, 2, 3], "a": [1.0, None, math.nan, 3.0]}}
    x, y, diverged = course(run, "a")
    assert (x.tolist(), y.tolist(), diverged) == ([0, 3], [1.0, 3.0], False)
    n = 10 * MAX_POINTS
    long = {"course": {"iteration": list(range(n)), "a": [1e-3 * i + 1 for i in range(n)]}}
    x, y, _ = course(long, "a")
    assert len(x) == MAX_POINTS and y == pytest.approx(1e-3 * x + 1)


def test_precision_is_nought_where_the_recall_ends():
    run = {"precision_recall": {"all": {"recall": [0.5, 0.25], "precision": [0.4, 0.8]}}}
    curve = precision_recall(run, "all")
    assert curve.y[[0, 25, 50, 51, 100]] == pytest.approx([0.8, 0.8, 0.4, 0, 0])
    assert curve.y[30] == pytest.approx(0.8 - 0.4 * 0.05 / 0.25)


def test_a_histogram_is_the_mean_of_runs_with_the_same_edges():
    def run(*counts, edges=(-2, -1, 0)):
        part = {"edges": list(edges), "foreground": list(counts), "background": [9, 0]}
        return {"score_histograms": {"loss_cls": part}}

    found = histogram([run(1, 2), {}, run(3, 6), run(100, 100, edges=(-4, -2, 0))], "loss_cls")
    assert found["foreground"].tolist() == [2, 4] and found["background"].tolist() == [9, 0]
    axes = figures.score_histogram(found, "#0072B2", (0.5, 1e4)).axes[0]
    background, foreground = (patch.get_data() for patch in axes.patches)
    assert foreground.values.tolist() == [2, 4] and background.values.tolist() == [9, 0]
    assert foreground.edges == pytest.approx([0.01, 0.1, 1])


def test_a_figure_of_courses_shows_each_seed_the_mean_and_where_a_run_diverged():
    a, b = (Curve(np.array(x), np.array(y)) for x, y in (([0, 9], [1, 4]), ([9, 20], [8, 7])))
    gone = Curve(np.array([0]), np.array([700]), True)
    lines = [figures.Line([a, b, gone], "#0072B2"), figures.Line([a], "#D55E00", "--")]
    axes = figures.courses(lines, "loss", (0.1, 100)).axes[0]
    assert axes.get_yscale() == "log" and axes.get_ylim() == (0.1, 100)
    drawn = [(x.get_color(), x.get_ydata().tolist(), x.get_marker()) for x in axes.lines]
    blue = [y for color, y, _ in drawn if color == "#0072B2"]
    assert blue == [[1, 4], [8, 7], [700], [1, 6, 7], [100]]
    assert [marker for _, y, marker in drawn if y == [100]] == ["x"]
    assert [y for color, y, _ in drawn if color == "#D55E00"] == [[1, 4]]
    assert figures.limits(lines) == pytest.approx((1 / 1.3, 8 * 1.3))
    assert mean([gone]).y.tolist() == [700], "where there are no others"


def test_a_figure_of_scores_has_a_dot_for_each_seed():
    rows = [("a", "#0072B2", [40.0, 42.0], [39.0]), ("b", "#D55E00", [], [])]
    axes = figures.scores_of_seeds(rows).axes[0]
    assert [t.get_text() for t in axes.texts] == ["a", "b: no result"]
    dots = {m: x.get_xdata() for x in axes.lines if len(x.get_xdata()) and (m := x.get_marker())}
    assert (list(dots["o"]), list(dots["D"]), list(dots["None"])) == ([40, 42], [39], [41, 41])
