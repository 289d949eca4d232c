"""What docs/evidence.md compares: the blocks of runs, each one call of tools/compare.py.

A block is made of the records so far, as some settings follow from earlier runs: the rate of a
variant, the constant that is the mean of r, the best of several focal losses. What they need comes
before them.
"""

import statistics
from typing import Callable, NamedTuple

RECORDS = "results/evidence/"
FOLDER = "output/evidence"
RATES = (0.005, 0.01, 0.02, 0.04, 0.08)
BEYOND = 0.16  # on BCCD the full method is best at the end of RATES: does its gap end there?
ADAMW_RATES = (0.00025, 0.0005, 0.001, 0.002, 0.004)  # as many, each twice the one before
SEEDS = (0, 1, 2, 3, 4)
SMOKE = (0, 1, 2)
LONG = {"bccd": 800, "hard": 1600}  # iterations: four times the short schedule of the configs
# (train, test): the rate is chosen on the first pair, what is reported comes from the second.
SPLITS = {
    "bccd": (("train", "val"), ("trainval", "test")),
    "hard": (("train", "val"), ("train", "test")),
}
FULL, BCE, FOCAL = "sampling_free", "all_samples", "focal"
GRADIENT, FROZEN = f"{FULL}:model.guide=gradient", f"{FULL}:model.guide=frozen"
VARIANTS = {
    FULL: "full method (guide `iteration`)",
    GRADIENT: "guide `gradient` (ours)",
    FROZEN: "guide `frozen`",
    f"{FULL}:model.prior=per_class": "full method, a prior for each class (ours)",
    BCE: "BCE, measured prior, not guided",
    f"{BCE}:model.prior=0.01": "BCE, prior 0.01",
    f"{BCE}:model.prior=0.5": "BCE, prior 0.5",
    FOCAL: "focal loss",
    "ohem": "OHEM",
    "ghm": "GHM-C",
}
# Seeds whose mean r is the constant of the long schedule, so that more seeds do not move it.
CONSTANT_OF = {"bccd": SEEDS, "hard": SMOKE}
CONSTANT = "BCE, measured prior, times the mean r"
TUNED = "focal loss, alpha and gamma tuned"
# As many as there are rates; 0.25 and 2 is the usual one.
ALPHAS_GAMMAS = ((0.25, 1.0), (0.25, 3.0), (0.5, 1.0), (0.5, 2.0), (0.75, 2.0))
# Those that go on to the long schedule, the other box loss and AdamW.
MAIN = (FULL, GRADIENT, BCE, FOCAL)
# Of the paper's investigation: priors, and the constants that plain cross entropy is tried with.
WEIGHTS = {
    "0.5": (1, 0.1, 0.01, 0.001, 0.0001),
    "0.01": (1, 0.1, 0.01, 0.001),
    "auto": (1, 0.1, 0.01),
    "1e-10": (1, 0.1, 0.01),
}
INVESTIGATED_AT = 0.02  # learning rate
# What tells the parts of focal loss apart, on the 80 classes: the prior, the focusing, and the
# running normaliser of Detectron2's RetinaNet. The prior is that of tools/estimate_prior.py.
HARD_PRIOR = 1.75e-5
STOCK_BCE = f"{FOCAL}:model.focal_loss_gamma=0,model.focal_loss_alpha=-1"
PARTS = {
    f"{FOCAL}:model.head.prior_prob={HARD_PRIOR}": "focal loss, measured prior",
    f"{STOCK_BCE},model.head.prior_prob={HARD_PRIOR}": "Detectron2's BCE, measured prior",
    f"{STOCK_BCE},model.head.prior_prob=0.01": "Detectron2's BCE, prior 0.01",
}
PARTS_RATES = (0.01, 0.02, 0.04)
GUIDED_RCNN = (
    f"{FULL}:model.proposal_generator.guide=gradient,model.roi_heads.box_predictor.guide=gradient"
)
OTHERS = {  # other detectors, and what is compared
    "fcos": (FULL, GRADIENT, FOCAL),
    "atss": (FULL, GRADIENT, FOCAL),
    "faster_rcnn": (FULL, GUIDED_RCNN, "sampled"),
}


class Block(NamedTuple):
    """
    Attributes:
        name (str): for --only.
        words (callable): from all records so far to the arguments of tools/compare.py, without
            places; None as long as an earlier block is missing.
    """

    name: str
    words: Callable


def config(detector, data, suffix=""):
    """str: the file of a config."""
    return f"configs/evidence/{detector}_{data}{suffix}.py"


def blocks():
    """list[Block]: all, the most telling first."""
    rest = [v for v in VARIANTS if v not in MAIN]
    first, then, last = [], [], []
    for data in SPLITS:
        path = config("retinanet", data)
        first += [
            Block(f"{data}-short", _fixed(path, MAIN, data)),
            Block(f"{data}-tuned", _tuned(data, path, SEEDS)),
            Block(f"{data}-constant", _constant(data, path, SEEDS)),
            Block(f"{data}-long", _long(data, MAIN, SMOKE)),
            Block(f"{data}-long-constant", _long_constant(data, SMOKE)),
        ]
        then.append(Block(f"{data}-rest", _fixed(path, rest, data)))
    parts = _fixed(config("retinanet", "hard"), PARTS, "hard", PARTS_RATES, SMOKE)
    then += [Block("parts", parts), Block("investigation", _investigation)]
    beyond = [_with(variant, f"optimizer.lr={BEYOND}") for variant in (FULL, GRADIENT)]
    then.append(Block("bccd-beyond", lambda records: _long_words("bccd", beyond, SMOKE)))
    then.append(Block("bccd-long-rates", _long_rates("bccd")))
    then.append(Block("bccd-long-own", _long_own("bccd")))
    for data in SPLITS:
        then.append(Block(f"{data}-long-five", _long(data, MAIN, SEEDS)))
        then.append(Block(f"{data}-long-constant-five", _long_constant(data, SEEDS)))
    for data in SPLITS:
        smooth, adamw = (config("retinanet", data, suffix) for suffix in ("_smooth_l1", "_adamw"))
        for detector, variants in OTHERS.items():
            path = config(detector, data)
            last.append(Block(f"{data}-{detector}", _fixed(path, variants, data)))
        last.append(Block(f"{data}-smooth-l1", _fixed(smooth, MAIN, data)))
        last.append(Block(f"{data}-adamw", _fixed(adamw, MAIN, data, ADAMW_RATES)))
        last.append(Block(f"{data}-smooth-l1-rest", _fixed(smooth, rest, data, seeds=SMOKE)))
        last.append(Block(f"{data}-smooth-l1-constant", _constant(data, smooth, SMOKE)))
        last.append(Block(f"{data}-smooth-l1-tuned", _tuned(data, smooth, SEEDS)))
        seeds = SEEDS if data == "bccd" else SMOKE  # on the 80 classes a run takes twice as long
        last.append(Block(f"{data}-long-rest", _long(data, rest, seeds)))
    last.append(Block("bccd-long-tuned", _long_tuned))
    return [*first, *then, *last]


def _words(path, variants, data, rates=(), seeds=SEEDS, extra=(), choose=True, splits=()):
    choosing, final = SPLITS[data]
    final = splits or final
    words = ["--config-file", path, "--variants", *variants, "--seeds", *map(str, seeds)]
    words += ["--rates", *map(str, rates)] if rates else []
    words += ["--choose", *choosing] if choose else []
    return [*words, "--final", *final, *extra]


def _fixed(path, variants, data, rates=RATES, seeds=SEEDS):
    return lambda records: _words(path, variants, data, rates, seeds)


def _tuned(data, path, seeds):
    def words(records):
        rate = chosen_rate(records, data, FOCAL, path)
        variants = [
            f"{FOCAL}:model.focal_loss_alpha={alpha},model.focal_loss_gamma={gamma}"
            for alpha, gamma in ALPHAS_GAMMAS
        ]
        return rate and _words(path, variants, data, [rate], seeds, ["--best-only"])

    return words


def _constant(data, path, seeds):
    def words(records):
        full = finals(records, data, FULL, path=path)
        r = mean_ratio([x for x in full if x["seed"] in seeds])
        return r and _words(path, [f"{BCE}:model.guide={r}"], data, RATES, seeds)

    return words


def _investigation(records):
    variants = [
        f"{BCE}:model.prior={prior},model.guide={weight}"
        for prior, weights in WEIGHTS.items()
        for weight in weights
    ]
    path, rates = config("retinanet", "hard"), [INVESTIGATED_AT]
    return _words(path, [FULL, FOCAL, *variants], "hard", rates, SEEDS[:1], choose=False)


def _long(data, variants, seeds):
    """At the rates of the short schedule; what diverged there at every rate is left out."""

    def words(records):
        if not all(tried(records, data, v) for v in variants):
            return None
        rates = [chosen_rate(records, data, v) for v in variants]
        known = [_with(v, f"optimizer.lr={rate}") for v, rate in zip(variants, rates) if rate]
        return _long_words(data, known, seeds)

    return words


def _long_tuned(records):
    """On BCCD, as on the 80 classes no other alpha and gamma were better than the usual ones."""
    tuned = tuned_words(records, config("retinanet", "bccd"), "bccd")
    return _long("bccd", tuned, SEEDS)(records) if tuned else None


def _long_constant(data, seeds):
    def words(records):
        full = finals(records, data, FULL, long=True)
        r = mean_ratio([x for x in full if x["seed"] in CONSTANT_OF[data]])
        mine = of_config(records, config("retinanet", data))
        short = [x for x in mine if is_constant(x) and x.get("choosing")]
        rate = chosen_rate(records, data, word_of(short[0])) if short else None
        known = [f"{BCE}:model.guide={r},optimizer.lr={rate}"]
        return _long_words(data, known, seeds) if r and rate else None

    return words


def _long_rates(data):
    """The long schedule at every rate on the split for choosing, as single runs.

    With --choose the runs on the test set would be others than those of the long blocks.
    """
    variants = [_with(v, f"optimizer.lr={rate}") for v in MAIN for rate in RATES]
    return lambda records: _long_words(data, variants, SEEDS[:1], SPLITS[data][0])


def _long_own(data):
    """At the rates that were chosen at that length."""

    def words(records):
        rates = {v: chosen_rate(records, data, v, long=True) for v in MAIN}
        if not all(len(tried(records, data, v, long=True)) == len(RATES) for v in MAIN):
            return None
        known = [_with(v, f"optimizer.lr={rate}") for v, rate in rates.items() if rate]
        return _long_words(data, known, SEEDS)

    return words


def _long_words(data, variants, seeds, splits=()):
    path, extra = config("retinanet", data), [f"train.max_iter={LONG[data]}"]
    return _words(path, variants, data, (), seeds, extra, choose=False, splits=splits)


def _with(variant, override):
    return f"{variant},{override}" if ":" in variant else f"{variant}:{override}"


def word_of(record):
    """str: a variant with its override, as on the command line, without its learning rate."""
    parts = [x for x in (record["override"] or "").split(",") if x and "optimizer.lr=" not in x]
    return ":".join([record["variant"], *[",".join(parts)] * bool(parts)])


def is_constant(record):
    """bool: whether it is BCE with the measured prior times a mean r."""
    return word_of(record).startswith(f"{BCE}:model.guide=")


def is_tuned(record):
    """bool: whether it is focal loss with numbers of its own."""
    return word_of(record).startswith(f"{FOCAL}:model.focal_loss_alpha=")


def tuned_words(records, path, data):
    """list[str]: those of the focal losses with numbers of their own that were best on val."""
    mine = [r for r in of_config(records, path) if is_tuned(r)]
    words = [word_of(r) for r in mine if r["test_split"] == SPLITS[data][1][1]]
    return list(dict.fromkeys(words))


def of_config(records, path):
    """The records of one config.

    Args:
        records (list[dict]):
        path (str): of :func:`config`.

    Returns:
        list[dict]
    """
    return [r for r in records if r["config"].endswith(path.rpartition("/")[2])]


def tried(records, data, word, path=None, long=False):
    """The runs that chose a learning rate, and those that diverged on the way.

    Args:
        records (list[dict]): all.
        data (str): a key of SPLITS.
        word (str): a variant, as of :func:`word_of`.
        path (str or None): of a config; None for RetinaNet.
        long (bool): of the long schedule, where the four main variants have such runs.

    Returns:
        list[dict]
    """
    return [
        r for r in _runs(records, data, word, path, long) if r["test_split"] == SPLITS[data][0][1]
    ]


def chosen_rate(records, data, word, path=None, long=False):
    """The learning rate of best AP among those :func:`tried`.

    Args:
        records, data, word, path, long: as of :func:`tried`.

    Returns:
        float or None: None where none led to an AP.
    """
    from sampling_free.comparison.summary import of_best_ap  # Detectron2 takes seconds to import

    best = of_best_ap(tried(records, data, word, path, long))
    return best and best["optimizer_lr"]


def finals(records, data, word, long=False, path=None, rate=None):
    """The runs on the test set of one variant, at the rate that was chosen.

    Args:
        records, data, word, path: as of :func:`tried`.
        long (bool): of the long schedule.
        rate (float or None): another one than that chosen with the short schedule.

    Returns:
        list[dict]: one for each seed.
    """
    rate = rate or chosen_rate(records, data, word, path)
    # Of a constant that is the mean r of the long schedule no rate was chosen.
    return [
        r
        for r in _runs(records, data, word, path, long)
        if r["test_split"] == SPLITS[data][1][1]
        and (r["optimizer_lr"] == rate or long and rate is None)
    ]


def _runs(records, data, word, path, long):
    mine = of_config(records, path or config("retinanet", data))
    return [r for r in mine if word_of(r) == word and (r["max_iter"] == LONG[data]) == long]


def beyond(records):
    """list[dict]: the runs on BCCD, long schedule, at a rate that was not among those tried."""
    mine = of_config(records, config("retinanet", "bccd"))
    return [r for r in mine if r["max_iter"] == LONG["bccd"] and r["optimizer_lr"] == BEYOND]


def investigated(records):
    """list[dict]: the records of the investigation."""
    return [
        r
        for r in of_config(records, config("retinanet", "hard"))
        if r["learning_rate"] == INVESTIGATED_AT
        and r["test_split"] == SPLITS["hard"][1][1]
        and r["seed"] in SEEDS[:1]
    ]


def mean_ratio(runs):
    """float or None: r over the training, a mean over the runs, to three digits."""
    values = [x for run in runs for x in (run.get("course") or {}).get("guide/r", []) if x]
    return float(f"{statistics.fmean(values):.3g}") if values else None
