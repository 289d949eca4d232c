"""The first table of docs/performance.md: results/bench_*.csv beside what was to be reached."""

from typing import NamedTuple

from tabulate import tabulate

LOSS = dict(detector="RetinaNet", images="1", height="800", classes="80", dtype="fp32")
ON_CPU = dict(LOSS, device="cpu")
ON_GPU = dict(LOSS, device="cuda")
FOCAL, BCE, OURS = dict(loss="focal"), dict(loss="one_hot_bce"), dict(loss="fused")
KEPT = dict(heap="kept")
ALL_PROPOSALS = dict(device="cpu", heads="box", images="1", variant="all")
ITERATION = dict(device="cuda", dtype="fp32", variant="sampling-free")
COUNTED = dict(method="near an object", views="1")


class Target(NamedTuple):
    """What a column of the rows with certain values should be, at least or at most."""

    text: str
    relation: str
    limit: float
    rows: dict
    column: str = "ratio"


TARGETS = [
    Target("loss, CPU, heap kept: focal loss over ours", ">=", 10, {**ON_CPU, **KEPT, **FOCAL}),
    Target("loss, CPU: focal loss over ours", ">=", 10, {**ON_CPU, "heap": "default", **FOCAL}),
    Target("loss, CPU, heap kept: one-hot over ours", ">=", 4.5, {**ON_CPU, **KEPT, **BCE}),
    Target("loss: peak memory over the logits'", "<=", 1.15, {**ON_CPU, **OURS}, "peak"),
    Target("loss: memory held over the logits'", "<=", 0.1, {**ON_CPU, **OURS}, "held"),
    Target("loss: bytes a logit", "<=", 32, {**ON_CPU, **OURS}, "bytes_per_logit"),
    Target("loss, GPU: focal loss over ours", ">=", 8, {**ON_GPU, **FOCAL}),
    Target("loss, GPU: ours over the floor", "<=", 1.5, {**ON_GPU, **OURS}, "floors"),
    *(
        Target(f"counting, {name}: seconds", "<=", 30, {**COUNTED, "detector": name}, "seconds")
        for name in ("RetinaNet", "RPN", "FCOS")
    ),
    *(
        Target(f"counting, {name}: over brute force", "<=", 0.01, {**COUNTED, "detector": name})
        for name in ("RetinaNet", "RPN", "FCOS")
    ),
    Target(
        "RPN, CPU, heap kept: over the sampled",
        "<=",
        0.7,
        dict(device="cpu", heap="kept", variant="every anchor", losses="both", images="1"),
    ),
    Target("box head, CPU: over the sampled", "<=", 2, ALL_PROPOSALS),
    Target("box head, CPU: MB more for an image", "<=", 50, ALL_PROPOSALS, "more_mb"),
    *(
        Target(f"iteration, GPU, {name}: over focal loss", "<=", 1, {**ITERATION, "detector": name})
        for name in ("retinanet/retinanet", "fcos/fcos", "atss/atss")
    ),
    Target(
        "iteration, GPU, retinanet: MB more than focal loss",
        "<=",
        -1000,
        {**ITERATION, "detector": "retinanet/retinanet"},
        "more_mb",
    ),
    Target(
        "iteration, GPU, faster_rcnn: over the sampled",
        "<=",
        1.15,
        {**ITERATION, "detector": "faster_rcnn/faster_rcnn"},
    ),
]


def targets(rows):
    """A row for each target: what was to be reached, and what was."""
    table = []
    for t in TARGETS:
        found = [r for r in rows if all(r.get(k) == v for k, v in t.rows.items())]
        values = [float(r[t.column]) for r in found if r.get(t.column)]
        worst = (max if t.relation == "<=" else min)(values, default=None)
        if worst is None:
            cells = ["", "not measured"]
        else:
            reached = worst <= t.limit if t.relation == "<=" else worst >= t.limit
            cells = [f"{worst:.3g}", "yes" if reached else "no"]
        table.append([t.text, f"{t.relation} {t.limit:g}", *cells])
    head = ["what", "target", "measured", "reached"]
    return tabulate(table, head, tablefmt="github", disable_numparse=True)
