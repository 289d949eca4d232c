"""The tables of docs/evidence.md with one seed: AP over learning rates and other numbers."""

import evidence_plan as plan
from evidence_names import DATA, DETECTORS, NOT_RUN, table, title, words_of


def rates(records, data):
    """AP on the split for choosing, one seed: a row for each variant, a column for each rate."""
    found = {word: plan.tried(records, data, word) for word in words_of(records, data)}
    return _rates(_rates_cells(found))


def rates_long(records, data):
    """The same with the long schedule, of the four main variants."""
    found = {word: plan.tried(records, data, word, long=True) for word in plan.MAIN}
    return _rates(_rates_cells(found))


def rates_of_others(records, data):
    """The same of the other detectors, and of RetinaNet with its other settings."""
    path = plan.config("retinanet", data, "_smooth_l1")
    parts = {DETECTORS[d]: (plan.config(d, data), words) for d, words in plan.OTHERS.items()}
    parts["authors' box loss"] = path, words_of(records, data, path)
    cells = []
    for name, (path, words) in parts.items():
        found = {word: plan.tried(records, data, word, path) for word in words}
        cells += [[f"{name}: {row}", *aps] for row, *aps in _rates_cells(found)]
    path = plan.config("retinanet", data, "_adamw")
    found = {word: plan.tried(records, data, word, path) for word in plan.MAIN}
    of_adamw = _rates_cells(found, plan.ADAMW_RATES)
    return _rates([*cells, *([f"AdamW, rate / 20: {row}", *aps] for row, *aps in of_adamw)])


def _rates_cells(found, rates=plan.RATES):
    cells = []
    for word, runs in found.items():
        by_rate = {r["optimizer_lr"]: r for r in runs}
        if runs:
            cells.append([title(word), *(_ap(by_rate.get(rate)) for rate in rates)])
    return cells


def _rates(cells):
    return table(["AP on val", *(f"rate {rate:g}" for rate in plan.RATES)], cells)


def tuning(records):
    """AP on the split for choosing of each focal loss that was tried: a row for each data set."""
    points = [(0.25, 2.0), *plan.ALPHAS_GAMMAS]
    cells = []
    for data in plan.SPLITS:
        rate = plan.chosen_rate(records, data, plan.FOCAL)
        row = [DATA[data], f"{rate:g}" if rate else "-"]
        for alpha, gamma in points:
            usual = (alpha, gamma) == points[0]
            override = f":model.focal_loss_alpha={alpha},model.focal_loss_gamma={gamma}"
            word = plan.FOCAL + override * (not usual)
            found = {r["learning_rate"]: r for r in plan.tried(records, data, word)}
            row.append(_ap(found.get(rate)))
        cells.append(row)
    return table(["AP on val", "rate", *(f"{a:g}, {g:g}" for a, g in points)], cells)


def investigation(records):
    """A row for each prior, a column for each constant: AP of one seed, or that it diverged."""
    mine = plan.investigated(records)
    columns = max(plan.WEIGHTS.values(), key=len)
    cells = []
    for prior, weights in plan.WEIGHTS.items():
        row = ["measured" if prior == "auto" else prior]
        for weight in columns:
            word = f"{plan.BCE}:model.prior={prior},model.guide={weight}"
            row.append(
                _of_one_seed([r for r in mine if plan.word_of(r) == word], weight in weights)
            )
        cells.append(row)
    for word in (plan.FOCAL, plan.FULL):
        runs = [r for r in mine if plan.word_of(r) == word]
        cells.append([title(word), _of_one_seed(runs), *[""] * (len(columns) - 1)])
    return table(["prior", *(f"times {weight:g}" for weight in columns)], cells)


def _of_one_seed(runs, planned=True):
    """AP, or that it diverged."""
    return _ap(runs[0]) if runs else NOT_RUN if planned else ""


def _ap(record):
    if record is None:
        return "-"
    ap = record.get("bbox/AP")
    return "diverged" if ap is None else f"{ap:.1f}"
