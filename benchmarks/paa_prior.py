#!/usr/bin/env python
"""How many anchors PAA takes for foreground, and which rule without a network comes close to it.

    python benchmarks/paa_prior.py --config-file configs/bccd/paa_R_18_FPN.py \
        --output results/paa_prior.json

PAA's assignment depends on the network, so that its N_f cannot be counted before the training, as
the prior needs it. Counted here on training images, by a network as it starts (with the prior that
ATSS' assignment gives): PAA's own foreground; what ATSS' assignment takes on the same anchors; the
candidates of PAA's first step (IoU); the candidates of its second step (the best k of a level). How
PAA's own number moves while it learns, tools/compare.py records.
"""

import argparse
import json
import os

import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes
from tqdm import tqdm

from sampling_free.cli import add_config_options, config_of, one_line_errors, parse
from sampling_free.data.datasets import dataset_names, load_dataset
from sampling_free.detectors.atss_assignment import atss_match
from sampling_free.method.prior import optimal_prior
from sampling_free.utils.files import write_json


@torch.no_grad()
def count(model, record):
    """The foreground anchors of one image by each rule, and all anchors."""
    instances = record["instances"].to(model.device)
    features = model.backbone(model.preprocess_image([record]).tensor)
    features = [features[f] for f in model.head_in_features]
    logits, deltas, _ = model.head(features)
    (deltas,) = model._transpose_dense_predictions([deltas], [4])
    anchors = model.anchor_generator(features)
    labels, _ = model.label_by_prediction(anchors, [instances], logits, deltas)
    objects = model.candidate_objects(Boxes.cat(anchors), instances.gt_boxes)  # (R,)
    of_levels = objects.split([len(x) for x in anchors])
    best = sum(
        int(x[x >= 0].unique(return_counts=True)[1].clamp(max=model.topk).sum()) for x in of_levels
    )
    return {
        "paa": int((labels[0] != model.num_classes).sum()),
        "atss": int((atss_match(anchors, instances.gt_boxes, model.topk) >= 0).sum()),
        "best_of_levels": best,
        "iou": int((objects >= 0).sum()),
        "anchors": len(objects),
        "objects": len(instances),
    }


@one_line_errors
def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_options(parser)
    parser.add_argument("--images", type=int, default=80, help="training images, at most")
    parser.add_argument("--output", required=True, metavar="JSON", help="gets the record")
    args = parse(parser)

    cfg = config_of(args)
    dataset = load_dataset(cfg.dataloader.train.dataset, cfg.model)[: args.images]
    mapper = instantiate(cfg.dataloader.train.mapper)
    torch.manual_seed(0)
    model = instantiate(cfg.model).train()
    model.set_prior(0.01)
    inputs = [mapper(dict(x)) for x in dataset]
    for _ in range(2):  # the first time only for the prior that ATSS' assignment gives
        counts = [count(model, x) for x in tqdm(inputs, desc=args.config_file)]
        total = {key: sum(x[key] for x in counts) for key in counts[0]}
        model.set_prior(optimal_prior(total["atss"], total["anchors"], model.num_classes))
    record = {
        "config": args.config_file,
        "data_set": ", ".join(dataset_names(cfg.dataloader.train.dataset)),
        "images": len(inputs),
        **{key: value / len(inputs) for key, value in total.items()},
    }
    records = []
    if os.path.exists(args.output):
        with open(args.output) as f:
            records = json.load(f)
    keys = ("config", "data_set")
    records = [r for r in records if any(r[key] != record[key] for key in keys)] + [record]
    write_json(args.output, records)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
