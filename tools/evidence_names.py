"""What the tables and figures of docs/evidence.md call their rows, and in which order."""

from tabulate import tabulate

import evidence_plan as plan

NOT_RUN = "not run"
DATA = {"bccd": "BCCD", "hard": "80 classes"}
DETECTORS = {"fcos": "FCOS", "atss": "ATSS", "faster_rcnn": "Faster R-CNN"}
SETTINGS = {"_smooth_l1": "RetinaNet, the authors' box loss", "_adamw": "RetinaNet, AdamW"}
OWN = "sampled", "biased sampling (Detectron2's)"


def title(word):
    """str: what a variant is called in a table."""
    if word in plan.VARIANTS or word in plan.PARTS:
        return plan.VARIANTS.get(word) or plan.PARTS[word]
    name, _, override = word.partition(":")
    if name == plan.FOCAL:
        alpha, gamma = (x.partition("=")[2] for x in override.split(","))
        return f"focal loss, alpha {alpha}, gamma {gamma}"
    if word == plan.GUIDED_RCNN:
        return plan.VARIANTS[plan.GRADIENT]
    if name == OWN[0]:
        return OWN[1]
    values = dict(x.removeprefix("model.").split("=") for x in override.split(","))
    if "prior" not in values:
        return f"BCE, measured prior, times the mean r of {values['guide']}"
    prior = values["prior"].replace("auto", "measured")
    return f"BCE, prior {prior}, times {values['guide']}"


def words_of(records, data, path=None):
    """The variants of RetinaNet in the order of a table: those of the plan, then what followed.

    Args:
        records (list[dict]): all.
        data (str): a key of ``plan.SPLITS``.
        path (str or None): of a config; None for Detectron2's box loss.

    Returns:
        list[str]
    """
    path = path or plan.config("retinanet", data)
    constant = [plan.word_of(r) for r in plan.of_config(records, path) if plan.is_constant(r)]
    return list(dict.fromkeys([*plan.VARIANTS, *constant, *plan.tuned_words(records, path, data)]))


def table(head, cells):
    return tabulate(cells, head, tablefmt="github", disable_numparse=True)
