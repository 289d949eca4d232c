"""Starts one process a GPU, or is one of those that torchrun has started."""

import contextlib
import os
from collections.abc import Callable
from datetime import timedelta

from detectron2.engine import launch
from detectron2.engine.launch import _distributed_worker

from ..utils.errors import BadInput, require_number
from ..utils.signals import passed_on

MINUTES = 30  # Detectron2's own, longer than COCO's evaluation by the main process takes


def add_timeout(parser):
    """Adds --timeout to an ArgumentParser."""
    parser.add_argument(
        "--timeout",
        type=float,
        default=MINUTES,
        metavar="MINUTES",
        help="how long a process waits for the others before the run stops (default: %(default)s)",
    )


def start(function: Callable, args):
    """Calls ``function(args)`` in every process, with their process group set up.

    Args:
        function: can be pickled.
        args (Namespace): of Detectron2's ``default_argument_parser`` and :func:`add_timeout`.

    Raises:
        BadInput: torchrun and a flag both say how many processes there are.
    """
    require_number("--timeout", args.timeout, 1 / 60, 60 * 24 * 7)
    timeout = timedelta(minutes=args.timeout)
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        machines = args.num_machines, args.machine_rank, args.dist_url
        several = args.num_gpus * args.num_machines > 1
        with passed_on() if several else contextlib.nullcontext():
            return launch(function, args.num_gpus, *machines, args=(args,), timeout=timeout)
    if args.num_gpus * args.num_machines > 1:
        raise BadInput(
            "--num-gpus and --num-machines: torchrun says it already, by --nproc-per-node and "
            "--nnodes; leave them out"
        )
    words = ("LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
    rank, size, local_size, machine = (int(os.environ[word]) for word in words)
    _distributed_worker(rank, function, size, local_size, machine, "env://", (args,), timeout)
