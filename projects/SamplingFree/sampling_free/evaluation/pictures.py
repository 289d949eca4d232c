"""Pictures for people: detections, and detections beside the ground truth.

Legend: images are (H, W, 3) uint8, RGB; boxes are (N, 4) x0, y0, x1, y1 in pixels of the image.
"""

import logging
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.data.detection_utils import read_image
from detectron2.data.transforms import ResizeTransform
from detectron2.structures import BoxMode, Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import GenericMask, Visualizer
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from ..data.loader import ReadOrName
from ..utils.errors import BadInput

logger = logging.getLogger(__name__)

# Pixels of the shorter side from which labels are legible; smaller images are drawn enlarged.
MIN_SIDE = 480
# Of the longer side at most: two side by side are within the 65,500 px that a JPEG may have.
MAX_SIDE = 32_000
MIN_FONT = 12  # pixels, of the captions
MARGIN = 8  # pixels between pictures
MAX_CELL = 4000  # pixels of a side of a picture in the overview


def class_name(metadata: Metadata, i: int) -> str:
    """The name of class `i`, counted from 0; "class 3" where the metadata has none."""
    names = metadata.get("thing_classes", None) or []
    return names[i] if i < len(names) else f"class {i}"


def draw_detections(
    image: np.ndarray, instances: Instances, metadata: Metadata, threshold: float
) -> np.ndarray:
    """Draws the detections with score >= threshold, each with its class and score.

    Args:
        image: (H, W, 3) uint8, RGB.
        instances: N detections with `pred_boxes` in pixels of this image, `scores` in
            [0, 1] and `pred_classes`; `pred_masks` (N, H, W) are drawn too where present.
        metadata: `thing_classes` gives the names, `thing_colors` (0 to 255) if present
            the colors.
        threshold: in [0, 1].

    Returns:
        (H', W', 3) uint8, RGB, at least `MIN_SIDE` high and wide, but where the longer
        side would be more than `MAX_SIDE`.
    """
    instances = instances.to("cpu")
    instances = instances[instances.scores >= threshold]
    classes = instances.pred_classes.tolist()
    labels = [
        f"{class_name(metadata, c)} {_short(s)}" for c, s in zip(classes, instances.scores.tolist())
    ]
    masks = instances.pred_masks.numpy() if instances.has("pred_masks") else None
    return _draw(image, instances.pred_boxes.tensor.numpy(), masks, classes, labels, metadata)


def draw_ground_truth(
    image: np.ndarray, dataset_dict: dict, metadata: Metadata, with_masks: bool = False
) -> np.ndarray:
    """Draws the annotations of a dict in Detectron2's dataset format; crowds are marked as such.

    Args:
        image, metadata: as in :func:`draw_detections`.
        dataset_dict: without "annotations" nothing is drawn.
        with_masks: draw "segmentation" too where every annotation has one.

    Returns:
        (H', W', 3) uint8, RGB, of the size as in :func:`draw_detections`.
    """
    annotations = dataset_dict.get("annotations") or []
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    classes = [a["category_id"] for a in annotations]
    labels = [
        class_name(metadata, a["category_id"]) + (" (crowd)" if a.get("iscrowd") else "")
        for a in annotations
    ]
    masks = None
    if with_masks and annotations and all(a.get("segmentation") for a in annotations):
        masks = [a["segmentation"] for a in annotations]
    boxes = np.array(boxes, dtype=float).reshape(-1, 4)
    return _draw(image, boxes, masks, classes, labels, metadata)


def draw_side_by_side(
    image: np.ndarray,
    dataset_dict: dict,
    instances: Instances,
    metadata: Metadata,
    threshold: float,
) -> np.ndarray:
    """Draws ground truth on the left and detections on the right, with captions.

    Args:
        image, instances, metadata, threshold: as in :func:`draw_detections`.
        dataset_dict: as in :func:`draw_ground_truth`.

    Returns:
        (H', W', 3) uint8, RGB.
    """
    panels = {
        "ground truth": draw_ground_truth(
            image, dataset_dict, metadata, with_masks=instances.has("pred_masks")
        ),
        f"detections >= {_short(threshold)}": draw_detections(
            image, instances, metadata, threshold
        ),
    }
    height, width = panels["ground truth"].shape[:2]
    size = max(MIN_FONT, min(height, width) // 24)
    font = ImageFont.truetype(findfont("DejaVu Sans"), size)
    sheet = Image.new("RGB", (2 * width + MARGIN, height + 2 * size), "white")
    for i, (caption, panel) in enumerate(panels.items()):
        left = i * (width + MARGIN)
        sheet.paste(Image.fromarray(panel), (left, 2 * size))
        ImageDraw.Draw(sheet).text((left + size // 2, size // 3), caption, fill="black", font=font)
    return np.asarray(sheet)


def save_prediction_pictures(
    model: nn.Module,
    dataset_dicts: list[dict],
    mapper: Callable,
    metadata: Metadata,
    threshold: float,
    output_dir: str,
    max_images: int = 8,
) -> list[str]:
    """Runs the model on a few images and saves each beside its ground truth, and all as one grid.

    Args:
        model: a Detectron2 detector; its training flag is restored.
        dataset_dicts: in Detectron2's dataset format.
        mapper: of the test loader: dataset dict -> the model's input.
        metadata, threshold: as in :func:`draw_detections`.
        output_dir: gets `<image name>.jpg` for each image and `overview.png`.
        max_images: at most so many, see :func:`choose_images`.

    Returns:
        The files written, the overview last.
    """
    os.makedirs(output_dir, exist_ok=True)
    chosen = choose_images(dataset_dicts, max_images)
    names = unique_stems([d["file_name"] for d in chosen], taken={"overview"})
    paths, sheets = [], []
    was_training = model.training
    read = ReadOrName(mapper)
    model.eval()
    try:
        for dataset_dict, name in zip(chosen, names):
            try:
                inputs = read(dataset_dict)
            except BadInput as e:
                logger.warning(f"No picture: {e}")
                continue
            with torch.no_grad():
                instances = model([inputs])[0]["instances"]
            image = read_image(dataset_dict["file_name"], "RGB")
            sheet = draw_side_by_side(image, dataset_dict, instances, metadata, threshold)
            sheets.append(Image.fromarray(sheet))
            paths.append(os.path.join(output_dir, f"{name}.jpg"))
            sheets[-1].save(paths[-1], format="JPEG", quality=92)
    finally:
        model.train(was_training)
    if sheets:
        paths.append(os.path.join(output_dir, "overview.png"))
        _grid(sheets).save(paths[-1])
    return paths


def choose_images(dataset_dicts: list[dict], max_images: int) -> list[dict]:
    """Evenly spread dataset dicts with objects and, if there is one, one without.

    Args:
        dataset_dicts: in Detectron2's dataset format.
        max_images: how many at most.

    Returns:
        In their order in the set; always the same for the same arguments.
    """
    with_objects = [i for i, d in enumerate(dataset_dicts) if d.get("annotations")]
    without = [i for i, d in enumerate(dataset_dicts) if not d.get("annotations")]
    num_without = max(0, min(len(without), 1, max_images - 1), max_images - len(with_objects))
    chosen = _spread(with_objects, max_images - num_without) + _spread(without, num_without)
    return [dataset_dicts[i] for i in sorted(chosen)]


def unique_stems(paths: Sequence[str], taken: Collection[str] = ()) -> list[str]:
    """A file name without folder and suffix for each path, made unique by "_2", ..."""
    taken, stems = set(taken), []
    for path in paths:
        stem, n = Path(path).stem, 1
        while (unique := stem if n == 1 else f"{stem}_{n}") in taken:
            n += 1
        taken.add(unique)
        stems.append(unique)
    return stems


def _spread(items, n):
    n = max(0, min(n, len(items)))
    return [items[i] for i in np.linspace(0, len(items) - 1, n).round().astype(int)]


def _short(score):
    """Two digits, three for small scores: 0.31, 0.032, 1.2e-05."""
    return f"{score:.2f}" if score >= 0.1 else f"{score:.2g}"


def _draw(image, boxes, masks, classes, labels, metadata):
    height, width = image.shape[:2]
    scale = min(max(1.0, MIN_SIDE / min(height, width)), MAX_SIDE / max(height, width))
    # Enlarged first: the `scale` of Visualizer enlarges the lines but hardly the labels.
    resize = ResizeTransform(height, width, *_scaled(height, width, scale))
    if masks is not None:
        masks = [resize.apply_segmentation(GenericMask(m, height, width).mask) for m in masks]
    colors = metadata.get("thing_colors", None)
    colors = np.array(colors) / 255 if colors else colormap(rgb=True, maximum=1)
    visualizer = Visualizer(resize.apply_image(image))
    visualizer.overlay_instances(
        boxes=resize.apply_box(boxes),
        labels=labels,
        masks=masks,
        assigned_colors=[tuple(colors[c % len(colors)]) for c in classes],
    )
    _keep_labels_inside(visualizer.output)
    return visualizer.output.get_image()


def _scaled(height, width, scale):
    return max(1, round(height * scale)), max(1, round(width * scale))


def _keep_labels_inside(drawing):
    """Move labels that the right or lower edge would cut; one pixel is one unit of the axes."""
    for text in drawing.ax.texts:
        extent = text.get_window_extent(drawing.canvas.get_renderer()).padded(2)
        x, y = text.get_position()
        text.set_position((x - max(0, extent.x1 - drawing.width), y + min(0, extent.y0)))


def _grid(sheets):
    """One image with all sheets in two columns, each as wide as half the first one at most."""
    width = min(max(sheets[0].width // 2, MIN_SIDE), MAX_CELL)
    scales = [min(width / s.width, MAX_CELL / s.height) for s in sheets]
    sheets = [s.resize(_scaled(s.width, s.height, x)) for s, x in zip(sheets, scales)]
    rows = [sheets[i : i + 2] for i in range(0, len(sheets), 2)]
    heights = [max(s.height for s in row) + 2 * MARGIN for row in rows]
    step = width + 2 * MARGIN
    grid = Image.new("RGB", (len(rows[0]) * step, sum(heights)), "white")
    for i, row in enumerate(rows):
        for j, s in enumerate(row):
            grid.paste(s, (j * step + MARGIN, sum(heights[:i]) + MARGIN))
    return grid
