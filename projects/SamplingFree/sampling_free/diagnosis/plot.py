"""The picture of ``tools/check_imbalance.py``: counts, start loss and gradients in four panels."""

import os

from matplotlib.figure import Figure

from .gradients import PARTS

MOST_CLASSES = 20
FOREGROUND, BACKGROUND, OTHER = "#D55E00", "#0072B2", "#999999"  # color-blind safe


def plot_imbalance(found, output_png: str):
    """Draws what was found.

    Args:
        found (Imbalance):
        output_png: written; the folder is made.
    """
    figure = Figure(figsize=(12, 8), dpi=110, layout="constrained")
    (levels, classes), (losses, gradients) = figure.subplots(2, 2)
    _levels(levels, found.estimate)
    _classes(classes, found)
    _losses(losses, found)
    _gradients(gradients, found.measurement)
    figure.suptitle(f"{found.config}: imbalance before training", fontsize=11)
    os.makedirs(os.path.dirname(os.path.abspath(output_png)), exist_ok=True)
    figure.savefig(output_png)


def _levels(axes, estimate):
    names = [str(x["stride"]) for x in estimate.per_level]
    for offset, key, color in ((-0.2, "valid", BACKGROUND), (0.2, "foreground", FOREGROUND)):
        places = [i + offset for i in range(len(names))]
        label = "valid anchors (N)" if key == "valid" else "foreground (N_f)"
        values = [x[key] for x in estimate.per_level]
        axes.bar(places, values, 0.4, color=color, label=label)
    axes.set_xticks(range(len(names)), names)
    axes.set_yscale("log")
    axes.margins(y=0.25)
    axes.set_xlabel("stride of the level [px]")
    axes.set_title(
        f"anchors of {estimate.num_images} images: N / N_f = "
        f"{estimate.num_valid / estimate.num_foreground:,.0f}",
        fontsize=10,
    )
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper right")


def _classes(axes, found):
    estimate = found.estimate
    counts = sorted(found.classes.items(), key=lambda x: x[1], reverse=True)
    shown = counts
    if len(counts) > MOST_CLASSES:
        half = MOST_CLASSES // 2
        shown = counts[:half] + [("...", 0.0)] + counts[-half:]
    names = [_short(name) for name, _ in shown]
    axes.barh(range(len(shown)), [n for _, n in shown], color=FOREGROUND)
    axes.set_yticks(range(len(shown)), names, fontsize=8 if len(shown) < 12 else 7)
    axes.set_ylim(max(len(shown), 4) - 0.5, -0.5)
    if min(n for _, n in counts) * 20 < counts[0][1]:
        axes.set_xscale("symlog", linthresh=1)
    what = "objects" if found.classes is found.objects else "foreground anchors"
    title = f"{what} by class ({len(counts)})"
    if estimate.num_unreached:
        title += f"; {estimate.num_unreached:.3g} of {estimate.num_objects:.6g} objects unreached"
    axes.set_title(title, fontsize=10)


def _losses(axes, found):
    rows = []
    for head in found.measurement.heads:
        least, note = found.least_loss(head), ""
        if least and head.cross_entropy:
            note = f"\n cross entropy\n {head.cross_entropy:.3g} per fg\n least {least:.3g}"
        rows.append((head.cls_name, [head.loss_parts[p] for p in PARTS], note))
        rows += [(x, [found.measurement.losses[x]], "") for x in head.loc_names]
    for place, (_, parts, note) in enumerate(rows):
        left = 0.0
        for part, color in zip(parts, (FOREGROUND, BACKGROUND) if len(parts) > 1 else (OTHER,)):
            axes.barh(place, part, left=left, color=color)
            left += part
        axes.text(left, place, f" {left:.3g}{note}", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_xlim(left=0)
    axes.set_title("start loss by term", fontsize=10)
    for label, color in (
        ("foreground", FOREGROUND),
        ("background", BACKGROUND),
        ("localization", OTHER),
    ):
        axes.barh(0, 0, color=color, label=label)
    axes.legend(frameon=False, fontsize=8)


def _gradients(axes, measurement):
    rows = []
    for head in measurement.heads:
        cls = head.cls_name
        names = [(f"{cls}/{p}", c) for p, c in zip(PARTS, (FOREGROUND, BACKGROUND))]
        names += [(x, OTHER) for x in head.loc_names]
        rows += [(name, head.outputs[name], head.features[name], color) for name, color in names]
    for place, (_, output, feature, color) in enumerate(rows):
        axes.plot(output, place, "o", color=color)
        axes.plot(feature, place, "D", color=color, mfc="none")
    axes.plot([], [], "o", color="black", label="at the outputs (L1)")
    axes.plot([], [], "D", color="black", mfc="none", label="at the features (L2)")
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.grid(True, axis="x", alpha=0.3)
    axes.set_title("size of the gradients", fontsize=10)
    axes.legend(fontsize=8)


def _short(name):
    return (name if len(name) <= 24 else f"{name[:21]}...").replace("$", r"\$")
