"""The tables of docs/evidence.md, from the records in results/evidence/."""

import functools
import os

import evidence_plan as plan
import evidence_rates
from evidence_names import DATA, DETECTORS, NOT_RUN, SETTINGS, table, title, words_of


def variants(records, data, long=False):
    """A row for each variant of RetinaNet: AP over the seeds, and its difference to the method."""
    found = {w: plan.finals(records, data, w, long) for w in words_of(records, data)}
    # The constant is the mean r of the same schedule.
    found = {w: runs for w, runs in found.items() if runs or w in plan.VARIANTS}
    return _compared(records, data, found, plan.config("retinanet", data))


def classes(records, data, long=False):
    """AP of each class: a row for each variant of RetinaNet, a column for each class."""
    from sampling_free.comparison.summary import summarise
    from sampling_free.comparison.table import metric_cell

    runs = [run for word in plan.VARIANTS for run in plan.finals(records, data, word, long)]
    rows = [row for row in summarise(runs) if not row["at_default_threshold"]]
    keys = list(dict.fromkeys(key for row in rows for key in row["metrics"] if "-" in key))
    cells = [[title(plan.word_of(row)), *(metric_cell(row, key) for key in keys)] for row in rows]
    return table(["AP", *(key.partition("-")[2] for key in keys)], cells)


def parts(records):
    """RetinaNet on the 80 classes: what of focal loss does it; short schedule."""
    words = [plan.FULL, plan.BCE, f"{plan.BCE}:model.prior=0.01", plan.FOCAL, *plan.PARTS]
    found = {w: plan.finals(records, "hard", w) for w in words}
    return _compared(records, "hard", found, plan.config("retinanet", "hard"))


def beyond(records):
    """RetinaNet on BCCD, long schedule: both guides at their chosen rates and at one beyond."""
    more = plan.beyond(records)
    found = {
        w: plan.finals(records, "bccd", w, long=True) + [r for r in more if plan.word_of(r) == w]
        for w in (plan.FULL, plan.GRADIENT)
    }
    return _compared(records, "bccd", found, plan.config("retinanet", "bccd"))


def own_rates(records, data):
    """RetinaNet, long schedule, each at the rate that was chosen at that length."""
    found = {}
    for word in plan.MAIN:
        rate = plan.chosen_rate(records, data, word, long=True)
        found[word] = rate and plan.finals(records, data, word, long=True, rate=rate) or []
    return _compared(records, data, found, plan.config("retinanet", data))


def _compared(records, data, found, path):
    from sampling_free.comparison.summary import summarise, verdict
    from sampling_free.comparison.table import difference_cell, metric_cell, over_images_cell

    rows = summarise([run for runs in found.values() for run in runs])
    by_word, has_method = {}, bool(found[plan.FULL])  # without it nothing is a difference to it
    for row in rows:
        by_word.setdefault(plan.word_of(row), []).append(row)
    cells = []
    for word in found:
        if word not in by_word:
            tried = plan.tried(records, data, word, path)
            lost = tried and plan.chosen_rate(records, data, word, path) is None
            cells.append([title(word), *["-"] * 6, "diverged at every rate" if lost else NOT_RUN])
        for row in by_word.get(word, []):
            at = f", threshold {row['test_score_thresh']:g}" * row["at_default_threshold"]
            seeds = len(row["seeds"])
            cells.append(
                [
                    title(word) + at,
                    _rate_cell(_rate(row, found[word]), plan.tried(records, data, word, path)),
                    f"{seeds - len(row['diverged'])} of {seeds}" if row["diverged"] else seeds,
                    metric_cell(row, "bbox/AP"),
                    metric_cell(row, "bbox/AP50").partition(" (")[0],
                    difference_cell(row, "bbox/AP") if has_method else "-",
                    over_images_cell(row, "bbox/AP") if has_method else "-",
                    "" if row["is_reference"] or not has_method else verdict_cell(row, verdict),
                ]
            )
    head = ["variant", "rate", "seeds", "AP", "AP50", "difference (95 %)"]
    head += ["over images (95 %)", "verdict"]
    return table(head, cells)


def _rate(row, runs):
    return next(r["optimizer_lr"] for r in runs if r["override"] == row["override"])


def _rate_cell(rate, tried):
    """With an asterisk where the rate that was chosen is the smallest or largest tried."""
    rates = sorted(r["optimizer_lr"] for r in tried)
    at_end = len(rates) > 1 and rate in (rates[0], rates[-1])
    return f"{rate:g}" + "*" * at_end


def verdict_cell(row, verdict):
    if row["diverged"]:
        return "diverged"
    return verdict(row["differences"].get("bbox/AP"))


def ratios(records):
    """The mean r of both guides in RetinaNet: a row for each data set and setting."""
    cells = []
    for data in plan.SPLITS:
        settings = {("", False): "RetinaNet", ("", True): "RetinaNet, long"}
        settings |= {(suffix, False): name for suffix, name in SETTINGS.items()}
        for (suffix, long), name in settings.items():
            path = plan.config("retinanet", data, suffix)
            runs = [plan.finals(records, data, w, long, path) for w in (plan.FULL, plan.GRADIENT)]
            cells.append([DATA[data], name, *(plan.mean_ratio(x) or NOT_RUN for x in runs)])
    head = ["data", "setting", *(title(w) for w in (plan.FULL, plan.GRADIENT))]
    return table(head, cells)


def others(records, data):
    """The other detectors: the method with both guides, and the baseline of each."""
    parts = []
    for detector, words in plan.OTHERS.items():
        parts.append((DETECTORS[detector], plan.config(detector, data), words))
    return _several_configs(records, data, parts)


def settings(records, data):
    """RetinaNet with the authors' box loss, and with AdamW."""
    paths = {suffix: plan.config("retinanet", data, suffix) for suffix in SETTINGS}
    words = {
        "_smooth_l1": words_of(records, data, paths["_smooth_l1"]),
        "_adamw": plan.MAIN,
    }
    parts = [(name, paths[suffix], words[suffix]) for suffix, name in SETTINGS.items()]
    return _several_configs(records, data, parts)


def against_usual(records):
    """Both guides against what a detector usually has, and RetinaNet's against no guide.

    A row for each setting and guide; the difference is that of the method to the other one.
    """
    from sampling_free.comparison.summary import summarise, verdict
    from sampling_free.comparison.table import difference_cell, mean_cell, over_images_cell

    cells = []
    for data in plan.SPLITS:
        for name, path, (full, gradient, other), long in _settings_with_usual(records, data):
            rate = plan.chosen_rate(records, data, other, long=True) if long else None
            base = plan.finals(records, data, other, long, path, rate)
            for word in (full, gradient):
                rate = plan.chosen_rate(records, data, word, long=True) if long else None
                mine = plan.finals(records, data, word, long, path, rate)
                setting = [DATA[data], name, title(other), title(word)]
                if not base or not mine:
                    cells.append([*setting, *["-"] * 5, NOT_RUN])
                    continue
                rows = [r for r in summarise([*base, *mine]) if not r["at_default_threshold"]]
                row = rows[-1]
                cells.append(
                    [
                        *setting,
                        len(row["seeds"]),
                        *(mean_cell(r, "bbox/AP") for r in rows),
                        difference_cell(row, "bbox/AP"),
                        over_images_cell(row, "bbox/AP"),
                        verdict_cell(row, verdict),
                    ]
                )
    head = ["data", "setting", "against", "method", "seeds", "its AP", "AP of method"]
    return table([*head, "difference (95 %)", "over images (95 %)", "verdict"], cells)


def _settings_with_usual(records, data):
    """Name, config, (the method with both guides, the other one) and whether it is long."""
    for suffix, name in ({"": "RetinaNet"} | SETTINGS).items():
        path = plan.config("retinanet", data, suffix)
        tuned = plan.tuned_words(records, path, data)
        for other in (plan.FOCAL, *tuned, plan.BCE):
            yield name, path, (plan.FULL, plan.GRADIENT, other), False
        if not suffix:
            tuned = [word for word in tuned if plan.finals(records, data, word, long=True)]
            for other in (plan.FOCAL, *tuned, plan.BCE):
                yield f"{name}, long", path, (plan.FULL, plan.GRADIENT, other), True
    for detector, words in plan.OTHERS.items():
        yield DETECTORS[detector], plan.config(detector, data), words, False


def _several_configs(records, data, parts):
    tables = []
    for name, path, words in parts:
        found = {w: plan.finals(records, data, w, path=path) for w in words}
        tables.append(f"{name}:\n\n{_compared(records, data, found, path)}")
    return "\n\n".join(tables)


def runs(records):
    """How many runs lie behind the page: a row for each config and schedule."""
    counts, choosing = {}, {first[1] for first, _ in plan.SPLITS.values()}
    for r in records:
        stem = os.path.splitext(os.path.basename(r["config"]))[0]
        row = counts.setdefault((stem, r["max_iter"]), [0, 0, 0, set()])
        row[0] += 1
        row[1] += r["test_split"] in choosing
        row[2] += bool(r.get("failed"))
        row[3].add(r["device"])
    cells = [
        [f"`{stem}`", iterations, *numbers, "; ".join(sorted(devices))]
        for (stem, iterations), (*numbers, devices) in sorted(counts.items())
    ]
    total = [sum(row[i] for row in counts.values()) for i in range(3)]
    head = ["config", "iterations", "runs", "of which chose a rate", "diverged", "device"]
    return table(head, [*cells, ["all", "", *total, ""]])


EVIDENCE_TABLES = {
    "evidence_runs": runs,
    "evidence_usual": against_usual,
    "evidence_tuning": evidence_rates.tuning,
    "evidence_ratios": ratios,
    "evidence_parts": parts,
    "evidence_classes": functools.partial(classes, data="bccd", long=True),
    "evidence_beyond": beyond,
    "evidence_rates_long_bccd": functools.partial(evidence_rates.rates_long, data="bccd"),
    "evidence_bccd_long_own": functools.partial(own_rates, data="bccd"),
    "evidence_investigation": evidence_rates.investigation,
}
for _data in plan.SPLITS:
    EVIDENCE_TABLES |= {
        f"evidence_{_data}": functools.partial(variants, data=_data),
        f"evidence_{_data}_long": functools.partial(variants, data=_data, long=True),
        f"evidence_rates_{_data}": functools.partial(evidence_rates.rates, data=_data),
        f"evidence_rates_others_{_data}": functools.partial(
            evidence_rates.rates_of_others, data=_data
        ),
        f"evidence_others_{_data}": functools.partial(others, data=_data),
        f"evidence_settings_{_data}": functools.partial(settings, data=_data),
    }
