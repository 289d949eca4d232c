"""The measured prior of a training set: what it is, what it depends on, and its JSON file."""

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import detectron2.data.transforms as T
from detectron2.config import instantiate
from detectron2.data import DatasetMapper, MetadataCatalog
from omegaconf import DictConfig, ListConfig
from tabulate import tabulate
from torch import nn

from ..data.prepare import prepare_data, train_loader
from ..method.prior import class_priors, optimal_prior, prior_to_bias, start_loss
from ..utils.errors import BadInput
from ..utils.files import write_json
from ..utils.models import with_present_device
from .assignment import Assignment, assignment_of
from .count import NUM_PASSES, boxes_only, count_anchors
from .counts import AnchorCounts
from .measured_count import measure_counts, source_of
from .views import sampled_names

FILE_NAME = "prior.json"
MEASURED = "measured on the training loader, as"  # key of depends_on
NEWER = {"num_objects", "num_unreached", "standard_error"}  # absent in files of before


@dataclass
class PriorEstimate:
    """Counts of a training set and the prior that follows from them.

    Attributes:
        num_valid, num_foreground (float): N and N_f, summed over the images, means over views.
        num_classes (int): C.
        num_images, num_empty_images (int): images counted, and those without an object.
        per_level (list[dict]): stride (pixels), valid, foreground.
        per_class (dict[str, float]): foreground samples by class name.
        num_objects, num_unreached (float): objects, and those without a foreground anchor; means
            over views. 0 in a file of before they were counted.
        depends_on (dict): what the counts were made of; see :func:`dependencies`.
        standard_error (float): of the prior, relative to it; 0 where the whole set was counted,
            more where the first images of the training loader were.
    """

    num_valid: float
    num_foreground: float
    num_classes: int
    num_images: int = 0
    num_empty_images: int = 0
    per_level: list = field(default_factory=list)
    per_class: dict = field(default_factory=dict)
    depends_on: dict = field(default_factory=dict)
    num_objects: float = 0.0
    num_unreached: float = 0.0
    standard_error: float = 0.0

    @property
    def prior(self) -> float:
        return optimal_prior(self.num_foreground, self.num_valid, self.num_classes)

    @property
    def bias(self) -> float:
        return prior_to_bias(self.prior)

    @property
    def class_priors(self) -> list[float]:
        """The (C,) prior of each class, theta_j = N_j / N."""
        return class_priors(list(self.per_class.values()), self.num_valid)

    @property
    def absent_classes(self) -> list[str]:
        """Classes without a foreground sample, which count as one."""
        return [name for name, n in self.per_class.items() if not n > 0]

    def start_loss(self, prior: float | None = None) -> float:
        """Classification loss per foreground sample if all scores are ``prior`` (its own)."""
        counts = self.num_foreground, self.num_valid, self.num_classes
        return start_loss(self.prior if prior is None else prior, *counts)

    def summary(self) -> str:
        """N, N_f, prior, bias and start loss in one line."""
        return (
            f"N = {self.num_valid:.6g} valid anchors, N_f = {self.num_foreground:.6g} foreground, "
            f"C = {self.num_classes} classes, N*C/N_f = {1 / self.prior:.4g}: "
            f"prior N_f/(N*C) = {self.prior:.4e}, "
            f"bias {self.bias:.3f}, start loss {self.start_loss():.3f} per foreground anchor "
            f"(with prior 0.01 {self.start_loss(0.01):.4g}, with 0.5 {self.start_loss(0.5):.4g})"
        )

    def table(self) -> str:
        """Counts by level and by class as text."""
        levels = [
            [f"stride {x['stride']}", x["foreground"], x["valid"]] for x in self.per_level
        ] + [["all", self.num_foreground, self.num_valid]]
        for row in levels:
            row.append(row[2] / row[1] if row[1] else float("inf"))
        classes = [
            [name, n, theta] for (name, n), theta in zip(self.per_class.items(), self.class_priors)
        ]
        reason = self.depends_on.get(MEASURED)
        measured = [
            f"Measured on the first {self.num_images} images of the training loader, as {reason}; "
            f"standard error of the prior {100 * self.standard_error:.2g} %."
        ]
        return "\n".join(
            [
                *(measured if reason else []),
                f"{self.num_images} images, {self.num_empty_images} of them without an object; "
                f"{self.num_objects:.6g} objects, {self.num_unreached:.4g} of them reached by no "
                "anchor",
                tabulate(levels, ["level", "foreground", "valid (N)", "N / N_f"], floatfmt=".6g"),
                "",
                tabulate(classes, ["class", "foreground", "theta_j = N_j / N"], floatfmt=".4g"),
                "",
                self.summary(),
            ]
        )

    def save(self, path: str) -> None:
        """Writes JSON, in one go, with the derived values beside the counts for a reader."""
        derived = {"prior": self.prior, "bias": self.bias, "start_loss": self.start_loss()}
        write_json(path, {**derived, **asdict(self)})

    @classmethod
    def load(cls, path: str, depends_on: dict | None = None) -> "PriorEstimate":
        """Reads what :meth:`save` wrote.

        Args:
            path:
            depends_on: the present :func:`dependencies`; an estimate that was made for
                anything else is refused.

        Raises:
            BadInput: if the file is missing, broken or stale; names the first difference.
        """
        try:
            with open(path) as f:
                record = json.load(f, parse_constant=lambda x: str(float(x)))  # of files of before
            fields = [k for k in cls.__dataclass_fields__ if k not in NEWER or k in record]
            estimate = cls(**{k: record[k] for k in fields})
            error = estimate.standard_error
            estimate.standard_error = math.inf if error is None else float(error)
            if not isinstance(estimate.depends_on, dict):
                raise TypeError("depends_on is no dict")
            estimate.table()  # raises for what is no count
        except FileNotFoundError:
            raise BadInput(f"{path}: no such file; write it with tools/estimate_prior.py") from None
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise BadInput(
                f"{path}: not a prior estimate ({type(e).__name__}: {e}); "
                "write it anew with tools/estimate_prior.py"
            ) from None
        for key, now in (depends_on or {}).items():
            then = estimate.depends_on.get(key)
            if then != now:
                raise BadInput(
                    f"{path}: stale: made with {key} = {_short(then)}, but now it is "
                    f"{_short(now)}; write it anew with tools/estimate_prior.py"
                )
        return estimate


def measure_prior(
    cfg: DictConfig, model: nn.Module | Assignment | None = None, num_workers: int = 0
) -> PriorEstimate:
    """Measures the optimal prior of a config, as the training would before its first iteration.

    Args:
        cfg: of :func:`sampling_free.load_config`.
        model: of ``cfg``, or its assignment; None builds it.
        num_workers: processes that count; the numbers are the same.

    Returns:
        Its ``prior`` and ``class_priors`` are what a bias is made of.

    Raises:
        BadInput: as the training would.
    """
    cfg = with_present_device(cfg)
    if model is None:
        model = instantiate(cfg.model).to(cfg.train.device)
    data = prepare_data(cfg)
    loader = train_loader(cfg.dataloader.train, data.dicts, data.mapper)
    return estimate_prior(
        model, data.dicts, data.mapper, data.names, loader=loader, num_workers=num_workers
    )


def estimate_prior(
    model: nn.Module | Assignment,
    dataset_dicts: list[dict],
    mapper: DatasetMapper | None,
    names: str | list[str] = (),
    *,
    loader: Iterable | None = None,
    progress: bool = True,
    num_workers: int = 0,
) -> PriorEstimate:
    """Counts a training set with the detector's own labels; see :func:`count_anchors`.

    Args:
        model, dataset_dicts, mapper, progress, num_workers: as in :func:`count_anchors`.
        names: registered names of the data sets, for the class names.
        loader: the training loader; where annotations do not tell what it gives, its
            batches are measured, see :func:`measure_counts`. None counts the annotations.

    Raises:
        BadInput: if not one anchor is foreground.
    """
    assignment = assignment_of(model)
    source = mapper if loader is None else source_of(loader, dataset_dicts)
    if isinstance(source, str):
        counts = measure_counts(assignment, loader, progress=progress)
    else:
        options = {"progress": progress, "num_workers": num_workers}
        counts = count_anchors(assignment, dataset_dicts, source, **options)
    return estimate_from_counts(counts, assignment, dataset_dicts, source, names)


def estimate_from_counts(
    counts: AnchorCounts,
    assignment: Assignment,
    dataset_dicts: list[dict],
    source: DatasetMapper | str,
    names: str | list[str] = (),
) -> PriorEstimate:
    """The estimate of a whole training set from its :class:`AnchorCounts`; else as above.

    Args:
        source (DatasetMapper or str): what was counted with, or why it was measured; see
            :func:`source_of`.
    """
    if counts.foreground.sum() == 0:
        raise BadInput(
            f"{_join(names)}: no anchor is foreground in {counts.num_images} images; check the "
            "annotations, the input size and the anchors' sizes"
        )
    known = assignment.class_names or class_names(names, assignment.num_classes)
    return PriorEstimate(
        num_valid=float(counts.valid.sum()),
        num_foreground=float(counts.foreground.sum()),
        num_classes=assignment.num_classes,
        num_images=counts.num_images,
        num_empty_images=counts.num_empty_images,
        per_level=[
            {"stride": s, "valid": float(v), "foreground": float(f)}
            for s, v, f in zip(counts.strides, counts.valid, counts.foreground)
        ],
        per_class=dict(zip(known, counts.foreground_per_class.tolist())),
        depends_on=dependencies(assignment, dataset_dicts, source, names),
        num_objects=float(counts.num_objects),
        num_unreached=float(counts.num_unreached),
        standard_error=counts.standard_error,
    )


def dependencies(
    model: nn.Module | Assignment,
    dataset_dicts: list[dict],
    source: DatasetMapper | str,
    names: str | list[str] = (),
) -> dict[str, Any]:
    """Everything that the counts depend on, readable and comparable.

    Args:
        source (DatasetMapper or str): as in :func:`estimate_from_counts`.

    Returns:
        Plain JSON values. The annotations enter by a digest; augmentations that
        touch neither boxes nor sizes enter too, as they cannot be told apart.
    """
    recipe, with_masks = {MEASURED: source}, False
    if not isinstance(source, str):
        mapper = boxes_only(source)
        augmentations, with_masks = mapper.augmentations.augs, bool(mapper.recompute_boxes)
        recipe = {
            "augmentations": [_describe(a) for a in augmentations],
            "passes": NUM_PASSES if sampled_names(augmentations) else 1,
            "boxes from masks": with_masks,
        }
    digest = hashlib.sha256()
    for image in dataset_dicts:
        digest.update(repr((image.get("height"), image.get("width"))).encode())
        for a in image.get("annotations", []):
            box = [float(x) for x in a["bbox"]]
            key = box, int(a["bbox_mode"]), a["category_id"], a.get("iscrowd", 0)
            digest.update(repr(key).encode())
            if with_masks:
                digest.update(repr(a.get("segmentation")).encode())
    return {
        "data set": _join(names),
        "number of images": len(dataset_dicts),
        "digest of sizes and boxes": digest.hexdigest()[:16],
        **recipe,
        **assignment_of(model).settings(),
    }


def _describe(x):
    """The same text for the same recipe, in any process."""
    if isinstance(x, (T.Augmentation, T.Transform)):
        # What Detectron2 notes in an augmentation at its first use is no part of the recipe.
        kept = {k: v for k, v in vars(x).items() if k != "input_args"}
        settings = ", ".join(f"{k}={_describe(v)}" for k, v in sorted(kept.items()))
        return f"{type(x).__name__}({settings})"
    if isinstance(x, (list, tuple, ListConfig)):
        return "[" + ", ".join(map(_describe, x)) + "]"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(x))


def class_names(names: str | list[str], num_classes: int) -> list[str]:
    """Those of registered data sets, or "class 0" and so on where they do not fit."""
    known = [MetadataCatalog.get(n).get("thing_classes", []) for n in _listed(names)]
    if known and len(known[0]) == len(set(known[0])) == num_classes:
        return list(known[0])
    return [f"class {k}" for k in range(num_classes)]


def _listed(names):
    return [names] if isinstance(names, str) else list(names)


def _join(names):
    return ", ".join(_listed(names))


def _short(value):
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
