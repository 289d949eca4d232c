"""The course of a training run in one picture: raw classification loss, box loss and r."""

import json
import os

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ..utils.errors import BadInput

# How the keys of Detectron2's metrics.json end or begin; several detectors have several of a kind
# (an RPN and a RoI head, cascade stages), a detector without the guide has no raw loss and no r.
RAW_LOSS, RATIO = "loss_cls_raw", "r"
BOX_LOSS = ("loss_box_reg", "loss_rpn_loc", "loss_fcos_loc")
PLAIN_LOSS = ("loss_cls", "loss_rpn_cls", "loss_fcos_cls")


def read_metrics(metrics_json: str):
    """Read the JSON lines that Detectron2 writes while training.

    A line that is torn is skipped. Where a resumed or repeated run starts again at an earlier
    iteration, what the run before wrote from there on is dropped.

    Args:
        metrics_json: path of metrics.json.

    Returns:
        dict[int, dict[str, float]]: iteration -> values, in order of the iterations.

    Raises:
        BadInput: the file is absent or holds no values.
    """
    metrics = {}
    try:
        with open(metrics_json, errors="replace") as f:
            lines = f.readlines()
    except OSError as e:
        raise BadInput(
            f"{os.fspath(metrics_json)}: cannot be read ({e.strerror}); train first"
        ) from e
    for line in lines:
        try:
            values = json.loads(line)
            iteration = int(values.pop("iteration"))
        except (ValueError, KeyError, AttributeError, TypeError):
            continue
        # Only training lines: an evaluation alone may note its result at any iteration.
        if "total_loss" in values and metrics and iteration <= max(metrics):
            metrics = {i: v for i, v in metrics.items() if i < iteration}
        metrics.setdefault(iteration, {}).update(values)
    if not metrics:
        raise BadInput(f"{os.fspath(metrics_json)}: holds no values yet; train first")
    return dict(sorted(metrics.items()))


def plot_training(metrics_json: str, output_png: str):
    """Plot the losses and, below them, r; both on logarithmic axes.

    The raw classification loss (before the scaling by r) and the box loss are drawn; without the
    guide the classification loss as it is, and no lower panel.

    Args:
        metrics_json: path of Detectron2's metrics.json.
        output_png: written; the folder is made.

    Raises:
        BadInput: as in :func:`read_metrics`, or there is no loss in the file.
    """
    metrics = read_metrics(metrics_json)
    keys = sorted({key for values in metrics.values() for key in values})
    raw = [k for k in keys if k.endswith(RAW_LOSS)]
    plain = [] if raw else [k for k in keys if k.startswith(PLAIN_LOSS)]
    box = [k for k in keys if k.startswith(BOX_LOSS)]
    ratios = [k for k in keys if "guide" in k.split("/") and k.split("/")[-1] == RATIO]
    if not raw + plain + box:
        raise BadInput(
            f"{os.fspath(metrics_json)}: holds no classification or box loss (keys: "
            f"{', '.join(keys)}); give the metrics.json of a training run"
        )
    named = [(k, "raw classification loss") for k in raw]
    named += [(k, "classification loss") for k in plain] + [(k, "box loss") for k in box]
    panels = [("loss", named)] + ([("r", [(k, "r") for k in ratios])] if ratios else [])

    figure = Figure(figsize=(7, 3.4 if len(panels) == 1 else 5.4), dpi=120, layout="constrained")
    rows = figure.subplots(
        len(panels), 1, sharex=True, squeeze=False, height_ratios=[3, 2][: len(panels)]
    )
    for axes, (label, curves) in zip(rows[:, 0], panels):
        for n, (key, name) in enumerate(curves):
            points = [(i, v[key]) for i, v in metrics.items() if v.get(key) is not None]
            same = sum(name == other for _, other in curves)
            text = name if same == 1 else f"{name} ({key.replace('guide/', '')})"
            color = f"C{n if label == 'loss' else n + len(named)}"
            axes.plot(*zip(*points), color=color, label=text, lw=1.5)
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 5 * low else range(1, 10)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel(label)
        axes.grid(True, which="major", alpha=0.4)
        axes.grid(True, which="minor", alpha=0.12)
        axes.legend(frameon=False)
    rows[-1, 0].set_xlabel("iteration")
    os.makedirs(os.path.dirname(os.path.abspath(output_png)), exist_ok=True)
    figure.savefig(output_png)
