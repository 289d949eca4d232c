"""Records of runs as tools/compare.py keeps them, made up: no training, the same each time."""

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("RBC", "WBC", "Platelets")
ITERATIONS = list(range(19, 400, 20))
# Of each variant: AP, part of the background in the gradient, seconds for an iteration.
VARIANTS = {
    "sampling_free": (46.0, 1.2, 0.41),
    "focal": (35.0, 3.0, 0.40),
    "ohem": (41.0, 0.7, 0.52),
    "all_samples:model.prior=0.5": (38.0, 300.0, 0.41),
}


def made_up_run(variant, seed, folder=None):
    """A record of one run.

    Args:
        variant (str): of VARIANTS.
        seed (int):
        folder (Path or None): gets a picture.

    Returns:
        dict
    """
    ap, pull, seconds = VARIANTS[variant]
    rng = np.random.default_rng([len(variant), seed])
    ap += rng.normal() * 1.5
    run = {
        "config": "configs/bccd/retinanet_R_18_FPN.py",
        "variant": variant.partition(":")[0],
        "override": variant.partition(":")[2] or None,
        "overrides": ["train.max_iter=400"],
        "learning_rate": None,
        "seed": seed,
        "train_split": "trainval",
        "test_split": "test",
        "test_score_thresh": 0.0005,
        "max_iter": 400,
        "batch_size": 8,
        "optimizer_lr": 0.08,
        "data_set": {"train": "bccd_trainval", "test": "bccd_test"},
        "complete": True,
        "device": "x86_64 CPU, 1 thread(s)",
        "torch": "2.11.0",
        "torchvision": "0.26.0",
        "detectron2": "0.6",
        "jobs": 1,
        "bbox/AP": ap,
        "bbox/AP50": 1.7 * ap,
        "bbox/AP75": 0.9 * ap,
        "seconds_per_iteration": seconds + 0.01 * rng.random(),
        "peak_memory_mib": 1800 + 400 * rng.random(),
        "course": made_up_course(rng, pull, variant.startswith("s")),
        "score_histograms": {"loss_cls": made_up_histogram(rng, pull)},
        "precision_recall": {"all": made_up_precision(ap)},
    }
    for shift, name in zip((12, 6, -18), CLASSES):
        run[f"bbox/AP-{name}"] = ap + shift + rng.normal()
        run["precision_recall"][name] = made_up_precision(ap + shift)
    if variant in ("focal", "ohem"):
        run["at_default_threshold"] = {
            "test_score_thresh": 0.05,
            "bbox/AP": ap - 2,
            "bbox/AP50": 1.6 * ap,
        }
    if folder is not None:
        run["folder"], run["pictures"] = str(folder), "pictures/overview.png"
        (folder / "pictures").mkdir(parents=True)
        picture = Image.new("RGB", (1320, 552), "white")
        ImageDraw.Draw(picture).rectangle((20, 20, 600, 300), outline="blue", width=3)
        picture.save(folder / "pictures" / "overview.png")
    return run


def made_up_course(rng, pull, guided):
    """The numbers of the training; the monitor's at each second place."""
    t = np.linspace(0, 1, len(ITERATIONS))

    def noise():
        return np.exp(0.1 * rng.normal(size=len(t)))

    box, cls = 1.2 * np.exp(-1.1 * t) * noise(), 3 * np.exp(-2 * t) * noise()
    course = {"loss_cls": box if guided else cls, "loss_box_reg": box}
    course["total_loss"] = course["loss_cls"] + box
    if guided:
        course["guide/loss_cls_raw"], course["guide/r"] = cls, box / cls
    for place, size in (("outputs", 1.0), ("features", 0.02)):
        parts = {"foreground": 0.8 * size * np.exp(-t) * noise()}
        parts["background"] = pull * size * np.exp(-3 * t) * noise()
        key = f"monitor/{place}/cls"
        course[key] = sum(parts.values())
        course.update({f"{key}/{name}": values for name, values in parts.items()})
        course[f"monitor/{place}/box_reg"] = size * np.exp(-0.7 * t) * noise()
    ratio = course["monitor/outputs/cls"] / course["monitor/outputs/box_reg"]
    course["monitor/ratio/cls"] = ratio
    rows = {key: [float(f"{v:.5g}") for v in values] for key, values in course.items()}
    for key in rows:
        if key.startswith("monitor"):
            rows[key][1::2] = [None] * len(rows[key][1::2])
    return {"iteration": ITERATIONS, **rows}


def made_up_histogram(rng, pull):
    """50 bins over eight decades, 2000 samples of foreground and 5 million of background."""
    edges = np.linspace(-8, 0, 51)
    scores = {
        "foreground": -np.abs(rng.normal(0, 0.5, 2000)),
        "background": rng.normal(-3.3 - 0.2 * np.log10(pull), 0.8, 50_000).clip(-8, 0),
    }
    counts = {k: np.histogram(v, edges)[0] for k, v in scores.items()}
    counts["background"] *= 100
    return {"edges": edges.tolist(), **{k: v.tolist() for k, v in counts.items()}}


def made_up_precision(ap):
    """A curve over COCO's 101 recalls that ends where the recall does."""
    recall = np.linspace(0, 1, 101)
    reached = min(0.97, 0.02 * ap)
    precision = np.where(recall <= reached, 1 - (recall / 1.02) ** (1 + 0.04 * ap), 0)
    return {"recall": recall.tolist(), "precision": precision.tolist()}


def diverged(run):
    """The same run, ended halfway by a loss that is not finite."""
    gone = ("bbox/", "precision_recall", "score_histograms", "pictures", "at_default")
    left = {k: v for k, v in run.items() if not k.startswith(gone)}
    half = len(ITERATIONS) // 2
    left["course"] = {k: v[:half] for k, v in run["course"].items()}
    left["course"]["total_loss"][-2:] = [90.0, float("nan")]
    left["failed"] = "error: total_loss is not finite at iteration 199"
    return left


def without_monitor(run):
    """The same run of a trainer that logs no gradients."""
    course = {k: v for k, v in run["course"].items() if not k.startswith("monitor")}
    return {**{k: v for k, v in run.items() if k != "score_histograms"}, "course": course}


def comparison(folder=None):
    """Four variants with two seeds: one run diverged, one variant has no monitor."""
    runs = []
    for variant in VARIANTS:
        for seed in (0, 1):
            place = folder and folder / f"{variant.split(':')[0]}_seed{seed}"
            runs.append(made_up_run(variant, seed, place))
    runs[-1] = diverged(runs[-1])
    runs[4:6] = [without_monitor(r) for r in runs[4:6]]
    return runs
