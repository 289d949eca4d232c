#!/usr/bin/env python
"""Trains or evaluates what a config of Detectron2 describes, LazyConfig or YAML.

python train_net.py --config-file configs/demo/retinanet.py
python train_net.py --config-file CONFIG --num-gpus 8 train.output_dir=output/run1
python train_net.py --config-file CONFIG --eval-only train.init_checkpoint=model_final.pth
python train_net.py --config-file COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml --sampling-free \
    SOLVER.IMS_PER_BATCH 8 train.num_pictures=8
python train_net.py --config-file configs/retinanet/retinanet_R_50_FPN_1x.py --variant ghm
"""

from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from sampling_free.cli import add_config_options, config_of, find_config, one_line_errors, parse
from sampling_free.config.saved import keys_in_order
from sampling_free.engine.launch import add_timeout, start
from sampling_free.engine.trainer import LazyTrainer, evaluate_only
from sampling_free.utils.errors import require_writable_folder


@one_line_errors
def train_or_evaluate(args):
    cfg = config_of(args)
    if comm.is_main_process():
        require_writable_folder("train.output_dir", cfg.train.output_dir)
    with keys_in_order():
        default_setup(cfg, args)
    setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank(), name="sampling_free")
    if args.eval_only:
        return evaluate_only(cfg, resume=args.resume)
    trainer = LazyTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


@one_line_errors
def main():
    parser = default_argument_parser(epilog=__doc__)
    add_config_options(parser)
    add_timeout(parser)
    args = parse(parser)
    args.config_file = find_config(args.config_file)
    if args.num_gpus * args.num_machines > 1:
        # A mistake is said once, not by each process.
        config_of(args)
    start(train_or_evaluate, args)


if __name__ == "__main__":
    main()
