"""The tables of docs/performance.md, from the rows of results/bench_*.csv."""

from tabulate import tabulate

from bench_targets import targets

LOSSES = {
    "fused": "ours",
    "focal": "focal loss as Detectron2 calls it",
    "torchvision_focal": "torchvision's focal loss",
    "one_hot_bce": "one-hot cross entropy",
    "plain": "softplus minus right classes",
    "compiled": "`torch.compile` of the formula",
}
SHAPE = ("detector", "images", "height", "width", "classes", "dtype")
TARGET = ("RetinaNet", "1", "800", "1344", "80", "fp32")
COMPARED = ("device", "heap", "images", "height", "width", "dtype")


def loss_time(rows):
    """A row for each loss at RetinaNet's shape: time, and how many times ours."""
    rows = [r for r in rows if tuple(r[c] for c in SHAPE) == TARGET]
    places = {"CPU, heap kept": ("cpu", "kept"), "CPU": ("cpu", "default"), "GPU": ("cuda", "")}
    table = []
    for name, title in LOSSES.items():
        cells = [title]
        for place in places.values():
            row = _only(rows, loss=name, device=place[0], heap=place[1])
            cells += [_spread(row, "ms"), _number(row, "ratio")]
        table.append(cells)
    head = ["loss"]
    for place in places:
        head += [f"{place}: ms", "times ours"]
    return _table(table, head)


def loss_memory(rows):
    """A row for each loss at RetinaNet's shape: memory and bytes moved."""
    rows = [r for r in rows if tuple(r[c] for c in SHAPE) == TARGET]
    table = []
    for name, title in LOSSES.items():
        cpu = _only(rows, loss=name, device="cpu", heap="kept")
        gpu = _only(rows, loss=name, device="cuda", heap="")
        cells = [_number(cpu, c) for c in ("peak", "held", "bytes_per_logit")]
        table.append([title, *cells, *(_number(gpu, c) for c in ("peak", "held", "syncs"))])
    head = ["loss", "peak", "held", "bytes a logit", "GPU: peak", "held", "synchronizations"]
    return _table(table, head)


def loss_shapes(rows):
    """A row for each shape, precision and device: our time, and how many times it the rivals'."""
    table = []
    for key, group in _groups(rows, ("device", "heap", *SHAPE)).items():
        device, heap, detector, images, height, width, classes, dtype = key
        ours = _only(group, loss="fused")
        shape = f"{detector}, {images} x {height} x {width}, {classes} classes"
        ratios = [_number(_only(group, loss=name), "ratio") for name in list(LOSSES)[1:]]
        cells = [_spread(ours, "ms"), _number(ours, "floors")]
        table.append([_place(device, heap), shape, dtype, *cells, *ratios])
    names = ["focal", "torchvision", "one-hot", "softplus", "compiled"]
    return _table(table, ["device", "shape", "", "ours: ms", "floors", *names])


def rpn_time(rows):
    """A row for each batch: the RPN's loss, sampled and over every anchor."""
    return _two(rows, "losses", ("256 sampled", "every anchor"), ("peak_mb", "syncs"))


def iteration_time(rows):
    """A row for each detector: its iteration beside the baseline's."""
    columns = ("peak_mb", "syncs", "proposals")
    return _two(rows, "detector", ("baseline", "sampling-free"), columns)


def _two(rows, what, variants, columns):
    """A row for each case: the times of two variants, their ratio, and pairs of other columns."""
    table = []
    for key, group in _groups(rows, (what, *COMPARED)).items():
        title, device, heap, images, height, width, dtype = key
        pair = [_only(group, variant=x) for x in variants]
        table.append(
            [title, _place(device, heap), f"{images} x {height} x {width} {dtype}".strip()]
            + [*(_spread(r, "ms") for r in pair), _spread(pair[1], "ratio")]
            + [" / ".join(filter(None, (_number(r, c) for r in pair))) for c in columns]
        )
    head = [what, "device", "batch", *(f"{x}: ms" for x in variants), "ratio"]
    return _table(table, [*head, *(c.replace("peak_mb", "MB") for c in columns)])


def roi_time(rows):
    """A row for each way to choose proposals: time and memory beside the sample's."""
    table = [
        [_place(r["device"], r["heap"]), r["heads"], r["data"], r["images"]]
        + [r.get(c, "") for c in ("objects", "variant", "foreground")]
        + [_spread(r, "ms"), _spread(r, "ratio"), _number(r, "peak_mb"), _number(r, "more_mb")]
        + [r.get("syncs", "")]
        for r in rows
    ]
    head = ["device", "heads", "data", "images", "objects", "proposals", "foreground", "ms"]
    return _table(table, [*head, "ratio", "MB", "more MB", "syncs"])


def counting_time(rows):
    """A row for each detector: the whole count, and brute force on a few images."""
    table = []
    for key, group in _groups(rows, ("detector", "views")).items():
        ours, brute = _only(group, method="near an object"), _only(group, method="every anchor")
        times = f"{1 / float(ours['ratio']):.0f}"
        same = f"{'yes' if ours['same'] == 'True' else 'no'} ({brute['counted']} images)"
        cells = [_number(x, "ms_per_image") for x in (ours, brute)]
        table.append([*key, ours["images"], _number(ours, "seconds"), *cells, times, same])
    head = ["detector", "views", "images", "seconds", "ms an image", "brute force", "times faster"]
    return _table(table, [*head, "same counts"])


BENCH_TABLES = {
    f.__name__: f
    for f in (
        targets,
        loss_time,
        loss_memory,
        loss_shapes,
        rpn_time,
        iteration_time,
        roi_time,
        counting_time,
    )
}


def _groups(rows, columns):
    groups = {}
    for r in rows:
        groups.setdefault(tuple(r.get(c, "") for c in columns), []).append(r)
    return groups


def _only(rows, **values):
    """The row with these values; one that stands for all, as it says why there are none; or {}."""
    found = [r for r in rows if all((r.get(k) or v) == v for k, v in values.items())]
    return found[0] if found else {}


def _place(device, heap):
    return {"kept": "CPU, heap kept", "default": "CPU"}.get(heap, "GPU")


def _number(row, column):
    if not row.get(column):
        return ""
    value = float(row[column])
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _spread(row, column):
    """The median, with the 10 % and the 90 % quantile; or why there is none."""
    if not row.get(column):
        return row.get("reason", "") if column == "ms" else ""
    low, high = _number(row, f"{column}_10"), _number(row, f"{column}_90")
    return f"{_number(row, column)} ({low} to {high})"


def _table(rows, head):
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)
