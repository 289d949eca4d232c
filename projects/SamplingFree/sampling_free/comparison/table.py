"""The rows of a summary as text, for the terminal, the documentation and the page alike."""

from tabulate import tabulate

MAIN = {"bbox/AP": "AP", "bbox/AP50": "AP50"}
MASKS = {"segm/AP": "mask AP", "segm/AP50": "mask AP50"}


def summary_table(rows: list[dict]):
    """A line for each row of :func:`~.summary.summarize`.

    AP, its difference to the first variant and AP50 with what they spread over the seeds; that
    difference over the test images, too, where it is known; the mean AP of each class; the
    classification gradient over that of localization before the first step, at the heads' outputs;
    seconds per iteration as a ratio to the first variant; the most memory.
    What no row has is no column.

    Args:
        rows:

    Returns:
        tuple[list[str], list[list[str]]]: the head, and the cells of each row.
    """
    present = list(dict.fromkeys(key for row in rows for key in row["metrics"]))
    columns = {"variant": _name}
    if len({row["learning_rate"] for row in rows}) > 1:
        columns["rate"] = lambda row: _number(row["learning_rate"], "g", "the config's")
    columns["seeds"] = seeds_cell
    for key, title in {**MAIN, **MASKS}.items():
        if key in present:
            columns[title] = _cell_of(metric_cell, key)
            if key == "bbox/AP":
                columns["difference (95 %)"] = _cell_of(difference_cell, key)
                if any("image_low" in (r["differences"] or {}).get(key, {}) for r in rows):
                    columns["over images (95 %)"] = _cell_of(over_images_cell, key)
    for key in present:
        task, dash, name = key.partition("/AP-")
        if dash:
            prefix = "" if task == "bbox" else "mask "
            columns[f"{prefix}AP {name}"] = _cell_of(mean_cell, key)
    if any(row.get("start_gradient_ratio") for row in rows):
        columns["gradient ratio at start"] = start_cell
    if any(row["time_ratio"] for row in rows):
        columns["s/iteration"] = time_cell
    if any(row["peak_memory_mib"] for row in rows):
        columns["memory"] = memory_cell
    return list(columns), [[cell(row) for cell in columns.values()] for row in rows]


def markdown(head: list[str], cells: list[list[str]]) -> str:
    """The table in Markdown; a | in a name, as of a class, ends no cell.

    Args:
        head:
        cells:
    """
    head, *cells = [[cell.replace("|", r"\|") for cell in row] for row in [head, *cells]]
    return tabulate(cells, head, tablefmt="github", disable_numparse=True)


def seeds_cell(row):
    """How many seeds, and how many of them diverged."""
    total, diverged = len(row["seeds"]), len(row["diverged"])
    return f"{total}, diverged ({diverged} of {total})" if diverged else str(total)


def metric_cell(row, key):
    """Mean and standard deviation, smallest and largest: "45.3 ± 0.6 (44.7 to 45.9)"."""
    metric = row["metrics"].get(key)
    if metric is None:
        return "diverged" if row["diverged"] else "-"
    if metric["std"] is None:
        return f"{metric['mean']:.1f}"
    return (
        f"{metric['mean']:.1f} ± {metric['std']:.1f} ({metric['min']:.1f} to {metric['max']:.1f})"
    )


def mean_cell(row, key):
    """Writes a mean, its deviation and its range."""
    metric = row["metrics"].get(key)
    return f"{metric['mean']:.1f}" if metric else "-"


def difference_cell(row, key):
    """The difference to the first variant with its interval, and the pairs if seeds are missing."""
    if row["is_reference"]:
        return "reference"
    difference = row["differences"].get(key)
    if difference is None:
        return "-"
    mean = _signed(difference["mean"])
    if difference["low"] is None:
        return f"{mean} (one seed: no interval)"
    pairs = len(difference["seeds"])
    few = f"; {pairs} pairs" if pairs < len(row["seeds"]) else ""
    return f"{mean} ({_signed(difference['low'])} to {_signed(difference['high'])}{few})"


def over_images_cell(row, key):
    """The interval of the difference over test images that are drawn anew."""
    difference = (row["differences"] or {}).get(key) or {}
    if "image_low" not in difference:
        return "-"
    return f"{_signed(difference['image_low'])} to {_signed(difference['image_high'])}"


def time_cell(row):
    """Seconds per iteration over those of the first variant, and for that one the seconds."""
    ratio, seconds = row["time_ratio"], row["seconds_per_iteration"]
    if row["at_default_threshold"] or ratio is None:
        return "-"
    return f"1 ({seconds:.3g} s)" if row["is_reference"] else f"x {ratio:.2f}"


def start_cell(row):
    """Classification over localization gradient before the first step."""
    if row["at_default_threshold"]:
        return "-"
    return _number(row["start_gradient_ratio"], ".3g", "-")


def memory_cell(row):
    """Writes the peak memory."""
    if row["at_default_threshold"]:
        return "-"
    return _number(row["peak_memory_mib"], ".0f", "-", " MiB")


def _signed(value):
    """One digit after the point, two where that is zero: a bound says on which side it lies."""
    text = f"{value:+.1f}"
    if not float(text):
        text = f"{value:+.2f}"
    return text if float(text) else "+0.0"


def _name(row):
    return row["name"]


def _cell_of(cell, key):
    return lambda row: cell(row, key)


def _number(value, form, absent, unit=""):
    return absent if value is None else f"{value:{form}}{unit}"
