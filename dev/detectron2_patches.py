"""The changes that let the v0.6 release of Detectron2 run on current libraries.

Each row of :data:`PATCHES` replaces one text in one file. A row whose text is not found exactly
as often as it says is an error: it would mean that the source is not the release that the rows
were written for, and a wheel that is patched in part fails later and in stranger ways.

Detectron2's main branch needs none of this.
"""

from pathlib import Path
from typing import Iterable, NamedTuple


class PatchError(RuntimeError):
    """A patch does not fit the source that it is applied to."""


class Patch(NamedTuple):
    """One replacement.

    Attributes:
        path: the file, relative to the folder ``detectron2``.
        old: the text to be found there.
        new: the text to be put in its place.
        reason: what fails without it.
        count: how often ``old`` occurs in the file.
    """

    path: str
    old: str
    new: str
    reason: str
    count: int = 1


def apply_patches(package: Path, patches: Iterable[Patch]) -> None:
    """Applies patches to a copy of Detectron2's sources, in place.

    Args:
        package: the folder ``detectron2`` with its ``__init__.py``.
        patches: the replacements, applied in their order.

    Raises:
        PatchError: a file is missing, or does not hold ``old`` exactly ``count`` times.
    """
    for patch in patches:
        file = package / patch.path
        if not file.is_file():
            raise PatchError(f"detectron2/{patch.path}: no such file to patch ({patch.reason})")
        text = file.read_text(encoding="utf-8")
        found = text.count(patch.old)
        if found != patch.count:
            raise PatchError(
                f"detectron2/{patch.path}: {patch.old.splitlines()[0]!r} found {found} times, "
                f"expected {patch.count} ({patch.reason})"
            )
        file.write_text(text.replace(patch.old, patch.new), encoding="utf-8")


_IMPORT_EXTENSION = "from detectron2 import _C\n"
_IMPORT_EXTENSION_IF_BUILT = """\
try:
    from detectron2 import _C
except ImportError:

    class _NotBuilt:
        def __getattr__(self, name):
            raise ImportError(f"detectron2._C.{name}: built without the C++ extension")

    _C = _NotBuilt()
"""
_EXTENSION = "the C++ extension is not built"

_IMPORT_FAST_COCO = "from detectron2.evaluation.fast_eval_api import COCOeval_opt\n"
_IMPORT_FAST_COCO_IF_BUILT = """\
try:
    from detectron2.evaluation.fast_eval_api import COCOeval_opt
except ImportError:
    COCOeval_opt = COCOeval
"""

_FCOS_MATCH = """\
        for gt_per_image in gt_instances:
            gt_centers = gt_per_image.gt_boxes.get_centers()  # Nx2
"""
_FCOS_MATCH_NO_OBJECTS = """\
        for gt_per_image in gt_instances:
            if len(gt_per_image) == 0:
                unmatched = torch.full_like(anchor_sizes, -1, dtype=torch.int64)
                matched_indices.append(unmatched)
                continue
            gt_centers = gt_per_image.gt_boxes.get_centers()  # Nx2
"""
_FCOS_LABEL = """\
        for gt_index, gt_per_image in zip(matched_indices, gt_instances):
            label = gt_per_image.gt_classes[gt_index.clip(min=0)]
"""
_FCOS_LABEL_NO_OBJECTS = """\
        for gt_index, gt_per_image in zip(matched_indices, gt_instances):
            if len(gt_per_image) == 0:
                matched_labels.append(torch.full_like(gt_index, self.num_classes))
                matched_boxes.append(Boxes(torch.zeros_like(Boxes.cat(anchors).tensor)))
                continue
            label = gt_per_image.gt_classes[gt_index.clip(min=0)]
"""
_NO_OBJECTS = "FCOS fails on an image without objects"

_LAUNCH_ASSERT = """\
    assert torch.cuda.is_available(), "cuda is not available. Please check your installation."
"""
_LAUNCH_DEVICE = """\
    assert num_gpus_per_machine <= torch.cuda.device_count()
    torch.cuda.set_device(local_rank)
"""
_LAUNCH_DEVICE_IF_ANY = """\
    if torch.cuda.is_available():
        assert num_gpus_per_machine <= torch.cuda.device_count()
        torch.cuda.set_device(local_rank)
"""
_LAUNCH_BACKEND = '        backend="NCCL",\n'
_LAUNCH_BACKEND_IF_ANY = '        backend="NCCL" if torch.cuda.is_available() else "GLOO",\n'
_LAUNCH = "several processes without a GPU"

_ALIAS = "numpy's alias is gone"

_ZOO_FILE = """\
    cfg_file = pkg_resources.resource_filename(
        "detectron2.model_zoo", os.path.join("configs", config_path)
    )
"""
_ZOO_FILE_BY_IMPORTLIB = """\
    cfg_file = str(importlib.resources.files("detectron2.model_zoo") / "configs" / config_path)
"""
_ZOO = "setuptools 81 has no pkg_resources"

_DEPRECATED = "a DeprecationWarning or FutureWarning"


PATCHES = (
    Patch("layers/deform_conv.py", _IMPORT_EXTENSION, _IMPORT_EXTENSION_IF_BUILT, _EXTENSION),
    Patch("layers/rotated_boxes.py", _IMPORT_EXTENSION, _IMPORT_EXTENSION_IF_BUILT, _EXTENSION),
    Patch("layers/roi_align_rotated.py", _IMPORT_EXTENSION, _IMPORT_EXTENSION_IF_BUILT, _EXTENSION),
    Patch(
        "evaluation/coco_evaluation.py", _IMPORT_FAST_COCO, _IMPORT_FAST_COCO_IF_BUILT, _EXTENSION
    ),
    Patch("export/__init__.py", "from .api import *\n", "", "Caffe2 is gone from torch 2"),
    Patch("data/transforms/transform.py", "Image.LINEAR", "Image.BILINEAR", "gone since Pillow 10"),
    Patch(
        "modeling/meta_arch/retinanet.py",
        "get_norm(norm, 1)",
        "get_norm(norm, 32)",
        "GroupNorm checks that its 32 groups divide the channels",
    ),
    Patch(
        "data/common.py",
        "sample(self._fallback_candidates, k=1)",
        "sample(list(self._fallback_candidates), k=1)",
        "random.sample takes no set since Python 3.11",
    ),
    Patch("modeling/meta_arch/fcos.py", _FCOS_MATCH, _FCOS_MATCH_NO_OBJECTS, _NO_OBJECTS),
    Patch("modeling/meta_arch/fcos.py", _FCOS_LABEL, _FCOS_LABEL_NO_OBJECTS, _NO_OBJECTS),
    Patch("engine/launch.py", _LAUNCH_ASSERT, "", _LAUNCH),
    Patch("engine/launch.py", _LAUNCH_BACKEND, _LAUNCH_BACKEND_IF_ANY, _LAUNCH),
    Patch("engine/launch.py", _LAUNCH_DEVICE, _LAUNCH_DEVICE_IF_ANY, _LAUNCH),
    Patch(
        "engine/hooks.py",
        "torch.optim.lr_scheduler._LRScheduler)",
        "torch.optim.lr_scheduler.LRScheduler)",
        "torch 2's own schedulers are no longer of this class: checkpoints silently lack them",
        2,
    ),
    Patch("model_zoo/model_zoo.py", "import pkg_resources\n", "import importlib.resources\n", _ZOO),
    Patch("model_zoo/model_zoo.py", _ZOO_FILE, _ZOO_FILE_BY_IMPORTLIB, _ZOO),
    Patch("engine/train_loop.py", "from torch.cuda.amp", "from torch.amp", _DEPRECATED, 2),
    Patch("engine/train_loop.py", "with autocast():", 'with autocast("cuda"):', _DEPRECATED),
    Patch(
        "modeling/anchor_generator.py",
        "meshgrid(shifts_y, shifts_x)",
        'meshgrid(shifts_y, shifts_x, indexing="ij")',
        "a warning of PyTorch",
    ),
    Patch("data/datasets/coco.py", "logger.warn(", "logger.warning(", _DEPRECATED, 2),
    Patch("engine/defaults.py", "logger.warn(", "logger.warning(", _DEPRECATED),
    Patch("evaluation/coco_evaluation.py", "logger.warn(", "logger.warning(", _DEPRECATED, 2),
    Patch("evaluation/lvis_evaluation.py", "logger.warn(", "logger.warning(", _DEPRECATED, 2),
    Patch("evaluation/sem_seg_evaluation.py", "logger.warn(", "logger.warning(", _DEPRECATED, 2),
    Patch("data/build.py", "np.int)", "int)", _ALIAS),
    Patch("data/build.py", "dtype=np.int\n", "dtype=int\n", _ALIAS),
    Patch("data/datasets/pascal_voc.py", "np.str)", "str)", _ALIAS),
    Patch("evaluation/pascal_voc_evaluation.py", "np.bool)", "bool)", _ALIAS, 2),
    Patch("evaluation/sem_seg_evaluation.py", "np.int)", "int)", _ALIAS, 2),
    Patch("evaluation/sem_seg_evaluation.py", "np.float)", "float)", _ALIAS, 5),
    Patch("structures/masks.py", "np.bool)", "bool)", _ALIAS, 3),
    Patch("utils/visualizer.py", "np.bool)", "bool)", _ALIAS, 3),
    Patch("utils/video_visualizer.py", "np.bool)", "bool)", _ALIAS),
)
