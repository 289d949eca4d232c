"""Run a trained detector on pictures of one's own.

    python demo.py --config-file configs/demo/retinanet.py --input my/*.jpg --output output/mine

writes each picture with its detections, and `detections.json`, into --output. Shown is what
scores at least the threshold of best F1, which an evaluation of the same weights has stored.
"""

import argparse
import glob
import logging
import os
import sys
import textwrap
from pathlib import Path

import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import read_image
from PIL import Image
from tqdm import tqdm

from sampling_free.checkpoint.checkpointer import load_trained
from sampling_free.cli import add_config_options, config_of, one_line_errors, parse
from sampling_free.data.datasets import dataset_names
from sampling_free.data.images import makes_8_bits, require_8_bits
from sampling_free.evaluation.best_threshold import FALLBACK_THRESHOLD, FILE_NAME, BestThreshold
from sampling_free.evaluation.pictures import class_name, draw_detections, unique_stems
from sampling_free.utils.errors import BadInput, disk_fault, require_writable_folder
from sampling_free.utils.files import write_json
from sampling_free.utils.models import with_present_device

logger = logging.getLogger("sampling_free")

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
# What Pillow raises for a file that is no image or a damaged one, and PyTorch for one too large.
FAILURES = (
    OSError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
    MemoryError,
    RuntimeError,
)


def one_line(error):
    """str: what an exception of a library says, cut to a line's length."""
    return textwrap.shorten(str(error), 160) or type(error).__name__


def parse_args(argv=None):
    def score(text):
        value = float(text)
        if not 0 <= value <= 1:
            raise ValueError
        return value

    parser = argparse.ArgumentParser(description="Run a trained detector on pictures of one's own.")
    add_config_options(parser)
    parser.add_argument(
        "--input", required=True, nargs="+", metavar="IMG", help="files, folders or glob patterns"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="made if absent")
    parser.add_argument(
        "--weights", help="default: model_final.pth, else model_best.pth, in train.output_dir"
    )
    parser.add_argument(
        "--confidence-threshold",
        type=score,
        metavar="SCORE",
        help=f"0 to 1; default: that of best F1, from {FILE_NAME} beside the weights, "
        f"else {FALLBACK_THRESHOLD}; the model has dropped some by its own test_score_thresh",
    )
    return parse(parser, argv)


def find_images(inputs):
    """list[str]: the files that the arguments stand for, each once, in order; absent ones too."""
    files = []
    for text in inputs:
        if os.path.isdir(text):
            inside = sorted(Path(text).iterdir())
            files += [str(p) for p in inside if p.suffix.lower() in SUFFIXES and p.is_file()]
        elif os.path.exists(text):  # a name may hold the brackets of a pattern
            files.append(text)
        else:
            files += sorted(glob.glob(text, recursive=True)) or [text]
    if not files:
        raise BadInput(f"--input {' '.join(inputs)}: no image in there ({', '.join(SUFFIXES)})")
    return list(dict.fromkeys(files))


def find_weights(given, output_dir):
    """str: --weights, or what training has left in `output_dir`."""
    if given:
        if "://" not in given and not os.path.isfile(given):
            raise BadInput(f"--weights {given}: no such file")
        return given
    for name in ("model_final.pth", "model_best.pth"):
        if os.path.isfile(os.path.join(output_dir, name)):
            return os.path.join(output_dir, name)
    raise BadInput(
        f"train.output_dir {output_dir}: no model_final.pth or model_best.pth in there; "
        "train first, or give --weights"
    )


def find_threshold(given, weights):
    """float: --confidence-threshold, else the stored one of best F1, else the fallback."""
    if given is not None:
        return given
    path = os.path.join(os.path.dirname(weights), FILE_NAME)
    best = BestThreshold.load(path) if os.path.isfile(path) else None
    if best is None or best.threshold is None:
        why = "no such file" if best is None else "no threshold could be measured"
        logger.warning(
            f"warning: {path}: {why}; showing scores >= {FALLBACK_THRESHOLD}. Evaluate the "
            "weights to find the best threshold, or give --confidence-threshold"
        )
        return FALLBACK_THRESHOLD
    return best.threshold


def find_metadata(cfg):
    """Metadata: of the test set; empty, so that classes go by number, where that is absent."""
    try:
        name = dataset_names(cfg.dataloader.test.dataset)[0]
        if not MetadataCatalog.get(name).get("thing_classes"):
            DatasetCatalog.get(name)  # some sets name their classes only when they are read
        return MetadataCatalog.get(name)
    except (BadInput, OSError) as e:
        logger.warning(f"warning: classes are shown by number: {one_line(e)}")
        return Metadata()


def load_model(cfg, weights):
    """nn.Module: in eval mode, every parameter from the weights."""
    model = instantiate(cfg.model).to(cfg.train.device).eval()
    load_trained(model, weights, allow_pickle=cfg.train.allow_pickle)
    return model


def read(file, mapper):
    """tuple: the image (H, W, 3) uint8, RGB, as it is; what the model takes, resized."""
    if makes_8_bits(mapper):
        require_8_bits(file)
    return read_image(file, "RGB"), mapper({"file_name": file})


@torch.no_grad()
def detect(model, inputs, threshold):
    """Instances: what the model finds with score >= threshold, on the CPU."""
    instances = model([inputs])[0]["instances"].to("cpu")
    return instances[instances.scores >= threshold]


def as_records(instances, metadata):
    """list[dict]: class name, score in [0, 1] and box x0, y0, x1, y1 in pixels, for JSON."""
    fields = (instances.pred_classes, instances.scores, instances.pred_boxes.tensor)
    return [
        {"class": class_name(metadata, c), "score": score, "box_xyxy": box}
        for c, score, box in zip(*(f.tolist() for f in fields))
    ]


@one_line_errors
def main(argv=None):
    args = parse_args(argv)
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    cfg = with_present_device(config_of(args))
    if "test" not in cfg.dataloader:
        raise BadInput(
            f"{args.config_file}: has no test set, whose mapper pictures go through: set "
            "dataloader.test, or DATASETS.TEST in a YAML config"
        )
    files = find_images(args.input)
    output = Path(args.output)
    if any(Path(file).resolve().parent == output.resolve() for file in files):
        raise BadInput(f"--output {output}: holds the input pictures; give another folder")
    require_writable_folder("--output", output)
    weights = find_weights(args.weights, cfg.train.output_dir)
    threshold = find_threshold(args.confidence_threshold, weights)
    metadata = find_metadata(cfg)
    mapper = instantiate(cfg.dataloader.test.mapper)
    model = load_model(cfg, weights)

    results, num_failed = [], 0
    progress = tqdm(list(zip(files, unique_stems(files))), disable=len(files) < 10)
    try:
        for file, stem in progress:
            what = "no readable image"
            try:
                image, inputs = read(file, mapper)
                what = "cannot be detected on"
                instances = detect(model, inputs, threshold)
                records = as_records(instances, metadata)
                results.append({"file": file, "threshold": threshold, "detections": records})
                what = "detected on, but not drawn"
                picture = draw_detections(image, instances, metadata, threshold)
                Image.fromarray(picture).save(output / f"{stem}.jpg", format="JPEG", quality=92)
            except FAILURES as e:  # the other pictures may still do
                if disk_fault(e):
                    raise
                num_failed += 1
                progress.write(f"error: {file}: {what} ({one_line(e)})", file=sys.stderr)
                continue
            progress.write(f"{file}: {len(records)} detections with score >= {threshold:.3g}")
    finally:
        write_json(str(output / "detections.json"), results)
    return 2 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
